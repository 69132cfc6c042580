//! The options of training, one declaration each.
//!
//! A declaration has the option's name, type and help, its field in [`TrainConfig`], the check of its value, and whether a
//! resumed run may change it. The rest follows from it: the flag (`--batch-size`), the environment variable
//! (`VNCA_BATCH_SIZE`), the TOML key (`batch-size`), and the default, which is the field's value in [`TrainConfig::report`].

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use clap::builder::{PossibleValuesParser, ValueParser};
use clap::{Arg, ArgMatches, Command, FromArgMatches, value_parser};
use serde::{Deserialize, Serialize};

use super::config::TrainConfig;
use super::image_options::ImageSize;
use super::models::{Kind, Likelihood};
use super::optimiser::{CellRule, ClipOrder, ClipScope};
use crate::engine::shape::{DType, Precision};
use crate::error::{Error, Tag, valid};
use crate::model::elbo::{IwGradient, ManySamples};
use crate::model::pool::Shuffle;
use crate::nn::optimiser::FallShape;

/// Options of the presets, as TOML.
const PRESETS: [(&str, &str); 14] = [
    ("report-baseline", include_str!("presets/report-baseline.toml")),
    ("report-doubling", include_str!("presets/report-doubling.toml")),
    ("report-nondoubling", include_str!("presets/report-nondoubling.toml")),
    ("best-baseline", include_str!("presets/best-baseline.toml")),
    ("best-doubling", include_str!("presets/best-doubling.toml")),
    ("best-nondoubling", include_str!("presets/best-nondoubling.toml")),
    ("demo-baseline", include_str!("presets/demo-baseline.toml")),
    ("demo-doubling", include_str!("presets/demo-doubling.toml")),
    ("demo-nondoubling", include_str!("presets/demo-nondoubling.toml")),
    ("demo-emoji", include_str!("presets/demo-emoji.toml")),
    ("emoji", include_str!("presets/emoji.toml")),
    ("faces", include_str!("presets/faces.toml")),
    ("fashion", include_str!("presets/fashion.toml")),
    ("dynamic-mnist", include_str!("presets/dynamic-mnist.toml")),
];

/// Returns the names of all presets.
pub fn preset_names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// Whether a run is new or resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    New,
    Resumed,
}

