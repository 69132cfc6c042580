//! The baseline decoder, p(x | z): a linear layer, four transposed convolutions that double the grid, and a last one
//! that cuts it to 28 x 28. The report, section 3.1; layer sizes as in its code.

use super::{MARGIN, SIDE};
use crate::engine::ir::Sym;
use crate::engine::ir::ops::conv::Window;
use crate::engine::ir::ops::layout::Padding;
use crate::nn::params::{Leaf, Params, Role, layer};

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

/// The linear layer and the first transposed convolution as one layer.
const START: &str = "decoder.start";

/// The parameters with which as many latents are decoded fastest.
///
/// Between the linear layer and the first transposed convolution is nothing but a change of shape, so that both are one
/// affine map, of Z latents to 4 x 4 x 256 numbers: a twelfth of the products, once the convolution has been made of the
/// linear layer's Z columns and its bias.
pub fn prepared<'g>(params: &Params<'g>, latents: usize) -> Params<'g> {
    let (columns, bias) = params.layer("decoder.linear");
    let (count, features) = (columns.dims()[0], columns.dims()[1]);
    if latents < 2 * count {
        return params.clone();
    }
    let rows = Sym::concat(&[columns, bias.reshape(&[1, features])], 0);
    let (kernel, first_bias) = params.layer("decoder.conv0");
    let grids = grid(rows).conv(kernel, doubling()).reshape(&[count + 1, 16 * CHANNELS[1]]);
    let [weight, bias] = [(0, count), (count, count + 1)].map(|(from, to)| grids.slice_axis(0, from, to));
    let bias = bias.reshape(&[16, CHANNELS[1]]) + first_bias;
    params.with_layer(START, weight, bias.reshape(&[16 * CHANNELS[1]]))
}

/// The window of a transposed convolution that doubles the grid.
fn doubling() -> Window {
    Window::transposed(5, 2, 2, 1)
}

/// The 2 x 2 grid of numbers (n, 2048), which are counted with the channel slowest.
fn grid(features: Sym<'_>) -> Sym<'_> {
    features.reshape(&[features.dims()[0], CHANNELS[0], 2, 2]).transpose(&[0, 2, 3, 1])
}

/// Bernoulli logits (n, 32, 32, 1) of latents (n, Z): −∞ on the margin, whose pixels are 0 with certainty.
pub fn decode<'g>(params: &Params<'g>, z: Sym<'g>) -> Sym<'g> {
    let n = z.dims()[0];
    let doubled = |h: Sym<'g>, i: usize| {
        let (weight, bias) = params.layer(&format!("decoder.conv{i}"));
        (h.conv(weight, doubling()) + bias).elu()
    };
    let first = match params.has_layer(START) {
        true => params.linear(START, z).elu().reshape(&[n, 4, 4, CHANNELS[1]]),
        false => doubled(grid(params.linear("decoder.linear", z)), 0),
    };
    let last = (1..4).fold(first, doubled);
    let (weight, bias) = params.layer("decoder.conv4");
    let inner = last.expect(&[n, SIDE, SIDE, 32]).conv(weight, Window::transposed(5, 1, 4, 0)) + bias;
    let margin = Padding::edges(MARGIN as i64, MARGIN as i64);
    let certain = inner.like(f64::NEG_INFINITY);
    inner.expect(&[n, 28, 28, 1]).pad(certain, &[Padding::default(), margin, margin, Padding::default()])
}
