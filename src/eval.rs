//! Evaluation: the IWELBO of every image of a test set, sharded over replicas.

use anyhow::{Result, ensure};

use crate::array::Array;
use crate::build::compile;
use crate::data::Split;
use crate::ir::{Function, Graph};
use crate::model::params::Params;
use crate::model::{Model, objective, padded};
use crate::random::Key;
use crate::runtime::{Arg, Buffers, Executable, Mesh};
use crate::shape::{DType, Shape};

/// Images that are decoded at a time: enough for matrix products at full speed, and memory that does not grow with
/// the number of samples.
const DECODED_AT_ONCE: usize = 256;

/// A bound over many images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// Mean over the images, in nats: log p(x) ≥ this.
    pub mean: f64,
    /// Standard error of that mean over the images.
    pub stderr: f64,
    pub images: usize,
}

impl Bound {
    /// # Errors
    /// When there are no images.
    pub fn of(values: &[f32]) -> Result<Bound> {
        ensure!(!values.is_empty(), "there are no images to evaluate on");
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum();
        let stderr = if values.len() > 1 { (squares / (n - 1.0) / n).sqrt() } else { 0.0 };
        Ok(Bound { mean, stderr, images: values.len() })
    }
}

/// The evaluation program: parameters, images (u8, batch of a replica) and a key an image in; `iwelbo`, nats an image, out.
///
/// # Errors
/// When the graph is wrong, which is a mistake in the program.
pub fn function(model: &Model, batch: usize, samples: usize) -> Result<Function> {
    let leaves = model.leaves();
    let g = Graph::new(&format!("eval_{}", model.kind));
    let values = Params::inputs(&g, &leaves, "");
    let images = g.input("images", &Shape::new(DType::U8, &[batch, 28, 28]));
    let keys = g.input("keys", &Shape::u32(&[batch, 2]));
    let params = Params::new(&leaves, &values);
    let bound = objective::iwelbo(model, &params, padded(&g, images), keys, samples, DECODED_AT_ONCE);
    g.finish(&[("iwelbo".into(), bound)], &[])
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
    pub fn new(mesh: &Mesh, model: &Model, batch: usize, samples: usize) -> Result<Evaluator> {
        let replicas = mesh.replicas();
        ensure!(samples > 0, "--samples is 0: a bound takes at least one");
        ensure!(
            batch > 0 && batch.is_multiple_of(replicas),
            "--batch-size {batch} is not divided evenly by --replicas {replicas}"
        );
        let executable = compile(mesh, &function(model, batch / replicas, samples)?)?;
        Ok(Evaluator { executable, mesh: mesh.clone(), batch: batch / replicas })
    }

    /// IWELBO in nats of the first `limit` images. Image i has the i-th key of the split of `key`, whatever the batch
    /// and the number of replicas. `done` hears the number of images after each call.
    ///
    /// # Errors
    /// When the device fails, or `parameters` are not the model's.
    pub fn run(
        &self,
        parameters: &[Buffers],
        split: &Split,
        key: Key,
        limit: usize,
        mut done: impl FnMut(usize),
    ) -> Result<Vec<f32>> {
        let images = split.len().min(limit);
        let replicas = self.mesh.replicas();
        let mut values = Vec::with_capacity(images);
        while values.len() < images {
            // The last batch is filled up with its last image, whose values are left out again.
            let at = |r: usize, i: usize| (values.len() + r * self.batch + i).min(images - 1);
            let (mut pixels, mut keys) = (Vec::new(), Vec::new());
            for r in 0..replicas {
                let rows: Vec<usize> = (0..self.batch).map(|i| at(r, i)).collect();
                let bytes: Vec<u8> = rows.iter().flat_map(|i| split.image(*i)).copied().collect();
                let words: Vec<u32> = rows.iter().flat_map(|i| key.split_at(*i as u64).0).collect();
                pixels.push(Array::new(&[self.batch, 28, 28], &bytes));
                keys.push(Array::new(&[self.batch, 2], &words));
            }
            let mut arguments: Vec<Arg<'_>> = parameters.iter().map(Arg::from).collect();
            arguments.push(self.mesh.shard(&pixels)?.into());
            arguments.push(self.mesh.shard(&keys)?.into());
            let results = self.executable.call(arguments)?;
            for part in results[0].all()? {
                values.extend(part.to_vec::<f32>());
            }
            values.truncate(images);
            done(values.len());
        }
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
        assert!(Bound::of(&[]).is_err());
    }
}
