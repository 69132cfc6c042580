//! Latents of images, and the grids of cells that grow from latents.

use anyhow::{Result, ensure};

use crate::data::{PIXELS, SIDE as INNER_SIDE, Split};
use crate::engine::array::Array;
use crate::engine::random::Key;
use crate::engine::shape::{DType, Shape};
use crate::model::SIDE;
use crate::model::decoder::GrowOptions;
use crate::model::objective::{noise, sample};
use crate::study::session::{Session, SessionProgram};

/// Cells of a grid.
pub const CELLS: usize = SIDE * SIDE;

/// Latents of some images, Z numbers an image, and each image's key for the cells that grow from its latent.
#[derive(Clone, Debug, Default)]
pub struct Latents {
    /// Means of q(z | x), (n, Z).
    pub means: Vec<f32>,
    /// Log-variances of q(z | x), (n, Z).
    pub logvars: Vec<f32>,
    /// A draw of each distribution, (n, Z).
    pub samples: Vec<f32>,
    /// Two words an image, (n, 2).
    pub keys: Vec<u32>,
}

/// A model's encoder, compiled.
pub struct Encoder<'s> {
    program: SessionProgram<'s>,
    latent: usize,
    /// Images a call.
    batch: usize,
}

impl<'s> Encoder<'s> {
    /// # Errors
    /// When the program does not compile.
    pub fn new(session: &'s Session, batch: usize) -> Result<Encoder<'s>> {
        let (model, latent) = (&session.model, session.model.latent);
        let program = session.compile("encode", |g, params| {
            let images = g.input("images", &Shape::new(DType::U8, &[batch, INNER_SIDE, INNER_SIDE]));
            let keys = g.input("keys", &Shape::u32(&[batch, 2]));
            let (means, logvars) = model.encode(params, model.padded(images));
            let (eps, keys) = noise(keys, 1, latent);
            let samples = sample(means, logvars, eps.reshape(&[batch, latent]));
            let outputs = [("means", means), ("logvars", logvars), ("samples", samples), ("keys", keys)];
            outputs.map(|(name, sym)| (name.to_string(), sym)).to_vec()
        })?;
        Ok(Encoder { program, latent, batch })
    }

    /// Latents of the images numbered `rows`, at most a batch of them. Image i has the i-th key of the split of `key`,
    /// as in the evaluation: its sample is the first of those that the bound is made of.
    ///
    /// # Errors
    /// When there are none or too many, or the device fails.
    pub fn encode(&self, split: &Split, rows: &[usize], key: Key) -> Result<Latents> {
        let n = rows.len();
        ensure!((1..=self.batch).contains(&n), "{n} images for a batch of {}", self.batch);
        // A batch that is not full is filled up with its last image, whose latents are left out again.
        let filled = || (0..self.batch).map(|i| rows[i.min(n - 1)]);
        let pixels: Vec<u8> = filled().flat_map(|i| split.image(i)).copied().collect();
        let keys: Vec<u32> = filled().flat_map(|i| key.split_at(i as u64).0).collect();
        debug_assert_eq!(pixels.len(), self.batch * PIXELS);
        let images = Array::new(&[self.batch, INNER_SIDE, INNER_SIDE], &pixels);
        let results = self.program.call(&[images, Array::new(&[self.batch, 2], &keys)])?;
        let first = |i: usize| {
            let mut values = results[i].to_vec::<f32>();
            values.truncate(n * self.latent);
            values
        };
        let mut keys = results[3].to_vec::<u32>();
        keys.truncate(n * 2);
        Ok(Latents { means: first(0), logvars: first(1), samples: first(2), keys })
    }
}

/// An automaton's growth from latents, compiled.
pub struct Grower<'s> {
    program: SessionProgram<'s>,
    latent: usize,
    /// Latents a call.
    batch: usize,
}

impl<'s> Grower<'s> {
    /// # Errors
    /// When the model has no cells, or the program does not compile.
    pub fn new(session: &'s Session, batch: usize) -> Result<Grower<'s>> {
        let model = &session.model;
        let grow = model.automaton()?;
        let program = session.compile("grow", |g, params| {
            let latents = g.input("latents", &Shape::f32(&[batch, model.latent]));
            let keys = g.input("keys", &Shape::u32(&[batch, 2]));
            vec![("states".to_string(), grow.grow(params, latents, keys, &GrowOptions::default()))]
        })?;
        Ok(Grower { program, latent: model.latent, batch })
    }

    /// The cells' final states, (n, 32, 32, Z) in row-major order, of n latents with their keys, at most a batch.
    ///
    /// # Errors
    /// When there are none or too many, or the device fails.
    pub fn grow(&self, latents: &[f32], keys: &[u32]) -> Result<Vec<f32>> {
        let n = keys.len() / 2;
        ensure!((1..=self.batch).contains(&n), "{n} latents for a batch of {}", self.batch);
        let (mut latents, mut keys) = (latents.to_vec(), keys.to_vec());
        latents.resize(self.batch * self.latent, 0.0);
        keys.resize(self.batch * 2, 0);
        let latents = Array::new(&[self.batch, self.latent], &latents);
        let results = self.program.call(&[latents, Array::new(&[self.batch, 2], &keys)])?;
        let mut states = results[0].to_vec::<f32>();
        states.truncate(n * CELLS * self.latent);
        Ok(states)
    }
}

/// Latents drawn from the prior, `normal(key, (Z,))` with the i-th key of the split of `key` for the i-th, and the keys
/// for the cells that grow from them.
pub fn prior(key: Key, count: usize, latent: usize) -> Latents {
    let keys = key.split(count);
    Latents {
        samples: keys.iter().flat_map(|k| k.normal(latent)).collect(),
        // What the draw left unused.
        keys: keys.iter().flat_map(|k| k.split_at(latent as u64).0).collect(),
        ..Latents::default()
    }
}
