//! The options of training: where they come from, and every default beside its reason.
//!
//! A value is taken from the command line, else from the environment (`VNCA_STEPS` and so on), else from the TOML file
//! of `--config` (the same names as the flags), else from the preset, else from the defaults. A name that is unknown is an error.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use super::models::{Kind, Model};
use super::optimiser::{CellRule, ClipOrder, ClipScope, Optimiser};
use crate::data::identity::DataCrc;
use crate::engine::ir::{Function, RepeatOptions};
use crate::engine::runtime::Device;
use crate::engine::shape::Precision;
use crate::files;
use crate::model::elbo::{Loss, ManySamples};
use crate::model::pool::{PoolSpec, Shuffle};
use crate::model::{Elbo, Pooled};
use crate::nn::optimiser::Fall;
use crate::train::{RunOptions, Sizes, Task, TrainProgram};

/// Runs that have a name: their options as TOML.
const PRESETS: [(&str, &str); 6] = [
    ("report-baseline", include_str!("presets/report-baseline.toml")),
    ("report-doubling", include_str!("presets/report-doubling.toml")),
    ("report-nondoubling", include_str!("presets/report-nondoubling.toml")),
    ("demo-baseline", include_str!("presets/demo-baseline.toml")),
    ("demo-doubling", include_str!("presets/demo-doubling.toml")),
    ("demo-nondoubling", include_str!("presets/demo-nondoubling.toml")),
];

