//! The two Variational Neural Cellular Automata: decoders whose only parameters are those of one local update rule,
//! z ← z + u(z), applied to every cell of a grid again and again.
//!
//! Palm, González-Duque, Sudhakaran, Risi: "Variational Neural Cellular Automata" (ICLR 2022); layer sizes as in the
//! report's code. Grids are (n, h, w, Z); channel 0 of the last one holds the Bernoulli logits.

use super::loss::Course;
use super::{Kind, Model, SIDE};
use crate::engine::ir::ops::conv::Window;
use crate::engine::ir::ops::layout::Padding;
use crate::engine::ir::{Loop, Sym};
use crate::engine::random::graph::{bernoulli, randint, split, split_each};
use crate::engine::shape::{DType, Shape};
use crate::nn::params::{Leaf, Params, Role, layer};

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

/// An automaton: a model's update rule with its parameters, and how its steps are run.
pub struct Automaton<'g> {
    model: Model,
    params: Params<'g>,
    course: Course<'g>,
}

/// Damage of the first `grids` of a batch, at a place and (while a grid doubles) a time drawn from the key (2).
#[derive(Clone, Copy)]
pub struct Damage<'g> {
    pub grids: usize,
    pub key: Sym<'g>,
}

impl<'g> Damage<'g> {
    /// The grids, damaged by half of their height and width.
    pub fn of(&self, cells: Sym<'g>) -> Sym<'g> {
        let d = cells.dims();
        let (hurt, whole) = (cells.slice_axis(0, 0, self.grids), cells.slice_axis(0, self.grids, d[0]));
        let hurt = damage(hurt, split(self.key, self.grids), d[1] / 2);
        Sym::concat(&[hurt, whole], 0)
    }

    /// The grids after doubling `i` of `doublings`, damaged if that is the one.
    fn after_doubling(&self, i: usize, doublings: usize, cells: Sym<'g>) -> Sym<'g> {
        let [time, place] = split_each(self.key);
        let now = randint(time, &[], 0, doublings as i32).eq(time.graph().scalar(DType::S32, i as f64));
        now.select(Damage { key: place, ..*self }.of(cells), cells)
    }
}

/// Grids (n, h, w, Z), and for each the key (n, 2) that chooses the cells of the next steps. Where every cell takes
/// every step, the keys serve nothing.
#[derive(Clone, Copy)]
pub struct Grids<'g> {
    pub cells: Sym<'g>,
    pub keys: Sym<'g>,
}

impl<'g> Automaton<'g> {
    pub fn new(model: &Model, params: &Params<'g>) -> Automaton<'g> {
        Automaton { model: *model, params: params.clone(), course: Course::default() }
    }

    /// The automaton run as training asks.
    pub fn on(self, course: &Course<'g>) -> Automaton<'g> {
        Automaton { course: *course, ..self }
    }

    /// u(z), the change of every cell, of the size of the grids.
    fn update(&self, cells: Sym<'g>) -> Sym<'g> {
        let (weight, bias) = self.params.layer("cell.conv0");
        let mut h = cells.conv(weight, Window::new(1, (1, 1))) + bias;
        if self.model.kind == Kind::Doubling {
            h = h.keep();
            for block in 0..BLOCKS {
                let inner = self.params.linear(&format!("cell.block{block}.conv0"), h).elu().keep();
                h = (h + self.params.linear(&format!("cell.block{block}.conv1"), inner)).keep();
            }
        } else {
            h = h.elu().keep();
        }
        self.params.linear("cell.conv1", h)
    }

    /// The grids after one step: z + u(z), in the cells that take it.
    pub fn step(&self, grids: Grids<'g>) -> Grids<'g> {
        let Grids { cells, keys } = grids;
        let change = self.update(cells);
        if self.model.update_prob == 1.0 {
            return Grids { cells: cells + change, keys };
        }
        let d = cells.dims();
        let [next, draw] = split_each(keys);
        let chosen = bernoulli(draw, &[d[1], d[2], 1], cells.like(self.model.update_prob));
        Grids { cells: cells + chosen.mask(change), keys: next }
    }

    /// The grids after `count` steps.
    pub fn steps(&self, grids: Grids<'g>, count: usize) -> Grids<'g> {
        self.repeated(grids, None, count)
    }

    /// The grids after `count` steps, an s32 scalar known at run time and at most `most`.
    pub fn steps_upto(&self, grids: Grids<'g>, count: Sym<'g>, most: usize) -> Grids<'g> {
        self.repeated(grids, Some(count), most)
    }

    /// The grids after `count` steps, at least one, and the logits after each: (count, n, h, w, 1).
    pub fn watched(&self, grids: Grids<'g>, count: usize) -> (Grids<'g>, Sym<'g>) {
        let g = grids.cells.graph();
        let last = g.repeat(count, &[grids.cells, grids.keys], |_, carry| {
            let next = self.step(Grids { cells: carry[0], keys: carry[1] });
            (vec![next.cells, next.keys], vec![logits(next.cells)])
        });
        (Grids { cells: last[0], keys: last[1] }, last[2])
    }

    fn repeated(&self, grids: Grids<'g>, count: Option<Sym<'g>>, most: usize) -> Grids<'g> {
        let carry = [grids.cells, grids.keys];
        let how = Loop { options: self.course.memory, trips: count, max_trips: most, init: &carry };
        let last = grids.cells.graph().repeat_with(how, |_, carry| {
            let next = self.step(Grids { cells: carry[0], keys: carry[1] });
            (vec![next.cells, next.keys], vec![])
        });
        Grids { cells: last[0], keys: last[1] }
    }

    /// The grids that a decoder ends with, from latents (n, Z) and keys (n, 2): the latent at every place of a grid,
    /// then steps; or, for the doubling model, as often as the model says, a doubling and then steps.
    pub fn grow(&self, z: Sym<'g>, keys: Sym<'g>) -> Sym<'g> {
        let model = &self.model;
        let seed = Grids { cells: start(model, z), keys };
        let grown = match model.kind {
            Kind::Doubling => (0..model.doublings).fold(seed, |grids, i| {
                let doubled = grids.cells.double_grid();
                let cells = match &self.course.damage {
                    Some(damage) => damage.after_doubling(i, model.doublings, doubled),
                    None => doubled,
                };
                self.steps(Grids { cells, ..grids }, model.nca_steps)
            }),
            Kind::Baseline | Kind::NonDoubling => self.steps(seed, model.nca_steps),
        };
        grown.cells
    }
}

/// The grids that an automaton starts from: the latent (n, Z) at every place; or in the square in the middle that the model
/// says, with zeros around it.
///
/// Where all cells start alike, the grid's edges alone tell them where they are. Around a seed the seed tells, as in Mordvintsev,
/// Randazzo, Niklasson, Levin: "Growing Neural Cellular Automata" (2020).
pub fn start<'g>(model: &Model, z: Sym<'g>) -> Sym<'g> {
    let (d, grid) = (z.dims(), model.seed_side());
    let square = grid.min(model.start_side);
    let seed = z.broadcast_in_dim(&[d[0], square, square, d[1]], &[0, 3]);
    in_the_middle(seed, 1, grid, 0.0)
}

/// Channel 0: Bernoulli logits (n, h, w, 1).
pub fn logits(cells: Sym<'_>) -> Sym<'_> {
    cells.slice_axis(3, 0, 1)
}

/// What a decoder goes through: the grids that it ends with, and the logits (stages, n, 32, 32, 1) after every doubling
/// and every step; without doublings, at the start and after every step. A grid that is smaller than the image stands
/// in its middle, and what lies around it is 0 with certainty.
pub fn stages<'g>(model: &Model, params: &Params<'g>, z: Sym<'g>, keys: Sym<'g>) -> (Grids<'g>, Sym<'g>) {
    let automaton = Automaton::new(model, params);
    let mut grids = Grids { cells: start(model, z), keys };
    let phases = if model.kind == Kind::Doubling { model.doublings } else { 1 };
    let framed = |logits| in_the_middle(logits, 2, SIDE, f64::NEG_INFINITY);
    let mut shown = Vec::new();
    for _ in 0..phases {
        if model.kind == Kind::Doubling {
            grids.cells = grids.cells.double_grid();
        }
        let first = logits(grids.cells);
        shown.push(framed(first.reshape(&[&[1], first.dims().as_slice()].concat())));
        if model.nca_steps > 0 {
            let (next, course) = automaton.watched(grids, model.nca_steps);
            grids = next;
            shown.push(framed(course));
        }
    }
    (grids, Sym::concat(&shown, 0))
}

/// Squares whose height and width are the dimensions from `axis`, in a margin that makes them as large as `side`.
fn in_the_middle(squares: Sym<'_>, axis: usize, side: usize, fill: f64) -> Sym<'_> {
    let around = side - squares.dims()[axis];
    if around == 0 {
        return squares;
    }
    let low = around / 2;
    let mut padding = vec![Padding::default(); squares.rank()];
    padding[axis..axis + 2].fill(Padding::edges(low as i64, (around - low) as i64));
    squares.pad(squares.like(fill), &padding)
}

/// Corners that a square of `side` cells can have along an axis of `length`.
pub fn damage_places(side: usize, length: usize) -> usize {
    // JAX's draw below 0 or 1 is 0: a square as large as the grid has one place.
    (length - side).max(1)
}

/// The grids with a square of `side` cells set to zero in every channel, at a corner that each grid's key (n, 2)
/// draws.
pub fn damage<'g>(cells: Sym<'g>, keys: Sym<'g>, side: usize) -> Sym<'g> {
    let places = damage_places(side, cells.dims()[1]) as i32;
    let corners = randint(keys, &[2], 0, places);
    damage_at(cells, corners, corners.like(side as f64))
}

/// The grids with a square set to zero in every channel: corners (n, 2) of s32, row and column, and the side, an s32
/// scalar.
pub fn damage_at<'g>(cells: Sym<'g>, corners: Sym<'g>, side: Sym<'g>) -> Sym<'g> {
    let d = cells.dims();
    let n = d[0];
    let inside = |axis: usize| {
        let corner = corners.slice_axis(1, axis, axis + 1);
        let place = cells.graph().iota(&Shape::s32(&[n, d[1 + axis]]), 1);
        let inside = place.ge(corner).and(place.lt(corner + side));
        let mut sizes = [n, 1, 1, 1];
        sizes[1 + axis] = d[1 + axis];
        inside.reshape(&sizes)
    };
    inside(0).and(inside(1)).logical_not().mask(cells)
}
