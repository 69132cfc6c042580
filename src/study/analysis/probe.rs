//! A linear probe: softmax regression that predicts an image's label from the final state of a single cell (section 4.2 of the
//! report). Method: Alain & Bengio, "Understanding intermediate layers using linear classifier probes" (2017).

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::RngExt;
use rand::seq::{SliceRandom, index};

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

/// Number of cells in a grid: 32 x 32.
pub const CELLS: usize = 32 * 32;
/// Number of classes.
pub const CLASSES: usize = 10;
/// Images per call: 8,192 cells.
pub const BATCH: usize = 8;
/// The share of images or cells that is held out for testing.
const HELD_OUT: f64 = 0.2;
const LEARNING_RATE: f64 = 1e-2;

/// The states of cells, in an unnamed temporary file that disappears when the process ends.
pub struct Cells {
    file: File,
    latent: usize,
    images: usize,
}

impl Cells {
    /// Creates an empty file in a folder, for states of `latent` numbers.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(folder: &Path, latent: usize) -> Result<Cells> {
        let file = tempfile::tempfile_in(folder)
            .with_context(|| format!("cannot write a file in {}", folder.display()))?;
        Ok(Cells { file, latent, images: 0 })
    }

    /// Appends the states of whole images.
    ///
    /// # Errors
    /// When the file cannot be written, for example because the disk is full.
    pub fn push(&mut self, states: &[f32]) -> Result<()> {
        self.images += states.len() / (CELLS * self.latent);
        self.file
            .write_all(bytemuck::cast_slice(states))
            .context("cannot write the cells' states to the output folder")
    }

    /// Returns the number of images.
    pub fn images(&self) -> usize {
        self.images
    }

    /// Reads the states of a batch. The last image fills up the batch.
    fn batch(&self, images: &[usize]) -> Result<Array> {
        let size = CELLS * self.latent;
        let mut states = vec![0f32; BATCH * size];
        for (i, part) in states.chunks_exact_mut(size).enumerate() {
            let image = images[i.min(images.len() - 1)];
            self.file
                .read_exact_at(bytemuck::cast_slice_mut(part), (image * size * 4) as u64)
                .context("cannot read the cells' states")?;
        }
        Ok(Array::new(&[BATCH, CELLS, self.latent], &states))
    }
}

/// Which cells are held out for testing: all cells of some images, or as in the report some cells of all images.
#[derive(Clone, Debug)]
pub enum HeldOut {
    /// Holds out whole images. For each image, whether it is held out.
    Images(Vec<bool>),
    /// Holds out cells. Image i draws its cells with the i-th split of the key.
    Cells(Key),
}

impl HeldOut {
    /// Holds out a fifth of the images, drawn with the key.
    pub fn images(key: Key, count: usize) -> HeldOut {
        let mut held = vec![false; count];
        let number = (count as f64 * HELD_OUT).round() as usize;
        index::sample(&mut key.rng(), count, number).into_iter().for_each(|i| held[i] = true);
        HeldOut::Images(held)
    }

    /// Reports for each cell of an image whether it is held out.
    fn cells(&self, image: usize) -> Vec<bool> {
        match self {
            HeldOut::Images(held) => vec![held[image]; CELLS],
            HeldOut::Cells(key) => {
                let mut rng = key.split_at(image as u64).rng();
                (0..CELLS).map(|_| rng.random_bool(HELD_OUT)).collect()
            }
        }
    }

    /// Returns the images with at least one cell that is held out, or that is not.
    fn images_with(&self, held_out: bool, count: usize) -> Vec<usize> {
        (0..count).filter(|&i| self.cells(i).contains(&held_out)).collect()
    }
}

/// The parameters of a trained probe.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Weights, (Z, 10).
    pub weight: Array,
    /// Biases, (10).
    pub bias: Array,
}

/// Trains a probe for `epochs` epochs on the cells that are not held out. `done` is called with the number of finished batches.
///
/// # Errors
/// When there are no cells to train on, or the device fails.
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
    let images = held_out.images_with(false, cells.images);
    ensure!(!images.is_empty(), "there are no cells to train a probe on: more images are needed");
    let (mean, scale) = standardisation(cells, &images)?;
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
            // The learning rate's factor falls linearly to 0.
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
    undo_standardisation(&state[0].get(0)?, &state[1].get(0)?, &mean, &scale)
}

/// Returns the number of batches that training processes.
pub fn batch_count(images: usize, held_out: &HeldOut, epochs: usize) -> usize {
    epochs * held_out.images_with(false, images).len().div_ceil(BATCH)
}

fn batches(images: &[usize], epochs: usize, key: Key) -> impl Iterator<Item = Vec<usize>> {
    (0..epochs as u64).flat_map(move |epoch| {
        let mut order = images.to_vec();
        order.shuffle(&mut key.split_at(epoch).rng());
        order.chunks(BATCH).map(<[usize]>::to_vec).collect::<Vec<_>>()
    })
}

