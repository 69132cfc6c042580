//! `vnca reproduce`: trains the report's models with several seeds, evaluates them, and writes a table beside the published
//! results. Or trains a model with one change at a time, and writes a table of the changes' effects.
//!
//! Every part is another verb's code, with the arguments of a command line that the page shows. What is finished lies in the folder
//! `--out`, so that the command goes on where it was stopped.

mod jobs;
mod plan;
mod results;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Outcome, eval, figures, print, to_stderr, train};
use crate::cli::config::TrainConfig;
use crate::cli::error::Exit;
use crate::cli::models::Kind;
use crate::cli::{Cli, Command};
use crate::engine::runtime::Device;
use crate::engine::shape::Precision;
use crate::error::{self, Error, Tag, valid};
use crate::files;
use crate::train::checkpoint::Store;
use jobs::Jobs;
use plan::{
    BASE, Ingredient, Length, Options, Recipe, Size, Span, Speed, before_the_end, chosen, ingredients,
    schedule,
};
use results::{Finished, Trained};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The report's models to train [default: all three]
    #[arg(value_name = "ROW", value_enum)]
    rows: Vec<Kind>,
    /// Folder for the runs, their evaluations, the figures and the table
    #[arg(long, value_name = "DIR", default_value = "reproduced")]
    out: PathBuf,
    /// Images: a file, a folder, or `glyphs`
    #[arg(long, env = "VNCA_DATA", value_name = "PATH", default_value = "data/binarized-mnist")]
    data: String,
    /// The test images' labels, IDX or .npy, as `vnca label` writes them, for the figures
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Runs of each model
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Time for all runs and their evaluations, such as 2h or 90m: chooses the steps by a measured speed
    #[arg(long, value_name = "SPAN", conflicts_with = "steps")]
    budget: Option<Span>,
    /// Gradient steps of each run [default: the report's, or those that fit --budget]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Size of the models [default: small on a CPU with --budget or --ingredients, else report]
    #[arg(long, value_enum)]
    size: Option<Size>,
    /// How the models are trained
    #[arg(long, value_enum, default_value = "report", conflicts_with = "ingredients")]
    recipe: Recipe,
    /// Latent samples per image for the IWELBO
    #[arg(long, default_value_t = 128, value_name = "K")]
    samples: usize,
    /// Evaluate only N images, evenly spaced [default: all, or those that fit --budget]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    images: Option<u32>,
    /// Hold the last N training images out of training; they choose the best checkpoint [default: 0, or 10000 with --ingredients]
    #[arg(long, value_name = "N")]
    valid: Option<usize>,
    /// Train each known improvement alone and compare it with a run without it, on validation images
    #[arg(long)]
    ingredients: bool,
    /// Only these ingredients, separated by commas. Names joined by + are combined in one run
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', requires = "ingredients")]
    only: Vec<String>,
    /// Element type of the operands of matmuls and convolutions [default: bf16 with --size small, else f32]
    #[arg(long, env = "VNCA_PRECISION", value_enum)]
    precision: Option<Precision>,
    /// Device: cpu, tpu, cuda or the path of a PJRT plugin, with its options after commas
    #[arg(long, default_value = "cpu", env = "VNCA_DEVICE")]
    device: String,
    /// Runs at a time, each with its share of the CPU's cores. Small models train faster side by side than one after the other
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Print the results as JSON on stdout instead of the table's name
    #[arg(long)]
    json: bool,
    /// Do only this part of what `--jobs` divides, as one of its processes
    #[arg(long, hide = true, value_name = "I")]
    part: Option<usize>,
    /// Print the speed of a model's training, as one of the processes of `--jobs`
    #[arg(long, hide = true, value_name = "MODEL/I")]
    measure: Option<String>,
}

/// What decides the results of the runs. A folder keeps one, so that all its runs compare.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Setting {
    data: String,
    size: Size,
    #[serde(default)]
    recipe: Recipe,
    valid: usize,
    ingredients: bool,
    precision: Option<Precision>,
    /// Seconds for everything.
    budget: Option<u64>,
    steps: Option<u32>,
}

