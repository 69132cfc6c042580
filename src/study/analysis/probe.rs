//! A linear probe: softmax regression of an image's label from each single cell's final state. The report, section 4.2;
//! Alain & Bengio, "Understanding intermediate layers using linear classifier probes" (2017).

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::RngExt;
use rand::seq::{SliceRandom, index};

use super::latents::CELLS;
use crate::chain;
use crate::engine::array::Array;
use crate::engine::compile::compile;
use crate::engine::ir::{Function, Graph, Sym, gradient};
use crate::engine::random::Key;
use crate::engine::runtime::{Arg, Buffers, Mesh};
use crate::engine::shape::{DType, Shape};
use crate::nn::optimiser::{Adam, ClipByGlobalNorm, Context as StepContext, Updates};
use crate::nn::params::{Role, layer};
use crate::nn::tree::Tree;

/// Classes that a probe tells apart.
pub const CLASSES: usize = 10;
/// Images a call: 8,192 cells.
pub const BATCH: usize = 8;
/// The share that tests the probe.
const HELD_OUT: f64 = 0.2;
const LEARNING_RATE: f64 = 1e-2;

/// States of cells on the disk, in a file without a name, which goes when the process does.
pub struct Cells {
    file: File,
    latent: usize,
    images: usize,
}

impl Cells {
    /// # Errors
    /// When no file can be made in the folder.
    pub fn create(folder: &Path, latent: usize) -> Result<Cells> {
        let file = tempfile::tempfile_in(folder)
            .with_context(|| format!("cannot write a file in {}", folder.display()))?;
        Ok(Cells { file, latent, images: 0 })
    }

    /// Adds the states of whole images.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn push(&mut self, states: &[f32]) -> Result<()> {
        self.images += states.len() / (CELLS * self.latent);
        self.file.write_all(bytemuck::cast_slice(states)).context("cannot keep the cells' states in --out")
    }

    /// Returns the number of images.
    pub fn images(&self) -> usize {
        self.images
    }

    /// States of a batch: the last image again where there are fewer.
    fn batch(&self, images: &[usize]) -> Result<Array> {
        let size = CELLS * self.latent;
        let mut states = vec![0f32; BATCH * size];
        for (i, part) in states.chunks_exact_mut(size).enumerate() {
            let image = images[i.min(images.len() - 1)];
            self.file
                .read_exact_at(bytemuck::cast_slice_mut(part), (image * size * 4) as u64)
                .context("cannot read the cells' states back")?;
        }
        Ok(Array::new(&[BATCH, CELLS, self.latent], &states))
    }
}

/// Which cells test the probe: all of some images, or some of all images, as in the report.
#[derive(Clone, Debug)]
pub enum HeldOut {
    /// For each image whether it is held out.
    Images(Vec<bool>),
    /// One key an image.
    Cells(Key),
}

impl HeldOut {
    /// Holds out a fifth of the images, drawn with the key.
    pub fn images(key: Key, count: usize) -> HeldOut {
        let mut held = vec![false; count];
        let most = (count as f64 * HELD_OUT).round() as usize;
        index::sample(&mut key.rng(), count, most).into_iter().for_each(|i| held[i] = true);
        HeldOut::Images(held)
    }

    /// For each cell of an image, whether it is held out.
    fn cells(&self, image: usize) -> Vec<bool> {
        match self {
            HeldOut::Images(held) => vec![held[image]; CELLS],
            HeldOut::Cells(key) => {
                let mut rng = key.split_at(image as u64).rng();
                (0..CELLS).map(|_| rng.random_bool(HELD_OUT)).collect()
            }
        }
    }

    /// The images that have cells that are held out, or ones that are not.
    fn having(&self, held_out: bool, count: usize) -> Vec<usize> {
        (0..count).filter(|&i| self.cells(i).contains(&held_out)).collect()
    }
}

/// A trained probe: for each of the 10 classes weight and bias of a cell's state.
#[derive(Clone, Debug)]
pub struct Probe {
    /// (Z, 10).
    pub weight: Array,
    /// (10).
    pub bias: Array,
}

