//! `vnca eval`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

use super::images::Evaluated;
use super::run_data::ImageSource;
use super::{DeviceOptions, Outcome, Source, Weights, bar, print};
use crate::cli::hosts::{HostOptions, lines};
use crate::cli::models::{Kind, Model};
use crate::data::Split;
use crate::engine::random::Key;
use crate::error::{Error, Tag, valid};
use crate::files;
use crate::study::eval::Evaluator;
use crate::study::eval::part::{Part, Shard, Task, merge};
use crate::study::eval::summary::{ModelInfo, Summary};
use crate::study::session::Session;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    pub action: Option<Action>,
    #[command(flatten)]
    pub options: Options,
    #[command(flatten)]
    pub hosts: HostOptions,
}

#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Merge the files of all shards into the results of the whole evaluation, bit for bit
    Merge {
        /// The files that --shard I/N --out FILE wrote, in any order
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Print JSON on stdout
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub source: Source,
    #[command(flatten)]
    pub images: Evaluated,
    /// Latent samples per image
    #[arg(long, default_value_t = 128, value_name = "K")]
    pub samples: usize,
    /// Images per device call, over all replicas; changes no result
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub batch_size: usize,
    /// Devices that share the images, those of all processes; changes no result [default: 1, or all devices of several
    /// processes]
    #[arg(long, value_name = "R")]
    pub replicas: Option<usize>,
    /// Seed of the latents: image i uses the i-th split of its key
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub seed: u64,
    /// Evaluate with N seeds, --seed and those after it, and report the standard error over them
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub repeat: u64,
    /// Also evaluate the same number of training images, evenly spaced, and report the gap
    #[arg(long, conflicts_with_all = ["shard", "out"])]
    pub gap: bool,
    /// Evaluate the I-th of N shards of the images, counted from 0; `vnca eval merge` joins them
    #[arg(long, value_name = "I/N", requires = "out")]
    pub shard: Option<Shard>,
    /// Write the scores of every image to a JSON file
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceOptions,
    /// Print JSON on stdout
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &Args) -> Outcome {
    match &args.action {
        Some(Action::Merge { files, json }) => report(&summary(&merge(files)?).tag(Error::Data)?, *json),
        // Shards are evaluated by processes that need not know of each other.
        None if args.options.shard.is_some() => {
            evaluate(&args.options, &args.options.device)?;
            Ok(None)
        }
        None => args.hosts.run(Some(&args.options.device.device), |hosts| {
            let summary = evaluate(&args.options, &args.options.device.together(hosts))?;
            report(&summary.context("only a shard has no summary")?, args.options.json)
        }),
    }
}

fn report(summary: &Summary, json: bool) -> Outcome {
    print(&if json { summary.json()? } else { summary.text() })?;
    Ok(None)
}

/// Evaluates a model. A shard has no summary yet: this prints the name of its file and returns `None`.
///
/// # Errors
/// When the options, the weights, the images or the device are invalid, or a file cannot be written.
pub fn evaluate(args: &Options, device: &DeviceOptions) -> Result<Option<Summary>> {
    let last = args.seed.checked_add(args.repeat - 1);
    valid!(last.is_some(), "repeat", "{} seeds from --seed {} on go beyond 2^64 - 1", args.repeat, args.seed);
    let out = args.out.as_deref().filter(|_| device.is_first());
    out.map_or(Ok(()), files::check_writable)?;
    let weights = args.source.load()?;
    let (split, train) = images(args, args.images.source(weights.data.as_ref()))?;
    let session = device.session(args.replicas, &weights)?;
    let replicas = session.mesh.replicas();
    let began = Instant::now();
    let test_task = task(args, replicas, &weights, &split)?;
    // The images may lie elsewhere on another host.
    let shown = Task { data: String::new(), ..test_task.clone() };
    session.mesh.agree("the evaluation", &lines(&shown)?)?;
    // A device call computes whole batches. Exported programs have the batch that they were exported with.
    let most = split.len().next_multiple_of(replicas).max(1);
    let batch = if session.mesh.programs().is_some() { args.batch_size } else { args.batch_size.min(most) };
    let evaluator = Evaluator::new(&session.mesh, &session.model, batch, args.samples).tag(Error::Usage)?;
    let shard = args.shard.unwrap_or(Shard::WHOLE);
    let part = measure(args, &evaluator, &session, test_task, shard, &split, began)?;
    if let Some(out) = &args.out {
        session.mesh.lead(|| part.save(out))?;
    }
    if args.shard.is_some() {
        print(&shard_line(args, &part))?;
        return Ok(None);
    }
    let test_summary = summary(&part).tag(Error::Usage)?;
    let Some(train) = train else { return Ok(Some(test_summary)) };
    let task = task(args, replicas, &weights, &train)?;
    let train = measure(args, &evaluator, &session, task, shard, &train, Instant::now())?;
    Ok(Some(test_summary.compared_to(&summary(&train)?)))
}