/// Defines [`TrainOptions`] from declarations: `/// help`, name, type, [`Declaration`].
macro_rules! options {
    ($($(#[doc = $help:literal])+ $name:ident: $type:ty = $declaration:expr;)+) => {
        /// The given options; `None` for those that are not given.
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct TrainOptions {
            $($(#[doc = $help])+ pub $name: Option<$type>,)+
        }

        impl TrainOptions {
            /// Merges two sets of options: each option from `self` if it is set there, else from `lower`.
            pub fn over(&self, lower: &TrainOptions) -> TrainOptions {
                TrainOptions { $($name: self.$name.clone().or_else(|| lower.$name.clone())),+ }
            }

            /// Returns the arguments of the command line.
            pub(super) fn arguments() -> Vec<Arg> {
                vec![$({
                    let declaration: Declaration<$type> = $declaration;
                    declaration.argument(stringify!($name), concat!($($help),+), value_parser!($type))
                }),+]
            }

            /// Reads the options from the arguments of the command line.
            pub(super) fn from_arguments(matches: &ArgMatches) -> TrainOptions {
                TrainOptions {
                    $($name: matches.try_get_one(stringify!($name)).ok().flatten().cloned()),+
                }
            }

            /// Checks each value of a configuration by itself.
            ///
            /// # Errors
            /// [`Error::Invalid`] when a value is out of range.
            pub(super) fn check(config: &TrainConfig) -> Result<()> {
                let mut config = config.clone();
                $({
                    let declaration: Declaration<$type> = $declaration;
                    declaration.check_value(stringify!($name), &mut config)?;
                })+
                Ok(())
            }

            /// Writes the values that are set into a configuration. Does not check them.
            ///
            /// # Errors
            /// [`Error::Invalid`] when a value belongs to another model, or may not change in a resumed run.
            pub(super) fn apply(&self, config: &mut TrainConfig, start: Start) -> Result<()> {
                $(if let Some(value) = &self.$name {
                    let declaration: Declaration<$type> = $declaration;
                    declaration.apply(stringify!($name), value, config, start)?;
                })+
                Ok(())
            }
        }
    };
}

options! {
    /// Named run: the report's, the same with what improves it, a demonstration that learns in minutes, or one of other images. Other
    /// options override it
    preset: String = Declaration::new().parser(PossibleValuesParser::new(preset_names()));
    /// Model: baseline, doubling or nondoubling
    model: Kind = Declaration::new().default("baseline").field(|c| Some(&mut c.model.kind));
    /// Images: a file, a folder with files of the usual names, or `glyphs`, the embedded digits
    data: String = Declaration::new().metavar("PATH").field(|c| Some(&mut c.data)).resumable();
    /// Height and width to which images are resized: H or HxW, 8 to 256 each. Without it all images must have one size
    image_size: ImageSize =
        Declaration::new().metavar("H[xW]").default("the images' own").field(|c| Some(&mut c.images.image_size));
    /// Share of the images for training, the others for testing. The content of an image decides. For data without test images
    split: f64 = Declaration::new()
        .metavar("X")
        .default("none")
        .field(|c| Some(&mut c.images.split))
        .check(|x| if *x > 0.0 && *x < 1.0 { Ok(()) } else { Err("it must be between 0 and 1") });
    /// Skip files that cannot be read, and count them
    skip_bad: bool = Declaration::new().flag().field(|c| Some(&mut c.images.skip_bad));
    /// Exchange rows and columns: EMNIST's files store them so
    transpose: bool = Declaration::new().flag().field(|c| Some(&mut c.images.transpose));
    /// Hold the last N training images out of training and evaluate them during training, instead of test images
    valid: usize = Declaration::new().metavar("N").field(|c| Some(&mut c.valid));
    /// Distribution of pixels
    likelihood: Likelihood = Declaration::new()
        .default("bernoulli for bits and 28x28 grey images of IDX files and tables, logistic-mixture for others")
        .field(|c| Some(&mut c.model.likelihood));
    /// Logistic distributions of a mixture
    components: usize = Declaration::new()
        .metavar("K")
        .field(|c| Some(&mut c.model.components))
        .check(|n| if (1..=100).contains(n) { Ok(()) } else { Err("it must be from 1 to 100") });
    /// Weights to begin with: a run's folder, a file, or a name of weights that come with the program. Its model is the default
    from: String = Declaration::new()
        .metavar("RUN|FILE|NAME")
        .default("initial values drawn with --seed-model")
        .field(|c| Some(&mut c.from));
    /// Run folder
    out: PathBuf = Declaration::new().metavar("DIR").default("the first free one of runs/MODEL-1, runs/MODEL-2, ...");
    /// Gradient steps in total
    steps: usize = Declaration::new().metavar("N").field(|c| Some(&mut c.steps)).check(count).resumable();
    /// Images per gradient step, over all replicas
    batch_size: usize = Declaration::new().metavar("N").field(|c| Some(&mut c.batch_size)).check(count);
    /// Devices that share each batch. On the CPU they are virtual
    replicas: usize =
        Declaration::new().metavar("R").field(|c| Some(&mut c.replicas)).check(count).resumable();
    /// Gradient steps per shuffle of keys and images, and at most in one device call
    chunk: usize = Declaration::new().metavar("N").field(|c| Some(&mut c.chunk)).check(count);
    /// Latent size
    latent: usize = Declaration::new().metavar("Z").field(|c| Some(&mut c.model.latent));
    /// Channels of the encoder's first convolution. Each of the four further ones doubles them
    encoder_width: usize = Declaration::new().metavar("N").field(|c| Some(&mut c.model.encoder_width));
    /// NCA steps: after each doubling, or in evaluation (nondoubling)
    nca_steps: usize =
        Declaration::new().metavar("N").field(|c| when(c.model.grows(), &mut c.model.nca_steps));
    /// Fewest NCA steps in training. The number is drawn for each gradient step (nondoubling)
    nca_steps_min: usize = Declaration::new().metavar("N").field(|c| Some(&mut c.pool.as_mut()?.steps_min));
    /// Upper bound of that draw, itself excluded (nondoubling)
    nca_steps_max: usize = Declaration::new().metavar("N").field(|c| Some(&mut c.pool.as_mut()?.steps_max));
    /// Number of doublings (doubling). The first grid has 1 / 2^K of the last one's rows and columns
    doublings: usize = Declaration::new()
        .metavar("K")
        .default("5, from one cell for 28x28 images; fewer for images under 17 pixels")
        .field(|c| when(c.model.kind == Kind::Doubling, &mut c.model.doublings));
    /// Probability that a cell is updated in an NCA step
    update_prob: f64 =
        Declaration::new().metavar("P").field(|c| when(c.model.grows(), &mut c.model.update_prob));
    /// Side, in cells, of the central square of the grid that starts as the latent. The cells around it start as zeros
    /// (nondoubling)
    start_side: usize = Declaration::new()
        .metavar("N")
        .default("the whole grid")
        .field(|c| when(c.model.kind == Kind::NonDoubling, &mut c.model.start_side));
    /// Entries of the pool, over all replicas (nondoubling)
    pool_size: usize = Declaration::new().metavar("N").field(|c| Some(&mut c.pool.as_mut()?.size));
    /// How the pool's entries are permuted after a gradient step (nondoubling)
    pool_shuffle: Shuffle = Declaration::new()
        .field(|c| Some(&mut c.pool.as_mut()?.shuffle))
        .resumable_if(|old, new| old.is_some_and(|old| old.result() == new.result()));
    /// Share of each batch whose grids are damaged: among those from the pool (nondoubling, up to 0.5), or at a random
    /// doubling (doubling)
    damage: f64 = Declaration::new()
        .metavar("FRACTION")
        .default("0.25 for nondoubling, else 0")
        .field(|c| Some(&mut c.damage));
    /// NCA steps that follow damage of every grown grid, within one gradient step. Their results are scored like the grown ones.
    /// 0: only grids from the pool are damaged (nondoubling)
    recovery_steps: usize = Declaration::new().metavar("N").field(|c| Some(&mut c.pool.as_mut()?.recovery_steps));
    /// Values of the NCA steps that are saved for the gradient: 0 all values, 1 each step's grid, k every k-th step's grid. The
    /// rest is recomputed, which saves memory and costs time
    remat: usize = Declaration::new().metavar("k").field(|c| Some(&mut c.memory.remat)).resumable();
    /// Element type of the saved values: bf16 halves the memory
    save_as: Precision = Declaration::new()
        .default("that of --precision")
        .field(|c| Some(&mut c.memory.save_as))
        .resumable();
    /// Element type of the operands of matmuls and convolutions; parameters, sums, optimiser and loss are always f32. A CPU
    /// without bf16 computes in f32
    precision: Precision = Declaration::new().field(|c| Some(&mut c.model.precision));
    /// Optimiser of the weights of the automaton's cell. The other parameters use Adam
    cell_optimiser: CellRule =
        Declaration::new().field(|c| when(c.model.grows(), &mut c.optimiser.cell));
    /// Learning rate
    learning_rate: f64 = Declaration::new()
        .metavar("X")
        .field(|c| Some(&mut c.optimiser.learning_rate))
        .check(|x| finite(x).and(positive(x)));
    /// Steps over which the learning rate rises linearly to its full value
    warmup: usize = Declaration::new().metavar("N").field(|c| Some(&mut c.optimiser.warmup));
    /// Share of the learning rate at the last of `--steps`, after a decay from the first step on
    end_factor: f64 = Declaration::new()
        .metavar("X")
        .default("1, no decay")
        .field(|c| Some(&mut c.optimiser.end_factor))
        .check(|x| if (0.0..=1.0).contains(x) { Ok(()) } else { Err("it must be from 0 to 1") });
    /// Course of the learning rate's decay to --end-factor
    decay: FallShape = Declaration::new().field(|c| Some(&mut c.optimiser.decay));
    /// Decay per step of the average of the weights that evaluations and all verbs use. Training continues from the weights themselves
    ema: f64 = Declaration::new()
        .metavar("DECAY")
        .default("no average")
        .field(|c| Some(&mut c.optimiser.ema))
        .check(|x| if *x > 0.0 && *x < 1.0 { Ok(()) } else { Err("it must be between 0 and 1") });
    /// Largest norm that is not clipped; inf clips nothing
    clip_norm: f64 =
        Declaration::new().metavar("X").field(|c| Some(&mut c.optimiser.clip_norm)).check(positive);
    /// Clip the gradient before Adam, or the update after it as the report's code does
    clip_order: ClipOrder = Declaration::new().field(|c| Some(&mut c.optimiser.clip_order));
    /// Which norm is clipped: that of all parameters together, or that of each parameter
    clip_scope: ClipScope = Declaration::new().field(|c| Some(&mut c.optimiser.clip_scope));
    /// Latent samples per image in training. With more than one, the importance-weighted bound is maximised
    train_samples: usize =
        Declaration::new().metavar("M").field(|c| Some(&mut c.loss.samples)).check(count);
    /// The objective with more than one sample per image
    many_samples: ManySamples = Declaration::new().field(|c| Some(&mut c.loss.many));
    /// Estimator of the gradient of the importance-weighted bound
    iw_gradient: IwGradient = Declaration::new().field(|c| Some(&mut c.loss.iw_gradient));
    /// KL of a latent dimension in nats, as a mean over a batch, below which training does not lower it
    free_bits: f64 = Declaration::new()
        .metavar("NATS")
        .field(|c| Some(&mut c.loss.free_bits))
        .check(|x| finite(x).and(if *x >= 0.0 { Ok(()) } else { Err("it must not be negative") }));
    /// Steps over which the weight of the KL rises linearly from 0 to its full value
    kl_warmup: usize = Declaration::new()
        .metavar("N")
        .field(|c| Some(&mut c.loss.kl_warmup))
        .check(|n| if *n <= i32::MAX as usize { Ok(()) } else { Err("it is too large") });
    /// Weight of the KL part of the loss
    beta: f64 = Declaration::new()
        .metavar("X")
        .field(|c| Some(&mut c.loss.beta))
        .check(|x| finite(x).and(if *x >= 0.0 { Ok(()) } else { Err("it must not be negative") }));
    /// Seed of the initial parameters
    seed_model: u64 = Declaration::new().metavar("N").field(|c| Some(&mut c.seed_model));
    /// Seed of the order of images and of the latents' noise
    seed_data: u64 = Declaration::new().metavar("N").field(|c| Some(&mut c.seed_data));
    /// Seed of the test IWELBO's latents
    seed_test: u64 = Declaration::new().metavar("N").field(|c| Some(&mut c.seed_test)).resumable();
    /// Seed of the pictures' latents
    seed_logging: u64 = Declaration::new().metavar("N").field(|c| Some(&mut c.seed_logging)).resumable();
    /// Steps between test IWELBOs and pictures; 0: never
    eval_every: usize = Declaration::new()
        .metavar("N")
        .default("1000, or 0 if there are no test images and no --valid")
        .field(|c| Some(&mut c.eval_every))
        .resumable();
    /// Latent samples per image in a test IWELBO
    eval_samples: usize =
        Declaration::new().metavar("K").field(|c| Some(&mut c.eval_samples)).check(count).resumable();
    /// Test images in a test IWELBO, evenly spaced
    eval_images: usize =
        Declaration::new().metavar("N").field(|c| Some(&mut c.eval_images)).check(count).resumable();
    /// Steps between checkpoints; 0: never, not even at the end
    checkpoint_every: usize =
        Declaration::new().metavar("N").field(|c| Some(&mut c.checkpoint_every)).resumable();
    /// Checkpoints to keep besides the best one
    keep: usize = Declaration::new().metavar("N").field(|c| Some(&mut c.keep)).check(count).resumable();
    /// Device: cpu, tpu, cuda or the path of a PJRT plugin, with its options after commas
    device: String = Declaration::new().field(|c| Some(&mut c.device)).resumable();
}

/// Returns the field of an option that only some models have.
fn when<T>(has_option: bool, field: &mut dyn ConfigField<T>) -> Option<&mut dyn ConfigField<T>> {
    has_option.then_some(field)
}

fn count(n: &usize) -> Result<(), &'static str> {
    match *n {
        0 => Err("it must be at least 1"),
        n if n > i32::MAX as usize => Err("it is too large"),
        _ => Ok(()),
    }
}

// Devices compute in f32, where a number may become 0 or infinite.
fn positive(x: &f64) -> Result<(), &'static str> {
    if *x as f32 > 0.0 { Ok(()) } else { Err("it must be a positive number") }
}

fn finite(x: &f64) -> Result<(), &'static str> {
    if (*x as f32).is_finite() { Ok(()) } else { Err("it must be a finite number") }
}

/// The properties of an option besides its name, type and help.
struct Declaration<T: 'static> {
    metavar: Option<&'static str>,
    default: Option<&'static str>,
    parser: Option<ValueParser>,
    flag: bool,
    field: fn(&mut TrainConfig) -> Option<&mut dyn ConfigField<T>>,
    check: fn(&T) -> Result<(), &'static str>,
    resumable: fn(Option<&T>, &T) -> bool,
}

