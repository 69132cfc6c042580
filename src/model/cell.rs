//! Update rules of automata: what a cell computes from itself and its neighbours. Layer sizes from the report's code.

use crate::engine::ir::Sym;
use crate::engine::ir::ops::conv::Window;
use crate::nn::params::{Leaf, Params, Role, layer};

/// An update rule, which is the same for every cell of a grid.
pub trait Cell: Send + Sync {
    /// Returns the parameters for cells with this number of channels. The automaton puts them under the scope `cell`.
    fn parameters(&self, channels: usize) -> Vec<Leaf>;

    /// Returns the change u(z) of every cell for grids z (n, h, w, channels). It has the shape of z.
    fn update<'g>(&self, params: &Params<'g>, cells: Sym<'g>) -> Sym<'g>;
}

/// Sets a layer's initial values to zero. An automaton with such a last layer initially leaves its grid unchanged.
pub fn zeroed(mut leaves: [Leaf; 2]) -> [Leaf; 2] {
    for leaf in &mut leaves {
        leaf.limit = 0.0;
    }
    leaves
}

/// Returns a 1x1 convolution that keeps the number of channels.
fn point(name: &str, channels: usize, path: &[usize]) -> [Leaf; 2] {
    layer(name, Role::PointWeight, &[channels, channels, 1, 1], path)
}

/// Returns a 3x3 convolution that keeps the number of channels.
fn neighbours(name: &str, channels: usize, path: &[usize]) -> [Leaf; 2] {
    layer(name, Role::ConvWeight, &[channels, channels, 3, 3], path)
}

/// The report's cell for the doubling model: a 3x3 convolution, residual blocks of two 1x1 convolutions with an ELU between
/// them, and a last 1x1 convolution, initially zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResidualCell {
    /// Number of residual blocks. The report uses 4.
    pub blocks: usize,
}

impl Cell for ResidualCell {
    fn parameters(&self, channels: usize) -> Vec<Leaf> {
        let mut leaves = neighbours("conv0", channels, &[0]).to_vec();
        for block in 0..self.blocks {
            for i in 0..2 {
                leaves.extend(point(&format!("block{block}.conv{i}"), channels, &[1 + block, i]));
            }
        }
        leaves.extend(zeroed(point("conv1", channels, &[1 + self.blocks])));
        leaves
    }

    fn update<'g>(&self, params: &Params<'g>, cells: Sym<'g>) -> Sym<'g> {
        let mut h = params.conv("conv0", cells, Window::new(1, (1, 1))).keep();
        for block in 0..self.blocks {
            let inner = params.linear(&format!("block{block}.conv0"), h).elu().keep();
            h = (h + params.linear(&format!("block{block}.conv1"), inner)).keep();
        }
        params.linear("conv1", h)
    }
}

/// The report's cell for the non-doubling model: a 3x3 convolution, an ELU, and a 1x1 convolution, initially zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShallowCell;

impl Cell for ShallowCell {
    fn parameters(&self, channels: usize) -> Vec<Leaf> {
        [neighbours("conv0", channels, &[0]), zeroed(point("conv1", channels, &[1]))].concat()
    }

    fn update<'g>(&self, params: &Params<'g>, cells: Sym<'g>) -> Sym<'g> {
        let h = params.conv("conv0", cells, Window::new(1, (1, 1))).elu().keep();
        params.linear("conv1", h)
    }
}
