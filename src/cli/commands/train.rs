//! `vnca train`: starts or resumes a training run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use indicatif::ProgressBar;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU};
use signal_hook::iterator::Signals;

use super::progress::{Pace, paced_bar};
use super::run_data::DecodingBar;
use super::{Outcome, Report, inform, open, report_forms};
use crate::cli::config::{TrainConfig, TrainOptions};
use crate::cli::environment;
use crate::cli::error::Exit;
use crate::cli::hosts::{HostOptions, Hosts, lines};
use crate::cli::models::{Likelihood, Model};
use crate::cli::origin::{Origin, recorded};
use crate::data::identity::{DataCrc, located};
use crate::data::known::SETS;
use crate::data::{self, Part, Split, Values};
use crate::engine::array::{Array, crc};
use crate::engine::program::Target;
use crate::engine::random::Key;
use crate::engine::runtime::{Buffers, Mesh};
use crate::engine::shape::Precision;
use crate::error::{Error, Tag, valid};
use crate::files;
use crate::study::eval::Bound;
use crate::study::validation::Validation;
use crate::train::RunFolder;
use crate::train::checkpoint::{Checkpoint, Store};
use crate::train::trainer::{End, Run, Score, Trainer, Watch};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: TrainOptions,
    /// A TOML file with the names of these flags as keys; flags and environment override it
    #[arg(long, value_name = "FILE.toml", env = "VNCA_CONFIG")]
    config: Option<PathBuf>,
    /// Resume the run in --out, bit for bit as if it had not stopped
    #[arg(long)]
    resume: bool,
    /// Print a summary as JSON on stdout instead of the run's folder
    #[arg(long)]
    json: bool,
    #[arg(from_global)]
    programs: Option<PathBuf>,
    #[command(flatten)]
    hosts: HostOptions,
}

pub fn run(args: &Args) -> Outcome {
    let signal = listen()?;
    let options = options(args);
    let saved = args.options.out.as_deref().filter(|_| args.resume).map(TrainConfig::from_run);
    let named = options.as_ref().ok().and_then(|options| options.device.clone());
    let device = named.or_else(|| Some(saved?.ok()?.device)).unwrap_or_else(|| "cpu".into());
    args.hosts.run(Some(&device), |hosts| {
        // An error of the options is told to the other processes too.
        let (report, exit) = train(args, options?, hosts, signal)?;
        report.print(args.json)?;
        Ok(exit)
    })
}

/// Trains in this process until the last step, or until `signal` holds a signal's number. Returns the exit code after a signal.
///
/// # Errors
/// When the options, the images, the run or the device are invalid, or training fails.
pub fn train_alone(args: &Args, signal: Arc<AtomicUsize>) -> Result<(Report, Option<Exit>)> {
    train(args, options(args)?, &Hosts::default(), signal)
}

/// Returns the options of the command line over those of its file.
fn options(args: &Args) -> Result<TrainOptions> {
    match &args.config {
        Some(path) => TrainOptions::from_toml(path).map(|file| args.options.over(&file)),
        None => Ok(args.options.clone()),
    }
}

