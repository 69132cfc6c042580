//! The models of the report: a convolutional encoder and one of three decoders.

pub mod baseline;
pub mod encoder;
pub mod objective;
pub mod params;
pub mod vnca;

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::ir::{Graph, Sym};
use params::{Leaf, Params};

/// Height and width of the images that models see: 28 padded by 2 zeros on every side.
pub const SIDE: usize = 32;
/// Zeros on every side of a 28 x 28 image.
pub const MARGIN: usize = 2;

/// Which decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Baseline,
    Doubling,
    NonDoubling,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Baseline, Kind::Doubling, Kind::NonDoubling];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Baseline => "baseline",
            Kind::Doubling => "doubling",
            Kind::NonDoubling => "nondoubling",
        }
    }

    /// Latent size in the report.
    pub fn default_latent(self) -> usize {
        match self {
            Kind::Baseline | Kind::Doubling => 256,
            Kind::NonDoubling => 128,
        }
    }

    /// NCA steps in evaluation: after each doubling, or in all. The baseline has none.
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

impl FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Kind> {
        match Kind::ALL.into_iter().find(|k| k.name() == name) {
            Some(kind) => Ok(kind),
            None => bail!("no model {name:?}: there are baseline, doubling, nondoubling"),
        }
    }
}

/// A model's sizes. Two models of equal sizes have equal parameters' names and shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    pub kind: Kind,
    /// Latent size Z.
    pub latent: usize,
    /// Times that the doubling decoder doubles its grid.
    pub doublings: usize,
    /// NCA steps after each doubling (doubling), or in evaluation (non-doubling).
    pub nca_steps: usize,
}

impl Model {
    /// The model of the report, with another latent size if one is given.
    ///
    /// # Errors
    /// When the latent size is 0 or beyond what memory could hold.
    pub fn new(kind: Kind, latent: Option<usize>) -> Result<Model> {
        let latent = latent.unwrap_or(kind.default_latent());
        ensure!((1..=65_536).contains(&latent), "a latent size of {latent}: it must be from 1 to 65536");
        Ok(Model { kind, latent, doublings: 5, nca_steps: kind.default_nca_steps() })
    }

    /// Every parameter's name, shape and initial values, in the order of checkpoints.
    pub fn leaves(&self) -> Vec<Leaf> {
        let mut leaves = encoder::leaves(self.latent);
        leaves.extend(match self.kind {
            Kind::Baseline => baseline::leaves(self.latent),
            Kind::Doubling => vnca::doubling_leaves(self.latent),
            Kind::NonDoubling => vnca::nondoubling_leaves(self.latent),
        });
        leaves
    }

    /// Number of parameters.
    pub fn parameter_count(&self) -> usize {
        self.leaves().iter().map(|leaf| leaf.shape.iter().product::<usize>()).sum()
    }

    /// Bernoulli logits (n, 32, 32, 1) of latents (n, Z), with the steps of evaluation.
    pub fn decode<'g>(&self, params: &Params<'g>, z: Sym<'g>) -> Sym<'g> {
        match self.kind {
            Kind::Baseline => baseline::decode(params, z),
            Kind::Doubling => vnca::doubling_decode(params, z, self.doublings, self.nca_steps),
            Kind::NonDoubling => {
                let grid = vnca::repeated_over_grid(z, SIDE);
                vnca::logits(vnca::steps(vnca::nondoubling_cell(params), grid, self.nca_steps))
            }
        }
    }
}

/// Padded images (n, 32, 32, 1) as f32 from u8 pixels (n, 28, 28), which are 0 or 1.
pub fn padded<'g>(g: &'g Graph, pixels: Sym<'g>) -> Sym<'g> {
    use crate::ir::ops::layout::Padding;
    use crate::shape::DType;
    let margin = Padding::edges(MARGIN as i64, MARGIN as i64);
    let images =
        pixels.convert(DType::F32).pad(g.scalar(DType::F32, 0.0), &[Padding::default(), margin, margin]);
    images.reshape(&[images.dims().as_slice(), &[1]].concat())
}
