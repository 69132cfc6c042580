//! What is trained: the sizes of the models, the changes to them that are tried, and the steps that fit into a budget of time.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::cli::models::Kind;
use crate::error::valid;

/// Options of `vnca train` by name, without dashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<String, String>);

impl Options {
    /// Parses options that are written as `name=value`, separated by blanks.
    pub fn new(text: &str) -> Options {
        let pairs = text.split_whitespace().filter_map(|word| word.split_once('='));
        Options(pairs.map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }

    /// Returns these options with others, which replace those of the same name.
    pub fn with(mut self, others: Options) -> Options {
        self.0.extend(others.0);
        self
    }

    /// Sets an option.
    pub fn set(self, name: &str, value: impl ToString) -> Options {
        self.with(Options(BTreeMap::from([(name.to_string(), value.to_string())])))
    }

    /// Returns these options without one.
    pub fn without(mut self, name: &str) -> Options {
        self.0.remove(name);
        self
    }

    /// Returns an option's number, or `default` if the option is not set.
    pub fn number(&self, name: &str, default: usize) -> usize {
        self.0.get(name).and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    /// Returns the words of a command line.
    pub fn words(&self) -> Vec<String> {
        self.0.iter().flat_map(|(name, value)| [format!("--{name}"), value.clone()]).collect()
    }
}

/// The size of the models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// The report's models
    Report,
    /// Models of latent size 32 with few steps of growth, small batches and bf16, for CPUs
    Small,
}

/// How the models are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// As in the report: the presets `report-MODEL`
    #[default]
    Report,
    /// With the changes that helped most: the presets `best-MODEL`
    Best,
}

impl Recipe {
    /// Returns the beginning of its presets' names.
    pub fn name(self) -> &'static str {
        match self {
            Recipe::Report => "report",
            Recipe::Best => "best",
        }
    }
}

impl Size {
    /// Returns the options that differ from the report's.
    pub fn options(self, kind: Kind) -> Options {
        let small = "latent=32 encoder-width=16 precision=bf16";
        let more = match (self, kind) {
            (Size::Report, _) => return Options::default(),
            (Size::Small, Kind::Baseline) => "batch-size=16",
            (Size::Small, Kind::Doubling) => "batch-size=8 nca-steps=4",
            (Size::Small, Kind::NonDoubling) => {
                "batch-size=8 nca-steps=16 nca-steps-min=14 nca-steps-max=18 pool-size=128"
            }
        };
        Options::new(small).with(Options::new(more))
    }
}

/// The learning rate of runs that are much shorter than the report's: its own would not take them far.
const SHORT_RUN_RATE: f64 = 0.0005;

/// Returns the options of a run with this number of steps. A run that is shorter than the report's gets another learning rate. If
/// `falls`, this rises over a twentieth of the steps and then falls to 0.
pub fn schedule(recipe: Recipe, steps: usize, report_steps: usize, falls: bool) -> Options {
    let options = Options::default().set("steps", steps);
    if steps >= report_steps {
        return options;
    }
    match (recipe, falls) {
        (Recipe::Report, false) => options.set("learning-rate", SHORT_RUN_RATE),
        (Recipe::Report, true) => options.set("learning-rate", SHORT_RUN_RATE).with(falling(steps)),
        // Rising and falling is a part of the recipe, and takes a higher rate.
        (Recipe::Best, _) => options.set("learning-rate", 3.0 * SHORT_RUN_RATE).with(falling(steps)),
    }
}

/// Options of a learning rate that rises, and then falls to 0.
fn falling(steps: usize) -> Options {
    Options::default().set("warmup", (steps / 20).clamp(1, 1000)).set("end-factor", 0)
}

/// A change of a run that may improve it.
#[derive(Clone, Debug)]
pub struct Ingredient {
    pub name: String,
    pub about: String,
    pub options: Options,
    /// Options for the last fifth of the steps, which are a run of their own: it begins with the weights of the run before.
    pub at_the_end: Option<Options>,
}