impl<T: Clone + PartialEq + Serialize> Declaration<T> {
    /// Returns an option without a field in the configuration, that accepts any value and is fixed for a run.
    fn new() -> Declaration<T> {
        Declaration {
            metavar: None,
            default: None,
            parser: None,
            flag: false,
            field: |_| None,
            check: |_| Ok(()),
            resumable: |old, new| old == Some(new),
        }
    }

    /// Sets the name of the value in the help.
    fn metavar(self, name: &'static str) -> Self {
        Declaration { metavar: Some(name), ..self }
    }

    /// Sets the text of the default, if the report's values alone do not explain it.
    fn default(self, words: &'static str) -> Self {
        Declaration { default: Some(words), ..self }
    }

    fn parser(self, parser: impl Into<ValueParser>) -> Self {
        Declaration { parser: Some(parser.into()), ..self }
    }

    /// Makes the option one that is true without a value.
    fn flag(self) -> Self {
        Declaration { flag: true, default: Some("no"), metavar: Some("BOOL"), ..self }
    }

    /// Sets the field in the configuration. The function returns `None` if the model has no such option.
    fn field(self, field: fn(&mut TrainConfig) -> Option<&mut dyn ConfigField<T>>) -> Self {
        Declaration { field, ..self }
    }

    /// Sets the check of the value. Its error text follows the value in the message.
    fn check(self, check: fn(&T) -> Result<(), &'static str>) -> Self {
        Declaration { check, ..self }
    }

