//! `vnca figures`: all figures and the table of results of the report, from runs. It is made of the other verbs: under a
//! picture stands the very command that made it.

mod curves;
mod results;
mod sections;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Map, Value, json};

use super::run_data::{RunData, Wanted};
use super::{On, Outcome, caught, print};
use crate::cli;
use crate::config::TrainConfig;
use crate::data::{Part, Split};
use crate::error::{Exit, WithExit};
use crate::figure::page::Page;
use crate::model::{Kind, Model};
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
    let report = args.out.join("report.html");
    if args.json {
        let models: Map<String, Value> =
            runs.into_iter().map(|r| (r.model.kind.to_string(), r.numbers.into())).collect();
        let made = json!({ "verb": "figures", "report": report, "files": files, "models": models });
        print(&made.to_string())?;
    } else {
        print(&report.display().to_string())?;
    }
    Ok(None)
}

/// Looks at everything that can be wrong with the runs before anything is computed.
fn opened(args: &Args) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for folder in &args.runs {
        let config = TrainConfig::of_run(folder).exit(Exit::BadInput)?;
        let (_, checkpoint) = chosen(folder).exit(Exit::BadInput)?;
        let kind = config.model.kind;
        if let Some(other) = runs.iter().find(|r| r.model.kind == kind) {
            let both = anyhow!(
                "--run {} and --run {} are both of the {kind} model: name one run of each",
                other.folder.display(),
                folder.display()
            );
            return Err(both).exit(Exit::Usage);
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
        run.make("eval", EVAL, args)?;
        if run.lacks(&PROBE, args).is_none() {
            run.make(PROBE.name, PROBE.command, args)?;
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
    fs::write(&report, page.html()).with_context(|| format!("cannot write {}", report.display()))?;
    files.push(report);
    Ok(files)
}

fn training(page: &mut Page, args: &Args, runs: &[Run], files: &mut Vec<PathBuf>) -> Result<()> {
    let read = |r: &Run| Course::read(r.model.kind.to_string(), &r.folder).exit(Exit::BadInput);
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
        fs::write(&path, &png).with_context(|| format!("cannot write {}", path.display()))?;
        page.picture(&png, caption);
        files.push(path);
    }
    for run in runs {
        page.command(&format!("vnca train --resume --out {}", quoted(&run.folder.display().to_string())));
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
        let numbers = run.make(figure.name, figure.command, args)?;
        for (name, caption) in figure.files {
            let path = run.out.join(name);
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            page.picture(&bytes, caption);
        }
        if let Some(told) = (figure.told)(&numbers) {
            page.text(&told);
        }
        page.command(&run.command(figure.command, args));
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

    /// Runs a command, the first time, and keeps its numbers.
    fn make(&mut self, name: &str, command: &str, args: &Args) -> Result<Value> {
        if let Some(numbers) = self.numbers.get(name) {
            return Ok(numbers.clone());
        }
        let shown = self.command(command, args);
        eprintln!("{}: {shown}", self.model.kind);
        let mut words = self.words(command, args);
        words.push("--json".into());
        let text = caught(|| cli::run(&words)).with_context(|| format!("`{shown}`"))?;
        let numbers: Value =
            serde_json::from_str(&text).with_context(|| format!("`{shown}` gave no JSON"))?;
        self.numbers.insert(name.into(), numbers.clone());
        Ok(numbers)
    }

    /// A command as one types it.
    fn command(&self, command: &str, args: &Args) -> String {
        let words: Vec<String> = self.words(command, args).iter().map(|w| quoted(w)).collect();
        format!("vnca {}", words.join(" "))
    }

    /// A command's words, what is in braces replaced.
    fn words(&self, command: &str, args: &Args) -> Vec<String> {
        let flag = |flag: &str, value: Option<String>| {
            value.map_or_else(Vec::new, |value| vec![flag.to_string(), value])
        };
        // At the report's size pictures recover for longer than they grow.
        let longer = self.model.kind == Kind::NonDoubling
            && self.model.nca_steps == self.model.kind.default_nca_steps();
        let points = self.images.len().min(args.points as usize);
        let word = |word: &str| match word {
            "{run}" => vec![self.folder.display().to_string()],
            "{data}" => flag("--data", args.data.clone()),
            "{limit}" => flag("--limit", args.limit.map(|n| n.to_string())),
            "{labels}" => flag("--labels", args.labels.as_ref().map(|l| l.display().to_string())),
            "{points}" => vec!["--points".into(), points.to_string()],
            // The map looks at three times as many neighbours as the perplexity says.
            "{perplexity}" => flag("--perplexity", (points < 120).then(|| (points / 4).to_string())),
            "{seed}" => flag("--seed", (args.seed != 3).then(|| args.seed.to_string())),
            "{device}" => flag("--device", (args.device.device != "cpu").then(|| args.device.device.clone())),
            "{recovery}" => flag("--nca-steps", longer.then(|| "40".to_string())),
            _ => vec![
                word.replace("{out}", &self.out.display().to_string())
                    .replace("{samples}", &args.samples.to_string()),
            ],
        };
        command.split_whitespace().flat_map(word).collect()
    }
}

fn whole_command(args: &Args) -> String {
    let mut words = vec!["vnca".to_string(), "figures".into()];
    let mut flag = |name: &str, value: String| words.extend([name.to_string(), quoted(&value)]);
    args.runs.iter().for_each(|run| flag("--run", run.display().to_string()));
    flag("--out", args.out.display().to_string());
    if let Some(data) = &args.data {
        flag("--data", data.clone());
    }
    if let Some(labels) = &args.labels {
        flag("--labels", labels.display().to_string());
    }
    flag("--points", args.points.to_string());
    flag("--samples", args.samples.to_string());
    if let Some(limit) = args.limit {
        flag("--limit", limit.to_string());
    }
    flag("--seed", args.seed.to_string());
    flag("--device", args.device.device.clone());
    words.join(" ")
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./,:=+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted("runs/first"), "runs/first");
        assert_eq!(quoted("it's here"), "'it'\\''s here'");
    }
}
