//! Likelihoods p(x | z): distributions of images given a decoder's outputs.

use crate::engine::ir::Sym;
use crate::engine::random::graph as draw;
use crate::engine::shape::{DType, Shape};

/// The outputs that a likelihood needs from a decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outputs {
    /// Number of parameters of each pixel's distribution.
    pub channels: usize,
    /// Value of the outputs outside the image or the grid, where a decoder computes none.
    pub outside: f64,
}

/// A distribution of images, given the decoder's outputs (n, h, w, channels).
pub trait Likelihood: Send + Sync {
    /// Returns the outputs that the likelihood needs from a decoder.
    fn outputs(&self) -> Outputs;

    /// Returns log p(image | outputs) in nats, summed over the pixels of each image: (n). Images are (n, h, w, 1).
    fn log_prob<'g>(&self, images: Sym<'g>, outputs: Sym<'g>) -> Sym<'g>;

    /// Returns the mean of each pixel: (n, h, w, 1).
    fn mean<'g>(&self, outputs: Sym<'g>) -> Sym<'g>;

    /// Draws images (n, h, w, 1) with one key per image (n, 2).
    fn draw<'g>(&self, outputs: Sym<'g>, keys: Sym<'g>) -> Sym<'g>;

    /// Returns the u8 pixels that a training step sees, given the data set's u8 pixels (n, ...). `keys` returns one key per image
    /// (n, 2) for random draws. By default, returns the data set's.
    fn training_pixels<'g>(&self, pixels: Sym<'g>, _keys: &dyn Fn() -> Sym<'g>) -> Sym<'g> {
        pixels
    }

    /// Converts a data set's u8 pixels to the values that `log_prob` takes. By default, converts each integer to f32.
    fn observe<'g>(&self, pixels: Sym<'g>) -> Sym<'g> {
        pixels.convert(DType::F32)
    }
}

/// Independent pixels that are 0 or 1. The outputs are logits. A logit of −∞ makes the pixel 0 with certainty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bernoulli;

impl Likelihood for Bernoulli {
    fn outputs(&self) -> Outputs {
        Outputs { channels: 1, outside: f64::NEG_INFINITY }
    }

    /// A logit of −∞ contributes 0 nats, with a gradient of 0.
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
/// TEMP
pub use Bernoulli as DynamicBernoulli;
/// TEMP
#[derive(Clone, Copy, Debug)]
pub struct LogisticMixture {
    /// t
    pub components: usize,
    /// t
    pub channels: usize,
}
impl Likelihood for LogisticMixture {
    fn outputs(&self) -> Outputs {
        Outputs { channels: self.components, outside: 0.0 }
    }
    fn log_prob<'g>(&self, i: Sym<'g>, o: Sym<'g>) -> Sym<'g> {
        Bernoulli.log_prob(i, o)
    }
    fn mean<'g>(&self, o: Sym<'g>) -> Sym<'g> {
        o
    }
    fn draw<'g>(&self, o: Sym<'g>, k: Sym<'g>) -> Sym<'g> {
        Bernoulli.draw(o, k)
    }
}