/// Trains on the cells that are not held out, `epochs` times. `done` hears the number of finished batches.
///
/// # Errors
/// When there is nothing to train on, or the device fails.
pub fn train(
    mesh: &Mesh,
    cells: &Cells,
    labels: &[u8],
    held_out: &HeldOut,
    epochs: usize,
    key: Key,
    mut done: impl FnMut(usize),
) -> Result<Probe> {
    let z = cells.latent;
    let images = held_out.having(false, cells.images);
    ensure!(!images.is_empty(), "there are no cells to train a probe on: more images are needed");
    let (mean, scale) = standard(cells, &images)?;
    let constants = [mesh.replicate(&mean)?, mesh.replicate(&scale)?];
    let step = compile(mesh, &step(z)?)?;
    let zeros = |shape: &Shape| mesh.replicate(&Array::zeros(shape));
    let shapes = [Shape::f32(&[z, CLASSES]), Shape::f32(&[CLASSES])];
    let mut state: Vec<Buffers> = Vec::new();
    for shape in shapes.iter().cycle().take(6).chain([&Shape::s32(&[])]) {
        state.push(zeros(shape)?);
    }
    let steps = epochs * images.len().div_ceil(BATCH);
    for (n, batch) in batches(&images, epochs, key).enumerate() {
        let mut weights: Vec<u8> =
            batch.iter().flat_map(|i| held_out.cells(*i)).map(|held| u8::from(!held)).collect();
        weights.resize(BATCH * CELLS, 0);
        let label = |i: usize| i32::from(labels[batch[i.min(batch.len() - 1)]]);
        let truth: Vec<i32> = (0..BATCH).map(label).collect();
        let inputs = [
            // Falls to 0 in a straight line.
            Array::scalar(1.0 - n as f32 / steps as f32),
            cells.batch(&batch)?,
            Array::new(&[BATCH], &truth),
            Array::new(&[BATCH, CELLS], &weights),
        ];
        let mut arguments: Vec<Arg<'_>> = state.iter().chain(&constants).map(Arg::from).collect();
        for input in &inputs {
            arguments.push(mesh.replicate(input)?.into());
        }
        state = step.call(arguments)?;
        done(n + 1);
    }
    unstandardised(&state[0].get(0)?, &state[1].get(0)?, &mean, &scale)
}

/// Number of batches that training goes through.
pub fn batch_count(images: usize, held_out: &HeldOut, epochs: usize) -> usize {
    epochs * held_out.having(false, images).len().div_ceil(BATCH)
}

fn batches(images: &[usize], epochs: usize, key: Key) -> impl Iterator<Item = Vec<usize>> {
    (0..epochs as u64).flat_map(move |epoch| {
        let mut order = images.to_vec();
        order.shuffle(&mut key.split_at(epoch).rng());
        order.chunks(BATCH).map(<[usize]>::to_vec).collect::<Vec<_>>()
    })
}

/// Mean of each channel and one over its standard deviation: the probe learns in these units, where all channels are
/// alike.
fn standard(cells: &Cells, images: &[usize]) -> Result<(Array, Array)> {
    let z = cells.latent;
    let (mut sums, mut squares) = (vec![0f64; z], vec![0f64; z]);
    // A thousand images tell more than enough.
    let spread = images.len().div_ceil(1000);
    let used: Vec<usize> = images.iter().copied().step_by(spread).collect();
    for batch in used.chunks(BATCH) {
        let states = cells.batch(batch)?.to_vec::<f32>();
        for cell in states.chunks_exact(z).take(batch.len() * CELLS) {
            for ((sum, square), x) in sums.iter_mut().zip(&mut squares).zip(cell) {
                *sum += f64::from(*x);
                *square += f64::from(*x).powi(2);
            }
        }
    }
    let n = (used.len() * CELLS) as f64;
    let means: Vec<f32> = sums.iter().map(|s| (s / n) as f32).collect();
    let deviation = |(s, q): (&f64, &f64)| (q / n - (s / n).powi(2)).max(0.0).sqrt().max(1e-6);
    let scales: Vec<f32> = sums.iter().zip(&squares).map(|pair| (1.0 / deviation(pair)) as f32).collect();
    Ok((Array::new(&[z], &means), Array::new(&[z], &scales)))
}

/// The same probe of states as they are.
fn unstandardised(weight: &Array, bias: &Array, mean: &Array, scale: &Array) -> Result<Probe> {
    let (mut weight, mut bias) = (weight.to_vec::<f32>(), bias.to_vec::<f32>());
    let (mean, scale) = (mean.to_vec::<f32>(), scale.to_vec::<f32>());
    for (row, (mean, scale)) in weight.chunks_exact_mut(CLASSES).zip(mean.iter().zip(&scale)) {
        for (w, b) in row.iter_mut().zip(&mut bias) {
            *w *= scale;
            *b -= *w * mean;
        }
    }
    ensure!(
        weight.iter().all(|w| w.is_finite()),
        "the cells' states are not finite: no probe can be trained"
    );
    Ok(Probe { weight: Array::new(&[mean.len(), CLASSES], &weight), bias: Array::new(&[CLASSES], &bias) })
}

