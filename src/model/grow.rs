//! Automata as decoders. Their only parameters are those of one local update rule, z ← z + u(z), which is applied repeatedly to
//! every cell of a grid.
//!
//! Source: Palm, González-Duque, Sudhakaran, Risi, "Variational Neural Cellular Automata" (ICLR 2022). Grids are (n, h, w, Z).
//! The first channels of the final grid are the likelihood's outputs.

use std::sync::Arc;

use anyhow::Result;

use super::cell::Cell;
use super::decoder::{Canvas, Decoder, GrowOptions};
use super::frame::Frame;
use crate::engine::ir::ops::layout::Padding;
use crate::engine::ir::{Loop, RepeatOptions, Sym};
use crate::engine::random::graph::{bernoulli, randint, split, split_each};
use crate::engine::shape::{DType, Shape};
use crate::error::valid;
use crate::nn::params::{Leaf, Params, scoped};

/// Scope of an automaton's parameters.
pub const SCOPE: &str = "cell";

/// How a grid grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// A number of steps on a grid that has its full size from the start.
    Steps(usize),
    /// Repeated doublings, in which every cell becomes four cells. Steps follow each doubling.
    Doublings {
        /// Number of doublings. The first grid has 1 / 2^doublings of the rows and columns.
        doublings: usize,
        /// Number of steps after each doubling.
        steps: usize,
    },
}

/// A decoder that grows a grid with an automaton.
#[derive(Clone)]
pub struct Grow {
    /// The update rule.
    pub cell: Arc<dyn Cell>,
    /// How the grid reaches its full size.
    pub growth: Growth,
    /// Side of the square in the middle of the first grid whose cells start as the latent; the cells around it start as zeros.
    /// `None`: the whole grid.
    ///
    /// If all cells start equal, only the border of the grid lets them differ by position. A smaller square gives a position
    /// relative to it, as in Mordvintsev, Randazzo, Niklasson, Levin, "Growing Neural Cellular Automata" (2020).
    pub start_side: Option<usize>,
    /// Probability that a cell is updated in a step, drawn for every cell and step.
    pub update_prob: f64,
}

/// An automaton in a graph: a cell with its parameters, and how the steps run.
pub struct Automaton<'g, 'a> {
    cell: &'a dyn Cell,
    params: Params<'g>,
    update_prob: f64,
    memory: RepeatOptions,
}

/// Damage of the first grids of a batch. The key (2) draws the position, and for doubling grids also the time.
#[derive(Clone, Copy)]
pub struct Damage<'g> {
    /// Number of damaged grids, which are the first ones of the batch.
    pub grids: usize,
    /// Key of the corners and of the doubling.
    pub key: Sym<'g>,
}

impl<'g> Damage<'g> {
    /// Returns the grids with a damaged square, whose side is half of the grid's smaller side.
    pub fn apply(&self, cells: Sym<'g>) -> Sym<'g> {
        let d = cells.dims();
        let (hurt, whole) = (cells.slice_axis(0, 0, self.grids), cells.slice_axis(0, self.grids, d[0]));
        let hurt = damage(hurt, split(self.key, self.grids), d[1].min(d[2]) / 2);
        Sym::concat(&[hurt, whole], 0)
    }

    /// Returns the grids after doubling `i` of `doublings`, damaged if the key draws this doubling.
    fn after_doubling(&self, i: usize, doublings: usize, cells: Sym<'g>) -> Sym<'g> {
        let [time, place] = split_each(self.key);
        let now = randint(time, &[], 0, doublings as i32).eq(time.graph().scalar(DType::S32, i as f64));
        now.select(Damage { key: place, ..*self }.apply(cells), cells)
    }
}

/// Grids and the keys that choose which cells the next steps update. If every step updates every cell, the keys are unused.
#[derive(Clone, Copy)]
pub struct Grids<'g> {
    /// The grids, (n, h, w, Z).
    pub cells: Sym<'g>,
    /// A key for each grid, (n, 2) of u32.
    pub keys: Sym<'g>,
}

impl<'g, 'a> Automaton<'g, 'a> {
    /// Returns an automaton that updates every cell in every step.
    pub fn new(cell: &'a dyn Cell, params: Params<'g>) -> Automaton<'g, 'a> {
        Automaton { cell, params, update_prob: 1.0, memory: RepeatOptions::default() }
    }

