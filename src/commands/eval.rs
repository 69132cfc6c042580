//! `vnca eval`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, anyhow};

use super::run_data::Wanted;
use super::{On, Outcome, Source, Weights, bar, print};
use crate::data::{self, Part as DataPart, Split};
use crate::error::{Exit, WithExit};
use crate::eval::Evaluator;
use crate::eval::part::{Part, Shard, Task, merge};
use crate::eval::summary::Summary;
use crate::random::Key;
use crate::session::Session;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Join the files of all shards: the figures of the whole, bit for bit
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
struct Options {
    #[command(flatten)]
    source: Source,
    /// Images: a file, a folder, or `glyphs` [default: those that the run was trained on, else glyphs]
    #[arg(long, env = "VNCA_DATA", value_name = "PATH")]
    data: Option<String>,
    /// Which part of the data
    #[arg(long, default_value = "test", value_parser = ["train", "test"])]
    split: String,
    /// Latent samples an image
    #[arg(long, default_value_t = 128, value_name = "K")]
    samples: usize,
    /// Images a device call, over all replicas; changes no result
    #[arg(long, default_value_t = 32, value_name = "N")]
    batch_size: usize,
    /// Devices that share the images; changes no result
    #[arg(long, default_value_t = 1, value_name = "R")]
    replicas: usize,
    /// Seed of the latents: image i has the i-th key of its split
    #[arg(long, default_value_t = 2, value_name = "N")]
    seed: u64,
    /// Evaluate with N seeds, --seed and those after it, and give the standard error over them
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    repeat: u64,
    /// The first N images only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Evaluate as many training images too, evenly spaced, and give the gap
    #[arg(long, conflicts_with_all = ["shard", "out"])]
    gap: bool,
    /// Evaluate the I-th of N shards of the images, counted from 0; `vnca eval merge` joins them
    #[arg(long, value_name = "I/N", requires = "out")]
    shard: Option<Shard>,
    /// Write the scores of every image to a JSON file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: On,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let (summary, json) = match &args.action {
        Some(Action::Merge { files, json }) => {
            (Summary::of(&merge(files).exit(Exit::BadInput)?).exit(Exit::BadInput)?, *json)
        }
        None => match evaluated(&args.options)? {
            Some(summary) => (summary, args.options.json),
            None => return Ok(None),
        },
    };
    print(&if json { summary.json()? } else { summary.text() })?;
    Ok(None)
}

/// The figures; none of a shard, which is told of here.
fn evaluated(args: &Options) -> Result<Option<Summary>> {
    let weights = args.source.load()?;
    let wanted = Wanted::new(args.data.as_deref(), weights.data.as_ref());
    let part = if args.split == "train" { DataPart::Train } else { DataPart::Test };
    let (split, train) = images(args, wanted, part)?;
    let device = args.device.get()?;
    let session = Session::open(&device, args.replicas, weights.model, &weights.arrays).exit(Exit::Device)?;
    let began = Instant::now();
    let evaluator =
        Evaluator::new(&session.mesh, &session.model, args.batch_size, args.samples).exit(Exit::Usage)?;
    let shard = args.shard.unwrap_or(Shard::WHOLE);
    let measured = measure(args, &evaluator, &session, task(args, &weights, &split), shard, &split, began)?;
    if let Some(out) = &args.out {
        measured.save(out)?;
    }
    if args.shard.is_some() {
        print(&shard_line(args, &measured))?;
        return Ok(None);
    }
    let summary = Summary::of(&measured).exit(Exit::Usage)?;
    let Some(train) = train else { return Ok(Some(summary)) };
    let task = task(args, &weights, &train);
    let train = measure(args, &evaluator, &session, task, shard, &train, Instant::now())?;
    Ok(Some(summary.compared_to(&Summary::of(&train)?)))
}

/// The images to evaluate, and for the gap as many training images.
fn images(args: &Options, wanted: Wanted<'_>, part: DataPart) -> Result<(Split, Option<Split>)> {
    let split = wanted.split(part)?;
    let count = args.limit.unwrap_or(usize::MAX).min(split.len());
    let first = Split { pixels: split.pixels[..count * data::PIXELS].to_vec(), labels: None, ..split };
    if !args.gap {
        return Ok((first, None));
    }
    let (spec, dataset) = (wanted.spec(), wanted.all()?);
    match (dataset.train, dataset.test, part) {
        (Some(train), Some(_), DataPart::Test) => Ok((first, Some(train.spread(count)))),
        (_, _, DataPart::Train) => {
            Err(anyhow!("--gap compares test images with training images: leave out --split train"))
                .exit(Exit::Usage)
        }
        _ => Err(anyhow!("--gap needs training and test images: {spec} has one part only")).exit(Exit::Usage),
    }
}

fn task(args: &Options, weights: &Weights, images: &Split) -> Task {
    let mut hasher = crc32fast::Hasher::new();
    weights.arrays.iter().for_each(|array| hasher.update(array.bytes()));
    Task {
        model: weights.model,
        weights: format!("{:08x}", hasher.finalize()),
        data: images.name.clone(),
        pixels: format!("{:08x}", crc32fast::hash(&images.pixels)),
        images: images.len(),
        samples: args.samples,
        seeds: (args.seed..args.seed.saturating_add(args.repeat)).collect(),
        batch_size: args.batch_size,
        replicas: args.replicas,
    }
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
        scores.push(evaluator.run(&session.parameters, images, Key::new(*seed), range.clone(), done)?);
    }
    progress.finish_and_clear();
    Part::new(task, shard, scores, began.elapsed().as_secs_f64())
}

fn shard_line(args: &Options, part: &Part) -> String {
    let (Shard { index, of }, images) = (part.shard, part.images());
    let out = args.out.clone().unwrap_or_default();
    if args.json {
        let seconds = part.seconds;
        return serde_json::json!({"shard": index, "of": of, "images": images, "out": out, "seconds": seconds})
            .to_string();
    }
    format!("shard {index} of {of}: {images} of {} images, in {}", part.task.images, out.display())
}
