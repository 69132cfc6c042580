//! The baseline decoder, p(x | z): a linear layer, four transposed convolutions that double the grid, and a last one
//! that cuts it to 28 x 28. The report, section 3.1; layer sizes as in its code.

use super::params::{Leaf, Params, Role, layer};
use super::{MARGIN, SIDE};
use crate::ir::Sym;
use crate::ir::ops::conv::Window;
use crate::ir::ops::layout::Padding;

/// Channels before and after each transposed convolution.
const CHANNELS: [usize; 6] = [512, 256, 128, 64, 32, 1];

pub fn leaves(latent: usize) -> Vec<Leaf> {
    let mut leaves = layer("decoder.linear", Role::LinearWeight, &[2048, latent], &[1, 0]).to_vec();
    for (i, pair) in CHANNELS.windows(2).enumerate() {
        let shape = [pair[1], pair[0], 5, 5];
        leaves.extend(layer(&format!("decoder.conv{i}"), Role::ConvWeight, &shape, &[1, 1, i]));
    }
    leaves
}

/// Bernoulli logits (n, 32, 32, 1) of latents (n, Z): −∞ on the margin, whose pixels are 0 with certainty.
pub fn decode<'g>(params: &Params<'g>, z: Sym<'g>) -> Sym<'g> {
    let n = z.dims()[0];
    // Features are counted with the channel slowest.
    let mut h = params.linear("decoder.linear", z).reshape(&[n, 512, 2, 2]).transpose(&[0, 2, 3, 1]);
    for i in 0..4 {
        let (weight, bias) = params.layer(&format!("decoder.conv{i}"));
        h = (h.conv(weight, Window::transposed(5, 2, 2, 1)) + bias).elu();
    }
    let (weight, bias) = params.layer("decoder.conv4");
    let inner = h.expect(&[n, SIDE, SIDE, 32]).conv(weight, Window::transposed(5, 1, 4, 0)) + bias;
    let margin = Padding::edges(MARGIN as i64, MARGIN as i64);
    let certain = inner.like(f64::NEG_INFINITY);
    inner.expect(&[n, 28, 28, 1]).pad(certain, &[Padding::default(), margin, margin, Padding::default()])
}