    /// Sets the probability that a cell is updated in a step.
    pub fn with_update_prob(self, update_prob: f64) -> Self {
        Automaton { update_prob, ..self }
    }

    /// Sets which values of the forward pass are saved for the gradient.
    pub fn saving(self, memory: RepeatOptions) -> Self {
        Automaton { memory, ..self }
    }

    /// Returns the grids after one step: z + u(z) in the updated cells.
    pub fn step(&self, grids: Grids<'g>) -> Grids<'g> {
        let Grids { cells, keys } = grids;
        let change = self.cell.update(&self.params, cells);
        if change.shape() != cells.shape() {
            let (got, grids) = (change.shape(), cells.shape());
            cells.graph().reject(&format!("Cell::update returned {got}, and the grids are {grids}"));
        }
        if self.update_prob == 1.0 {
            return Grids { cells: cells + change, keys };
        }
        let d = cells.dims();
        let [next, draw] = split_each(keys);
        let chosen = bernoulli(draw, &[d[1], d[2], 1], cells.scalar_like(self.update_prob));
        Grids { cells: cells + chosen.mask(change), keys: next }
    }

    /// Returns the grids after `count` steps.
    pub fn steps(&self, grids: Grids<'g>, count: usize) -> Grids<'g> {
        self.repeated(grids, None, count)
    }

    /// Returns the grids after `count` steps. The count is an s32 scalar, known at run time and at most `most`.
    pub fn steps_upto(&self, grids: Grids<'g>, count: Sym<'g>, most: usize) -> Grids<'g> {
        self.repeated(grids, Some(count), most)
    }

    /// Returns the grids after `count` steps, at least one, and the values that `watch` computes from the cells after each step,
    /// stacked: (count, ...).
    pub fn watched(
        &self,
        grids: Grids<'g>,
        count: usize,
        watch: impl Fn(Sym<'g>) -> Vec<Sym<'g>>,
    ) -> (Grids<'g>, Vec<Sym<'g>>) {
        let g = grids.cells.graph();
        let last = g.repeat(count, &[grids.cells, grids.keys], |_, carry| {
            let next = self.step(Grids { cells: carry[0], keys: carry[1] });
            (vec![next.cells, next.keys], watch(next.cells))
        });
        (Grids { cells: last[0], keys: last[1] }, last[2..].to_vec())
    }

    fn repeated(&self, grids: Grids<'g>, count: Option<Sym<'g>>, most: usize) -> Grids<'g> {
        if most == 0 {
            return grids;
        }
        let carry = [grids.cells, grids.keys];
        let how = Loop { options: self.memory, trips: count, max_trips: most, init: &carry };
        let last = grids.cells.graph().repeat_with(how, |_, carry| {
            let next = self.step(Grids { cells: carry[0], keys: carry[1] });
            (vec![next.cells, next.keys], vec![])
        });
        Grids { cells: last[0], keys: last[1] }
    }
}

impl Grow {
    /// Returns an automaton that takes `steps` steps from a full grid of latents.
    pub fn new(cell: impl Cell + 'static, steps: usize) -> Grow {
        Grow { cell: Arc::new(cell), growth: Growth::Steps(steps), start_side: None, update_prob: 1.0 }
    }

    /// Returns an automaton whose grid reaches its full size in `doublings` doublings, with `steps` steps after each.
    pub fn doubling(cell: impl Cell + 'static, doublings: usize, steps: usize) -> Grow {
        Grow { growth: Growth::Doublings { doublings, steps }, ..Grow::new(cell, steps) }
    }

