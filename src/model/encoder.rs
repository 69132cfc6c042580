//! Encoders, q(z | x): a normal distribution over latents for each image.
//!
//! All models of the report share one encoder: five 5x5 convolutions with ELU, four of which halve the grid, and a linear layer
//! to means and log-variances. Source: the report, section 3.1; layer sizes from its code.

use crate::engine::ir::Sym;
use crate::engine::ir::ops::conv::Window;
use crate::nn::params::{Leaf, Params, Role, layer};

/// An encoder from images to latents of any size.
pub trait Encoder: Send + Sync {
    /// Returns the parameters for a latent size. The model puts them under the scope `encoder`.
    fn parameters(&self, latent: usize) -> Vec<Leaf>;

    /// Returns mean and log-variance of q(z | x), (n, Z) each, for images (n, 32, 32, 1).
    fn encode<'g>(&self, params: &Params<'g>, images: Sym<'g>) -> (Sym<'g>, Sym<'g>);
}

/// Number of convolutions.
const LAYERS: usize = 5;

/// The report's encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvEncoder {
    /// Channels of the first convolution's result. Each further convolution doubles them. The report uses 32.
    pub width: usize,
}

impl Default for ConvEncoder {
    /// Returns the encoder with the report's width.
    fn default() -> ConvEncoder {
        ConvEncoder { width: 32 }
    }
}

impl ConvEncoder {
    /// Returns the channels after convolution `i`.
    fn channels(&self, i: usize) -> usize {
        self.width << i
    }

    /// Returns the features of an image after the last convolution: 2 x 2 pixels.
    fn features(&self) -> usize {
        4 * self.channels(LAYERS - 1)
    }
}

impl Encoder for ConvEncoder {
    fn parameters(&self, latent: usize) -> Vec<Leaf> {
        let mut leaves = Vec::new();
        for i in 0..LAYERS {
            let before = if i == 0 { 1 } else { self.channels(i - 1) };
            let shape = [self.channels(i), before, 5, 5];
            leaves.extend(layer(&format!("conv{i}"), Role::ConvWeight, &shape, &[i]));
        }
        leaves.extend(layer("linear", Role::LinearWeight, &[2 * latent, self.features()], &[5]));
        leaves
    }

    fn encode<'g>(&self, params: &Params<'g>, images: Sym<'g>) -> (Sym<'g>, Sym<'g>) {
        let n = images.dims()[0];
        let mut h = images.expect(&[n, 32, 32, 1]);
        for i in 0..LAYERS {
            let stride = if i == 0 { 1 } else { 2 };
            h = params.conv(&format!("conv{i}"), h, Window::new(stride, (2, 2))).elu();
        }
        // In the features the channel varies slowest, as in the report's code.
        let features = h.expect(&[n, 2, 2, self.channels(LAYERS - 1)]).transpose(&[0, 3, 1, 2]);
        let features = features.reshape(&[n, self.features()]);
        let out = params.linear("linear", features);
        let latent = out.dims()[1] / 2;
        (out.slice_axis(1, 0, latent), out.slice_axis(1, latent, 2 * latent))
    }
}