/// The file `plan.json`: the setting, and the length of each model's runs once it is known.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Plan {
    setting: Setting,
    lengths: BTreeMap<String, Length>,
}

/// One row of the table: runs that differ only in their seeds.
#[derive(Clone, Debug)]
struct Cell {
    kind: Kind,
    /// Name and description of the change, if it is one.
    change: Option<(String, String)>,
    options: Options,
    /// The options of the run whose weights it begins with, if it does not begin anew.
    first: Option<Options>,
    length: Length,
}

impl Cell {
    /// Returns the folder of its runs.
    fn folder(&self, out: &Path) -> PathBuf {
        let row = out.join(self.kind.name());
        self.change.as_ref().map_or(row.clone(), |(name, _)| row.join(name))
    }

    /// Returns the folder of the run with a seed.
    fn run_folder(&self, out: &Path, seed: u64) -> PathBuf {
        self.folder(out).join(format!("seed-{seed}"))
    }
}

pub fn run(args: &Args) -> Outcome {
    let signal = train::listen()?;
    let kinds: Vec<Kind> =
        Kind::ALL.into_iter().filter(|k| args.rows.is_empty() || args.rows.contains(k)).collect();
    let study = Study { args, setting: setting(args, &kinds)?, signal };
    if let Some(of) = &args.measure {
        return study.print_speed(of);
    }
    let Some(cells) = study.cells(&kinds)? else { return Ok(study.stopped()) };
    if let Some(at) = args.part {
        let (cell, seed) = (at % cells.len(), (at / cells.len()) as u64);
        return Ok(if study.part(&cells[cell], seed)?.is_none() { study.stopped() } else { None });
    }
    let mut finished: Vec<Vec<Finished>> = vec![Vec::new(); cells.len()];
    // All models with the first seed, then with the next: a study that is stopped has something of each.
    for seed in 0..args.seeds {
        if !study.side_by_side(&cells, seed)? {
            return Ok(study.stopped());
        }
        for (cell, of_cell) in cells.iter().zip(&mut finished) {
            let Some(one) = study.part(cell, seed)? else { return Ok(study.stopped()) };
            of_cell.push(one);
        }
        table::write(args, &study.setting, &cells, &finished)?;
    }
    if !args.ingredients && !study.figures(&cells, &finished)? {
        return Ok(study.stopped());
    }
    table::write(args, &study.setting, &cells, &finished)?.print(args.json)
}

/// Checks the options and returns what decides the results.
fn setting(args: &Args, kinds: &[Kind]) -> Result<Setting> {
    let device: Device = args.device.parse().context("--device").tag(Error::Usage)?;
    let short = args.budget.is_some() || args.ingredients;
    let automatic = if device == Device::Cpu && short { Size::Small } else { Size::Report };
    valid!(
        args.jobs == 1 || device == Device::Cpu,
        "jobs",
        "is {}: several processes cannot share {}; use --jobs 1",
        args.jobs,
        args.device
    );
    for kind in kinds {
        chosen(&args.only, &ingredients(*kind, 100, &Options::default()))?;
    }
    let valid = args.valid.unwrap_or(if args.ingredients { 10_000 } else { 0 });
    valid!(!args.ingredients || valid > 0, "valid", "is 0: --ingredients chooses on validation images");
    Ok(Setting {
        data: crate::data::identity::located(&args.data),
        size: args.size.unwrap_or(automatic),
        recipe: args.recipe,
        valid,
        ingredients: args.ingredients,
        precision: args.precision,
        budget: args.budget.map(|Span(span)| span.as_secs()),
        steps: args.steps,
    })
}