fn train(
    args: &Args,
    options: TrainOptions,
    hosts: &Hosts,
    signal: Arc<AtomicUsize>,
) -> Result<(Report, Option<Exit>)> {
    let began = Instant::now();
    // Only what the user asked for is an error, if there are fewer test images. A preset asks for this number at most.
    let asked_images = options.eval_images;
    let options = options.over(&options.from_preset()?);
    let origin = options.from.as_deref().filter(|_| !args.resume).map(Origin::find).transpose()?;
    let options = origin.as_ref().map_or(options.clone(), |origin| options.over(&origin.options()));
    let received = signal.clone();
    hosts.pass_on(move || received.load(Ordering::Relaxed));
    let Prepared { mut config, folder: resumed, before } = prepare(&options, args.resume, hosts)?;
    // A device of several processes is opened by all of them at the same point, and says how many replicas there may be.
    let several = match hosts.processes() {
        Some(processes) => {
            let device = config.device()?;
            let mesh = open(&device, args.programs.as_deref(), 1, processes.count, Some(processes))?;
            config.replicas = options.replicas.unwrap_or(mesh.devices());
            Some(mesh)
        }
        None => None,
    };
    // A new run's likelihood may follow from the data.
    let values = (before.is_some() || options.likelihood.is_some()).then(|| config.model.likelihood.values());
    let beside = match (&resumed, &options.out) {
        (Some(folder), _) => folder.path().to_owned(),
        (None, Some(out)) => out.clone(),
        (None, None) => PathBuf::from("runs/new"),
    };
    let is_new = before.is_none();
    let (train, test) = read_images(&config, &options, values, &beside, is_new, hosts)?;
    let (train, valid) = train.held_out(config.valid).tag(Error::Usage)?;
    // What is evaluated during training chooses the best checkpoint.
    let (kind, score) =
        if valid.is_some() { ("validation", "valid/iwelbo") } else { ("test", "test/iwelbo") };
    let held_out = valid.or_else(|| test.clone());
    if is_new {
        config.fit(&options, train.shape, train.values).tag(Error::Usage)?;
    }
    // Record an absolute path, so that the run finds its images from any working folder. Older runs recorded relative paths; the
    // checksums below show whether such a path has led to the right images.
    config.data = located(&config.data);
    config.device = located_device(&config.device);
    config.from = config.from.map(|from| recorded(&from));
    if config.eval_every.is_some_and(|n| n > 0) && held_out.is_none() {
        return Err(anyhow::anyhow!(
            "--eval-every {}: {} has no test images",
            config.eval_every.unwrap_or(0),
            config.data
        ))
        .tag(Error::Usage);
    }
    if let (Some(asked), Some(images)) = (asked_images, &held_out) {
        let there = images.len();
        valid!(asked <= there, "eval_images", "is {asked}: {} has {there} {kind} images", config.data);
    }
    // All checks come before the first write.
    config.check_sizes(train.len()).tag(Error::Usage)?;
    let now = DataCrc::from_splits(&train, test.as_ref());
    hosts.agree("the images", &lines(&now)?)?;
    // Process 0 alone has the run's folder.
    let mut checkpoint = None;
    let (crc, is_fresh) = hosts.lead("the checkpoint", || {
        if let Some(folder) = &resumed {
            checkpoint = newest(folder, &config, before.as_ref())?;
        }
        // The checksums of a resumed run's images are in its checkpoint, and except for older runs in its configuration.
        let trained = checkpoint.as_ref().map(|c| DataCrc { train: c.meta.data_crc, test: None });
        let mut known = [trained, config.data_crc].into_iter().flatten();
        known
            .try_fold(now, |now, known| known.resumed_with(&now))
            .with_context(|| config.data.clone())
            .map(|crc| (crc, checkpoint.is_none()))
    })?;
    config.data_crc = Some(crc);
    let begun = if is_fresh { begun(&mut config, origin)? } else { None };
    let mesh = match several {
        Some(mesh) => mesh.with_replicas(config.replicas)?,
        None => open(&config.device()?, args.programs.as_deref(), 1, config.replicas, None)?,
    };
    let folder = match is_new {
        true => mesh.on_first(|| claim(&config, options.out.as_deref()))?,
        false => resumed,
    };
    let path = folder.as_ref().map_or(beside, |folder| folder.path().to_owned());
    let images = held_out.map(|images| images.spread(config.eval_images));
    // Images whose bits are drawn anew in training have fixed bits in evaluation.
    let images = if config.model.likelihood.of_bits() { images.map(Split::binarized) } else { images };
    let mut watch = Screen {
        bar: ProgressBar::hidden(),
        pace: Pace::default(),
        signal,
        hosts,
        config: &config,
        folder: &path,
        mesh: &mesh,
        images,
        kind,
        score,
        validation: None,
    };
    let from = config.from.as_deref().filter(|_| begun.is_some());
    watch.introduce(&train, test.as_ref(), values.is_none(), from);
    let options = config.run_options(if watch.images.is_some() { 1000 } else { 0 })?;
    if options.eval_every > 0 && mesh.programs().is_some() {
        // Exported programs for evaluation and pictures may not fit. Load them now, so that an error comes before training.
        watch.prepare()?;
    }
    let pictures = path.join(PICTURES);
    if options.eval_every > 0 {
        mesh.lead(|| match fs::symlink_metadata(&pictures) {
            Ok(_) => files::check_writable(&pictures.join("samples.png")),
            Err(_) => Ok(()),
        })?;
    }
    let trainer =
        Trainer::new(&mesh, config.task()).optimiser(config.optimiser.chain(config.steps)).options(options);
    let trainer = match begun {
        Some(parameters) => trainer.begin_with(parameters),
        None => trainer,
    };
    let mut run = trainer.start(folder, Some(train.to_array()), checkpoint)?;
    // Save the configuration last: it describes a run that was started with it.
    mesh.lead(|| config.save(&path))?;
    let of_processes = match mesh.processes() {
        1 => String::new(),
        n => format!(" of {n} processes"),
    };
    watch.say(&format!("device  {}, {} replica(s){of_processes}", mesh.describe(), config.replicas));
    watch.pace = Pace::start(run.step());
    watch.bar = paced_bar(config.steps, "steps", Some(&watch.pace));
    watch.bar.set_position(run.step() as u64);
    let end = run.train(&mut watch);
    watch.bar.finish_and_clear();
    let end = end?;
    let signal = hosts.stop_signal(watch.signal.load(Ordering::Relaxed));
    let exit = match end {
        End::Done => None,
        End::Stopped => {
            let saved = if config.checkpoint_every > 0 {
                "its state is saved; --resume continues the run"
            } else {
                "nothing was saved, because of --checkpoint-every 0"
            };
            inform(&format!("stopped at step {}: {saved}", run.step()));
            exit_after(signal)
        }
    };
    Ok((report(&run, &path, began), exit))
}

