//! Evaluation: the bounds of every image of a set, sharded over replicas, and over processes by [`part`].

pub mod part;
pub mod spread;
pub mod summary;

use std::ops::Range;

use anyhow::{Result, ensure};

use crate::data::Split;
use crate::engine::array::Array;
use crate::engine::compile::compile;
use crate::engine::ir::Function;
use crate::engine::random::Key;
use crate::engine::runtime::{Arg, Buffers, Executable, Mesh};
use crate::engine::shape::{DType, Shape};
use crate::error::valid;
use crate::model::{Vae, objective};
use crate::nn::params::Params;
use spread::Spread;

/// Images that are decoded at a time: enough for matrix products at full speed, and memory that does not grow with
/// the number of samples.
const DECODED_AT_ONCE: usize = 256;

/// A bound over many images.
///
/// ```
/// use vnca::study::eval::Bound;
///
/// let bound = Bound::of(&[-84.0, -86.0])?;
/// assert_eq!((bound.mean, bound.stderr, bound.images), (-85.0, 1.0, 2));
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Bound {
    /// Mean over the images, in nats: log p(x) ≥ this.
    pub mean: f64,
    /// Standard error of that mean over the images.
    pub stderr: f64,
    /// Number of images.
    pub images: usize,
}

impl Bound {
    /// # Errors
    /// When there are no images.
    pub fn of<T: Copy + Into<f64>>(values: &[T]) -> Result<Bound> {
        ensure!(!values.is_empty(), "there are no images to evaluate on");
        let n = values.len() as f64;
        let mean = values.iter().map(|v| (*v).into()).sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| ((*v).into() - mean).powi(2)).sum();
        let stderr = if values.len() > 1 { (squares / (n - 1.0) / n).sqrt() } else { 0.0 };
        Ok(Bound { mean, stderr, images: values.len() })
    }
}

/// What one key gives of some images, in their order; nats.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// The importance-weighted bound of each image.
    pub iwelbo: Vec<f32>,
    /// log p(x | z), the mean over the samples.
    pub reconstruction: Vec<f32>,
    /// KL(q(z | x) ‖ p(z)); no key changes it.
    pub kl: Vec<f32>,
    /// How the latent means differ between the images; no key changes it.
    pub spread: Spread,
}

impl Scores {
    /// The IWELBO over these images.
    ///
    /// # Errors
    /// When there are none.
    pub fn bound(&self) -> Result<Bound> {
        Bound::of(&self.iwelbo)
    }
}

/// The evaluation program: parameters, images (u8, batch of a replica) and a key an image in; [`objective::Scores`] out.
///
/// # Errors
/// When the graph is wrong, which is a mistake in the program.
pub fn function(model: &Vae, batch: usize, samples: usize) -> Result<Function> {
    let leaves = model.leaves();
    let g = model.graph(&format!("eval_{}_k{samples}", model.name));
    let values = Params::inputs(&g, &leaves, "");
    let images = g.input("images", &Shape::new(DType::U8, &[batch, 28, 28]));
    let keys = g.input("keys", &Shape::u32(&[batch, 2]));
    let params = Params::new(&leaves, &values);
    let s = objective::scores(model, &params, model.padded(images), keys, samples, DECODED_AT_ONCE);
    let outputs =
        [("iwelbo", s.iwelbo), ("reconstruction", s.reconstruction), ("kl", s.kl), ("mean", s.mean)];
    g.finish(&outputs.map(|(name, sym)| (name.into(), sym)), &[])
}

/// A compiled evaluation.
pub struct Evaluator {
    executable: Executable,
    mesh: Mesh,
    /// Images a replica.
    batch: usize,
}

impl Evaluator {
    /// Compiles for `batch` images a call, over all replicas.
    ///
    /// # Errors
    /// When the batch is not divided evenly by the replicas, or there are no samples.
    pub fn new(mesh: &Mesh, model: &Vae, batch: usize, samples: usize) -> Result<Evaluator> {
        let replicas = mesh.replicas();
        valid!(samples > 0, "samples", "0: a bound takes at least one");
        valid!(
            samples.saturating_mul(model.latent) < 1 << 31,
            "samples",
            "{samples} is too many: an image's key gives 2^31 numbers"
        );
        valid!(
            batch > 0 && batch.is_multiple_of(replicas),
            "batch_size",
            "{batch} is not divided evenly by {replicas} replicas"
        );
        let executable = compile(mesh, &function(model, batch / replicas, samples)?)?;
        Ok(Evaluator { executable, mesh: mesh.clone(), batch: batch / replicas })
    }

    /// Scores of the images of a range. Image i has the i-th key of the split of `key`, whatever the batch and the
    /// number of replicas. `done` hears the number of images after each call.
    ///
    /// # Errors
    /// When the device fails, or `parameters` are not the model's.
    pub fn run(
        &self,
        parameters: &[&Buffers],
        split: &Split,
        key: Key,
        range: Range<usize>,
        mut done: impl FnMut(usize),
    ) -> Result<Scores> {
        let replicas = self.mesh.replicas();
        let range = range.start.min(split.len())..range.end.min(split.len());
        let mut scores = Scores::default();
        while scores.iwelbo.len() < range.len() {
            let from = range.start + scores.iwelbo.len();
            let whole = range.end - from;
            // The last batch is filled up with its last image, whose scores are left out again.
            let at = |r: usize, i: usize| (from + r * self.batch + i).min(range.end - 1);
            let (mut pixels, mut keys) = (Vec::new(), Vec::new());
            for r in 0..replicas {
                let rows: Vec<usize> = (0..self.batch).map(|i| at(r, i)).collect();
                let bytes: Vec<u8> = rows.iter().flat_map(|i| split.image(*i)).copied().collect();
                let words: Vec<u32> = rows.iter().flat_map(|i| key.split_at(*i as u64).0).collect();
                pixels.push(Array::new(&[self.batch, 28, 28], &bytes));
                keys.push(Array::new(&[self.batch, 2], &words));
            }
            let mut arguments: Vec<Arg<'_>> = parameters.iter().map(|b| Arg::from(*b)).collect();
            arguments.push(self.mesh.shard(&pixels)?.into());
            arguments.push(self.mesh.shard(&keys)?.into());
            let results = self.executable.call(arguments)?;
            for (buffers, column) in
                results.iter().zip([&mut scores.iwelbo, &mut scores.reconstruction, &mut scores.kl])
            {
                column.extend(self.rows(buffers, whole)?);
            }
            scores.spread.add(&self.rows(&results[3], whole)?, whole.min(replicas * self.batch));
            done(scores.iwelbo.len());
        }
        Ok(scores)
    }

    /// All replicas' values, of the first `images` at most.
    fn rows(&self, buffers: &Buffers, images: usize) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        for part in buffers.all()? {
            values.extend(part.to_vec::<f32>());
        }
        let an_image = values.len() / (self.mesh.replicas() * self.batch);
        values.truncate(images * an_image);
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_standard_error() {
        let bound = Bound::of(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!((bound.mean, bound.images), (2.5, 4));
        assert!((bound.stderr - (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert!(Bound::of::<f32>(&[]).is_err());
    }
}
