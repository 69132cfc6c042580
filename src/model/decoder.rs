//! Decoders: from a latent to the outputs that a likelihood takes.

use super::grow::{Damage, Grow};
use super::likelihood::Outputs;
use crate::engine::ir::{RepeatOptions, Sym};
use crate::nn::params::{Leaf, Params};

/// How a training step runs an automaton. Decoders that are none have no use for it.
#[derive(Clone, Copy, Default)]
pub struct GrowOptions<'g> {
    /// What the gradient of the steps saves of the forward pass.
    pub memory: RepeatOptions,
    /// Damage at one of the doublings.
    pub damage: Option<Damage<'g>>,
}

/// A decoder of latents of any size.
pub trait Decoder: Send + Sync {
    /// Returns the parameters for latents of a size and outputs as a likelihood wants them. Their names begin with a scope of
    /// the decoder's own.
    fn parameters(&self, latent: usize, outputs: Outputs) -> Vec<Leaf>;

    /// Decodes latents (n, Z) to outputs (n, 32, 32, channels). The keys (n, 2), one for each latent, are for what is drawn
    /// while decoding.
    fn decode<'g>(
        &self,
        params: &Params<'g>,
        z: Sym<'g>,
        keys: Sym<'g>,
        outputs: Outputs,
        options: &GrowOptions<'g>,
    ) -> Sym<'g>;

    /// Reports whether decoding may draw from its keys. Where it does not, they need not be one for each latent.
    fn draws(&self) -> bool {
        true
    }

    /// Returns the parameters with which so many latents, over all calls of `decode`, are decoded fastest.
    fn prepared<'g>(&self, params: &Params<'g>, _latents: usize) -> Params<'g> {
        params.clone()
    }

    /// Returns the decoder as an automaton, if it is one: then its growth can be watched and damaged.
    fn automaton(&self) -> Option<&Grow> {
        None
    }
}
