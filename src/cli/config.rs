//! The configuration of a training run, with the report's values as defaults.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use super::image_options::{ImageOptions, cache_beside};
use super::models::{Kind, Likelihood, Model};
use super::optimiser::{ClipOrder, ClipScope, Optimiser};
use super::options::Start;
pub use super::options::{TrainOptions, preset_names};
use crate::data::identity::DataCrc;
use crate::data::{ImageShape, Reading, Values};
use crate::engine::ir::{Function, RepeatOptions};
use crate::engine::runtime::Device;
use crate::error::{Error, Tag, valid};
use crate::files;
use crate::model::elbo::Loss;
use crate::model::pool::PoolSpec;
use crate::model::{Elbo, Pooled};
use crate::nn::optimiser::FallShape;
use crate::train::{RunOptions, Sizes, Task, TrainProgram};

/// The resolved options of a run, as stored in `config.json` in its folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainConfig {
    /// The model and its sizes.
    pub model: Model,
    /// The data set: a name or a path. A run's configuration has an absolute path, or the name of the embedded digits.
    pub data: String,
    /// How the images are read.
    #[serde(default, skip_serializing_if = "ImageOptions::is_default")]
    pub images: ImageOptions,
    /// Checksums of the run's images, once they are known. Older runs did not record them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_crc: Option<DataCrc>,
    /// Number of the last training images that are for validation, not for training.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub valid: usize,
    /// The weights that the run began with: an absolute path, or a name of weights that come with the program. `None`: initial values
    /// that are drawn with `seed_model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Checksum of these weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_crc: Option<String>,
    /// Gradient steps in total.
    pub steps: usize,
    /// Images per gradient step, over all replicas.
    pub batch_size: usize,
    /// Number of replicas, one device each.
    pub replicas: usize,
    /// Number of gradient steps that share one order of images. A device call runs at most this number of steps.
    pub chunk: usize,
    /// The bound that is maximised.
    pub loss: Loss,
    /// Which values of the automaton's loop are saved for the backward pass.
    pub memory: RepeatOptions,
    /// Share of each batch whose grids are damaged.
    pub damage: f64,
    /// The pool of grown states, if the run has one.
    pub pool: Option<PoolSpec>,
    /// The optimiser's settings.
    pub optimiser: Optimiser,
    /// Seed of the initial parameters.
    pub seed_model: u64,
    /// Seed of the order of images and of the latents' noise.
    pub seed_data: u64,
    /// Seed of the latents in test IWELBOs.
    pub seed_test: u64,
    /// Seed of the latents in pictures.
    pub seed_logging: u64,
    /// Steps between test IWELBOs and pictures. `None` means 1000 if there are images to evaluate, else never.
    pub eval_every: Option<usize>,
    /// Latent samples per image in a test IWELBO.
    pub eval_samples: usize,
    /// Test images in a test IWELBO, evenly spaced.
    pub eval_images: usize,
    /// Steps between checkpoints; 0 for none, not even at the end.
    pub checkpoint_every: usize,
    /// Number of checkpoints to keep besides the best one.
    pub keep: usize,
    /// The device, as `--device` takes it.
    pub device: String,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl TrainConfig {
    /// Returns the report's run of a model.
    pub fn report(kind: Kind) -> TrainConfig {
        let pool = (kind == Kind::NonDoubling).then_some(PoolSpec::REPORT);
        TrainConfig {
            model: Model::report(kind),
            data: "glyphs".into(),
            images: ImageOptions::default(),
            data_crc: None,
            valid: 0,
            from: None,
            from_crc: None,
            steps: 100_000,
            batch_size: if kind == Kind::NonDoubling { 128 } else { 32 },
            replicas: 1,
            chunk: 125,
            loss: Loss::ELBO,
            memory: RepeatOptions::default(),
            // The report damages half of the grids from the pool, which are half of a batch.
            damage: if pool.is_some() { 0.25 } else { 0.0 },
            pool,
            optimiser: Optimiser::REPORT,
            seed_model: 0,
            seed_data: 1,
            seed_test: 2,
            seed_logging: 3,
            eval_every: None,
            // Enough to follow a run. Costs about as much as ten steps.
            eval_samples: 16,
            eval_images: 512,
            checkpoint_every: 1000,
            keep: 3,
            device: "cpu".into(),
        }
    }

    /// Returns the configuration of a new run: the report's with the given options.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a value is out of its range or belongs to another model.
    pub fn resolve(options: &TrainOptions) -> Result<TrainConfig> {
        let config = TrainConfig::before_images(options)?;
        config.check()?;
        Ok(config)
    }

    /// Returns the configuration of a new run before its images are known: they determine the model's sizes.
    ///
    /// # Errors
    /// As for [`TrainConfig::resolve`], but for the sizes of the model.
    pub fn before_images(options: &TrainOptions) -> Result<TrainConfig> {
        let mut config = TrainConfig::report(options.model.unwrap_or(Kind::Baseline));
        options.apply(&mut config, Start::New)?;
        if options.save_as.is_none() {
            config.memory.save_as = RepeatOptions::for_precision(config.model.precision).save_as;
        }
        TrainOptions::check(&config)?;
        config.device()?;
        Ok(config)
    }

    /// Fits the model to the images of a new run, and checks it. The options' likelihood, doublings and start are kept.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the model does not fit the images.
    pub fn fit(&mut self, options: &TrainOptions, image: ImageShape, values: Values) -> Result<()> {
        let of_data =
            if values == Values::Bits { Likelihood::Bernoulli } else { Likelihood::LogisticMixture };
        let of_report = Model { likelihood: Likelihood::default(), ..self.model };
        self.model = of_report.for_images(image, options.likelihood.unwrap_or(of_data));
        let Model { doublings, start_side, .. } = &mut self.model;
        *doublings = options.doublings.unwrap_or(*doublings);
        *start_side = options.start_side.unwrap_or(*start_side);
        self.check()
    }

    /// Returns how the images of the run in `folder` are read. `values` is what their pixels mean, if it is decided.
    pub fn reading(&self, values: Option<Values>, folder: &Path) -> Reading {
        self.images.reading(values, cache_beside(folder))
    }

    /// Returns the configuration of a resumed run: the saved one with the given options.
    ///
    /// # Errors
    /// The errors of [`TrainConfig::resolve`], and when an option may not change in a resumed run.
    pub fn resumed(saved: &TrainConfig, options: &TrainOptions) -> Result<TrainConfig> {
        let mut config = saved.clone();
        options.apply(&mut config, Start::Resumed)?;
        config.check()?;
        Ok(config)
    }

    /// Reports whether evaluations during training give scores that compare with those of another configuration.
    pub fn scores_as(&self, other: &TrainConfig) -> bool {
        let measure = |c: &TrainConfig| (c.eval_images, c.eval_samples, c.seed_test);
        measure(self) == measure(other)
    }

    fn check(&self) -> Result<()> {
        TrainOptions::check(self)?;
        self.model.check()?;
        valid!(
            self.optimiser.clip_scope == ClipScope::All || self.optimiser.clip_order == ClipOrder::Before,
            "clip_scope",
            "each clips gradients: it cannot be combined with --clip-order after"
        );
        valid!(
            self.optimiser.decay == FallShape::Linear || self.optimiser.end_factor != 1.0,
            "decay",
            "is of a learning rate that falls: give --end-factor, its share at the end, such as 0"
        );
        self.device()?;
        Ok(())
    }

    /// Parses the device's name.
    ///
    /// # Errors
    /// [`Error::Usage`] when the name is unknown.
    pub fn device(&self) -> Result<Device> {
        self.device.parse().context("--device").tag(Error::Usage)
    }

    /// Builds the task that the run trains.
    pub fn task(&self) -> Box<dyn Task> {
        let (model, loss, memory, damage) = (self.model.vae(), self.loss, self.memory, self.damage);
        let elbo = Elbo { model, loss, memory, damage };
        match self.pool {
            Some(pool) => Box::new(Pooled { elbo, pool }),
            None => Box::new(elbo),
        }
    }

    /// Builds the train program for a training set of `images` images.
    ///
    /// # Errors
    /// When the sizes are inconsistent.
    pub fn train_function(&self, images: usize) -> Result<Function> {
        self.with_program(images, |program| program.function())
    }

    /// Checks that the sizes are consistent and fit a training set of `images` images.
    ///
    /// # Errors
    /// When they do not fit. The message names the field.
    pub fn check_sizes(&self, images: usize) -> Result<()> {
        self.with_program(images, |program| program.check())
    }

    fn with_program<R>(&self, images: usize, f: impl FnOnce(&TrainProgram<'_>) -> Result<R>) -> Result<R> {
        let sizes =
            Sizes { replicas: self.replicas, batch: self.batch_size, chunk: self.chunk, examples: images };
        f(&TrainProgram { task: self.task().as_ref(), optimiser: &self.optimiser.chain(self.steps), sizes })
    }

    /// Returns the run's length and its schedule of evaluations and checkpoints. `eval_every` applies if the configuration has
    /// none.
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
    /// [`Error::Data`] when the folder contains none. The message names the file.
    pub fn from_run(run: &Path) -> Result<TrainConfig> {
        let path = run.join("config.json");
        let at = || format!("{} is not the configuration of a run", path.display());
        let read = || -> Result<TrainConfig> {
            let text = std::fs::read(&path).with_context(|| {
                format!("{} is not a run folder: cannot read {}", run.display(), path.display())
            })?;
            let config: TrainConfig = serde_json::from_slice(&text).with_context(at)?;
            // Somebody may have edited the file and written sizes that no model has. The flags are not to blame.
            config.check().map_err(|error| anyhow!("{}: {error:#}", at()))?;
            Ok(config)
        };
        read().tag(Error::Data)
    }

    /// Writes the configuration to a run's folder, completely or not at all.
    ///
    /// # Errors
    /// When the file cannot be written. The message names it.
    pub fn save(&self, run: &Path) -> Result<()> {
        files::write_bytes(&run.join("config.json"), serde_json::to_string_pretty(self)? + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::error::describe;
    use crate::cli::image_options::ImageSize;
    use crate::engine::shape::DType;

    #[test]
    fn higher_sources_override_lower_ones() {
        let flags = TrainOptions { steps: Some(5), ..TrainOptions::default() };
        let file: TrainOptions =
            toml::from_str("steps = 7\nbatch-size = 64\nclip-order = \"after\"").unwrap();
        let merged = TrainConfig::resolve(&flags.over(&file)).unwrap();
        assert_eq!((merged.steps, merged.batch_size), (5, 64));
        assert_eq!(merged.optimiser.clip_order, ClipOrder::After);
    }

    #[test]
    fn merging_keeps_every_value() {
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
    fn numbers_that_are_not_finite_are_refused_but_an_infinite_limit_is_allowed() {
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
        // These numbers are 0 in f32.
        for flag in ["learning-rate", "clip-norm"] {
            let error = describe(&resolved(&format!("{flag} = 1e-60")).unwrap_err());
            assert!(error.contains(&format!("--{flag} is ")), "{error}");
        }
        let config = resolved("clip-norm = inf").unwrap();
        assert_eq!(config.optimiser.clip_norm, f64::INFINITY);
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains("\"clip_norm\":\"inf\""), "{text}");
        let read = |text: &str| serde_json::from_str::<TrainConfig>(text);
        assert_eq!(read(&text).unwrap(), config);
        // Older runs store a number.
        assert_eq!(read(&text.replace("\"inf\"", "10.0")).unwrap().optimiser.clip_norm, 10.0);
        assert_eq!(read(&text.replace("\"inf\"", "10")).unwrap().optimiser.clip_norm, 10.0);
        for wrong in ["\"ten\"", "null"] {
            assert!(read(&text.replace("\"inf\"", wrong)).is_err(), "{wrong}");
        }
        assert_eq!(TrainConfig::resumed(&config, &TrainOptions::default()).unwrap(), config);
    }

    #[test]
    fn a_changed_file_with_sizes_that_no_model_has_is_refused() {
        let run = tempfile::tempdir().unwrap();
        let options = TrainOptions { model: Some(Kind::Doubling), ..TrainOptions::default() };
        let config = TrainConfig::resolve(&options).unwrap();
        config.save(run.path()).unwrap();
        assert_eq!(TrainConfig::from_run(run.path()).unwrap(), config);
        for (field, value) in [("latent", "18446744073709551615"), ("doublings", "64"), ("batch_size", "0")] {
            let text = serde_json::to_string(&config).unwrap();
            let (before, after) = text.split_once(&format!("\"{field}\":")).unwrap();
            let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
            std::fs::write(run.path().join("config.json"), format!("{before}\"{field}\":{value}{after}"))
                .unwrap();
            let error = format!("{:#}", TrainConfig::from_run(run.path()).unwrap_err());
            assert!(error.contains("not the configuration of a run"), "{field}: {error}");
        }
    }

    #[test]
    fn the_error_for_an_unknown_key_lists_the_known_keys() {
        let error = toml::from_str::<TrainOptions>("stepz = 7").unwrap_err().to_string();
        assert!(error.contains("stepz") && error.contains("`steps`"), "{error}");
    }

    #[test]
    fn a_resumed_run_may_change_its_length_but_not_its_results() {
        let saved = TrainConfig::resolve(&TrainOptions::default()).unwrap();
        let longer = TrainOptions { steps: Some(7), ..TrainOptions::default() };
        assert_eq!(TrainConfig::resumed(&saved, &longer).unwrap(), TrainConfig { steps: 7, ..saved.clone() });
        for (flag, value) in [
            ("model", "\"doubling\""),
            ("batch-size", "64"),
            ("precision", "\"bf16\""),
            ("end-factor", "0.2"),
            ("seed-data", "7"),
        ] {
            let other: TrainOptions = toml::from_str(&format!("{flag} = {value}")).unwrap();
            let error = describe(&TrainConfig::resumed(&saved, &other).unwrap_err());
            assert!(error.starts_with(&format!("--{flag} differs")), "{error}");
        }
        let options: TrainOptions = toml::from_str("model = \"nondoubling\"").unwrap();
        let saved = TrainConfig::resolve(&options).unwrap();
        // Global gives the same results as exchange.
        for (shuffle, may) in [("global", true), ("local", false)] {
            let other: TrainOptions = toml::from_str(&format!("pool-shuffle = {shuffle:?}")).unwrap();
            assert_eq!(TrainConfig::resumed(&saved, &other).is_ok(), may, "{shuffle}");
        }
    }

    #[test]
    fn the_decay_of_the_learning_rate_is_read_from_older_runs() {
        let falling = TrainOptions { end_factor: Some(0.1), ..TrainOptions::default() };
        let text = serde_json::to_string(&TrainConfig::resolve(&falling).unwrap()).unwrap();
        let (new, old) = ("\"fall\":{\"end_factor\":0.1}", "\"fall\":{\"end_factor\":0.1,\"steps\":100000}");
        assert!(text.contains(new), "{text}");
        for text in [text.clone(), text.replace(new, old)] {
            assert_eq!(serde_json::from_str::<TrainConfig>(&text).unwrap().optimiser.end_factor, 0.1);
        }
    }

    #[test]
    fn an_option_of_another_model_is_refused_and_the_help_shows_the_defaults() {
        for (option, kinds) in [
            ("pool-size = 1024", "nondoubling"),
            ("doublings = 5", "doubling"),
            ("nca-steps = 8", "doubling or nondoubling"),
            ("cell-optimiser = \"adam\"", "doubling or nondoubling"),
        ] {
            let error = TrainConfig::resolve(&toml::from_str(option).unwrap()).unwrap_err();
            let (flag, _) = option.split_once(' ').unwrap();
            let expected = format!("--{flag} is an option of the {kinds} model, not of the baseline");
            assert_eq!(describe(&error), expected);
        }
        let arguments = TrainOptions::arguments();
        let help = |name: &str| {
            let found = arguments.iter().find(|arg| arg.get_id() == name);
            found.and_then(|arg| arg.get_help()).unwrap().to_string()
        };
        assert!(help("batch_size").ends_with("[default: 32; 128 for nondoubling]"), "{}", help("batch_size"));
        assert!(help("nca_steps").ends_with("[default: 8; 36 for nondoubling]"), "{}", help("nca_steps"));
        assert!(help("learning_rate").ends_with("[default: 0.0001]"), "{}", help("learning_rate"));
        assert!(!help("preset").contains("default"), "{}", help("preset"));
    }

    #[test]
    fn gradients_save_in_the_precision() {
        let saved = |text: &str| {
            let options: TrainOptions = toml::from_str(text).unwrap();
            TrainConfig::resolve(&options).unwrap().memory.save_as
        };
        assert_eq!(saved("precision = \"bf16\""), Some(DType::Bf16));
        assert_eq!(saved("precision = \"bf16\"\nsave-as = \"f32\""), None);
        assert_eq!(saved(""), None);
    }

    #[test]
    fn presets_are_complete_configurations() {
        for name in preset_names() {
            let named = TrainOptions { preset: Some(name.into()), ..TrainOptions::default() };
            let options = named.over(&named.from_preset().unwrap());
            let mut config = TrainConfig::before_images(&options).unwrap();
            let (channels, of_mnist) = match name {
                "emoji" | "demo-emoji" => (4, false),
                "faces" => (3, false),
                _ => (1, true),
            };
            let ImageSize([height, width]) = options.image_size.unwrap_or(ImageSize([28, 28]));
            let values = if of_mnist { config.model.likelihood.values() } else { Values::Levels };
            config.fit(&options, ImageShape { height, width, channels }, values).unwrap();
            config.check_sizes(50_000).unwrap_or_else(|e| panic!("{name}: {e:#}"));
            if name.starts_with("report") {
                assert!(name.ends_with(config.model.kind.name()), "{name}");
                assert_eq!(config, TrainConfig::resolve(&options).unwrap(), "{name}");
            }
        }
    }

    #[test]
    fn values_out_of_range_name_their_flag() {
        let options = TrainOptions { learning_rate: Some(-1.0), ..TrainOptions::default() };
        let error = describe(&TrainConfig::resolve(&options).unwrap_err());
        assert_eq!(error, "--learning-rate is -1: it must be a positive number");
    }
}
