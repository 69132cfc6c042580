//! The programs of a model at given sizes, which `vnca export` writes and `vnca compile` compiles.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{ArgMatches, Command, FromArgMatches};

use super::image_shape;
use crate::cli::config::{TrainConfig, TrainOptions, preset_names};
use crate::cli::models::{Kind, Likelihood};
use crate::engine::ir::{Cost, Function};
use crate::engine::runtime::pjrt::Trips;
use crate::model::pool::PoolSpec;
use crate::model::{Vae, pool};
use crate::study::pictures;
use crate::study::{eval, gallery};

/// The options that determine programs. Defaults are the report's.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Sizes {
    /// Model; may be given several times [default: that of --config or --preset, or all that train]
    #[arg(long)]
    pub model: Vec<Kind>,
    /// A TOML file with any other options of `vnca train`; the flags here override it
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// A preset of `vnca train` with such options
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(preset_names()))]
    pub preset: Option<String>,
    #[command(flatten)]
    options: ProgramOptions,
    /// Channels of the images: 1, 3 or 4
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub image_channels: usize,
    /// Only training, without evaluation
    #[arg(long)]
    pub train_only: bool,
    /// Images of the training set
    #[arg(long, default_value_t = 60_000, value_name = "N")]
    pub images: usize,
    /// Latent samples per image in evaluation; may be given several times
    #[arg(long, default_values_t = [128], value_name = "K")]
    pub samples: Vec<usize>,
    /// Images per evaluation call, over all replicas
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub eval_batch_size: usize,
}

/// The options of training that have a flag here. Ignores the environment variables of training.
#[derive(Clone, Debug)]
struct ProgramOptions(TrainOptions);

impl ProgramOptions {
    const NAMES: [&str; 10] = [
        "replicas",
        "batch_size",
        "latent",
        "precision",
        "remat",
        "save_as",
        "chunk",
        "image_size",
        "likelihood",
        "components",
    ];
}