/// Returns each channel's mean and the inverse of its standard deviation. Training standardises the states, so that one learning
/// rate suits all channels.
fn standardisation(cells: &Cells, images: &[usize]) -> Result<(Array, Array)> {
    let z = cells.latent;
    let (mut sums, mut squares) = (vec![0f64; z], vec![0f64; z]);
    // At most a thousand images are enough for an estimate.
    let step = images.len().div_ceil(1000);
    let used: Vec<usize> = images.iter().copied().step_by(step).collect();
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

/// Converts a probe of standardised states to a probe of the original states.
fn undo_standardisation(weight: &Array, bias: &Array, mean: &Array, scale: &Array) -> Result<Probe> {
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

/// Builds the program of one Adam step on the cross-entropy of a batch's cells.
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
    let mut optimiser_state: Tree<Sym<'_>> =
        names.iter().cloned().zip(state.iter().copied()).skip(2).collect();
    optimiser_state.set("count", count);
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
    let loss = (entropy * weights).sum_all() / total.max(total.scalar_like(1.0));
    let gradients = gradient(loss, &state[..2]);
    let context = StepContext { leaves: &leaves, params: &state[..2], healthy: count.eq(count) };
    let mut updates = Updates::new(gradients);
    let mut new_state = Tree::default();
    for transform in chain![ClipByGlobalNorm(10.0), Adam::new(LEARNING_RATE)] {
        let next;
        (updates, next) = transform.apply(&context, updates, &optimiser_state);
        new_state.extend(next);
    }
    let updated = state[..2].iter().zip(updates.values()).map(|(s, u)| *s + *u * rate);
    let outputs: Vec<_> = names.into_iter().zip(updated).chain(new_state).collect();
    g.finish(&outputs, &[])
}

/// A prediction for each of some cells.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// The predicted class of each cell. Of equally likely classes, the first.
    pub classes: Vec<i32>,
    /// The softmax probability of that class.
    pub values: Vec<f32>,
}

/// A probe, compiled for batches of images.
pub struct Classifier {
    executable: crate::engine::runtime::Executable,
    mesh: Mesh,
    probe: [Buffers; 2],
}

impl Classifier {
    /// Compiles a probe.
    ///
    /// # Errors
    /// When the program does not compile.
    pub fn new(mesh: &Mesh, probe: &Probe) -> Result<Classifier> {
        let z = probe.weight.dims()[0];
        let g = Graph::new("probe");
        let weight = g.input("weight", &Shape::f32(&[z, CLASSES]));
        let bias = g.input("bias", &Shape::f32(&[CLASSES]));
        let states = g.input("states", &Shape::f32(&[BATCH, CELLS, z]));
        let rows = BATCH * CELLS;
        let logits = states.reshape(&[rows, z]).dot(weight) + bias;
        let highest = logits.reduce_max(&[1]);
        let value = (highest - logits.logsumexp(1)).exp();
        // Of equals, the first class is the largest when counted backwards.
        let backwards = -g.iota(&Shape::s32(&[rows, CLASSES]), 1) + CLASSES as f64;
        let class = logits.eq(highest.reshape(&[rows, 1])).mask(backwards).reduce_max(&[1]);
        let outputs = [("class", -class + CLASSES as f64), ("value", value)];
        let function = g.finish(&outputs.map(|(name, sym)| (name.to_string(), sym)), &[])?;
        let executable = compile(mesh, &function)?;
        let probe = [mesh.replicate(&probe.weight)?, mesh.replicate(&probe.bias)?];
        Ok(Classifier { executable, mesh: mesh.clone(), probe })
    }

    fn predict_batch(&self, states: &Array) -> Result<Prediction> {
        let mut arguments: Vec<Arg<'_>> = self.probe.iter().map(Arg::from).collect();
        arguments.push(self.mesh.replicate(states)?.into());
        let results = self.executable.call(arguments)?;
        Ok(Prediction { classes: results[0].get(0)?.to_vec(), values: results[1].get(0)?.to_vec() })
    }

    /// Predicts the label from each cell. The states are (n, 32, 32, Z), n at most a batch.
    ///
    /// # Errors
    /// When the device fails.
    pub fn predict(&self, states: &[f32], latent: usize) -> Result<Prediction> {
        let cells = states.len() / latent;
        let mut padded = states.to_vec();
        padded.resize(BATCH * CELLS * latent, 0.0);
        let mut prediction = self.predict_batch(&Array::new(&[BATCH, CELLS, latent], &padded))?;
        prediction.classes.truncate(cells);
        prediction.values.truncate(cells);
        Ok(prediction)
    }