/// Names of all presets.
pub fn preset_names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// The options as given: `None` where nothing was said.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TrainOptions {
    /// A run with a name: the report's, or a demonstration that learns in two minutes; other options win over it
    #[arg(long, env = "VNCA_PRESET", value_parser = clap::builder::PossibleValuesParser::new(preset_names()))]
    pub preset: Option<String>,
    /// Model: baseline, doubling or nondoubling [default: baseline]
    #[arg(long, env = "VNCA_MODEL", value_parser = ["baseline", "doubling", "nondoubling"])]
    pub model: Option<String>,
    /// Images: a file, a folder with the usual names, or `glyphs`, the embedded digits [default: glyphs]
    #[arg(long, env = "VNCA_DATA", value_name = "PATH")]
    pub data: Option<String>,
    /// Run folder [default: the first free one of runs/MODEL-1, runs/MODEL-2, ...]
    #[arg(long, env = "VNCA_OUT", value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Gradient steps in all [default: 100000]
    #[arg(long, env = "VNCA_STEPS", value_name = "N")]
    pub steps: Option<usize>,
    /// Images a step, over all replicas [default: 32; 128 for nondoubling]
    #[arg(long, env = "VNCA_BATCH_SIZE", value_name = "N")]
    pub batch_size: Option<usize>,
    /// Devices that share each batch; on the CPU virtual ones [default: 1]
    #[arg(long, env = "VNCA_REPLICAS", value_name = "R")]
    pub replicas: Option<usize>,
    /// Gradient steps that share one shuffling of keys and images, and a device call at most [default: 125]
    #[arg(long, env = "VNCA_CHUNK", value_name = "N")]
    pub chunk: Option<usize>,
    /// Latent size [default: 256; 128 for nondoubling]
    #[arg(long, env = "VNCA_LATENT", value_name = "Z")]
    pub latent: Option<usize>,
    /// Steps of the automaton: after each doubling, or in evaluation (nondoubling) [default: 8; 36 for nondoubling]
    #[arg(long, env = "VNCA_NCA_STEPS", value_name = "N")]
    pub nca_steps: Option<usize>,
    /// Least number of steps in training, drawn anew each gradient step (nondoubling) [default: 32]
    #[arg(long, env = "VNCA_NCA_STEPS_MIN", value_name = "N")]
    pub nca_steps_min: Option<usize>,
    /// The number that the draw stays below (nondoubling) [default: 64]
    #[arg(long, env = "VNCA_NCA_STEPS_MAX", value_name = "N")]
    pub nca_steps_max: Option<usize>,
    /// Doublings of the doubling model, from a grid so much smaller [default: 5, from one cell]
    #[arg(long, env = "VNCA_DOUBLINGS", value_name = "K")]
    pub doublings: Option<usize>,
    /// Chance that a cell takes part in a step of the automaton [default: 1]
    #[arg(long, env = "VNCA_UPDATE_PROB", value_name = "P", allow_negative_numbers = true)]
    pub update_prob: Option<f64>,
    /// Side of the square in the middle of the grid that starts as the latent, the rest as zeros (nondoubling) [default:
    /// 32, the whole grid]
    #[arg(long, env = "VNCA_START_SIDE", value_name = "N")]
    pub start_side: Option<usize>,
    /// Entries of the pool, over all replicas (nondoubling) [default: 1024]
    #[arg(long, env = "VNCA_POOL_SIZE", value_name = "N")]
    pub pool_size: Option<usize>,
    /// How the pool's entries change places after a step (nondoubling) [default: exchange]
    #[arg(long, env = "VNCA_POOL_SHUFFLE", value_enum)]
    pub pool_shuffle: Option<Shuffle>,
    /// Share of each batch whose grids are damaged: of those from the pool (nondoubling, up to 0.5), or at a random
    /// doubling (doubling) [default: 0.25 for nondoubling, else 0]
    #[arg(long, env = "VNCA_DAMAGE", value_name = "FRACTION", allow_negative_numbers = true)]
    pub damage: Option<f64>,
    /// What the gradient saves of the automaton's steps: 0 all that it needs, 1 each step's grid, k each k-th step's,
    /// and makes the rest again: less memory, more time [default: 0]
    #[arg(long, env = "VNCA_REMAT", value_name = "k")]
    pub remat: Option<usize>,
    /// Element type in which it is saved: bf16 halves the memory [default: that of --precision]
    #[arg(long, env = "VNCA_SAVE_AS", value_enum)]
    pub save_as: Option<Precision>,
    /// Element type in which matrix products and convolutions take their operands; parameters, sums, optimiser and loss
    /// are f32 in any case. A CPU without bf16 computes in f32 [default: f32]
    #[arg(long, env = "VNCA_PRECISION", value_enum)]
    pub precision: Option<Precision>,
    /// How the weights of the automaton's cell are updated; all else is Adam's [default: adam]
    #[arg(long, env = "VNCA_CELL_OPTIMISER", value_enum)]
    pub cell_optimiser: Option<CellRule>,
    /// Learning rate [default: 0.0001]
    #[arg(long, env = "VNCA_LEARNING_RATE", value_name = "X", allow_negative_numbers = true)]
    pub learning_rate: Option<f64>,
    /// Steps in which the learning rate rises evenly to its full height [default: 0]
    #[arg(long, env = "VNCA_WARMUP", value_name = "N")]
    pub warmup: Option<usize>,
    /// Share of the learning rate that is left at the last of `--steps`, after an even fall [default: 1, no fall]
    #[arg(long, env = "VNCA_END_FACTOR", value_name = "X", allow_negative_numbers = true)]
    pub end_factor: Option<f64>,
    /// Limit of the norm that is clipped; inf clips nothing [default: 10]
    #[arg(long, env = "VNCA_CLIP_NORM", value_name = "X", allow_negative_numbers = true)]
    pub clip_norm: Option<f64>,
    /// Clip the gradient before Adam, or the update after it as the report's code does [default: before]
    #[arg(long, env = "VNCA_CLIP_ORDER", value_enum)]
    pub clip_order: Option<ClipOrder>,
    /// Whose norm is clipped: that of all parameters together, or each one's own [default: all]
    #[arg(long, env = "VNCA_CLIP_SCOPE", value_enum)]
    pub clip_scope: Option<ClipScope>,
    /// Latent samples an image in training; more than one train on the importance-weighted bound [default: 1]
    #[arg(long, env = "VNCA_TRAIN_SAMPLES", value_name = "M")]
    pub train_samples: Option<usize>,
    /// What is trained on with more than one sample [default: importance]
    #[arg(long, env = "VNCA_MANY_SAMPLES", value_enum)]
    pub many_samples: Option<ManySamples>,
    /// Weight of the loss's KL part [default: 1]
    #[arg(long, env = "VNCA_BETA", value_name = "X", allow_negative_numbers = true)]
    pub beta: Option<f64>,
    /// Seed of the initial values [default: 0]
    #[arg(long, env = "VNCA_SEED_MODEL", value_name = "N")]
    pub seed_model: Option<u64>,
    /// Seed of the order of images and of the latents' noise [default: 1]
    #[arg(long, env = "VNCA_SEED_DATA", value_name = "N")]
    pub seed_data: Option<u64>,
    /// Seed of the test IWELBO's latents [default: 2]
    #[arg(long, env = "VNCA_SEED_TEST", value_name = "N")]
    pub seed_test: Option<u64>,
    /// Seed of the pictures' latents [default: 3]
    #[arg(long, env = "VNCA_SEED_LOGGING", value_name = "N")]
    pub seed_logging: Option<u64>,
    /// Steps between test IWELBOs and pictures; 0: never [default: 1000, or 0 if there are no test images]
    #[arg(long, env = "VNCA_EVAL_EVERY", value_name = "N")]
    pub eval_every: Option<usize>,
    /// Latent samples of each test IWELBO [default: 16]
    #[arg(long, env = "VNCA_EVAL_SAMPLES", value_name = "K")]
    pub eval_samples: Option<usize>,
    /// Test images of each test IWELBO, evenly spaced [default: 512]
    #[arg(long, env = "VNCA_EVAL_IMAGES", value_name = "N")]
    pub eval_images: Option<usize>,
    /// Steps between checkpoints; 0: never, not even at the end [default: 1000]
    #[arg(long, env = "VNCA_CHECKPOINT_EVERY", value_name = "N")]
    pub checkpoint_every: Option<usize>,
    /// Checkpoints that are kept besides the best one [default: 3]
    #[arg(long, env = "VNCA_KEEP", value_name = "N")]
    pub keep: Option<usize>,
    /// Device: cpu, tpu, cuda or the path of a PJRT plugin, with its options after commas [default: cpu]
    #[arg(long, env = "VNCA_DEVICE")]
    pub device: Option<String>,
}