/// Summarises the evaluation of one of the command line's models.
fn summary(part: &Part) -> Result<Summary> {
    let model: Model =
        serde_json::from_value(part.task.model.clone()).context("cannot read the evaluation's model")?;
    let automaton = model.kind != Kind::Baseline;
    let info = ModelInfo {
        model: model.kind.to_string(),
        precision: model.precision,
        latent: model.latent,
        nca_steps: automaton.then_some(model.nca_steps),
        doublings: (model.kind == Kind::Doubling).then_some(model.doublings),
        image: [model.image.height, model.image.width, model.image.channels],
    };
    Summary::from_part(part, info)
}

/// Returns the images to evaluate, and for `--gap` the same number of training images.
fn images(args: &Options, source: ImageSource<'_>) -> Result<(Split, Option<Split>)> {
    let first = args.images.load(source)?;
    let count = first.len();
    if !args.gap {
        return Ok((first, None));
    }
    let (spec, dataset) = (source.spec(), source.all()?);
    match (dataset.train, dataset.test, args.images.split.as_str()) {
        (Some(train), _, "valid") | (Some(train), Some(_), "test") => Ok((first, Some(train.spread(count)))),
        (_, _, "train") => {
            Err(anyhow!("--gap compares held-out images with training images: leave out --split train"))
                .tag(Error::Usage)
        }
        _ => Err(anyhow!("--gap needs training and test images: {spec} has only one part")).tag(Error::Usage),
    }
}

/// Identifies an evaluation of these images.
fn task(args: &Options, replicas: usize, weights: &Weights, images: &Split) -> Result<Task> {
    Ok(Task {
        model: serde_json::to_value(weights.model)?,
        weights: weights.checksum(),
        data: images.name.clone(),
        pixels: format!("{:08x}", crc32fast::hash(&images.pixels)),
        images: images.len(),
        samples: args.samples,
        seeds: (0..args.repeat).map(|i| args.seed.wrapping_add(i)).collect(),
        batch_size: args.batch_size,
        replicas,
    })
}

/// Evaluates a shard of the images with every seed.
fn measure(
    args: &Options,
    evaluator: &Evaluator,
    session: &Session,
    task: Task,
    shard: Shard,
    images: &Split,
    began: Instant,
) -> Result<Part> {
    let range = shard.range(images.len(), args.batch_size);
    let progress = bar(range.len() * task.seeds.len(), "images");
    let mut scores = Vec::new();
    for seed in &task.seeds {
        let before = scores.len() * range.len();
        let done = |n: usize| progress.set_position((before + n) as u64);
        scores.push(evaluator.run(&session.parameters(), images, Key::new(*seed), range.clone(), done)?);
    }
    progress.finish_and_clear();
    Part::new(task, shard, scores, began.elapsed().as_secs_f64())
}

/// Formats the result of a shard: one line of text or JSON.
fn shard_line(args: &Options, part: &Part) -> String {
    let (Shard { index, of }, images) = (part.shard, part.images());
    let out = args.out.clone().unwrap_or_default();
    if args.json {
        let seconds = part.seconds;
        return serde_json::json!({"shard": index, "of": of, "images": images, "out": out.to_string_lossy(), "seconds": seconds})
            .to_string();
    }
    format!("shard {index} of {of}: {images} of {} images, in {}", part.task.images, out.display())
}