impl Ingredient {
    /// Combines several changes.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid) when two of them set an option to different values.
    pub fn combined(changes: &[&Ingredient]) -> Result<Ingredient> {
        let merged = |part: fn(&Ingredient) -> Option<&Options>| -> Result<Option<Options>> {
            let mut all: Option<Options> = None;
            for (one, options) in changes.iter().filter_map(|one| Some((one, part(one)?))) {
                let before = all.get_or_insert_default();
                let differs =
                    |(name, value): (&String, &String)| before.0.get(name).is_some_and(|v| v != value);
                valid!(
                    !options.0.iter().any(differs),
                    "only",
                    "{} cannot be combined with a change before it: both set the same option",
                    one.name
                );
                before.0.extend(options.0.clone());
            }
            Ok(all)
        };
        let joined = |part: fn(&Ingredient) -> &str, with: &str| {
            changes.iter().map(|one| part(one)).collect::<Vec<_>>().join(with)
        };
        Ok(Ingredient {
            name: joined(|one| &one.name, "+"),
            about: joined(|one| &one.about, "; "),
            options: merged(|one| Some(&one.options))?.unwrap_or_default(),
            at_the_end: merged(|one| one.at_the_end.as_ref())?,
        })
    }
}

/// Divides the steps of a run with a change at the end: those before it, and the others.
pub fn before_the_end(steps: usize) -> [usize; 2] {
    let last = (steps / 5).max(1);
    [(steps - last).max(1), last]
}

/// Name of the run without a change.
pub const BASE: &str = "base";

/// Returns the changes to try alone on a run of `steps` steps with the options `base`, the run without a change first.
pub fn ingredients(kind: Kind, steps: usize, base: &Options) -> Vec<Ingredient> {
    let batch = base.number("batch-size", if kind == Kind::NonDoubling { 128 } else { 32 });
    let growth = base.number("nca-steps", kind.default_nca_steps());
    let mut all: Vec<Ingredient> = Vec::new();
    let mut add = |name: &str, about: &str, options: Options| {
        all.push(Ingredient { name: name.into(), about: about.into(), options, at_the_end: None });
    };
    add(BASE, "constant learning rate", Options::default());
    add("fall", "learning rate rises, then falls to 0", falling(steps));
    let fast = falling(steps).set("learning-rate", 3.0 * SHORT_RUN_RATE);
    add("fall-fast", "learning rate rises to three times its value, then falls to 0", fast.clone());
    add("fall-cosine", "as fall-fast, but falls along half a cosine", fast.clone().set("decay", "cosine"));
    add(
        "rate-double",
        "twice the learning rate",
        Options::default().set("learning-rate", 2.0 * SHORT_RUN_RATE),
    );
    add("rate-half", "half the learning rate", Options::default().set("learning-rate", 0.5 * SHORT_RUN_RATE));
    // The average reaches back over a tenth of the run.
    let decay = 1.0 - 1.0 / (steps as f64 / 10.0).max(2.0);
    add("ema", "average of the weights is evaluated", Options::default().set("ema", decay));
    add("clip-each", "each gradient is clipped to a norm of 1", Options::new("clip-scope=each clip-norm=1"));
    add("clip-1", "the gradient is clipped to a norm of 1", Options::new("clip-norm=1"));
    let batches =
        |batch: usize, steps: usize| Options::default().set("batch-size", batch).set("steps", steps);
    add("batch-double", "twice the batch, half the steps", batches(2 * batch, (steps / 2).max(1)));
    if batch.is_multiple_of(4) {
        add("batch-half", "half the batch, twice the steps", batches(batch / 2, 2 * steps));
    }
    add(
        "kl-warmup",
        "the KL's weight rises over a fifth of the steps",
        Options::default().set("kl-warmup", steps.div_ceil(5)),
    );
    add("free-bits", "0.05 nats of each latent dimension are free", Options::new("free-bits=0.05"));
    if kind != Kind::NonDoubling {
        add("iw-4", "importance-weighted bound of 4 samples", Options::new("train-samples=4"));
        add(
            "iw-4-dreg",
            "importance-weighted bound of 4 samples with DReG",
            Options::new("train-samples=4 iw-gradient=dreg"),
        );
    }
    if kind != Kind::Baseline {
        add("muon", "Muon updates the cell", Options::new("cell-optimiser=muon"));
        add("update-half", "each cell is updated with probability 0.5", Options::new("update-prob=0.5"));
    }
    match kind {
        Kind::Baseline => {}
        Kind::Doubling => add("damage", "a quarter of the grids is damaged", Options::new("damage=0.25")),
        Kind::NonDoubling => {
            add("start-4", "growth starts from 4 x 4 cells", Options::new("start-side=4"));
            let fixed = Options::default().set("nca-steps-min", growth).set("nca-steps-max", growth + 1);
            add("fixed-steps", "the number of steps is not drawn", fixed);
            add("no-damage", "grids are not damaged", Options::new("damage=0"));
            let recovery = Options::default().set("recovery-steps", growth);
            add("recovery", "further steps after damage are scored too", recovery);
        }
    }
    if kind != Kind::NonDoubling {
        all.push(Ingredient {
            name: "iw-4-end".into(),
            about: "the importance-weighted bound of 4 samples with DReG in the last fifth of the steps"
                .into(),
            options: Options::default(),
            at_the_end: Some(Options::new("train-samples=4 iw-gradient=dreg")),
        });
    }
    all
}

