//! `vnca figures`: writes a page with all figures of the report and its table of results, from runs.
//!
//! Other commands draw the figures. The page shows the command line under each picture.

mod calls;
mod curves;
mod results;
mod sections;

use std::borrow::Cow;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Map, Value, json};

use super::probe;
use super::run_data::{ImageSource, RunData};
use super::{DeviceOptions, Outcome, Report, file_names, to_stderr};
use crate::cli::config::TrainConfig;
use crate::cli::models::{Kind, Model};
use crate::data::{Part, Split};
use crate::engine::shape::Precision;
use crate::error::{Error, Tag};
use crate::files;
use crate::study::figure::page::Page;
use crate::train::checkpoint::chosen;
use curves::TrainingCurves;
pub use results::{minus, published_results};
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
    /// Latent samples per image for the IWELBO
    #[arg(long, default_value_t = 128, value_name = "K")]
    samples: usize,
    /// The test images' labels, IDX or .npy, as `vnca label` writes them [default: those that come with the data]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Images of the latents' maps
    #[arg(long, default_value_t = 5000, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    points: u32,
    /// Evaluate only N test images, evenly spaced, and probe the cells of the first N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Seed of the pictures
    #[arg(long, default_value_t = 3, value_name = "N")]
    seed: u64,
    /// Element type of the operands of matmuls and convolutions [default: the run's]
    #[arg(long, env = "VNCA_PRECISION", value_enum)]
    precision: Option<Precision>,
    #[command(flatten)]
    device: DeviceOptions,
    /// Print the numbers and the files' names as JSON on stdout instead of the page's name
    #[arg(long)]
    json: bool,
}

/// A run, and the numbers of its figures so far.
struct Run {
    folder: PathBuf,
    model: Model,
    /// The test images.
    images: Split,
    /// The folder for its figures.
    out: PathBuf,
    /// The JSON of each figure, by the figure's name.
    numbers: Map<String, Value>,
}

pub fn run(args: &Args) -> Outcome {
    report(args, &|_| None)?.print(args.json)
}

/// Draws the figures and writes the page. `evaluated` returns the numbers of a run's evaluation if they are known.
///
/// # Errors
/// When a run or the images cannot be read, a command fails, or a file cannot be written.
pub fn report(args: &Args, evaluated: &dyn Fn(&Path) -> Option<Value>) -> Result<Report> {
    let mut runs = open_runs(args)?;
    for run in &mut runs {
        run.numbers.extend(evaluated(&run.folder).map(|numbers| (EVAL.name.to_string(), numbers)));
    }
    let files = write_page(args, &mut runs)?;
    let page = args.out.join("report.html");
    let models: Map<String, Value> =
        runs.into_iter().map(|r| (r.model.kind.to_string(), r.numbers.into())).collect();
    let json = json!({ "verb": "figures", "report": page.to_string_lossy(), "files": file_names(&files), "models": models });
    Ok(Report { json, text: page.display().to_string() })
}

/// Opens the runs and checks them, before any figure is computed.
fn open_runs(args: &Args) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for folder in &args.runs {
        let config = TrainConfig::from_run(folder)?;
        let (_, checkpoint) = chosen(folder)?;
        let kind = config.model.kind;
        if let Some(other) = runs.iter().find(|r| r.model.kind == kind) {
            let error = anyhow!(
                "--run {} and --run {} are both of the {kind} model: name one run of each",
                other.folder.display(),
                folder.display()
            );
            return Err(error).tag(Error::Usage);
        }
        let run_data = RunData::new(folder, &config, &checkpoint.meta);
        let images = ImageSource::new(args.data.as_deref(), Some(&run_data)).split(Part::Test)?;
        let out = args.out.join(kind.name());
        runs.push(Run { folder: folder.clone(), model: config.model, images, out, numbers: Map::new() });
    }
    ensure!(!runs.is_empty(), "--run DIR is needed");
    runs.sort_by_key(|r| Kind::ALL.iter().position(|k| *k == r.model.kind));
    for run in &runs {
        fs::create_dir_all(&run.out).with_context(|| format!("cannot create {}", run.out.display()))?;
    }
    Ok(runs)
}

