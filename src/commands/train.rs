//! `vnca train`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Outcome, bar, print};
use crate::config::{TrainConfig, TrainOptions};
use crate::data::identity::located;
use crate::data::{self, Part};
use crate::error::{Exit, WithExit};
use crate::runtime::Mesh;
use crate::shape::Precision;
use crate::train::checkpoint::Store;
use crate::train::run::{End, Run, Watch};

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
}

pub fn run(args: Args) -> Outcome {
    let began = Instant::now();
    let options = match &args.config {
        Some(path) => args.options.over(&TrainOptions::from_toml(path).exit(Exit::Usage)?),
        None => args.options,
    };
    let options = options.over(&options.from_preset().exit(Exit::Usage)?);
    let signal = listen()?;
    let (mut config, folder) = prepare(&options, args.resume)?;
    let dataset = match data::load(&config.data) {
        Err(error) if args.resume && options.data.is_none() => {
            let run = folder.display();
            Err(error.context(format!("the images of the run {run}: --data PATH names where they are")))
        }
        loaded => loaded,
    };
    let dataset = dataset.exit(Exit::BadInput)?;
    let train = dataset.split(Part::Train).exit(Exit::BadInput)?.clone();
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
        .exit(Exit::Usage);
    }
    // What can be wrong with the sizes comes before anything is written.
    config.step_spec(train.len()).exit(Exit::Usage)?;
    let checkpoint = match args.resume {
        true => Store::of(&folder, config.keep).latest().exit(Exit::BadInput)?,
        false => None,
    };
    if checkpoint.as_ref().is_some_and(|c| c.meta.step > config.steps) {
        return Err(anyhow::anyhow!(
            "the run is at step {} already, beyond --steps {}",
            checkpoint.map_or(0, |c| c.meta.step),
            config.steps
        ))
        .exit(Exit::Usage);
    }
    // A device that cannot be had leaves no folder behind. It is opened once a process.
    let device = config.device().exit(Exit::Usage)?;
    Mesh::open(&device, config.replicas).exit(Exit::Device)?;
    let mut watch = Screen { bar: ProgressBar::hidden(), signal };
    let model = config.model;
    let products = match model.precision {
        Precision::F32 => String::new(),
        precision => format!(", products in {precision}"),
    };
    let count = model.parameter_count();
    watch.say(&format!("model   {}, Z {}, {count} parameters{products}", model.kind, model.latent));
    watch.say(&format!(
        "data    {}: {} training images, {} test images",
        config.data,
        train.len(),
        test.as_ref().map_or(0, |t| t.len())
    ));
    watch.say(&format!("run     {}", folder.display()));
    let mut run = Run::start(config.clone(), &folder, &train, test, checkpoint)?;
    watch.say(&format!("device  {}, {} replica(s)", run.mesh().describe(), config.replicas));
    watch.bar = bar(config.steps, "steps");
    watch.bar.set_position(run.step() as u64);
    watch.bar.reset_eta();
    let end = run.go(&mut watch);
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
        let saved = TrainConfig::of_run(folder).exit(Exit::BadInput)?;
        return Ok((TrainConfig::resumed(&saved, options).exit(Exit::Usage)?, folder.clone()));
    }
    let config = TrainConfig::resolve(options).exit(Exit::Usage)?;
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
        .exit(Exit::Usage);
    }
    Ok((config, folder))
}

fn report(json: &bool, run: &Run, folder: &Path, began: Instant) -> Result<()> {
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

struct Screen {
    bar: ProgressBar,
    /// The number of the signal that came, 0 before.
    signal: Arc<AtomicUsize>,
}

impl Watch for Screen {
    fn steps(&mut self, step: usize, loss: f32) {
        self.bar.set_position(step as u64);
        self.bar.set_message(format!("loss {loss:.2}"));
    }

    fn say(&mut self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    fn stop(&self) -> bool {
        self.signal.load(Ordering::Relaxed) != 0
    }
}