impl FromArgMatches for ProgramOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<ProgramOptions, clap::Error> {
        TrainOptions::from_arg_matches(matches).map(ProgramOptions)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl clap::Args for ProgramOptions {
    fn augment_args(command: Command) -> Command {
        let has_flag = |arg: &clap::Arg| Self::NAMES.contains(&arg.get_id().as_str());
        command.args(TrainOptions::arguments().into_iter().filter(has_flag).map(|arg| arg.env(None::<&str>)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// A program's graph with its number of replicas and its work.
pub struct SizedProgram {
    pub function: Function,
    pub replicas: usize,
    /// Floating-point operations in matmuls and convolutions of a gradient step, or of a call without training. A number of
    /// automaton steps that is drawn counts with its mean.
    pub flops: f64,
    /// The gradient steps of a call, and the mean number of trips of the loop whose number of trips a step draws.
    pub trips: Trips,
}

impl SizedProgram {
    /// A program that does not train.
    fn call(function: Function, replicas: usize) -> SizedProgram {
        let flops = Cost::from_function(&function).flops as f64;
        SizedProgram { function, replicas, flops, trips: Trips { steps: 1.0, drawn: 0.0 } }
    }

    /// The program that trains, for a training set of `images` images.
    fn train(config: &TrainConfig, images: usize) -> Result<SizedProgram> {
        let function = config.train_function(images)?;
        let flops = |function: &Function| Cost::from_function(function).flops as f64 / config.chunk as f64;
        let (mut mean, mut drawn) = (flops(&function), 0.0);
        if let Some(pool) = config.pool {
            // A graph's cost counts the largest number of steps. It is linear in the number, which is drawn uniformly.
            let least = PoolSpec { steps_max: pool.steps_min + 1, ..pool };
            let least = TrainConfig { pool: Some(least), ..config.clone() };
            mean = (mean + flops(&least.train_function(images)?)) / 2.0;
            drawn = (pool.steps_max - 1 - pool.steps_min) as f64 / 2.0;
        }
        let trips = Trips { steps: config.chunk as f64, drawn };
        Ok(SizedProgram { function, replicas: config.replicas, flops: mean, trips })
    }
}

impl Sizes {
    /// Returns the programs for training and, unless excluded, evaluation of each model.
    ///
    /// # Errors
    /// When the sizes are inconsistent. The message names the flag.
    pub fn train_and_eval(&self) -> Result<Vec<SizedProgram>> {
        let mut made = Vec::new();
        for kind in self.kinds()? {
            let config = self.config(kind)?;
            made.push(SizedProgram::train(&config, self.images)?);
            for samples in self.samples.iter().filter(|_| !self.train_only) {
                made.push(self.eval(&config, *samples)?);
            }
        }
        Ok(made)
    }

    fn eval(&self, config: &TrainConfig, samples: usize) -> Result<SizedProgram> {
        let (batch, replicas) = (self.eval_batch_size, config.replicas);
        ensure!(
            samples > 0 && batch > 0 && batch.is_multiple_of(replicas),
            "--eval-batch-size {batch} is not divided evenly by --replicas {replicas}, or --samples is 0"
        );
        let function = eval::function(&config.model.vae(), batch / replicas, samples)?;
        Ok(SizedProgram::call(function, replicas))
    }

    /// Returns the programs of [`Sizes::train_and_eval`] and the others that a training run and its pictures need.
    ///
    /// # Errors
    /// The errors of [`Sizes::train_and_eval`].
    pub fn all(&self) -> Result<Vec<SizedProgram>> {
        let mut made = self.train_and_eval()?;
        for kind in self.kinds()? {
            let config = self.config(kind)?;
            let (model, replicas) = (config.model.vae(), config.replicas);
            if let Some(pool) = &config.pool {
                let share = pool.size / replicas;
                let function = pool::initial_pool(&model, share, pool.rows(replicas))?;
                made.push(SizedProgram::call(function, replicas));
            }
            if !self.train_only {
                if !self.samples.contains(&config.eval_samples) {
                    // Training measures its IWELBO with fewer samples than an evaluation.
                    made.push(self.eval(&config, config.eval_samples)?);
                }
                made.push(SizedProgram::call(pictures::function(&model)?, replicas));
                made.push(SizedProgram::call(decode(&model)?, replicas));
            }
        }
        Ok(made)
    }

    /// Returns the options of training, merged from flags, file and preset as in `vnca train`.
    fn options(&self) -> Result<TrainOptions> {
        let own = TrainOptions { preset: self.preset.clone(), ..self.options.0.clone() };
        let own = match &self.config {
            Some(path) => own.over(&TrainOptions::from_toml(path)?),
            None => own,
        };
        Ok(own.over(&own.from_preset()?))
    }

    fn config(&self, kind: Kind) -> Result<TrainConfig> {
        let options = TrainOptions { model: Some(kind), ..self.options()? };
        let image = image_shape(options.image_size, Some(self.image_channels));
        let mut config = TrainConfig::before_images(&options)?;
        config.fit(&options, image, Likelihood::of_images(image).values())?;
        Ok(config)
    }

    /// Returns the requested models, by default those that can be trained with the options.
    fn kinds(&self) -> Result<Vec<Kind>> {
        if !self.model.is_empty() {
            return Ok(self.model.clone());
        }
        if let Some(kind) = self.options()?.model {
            return Ok(vec![kind]);
        }
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| self.config(*kind).is_ok()).collect();
        match kinds.is_empty() {
            true => self.config(Kind::Baseline).map(|config| vec![config.model.kind]),
            false => Ok(kinds),
        }
    }
}

/// Builds the decoder program of `vnca sample`: parameters, latents and keys in, pictures out.
fn decode(model: &Vae) -> Result<Function> {
    model.function("decode", |g, params| gallery::picture_program(model, gallery::MAX_BATCH, g, params))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(steps_min: usize, steps_max: usize) -> SizedProgram {
        let options = TrainOptions {
            model: Some(Kind::NonDoubling),
            latent: Some(8),
            batch_size: Some(8),
            replicas: Some(1),
            chunk: Some(3),
            ..TrainOptions::default()
        };
        let config = TrainConfig::resolve(&options).unwrap();
        let pool = PoolSpec { steps_min, steps_max, ..config.pool.unwrap() };
        SizedProgram::train(&TrainConfig { pool: Some(pool), ..config }, 2_000).unwrap()
    }

    #[test]
    fn a_drawn_number_of_automaton_steps_counts_with_its_mean() {
        // 4 to 8 steps, whose mean is that of exactly 6.
        let (drawn, fixed) = (training(4, 9), training(6, 7));
        assert_eq!((drawn.trips.drawn, fixed.trips.drawn), (2.0, 0.0));
        assert_eq!(drawn.flops, fixed.flops);
        assert!(training(4, 10).flops > drawn.flops);
    }
}
