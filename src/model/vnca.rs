//! The two Variational Neural Cellular Automata: decoders whose only parameters are those of one local update rule,
//! z ← z + u(z), applied to every cell of a grid again and again.
//!
//! Palm, González-Duque, Sudhakaran, Risi: "Variational Neural Cellular Automata" (ICLR 2022); layer sizes as in the
//! report's code. Grids are (n, h, w, Z); channel 0 of the last one holds the Bernoulli logits.

use super::params::{Leaf, Params, Role, layer};
use crate::ir::Sym;
use crate::ir::ops::conv::Window;

/// Residual blocks of the doubling model's cell.
const BLOCKS: usize = 4;

/// The last layer of a cell starts at zero, so that an untrained automaton stands still.
fn zeroed(mut leaves: [Leaf; 2]) -> [Leaf; 2] {
    for leaf in &mut leaves {
        leaf.limit = 0.0;
    }
    leaves
}

pub fn doubling_leaves(z: usize) -> Vec<Leaf> {
    let point = |name: &str, path: &[usize]| layer(name, Role::PointWeight, &[z, z, 1, 1], path);
    let mut leaves = layer("cell.conv0", Role::ConvWeight, &[z, z, 3, 3], &[1, 0]).to_vec();
    for block in 0..BLOCKS {
        for i in 0..2 {
            leaves.extend(point(&format!("cell.block{block}.conv{i}"), &[1, 1 + block, i]));
        }
    }
    leaves.extend(zeroed(point("cell.conv1", &[1, 1 + BLOCKS])));
    leaves
}

pub fn nondoubling_leaves(z: usize) -> Vec<Leaf> {
    let mut leaves = layer("cell.conv0", Role::ConvWeight, &[z, z, 3, 3], &[1, 0]).to_vec();
    leaves.extend(zeroed(layer("cell.conv1", Role::PointWeight, &[z, z, 1, 1], &[1, 1])));
    leaves
}

/// A cell's update rule: the grid after one step.
pub type Cell<'g> = Box<dyn Fn(Sym<'g>) -> Sym<'g> + 'g>;

fn perceive<'g>(params: &Params<'g>, grid: Sym<'g>) -> Sym<'g> {
    let (weight, bias) = params.layer("cell.conv0");
    grid.conv(weight, Window::new(1, (1, 1))) + bias
}

pub fn doubling_cell<'g>(params: &Params<'g>) -> Cell<'g> {
    let p = params.clone();
    Box::new(move |grid| {
        let mut h = perceive(&p, grid);
        for block in 0..BLOCKS {
            let inner = p.linear(&format!("cell.block{block}.conv0"), h).elu();
            h = h + p.linear(&format!("cell.block{block}.conv1"), inner);
        }
        grid + p.linear("cell.conv1", h)
    })
}

pub fn nondoubling_cell<'g>(params: &Params<'g>) -> Cell<'g> {
    let p = params.clone();
    Box::new(move |grid| grid + p.linear("cell.conv1", perceive(&p, grid).elu()))
}

/// The grid after so many steps.
pub fn steps<'g>(cell: Cell<'g>, grid: Sym<'g>, count: usize) -> Sym<'g> {
    grid.graph().repeat(count, &[grid], |_, carry| (vec![cell(carry[0])], vec![]))[0]
}

/// The latent at every place of a square grid.
pub fn repeated_over_grid(z: Sym<'_>, side: usize) -> Sym<'_> {
    let d = z.dims();
    z.broadcast_in_dim(&[d[0], side, side, d[1]], &[0, 3])
}

/// Channel 0.
pub fn logits(grid: Sym<'_>) -> Sym<'_> {
    grid.slice_axis(3, 0, 1)
}

/// One cell that doubles `doublings` times into a grid, with `count` steps after each doubling.
pub fn doubling_decode<'g>(params: &Params<'g>, z: Sym<'g>, doublings: usize, count: usize) -> Sym<'g> {
    let grown = (0..doublings)
        .fold(repeated_over_grid(z, 1), |grid, _| steps(doubling_cell(params), grid.double_grid(), count));
    logits(grown)
}
