//! The baseline decoder, p(x | z): a linear layer, transposed convolutions that double the grid, and a last one. Source: the
//! report, section 3.1; layer sizes from its code.
//!
//! The report's grid is doubled four times, from 2 x 2 to 32 x 32 cells, and the last convolution reduces it to 28 x 28. Larger
//! images get more doublings.

use super::decoder::{Canvas, Decoder, GrowOptions};
use super::frame::Frame;
use anyhow::Result;

use crate::engine::ir::Sym;
use crate::engine::ir::ops::conv::Window;
use crate::engine::ir::ops::layout::Padding;
use crate::error::valid;
use crate::nn::params::{Leaf, Params, Role, layer, scoped};

/// Doublings, at least.
const DOUBLINGS: usize = 4;
/// Channels before the last convolution. Each convolution before it has twice the channels of the next, up to [`MOST_CHANNELS`].
const LAST_CHANNELS: usize = 32;
/// Channels of the first grids.
const MOST_CHANNELS: usize = LAST_CHANNELS << DOUBLINGS;
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

/// Returns the first grids of features (n, 512 · cells), in which the channel varies slowest.
fn first_grids<'g>(features: Sym<'g>, frame: &Frame) -> Sym<'g> {
    let [rows, columns] = first_sides(frame);
    features.reshape(&[features.dims()[0], MOST_CHANNELS, rows, columns]).transpose(&[0, 2, 3, 1])
}

/// Returns the number of doublings.
fn doublings(frame: &Frame) -> usize {
    frame.halvings(DOUBLINGS)
}

/// Returns rows and columns of the first grid.
fn first_sides(frame: &Frame) -> [usize; 2] {
    frame.grid.map(|side| side >> doublings(frame))
}

/// Returns the channels before convolution `i`.
fn channels(frame: &Frame, i: usize) -> usize {
    LAST_CHANNELS << (doublings(frame) - i).min(DOUBLINGS)
}

impl ConvDecoder {
    /// Returns the frame with a grid that the doublings reach.
    pub fn fitted(frame: Frame) -> Frame {
        frame.in_multiples_of(1 << doublings(&frame))
    }
}

impl Decoder for ConvDecoder {
    fn parameters(&self, latent: usize, canvas: &Canvas) -> Vec<Leaf> {
        let (frame, outputs) = (&canvas.frame, canvas.outputs);
        let [rows, columns] = first_sides(frame);
        let features = rows * columns * MOST_CHANNELS;
        let mut leaves = layer("linear", Role::LinearWeight, &[features, latent], &[0]).to_vec();
        let mut channels: Vec<usize> = (0..=doublings(frame)).map(|i| channels(frame, i)).collect();
        channels.push(outputs.channels);
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
        canvas: &Canvas,
        _options: &GrowOptions<'g>,
    ) -> Sym<'g> {
        let (n, frame, outputs) = (z.dims()[0], &canvas.frame, canvas.outputs);
        let params = params.scope(SCOPE);
        let doublings = doublings(frame);
        let doubled = |h: Sym<'g>, i: usize| params.conv(&format!("conv{i}"), h, doubling_window()).elu();
        let first = match params.has_layer(START) {
            true => {
                let [rows, columns] = first_sides(frame).map(|side| 2 * side);
                params.linear(START, z).elu().reshape(&[n, rows, columns, channels(frame, 1)])
            }
            false => doubled(first_grids(params.linear("linear", z), frame), 0),
        };
        let last = (1..doublings).fold(first, doubled);
        let [rows, columns] = frame.grid;
        let last = last.expect(&[n, rows, columns, LAST_CHANNELS]);
        let name = format!("conv{doublings}");
        if !frame.counts_margin {
            return params.conv(&name, last, Window::transposed(5, 1, 2, 0));
        }
        let inner = params.conv(&name, last, Window::transposed(5, 1, 4, 0));
        let inner = inner.expect(&[n, frame.height, frame.width, outputs.channels]);
        let [rows, columns] =
            frame.margins().map(|[before, after]| Padding::new(before as i64, after as i64));
        let outside = inner.scalar_like(outputs.outside);
        inner.pad(outside, &[Padding::default(), rows, columns, Padding::default()])
    }

    fn check(&self, canvas: &Canvas) -> Result<()> {
        let frame = &canvas.frame;
        let fits = frame.grid.iter().all(|side| side.is_multiple_of(1 << doublings(frame)));
        valid!(
            fits,
            "grid",
            "{}x{}: the rows and columns must be multiples of {}",
            frame.grid[0],
            frame.grid[1],
            1 << doublings(frame)
        );
        valid!(
            !frame.counts_margin || *frame == Frame { channels: frame.channels, ..Frame::REPORT },
            "grid",
            "only images of 28x28 have a margin that counts"
        );
        Ok(())
    }

    fn draws(&self) -> bool {
        false
    }

    /// Merges the linear layer and the first transposed convolution. Only a reshape lies between them, so that together they are
    /// one affine map from Z latents to 4 x 4 x 256 numbers (in the report's sizes), with a twelfth of the multiplications. Merging
    /// computes the convolution of the linear layer's Z columns and of its bias.
    fn prepared<'g>(&self, whole: &Params<'g>, canvas: &Canvas, latents: usize) -> Params<'g> {
        let params = whole.scope(SCOPE);
        let (columns, bias) = params.layer("linear");
        let (count, features) = (columns.dims()[0], columns.dims()[1]);
        // The merged layer of a larger first grid has more weights than both together.
        if latents < 2 * count || first_sides(&canvas.frame) != [2, 2] {
            return whole.clone();
        }
        let after = channels(&canvas.frame, 1);
        let rows = Sym::concat(&[columns, bias.reshape(&[1, features])], 0);
        let (kernel, first_bias) = params.layer("conv0");
        let grids = first_grids(rows, &canvas.frame).conv(kernel, doubling_window());
        let grids = grids.reshape(&[count + 1, 16 * after]);
        let [weight, bias] = [(0, count), (count, count + 1)].map(|(from, to)| grids.slice_axis(0, from, to));
        let bias = bias.reshape(&[16, after]) + first_bias;
        whole.with_layer(&format!("{SCOPE}.{START}"), weight, bias.reshape(&[16 * after]))
    }
}
