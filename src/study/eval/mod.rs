//! Evaluates the bounds of every image of a data set. Replicas share each call; [`part`] divides an evaluation among processes.

pub mod ais;
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
use crate::engine::shape::Shape;
use crate::error::valid;
use crate::model::{Frame, Vae, objective};
use crate::nn::params::Params;
use spread::Spread;

/// Images that are decoded at a time. Enough for matmuls at full speed, and a bound on the memory use for any number of samples.
const DECODED_AT_ONCE: usize = 256;

/// The mean of a quantity over many images, such as a bound, with its standard error.
///
/// ```
/// use vnca::study::eval::Bound;
///
/// let bound = Bound::from_values(&[-84.0, -86.0])?;
/// assert_eq!((bound.mean, bound.stderr, bound.images), (-85.0, Some(1.0), 2));
/// assert_eq!(bound.text(1), "-85.0 ± 1.0");
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Bound {
    /// Mean over the images. For a bound in nats: log p(x) ≥ this.
    pub mean: f64,
    /// Standard error of the mean over the images. One image has none.
    pub stderr: Option<f64>,
    /// Number of images.
    pub images: usize,
}

impl Bound {
    /// Computes the mean and its standard error from one value per image.
    ///
    /// # Errors
    /// When there are no values.
    pub fn from_values<T: Copy + Into<f64>>(values: &[T]) -> Result<Bound> {
        ensure!(!values.is_empty(), "there are no images to evaluate on");
        let n = values.len() as f64;
        let mean = values.iter().map(|v| (*v).into()).sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| ((*v).into() - mean).powi(2)).sum();
        let stderr = (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt());
        Ok(Bound { mean, stderr, images: values.len() })
    }

    /// Formats the mean, with its standard error if it has one, to a number of decimals.
    pub fn text(&self, decimals: usize) -> String {
        plus_minus(self.mean, self.stderr, decimals)
    }
}

/// Formats a value, with its standard error if it has one, to a number of decimals.
pub fn plus_minus(value: f64, stderr: Option<f64>, decimals: usize) -> String {
    let error = stderr.map(|error| format!(" ± {error:.decimals$}")).unwrap_or_default();
    format!("{value:.decimals$}{error}")
}

/// The scores of some images, in their order, with the samples of one key. In nats.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// The importance-weighted bound of each image.
    pub iwelbo: Vec<f32>,
    /// The mean over the samples of log p(x | z), for each image.
    pub reconstruction: Vec<f32>,
    /// KL(q(z | x) ‖ p(z)) of each image. Does not depend on the key.
    pub kl: Vec<f32>,
    /// How the posterior means vary over the images. Does not depend on the key.
    pub spread: Spread,
}

impl Scores {
    /// Returns the mean IWELBO of these images.
    ///
    /// # Errors
    /// When there are no images.
    pub fn bound(&self) -> Result<Bound> {
        Bound::from_values(&self.iwelbo)
    }
}

/// Builds the evaluation program of one replica.
///
/// Inputs: the parameters, images u8 (batch, h, w) or (batch, h, w, channels), and keys u32 (batch, 2). Outputs: the fields of [`objective::Scores`].
///
/// # Errors
/// When the graph is ill-formed, which is a bug.
pub fn function(model: &Vae, batch: usize, samples: usize) -> Result<Function> {
    let leaves = model.leaves();
    let g = model.graph(&format!("eval_{}_k{samples}", model.name));
    let values = Params::inputs(&g, &leaves, "");
    let images = g.input("images", &model.frame.pixels(batch));
    let keys = g.input("keys", &Shape::u32(&[batch, 2]));
    let params = Params::new(&leaves, &values);
    let s = objective::scores(model, &params, model.padded(images), keys, samples, DECODED_AT_ONCE);
    let outputs =
        [("iwelbo", s.iwelbo), ("reconstruction", s.reconstruction), ("kl", s.kl), ("mean", s.mean)];
    g.finish(&outputs.map(|(name, sym)| (name.into(), sym)), &[])
}

/// A compiled evaluation program.
pub struct Evaluator {
    executable: Executable,
    mesh: Mesh,
    /// Images per replica and call.
    batch: usize,
    frame: Frame,
}

impl Evaluator {
    /// Compiles the program for `batch` images per call, over all replicas, and `samples` latent samples per image.
    ///
    /// # Errors
    /// When the number of replicas does not divide the batch, or the number of samples is out of range.
    pub fn new(mesh: &Mesh, model: &Vae, batch: usize, samples: usize) -> Result<Evaluator> {
        let replicas = mesh.replicas();
        valid!(samples > 0, "samples", "0: a bound takes at least one");
        valid!(
            samples.saturating_mul(model.latent) < 1 << 31,
            "samples",
            "{samples} is too many: an image's key can draw 2^31 numbers"
        );
        valid!(
            batch > 0 && batch.is_multiple_of(replicas),
            "batch",
            "{batch} is not divided evenly by {replicas} replicas"
        );
        let executable = compile(mesh, &function(model, batch / replicas, samples)?)?;
        Ok(Evaluator { executable, mesh: mesh.clone(), batch: batch / replicas, frame: model.frame })
    }

    /// Scores a range of images.
    ///
    /// Image i uses the i-th split of `key`, whatever the batch and the number of replicas. `done` is called with the number of
    /// finished images after each device call.
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
            let remaining = range.end - from;
            // The last image fills up the last batch. The scores of its copies are dropped below.
            let index = |r: usize, i: usize| (from + r * self.batch + i).min(range.end - 1);
            let (mut pixels, mut keys) = (Vec::new(), Vec::new());
            for r in 0..replicas {
                let rows: Vec<usize> = (0..self.batch).map(|i| index(r, i)).collect();
                let bytes: Vec<u8> = rows.iter().flat_map(|i| split.image(*i)).copied().collect();
                let words: Vec<u32> = rows.iter().flat_map(|i| key.split_at(*i as u64).0).collect();
                pixels.push(Array::new(&self.frame.pixels(self.batch).dims, &bytes));
                keys.push(Array::new(&[self.batch, 2], &words));
            }
            let mut arguments: Vec<Arg<'_>> = parameters.iter().map(|b| Arg::from(*b)).collect();
            arguments.push(self.mesh.shard(&pixels)?.into());
            arguments.push(self.mesh.shard(&keys)?.into());
            let results = self.executable.call(arguments)?;
            for (buffers, column) in
                results.iter().zip([&mut scores.iwelbo, &mut scores.reconstruction, &mut scores.kl])
            {
                column.extend(self.rows(buffers, remaining)?);
            }
            scores.spread.add(&self.rows(&results[3], remaining)?, remaining.min(replicas * self.batch));
            done(scores.iwelbo.len());
        }
        Ok(scores)
    }

    /// Returns the values of all replicas, for the first `images` images at most.
    fn rows(&self, buffers: &Buffers, images: usize) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        for part in buffers.all()? {
            values.extend(part.to_vec::<f32>());
        }
        let per_image = values.len() / (self.mesh.replicas() * self.batch);
        values.truncate(images * per_image);
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_standard_error() {
        let bound = Bound::from_values(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!((bound.mean, bound.images), (2.5, 4));
        assert!((bound.stderr.unwrap() - (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        let single = Bound::from_values(&[-3.0]).unwrap();
        assert_eq!((single.stderr, single.text(2).as_str()), (None, "-3.00"));
        assert!(Bound::from_values::<f32>(&[]).is_err());
    }
}
