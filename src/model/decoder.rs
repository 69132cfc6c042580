//! Decoders: map a latent to the outputs that a likelihood takes.

use super::frame::Frame;
use super::grow::{Damage, Grow};
use super::likelihood::Outputs;
use anyhow::Result;

use crate::engine::ir::{RepeatOptions, Sym};
use crate::nn::params::{Leaf, Params};

/// How a training step runs an automaton. Other decoders ignore these options.
#[derive(Clone, Copy, Default)]
pub struct GrowOptions<'g> {
    /// Which values of the forward pass are saved for the gradient of the steps.
    pub memory: RepeatOptions,
    /// Damage after one of the doublings.
    pub damage: Option<Damage<'g>>,
}

/// What a decoder computes: the outputs of a likelihood for each cell of a grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Canvas {
    /// The sizes of the images and of the grid.
    pub frame: Frame,
    /// The outputs that the likelihood needs.
    pub outputs: Outputs,
}

/// A decoder for latents of any size.
pub trait Decoder: Send + Sync {
    /// Returns the parameters for a latent size. Their names begin with a scope that belongs to the decoder.
    fn parameters(&self, latent: usize, canvas: &Canvas) -> Vec<Leaf>;

    /// Decodes latents (n, Z) to outputs (n, rows, columns, channels). Random draws while decoding use the keys (n, 2), one for
    /// each latent.
    fn decode<'g>(
        &self,
        params: &Params<'g>,
        z: Sym<'g>,
        keys: Sym<'g>,
        canvas: &Canvas,
        options: &GrowOptions<'g>,
    ) -> Sym<'g>;

    /// Checks that the decoder can compute the canvas.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid), with the field that does not fit.
    fn check(&self, _canvas: &Canvas) -> Result<()> {
        Ok(())
    }

    /// Reports whether decoding may draw from its keys. Otherwise the keys are ignored, and need not be one for each latent.
    fn draws(&self) -> bool {
        true
    }

    /// Returns the parameters in the form that decodes this number of latents fastest, over all calls of `decode`.
    fn prepared<'g>(&self, params: &Params<'g>, _canvas: &Canvas, _latents: usize) -> Params<'g> {
        params.clone()
    }

    /// Returns the decoder's automaton, if it has one. The growth of an automaton can be displayed and damaged.
    fn automaton(&self) -> Option<&Grow> {
        None
    }
}
