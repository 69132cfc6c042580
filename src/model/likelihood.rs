//! How images are drawn from what a decoder gives: p(x | z).

use crate::engine::ir::Sym;
use crate::engine::random::graph as draw;
use crate::engine::shape::{DType, Shape};

/// What a likelihood needs of a decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outputs {
    /// Numbers that each pixel's distribution takes.
    pub channels: usize,
    /// The number that stands where a decoder gives none, around an image that is smaller than the grid.
    pub outside: f64,
}

/// A distribution of images, given the decoder's outputs (n, h, w, channels).
pub trait Likelihood: Send + Sync {
    /// Returns what it needs of a decoder.
    fn outputs(&self) -> Outputs;

    /// Returns log p(image | outputs) in nats, summed over the pixels of each image: (n). Images are (n, h, w, 1).
    fn log_prob<'g>(&self, images: Sym<'g>, outputs: Sym<'g>) -> Sym<'g>;

    /// Returns the mean of each pixel: (n, h, w, 1).
    fn mean<'g>(&self, outputs: Sym<'g>) -> Sym<'g>;

    /// Draws images with a key each (n, 2): (n, h, w, 1).
    fn draw<'g>(&self, outputs: Sym<'g>, keys: Sym<'g>) -> Sym<'g>;

    /// Returns what `log_prob` takes for the pixels of a data set, which are u8: their number, unless this says otherwise.
    fn observe<'g>(&self, pixels: Sym<'g>) -> Sym<'g> {
        pixels.convert(DType::F32)
    }
}

/// Pixels that are 0 or 1, each with a probability of its own. The outputs are logits; a logit of −∞ makes a 0 certain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bernoulli;

impl Likelihood for Bernoulli {
    fn outputs(&self) -> Outputs {
        Outputs { channels: 1, outside: f64::NEG_INFINITY }
    }

    /// A logit of −∞ gives 0 nats, with a gradient of 0.
    fn log_prob<'g>(&self, images: Sym<'g>, logits: Sym<'g>) -> Sym<'g> {
        let on = images.gt(images.scalar_like(0.5));
        (on.mask(logits) - logits.softplus()).sum(&[1, 2, 3])
    }

    fn mean<'g>(&self, logits: Sym<'g>) -> Sym<'g> {
        logits.sigmoid()
    }

    fn draw<'g>(&self, logits: Sym<'g>, keys: Sym<'g>) -> Sym<'g> {
        draw::bernoulli(keys, &logits.dims()[1..], logits.sigmoid()).convert(DType::F32)
    }
}

/// Returns [`Likelihood::log_prob`] of n images, and rejects a result of other sizes.
pub(super) fn log_prob<'g>(likelihood: &dyn Likelihood, images: Sym<'g>, outputs: Sym<'g>) -> Sym<'g> {
    let result = likelihood.log_prob(images, outputs);
    let expected = Shape::f32(&[images.dims()[0]]);
    if result.shape() != expected {
        images.graph().reject(&format!("Likelihood::log_prob returned {}, not {expected}", result.shape()));
    }
    result
}
