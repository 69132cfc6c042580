//! Likelihoods p(x | z): distributions of images given a decoder's outputs.

mod bernoulli;
mod logistic;

use anyhow::Result;

pub use bernoulli::{Bernoulli, DynamicBernoulli};
pub use logistic::LogisticMixture;

use crate::engine::ir::Sym;
use crate::engine::shape::{DType, Shape};

/// The outputs that a likelihood needs from a decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outputs {
    /// Number of parameters of each pixel's distribution.
    pub channels: usize,
    /// Value of the outputs outside the image or the grid, where a decoder computes none.
    pub outside: f64,
}

/// A distribution of images (n, h, w, c), given the decoder's outputs (n, h, w, channels).
///
/// The number of an image's channels c belongs to the likelihood.
pub trait Likelihood: Send + Sync {
    /// Checks the fields.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid), with the field that is out of range.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Returns the outputs that the likelihood needs from a decoder.
    fn outputs(&self) -> Outputs;

    /// Returns log p(image | outputs) in nats, summed over the pixels of each image: (n). Images are (n, h, w, c).
    fn log_prob<'g>(&self, images: Sym<'g>, outputs: Sym<'g>) -> Sym<'g>;

    /// Returns the mean of each pixel: (n, h, w, c).
    fn mean<'g>(&self, outputs: Sym<'g>) -> Sym<'g>;

    /// Draws images (n, h, w, c) with one key per image (n, 2).
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

    /// Returns the value of a data set's pixels that is shown as brightness 1: by default 1, for bits.
    fn white(&self) -> u8 {
        1
    }

    /// Converts values that `log_prob` takes, and that `mean` and `draw` return, to brightness from 0 to 1. By default, returns
    /// them unchanged.
    fn shown<'g>(&self, images: Sym<'g>) -> Sym<'g> {
        images
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
