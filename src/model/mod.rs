//! The models of the report: a convolutional encoder and one of three decoders.

pub mod baseline;
pub mod encoder;
pub mod loss;
pub mod objective;
pub mod vnca;

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::engine::ir::{Function, Graph, Sym};
use crate::engine::shape::{Precision, Shape};
use crate::nn::params::{Leaf, Params};

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

/// A model's sizes, and how it is computed. Two models of equal sizes have equal parameters' names and shapes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    pub kind: Kind,
    /// Latent size Z.
    pub latent: usize,
    /// Times that the doubling decoder doubles its grid.
    pub doublings: usize,
    /// NCA steps after each doubling (doubling), or in evaluation (non-doubling).
    pub nca_steps: usize,
    /// Chance that a cell takes part in a step of the automaton, drawn for every cell and step: 1 in the report.
    pub update_prob: f64,
    /// Side of the square in the middle of the non-doubling model's grid that starts as the latent, zeros around it: the
    /// whole grid in the report.
    #[serde(default = "whole_grid")]
    pub start_side: usize,
    /// Of its matrix products and convolutions.
    #[serde(default)]
    pub precision: Precision,
}

/// The report's [`Model::start_side`].
fn whole_grid() -> usize {
    SIDE
}

/// Doublings from one cell to a grid of [`SIDE`].
const MOST_DOUBLINGS: usize = SIDE.trailing_zeros() as usize;

impl Model {
    /// The model of the report, with another latent size if one is given.
    ///
    /// # Errors
    /// When the latent size is 0 or beyond what memory could hold.
    pub fn new(kind: Kind, latent: Option<usize>) -> Result<Model> {
        let latent = latent.unwrap_or(kind.default_latent());
        ensure!((1..=65_536).contains(&latent), "a latent size of {latent}: it must be from 1 to 65536");
        let nca_steps = kind.default_nca_steps();
        let precision = Precision::F32;
        let (doublings, start_side) = (MOST_DOUBLINGS, whole_grid());
        Ok(Model { kind, latent, doublings, nca_steps, update_prob: 1.0, start_side, precision })
    }

    /// # Errors
    /// A size that is out of range or that the kind of model does not have; the error names the flag.
    pub fn check(&self) -> Result<()> {
        let report = Model::new(self.kind, Some(self.latent)).context("--latent")?;
        let only = |flag: &str, other: bool, kinds: &str| {
            ensure!(!other, "{flag} is of the {kinds} model, not of the {}", self.kind);
            Ok(())
        };
        if self.kind != Kind::Doubling {
            only("--doublings", self.doublings != report.doublings, "doubling")?;
        }
        if self.kind != Kind::NonDoubling {
            only("--start-side", self.start_side != report.start_side, "nondoubling")?;
        }
        if self.kind == Kind::Baseline {
            only("--nca-steps", self.nca_steps != report.nca_steps, "doubling or nondoubling")?;
            only("--update-prob", self.update_prob != report.update_prob, "doubling or nondoubling")?;
        }
        ensure!(
            self.doublings <= MOST_DOUBLINGS,
            "--doublings {}: after {MOST_DOUBLINGS} of them one cell fills the {SIDE} x {SIDE} grid",
            self.doublings
        );
        ensure!(self.nca_steps <= 10_000, "--nca-steps {} is too many: at most 10000", self.nca_steps);
        ensure!(
            (1..=SIDE).contains(&self.start_side),
            "--start-side {}: it must be from 1 to {SIDE}, the whole grid",
            self.start_side
        );
        ensure!(
            self.update_prob > 0.0 && self.update_prob <= 1.0,
            "--update-prob {}: it must be over 0 and at most 1",
            self.update_prob
        );
        Ok(())
    }

    /// A graph in the model's precision.
    pub fn graph(&self, name: &str) -> Graph {
        Graph::with_precision(name, self.precision)
    }

    /// Side of the grid that the automaton starts on: as much smaller as doublings make up for.
    pub fn seed_side(&self) -> usize {
        match self.kind {
            Kind::Doubling => SIDE >> self.doublings,
            Kind::Baseline | Kind::NonDoubling => SIDE,
        }
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

    /// The parameters with which so many latents, over all calls of [`Model::decode`], are decoded fastest.
    pub fn prepared<'g>(&self, params: &Params<'g>, latents: usize) -> Params<'g> {
        match self.kind {
            Kind::Baseline => baseline::prepared(params, latents),
            Kind::Doubling | Kind::NonDoubling => params.clone(),
        }
    }

    /// A computation over the parameters, which are its first inputs; `build` declares the others and gives the outputs by name.
    ///
    /// # Errors
    /// When the graph is wrong.
    pub fn function(
        &self,
        name: &str,
        build: impl for<'g> FnOnce(&'g Graph, &Params<'g>) -> Vec<(String, Sym<'g>)>,
    ) -> Result<Function> {
        let leaves = self.leaves();
        let g = self.graph(&format!("{name}_{}", self.kind));
        let params = Params::new(&leaves, &Params::inputs(&g, &leaves, ""));
        g.finish(&build(&g, &params), &[])
    }

    /// Bernoulli logits (n, 32, 32, 1) of latents (n, Z), with the steps of evaluation. The keys (n, 2) choose which
    /// cells take a step, where not all do.
    pub fn decode<'g>(&self, params: &Params<'g>, z: Sym<'g>, keys: Sym<'g>) -> Sym<'g> {
        match self.kind {
            Kind::Baseline => baseline::decode(params, z),
            Kind::Doubling | Kind::NonDoubling => {
                vnca::logits(vnca::Automaton::new(self, params).grow(z, keys))
            }
        }
    }

    /// The same as inputs and outputs of a program: `latents` (n, Z) and `keys` (n, 2) in, `logits` out.
    pub fn decoder<'g>(&self, n: usize, g: &'g Graph, params: &Params<'g>) -> Vec<(String, Sym<'g>)> {
        let latents = g.input("latents", &Shape::f32(&[n, self.latent]));
        let keys = g.input("keys", &Shape::u32(&[n, 2]));
        vec![("logits".into(), self.decode(params, latents, keys))]
    }
}

/// Padded images (n, 32, 32, 1) as f32 from u8 pixels (n, 28, 28), which are 0 or 1.
pub fn padded<'g>(g: &'g Graph, pixels: Sym<'g>) -> Sym<'g> {
    use crate::engine::ir::ops::layout::Padding;
    use crate::engine::shape::DType;
    let margin = Padding::edges(MARGIN as i64, MARGIN as i64);
    let images =
        pixels.convert(DType::F32).pad(g.scalar(DType::F32, 0.0), &[Padding::default(), margin, margin]);
    images.reshape(&[images.dims().as_slice(), &[1]].concat())
}