/// Reads the training images, and the test images if there are any. `beside` is the run's folder, or where it will be.
fn read_images(
    config: &TrainConfig,
    options: &TrainOptions,
    values: Option<Values>,
    beside: &Path,
    is_new: bool,
    hosts: &Hosts,
) -> Result<(Split, Option<Split>)> {
    let decoding = DecodingBar::default();
    let mut reading = config.reading(values, beside);
    let among_images = is_new && files::lies_within(beside, Path::new(&config.data));
    if among_images || !hosts.is_first() {
        // Such a run will be refused, unless the data are no image files. With several processes only the first one writes.
        reading.cache = None;
    }
    let loaded = data::load_with(&config.data, &reading, &mut |done, all| decoding.show(done, all));
    // The presets look where `vnca data fetch` puts a data set.
    let known = config.data.strip_prefix("data/").filter(|name| SETS.iter().any(|set| set.name == *name));
    let loaded = match known {
        _ if !is_new && options.data.is_none() => loaded.with_context(|| {
            format!("the images of the run {}: --data PATH sets their location", beside.display())
        }),
        Some(name) if !Path::new(&config.data).exists() => {
            loaded.with_context(|| format!("`vnca data fetch {name}` downloads these images"))
        }
        _ => loaded,
    };
    let mut dataset = loaded?;
    valid!(
        !among_images || !dataset.is_of_image_files(),
        "out",
        "{} lies among the images of {}: the run's pictures would become some of them",
        beside.display(),
        config.data
    );
    let train = match dataset.train.take() {
        Some(train) => train,
        // The error says what is missing.
        None => dataset.split(Part::Train)?.clone(),
    };
    Ok((train, dataset.test))
}

/// Returns the exit code after a signal; `None` for 0, which is no signal.
pub fn exit_after(signal: usize) -> Option<Exit> {
    Some(match signal as i32 {
        0 => return None,
        SIGTERM => Exit::Terminated,
        SIGHUP => Exit::HungUp,
        SIGUSR1 => Exit::Warned,
        SIGUSR2 => Exit::WarnedAgain,
        SIGXCPU => Exit::OutOfTime,
        _ => Exit::Interrupted,
    })
}

/// Returns a device with the absolute path of its plugin, for a run that is resumed from another working folder.
fn located_device(device: &str) -> String {
    let (name, options) = device.split_at(device.find(',').unwrap_or(device.len()));
    if name.contains('/') || name.ends_with(".so") { located(name) + options } else { device.into() }
}

/// The pictures of evaluations, in the run's folder.
const PICTURES: &str = "pictures";

/// Signals within this time after the first one count as one request. `timeout` and job schedulers send a signal to the process
/// and another to its group.
const REPEATED_SIGNAL_TIME: Duration = Duration::from_secs(1);

/// Waits for Ctrl-C, SIGTERM, SIGHUP (the terminal was closed), SIGUSR1 and SIGUSR2 (job
/// schedulers' warnings), and SIGXCPU (the limit of processor time). The first signal asks
/// the run to stop. A second one ends the process at once.
pub fn listen() -> Result<Arc<AtomicUsize>> {
    let heard = Arc::new(AtomicUsize::new(0));
    let wanted = [SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU];
    // Under `nohup` a run continues after its terminal is closed.
    let mut signals =
        Signals::new(wanted.into_iter().filter(|signal| *signal != SIGHUP || !environment::ignores(SIGHUP)))?;
    let flag = heard.clone();
    std::thread::spawn(move || {
        let mut first = None;
        for number in signals.forever() {
            let since = first.get_or_insert_with(Instant::now).elapsed();
            if flag.swap(number as usize, Ordering::Relaxed) != 0 && since > REPEATED_SIGNAL_TIME {
                signal_hook::low_level::exit(128 + number);
            }
        }
    });
    Ok(heard)
}