/// Each field from the first options where they have it, else from the second. The result names every field, so that one
/// which is not listed does not compile.
macro_rules! merged {
    ($upper:expr, $lower:expr; $($field:ident),* $(,)?) => {
        TrainOptions { $($field: $upper.$field.clone().or_else(|| $lower.$field.clone())),* }
    };
}

impl TrainOptions {
    /// Merges two sets of options: each option from `self` if it is set there, else from `lower`.
    ///
    /// The values are not passed through a text such as JSON. It has no infinity and no NaN, which would read as unset.
    pub fn over(&self, lower: &TrainOptions) -> TrainOptions {
        merged!(
            self, lower;
            preset, model, data, out, steps, batch_size, replicas, chunk, latent, nca_steps,
            nca_steps_min, nca_steps_max, doublings, update_prob, start_side, pool_size,
            pool_shuffle, damage, remat, save_as, precision, cell_optimiser, learning_rate,
            warmup, end_factor, clip_norm, clip_order, clip_scope, train_samples, many_samples,
            beta, seed_model, seed_data, seed_test, seed_logging, eval_every, eval_samples,
            eval_images, checkpoint_every, keep, device
        )
    }

    /// Reads options from a TOML file.
    ///
    /// # Errors
    /// When the file cannot be read, is no TOML, or has a key that is no option; the error names file and line.
    pub fn from_toml(path: &Path) -> Result<TrainOptions> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is no configuration", path.display()))
    }
}

impl TrainOptions {
    /// Returns the options of the named preset, or no options if none is named.
    ///
    /// # Errors
    /// When there is no preset of that name.
    pub fn from_preset(&self) -> Result<TrainOptions> {
        let Some(name) = &self.preset else { return Ok(TrainOptions::default()) };
        let found = PRESETS.iter().find(|(known, _)| known == name);
        let names = || preset_names().collect::<Vec<_>>().join(", ");
        let (_, text) = found.ok_or_else(|| anyhow!("no preset {name:?}: there are {}", names()))?;
        toml::from_str(text).with_context(|| format!("preset {name}"))
    }
}