    /// Makes the automaton start from a square of `side` x `side` cells in the middle of its grid.
    pub fn from_seed(self, side: usize) -> Grow {
        Grow { start_side: Some(side), ..self }
    }

    /// Checks the fields for images of these sizes.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid), with the field that is out of range.
    pub fn check(&self, frame: &Frame) -> Result<()> {
        let (Growth::Steps(steps) | Growth::Doublings { steps, .. }) = self.growth;
        if let Growth::Doublings { doublings, .. } = self.growth {
            let [rows, columns] = frame.grid;
            let most = rows.trailing_zeros().min(columns.trailing_zeros()) as usize;
            valid!(
                doublings <= most,
                "doublings",
                "{doublings}: at most {most} reach the {rows} x {columns} grid from whole cells"
            );
        }
        valid!(steps <= 10_000, "nca_steps", "{steps} is too many: at most 10000");
        if let Some(side) = self.start_side {
            let most = frame.side();
            valid!(
                (1..=most).contains(&side),
                "start_side",
                "{side}: it must be from 1 to {most}, the side of the grid"
            );
        }
        valid!(
            self.update_prob > 0.0 && self.update_prob <= 1.0,
            "update_prob",
            "{}: it must be over 0 and at most 1",
            self.update_prob
        );
        Ok(())
    }

    /// Returns rows and columns of the first grid: those of the last one, divided by 2^doublings.
    pub fn first_sides(&self, frame: &Frame) -> [usize; 2] {
        match self.growth {
            Growth::Steps(_) => frame.grid,
            Growth::Doublings { doublings, .. } => frame.grid.map(|side| side >> doublings),
        }
    }

    /// Returns the phases of growth: whether the grid doubles, and the number of steps that follow.
    fn phases(&self) -> impl Iterator<Item = (bool, usize)> {
        let (doubles, count, steps) = match self.growth {
            Growth::Steps(steps) => (false, 1, steps),
            Growth::Doublings { doublings, steps } => (true, doublings, steps),
        };
        (0..count).map(move |_| (doubles, steps))
    }

    /// Returns the automaton with a model's parameters.
    pub fn automaton<'g>(&self, params: &Params<'g>) -> Automaton<'g, '_> {
        Automaton::new(self.cell.as_ref(), params.scope(SCOPE)).with_update_prob(self.update_prob)
    }

    /// Returns the first grids of the growth from latents (n, Z).
    pub fn start<'g>(&self, frame: &Frame, z: Sym<'g>) -> Sym<'g> {
        let (d, grid) = (z.dims(), self.first_sides(frame));
        let [rows, columns] = grid.map(|side| self.start_side.map_or(side, |square| square.min(side)));
        let seed = z.broadcast_in_dim(&[d[0], rows, columns, d[1]], &[0, 3]);
        pad_to_centre(seed, 1, grid, 0.0)
    }

    /// Returns the final grids (n, rows, columns, Z) of the growth from latents (n, Z), with keys (n, 2).
    pub fn grow<'g>(
        &self,
        params: &Params<'g>,
        frame: &Frame,
        z: Sym<'g>,
        keys: Sym<'g>,
        options: &GrowOptions<'g>,
    ) -> Sym<'g> {
        let automaton = self.automaton(params).saving(options.memory);
        let phases: Vec<(bool, usize)> = self.phases().collect();
        let mut grids = Grids { cells: self.start(frame, z), keys };
        for (i, (doubles, steps)) in phases.iter().enumerate() {
            if *doubles {
                let doubled = grids.cells.double_grid();
                grids.cells = match &options.damage {
                    Some(damage) => damage.after_doubling(i, phases.len(), doubled),
                    None => doubled,
                };
            }
            grids = automaton.steps(grids, *steps);
        }
        grids.cells
    }

    /// Returns the final grids of the growth and its stages: what `show` computes from the cells (n, ., ., Z), as (stages, n, rows,
    /// columns, k), after every doubling and every step; without doublings, at the start and after every step. `show` keeps rows
    /// and columns. A smaller grid is centred in the last one. Its margin is `outside`.
    pub fn stages<'g>(
        &self,
        params: &Params<'g>,
        frame: &Frame,
        z: Sym<'g>,
        keys: Sym<'g>,
        show: impl Fn(Sym<'g>) -> Sym<'g>,
        outside: f64,
    ) -> (Grids<'g>, Sym<'g>) {
        let automaton = self.automaton(params);
        let mut grids = Grids { cells: self.start(frame, z), keys };
        let framed = |shown| pad_to_centre(shown, 2, frame.grid, outside);
        let mut shown = Vec::new();
        for (doubles, steps) in self.phases() {
            if doubles {
                grids.cells = grids.cells.double_grid();
            }
            let first = show(grids.cells);
            shown.push(framed(first.reshape(&[&[1], first.dims().as_slice()].concat())));
            if steps > 0 {
                let (next, stages) = automaton.watched(grids, steps, |cells| vec![show(cells)]);
                grids = next;
                shown.push(framed(stages[0]));
            }
        }
        (grids, Sym::concat(&shown, 0))
    }
}

