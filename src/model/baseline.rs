//! The baseline decoder, p(x | z): a linear layer, four transposed convolutions that double the grid, and a last one that
//! reduces it to 28 x 28. Source: the report, section 3.1; layer sizes from its code.

use super::decoder::{Decoder, GrowOptions};
use super::likelihood::Outputs;
use super::{GRID_SIDE, MARGIN};
use crate::engine::ir::Sym;
use crate::engine::ir::ops::conv::Window;
use crate::engine::ir::ops::layout::Padding;
use crate::nn::params::{Leaf, Params, Role, layer, scoped};

/// Channels before and after each transposed convolution. The last one outputs the channels of the likelihood.
const CHANNELS: [usize; 5] = [512, 256, 128, 64, 32];
/// Scope of the parameters.
const SCOPE: &str = "decoder";
/// Name of the layer that merges the linear layer and the first transposed convolution.
const START: &str = "start";

/// The report's convolutional decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConvDecoder;

/// Returns the window of a transposed convolution that doubles the grid.
fn doubling_window() -> Window {
    Window::transposed(5, 2, 2, 1)
}

/// Returns the 2 x 2 grids of features (n, 2048), in which the channel varies slowest.
fn grid(features: Sym<'_>) -> Sym<'_> {
    features.reshape(&[features.dims()[0], CHANNELS[0], 2, 2]).transpose(&[0, 2, 3, 1])
}

impl Decoder for ConvDecoder {
    fn parameters(&self, latent: usize, outputs: Outputs) -> Vec<Leaf> {
        let mut leaves = layer("linear", Role::LinearWeight, &[2048, latent], &[0]).to_vec();
        let channels = [CHANNELS.as_slice(), &[outputs.channels]].concat();
        for (i, pair) in channels.windows(2).enumerate() {
            let shape = [pair[1], pair[0], 5, 5];
            leaves.extend(layer(&format!("conv{i}"), Role::ConvWeight, &shape, &[1, i]));
        }
        scoped(SCOPE, &[], leaves)
    }

    /// The margin gets the likelihood's `outside` output. For Bernoulli logits its pixels are 0 with certainty.
    fn decode<'g>(
        &self,
        params: &Params<'g>,
        z: Sym<'g>,
        _keys: Sym<'g>,
        outputs: Outputs,
        _options: &GrowOptions<'g>,
    ) -> Sym<'g> {
        let n = z.dims()[0];
        let params = params.scope(SCOPE);
        let doubled = |h: Sym<'g>, i: usize| params.conv(&format!("conv{i}"), h, doubling_window()).elu();
        let first = match params.has_layer(START) {
            true => params.linear(START, z).elu().reshape(&[n, 4, 4, CHANNELS[1]]),
            false => doubled(grid(params.linear("linear", z)), 0),
        };
        let last = (1..4).fold(first, doubled);
        let last = last.expect(&[n, GRID_SIDE, GRID_SIDE, 32]);
        let inner = params.conv("conv4", last, Window::transposed(5, 1, 4, 0));
        let margin = Padding::new(MARGIN as i64, MARGIN as i64);
        let outside = inner.scalar_like(outputs.outside);
        let inner = inner.expect(&[n, 28, 28, outputs.channels]);
        inner.pad(outside, &[Padding::default(), margin, margin, Padding::default()])
    }

    fn draws(&self) -> bool {
        false
    }

    /// Merges the linear layer and the first transposed convolution. Only a reshape lies between them, so that together they are
    /// one affine map from Z latents to 4 x 4 x 256 numbers, with a twelfth of the multiplications. Merging computes the
    /// convolution of the linear layer's Z columns and of its bias.
    fn prepared<'g>(&self, whole: &Params<'g>, latents: usize) -> Params<'g> {
        let params = whole.scope(SCOPE);
        let (columns, bias) = params.layer("linear");
        let (count, features) = (columns.dims()[0], columns.dims()[1]);
        if latents < 2 * count {
            return whole.clone();
        }
        let rows = Sym::concat(&[columns, bias.reshape(&[1, features])], 0);
        let (kernel, first_bias) = params.layer("conv0");
        let grids = grid(rows).conv(kernel, doubling_window()).reshape(&[count + 1, 16 * CHANNELS[1]]);
        let [weight, bias] = [(0, count), (count, count + 1)].map(|(from, to)| grids.slice_axis(0, from, to));
        let bias = bias.reshape(&[16, CHANNELS[1]]) + first_bias;
        whole.with_layer(&format!("{SCOPE}.{START}"), weight, bias.reshape(&[16 * CHANNELS[1]]))
    }
}
