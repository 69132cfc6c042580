//! `vnca figures`: all figures and the table of results of the report, from runs. It is made of the other verbs: under a
//! picture stands the command that makes it.

mod calls;
mod curves;
mod results;
mod sections;

use std::borrow::Cow;
use std::fmt::Display;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Map, Value, json};

use super::run_data::{RunData, Wanted};
use super::{On, Outcome, Report, to_stderr};
use crate::cli::config::TrainConfig;
use crate::cli::models::{Kind, Model};
use crate::data::{Part, Split};
use crate::engine::shape::Precision;
use crate::error::{Error, Tag};
use crate::files;
use crate::study::figure::page::Page;
use crate::train::checkpoint::chosen;
use curves::Course;
use sections::{EVAL, Figure, Needs, PROBE, SECTIONS, Section};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run's folder: its best checkpoint, else its newest; again for each kind of model
    #[arg(long = "run", value_name = "DIR", required = true)]
    runs: Vec<PathBuf>,
    /// Folder for report.html and, in a folder for each model, the files
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Test images: a file, a folder, or `glyphs` [default: those that the runs were trained on]
    #[arg(long, env = "VNCA_DATA", value_name = "PATH")]
    data: Option<String>,
    /// Latent samples an image of the IWELBO
    #[arg(long, default_value_t = 128, value_name = "K")]
    samples: usize,
    /// The test images' labels, IDX or .npy, as `vnca label` writes them [default: those that come with the data]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Images of the latents' maps
    #[arg(long, default_value_t = 5000, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    points: u32,
    /// Evaluate the first N test images only, and probe the cells of N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Seed of the pictures
    #[arg(long, default_value_t = 3, value_name = "N")]
    seed: u64,
    /// Element type in which matrix products and convolutions take their operands [default: the run's]
    #[arg(long, env = "VNCA_PRECISION", value_enum)]
    precision: Option<Precision>,
    #[command(flatten)]
    device: On,
    /// Print the numbers and the files' names as JSON on stdout instead of the page's name
    #[arg(long)]
    json: bool,
}

/// A run, and what was made of it so far.
struct Run {
    folder: PathBuf,
    model: Model,
    /// Of the data that the run is evaluated on, for people.
    images: Split,
    out: PathBuf,
    numbers: Map<String, Value>,
}

pub fn run(args: &Args) -> Outcome {
    let mut runs = opened(args)?;
    let files = make(args, &mut runs)?;
    let page = args.out.join("report.html");
    let models: Map<String, Value> =
        runs.into_iter().map(|r| (r.model.kind.to_string(), r.numbers.into())).collect();
    let json = json!({ "verb": "figures", "report": page, "files": files, "models": models });
    Report { json, text: page.display().to_string() }.print(args.json)
}

/// Looks at everything that can be wrong with the runs before anything is computed.
fn opened(args: &Args) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for folder in &args.runs {
        let config = TrainConfig::from_run(folder)?;
        let (_, checkpoint) = chosen(folder)?;
        let kind = config.model.kind;
        if let Some(other) = runs.iter().find(|r| r.model.kind == kind) {
            let both = anyhow!(
                "--run {} and --run {} are both of the {kind} model: name one run of each",
                other.folder.display(),
                folder.display()
            );
            return Err(both).tag(Error::Usage);
        }
        let own = RunData::new(folder, &config, &checkpoint.meta);
        let images = Wanted::new(args.data.as_deref(), Some(&own)).split(Part::Test)?;
        let out = args.out.join(kind.name());
        runs.push(Run { folder: folder.clone(), model: config.model, images, out, numbers: Map::new() });
    }
    ensure!(!runs.is_empty(), "--run DIR is needed");
    runs.sort_by_key(|r| Kind::ALL.iter().position(|k| *k == r.model.kind));
    for run in &runs {
        fs::create_dir_all(&run.out).with_context(|| format!("cannot make {}", run.out.display()))?;
    }
    Ok(runs)
}