/// Draws all figures and writes the page. Returns the files' names.
fn write_page(args: &Args, runs: &mut [Run]) -> Result<Vec<PathBuf>> {
    let mut page = Page::new("Variational Neural Cellular Automata: results and figures");
    let names: Vec<String> =
        runs.iter().map(|r| format!("{} ({})", r.model.kind, r.folder.display())).collect();
    page.text(&format!(
        "The experiments of the report \u{201c}[Re] Variational Neural Cellular Automata\u{201d} (Aillet & Sond\u{e9}n, ReScience \
         2023) with the models of these runs: {}. The command under each picture draws it. This command writes the whole page:",
        names.join(", ")
    ));
    page.command(&whole_command(args));
    let mut files = Vec::new();
    for run in runs.iter_mut() {
        run.draw(&EVAL, args)?;
        if run.why_missing(&PROBE, args).is_none() {
            run.draw(&PROBE, args)?;
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

/// Writes the section with the training curves.
fn training(page: &mut Page, args: &Args, runs: &[Run], files: &mut Vec<PathBuf>) -> Result<()> {
    let read = |r: &Run| TrainingCurves::read(r.model.kind.to_string(), &r.folder).tag(Error::Data);
    let curves: Vec<TrainingCurves> = runs.iter().map(read).collect::<Result<_>>()?;
    let [loss, bounds] = curves::plots(&curves)?;
    page.section("curves", "Training curves");
    let steps: Vec<String> = curves.iter().map(|c| format!("{} {}", c.name, c.steps())).collect();
    page.text(&format!(
        "Gradient steps: {}. Read from metrics.jsonl in each run's folder.",
        steps.join(", ")
    ));
    let plots = [
        (
            loss,
            "loss.png",
            "Training loss in nats: means over up to 200 equal intervals of steps. Points above twice the last one are left out.",
        ),
        (
            bounds,
            "test-iwelbo.png",
            "IWELBO in nats, as measured during training: of test images, or of validation images if the run has some.",
        ),
    ];
    for (png, name, caption) in plots {
        let Some(png) = png else {
            page.missing(&format!("There is no {name}: no run has two points for it."));
            continue;
        };
        let path = args.out.join(name);
        files::write_bytes(&path, &png)?;
        page.picture(&png, caption);
        files.push(path);
    }
    for run in runs {
        page.command(&format!("vnca train --resume --out {}", quote(&run.folder.display())));
    }
    Ok(())
}

/// Writes one model's figures of a section.
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
        if let Some(why) = run.why_missing(figure, args) {
            page.missing(&why);
            continue;
        }
        let numbers = run.draw(figure, args)?;
        for (name, caption) in figure.files {
            let path = run.out.join(name);
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            page.picture(&bytes, caption);
        }
        if let Some(summary) = (figure.summary)(&numbers) {
            page.text(&summary);
        }
        page.command(&run.command(figure, args));
        let written = numbers["files"].as_array().into_iter().flatten();
        files.extend(written.filter_map(|f| f.as_str().map(PathBuf::from)));
    }
    Ok(())
}

impl Run {
    /// Returns the reason why a figure cannot be drawn. `None` if it can.
    fn why_missing(&self, figure: &Figure, args: &Args) -> Option<String> {
        let labels = args.labels.is_some() || self.images.labels.is_some();
        let Figure { title, needs, .. } = figure;
        match needs {
            Needs::Cells | Needs::LabelledCells if self.model.kind == Kind::Baseline => {
                Some(format!("No {title}: the baseline's decoder has no cells."))
            }
            Needs::LabelledCells if labels => {
                let known = if args.labels.is_some() { None } else { self.images.labels.as_deref() };
                let why = probe::why_not(&self.model, known.unwrap_or_default());
                why.map(|why| format!("No {title}: {why}."))
            }
            _ if labels => None,
            Needs::Labels | Needs::LabelledCells => Some(format!(
                "No {title}: {} has no labels. Name a file with --labels; `vnca label` finds those of binarized images.",
                self.images.name
            )),
            _ => None,
        }
    }

    /// Draws a figure the first time it is requested, and returns its numbers.
    fn draw(&mut self, figure: &Figure, args: &Args) -> Result<Value> {
        if let Some(numbers) = self.numbers.get(figure.name) {
            return Ok(numbers.clone());
        }
        let command = self.command(figure, args);
        to_stderr(&format!("{}: {command}", self.model.kind));
        let numbers = (figure.call)(self, args).run().with_context(|| format!("`{command}`"))?;
        self.numbers.insert(figure.name.into(), numbers.clone());
        Ok(numbers)
    }

    /// Returns the number of images in the t-SNE map.
    fn points(&self, args: &Args) -> usize {
        self.images.len().min(args.points as usize)
    }

    /// Returns the perplexity of the t-SNE map if it is not the default. Few points need a smaller one, because t-SNE uses three
    /// times as many neighbours as the perplexity.
    fn perplexity(&self, args: &Args) -> Option<usize> {
        let points = self.points(args);
        (points < 120).then_some(points / 4)
    }

    /// Returns the number of steps after a damage if it is not the model's. At the report's size, pictures recover for more steps
    /// than they grow.
    fn recovery_steps(&self) -> Option<usize> {
        let default = self.model.kind.default_nca_steps();
        (self.model.kind == Kind::NonDoubling && self.model.nca_steps == default).then_some(40)
    }

    /// Returns the sides of the damaged squares: a quarter, half and three quarters of the grid's smaller side.
    fn recovery_sizes(&self) -> [usize; 3] {
        let [rows, columns] = self.model.frame().grid;
        [1, 2, 3].map(|quarters| quarters * rows.min(columns) / 4)
    }

    /// Returns the command line that draws a figure.
    fn command(&self, figure: &Figure, args: &Args) -> String {
        let word = |word: &str| match word {
            "{run}" => quote(&self.folder.display()),
            "{data}" => flag("--data", args.data.as_ref()),
            "{limit}" => flag("--limit", args.limit),
            "{spread}" => flag("--spread", args.limit),
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
            "{sizes}" => self.recovery_sizes().map(|size| size.to_string()).join(","),
            "{samples}" => args.samples.to_string(),
            _ => match word.strip_prefix("{out}") {
                Some(file) => quote(&format_args!("{}{file}", self.out.display())),
                None => word.into(),
            },
        };
        let words = figure.command.split_whitespace().map(word).filter(|word| !word.is_empty());
        std::iter::once("vnca".to_string()).chain(words).collect::<Vec<_>>().join(" ")
    }
}

/// Returns the command line that writes the page.
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

/// Formats a flag with its value. Empty if there is no value.
fn flag(name: &str, value: Option<impl Display>) -> String {
    value.map(|value| format!("{name} {}", quote(&value))).unwrap_or_default()
}

/// Quotes a word for the shell.
fn quote(word: &impl Display) -> String {
    let word = word.to_string();
    // Quoting fails only for a zero byte, which no name or argument contains.
    shlex::try_quote(&word).map(Cow::into_owned).unwrap_or_default()
}
