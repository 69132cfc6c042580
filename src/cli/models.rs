//! The report's models by name, as options and run folders describe them.

use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde::{Deserialize, Serialize};

use crate::data::{ImageShape, Values};
use crate::engine::shape::Precision;
use crate::error::valid;
use crate::model::encoder::ConvEncoder;
use crate::model::{self, baseline::ConvDecoder};
use crate::model::{Bernoulli, DynamicBernoulli, Frame, Grow, LogisticMixture, Vae, report};

/// A model of the report, named after its decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Transposed convolutions without an automaton.
    Baseline,
    /// An automaton on a grid that doubles several times, with steps after each doubling.
    Doubling,
    /// An automaton on a grid that always has the image's size.
    NonDoubling,
}

impl Kind {
    /// All kinds, in the report's order.
    pub const ALL: [Kind; 3] = [Kind::Baseline, Kind::Doubling, Kind::NonDoubling];

    /// Returns the name in options and files.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Baseline => "baseline",
            Kind::Doubling => "doubling",
            Kind::NonDoubling => "nondoubling",
        }
    }

    /// Returns the latent size in the report.
    pub fn default_latent(self) -> usize {
        match self {
            Kind::Baseline | Kind::Doubling => 256,
            Kind::NonDoubling => 128,
        }
    }

    /// Returns the report's number of NCA steps in evaluation: after each doubling, or in total; 0 for the baseline.
    pub fn default_nca_steps(self) -> usize {
        match self {
            Kind::Baseline => 0,
            Kind::Doubling => 8,
            Kind::NonDoubling => 36,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl ValueEnum for Kind {
    fn value_variants<'a>() -> &'a [Kind] {
        &Kind::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

/// The distribution of pixels, given a decoder's outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Likelihood {
    /// Bits; grey levels are binarized once
    #[default]
    Bernoulli,
    /// Bits; grey levels are binarized anew each time that training sees them, and once for evaluation
    DynamicBernoulli,
    /// Levels from 0 to 255, with a discretized logistic distribution
    Logistic,
    /// Levels from 0 to 255, with a mixture of discretized logistic distributions
    LogisticMixture,
}

impl Likelihood {
    /// Returns the name in options and files.
    pub fn name(self) -> &'static str {
        match self {
            Likelihood::Bernoulli => "bernoulli",
            Likelihood::DynamicBernoulli => "dynamic-bernoulli",
            Likelihood::Logistic => "logistic",
            Likelihood::LogisticMixture => "logistic-mixture",
        }
    }

    /// Returns the default for images of a size: bits for those of MNIST's size, a mixture for others.
    pub fn of_images(image: ImageShape) -> Likelihood {
        if image == ImageShape::MNIST { Likelihood::Bernoulli } else { Likelihood::LogisticMixture }
    }

    /// Reports whether the pixels are bits.
    pub fn of_bits(self) -> bool {
        matches!(self, Likelihood::Bernoulli | Likelihood::DynamicBernoulli)
    }

    /// Returns what the pixels of a data set for training mean.
    pub fn values(self) -> Values {
        match self {
            Likelihood::Bernoulli => Values::Bits,
            _ => Values::Levels,
        }
    }
}

/// Logistic distributions of a mixture, unless an option says otherwise.
pub const COMPONENTS: usize = 5;

/// A model's sizes and precision. Models of equal sizes have parameters of equal names and shapes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// The decoder.
    pub kind: Kind,
    /// Latent size Z.
    pub latent: usize,
    /// Number of doublings. The doubling model's first grid has 1 / 2^K of the last one's rows and columns.
    pub doublings: usize,
    /// NCA steps after each doubling (doubling), or in evaluation (non-doubling).
    pub nca_steps: usize,
    /// Probability that a cell is updated in a step, drawn for every cell and step. 1 in the report.
    pub update_prob: f64,
    /// Side, in cells, of the central square of the non-doubling model's grid that starts as the latent. Cells outside it
    /// start as zeros. The whole grid in the report.
    #[serde(default = "report_side")]
    pub start_side: usize,
    /// Channels of the encoder's first convolution. Each further one doubles them. 32 in the report.
    #[serde(default = "report_width")]
    pub encoder_width: usize,
    /// Element type of the operands of matmuls and convolutions.
    #[serde(default)]
    pub precision: Precision,
    /// The images' size. 28 x 28 grey in the report.
    #[serde(default = "report_image", skip_serializing_if = "is_report_image")]
    pub image: ImageShape,
    /// The distribution of pixels. Bernoulli in the report.
    #[serde(default, skip_serializing_if = "is_default")]
    pub likelihood: Likelihood,
    /// Logistic distributions of a mixture.
    #[serde(default = "components", skip_serializing_if = "is_components")]
    pub components: usize,
}

/// The report's [`Model::start_side`].
fn report_side() -> usize {
    Frame::REPORT.side()
}

/// The report's [`Model::image`].
fn report_image() -> ImageShape {
    ImageShape::MNIST
}

fn is_report_image(image: &ImageShape) -> bool {
    *image == report_image()
}

fn is_default(likelihood: &Likelihood) -> bool {
    *likelihood == Likelihood::default()
}

fn components() -> usize {
    COMPONENTS
}

fn is_components(components: &usize) -> bool {
    *components == COMPONENTS
}

/// The report's [`Model::encoder_width`].
fn report_width() -> usize {
    ConvEncoder::default().width
}

/// Returns the doublings from one cell to a grid that is at least this large.
fn doublings_to(side: usize) -> usize {
    side.next_power_of_two().trailing_zeros() as usize
}

/// The report's [`Model::doublings`].
const REPORT_DOUBLINGS: usize = 5;

impl Model {
    /// Returns the report's model of a kind, with the given latent size if any.
    ///
    /// # Errors
    /// When the latent size is out of range.
    pub fn new(kind: Kind, latent: Option<usize>) -> Result<Model> {
        let report = Model::report(kind);
        let latent = latent.unwrap_or(report.latent);
        valid!((1..=65_536).contains(&latent), "latent", "{latent}: it must be from 1 to 65536");
        Ok(Model { latent, ..report })
    }

    /// Returns the report's model of a kind.
    pub fn report(kind: Kind) -> Model {
        Model {
            kind,
            latent: kind.default_latent(),
            doublings: REPORT_DOUBLINGS,
            nca_steps: kind.default_nca_steps(),
            update_prob: 1.0,
            start_side: report_side(),
            encoder_width: report_width(),
            precision: Precision::F32,
            image: report_image(),
            likelihood: Likelihood::default(),
            components: COMPONENTS,
        }
    }

    /// Returns the model for images of another size and likelihood. Where doublings and start have the defaults for the old size,
    /// they get those for the new one.
    pub fn for_images(&self, image: ImageShape, likelihood: Likelihood) -> Model {
        let (old, mut new) = (self, Model { image, likelihood, ..*self });
        if old.doublings == old.default_doublings() {
            new.doublings = new.default_doublings();
        }
        if old.kind == Kind::NonDoubling && old.start_side == old.frame().side() {
            new.start_side = new.frame().side();
        }
        new
    }

    /// Returns the doublings from one or a few cells.
    fn default_doublings(&self) -> usize {
        REPORT_DOUBLINGS.min(doublings_to(self.image.height.min(self.image.width)))
    }

    /// Returns the sizes of the images and of the grid.
    pub fn frame(&self) -> Frame {
        let ImageShape { height, width, channels } = self.image;
        if (self.image, self.likelihood) == (report_image(), Likelihood::Bernoulli) {
            return Frame::REPORT;
        }
        let frame = Frame::new(height, width, channels);
        match self.kind {
            Kind::Baseline => ConvDecoder::fitted(frame),
            // More doublings than `check` allows would make a number that does not exist.
            Kind::Doubling => frame.in_multiples_of(1 << self.doublings.min(doublings_to(height.max(width)))),
            Kind::NonDoubling => frame,
        }
    }

    /// Reports whether the model has an automaton.
    pub fn grows(&self) -> bool {
        self.kind != Kind::Baseline
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid) when a size is out of range, or does not apply to this kind of model.
    pub fn check(&self) -> Result<()> {
        let report = Model::new(self.kind, Some(self.latent))?.for_images(self.image, self.likelihood);
        Frame::new(self.image.height, self.image.width, self.image.channels).check()?;
        let bits = self.likelihood.of_bits();
        valid!(
            !bits || self.image.channels == 1,
            "likelihood",
            "is {}: images with colour have levels; choose logistic or logistic-mixture",
            self.likelihood.name()
        );
        if self.likelihood != Likelihood::LogisticMixture {
            valid!(
                self.components == COMPONENTS,
                "components",
                "is an option of the likelihood logistic-mixture, not of {}",
                self.likelihood.name()
            );
        }
        let (side, most) =
            (self.image.height.max(self.image.width), doublings_to(self.image.height.max(self.image.width)));
        valid!(
            self.doublings <= most,
            "doublings",
            "{}: at most {most}, which turn one cell into a grid for images of {side} pixels",
            self.doublings
        );
        valid!(
            (1..=4096).contains(&self.encoder_width),
            "encoder_width",
            "{}: it must be from 1 to 4096",
            self.encoder_width
        );
        // The other models have the report's value, which has no effect.
        let whole = if self.kind == Kind::NonDoubling { self.frame().side() } else { report_side() };
        valid!(
            (1..=whole).contains(&self.start_side),
            "start_side",
            "{}: it must be from 1 to {whole}, the side of the grid",
            self.start_side
        );
        let only = |field: &'static str, other: bool, kinds: &str| -> Result<()> {
            valid!(!other, field, "is an option of the {kinds} model, not of the {}", self.kind);
            Ok(())
        };
        if self.kind != Kind::Doubling {
            only("doublings", self.doublings != report.doublings, "doubling")?;
        }
        if self.kind != Kind::NonDoubling {
            only("start_side", self.start_side != report.start_side, "nondoubling")?;
        }
        if !self.grows() {
            only("nca_steps", self.nca_steps != report.nca_steps, "doubling or nondoubling")?;
            only("update_prob", self.update_prob != report.update_prob, "doubling or nondoubling")?;
        }
        // Sizes that do not apply to the kind have the report's values, which are in range.
        self.vae().check()
    }

    /// Builds the model.
    pub fn vae(&self) -> Vae {
        let vae = match self.kind {
            Kind::Baseline => report::baseline(self.latent),
            Kind::Doubling => self.grown(report::doubling(self.latent, self.doublings, self.nca_steps)),
            Kind::NonDoubling => self.grown(report::nondoubling(self.latent, self.nca_steps)),
        };
        let encoder = Arc::new(ConvEncoder { width: self.encoder_width });
        let channels = self.image.channels;
        let likelihood: Arc<dyn model::Likelihood> = match self.likelihood {
            Likelihood::Bernoulli => Arc::new(Bernoulli),
            Likelihood::DynamicBernoulli => Arc::new(DynamicBernoulli),
            Likelihood::Logistic => Arc::new(LogisticMixture { components: 1, channels }),
            Likelihood::LogisticMixture => {
                Arc::new(LogisticMixture { components: self.components, channels })
            }
        };
        Vae { precision: self.precision, frame: self.frame(), encoder, likelihood, ..vae }
    }

    /// Returns the model with the growth options of this configuration.
    fn grown(&self, vae: Vae) -> Vae {
        let Some(grow) = vae.decoder.automaton() else { return vae };
        let in_middle = self.kind == Kind::NonDoubling && self.start_side < self.frame().side();
        let start_side = in_middle.then_some(self.start_side);
        let grow = Grow { start_side, update_prob: self.update_prob, ..grow.clone() };
        Vae { decoder: Arc::new(grow), ..vae }
    }

    /// Returns the rows and columns of the grid that the automaton starts on; those of the last one for the baseline.
    pub fn first_sides(&self) -> [usize; 2] {
        let frame = self.frame();
        self.vae().decoder.automaton().map_or(frame.grid, |grow| grow.first_sides(&frame))
    }
}