/// Makes all files and the page; gives the files' names.
fn make(args: &Args, runs: &mut [Run]) -> Result<Vec<PathBuf>> {
    let mut page = Page::new("Variational Neural Cellular Automata: results and figures");
    let names: Vec<String> =
        runs.iter().map(|r| format!("{} ({})", r.model.kind, r.folder.display())).collect();
    page.text(&format!(
        "The experiments of the report \u{201c}[Re] Variational Neural Cellular Automata\u{201d} (Aillet & Sond\u{e9}n, ReScience \
         2023) with the models of these runs: {}. Under each picture stands the command that made it. The whole page is made by:",
        names.join(", ")
    ));
    page.command(&whole_command(args));
    let mut files = Vec::new();
    for run in runs.iter_mut() {
        run.make(&EVAL, args)?;
        if run.lacks(&PROBE, args).is_none() {
            run.make(&PROBE, args)?;
        }
    }
    results::write(&mut page, args, runs)?;
    training(&mut page, args, runs, &mut files)?;
    for section in SECTIONS {
        page.section(section.anchor, section.title);
        page.text(section.about);
        for run in runs.iter_mut() {
            figures(&mut page, args, run, section, &mut files)?;
        }
    }
    let report = args.out.join("report.html");
    files::write_bytes(&report, page.html())?;
    files.push(report);
    Ok(files)
}

fn training(page: &mut Page, args: &Args, runs: &[Run], files: &mut Vec<PathBuf>) -> Result<()> {
    let read = |r: &Run| Course::read(r.model.kind.to_string(), &r.folder).tag(Error::Data);
    let courses: Vec<Course> = runs.iter().map(read).collect::<Result<_>>()?;
    let [loss, bounds] = curves::plots(&courses)?;
    page.section("curves", "Training curves");
    let steps: Vec<String> = courses.iter().map(|c| format!("{} {}", c.name, c.steps())).collect();
    page.text(&format!(
        "Gradient steps: {}. Read from metrics.jsonl in each run's folder.",
        steps.join(", ")
    ));
    let told = [
        (
            loss,
            "loss.png",
            "Training loss in nats: means of up to 200 equal stretches of steps. What is over twice the last is not shown.",
        ),
        (bounds, "test-iwelbo.png", "IWELBO of test images in nats, as measured during training."),
    ];
    for (png, name, caption) in told {
        let Some(png) = png else {
            page.left_out(&format!("{name} is left out: no run has two points of it."));
            continue;
        };
        let path = args.out.join(name);
        files::write_bytes(&path, &png)?;
        page.picture(&png, caption);
        files.push(path);
    }
    for run in runs {
        page.command(&format!("vnca train --resume --out {}", quoted(&run.folder.display())));
    }
    Ok(())
}

/// One model's part of a section.
fn figures(
    page: &mut Page,
    args: &Args,
    run: &mut Run,
    section: &Section,
    files: &mut Vec<PathBuf>,
) -> Result<()> {
    let kind = run.model.kind;
    page.heading(&format!("The {kind} model"));
    for figure in section.figures {
        if let Some(why) = run.lacks(figure, args) {
            page.left_out(&why);
            continue;
        }
        let numbers = run.make(figure, args)?;
        for (name, caption) in figure.files {
            let path = run.out.join(name);
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            page.picture(&bytes, caption);
        }
        if let Some(told) = (figure.told)(&numbers) {
            page.text(&told);
        }
        page.command(&run.command(figure, args));
        let made = numbers["files"].as_array().into_iter().flatten();
        files.extend(made.filter_map(|f| f.as_str().map(PathBuf::from)));
    }
    Ok(())
}

impl Run {
    /// Why a figure cannot be made.
    fn lacks(&self, figure: &Figure, args: &Args) -> Option<String> {
        let labels = args.labels.is_some() || self.images.labels.is_some();
        let Figure { title, needs, .. } = figure;
        match needs {
            Needs::Cells | Needs::LabelledCells if self.model.kind == Kind::Baseline => {
                Some(format!("No {title}: the baseline's decoder has no cells."))
            }
            _ if labels => None,
            Needs::Labels | Needs::LabelledCells => Some(format!(
                "No {title}: {} has no labels. Name a file with --labels; `vnca label` finds those of binarized images.",
                self.images.name
            )),
            _ => None,
        }
    }

