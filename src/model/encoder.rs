//! The encoder of all models, q(z | x): five 5x5 convolutions with ELU, four of them halving the grid, and a linear
//! layer to means and log-variances. The report, section 3.1; layer sizes as in its code.

use crate::engine::ir::Sym;
use crate::engine::ir::ops::conv::Window;
use crate::nn::params::{Leaf, Params, Role, layer};

/// Channels before and after each convolution.
const CHANNELS: [usize; 6] = [1, 32, 64, 128, 256, 512];
/// Numbers that the last convolution leaves of an image: 2 x 2 places of 512 channels.
const FEATURES: usize = 2048;

pub fn leaves(latent: usize) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    for (i, pair) in CHANNELS.windows(2).enumerate() {
        let shape = [pair[1], pair[0], 5, 5];
        leaves.extend(layer(&format!("encoder.conv{i}"), Role::ConvWeight, &shape, &[0, i]));
    }
    leaves.extend(layer("encoder.linear", Role::LinearWeight, &[2 * latent, FEATURES], &[0, 5]));
    leaves
}

/// Mean and log-variance, (n, Z) each, of images (n, 32, 32, 1).
pub fn encode<'g>(params: &Params<'g>, images: Sym<'g>) -> (Sym<'g>, Sym<'g>) {
    let n = images.dims()[0];
    let mut h = images.expect(&[n, 32, 32, 1]);
    for i in 0..5 {
        let (weight, bias) = params.layer(&format!("encoder.conv{i}"));
        let stride = if i == 0 { 1 } else { 2 };
        h = (h.conv(weight, Window::new(stride, (2, 2))) + bias).elu();
    }
    // Features are counted with the channel slowest.
    let features = h.expect(&[n, 2, 2, 512]).transpose(&[0, 3, 1, 2]).reshape(&[n, FEATURES]);
    let out = params.linear("encoder.linear", features);
    let latent = out.dims()[1] / 2;
    (out.slice_axis(1, 0, latent), out.slice_axis(1, latent, 2 * latent))
}