    /// Allows a resumed run to change the value.
    fn resumable(self) -> Self {
        self.resumable_if(|_, _| true)
    }

    /// Allows a resumed run to change the old value, which may be absent, to the new one if the function returns true for them.
    fn resumable_if(self, resumable: fn(Option<&T>, &T) -> bool) -> Self {
        Declaration { resumable, ..self }
    }

    fn apply(&self, name: &'static str, value: &T, config: &mut TrainConfig, start: Start) -> Result<()> {
        let kind = config.model.kind;
        let Some(field) = (self.field)(config) else {
            let kinds = Kind::ALL.into_iter().filter(|kind| self.report_default(*kind).is_some());
            let kinds: Vec<&str> = kinds.map(Kind::name).collect();
            // An option without a field for any model does not belong to the configuration.
            valid!(
                kinds.is_empty(),
                name,
                "is an option of the {} model, not of the {kind}",
                kinds.join(" or ")
            );
            return Ok(());
        };
        let may_change = || (self.resumable)(field.get().as_ref(), value);
        valid!(
            start == Start::New || may_change(),
            name,
            "differs from the resumed run: omit it, or start another run"
        );
        field.set(value.clone());
        Ok(())
    }

    fn check_value(&self, name: &'static str, config: &mut TrainConfig) -> Result<()> {
        let Some(value) = (self.field)(config).and_then(|field| field.get()) else { return Ok(()) };
        (self.check)(&value).map_err(|problem| {
            let problem = format!("is {}: {problem}", text(&value));
            Error::Invalid { field: name, problem }.into()
        })
    }

