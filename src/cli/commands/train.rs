//! `vnca train`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use indicatif::ProgressBar;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Outcome, bar, open, print, tell_forms};
use crate::cli::config::{TrainConfig, TrainOptions};
use crate::cli::error::Exit;
use crate::cli::models::Model;
use crate::data::identity::{DataCrc, located};
use crate::data::{self, Part, Split};
use crate::engine::random::Key;
use crate::engine::runtime::{Buffers, Mesh};
use crate::engine::shape::Precision;
use crate::error::{Error, Tag};
use crate::study::eval::Bound;
use crate::study::validation::Validation;
use crate::train::checkpoint::Store;
use crate::train::trainer::{End, Run, Score, Trainer, Watch};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: TrainOptions,
    /// A TOML file with the names of these flags as keys; flags and environment win over it
    #[arg(long, value_name = "FILE.toml", env = "VNCA_CONFIG")]
    config: Option<PathBuf>,
    /// Go on with the run in --out, bit for bit as if it had not stopped
    #[arg(long)]
    resume: bool,
    /// Print a summary as JSON on stdout instead of the run's folder
    #[arg(long)]
    json: bool,
    #[arg(from_global)]
    programs: Option<PathBuf>,
}

pub fn run(args: Args) -> Outcome {
    let began = Instant::now();
    let options = match &args.config {
        Some(path) => args.options.over(&TrainOptions::from_toml(path)?),
        None => args.options,
    };
    let options = options.over(&options.from_preset()?);
    let signal = listen()?;
    let (mut config, folder) = prepare(&options, args.resume)?;
    let dataset = match data::load(&config.data) {
        Err(error) if args.resume && options.data.is_none() => {
            let run = folder.display();
            Err(error.context(format!("the images of the run {run}: --data PATH names where they are")))
        }
        loaded => loaded,
    };
    let dataset = dataset.tag(Error::Data)?;
    let train = dataset.split(Part::Train).tag(Error::Data)?.clone();
    let test = dataset.test.clone();
    // The run finds its images from any working folder. A relative path that an older run wrote down has led to some here;
    // whether they are its own, `Run::start` sees.
    config.data = located(&config.data);
    if config.eval_every.is_some_and(|n| n > 0) && test.is_none() {
        return Err(anyhow::anyhow!(
            "--eval-every {}: {} has no test images",
            config.eval_every.unwrap_or(0),
            config.data
        ))
        .tag(Error::Usage);
    }
    // What can be wrong comes before anything is written.
    config.check_sizes(train.len()).tag(Error::Usage)?;
    let checkpoint = match args.resume {
        true => Store::in_run(&folder, config.keep).latest()?,
        false => None,
    };
    if let Some(meta) = checkpoint.as_ref().map(|c| &c.meta) {
        let model: Model = serde_json::from_value(meta.model.clone())
            .with_context(|| format!("the checkpoint's model is not understood: {}", meta.model))?;
        ensure!(model == config.model, "the checkpoint is of another model: {model:?}");
        if meta.step > config.steps {
            let (step, steps) = (meta.step, config.steps);
            return Err(anyhow!("the run is at step {step} already, beyond --steps {steps}"))
                .tag(Error::Usage);
        }
    }
    // What a resumed run knows of its images: the checkpoint, and but for older runs the configuration.
    let trained = checkpoint.as_ref().map(|c| DataCrc { train: c.meta.data_crc, test: None });
    let now = DataCrc::of(&train, test.as_ref());
    let crc =
        [trained, config.data_crc].into_iter().flatten().try_fold(now, |now, known| known.going_on(&now));
    config.data_crc = Some(crc.with_context(|| config.data.clone())?);
    let device = config.device()?;
    let mesh = open(&device, args.programs.as_deref(), 1, config.replicas)?;
    let test = test.map(|t| t.spread(config.eval_images));
    let mut watch = Screen {
        bar: ProgressBar::hidden(),
        signal,
        config: &config,
        folder: &folder,
        mesh: &mesh,
        test,
        validation: None,
    };
    let vae = config.model.vae();
    let products = match vae.precision {
        Precision::F32 => String::new(),
        precision => format!(", products in {precision}"),
    };
    let count = vae.parameter_count();
    watch.say(&format!("model   {}, Z {}, {count} parameters{products}", vae.name, vae.latent));
    watch.say(&format!(
        "data    {}: {} training images, {} test images",
        config.data,
        train.len(),
        dataset.test.as_ref().map_or(0, |t| t.len())
    ));
    watch.say(&format!("run     {}", folder.display()));
    tell_forms(&mesh, vae.precision);
    let options = config.run_options(if watch.test.is_some() { 1000 } else { 0 })?;
    let trainer =
        Trainer::boxed(&mesh, config.task()).optimiser(config.optimiser.chain(config.steps)).options(options);
    let mut run = trainer.start(&folder, Some(train.to_array()), checkpoint)?;
    // The configuration comes last: it holds for a run that has gone on with it.
    config.save(&folder)?;
    watch.say(&format!("device  {}, {} replica(s)", mesh.describe(), config.replicas));
    watch.bar = bar(config.steps, "steps");
    watch.bar.set_position(run.step() as u64);
    watch.bar.reset_eta();
    let end = run.train(&mut watch);
    watch.bar.finish_and_clear();
    let end = end?;
    report(&args.json, &run, &folder, began)?;
    Ok(match (end, watch.signal.load(Ordering::Relaxed)) {
        (End::Done, _) => None,
        (End::Stopped, n) => {
            let saved = if config.checkpoint_every > 0 {
                "its state is saved; --resume goes on"
            } else {
                "nothing was saved, as --checkpoint-every 0 asks"
            };
            eprintln!("stopped at step {}: {saved}", run.step());
            Some(if n == SIGTERM as usize { Exit::Terminated } else { Exit::Interrupted })
        }
    })
}