    /// Tests the probe on the held-out cells.
    ///
    /// # Errors
    /// When no cells are held out, or the device fails.
    pub fn score(&self, cells: &Cells, labels: &[u8], held_out: &HeldOut) -> Result<Score> {
        let images = held_out.images_with(true, cells.images);
        ensure!(!images.is_empty(), "there are no cells to test the probe on: more images are needed");
        let mut score =
            Score { right: vec![], tried: vec![], labels: vec![], by_position: vec![(0, 0); CELLS] };
        for batch in images.chunks(BATCH) {
            let prediction = self.predict_batch(&cells.batch(batch)?)?;
            for (image, classes) in batch.iter().zip(prediction.classes.chunks_exact(CELLS)) {
                let (mut right, mut tried) = (0, 0);
                let positions = &mut score.by_position;
                for ((held, class), position) in held_out.cells(*image).iter().zip(classes).zip(positions) {
                    let hit = usize::from(*held && *class == i32::from(labels[*image]));
                    (right, tried) = (right + hit, tried + usize::from(*held));
                    (position.0, position.1) = (position.0 + hit, position.1 + usize::from(*held));
                }
                score.right.push(right);
                score.tried.push(tried);
                score.labels.push(labels[*image]);
            }
        }
        Ok(score)
    }
}

/// The test of a probe: numbers of predicted cells and of correct predictions, by image and by grid position.
#[derive(Clone, Debug)]
pub struct Score {
    /// Number of correctly predicted cells of each image.
    pub right: Vec<usize>,
    /// Number of predicted cells of each image.
    pub tried: Vec<usize>,
    /// The label of each image.
    pub labels: Vec<u8>,
    /// Numbers of correct and of all predictions at each grid position, in row-major order.
    pub by_position: Vec<(usize, usize)>,
}

fn share(right: usize, tried: usize) -> f64 {
    right as f64 / tried as f64
}

impl Score {
    /// Returns the number of cells that were predicted.
    pub fn cells(&self) -> usize {
        self.tried.iter().sum()
    }

    /// Returns the share of cells that were predicted correctly.
    pub fn accuracy(&self) -> f64 {
        share(self.right.iter().sum(), self.cells())
    }

    /// Returns the standard error of the accuracy over images, because the cells of one image are not independent. One image has
    /// none.
    pub fn stderr(&self) -> Option<f64> {
        if self.right.len() < 2 {
            return None;
        }
        let (n, accuracy) = (self.right.len() as f64, self.accuracy());
        let square = |(r, t): (&usize, &usize)| (*r as f64 - accuracy * *t as f64).powi(2);
        let squares: f64 = self.right.iter().zip(&self.tried).map(square).sum();
        Some((squares * n / (n - 1.0)).sqrt() / self.cells() as f64)
    }

    /// Returns the accuracy of each class. `None` if no image has the class.
    pub fn per_class(&self) -> Vec<Option<f64>> {
        let total = |class: usize, counts: &[usize]| {
            let own = self.labels.iter().zip(counts).filter(|(label, _)| usize::from(**label) == class);
            own.map(|(_, n)| n).sum::<usize>()
        };
        let accuracy = |class| match total(class, &self.tried) {
            0 => None,
            tried => Some(share(total(class, &self.right), tried)),
        };
        (0..CLASSES).map(accuracy).collect()
    }

    /// Returns the accuracy at each grid position, in row-major order. NaN where no cell was tested.
    pub fn per_position(&self) -> Vec<f32> {
        self.by_position.iter().map(|(right, tried)| share(*right, *tried) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_error_is_over_images_not_cells() {
        let score = Score {
            right: vec![1024, 0, 512, 512],
            tried: vec![1024; 4],
            labels: vec![3, 3, 5, 5],
            by_position: vec![(2, 4); CELLS],
        };
        assert_eq!((score.accuracy(), score.cells()), (0.5, 4096));
        // The accuracies of the four images are 1, 0, ½, ½. Their variance is 1/6, and that of their mean 1/24.
        assert!((score.stderr().unwrap() - (1.0f64 / 24.0).sqrt()).abs() < 1e-12);
        assert_eq!((score.per_class()[3], score.per_class()[0]), (Some(0.5), None));
        assert_eq!(score.per_position()[7], 0.5);
    }

    #[test]
    fn a_fifth_is_held_out() {
        let images = HeldOut::images(Key::new(0), 50);
        assert_eq!((images.images_with(true, 50).len(), images.images_with(false, 50).len()), (10, 40));
        let cells = HeldOut::Cells(Key::new(0));
        assert_eq!(cells.images_with(false, 50).len(), 50);
        let held: usize = (0..50).map(|i| cells.cells(i).iter().filter(|c| **c).count()).sum();
        assert!((0.19..0.21).contains(&(held as f64 / 51_200.0)), "{held}");
    }
}
