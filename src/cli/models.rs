//! The report's models by name, as options and run folders describe them.

use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde::{Deserialize, Serialize};

use crate::engine::shape::Precision;
use crate::error::valid;
use crate::model::encoder::ConvEncoder;
use crate::model::{GRID_SIDE, Grow, Vae, report};

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

/// A model's sizes and precision. Models of equal sizes have parameters of equal names and shapes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// The decoder.
    pub kind: Kind,
    /// Latent size Z.
    pub latent: usize,
    /// Number of doublings. The first grid of the doubling model is 32 / 2^K cells wide.
    pub doublings: usize,
    /// NCA steps after each doubling (doubling), or in evaluation (non-doubling).
    pub nca_steps: usize,
    /// Probability that a cell is updated in a step, drawn for every cell and step. 1 in the report.
    pub update_prob: f64,
    /// Side, in cells, of the central square of the non-doubling model's grid that starts as the latent. Cells outside it
    /// start as zeros. The whole grid in the report.
    #[serde(default = "whole_grid")]
    pub start_side: usize,
    /// Channels of the encoder's first convolution. Each further one doubles them. 32 in the report.
    #[serde(default = "report_width")]
    pub encoder_width: usize,
    /// Element type of the operands of matmuls and convolutions.
    #[serde(default)]
    pub precision: Precision,
}

/// The report's [`Model::start_side`].
fn whole_grid() -> usize {
    GRID_SIDE
}

/// The report's [`Model::encoder_width`].
fn report_width() -> usize {
    ConvEncoder::default().width
}

/// Doublings from one cell to a grid of [`GRID_SIDE`].
const MOST_DOUBLINGS: usize = GRID_SIDE.trailing_zeros() as usize;

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
            doublings: MOST_DOUBLINGS,
            nca_steps: kind.default_nca_steps(),
            update_prob: 1.0,
            start_side: whole_grid(),
            encoder_width: report_width(),
            precision: Precision::F32,
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
        let report = Model::new(self.kind, Some(self.latent))?;
        valid!(
            (1..=4096).contains(&self.encoder_width),
            "encoder_width",
            "{}: it must be from 1 to 4096",
            self.encoder_width
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
        Vae { precision: self.precision, encoder, ..vae }
    }

    /// Returns the model with the growth options of this configuration.
    fn grown(&self, vae: Vae) -> Vae {
        let Some(grow) = vae.decoder.automaton() else { return vae };
        let grow = Grow { start_side: self.start_side, update_prob: self.update_prob, ..grow.clone() };
        Vae { decoder: Arc::new(grow), ..vae }
    }

    /// Returns the side, in cells, of the grid that the automaton starts on; the image's side for the baseline.
    pub fn seed_side(&self) -> usize {
        self.vae().decoder.automaton().map_or(GRID_SIDE, Grow::first_side)
    }
}