    /// Makes a figure, the first time, and keeps its numbers.
    fn make(&mut self, figure: &Figure, args: &Args) -> Result<Value> {
        if let Some(numbers) = self.numbers.get(figure.name) {
            return Ok(numbers.clone());
        }
        let shown = self.command(figure, args);
        to_stderr(&format!("{}: {shown}", self.model.kind));
        let numbers = (figure.call)(self, args).make().with_context(|| format!("`{shown}`"))?;
        self.numbers.insert(figure.name.into(), numbers.clone());
        Ok(numbers)
    }

    /// Images of the latents' maps.
    fn points(&self, args: &Args) -> usize {
        self.images.len().min(args.points as usize)
    }

    /// The maps' perplexity where it is not the default. A map looks at three times as many neighbours as it says.
    fn perplexity(&self, args: &Args) -> Option<usize> {
        let points = self.points(args);
        (points < 120).then_some(points / 4)
    }

    /// Steps after a damage where they are not the model's: at the report's size pictures recover for longer than they
    /// grow.
    fn recovery_steps(&self) -> Option<usize> {
        let grows = self.model.kind.default_nca_steps();
        (self.model.kind == Kind::NonDoubling && self.model.nca_steps == grows).then_some(40)
    }

    /// The command that makes a figure, as one types it.
    fn command(&self, figure: &Figure, args: &Args) -> String {
        let word = |word: &str| match word {
            "{run}" => quoted(&self.folder.display()),
            "{data}" => flag("--data", args.data.as_ref()),
            "{limit}" => flag("--limit", args.limit),
            "{labels}" => flag("--labels", args.labels.as_ref().map(|l| l.display())),
            "{points}" => flag("--points", Some(self.points(args))),
            "{perplexity}" => flag("--perplexity", self.perplexity(args)),
            "{seed}" => flag("--seed", (args.seed != 3).then_some(args.seed)),
            "{device}" => {
                let device = (args.device.device != "cpu").then_some(&args.device.device);
                let flags = [flag("--device", device), flag("--precision", args.precision)];
                flags.join(" ").trim().to_string()
            }
            "{recovery}" => flag("--nca-steps", self.recovery_steps()),
            "{samples}" => args.samples.to_string(),
            _ => match word.strip_prefix("{out}") {
                Some(file) => quoted(&format_args!("{}{file}", self.out.display())),
                None => word.into(),
            },
        };
        let words = figure.command.split_whitespace().map(word).filter(|word| !word.is_empty());
        std::iter::once("vnca".to_string()).chain(words).collect::<Vec<_>>().join(" ")
    }
}

fn whole_command(args: &Args) -> String {
    let runs = args.runs.iter().map(|run| flag("--run", Some(run.display())));
    let options = [
        flag("--out", Some(args.out.display())),
        flag("--data", args.data.as_ref()),
        flag("--labels", args.labels.as_ref().map(|l| l.display())),
        flag("--points", Some(args.points)),
        flag("--samples", Some(args.samples)),
        flag("--limit", args.limit),
        flag("--seed", Some(args.seed)),
        flag("--device", Some(&args.device.device)),
        flag("--precision", args.precision),
    ];
    let flags: Vec<String> = runs.chain(options).filter(|flag| !flag.is_empty()).collect();
    format!("vnca figures {}", flags.join(" "))
}

/// A flag with its value, if it has one.
fn flag(name: &str, value: Option<impl Display>) -> String {
    value.map(|value| format!("{name} {}", quoted(&value))).unwrap_or_default()
}

/// A word as a shell takes it.
fn quoted(word: &impl Display) -> String {
    let word = word.to_string();
    // There is no way to write a zero byte, and no name or argument has one.
    shlex::try_quote(&word).map(Cow::into_owned).unwrap_or_default()
}