impl Decoder for Grow {
    fn parameters(&self, latent: usize, _canvas: &Canvas) -> Vec<Leaf> {
        scoped(SCOPE, &[], self.cell.parameters(latent))
    }

    fn decode<'g>(
        &self,
        params: &Params<'g>,
        z: Sym<'g>,
        keys: Sym<'g>,
        canvas: &Canvas,
        options: &GrowOptions<'g>,
    ) -> Sym<'g> {
        first_channels(self.grow(params, &canvas.frame, z, keys, options), canvas.outputs.channels)
    }

    fn check(&self, canvas: &Canvas) -> Result<()> {
        Grow::check(self, &canvas.frame)
    }

    fn automaton(&self) -> Option<&Grow> {
        Some(self)
    }
}

/// Returns the first channels of grids (n, h, w, Z). The likelihood takes them as its outputs.
pub fn first_channels(cells: Sym<'_>, channels: usize) -> Sym<'_> {
    cells.slice_axis(3, 0, channels)
}

/// Pads grids, whose rows and columns are the dimensions `axis` and `axis + 1`, evenly to these numbers.
fn pad_to_centre(grids: Sym<'_>, axis: usize, [rows, columns]: [usize; 2], fill: f64) -> Sym<'_> {
    let d = grids.dims();
    if d[axis..axis + 2] == [rows, columns] {
        return grids;
    }
    let mut padding = vec![Padding::default(); grids.rank()];
    for (i, side) in [rows, columns].into_iter().enumerate() {
        let around = side - d[axis + i];
        padding[axis + i] = Padding::new((around / 2) as i64, (around - around / 2) as i64);
    }
    grids.pad(grids.scalar_like(fill), &padding)
}

/// Returns the number of positions of a square of `side` cells along an axis of `length` cells that damage can draw.
pub fn damage_corners(side: usize, length: usize) -> usize {
    // JAX's randint with an upper bound of 0 or 1 returns 0: a square as large as the grid has one position.
    (length - side).max(1)
}

/// Returns the grids with a square of `side` x `side` cells set to zero in every channel. Each grid's key (n, 2) draws the
/// corner.
pub fn damage<'g>(cells: Sym<'g>, keys: Sym<'g>, side: usize) -> Sym<'g> {
    let d = cells.dims();
    let along = |axis: usize| {
        let corners = randint(keys, &[2], 0, damage_corners(side, d[1 + axis]) as i32);
        corners.slice_axis(1, axis, axis + 1)
    };
    let corners = match d[1] == d[2] {
        true => randint(keys, &[2], 0, damage_corners(side, d[1]) as i32),
        false => Sym::concat(&[along(0), along(1)], 1),
    };
    damage_at(cells, corners, corners.scalar_like(side as f64))
}

/// Returns the grids with a square set to zero in every channel. The corners are (n, 2) of s32, row and column; the side is an
/// s32 scalar.
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