    /// Returns the default for a model, if the model has the option.
    fn report_default(&self, kind: Kind) -> Option<T> {
        (self.field)(&mut TrainConfig::report(kind))?.get()
    }

    fn default_text(&self) -> Option<String> {
        if let Some(words) = self.default {
            return Some(words.to_string());
        }
        let mut texts =
            Kind::ALL.into_iter().filter_map(|kind| Some((kind, text(&self.report_default(kind)?))));
        let (_, first) = texts.next()?;
        let others = texts.filter(|(_, other)| *other != first);
        let others: Vec<String> = others.map(|(kind, text)| format!("; {text} for {kind}")).collect();
        Some(first + &others.concat())
    }

    fn argument(&self, name: &'static str, help: &str, parser: impl Into<ValueParser>) -> Arg {
        let help: Vec<&str> = help.split_whitespace().collect();
        let default = self.default_text().map(|text| format!(" [default: {text}]")).unwrap_or_default();
        let arg = Arg::new(name)
            .long(name.replace('_', "-"))
            .env(format!("VNCA_{}", name.to_uppercase()))
            .value_name(self.metavar.map_or(name.to_uppercase(), String::from))
            .value_parser(self.parser.clone().unwrap_or_else(|| parser.into()))
            .allow_negative_numbers(true)
            .help(help.join(" ") + &default);
        match self.flag {
            true => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
            false => arg,
        }
    }
}