/// A run's resolved options, as `config.json` in its folder holds them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// The model and its sizes.
    pub model: Model,
    /// The data set: a name or a path. A run's configuration has an absolute path, or the name of the embedded digits.
    pub data: String,
    /// Checksums of the run's images, once they are known. Older runs did not record them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_crc: Option<DataCrc>,
    /// Gradient steps in total.
    pub steps: usize,
    /// Images per gradient step, over all replicas.
    pub batch_size: usize,
    /// Number of replicas, one device each.
    pub replicas: usize,
    /// Gradient steps that share one shuffle of keys and images, and the most in one device call.
    pub chunk: usize,
    /// The bound that is maximised.
    pub loss: Loss,
    /// What the backward pass of the automaton's loop keeps in memory.
    pub memory: RepeatOptions,
    /// Share of each batch whose grids are damaged.
    pub damage: f64,
    /// The pool of grown states, if the run has one.
    pub pool: Option<PoolSpec>,
    /// The optimiser's settings.
    pub optimiser: Optimiser,
    /// Seed of the initial values.
    pub seed_model: u64,
    /// Seed of the order of images and of the latents' noise.
    pub seed_data: u64,
    /// Seed of the latents in test IWELBOs.
    pub seed_test: u64,
    /// Seed of the latents in pictures.
    pub seed_logging: u64,
    /// Steps between test IWELBOs and pictures. `None`: 1000 if there are test images, else never.
    pub eval_every: Option<usize>,
    /// Latent samples per image in a test IWELBO.
    pub eval_samples: usize,
    /// Test images in a test IWELBO, evenly spaced.
    pub eval_images: usize,
    /// Steps between checkpoints. 0: never, not even at the end.
    pub checkpoint_every: usize,
    /// Number of checkpoints that are kept besides the best one.
    pub keep: usize,
    /// The device, as `--device` takes it.
    pub device: String,
}

impl TrainConfig {
    /// Fills in the defaults and checks the values.
    ///
    /// # Errors
    /// When a value is out of its range. The message names the flag.
    pub fn resolve(options: &TrainOptions) -> Result<TrainConfig> {
        let kind: Kind = options.model.as_deref().unwrap_or("baseline").parse()?;
        let mut model = Model::new(kind, options.latent)?;
        model.nca_steps = options.nca_steps.unwrap_or(model.nca_steps);
        model.doublings = options.doublings.unwrap_or(model.doublings);
        model.update_prob = options.update_prob.unwrap_or(model.update_prob);
        model.start_side = options.start_side.unwrap_or(model.start_side);
        model.precision = options.precision.unwrap_or_default();
        model.check()?;
        let pool = Self::pool(kind, options)?;
        // The report's run.
        let steps = options.steps.unwrap_or(100_000);
        let config = TrainConfig {
            model,
            data: options.data.clone().unwrap_or_else(|| "glyphs".into()),
            data_crc: None,
            steps,
            // The report's batches.
            batch_size: options.batch_size.unwrap_or(if kind == Kind::NonDoubling { 128 } else { 32 }),
            replicas: options.replicas.unwrap_or(1),
            // The report's number of steps a device call.
            chunk: options.chunk.unwrap_or(125),
            loss: Loss {
                beta: options.beta.unwrap_or(Loss::ELBO.beta),
                samples: options.train_samples.unwrap_or(Loss::ELBO.samples),
                many: options.many_samples.unwrap_or(Loss::ELBO.many),
            },
            memory: RepeatOptions {
                remat: options.remat.unwrap_or(0),
                ..RepeatOptions::for_precision(options.save_as.unwrap_or(model.precision))
            },
            // The report damages half of the grids that come from the pool.
            damage: options.damage.unwrap_or(if pool.is_some() { 0.25 } else { 0.0 }),
            pool,
            optimiser: Optimiser {
                learning_rate: options.learning_rate.unwrap_or(Optimiser::REPORT.learning_rate),
                clip_norm: options.clip_norm.unwrap_or(Optimiser::REPORT.clip_norm),
                clip_order: options.clip_order.unwrap_or(Optimiser::REPORT.clip_order),
                clip_scope: options.clip_scope.unwrap_or(Optimiser::REPORT.clip_scope),
                cell: options.cell_optimiser.unwrap_or(Optimiser::REPORT.cell),
                warmup: options.warmup.unwrap_or(Optimiser::REPORT.warmup),
                fall: options.end_factor.filter(|f| *f != 1.0).map(|end_factor| Fall { end_factor, steps }),
                ..Optimiser::REPORT
            },
            // The seeds of the report's code.
            seed_model: options.seed_model.unwrap_or(0),
            seed_data: options.seed_data.unwrap_or(1),
            seed_test: options.seed_test.unwrap_or(2),
            seed_logging: options.seed_logging.unwrap_or(3),
            eval_every: options.eval_every,
            // Enough to see where a run goes, at the cost of some ten steps.
            eval_samples: options.eval_samples.unwrap_or(16),
            eval_images: options.eval_images.unwrap_or(512),
            checkpoint_every: options.checkpoint_every.unwrap_or(1000),
            keep: options.keep.unwrap_or(3),
            device: options.device.clone().unwrap_or_else(|| "cpu".into()),
        };
        config.check()?;
        Ok(config)
    }

