//! Encoders, q(z | x): a normal distribution over latents for each image.
//!
//! All models of the report share one encoder: five 5x5 convolutions with ELU, four of which halve the grid, and a linear layer
//! to means and log-variances. Source: the report, section 3.1; layer sizes from its code.

use super::frame::Frame;
use crate::engine::ir::Sym;
use crate::engine::ir::ops::conv::Window;
use crate::nn::params::{Leaf, Params, Role, layer};

/// An encoder from images to latents of any size.
pub trait Encoder: Send + Sync {
    /// Returns the parameters for images of these sizes and a latent size. The model puts them under the scope `encoder`.
    fn parameters(&self, frame: &Frame, latent: usize) -> Vec<Leaf>;

    /// Returns mean and log-variance of q(z | x), (n, Z) each, for images (n, rows, columns, channels) with their margin.
    fn encode<'g>(&self, params: &Params<'g>, images: Sym<'g>) -> (Sym<'g>, Sym<'g>);
}

/// Convolutions that halve the grid, at least.
const HALVINGS: usize = 4;

/// The report's encoder. Images over 32 x 32 pixels get more convolutions, so that the last grid has at most 2 x 2 cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvEncoder {
    /// Channels of the first convolution's result. Each of the next four doubles them. The report uses 32.
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
        self.width << i.min(HALVINGS)
    }

    /// Returns the number of convolutions.
    fn layers(frame: &Frame) -> usize {
        1 + frame.halvings(HALVINGS)
    }

    /// Returns rows, columns and channels after the last convolution.
    fn features(&self, frame: &Frame) -> [usize; 3] {
        let layers = ConvEncoder::layers(frame);
        let [rows, columns] = frame.grid.map(|side| side.div_ceil(1 << (layers - 1)));
        [rows, columns, self.channels(layers - 1)]
    }
}

impl Encoder for ConvEncoder {
    fn parameters(&self, frame: &Frame, latent: usize) -> Vec<Leaf> {
        let (mut leaves, layers) = (Vec::new(), ConvEncoder::layers(frame));
        for i in 0..layers {
            let before = if i == 0 { frame.channels } else { self.channels(i - 1) };
            let shape = [self.channels(i), before, 5, 5];
            leaves.extend(layer(&format!("conv{i}"), Role::ConvWeight, &shape, &[i]));
        }
        let features = self.features(frame).iter().product();
        leaves.extend(layer("linear", Role::LinearWeight, &[2 * latent, features], &[layers]));
        leaves
    }

    fn encode<'g>(&self, params: &Params<'g>, images: Sym<'g>) -> (Sym<'g>, Sym<'g>) {
        let d = images.dims();
        let frame = Frame::new(d[1], d[2], d[3]);
        let mut h = images;
        for i in 0..ConvEncoder::layers(&frame) {
            let stride = if i == 0 { 1 } else { 2 };
            h = params.conv(&format!("conv{i}"), h, Window::new(stride, (2, 2))).elu();
        }
        // In the features the channel varies slowest, as in the report's code.
        let [rows, columns, channels] = self.features(&frame);
        let features = h.expect(&[d[0], rows, columns, channels]).transpose(&[0, 3, 1, 2]);
        let features = features.reshape(&[d[0], rows * columns * channels]);
        let out = params.linear("linear", features);
        let latent = out.dims()[1] / 2;
        (out.slice_axis(1, 0, latent), out.slice_axis(1, latent, 2 * latent))
    }
}
