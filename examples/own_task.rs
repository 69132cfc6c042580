//! A new task: growing one picture with a mean squared error, a pool and damage, without a VAE and a training set. Source:
//! Mordvintsev, Randazzo, Niklasson, Levin, "Growing Neural Cellular Automata" (2020).
//!
//! `cargo run --release --example own_task`

use std::path::PathBuf;

use anyhow::Result;
use vnca::chain;
use vnca::engine::array::Array;
use vnca::engine::ir::Sym;
use vnca::engine::random::graph as draw;
use vnca::engine::runtime::{Device, Mesh};
use vnca::error::Error;
use vnca::model::Cell;
use vnca::model::cell::ShallowCell;
use vnca::model::grow::{Automaton, Grids, damage, first_channels};
use vnca::nn::optimiser::{Adam, ClipEach};
use vnca::nn::params::Leaf;
use vnca::train::task::{Entry, Outcome, Sizes, Spread, Step, Task};
use vnca::train::{RunOptions, Trainer};

const SIDE: usize = 16;
const CHANNELS: usize = 12;
const POOL: usize = 64;

/// Grows a picture (SIDE, SIDE, colours) from one cell.
struct Growing {
    cell: ShallowCell,
    picture: Array,
}

impl Growing {
    /// Returns a grid of zeros except for the middle cell, which is 1 in all channels but the colours.
    fn seed(&self) -> Vec<f32> {
        let mut cells = vec![0f32; SIDE * SIDE * CHANNELS];
        let middle = (SIDE / 2 * SIDE + SIDE / 2) * CHANNELS;
        cells[middle + self.picture.dims()[2]..middle + CHANNELS].fill(1.0);
        cells
    }
}

impl Task for Growing {
    fn name(&self) -> String {
        "growing".into()
    }

    fn parameters(&self) -> Vec<Leaf> {
        self.cell.parameters(CHANNELS)
    }

    fn check(&self, sizes: &Sizes) -> Result<()> {
        match sizes.each() <= POOL / sizes.replicas {
            true => Ok(()),
            false => Err(Error::Invalid {
                field: "batch",
                problem: format!("{}: more than the pool", sizes.batch),
            }
            .into()),
        }
    }

    // ANCHOR: task
    /// Each replica has its own rows of the pool. All grids are initially seeds.
    fn state(&self, sizes: &Sizes) -> Vec<Entry> {
        let rows = POOL / sizes.replicas;
        let seeds = Array::new(&[rows, SIDE, SIDE, CHANNELS], &self.seed().repeat(rows));
        vec![Entry::new("pool", seeds, Spread::Own)]
    }

    fn step<'g>(&self, step: Step<'g, '_>) -> Outcome<'g> {
        let (g, n, pool) = (step.graph, step.sizes.each(), step.state["pool"]);
        let [order, hurt, count] = draw::split_each(step.keys[0]);
        // Grids from the pool: the first one is replaced by a seed, the last one is damaged.
        let rows = draw::permutation(order, pool.dims()[0]).slice_axis(0, 0, n);
        let cells = pool.take(rows);
        let seed = g.constant(Array::new(&[1, SIDE, SIDE, CHANNELS], &self.seed()));
        let hurt = damage(cells.slice_axis(0, n - 1, n), draw::split(hurt, 1), SIDE / 2);
        let cells = Sym::concat(&[seed, cells.slice_axis(0, 1, n - 1), hurt], 0);
        // 12 to 19 steps, in each of which a cell is updated with probability 0.5.
        let automaton = Automaton::new(&self.cell, step.params).with_update_prob(0.5);
        let keys = draw::split(step.keys[1], n);
        let grown = automaton.steps_upto(Grids { cells, keys }, draw::randint(count, &[], 12, 20), 19).cells;
        let colours = first_channels(grown, self.picture.dims()[2]);
        let target = g.constant(self.picture.clone()).broadcast_in_dim(&colours.dims(), &[1, 2, 3]);
        let loss = (colours - target).square().mean(&[0, 1, 2, 3]);
        Outcome::new(loss).with("pool", pool.set_rows(rows, grown))
    }
    // ANCHOR_END: task
}

/// A yellow disc with a red ring around it.
fn picture() -> Array {
    let colour = |i: usize| {
        let (y, x) = ((i / SIDE) as f32 - 7.5, (i % SIDE) as f32 - 7.5);
        match x.hypot(y) {
            r if r < 3.0 => [1.0, 0.8, 0.0],
            r if r < 6.0 => [0.9, 0.1, 0.1],
            _ => [0.0; 3],
        }
    };
    Array::new(&[SIDE, SIDE, 3], &(0..SIDE * SIDE).flat_map(colour).collect::<Vec<f32>>())
}

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).map_or_else(|| std::env::temp_dir().join("own_task"), PathBuf::from);
    let _ = std::fs::remove_dir_all(&folder);
    let mesh = Mesh::open(&Device::Cpu, 2)?;
    let (mut first, mut last) = (None, 0.0);
    let mut run = Trainer::new(&mesh, Growing { cell: ShallowCell, picture: picture() })
        .optimiser(chain![ClipEach(1.0), Adam::new(2e-3)])
        .options(RunOptions { steps: 400, batch: 8, checkpoint_every: 200, ..RunOptions::default() })
        .create(&folder, None)?;
    run.train(&mut |step: usize, loss: f32| {
        println!("step {step:3}: mean squared error {loss:.4}");
        (first, last) = (first.or(Some(loss)), loss);
    })?;
    anyhow::ensure!(last < 0.5 * first.unwrap_or(0.0), "the picture does not grow: {last}");
    Ok(())
}