/// A span of time on the command line, such as `2h`, `90m` or `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let problem = || format!("expected a span of time such as 2h, 90m or 1h30m, got {text:?}");
        let mut rest = text;
        let mut seconds = 0u64;
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let number: u64 = rest[..digits].parse().map_err(|_| problem())?;
            let unit = match rest.as_bytes().get(digits) {
                Some(b'h') => 3600,
                Some(b'm') => 60,
                Some(b's') => 1,
                _ => return Err(problem()),
            };
            seconds = number.checked_mul(unit).and_then(|n| n.checked_add(seconds)).ok_or_else(problem)?;
            rest = &rest[digits + 1..];
        }
        if seconds == 0 { Err(problem()) } else { Ok(Span(Duration::from_secs(seconds))) }
    }
}

/// The measured speed of a model's training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Seconds from the start of the program to the first step.
    pub startup: f64,
    /// Seconds per gradient step.
    pub step: f64,
    /// Images per gradient step.
    pub batch: usize,
}

/// Share of a run's time for training. The rest is for its evaluation.
const TRAINING_SHARE: f64 = 0.8;
/// The fewest steps that a budget may leave.
const FEWEST_STEPS: usize = 10;
/// A gradient step takes about as long as decoding its batch three times.
const DECODES_PER_STEP: f64 = 3.0;

/// The length of a run and of its evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Length {
    /// Gradient steps.
    pub steps: usize,
    /// Images to evaluate; `None` for all.
    pub images: Option<usize>,
}

impl Speed {
    /// Returns what fits into a run's share of the time, in seconds: at most `most` steps, and an evaluation with `samples` samples
    /// per image.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid) when fewer than ten steps fit.
    pub fn fitting(&self, share: f64, most: usize, samples: usize) -> Result<Length> {
        let steps = ((TRAINING_SHARE * share - self.startup).max(0.0) / self.step) as usize;
        let needed = (self.startup + FEWEST_STEPS as f64 * self.step) / TRAINING_SHARE;
        valid!(
            steps >= FEWEST_STEPS.min(most),
            "budget",
            "leaves {share:.0} s for a run, and one of {FEWEST_STEPS} steps takes {needed:.0} s: allow more time, fewer --seeds, or \
             fewer models"
        );
        let evaluation = (share - TRAINING_SHARE * share).max(0.0);
        let per_image = self.step * samples as f64 / (DECODES_PER_STEP * self.batch as f64);
        Ok(Length { steps: steps.min(most), images: Some(((evaluation / per_image) as usize).max(16)) })
    }
}