    /// The pool's options, which only the non-doubling model has.
    fn pool(kind: Kind, options: &TrainOptions) -> Result<Option<PoolSpec>> {
        let report = PoolSpec::REPORT;
        if kind == Kind::NonDoubling {
            return Ok(Some(PoolSpec {
                size: options.pool_size.unwrap_or(report.size),
                shuffle: options.pool_shuffle.unwrap_or(report.shuffle),
                steps_min: options.nca_steps_min.unwrap_or(report.steps_min),
                steps_max: options.nca_steps_max.unwrap_or(report.steps_max),
            }));
        }
        for (flag, given) in [
            ("--pool-size", options.pool_size.is_some()),
            ("--pool-shuffle", options.pool_shuffle.is_some()),
            ("--nca-steps-min", options.nca_steps_min.is_some()),
            ("--nca-steps-max", options.nca_steps_max.is_some()),
        ] {
            ensure!(!given, "{flag} is of the nondoubling model, not of the {kind}");
        }
        Ok(None)
    }

    fn check(&self) -> Result<()> {
        // Devices compute in f32, where a number may become 0 or infinite.
        let positive = |flag: &str, value: f64| {
            ensure!(value > 0.0 && value as f32 > 0.0, "{flag} is {value}: it must be a positive number");
            Ok(())
        };
        let finite = |flag: &str, value: f64| {
            ensure!((value as f32).is_finite(), "{flag} is {value}: it must be a finite number");
            Ok(())
        };
        finite("--learning-rate", self.optimiser.learning_rate)?;
        positive("--learning-rate", self.optimiser.learning_rate)?;
        // An infinite limit is none.
        positive("--clip-norm", self.optimiser.clip_norm)?;
        let end_factor = self.optimiser.end_factor();
        ensure!((0.0..=1.0).contains(&end_factor), "--end-factor is {end_factor}: it must be from 0 to 1");
        ensure!(
            self.optimiser.clip_scope == ClipScope::All || self.optimiser.clip_order == ClipOrder::Before,
            "--clip-scope each clips gradients: it does not go with --clip-order after"
        );
        finite("--beta", self.loss.beta)?;
        ensure!(self.loss.beta >= 0.0, "--beta is {}: it must not be negative", self.loss.beta);
        for (flag, value) in [
            ("--steps", self.steps),
            ("--eval-samples", self.eval_samples),
            ("--eval-images", self.eval_images),
            ("--keep", self.keep),
            ("--chunk", self.chunk),
            ("--replicas", self.replicas),
            ("--batch-size", self.batch_size),
            ("--train-samples", self.loss.samples),
        ] {
            ensure!(value > 0, "{flag} is 0: it must be at least 1");
            ensure!(value <= i32::MAX as usize, "{flag} is {value}: that is too many");
        }
        self.device()?;
        Ok(())
    }

    /// # Errors
    /// When the device's name is unknown.
    pub fn device(&self) -> Result<Device> {
        self.device.parse().context("--device")
    }

    /// Builds the task that the run trains.
    pub fn task(&self) -> Box<dyn Task> {
        let (model, loss, memory, damage) = (self.model.vae(), self.loss, self.memory, self.damage);
        match self.pool {
            Some(pool) => Box::new(Pooled { model, loss, memory, damage, pool }),
            None => Box::new(Elbo { model, loss, memory, damage }),
        }
    }

    /// Builds the train program for a training set of `images` images.
    ///
    /// # Errors
    /// When the sizes do not fit each other.
    pub fn train_function(&self, images: usize) -> Result<Function> {
        self.with_program(images, |program| program.function())
    }

    /// Checks that the sizes fit each other and a training set of `images` images.
    ///
    /// # Errors
    /// When they do not; the error names the field.
    pub fn check_sizes(&self, images: usize) -> Result<()> {
        self.with_program(images, |program| program.check())
    }

