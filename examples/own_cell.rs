//! A new cell: fixed filters read a cell's neighbours, and a small network computes the change of the cell. It is trained as the
//! decoder of a VAE on the embedded digits.
//!
//! `cargo run --release --example own_cell`

use std::path::PathBuf;

use anyhow::Result;
use vnca::chain;
use vnca::data::{self, Part};
use vnca::engine::array::Array;
use vnca::engine::ir::Sym;
use vnca::engine::ir::ops::conv::Window;
use vnca::engine::runtime::{Device, Mesh};
use vnca::model::cell::zeroed;
use vnca::model::encoder::ConvEncoder;
use vnca::model::{Bernoulli, Cell, Elbo, Grow, Vae};
use vnca::nn::optimiser::{Adam, ClipByGlobalNorm};
use vnca::nn::params::{Leaf, Params, Role, layer};
use vnca::train::{RunOptions, Trainer};

/// The identity, two Sobel filters and the Laplacian, as in Mordvintsev and others (2020).
const FILTERS: [[f32; 9]; 4] = [
    [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
    [-0.125, 0.0, 0.125, -0.25, 0.0, 0.25, -0.125, 0.0, 0.125],
    [-0.125, -0.25, -0.125, 0.0, 0.0, 0.0, 0.125, 0.25, 0.125],
    [0.25, 0.5, 0.25, 0.5, -3.0, 0.5, 0.25, 0.5, 0.25],
];

// ANCHOR: cell
/// The update rule: filters, a layer of `hidden` numbers, and a layer back to the channels, initially zero.
struct FilterCell {
    hidden: usize,
}

impl Cell for FilterCell {
    fn parameters(&self, channels: usize) -> Vec<Leaf> {
        let seen = FILTERS.len() * channels;
        let hidden = layer("hidden", Role::PointWeight, &[self.hidden, seen, 1, 1], &[0]);
        let out = layer("out", Role::PointWeight, &[channels, self.hidden, 1, 1], &[1]);
        [hidden, zeroed(out)].concat()
    }

    fn update<'g>(&self, params: &Params<'g>, cells: Sym<'g>) -> Sym<'g> {
        let channels = cells.dims()[3];
        let kernel = cells.graph().constant(kernel(channels));
        let seen = cells.conv(kernel, Window::new(1, (1, 1)));
        params.linear("out", params.linear("hidden", seen).elu())
    }
}
// ANCHOR_END: cell

/// Returns the filters as a kernel (3, 3, channels, filters x channels) that applies each filter to every channel separately.
fn kernel(channels: usize) -> Array {
    let outputs = FILTERS.len() * channels;
    let mut values = vec![0f32; 9 * channels * outputs];
    for (i, filter) in FILTERS.iter().enumerate() {
        for (tap, weight) in filter.iter().enumerate() {
            for channel in 0..channels {
                values[(tap * channels + channel) * outputs + i * channels + channel] = *weight;
            }
        }
    }
    Array::new(&[3, 3, channels, outputs], &values)
}

fn main() -> Result<()> {
    let folder = std::env::args().nth(1).map_or_else(|| std::env::temp_dir().join("own_cell"), PathBuf::from);
    let _ = std::fs::remove_dir_all(&folder);
    let mesh = Mesh::open(&Device::Cpu, 1)?;
    let digits = data::load(data::GLYPHS)?;
    let images = digits.split(Part::Train)?.to_array();

    // ANCHOR: model
    let model = Vae::new(
        "own",
        16,
        ConvEncoder::default(),
        Grow::doubling(FilterCell { hidden: 32 }, 5, 2),
        Bernoulli,
    );
    // ANCHOR_END: model
    println!("{} parameters, {} of them the cell's", model.parameter_count(), {
        let cell = model.leaves().into_iter().filter(|leaf| leaf.name.starts_with("cell."));
        cell.map(|leaf| leaf.shape.iter().product::<usize>()).sum::<usize>()
    });
    let mut losses = Vec::new();
    // ANCHOR: train
    let mut run = Trainer::new(&mesh, Elbo::new(model))
        .optimiser(chain![ClipByGlobalNorm(10.0), Adam::new(1e-3)])
        .options(RunOptions { steps: 60, batch: 8, checkpoint_every: 60, ..RunOptions::default() })
        .create(&folder, Some(images))?;
    run.train(&mut |step: usize, loss: f32| {
        println!("step {step:3}: loss {loss:.1} nats");
        losses.push(loss);
    })?;
    // ANCHOR_END: train
    println!("the run is in {}", folder.display());
    anyhow::ensure!(losses[losses.len() - 1] < 0.7 * losses[0], "the loss has not fallen: {losses:?}");
    Ok(())
}