/// One step of Adam on the cross-entropy of a batch's cells.
fn step(z: usize) -> Result<Function> {
    let g = Graph::new("probe_step");
    let shapes = [Shape::f32(&[z, CLASSES]), Shape::f32(&[CLASSES])];
    let leaves = layer("probe", Role::LinearWeight, &[CLASSES, z], &[]);
    let names = leaves.iter().map(|l| l.name.clone());
    let moments =
        ["adam.m.", "adam.v."].into_iter().flat_map(|m| leaves.iter().map(move |l| format!("{m}{}", l.name)));
    let names: Vec<String> = names.chain(moments).collect();
    let state: Vec<Sym<'_>> = names.iter().zip(shapes.iter().cycle()).map(|(n, s)| g.input(n, s)).collect();
    let count = g.input("count", &Shape::s32(&[]));
    let mut remembered: Tree<Sym<'_>> = names.iter().cloned().zip(state.iter().copied()).skip(2).collect();
    remembered.set("count", count);
    let (mean, scale) = (g.input("mean", &Shape::f32(&[z])), g.input("scale", &Shape::f32(&[z])));
    let rate = g.input("rate", &Shape::f32(&[]));
    let states = g.input("states", &Shape::f32(&[BATCH, CELLS, z]));
    let labels = g.input("labels", &Shape::s32(&[BATCH]));
    let weights = g.input("weights", &Shape::new(DType::U8, &[BATCH, CELLS])).convert(DType::F32);
    let rows = BATCH * CELLS;
    let x = (states.reshape(&[rows, z]) - mean) * scale;
    let logits = x.dot(state[0]) + state[1];
    let truth = labels
        .broadcast_in_dim(&[BATCH, CELLS], &[0])
        .reshape(&[rows, 1])
        .eq(g.iota(&Shape::s32(&[rows, CLASSES]), 1));
    let entropy = logits.logsumexp(1) - truth.mask(logits).sum(&[1]);
    let weights = weights.reshape(&[rows]);
    let total = weights.sum_all();
    let loss = (entropy * weights).sum_all() / total.max(total.like(1.0));
    let gradients = gradient(loss, &state[..2]);
    let context = StepContext { leaves: &leaves, healthy: count.eq(count) };
    let mut updates = Updates::new(gradients);
    let mut after = Tree::default();
    for transform in chain![ClipByGlobalNorm(10.0), Adam::new(LEARNING_RATE)] {
        let next;
        (updates, next) = transform.apply(&context, updates, &remembered);
        after.extend(next);
    }
    let moved = state[..2].iter().zip(updates.values()).map(|(s, u)| *s + *u * rate);
    let outputs: Vec<_> = names.into_iter().zip(moved).chain(after).collect();
    g.finish(&outputs, &[])
}

/// The class told from each cell, the first of equals, and its softmax value.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// The predicted class of each cell.
    pub classes: Vec<i32>,
    /// The softmax value of that class.
    pub values: Vec<f32>,
}

/// A probe, compiled for batches of images.
pub struct Teller {
    executable: crate::engine::runtime::Executable,
    mesh: Mesh,
    probe: [Buffers; 2],
}

impl Teller {
    /// # Errors
    /// When the program does not compile.
    pub fn new(mesh: &Mesh, probe: &Probe) -> Result<Teller> {
        let z = probe.weight.dims()[0];
        let g = Graph::new("probe");
        let weight = g.input("weight", &Shape::f32(&[z, CLASSES]));
        let bias = g.input("bias", &Shape::f32(&[CLASSES]));
        let states = g.input("states", &Shape::f32(&[BATCH, CELLS, z]));
        let rows = BATCH * CELLS;
        let logits = states.reshape(&[rows, z]).dot(weight) + bias;
        let highest = logits.reduce_max(&[1]);
        let value = (highest - logits.logsumexp(1)).exp();
        // The first of equals: the largest of the classes counted backwards.
        let backwards = -g.iota(&Shape::s32(&[rows, CLASSES]), 1) + CLASSES as f64;
        let class = logits.eq(highest.reshape(&[rows, 1])).mask(backwards).reduce_max(&[1]);
        let outputs = [("class", -class + CLASSES as f64), ("value", value)];
        let function = g.finish(&outputs.map(|(name, sym)| (name.to_string(), sym)), &[])?;
        let executable = compile(mesh, &function)?;
        let probe = [mesh.replicate(&probe.weight)?, mesh.replicate(&probe.bias)?];
        Ok(Teller { executable, mesh: mesh.clone(), probe })
    }

    fn tell(&self, states: &Array) -> Result<Prediction> {
        let mut arguments: Vec<Arg<'_>> = self.probe.iter().map(Arg::from).collect();
        arguments.push(self.mesh.replicate(states)?.into());
        let results = self.executable.call(arguments)?;
        Ok(Prediction { classes: results[0].get(0)?.to_vec(), values: results[1].get(0)?.to_vec() })
    }

    /// Every cell of some images' states, (n, 32, 32, Z), n at most a batch.
    ///
    /// # Errors
    /// When the device fails.
    pub fn tell_states(&self, states: &[f32], latent: usize) -> Result<Prediction> {
        let cells = states.len() / latent;
        let mut filled = states.to_vec();
        filled.resize(BATCH * CELLS * latent, 0.0);
        let mut told = self.tell(&Array::new(&[BATCH, CELLS, latent], &filled))?;
        told.classes.truncate(cells);
        told.values.truncate(cells);
        Ok(told)
    }