/// Formats a value as on the command line.
fn text<T: Serialize>(value: &T) -> String {
    // JSON would not work: it has no infinity and no NaN.
    match toml::Value::try_from(value) {
        Ok(toml::Value::String(text)) => text,
        Ok(toml::Value::Float(number)) => number.to_string(),
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

/// A field that holds the value of an option.
trait ConfigField<T> {
    fn get(&self) -> Option<T>;

    fn set(&mut self, value: T);
}

impl<T: Clone> ConfigField<T> for T {
    fn get(&self) -> Option<T> {
        Some(self.clone())
    }

    fn set(&mut self, value: T) {
        *self = value;
    }
}

impl<T: Clone> ConfigField<T> for Option<T> {
    fn get(&self) -> Option<T> {
        self.clone()
    }

    fn set(&mut self, value: T) {
        *self = Some(value);
    }
}

/// The element type of values saved for gradients; `None` if each value keeps its type.
impl ConfigField<Precision> for Option<DType> {
    fn get(&self) -> Option<Precision> {
        Some(if self.is_some() { Precision::Bf16 } else { Precision::F32 })
    }

    fn set(&mut self, value: Precision) {
        *self = (value == Precision::Bf16).then_some(DType::Bf16);
    }
}

impl FromArgMatches for TrainOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<TrainOptions, clap::Error> {
        Ok(TrainOptions::from_arguments(matches))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = TrainOptions::from_arguments(matches).over(self);
        Ok(())
    }
}

impl clap::Args for TrainOptions {
    fn augment_args(command: Command) -> Command {
        command.args(TrainOptions::arguments())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl TrainOptions {
    /// Reads options from a TOML file.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, or has a key that is not an option. The message names file and line.
    pub fn from_toml(path: &Path) -> Result<TrainOptions> {
        // A tree of TOML takes many times the memory of its text.
        const MOST: u64 = 1 << 20;
        let read = || -> Result<String> {
            let file = std::fs::File::open(path)?;
            let mut text = String::new();
            file.take(MOST + 1).read_to_string(&mut text)?;
            ensure!(text.len() as u64 <= MOST, "it has more than {MOST} bytes");
            Ok(text)
        };
        let options = read().with_context(|| format!("cannot read {}", path.display())).and_then(|text| {
            toml::from_str(&text).with_context(|| format!("{} is not a configuration", path.display()))
        });
        options.tag(Error::Usage)
    }

    /// Returns the options of the named preset, or no options if none is named.
    ///
    /// # Errors
    /// When no preset has the name.
    pub fn from_preset(&self) -> Result<TrainOptions> {
        let Some(name) = &self.preset else { return Ok(TrainOptions::default()) };
        let found = PRESETS.iter().find(|(known, _)| known == name);
        let names = || preset_names().collect::<Vec<_>>().join(", ");
        let found = found.ok_or_else(|| anyhow!("unknown preset {name:?}: the presets are {}", names()));
        let (_, text) = found.tag(Error::Usage)?;
        toml::from_str(text).with_context(|| format!("preset {name}"))
    }
}