/// Signals that come this soon after the first are the same wish: `timeout` and job schedulers send one to the process and one to
/// its group.
const ONE_WISH: Duration = Duration::from_secs(1);

/// Hears Ctrl-C and SIGTERM: the first one asks the run to stop, a second one ends the process at once.
fn listen() -> Result<Arc<AtomicUsize>> {
    let heard = Arc::new(AtomicUsize::new(0));
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let flag = heard.clone();
    std::thread::spawn(move || {
        let mut first = None;
        for number in signals.forever() {
            let since = first.get_or_insert_with(Instant::now).elapsed();
            if flag.swap(number as usize, Ordering::Relaxed) != 0 && since > ONE_WISH {
                signal_hook::low_level::exit(128 + number);
            }
        }
    });
    Ok(heard)
}

/// The configuration and the folder of the run that is started or resumed.
fn prepare(options: &TrainOptions, resume: bool) -> Result<(TrainConfig, PathBuf)> {
    if resume {
        let Some(folder) = &options.out else {
            bail!("--resume needs --out, the folder of the run to go on with")
        };
        let saved = TrainConfig::from_run(folder)?;
        return Ok((TrainConfig::resumed(&saved, options)?, folder.clone()));
    }
    let config = TrainConfig::resolve(options)?;
    let folder = match &options.out {
        Some(folder) => folder.clone(),
        None => {
            let name = |n: usize| Path::new("runs").join(format!("{}-{n}", config.model.kind));
            (1..).map(name).find(|folder| !folder.exists()).context("there is no free folder under runs")?
        }
    };
    if folder.join("config.json").exists() {
        return Err(anyhow::anyhow!(
            "{} holds a run already: --resume goes on with it, or name another --out",
            folder.display()
        ))
        .tag(Error::Usage);
    }
    Ok((config, folder))
}

fn report(json: &bool, run: &Run<'_>, folder: &Path, began: Instant) -> Result<()> {
    if *json {
        let summary = serde_json::json!({
            "run": folder,
            "steps": run.step(),
            "seconds": began.elapsed().as_secs_f64(),
            "ms_per_step": run.seconds_a_step().map(|s| s * 1e3),
        });
        print(&summary.to_string())
    } else {
        print(&folder.display().to_string())
    }
}

/// What a run shows on the screen, and what it measures while it goes.
struct Screen<'a> {
    bar: ProgressBar,
    /// The number of the signal that came, 0 before.
    signal: Arc<AtomicUsize>,
    config: &'a TrainConfig,
    folder: &'a Path,
    mesh: &'a Mesh,
    test: Option<Split>,
    validation: Option<Validation>,
}

impl Screen<'_> {
    /// Shows a line of text for people.
    fn say(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }
}

impl Watch for Screen<'_> {
    fn steps(&mut self, step: usize, loss: f32) {
        self.bar.set_position(step as u64);
        self.bar.set_message(format!("loss {loss:.2}"));
    }

    fn evaluate(&mut self, parameters: &[&Buffers], step: usize) -> Result<Option<Score>> {
        let TrainConfig { model, eval_samples, seed_test, seed_logging, .. } = *self.config;
        if let Some(test) = self.test.take() {
            let (keys, folder) = ([seed_test, seed_logging].map(Key::new), self.folder.join("pictures"));
            self.validation =
                Some(Validation::new(self.mesh, &model.vae(), test, eval_samples, keys, folder)?);
        }
        let Some(validation) = &self.validation else { return Ok(None) };
        let Bound { mean, stderr, images } = validation.run(parameters, step)?;
        self.say(&format!(
            "step {step}: test IWELBO {mean:.2} ± {stderr:.2} nats ({images} images, {eval_samples} samples)"
        ));
        Ok(Some(Score { name: "test/iwelbo", value: mean }))
    }

    fn stop(&self) -> bool {
        self.signal.load(Ordering::Relaxed) != 0
    }
}