impl Plan {
    /// Reads the plan of a folder, or begins one.
    fn read(out: &Path, setting: &Setting) -> Result<Plan> {
        let path = out.join("plan.json");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Plan { setting: setting.clone(), lengths: BTreeMap::new() });
            }
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let other = || format!("{} is not a plan of vnca reproduce", path.display());
        let plan: Plan = serde_json::from_slice(&text).with_context(other).tag(Error::Data)?;
        valid!(
            plan.setting == *setting,
            "out",
            "{} has runs of other options, {}: repeat these, or choose another folder",
            out.display(),
            serde_json::to_string(&plan.setting)?
        );
        Ok(plan)
    }

    fn save(&self, out: &Path) -> Result<()> {
        fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        files::write_bytes(&out.join("plan.json"), serde_json::to_string_pretty(self)? + "\n")
    }
}

struct Study<'a> {
    args: &'a Args,
    setting: Setting,
    signal: Arc<AtomicUsize>,
}

impl Study<'_> {
    fn stopped(&self) -> Option<Exit> {
        to_stderr("stopped; the same command goes on from here");
        train::exit_after(self.signal.load(Ordering::Relaxed))
    }

    fn is_stopped(&self) -> bool {
        self.signal.load(Ordering::Relaxed) != 0
    }

    /// Returns the rows of the table, with the length of each model's runs. Reads them from the folder's plan, or makes one.
    /// Returns `None` after a signal.
    fn cells(&self, kinds: &[Kind]) -> Result<Option<Vec<Cell>>> {
        let mut plan = Plan::read(&self.args.out, &self.setting)?;
        let falls = !self.setting.ingredients;
        let mut cells = Vec::new();
        for kind in kinds {
            let base = self.base(*kind);
            let most = TrainConfig::report(*kind).steps;
            let rows = kinds.len() * self.changes(*kind, most, &base)?.len();
            let Some(length) = self.length(*kind, rows, &base, &plan)? else { return Ok(None) };
            plan.lengths.insert(kind.name().into(), length);
            let options = base.clone().with(schedule(self.setting.recipe, length.steps, most, falls));
            for one in self.changes(*kind, length.steps, &base)? {
                let options = options.clone().with(one.options);
                let [before, last] = before_the_end(length.steps);
                let first = one.at_the_end.as_ref().map(|_| options.clone().set("steps", before));
                let options = match one.at_the_end {
                    Some(more) => options.without("kl-warmup").with(more).set("steps", last),
                    None => options,
                };
                let change = self.setting.ingredients.then_some((one.name, one.about));
                cells.push(Cell { kind: *kind, change, options, first, length });
            }
        }
        if self.args.part.is_none() {
            plan.save(&self.args.out)?;
        }
        Ok(Some(cells))
    }

    /// Returns the options of a model's runs besides the schedule.
    fn base(&self, kind: Kind) -> Options {
        let sized = self.setting.size.options(kind);
        match self.setting.precision {
            Some(Precision::Bf16) => sized.set("precision", "bf16"),
            Some(Precision::F32) => sized.set("precision", "f32"),
            None => sized,
        }
    }

    /// Returns the changes to try; without `--ingredients` the one that changes nothing.
    fn changes(&self, kind: Kind, steps: usize, base: &Options) -> Result<Vec<Ingredient>> {
        let all = ingredients(kind, steps, base);
        if self.setting.ingredients {
            return chosen(&self.args.only, &all);
        }
        Ok(all.into_iter().filter(|one| one.name == BASE).collect())
    }

    /// Returns the length of a model's runs, of which the table has so many rows. Returns `None` after a signal.
    fn length(&self, kind: Kind, rows: usize, base: &Options, plan: &Plan) -> Result<Option<Length>> {
        let most = TrainConfig::report(kind).steps;
        if let Some(length) = plan.lengths.get(kind.name()) {
            return Ok(Some(*length));
        }
        let Some(Span(span)) = self.args.budget else {
            let steps = self.args.steps.map_or(most, |n| n as usize);
            return Ok(Some(Length { steps, images: None }));
        };
        let jobs = f64::from(self.args.jobs);
        let share = span.as_secs_f64() * jobs / (rows as u64 * self.args.seeds) as f64;
        let speed =
            if self.args.jobs > 1 { self.speed_side_by_side(kind)? } else { self.speed(kind, base, 0)? };
        let Some(speed) = speed else { return Ok(None) };
        speed.fitting(share, most, self.args.samples).map(Some)
    }

    fn jobs(&self) -> Jobs<'_> {
        Jobs { at_once: self.args.jobs.into(), signal: &self.signal }
    }

    /// Does the parts with a seed, several at a time if `--jobs` says so. Returns false after a signal.
    fn side_by_side(&self, cells: &[Cell], seed: u64) -> Result<bool> {
        if self.args.jobs == 1 {
            return Ok(true);
        }
        let mut left = Vec::new();
        for (at, cell) in cells.iter().enumerate() {
            if self.finished(cell, seed)?.is_none() {
                left.push(["--part".into(), (seed as usize * cells.len() + at).to_string()]);
            }
        }
        Ok(left.is_empty() || self.jobs().run(&left, "runs")?.is_some())
    }

    /// Measures the speed of a model's training beside as many others as there are jobs.
    fn speed_side_by_side(&self, kind: Kind) -> Result<Option<Speed>> {
        let each: Vec<[String; 2]> =
            (0..self.args.jobs).map(|i| ["--measure".into(), format!("{}/{i}", kind.name())]).collect();
        let Some(printed) = self.jobs().run(&each, "measurements")? else { return Ok(None) };
        let speeds: Vec<Speed> =
            printed.iter().map(|text| serde_json::from_str(text)).collect::<Result<_, _>>()?;
        Ok(speeds.into_iter().max_by(|a, b| a.step.total_cmp(&b.step)))
    }

    /// Prints the speed that [`Study::speed_side_by_side`] asks for.
    fn print_speed(&self, of: &str) -> Outcome {
        let asked = of.split_once('/').and_then(|(name, i)| {
            Some((Kind::ALL.into_iter().find(|kind| kind.name() == name)?, i.parse().ok()?))
        });
        let Some((kind, process)) = asked else { bail!("--measure {of}: expected a model and a number") };
        let Some(speed) = self.speed(kind, &self.base(kind), process)? else { return Ok(self.stopped()) };
        print(&serde_json::to_string(&speed)?)?;
        Ok(None)
    }

    /// Measures the speed of a model's training, as one of several processes. Returns `None` after a signal.
    fn speed(&self, kind: Kind, base: &Options, process: u16) -> Result<Option<Speed>> {
        const STEPS: usize = 16;
        fs::create_dir_all(&self.args.out)
            .with_context(|| format!("cannot create {}", self.args.out.display()))?;
        let folder = self.args.out.join(format!(".speed-of-{}-{process}", kind.name()));
        // A folder of a command that was stopped here.
        let _ = fs::remove_dir_all(&folder);
        // Short calls, so that the time of the first one counts little in the moving average.
        let never = Options::new("chunk=4 eval-every=0 checkpoint-every=0").set("steps", STEPS);
        let trained = self.train(&self.train_words(kind, &base.clone().with(never), 0, &folder));
        let _ = fs::remove_dir_all(&folder);
        let Trained { steps, seconds, ms_per_step, .. } = trained?;
        if self.is_stopped() {
            return Ok(None);
        }
        let step = ms_per_step.context("the training made no steps")? / 1e3;
        let batch = base.number("batch-size", TrainConfig::report(kind).batch_size);
        Ok(Some(Speed { startup: (seconds - step * steps as f64).max(0.0), step, batch }))
    }

    /// Returns the command line that begins a run.
    fn train_words(&self, kind: Kind, options: &Options, seed: u64, folder: &Path) -> Vec<String> {
        let first = ["vnca", "train", "--preset"].map(String::from);
        let all = Options::default()
            .set("data", &self.args.data)
            .set("device", &self.args.device)
            .set("out", folder.display())
            // The report's seeds are 0 and 1.
            .set("seed-model", 10 * seed)
            .set("seed-data", 10 * seed + 1)
            .set("valid", self.setting.valid)
            .with(options.clone());
        first
            .into_iter()
            .chain([format!("{}-{}", self.setting.recipe.name(), kind.name())])
            .chain(all.words())
            .collect()
    }

    /// Runs `vnca train`. After a signal it has trained fewer steps than it was asked for.
    fn train(&self, words: &[String]) -> Result<Trained> {
        let Command::Train(args) = parsed(words)? else { bail!("{words:?} is not a training") };
        let (report, _) = train::train_alone(&args, self.signal.clone())?;
        Ok(serde_json::from_value(report.json)?)
    }

    /// Returns the result of a run that needs nothing more.
    fn finished(&self, cell: &Cell, seed: u64) -> Result<Option<Finished>> {
        let folder = cell.run_folder(&self.args.out, seed);
        let words = self.eval_words(cell, &folder);
        let is_whole =
            |one: &Finished| one.is_done() && (one.not_finite.is_some() || one.has_evaluated(&words));
        Ok(Finished::read(&folder.with_extension("json"))?.filter(is_whole))
    }

    /// Trains and evaluates one run, as far as that is not done. Returns `None` after a signal.
    fn part(&self, cell: &Cell, seed: u64) -> Result<Option<Finished>> {
        let folder = cell.run_folder(&self.args.out, seed);
        let path = folder.with_extension("json");
        let eval_words = self.eval_words(cell, &folder);
        let mut found = Finished::read(&path)?.unwrap_or_else(|| Finished::new(seed, folder.clone()));
        if !found.is_done() && !self.is_stopped() {
            self.train_part(cell, &mut found)?;
            found.save(&path)?;
        }
        if !found.is_done() {
            return Ok(None);
        }
        if found.not_finite.is_none() && !found.has_evaluated(&eval_words) {
            if self.is_stopped() {
                return Ok(None);
            }
            to_stderr(&quoted(&eval_words));
            let Command::Eval(args) = parsed(&eval_words)? else { bail!("{eval_words:?} is no evaluation") };
            let summary =
                eval::evaluate(&args.options, &args.options.device)?.context("a shard has no summary")?;
            found.evaluation =
                Some(results::Evaluation { command: eval_words, summary: serde_json::to_value(summary)? });
            found.save(&path)?;
        }
        Ok(Some(found))
    }

    /// Trains a run, after the one whose weights it begins with.
    fn train_part(&self, cell: &Cell, found: &mut Finished) -> Result<()> {
        let Some(options) = &cell.first else { return self.train_run(cell, &cell.options, found) };
        let folder = found.run.with_extension("first");
        let first = found.first.get_or_insert_with(|| Box::new(Finished::new(found.seed, folder.clone())));
        if !first.is_done() {
            self.train_run(cell, options, first)?;
        }
        found.not_finite = first.not_finite;
        if !first.is_done() || self.is_stopped() || first.not_finite.is_some() {
            return Ok(());
        }
        // The order of images goes on differently.
        let options =
            cell.options.clone().set("from", folder.display()).set("seed-data", 10 * found.seed + 2);
        self.train_run(cell, &options, found)
    }

    /// Begins or resumes a run's training, and records what came of it.
    fn train_run(&self, cell: &Cell, options: &Options, found: &mut Finished) -> Result<()> {
        let command = self.train_command(cell, options, found.seed, &found.run)?;
        to_stderr(&quoted(&command));
        match self.train(&command) {
            Ok(trained) => found.add(trained, self.is_stopped()),
            Err(error) => match error::find(&error) {
                // A change that makes training diverge is a result too.
                Some(Error::NotFinite { step, .. }) => found.not_finite = Some(*step),
                _ => return Err(error),
            },
        }
        found.command = command;
        Ok(())
    }

    /// Returns the command line that begins a run, or resumes it.
    fn train_command(&self, cell: &Cell, options: &Options, seed: u64, folder: &Path) -> Result<Vec<String>> {
        if folder.join("config.json").exists() && !Store::in_run(folder, 1).steps()?.is_empty() {
            let words = ["vnca", "train", "--resume", "--out"].map(String::from);
            return Ok(words.into_iter().chain([folder.display().to_string()]).collect());
        }
        // Such a run was stopped before its first checkpoint.
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(cell.folder(&self.args.out))
            .with_context(|| format!("cannot create {}", cell.folder(&self.args.out).display()))?;
        let steps = options.number("steps", cell.length.steps);
        // Otherwise the last weights are evaluated: test images must not choose, and changes are compared at the same step.
        let chooses = self.setting.valid > 0 && !self.setting.ingredients;
        let most = Options::default()
            .set("eval-every", if chooses { steps.div_ceil(10) } else { 0 })
            .set("checkpoint-every", steps.div_ceil(10).min(1000))
            .set("keep", 1);
        Ok(self.train_words(cell.kind, &most.with(options.clone()), seed, folder))
    }

    fn eval_words(&self, cell: &Cell, folder: &Path) -> Vec<String> {
        let mut options = Options::default()
            .set("run", folder.display())
            .set("samples", self.args.samples)
            .set("device", &self.args.device)
            .set("split", if self.args.ingredients { "valid" } else { "test" });
        if let Some(n) = self.images(cell) {
            options = options.set("spread", n);
        }
        ["vnca", "eval"].map(String::from).into_iter().chain(options.words()).collect()
    }

    /// Returns the number of images to evaluate; `None` for all.
    fn images(&self, cell: &Cell) -> Option<usize> {
        self.args.images.map(|n| n as usize).or(cell.length.images)
    }

    /// Draws the figures of the first seed's runs. Returns false after a signal.
    fn figures(&self, cells: &[Cell], finished: &[Vec<Finished>]) -> Result<bool> {
        let out = self.args.out.join("figures");
        let first: Vec<(&Cell, &Finished)> = cells
            .iter()
            .zip(finished)
            .filter_map(|(cell, of_cell)| Some((cell, of_cell.first()?)))
            .filter(|(_, one)| one.evaluation.is_some())
            .collect();
        let mut words = ["vnca", "figures"].map(String::from).to_vec();
        for (_, one) in &first {
            words.extend(["--run".into(), one.run.display().to_string()]);
        }
        let mut options = Options::default()
            .set("out", out.display())
            .set("samples", self.args.samples)
            .set("device", &self.args.device);
        if let Some(labels) = &self.args.labels {
            options = options.set("labels", labels.display());
        }
        if let Some(n) = first.iter().filter_map(|(cell, _)| self.images(cell)).min() {
            options = options.set("limit", n).set("points", n.clamp(16, 5000));
        }
        words.extend(options.words());
        let done = out.join("command.json");
        let drawn =
            serde_json::to_value((&words, first.iter().map(|(_, one)| &one.evaluation).collect::<Vec<_>>()))?;
        if first.is_empty()
            || fs::read(&done)
                .is_ok_and(|text| serde_json::from_slice::<Value>(&text).is_ok_and(|v| v == drawn))
        {
            return Ok(true);
        }
        if self.is_stopped() {
            return Ok(false);
        }
        to_stderr(&quoted(&words));
        let Command::Figures(args) = parsed(&words)? else { bail!("{words:?} draws no figures") };
        figures::report(&args, &|run: &Path| {
            let (_, one) = first.iter().find(|(_, one)| one.run == run)?;
            one.evaluation.as_ref().map(|evaluation| evaluation.summary.clone())
        })?;
        files::write_bytes(&done, drawn.to_string())?;
        Ok(true)
    }
}

/// Parses a command line of this program.
fn parsed(words: &[String]) -> Result<Command> {
    let cli = Cli::try_parse_from(words).with_context(|| format!("`{}`", quoted(words))).tag(Error::Usage)?;
    Ok(cli.command)
}

/// Returns a command line for people.
fn quoted(words: &[String]) -> String {
    let quote =
        |word: &String| shlex::try_quote(word).map_or_else(|_| word.clone(), |word| word.into_owned());
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}
