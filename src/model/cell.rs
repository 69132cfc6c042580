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

    /// Returns the cell as convolutions, for what computes steps without a graph, such as the interactive page. Together they
    /// compute z + u(z). `None`, the default: the cell is not described in this way.
    fn layers(&self) -> Option<Vec<CellLayer>> {
        None
    }
}

/// A convolution of a cell, with stride 1 and zeros around the grid. It reads one of three grids and writes another one: grid 0 is
/// z, the other two are for values in between. The last convolution adds to grid 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellLayer {
    /// Name of the layer, as in [`Cell::parameters`]. Its weight has the kernel's size, which is odd.
    pub name: String,
    /// The grid that is read.
    pub from: usize,
    /// The grid that is written, another one.
    pub to: usize,
    /// Whether an ELU follows.
    pub elu: bool,
    /// Whether the result is added to the grid, instead of replacing it.
    pub add: bool,
}

impl CellLayer {
    /// Returns a convolution from one grid to another, without an ELU.
    pub fn new(name: &str, from: usize, to: usize) -> CellLayer {
        CellLayer { name: name.into(), from, to, elu: false, add: false }
    }

    /// Adds an ELU.
    pub fn elu(self) -> CellLayer {
        CellLayer { elu: true, ..self }
    }

    /// Makes the layer add to its grid.
    pub fn adding(self) -> CellLayer {
        CellLayer { add: true, ..self }
    }
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

    fn layers(&self) -> Option<Vec<CellLayer>> {
        let mut layers = vec![CellLayer::new("conv0", 0, 1)];
        for block in 0..self.blocks {
            layers.push(CellLayer::new(&format!("block{block}.conv0"), 1, 2).elu());
            layers.push(CellLayer::new(&format!("block{block}.conv1"), 2, 1).adding());
        }
        layers.push(CellLayer::new("conv1", 1, 0).adding());
        Some(layers)
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

    fn layers(&self) -> Option<Vec<CellLayer>> {
        Some(vec![CellLayer::new("conv0", 0, 1).elu(), CellLayer::new("conv1", 1, 0).adding()])
    }
}