    fn with_program<R>(&self, images: usize, f: impl FnOnce(&TrainProgram<'_>) -> Result<R>) -> Result<R> {
        ensure!(
            self.optimiser.cell == CellRule::Adam || self.model.kind != Kind::Baseline,
            "--cell-optimiser is of the doubling or nondoubling model, not of the baseline"
        );
        let sizes =
            Sizes { replicas: self.replicas, batch: self.batch_size, chunk: self.chunk, examples: images };
        f(&TrainProgram { task: self.task().as_ref(), optimiser: &self.optimiser.chain(), sizes })
    }

    /// Returns the run's length and its schedule of evaluations and checkpoints. `eval_every` is the default.
    pub fn run_options(&self, eval_every: usize) -> Result<RunOptions> {
        Ok(RunOptions {
            steps: self.steps,
            batch: self.batch_size,
            chunk: self.chunk,
            seed_model: self.seed_model,
            seed_data: self.seed_data,
            eval_every: self.eval_every.unwrap_or(eval_every),
            checkpoint_every: self.checkpoint_every,
            keep: self.keep,
            model: serde_json::to_value(self.model)?,
        })
    }

    /// Reads the configuration of a run.
    ///
    /// # Errors
    /// When the folder holds none; the error names the file.
    pub fn of_run(run: &Path) -> Result<TrainConfig> {
        let path = run.join("config.json");
        let text = std::fs::read(&path).with_context(|| {
            format!("{} is no run's folder: cannot read {}", run.display(), path.display())
        })?;
        let wrong = || format!("{} is no run's configuration", path.display());
        let config: TrainConfig = serde_json::from_slice(&text).with_context(wrong)?;
        // Whoever changed the file may have written sizes that no model has.
        config.model.check().and_then(|()| config.check()).with_context(wrong)?;
        Ok(config)
    }

    /// Writes the configuration into a run's folder, as a whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written; the error names it.
    pub fn save(&self, run: &Path) -> Result<()> {
        files::write_bytes(&run.join("config.json"), serde_json::to_string_pretty(self)? + "\n")
    }

    /// The configuration of a resumed run: the saved one, with the new values of what may change.
    ///
    /// # Errors
    /// When an option was given another value that would make it another run; the error names it.
    pub fn resumed(saved: &TrainConfig, options: &TrainOptions) -> Result<TrainConfig> {
        let config = TrainConfig::resolve(&options.over(&saved.as_options()))?;
        let config = TrainConfig { data_crc: saved.data_crc, ..config };
        let same = |flag: &str, equal: bool| match equal {
            true => Ok(()),
            false => Err(anyhow!(
                "{flag} differs from the run that is resumed: leave it out, or start another run"
            )),
        };
        same("--model", config.model.kind == saved.model.kind)?;
        same(
            "--latent, --nca-steps, --doublings, --update-prob, --start-side or --precision",
            config.model == saved.model,
        )?;
        same("--batch-size", config.batch_size == saved.batch_size)?;
        same("--chunk", config.chunk == saved.chunk)?;
        same("--beta, --train-samples or --many-samples", config.loss == saved.loss)?;
        same("--damage", config.damage == saved.damage)?;
        let alike = |pool: Option<PoolSpec>| pool.map(|p| PoolSpec { shuffle: p.shuffle.result(), ..p });
        same(
            "--pool-size, --pool-shuffle, --nca-steps-min or --nca-steps-max",
            alike(config.pool) == alike(saved.pool),
        )?;
        // The learning rate falls to the end of `--steps`, which may be another now.
        let fall = saved.optimiser.fall.map(|fall| Fall { steps: config.steps, ..fall });
        same(
            "--learning-rate, --warmup, --end-factor, --cell-optimiser, --clip-norm, --clip-order or --clip-scope",
            config.optimiser == Optimiser { fall, ..saved.optimiser },
        )?;
        same("--seed-model", config.seed_model == saved.seed_model)?;
        same("--seed-data", config.seed_data == saved.seed_data)?;
        Ok(config)
    }

    fn as_options(&self) -> TrainOptions {
        TrainOptions {
            preset: None,
            model: Some(self.model.kind.to_string()),
            data: Some(self.data.clone()),
            out: None,
            steps: Some(self.steps),
            batch_size: Some(self.batch_size),
            replicas: Some(self.replicas),
            chunk: Some(self.chunk),
            latent: Some(self.model.latent),
            nca_steps: Some(self.model.nca_steps),
            nca_steps_min: self.pool.map(|p| p.steps_min),
            nca_steps_max: self.pool.map(|p| p.steps_max),
            doublings: Some(self.model.doublings),
            update_prob: Some(self.model.update_prob),
            start_side: Some(self.model.start_side),
            pool_size: self.pool.map(|p| p.size),
            pool_shuffle: self.pool.map(|p| p.shuffle),
            damage: Some(self.damage),
            remat: Some(self.memory.remat),
            save_as: Some(if self.memory.save_as.is_some() { Precision::Bf16 } else { Precision::F32 }),
            precision: Some(self.model.precision),
            train_samples: Some(self.loss.samples),
            many_samples: Some(self.loss.many),
            learning_rate: Some(self.optimiser.learning_rate),
            clip_norm: Some(self.optimiser.clip_norm),
            clip_order: Some(self.optimiser.clip_order),
            clip_scope: Some(self.optimiser.clip_scope),
            cell_optimiser: Some(self.optimiser.cell),
            warmup: Some(self.optimiser.warmup),
            end_factor: Some(self.optimiser.end_factor()),
            beta: Some(self.loss.beta),
            seed_model: Some(self.seed_model),
            seed_data: Some(self.seed_data),
            seed_test: Some(self.seed_test),
            seed_logging: Some(self.seed_logging),
            eval_every: self.eval_every,
            eval_samples: Some(self.eval_samples),
            eval_images: Some(self.eval_images),
            checkpoint_every: Some(self.checkpoint_every),
            keep: Some(self.keep),
            device: Some(self.device.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::error::describe;
    use crate::engine::shape::DType;

    #[test]
    fn what_is_said_wins_over_what_stands_below() {
        let flags = TrainOptions { steps: Some(5), ..TrainOptions::default() };
        let file: TrainOptions =
            toml::from_str("steps = 7\nbatch-size = 64\nclip-order = \"after\"").unwrap();
        let merged = TrainConfig::resolve(&flags.over(&file)).unwrap();
        assert_eq!((merged.steps, merged.batch_size), (5, 64));
        assert_eq!(merged.optimiser.clip_order, ClipOrder::After);
    }

    #[test]
    fn no_value_is_lost_on_the_way_through_other_options() {
        // Whatever a configuration holds, it says of every option that has a default.
        let saved = TrainConfig::resolve(&TrainOptions {
            model: Some("nondoubling".into()),
            eval_every: Some(5),
            ..TrainOptions::default()
        });
        let all = saved.unwrap().as_options();
        let text = |options: &TrainOptions| format!("{options:?}");
        assert_eq!(text(&TrainOptions::default().over(&all)), text(&all));
        assert_eq!(text(&all.over(&TrainOptions::default())), text(&all));
        let (zero, one) = (Some(0.0), Some(1.0));
        for value in [f64::INFINITY, f64::NAN, f64::NEG_INFINITY] {
            let given = TrainOptions { beta: Some(value), clip_norm: Some(value), ..TrainOptions::default() };
            let below = TrainOptions { beta: zero, clip_norm: one, damage: one, ..TrainOptions::default() };
            let merged = given.over(&below);
            assert_eq!(merged.beta.map(f64::to_bits), Some(value.to_bits()));
            assert_eq!(merged.clip_norm.map(f64::to_bits), Some(value.to_bits()));
            assert_eq!(merged.damage, one);
        }
    }

    #[test]
    fn numbers_that_are_none_are_refused_by_name_and_an_infinite_limit_is_none() {
        let resolved = |text: &str| {
            let options: TrainOptions = toml::from_str(&format!("model = \"doubling\"\n{text}")).unwrap();
            let config = TrainConfig::resolve(&options)?;
            config.check_sizes(1000).map(|()| config)
        };
        for flag in ["learning-rate", "clip-norm", "beta", "damage", "update-prob", "end-factor"] {
            for value in ["nan", "inf", "-inf", "1e300"] {
                if flag == "clip-norm" && ["inf", "1e300"].contains(&value) {
                    continue;
                }
                let error = describe(&resolved(&format!("{flag} = {value}")).unwrap_err());
                assert!(error.contains(&format!("--{flag}")), "{flag} = {value}: {error}");
            }
        }
        // In f32 these are 0.
        for flag in ["learning-rate", "clip-norm"] {
            let error = resolved(&format!("{flag} = 1e-60")).unwrap_err().to_string();
            assert!(error.contains(flag), "{error}");
        }
        let config = resolved("clip-norm = inf").unwrap();
        assert_eq!(config.optimiser.clip_norm, f64::INFINITY);
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains("\"clip_norm\":\"inf\""), "{text}");
        let read = |text: &str| serde_json::from_str::<TrainConfig>(text);
        assert_eq!(read(&text).unwrap(), config);
        // As older runs have it.
        assert_eq!(read(&text.replace("\"inf\"", "10.0")).unwrap().optimiser.clip_norm, 10.0);
        assert_eq!(read(&text.replace("\"inf\"", "10")).unwrap().optimiser.clip_norm, 10.0);
        for wrong in ["\"ten\"", "null"] {
            assert!(read(&text.replace("\"inf\"", wrong)).is_err(), "{wrong}");
        }
        assert_eq!(TrainConfig::resumed(&config, &TrainOptions::default()).unwrap(), config);
    }

    #[test]
    fn a_changed_file_of_sizes_that_no_model_has_is_no_configuration() {
        let run = tempfile::tempdir().unwrap();
        let options = TrainOptions { model: Some("doubling".into()), ..TrainOptions::default() };
        let config = TrainConfig::resolve(&options).unwrap();
        config.save(run.path()).unwrap();
        assert_eq!(TrainConfig::of_run(run.path()).unwrap(), config);
        for (field, value) in [("latent", "18446744073709551615"), ("doublings", "64"), ("batch_size", "0")] {
            let text = serde_json::to_string(&config).unwrap();
            let (before, after) = text.split_once(&format!("\"{field}\":")).unwrap();
            let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
            std::fs::write(run.path().join("config.json"), format!("{before}\"{field}\":{value}{after}"))
                .unwrap();
            let error = format!("{:#}", TrainConfig::of_run(run.path()).unwrap_err());
            assert!(error.contains("no run's configuration"), "{field}: {error}");
        }
    }

    #[test]
    fn an_unknown_key_is_an_error_that_lists_the_known() {
        let error = toml::from_str::<TrainOptions>("stepz = 7").unwrap_err().to_string();
        assert!(error.contains("stepz") && error.contains("`steps`"), "{error}");
    }

    #[test]
    fn a_resumed_run_may_be_longer_and_nothing_else() {
        let saved = TrainConfig::resolve(&TrainOptions::default()).unwrap();
        let longer = TrainOptions { steps: Some(7), ..TrainOptions::default() };
        assert_eq!(TrainConfig::resumed(&saved, &longer).unwrap(), TrainConfig { steps: 7, ..saved.clone() });
        let other = TrainOptions { batch_size: Some(64), ..TrainOptions::default() };
        let error = TrainConfig::resumed(&saved, &other).unwrap_err().to_string();
        assert!(error.contains("--batch-size"), "{error}");
        let other = TrainOptions { precision: Some(Precision::Bf16), ..TrainOptions::default() };
        let error = TrainConfig::resumed(&saved, &other).unwrap_err().to_string();
        assert!(error.contains("--precision"), "{error}");
        // A learning rate that falls, falls to the new end.
        let falling = TrainOptions { end_factor: Some(0.1), ..TrainOptions::default() };
        let saved = TrainConfig::resolve(&falling).unwrap();
        let fall = Some(Fall { end_factor: 0.1, steps: 7 });
        assert_eq!(TrainConfig::resumed(&saved, &longer).unwrap().optimiser.fall, fall);
        let other = TrainOptions { end_factor: Some(0.2), ..TrainOptions::default() };
        let error = TrainConfig::resumed(&saved, &other).unwrap_err().to_string();
        assert!(error.contains("--end-factor"), "{error}");
    }

    #[test]
    fn what_gradients_save_follows_the_precision() {
        let saved = |text: &str| {
            let options: TrainOptions = toml::from_str(text).unwrap();
            TrainConfig::resolve(&options).unwrap().memory.save_as
        };
        assert_eq!(saved("precision = \"bf16\""), Some(DType::Bf16));
        assert_eq!(saved("precision = \"bf16\"\nsave-as = \"f32\""), None);
        assert_eq!(saved(""), None);
    }

    #[test]
    fn presets_are_whole_configurations() {
        for name in preset_names() {
            let named = TrainOptions { preset: Some(name.into()), ..TrainOptions::default() };
            let config = TrainConfig::resolve(&named.over(&named.from_preset().unwrap())).unwrap();
            config.check_sizes(50_000).unwrap_or_else(|e| panic!("{name}: {e:#}"));
            assert!(name.ends_with(config.model.kind.name()), "{name}");
        }
    }

    #[test]
    fn values_out_of_range_name_their_flag() {
        let options = TrainOptions { learning_rate: Some(-1.0), ..TrainOptions::default() };
        let error = TrainConfig::resolve(&options).unwrap_err().to_string();
        assert!(error.contains("--learning-rate"), "{error}");
    }
}