/// What is known of a run before its images are read.
struct Prepared {
    config: TrainConfig,
    /// The folder of a resumed run, on process 0.
    folder: Option<RunFolder>,
    /// The saved configuration of a resumed run.
    before: Option<TrainConfig>,
}

/// Returns the configuration of the new or resumed run, which all processes agree on.
fn prepare(options: &TrainOptions, resume: bool, hosts: &Hosts) -> Result<Prepared> {
    hosts.agree("the command", if resume { "train --resume" } else { "train" })?;
    let mut folder = None;
    let before = hosts.lead("the run's configuration", || {
        if !resume {
            options.out.as_deref().map_or(Ok(()), holds_no_run)?;
            return Ok(None);
        }
        let Some(out) = &options.out else { bail!("--resume needs --out, the folder of the run to resume") };
        // Read the configuration before locking, which would create a missing folder.
        TrainConfig::from_run(out)?;
        let locked = folder.insert(RunFolder::lock(out)?);
        TrainConfig::from_run(locked.path()).map(Some)
    })?;
    let config = match &before {
        Some(saved) => TrainConfig::resumed(saved, options)?,
        None => TrainConfig::before_images(options)?,
    };
    // The images and weights may lie elsewhere on another host, and are compared by themselves.
    let shown = TrainConfig { data: String::new(), device: String::new(), from: None, ..config.clone() };
    hosts.agree("the options", &lines(&shown)?)?;
    Ok(Prepared { config, folder, before })
}

/// Returns the parameters that the run began or begins with, and records their checksum; `None` if they are drawn.
fn begun(config: &mut TrainConfig, origin: Option<Origin>) -> Result<Option<Vec<Array>>> {
    let Some(from) = config.from.clone() else { return Ok(None) };
    let origin = match origin {
        Some(origin) => origin,
        None => Origin::find(&from)?,
    };
    let parameters = origin.parameters(&from, &config.model)?;
    let now = format!("{:08x}", crc(&parameters));
    let recorded = config.from_crc.get_or_insert_with(|| now.clone());
    ensure!(*recorded == now, "{from} had other weights when the run began: their checksum was {recorded}");
    Ok(Some(parameters))
}

/// Reads the newest checkpoint of a resumed run, and checks that the run can go on from it. `before` is the run's saved
/// configuration.
fn newest(
    folder: &RunFolder,
    config: &TrainConfig,
    before: Option<&TrainConfig>,
) -> Result<Option<Checkpoint>> {
    let mut checkpoint = Store::in_run(folder.path(), config.keep).latest()?;
    let Some(Checkpoint { meta, .. }) = &mut checkpoint else {
        log::warn!("{} has no checkpoint: the run starts again at step 0", folder.path().display());
        return Ok(None);
    };
    let model: Model = serde_json::from_value(meta.model.clone())
        .with_context(|| format!("cannot parse the checkpoint's model: {}", meta.model))?;
    ensure!(model == config.model, "the checkpoint is of another model: {model:?}");
    if meta.step > config.steps {
        let (step, steps) = (meta.step, config.steps);
        return Err(anyhow!("the run is at step {step} already, beyond --steps {steps}")).tag(Error::Usage);
    }
    if meta.best.is_some() && before.is_some_and(|before| !config.scores_as(before)) {
        log::warn!(
            "evaluations differ from those before: their scores do not compare, and the next one is the best so far"
        );
        meta.best = None;
    }
    Ok(checkpoint)
}

/// Chooses and locks the folder of a new run.
fn claim(config: &TrainConfig, out: Option<&Path>) -> Result<RunFolder> {
    let folder = match out {
        Some(folder) => RunFolder::lock(folder)?,
        None => {
            let name = |n: usize| Path::new("runs").join(format!("{}-{n}", config.model.kind));
            RunFolder::first_free((1..).map(name))?
        }
    };
    // Check again under the lock: another process may have started a run since.
    holds_no_run(folder.path())?;
    Ok(folder)
}

fn holds_no_run(folder: &Path) -> Result<()> {
    valid!(
        !folder
            .join("config.json")
            .try_exists()
            .with_context(|| format!("cannot read {}", folder.display()))?,
        "out",
        "{} holds a run already: continue it with --resume, or choose another folder",
        folder.display()
    );
    Ok(())
}

fn report(run: &Run<'_>, folder: &Path, began: Instant) -> Report {
    let json = serde_json::json!({
        "run": folder.to_string_lossy(),
        "steps": run.step(),
        "seconds": began.elapsed().as_secs_f64(),
        "ms_per_step": run.seconds_a_step().map(|s| s * 1e3),
        "device": run.mesh().describe(),
    });
    Report { json, text: folder.display().to_string() }
}