    /// Measures the probe on the cells that are held out.
    ///
    /// # Errors
    /// When none is, or the device fails.
    pub fn score(&self, cells: &Cells, labels: &[u8], held_out: &HeldOut) -> Result<Score> {
        let images = held_out.having(true, cells.images);
        ensure!(!images.is_empty(), "there are no cells to test the probe on: more images are needed");
        let mut score = Score { right: vec![], tried: vec![], labels: vec![], at: vec![(0, 0); CELLS] };
        for batch in images.chunks(BATCH) {
            let told = self.tell(&cells.batch(batch)?)?;
            for (image, classes) in batch.iter().zip(told.classes.chunks_exact(CELLS)) {
                let (mut right, mut tried) = (0, 0);
                for ((held, class), at) in held_out.cells(*image).iter().zip(classes).zip(&mut score.at) {
                    let hit = usize::from(*held && *class == i32::from(labels[*image]));
                    (right, tried) = (right + hit, tried + usize::from(*held));
                    (at.0, at.1) = (at.0 + hit, at.1 + usize::from(*held));
                }
                score.right.push(right);
                score.tried.push(tried);
                score.labels.push(labels[*image]);
            }
        }
        Ok(score)
    }
}

/// Cells told right and cells tried: of each image, and at each place of the grid.
#[derive(Clone, Debug)]
pub struct Score {
    /// Cells of each image that were predicted right.
    pub right: Vec<usize>,
    /// Cells of each image that were predicted.
    pub tried: Vec<usize>,
    /// The label of each image.
    pub labels: Vec<u8>,
    /// Right and predicted at each cell of the grid, in row-major order.
    pub at: Vec<(usize, usize)>,
}

fn share(right: usize, tried: usize) -> f64 {
    right as f64 / tried as f64
}

impl Score {
    /// Returns the number of cells that were predicted.
    pub fn cells(&self) -> usize {
        self.tried.iter().sum()
    }

    /// Returns the share of cells that were predicted right.
    pub fn accuracy(&self) -> f64 {
        share(self.right.iter().sum(), self.cells())
    }

    /// Standard error of the accuracy. Cells of one image are not independent of each other: images are.
    pub fn stderr(&self) -> f64 {
        let (n, accuracy) = (self.right.len() as f64, self.accuracy());
        let off = |(r, t): (&usize, &usize)| (*r as f64 - accuracy * *t as f64).powi(2);
        let squares: f64 = self.right.iter().zip(&self.tried).map(off).sum();
        (squares * n / (n - 1.0).max(1.0)).sqrt() / self.cells() as f64
    }

    /// Accuracy of each class: `None` where no image is of it.
    pub fn per_class(&self) -> Vec<Option<f64>> {
        let of = |class: usize, counts: &[usize]| {
            let own = self.labels.iter().zip(counts).filter(|(label, _)| usize::from(**label) == class);
            own.map(|(_, n)| n).sum::<usize>()
        };
        let one = |class| match of(class, &self.tried) {
            0 => None,
            tried => Some(share(of(class, &self.right), tried)),
        };
        (0..CLASSES).map(one).collect()
    }

    /// Accuracy at each place of the grid, row after row: NaN where no cell was tried.
    pub fn per_position(&self) -> Vec<f32> {
        self.at.iter().map(|(right, tried)| share(*right, *tried) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_counts_images_and_not_cells() {
        let score = Score {
            right: vec![1024, 0, 512, 512],
            tried: vec![1024; 4],
            labels: vec![3, 3, 5, 5],
            at: vec![(2, 4); CELLS],
        };
        assert_eq!((score.accuracy(), score.cells()), (0.5, 4096));
        // Accuracies 1, 0, ½, ½ of four images: variance 1/6, over 4.
        assert!((score.stderr() - (1.0f64 / 24.0).sqrt()).abs() < 1e-12);
        assert_eq!((score.per_class()[3], score.per_class()[0]), (Some(0.5), None));
        assert_eq!(score.per_position()[7], 0.5);
    }

    #[test]
    fn a_fifth_is_held_out() {
        let images = HeldOut::images(Key::new(0), 50);
        assert_eq!((images.having(true, 50).len(), images.having(false, 50).len()), (10, 40));
        let cells = HeldOut::Cells(Key::new(0));
        assert_eq!(cells.having(false, 50).len(), 50);
        let held: usize = (0..50).map(|i| cells.cells(i).iter().filter(|c| **c).count()).sum();
        assert!((0.19..0.21).contains(&(held as f64 / 51_200.0)), "{held}");
    }
}