/// Returns the run without a change and the changes of these names, where names joined by + are one change; without names, all.
/// Names of other models' changes are left out.
///
/// # Errors
/// [`Error::Invalid`](crate::error::Error::Invalid) for an unknown name, and when changes that are joined contradict each other.
pub fn chosen(names: &[String], known: &[Ingredient]) -> Result<Vec<Ingredient>> {
    if names.is_empty() {
        return Ok(known.to_vec());
    }
    let of_other = |name: &str| {
        Kind::ALL
            .into_iter()
            .flat_map(|kind| ingredients(kind, 100, &Options::default()))
            .any(|one| one.name == name)
    };
    let mut changes: Vec<Ingredient> = known.iter().filter(|one| one.name == BASE).cloned().collect();
    for name in names {
        let parts: Vec<&str> = name.split('+').collect();
        let found: Vec<&Ingredient> =
            parts.iter().filter_map(|part| known.iter().find(|one| one.name == *part)).collect();
        if let Some(unknown) = parts.iter().find(|part| !of_other(part)) {
            let names: Vec<&str> = known.iter().map(|one| one.name.as_str()).collect();
            valid!(false, "only", "{unknown}: the ingredients are {}", names.join(", "));
        }
        if found.len() == parts.len() && name != BASE {
            changes.push(Ingredient::combined(&found)?);
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_of_time_has_units() {
        let seconds = |text: &str| text.parse::<Span>().map(|span| span.0.as_secs());
        assert_eq!(seconds("2h"), Ok(7200));
        assert_eq!((seconds("1h30m"), seconds("90m"), seconds("45s")), (Ok(5400), Ok(5400), Ok(45)));
        for wrong in
            ["", "2", "h", "2d", "-1h", "0s", "1.5h", "99999999999999999999h", "9999999999999999999h"]
        {
            assert!(seconds(wrong).unwrap_err().contains("such as 2h"), "{wrong}");
        }
    }

    #[test]
    fn the_steps_and_the_evaluation_fit_into_the_share() {
        let speed = Speed { startup: 20.0, step: 0.1, batch: 16 };
        let length = speed.fitting(800.0, 100_000, 128).unwrap();
        // 640 s for the start and the steps, 160 s for images of 0.27 s each.
        assert_eq!(length, Length { steps: 6200, images: Some(600) });
        assert_eq!(speed.fitting(1e6, 100_000, 128).unwrap().steps, 100_000);
        let error = speed.fitting(26.0, 100_000, 128).unwrap_err().to_string();
        assert!(error.contains("26 s for a run") && error.contains("takes 26 s"), "{error}");
    }

    #[test]
    fn a_shorter_run_ends_with_a_falling_rate_and_the_reports_run_is_unchanged() {
        let whole = Options::default().set("steps", 100_000);
        assert_eq!(schedule(Recipe::Report, 100_000, 100_000, true), whole);
        let words = schedule(Recipe::Report, 2000, 100_000, true).words().join(" ");
        assert_eq!(words, "--end-factor 0 --learning-rate 0.0005 --steps 2000 --warmup 100");
        let words = schedule(Recipe::Best, 2000, 100_000, false).words().join(" ");
        assert_eq!(words, "--end-factor 0 --learning-rate 0.0015 --steps 2000 --warmup 100");
    }

    #[test]
    fn every_ingredient_changes_options_of_its_model() {
        use crate::cli::config::{TrainConfig, TrainOptions};
        for kind in Kind::ALL {
            for size in [Size::Report, Size::Small] {
                let base = size.options(kind).with(schedule(Recipe::Report, 400, 100_000, false));
                let resolved = |options: &Options| {
                    let text: Vec<String> =
                        options.0.iter().map(|(name, value)| toml_line(name, value)).collect();
                    let given: TrainOptions = toml::from_str(&text.join("\n")).unwrap();
                    let config = TrainConfig::resolve(&TrainOptions { model: Some(kind), ..given }).unwrap();
                    config.check_sizes(60_000).unwrap();
                    config
                };
                let all = ingredients(kind, 400, &base);
                assert_eq!(all[0].name, BASE);
                let plain = resolved(&base);
                for one in &all[1..] {
                    let options = one.options.clone().with(one.at_the_end.clone().unwrap_or_default());
                    assert_ne!(resolved(&base.clone().with(options)), plain, "{kind} {}", one.name);
                }
            }
        }
    }

    #[test]
    fn combined_changes_have_the_options_of_all_and_contradict_each_other_nowhere() {
        let all = ingredients(Kind::Doubling, 400, &Size::Small.options(Kind::Doubling));
        let of = |name: &str| all.iter().find(|one| one.name == name).unwrap();
        let both = Ingredient::combined(&[of("muon"), of("iw-4-end"), of("ema")]).unwrap();
        assert_eq!(both.name, "muon+iw-4-end+ema");
        assert_eq!(both.options, of("muon").options.clone().with(of("ema").options.clone()));
        assert_eq!(both.at_the_end, of("iw-4-end").at_the_end);
        let error = Ingredient::combined(&[of("muon"), of("rate-half"), of("rate-double")]).unwrap_err();
        assert!(error.to_string().contains("rate-double cannot be combined"), "{error}");
        assert_eq!(
            (before_the_end(1000), before_the_end(7), before_the_end(2)),
            ([800, 200], [6, 1], [1, 1])
        );
    }

    fn toml_line(name: &str, value: &str) -> String {
        let is_number = value.parse::<f64>().is_ok();
        if is_number { format!("{name} = {value}") } else { format!("{name} = {value:?}") }
    }
}