/// The progress display and the evaluations of a run.
struct Screen<'a> {
    bar: ProgressBar,
    pace: Pace,
    /// Number of the received signal; 0 for none.
    signal: Arc<AtomicUsize>,
    hosts: &'a Hosts,
    config: &'a TrainConfig,
    folder: &'a Path,
    mesh: &'a Mesh,
    /// The images to evaluate, before the validation is compiled.
    images: Option<Split>,
    /// Which images these are.
    kind: &'static str,
    /// Name of the score in the metrics.
    score: &'static str,
    validation: Option<Validation>,
}

impl Screen<'_> {
    /// Compiles the programs of the evaluation, unless they are compiled already.
    fn prepare(&mut self) -> Result<()> {
        let TrainConfig { model, eval_samples, seed_test, seed_logging, .. } = *self.config;
        if let Some(images) = self.images.take() {
            let (keys, folder) = ([seed_test, seed_logging].map(Key::new), self.folder.join(PICTURES));
            self.validation =
                Some(Validation::new(self.mesh, &model.vae(), images, eval_samples, keys, folder)?);
        }
        Ok(())
    }

    /// Prints what the run is about to do. `follows`: the likelihood follows from the data. `from`: the weights that it begins with.
    fn introduce(&self, train: &Split, test: Option<&Split>, follows: bool, from: Option<&str>) {
        let (config, mesh) = (self.config, self.mesh);
        let vae = config.model.vae();
        let matmuls = match vae.precision {
            Precision::F32 => String::new(),
            precision => format!(", matmuls in {precision}"),
        };
        let count = vae.parameter_count();
        self.say(&format!("model   {}, Z {}, {count} parameters{matmuls}", vae.name, vae.latent));
        self.say(&format!(
            "data    {}: {} training images, {}{} test images, {}",
            config.data,
            train.len(),
            if config.valid > 0 { format!("{} validation images, ", config.valid) } else { String::new() },
            test.map_or(0, Split::len),
            train.shape
        ));
        let Model { likelihood, components, .. } = config.model;
        let mixture = match likelihood {
            Likelihood::LogisticMixture => format!(", {components} components"),
            _ => String::new(),
        };
        let chosen = if follows { " (from the data; --likelihood chooses another)" } else { "" };
        self.say(&format!("        likelihood {}{mixture}{chosen}", likelihood.name()));
        if let Some(from) = from {
            self.say(&format!("weights {from}"));
        }
        self.say(&format!("run     {}", self.folder.display()));
        report_forms(mesh, vae.precision);
        if (mesh.target(), vae.precision) == (Target::Gpu, Precision::F32) {
            self.say("        f32, as JAX computes it; --precision bf16 takes about half the time on a GPU");
        }
    }

    /// Prints a line to stderr without disturbing the progress bar.
    fn say(&self, text: &str) {
        if self.bar.is_hidden() {
            inform(text);
        } else {
            self.bar.println(text);
        }
    }

    /// Evaluates the parameters and writes pictures.
    fn score(&mut self, parameters: &[&Buffers], step: usize) -> Result<Option<Score>> {
        self.prepare()?;
        let eval_samples = self.config.eval_samples;
        let Some(validation) = &self.validation else { return Ok(None) };
        // Schedulers kill what has not ended soon after their signal. The state is saved without this evaluation, with which the
        // resumed run begins.
        let Some(bound) = validation.run(parameters, step, || self.stop())? else {
            // Process 0 may have heard it alone.
            let heard = self.hosts.stop_signal(self.signal.load(Ordering::Relaxed));
            self.signal.store(heard, Ordering::Relaxed);
            bail!("stopped by a signal")
        };
        let Bound { mean, images, .. } = bound;
        self.say(&format!(
            "step {step}: {} IWELBO {} nats ({images} images, {eval_samples} samples)",
            self.kind,
            bound.text(2)
        ));
        Ok(Some(Score { name: self.score, value: mean }))
    }
}

impl Watch for Screen<'_> {
    fn steps(&mut self, step: usize, loss: f32) {
        self.pace.reach(step, Instant::now());
        self.bar.set_position(step as u64);
        self.bar.set_message(format!("loss {loss:.2}"));
    }

    fn evaluate(&mut self, parameters: &[&Buffers], step: usize) -> Result<Option<Score>> {
        self.pace.reach(step, Instant::now());
        let score = self.score(parameters, step);
        self.pace.skip_to(Instant::now());
        score
    }

    fn stop(&self) -> bool {
        self.hosts.stop_signal(self.signal.load(Ordering::Relaxed)) != 0
    }
}
