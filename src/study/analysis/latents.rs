//! Encodes images to latents, and grows grids of cells from latents.

use anyhow::{Result, ensure};

use crate::data::Split;
use crate::engine::array::Array;
use crate::engine::random::Key;
use crate::engine::shape::Shape;
use crate::error::valid;
use crate::model::decoder::GrowOptions;
use crate::model::objective::{noise, sample};
use crate::study::session::{Session, SessionProgram};

/// The latents of n images, and each image's key for growing cells from its latent.
#[derive(Clone, Debug, Default)]
pub struct Latents {
    /// Means of q(z | x), (n, Z).
    pub means: Vec<f32>,
    /// Log-variances of q(z | x), (n, Z).
    pub logvars: Vec<f32>,
    /// A sample of each q(z | x), (n, Z).
    pub samples: Vec<f32>,
    /// The keys, two words each, (n, 2).
    pub keys: Vec<u32>,
}

/// The compiled encoder of a model.
pub struct Encoder<'s> {
    program: SessionProgram<'s>,
    latent: usize,
    /// Shape of the images of a call.
    images: Shape,
    /// Images per call.
    batch: usize,
}

impl<'s> Encoder<'s> {
    /// Compiles the encoder for `batch` images per call, which the session's replicas share.
    ///
    /// # Errors
    /// When the number of replicas does not divide the batch, or the program does not compile.
    pub fn new(session: &'s Session, batch: usize) -> Result<Encoder<'s>> {
        let (model, latent) = (&session.model, session.model.latent);
        let (all, batch) = (batch, each(session, batch)?);
        let program = session.compile("encode", |g, params| {
            let images = g.input("images", &model.frame.pixels(batch));
            let keys = g.input("keys", &Shape::u32(&[batch, 2]));
            let (means, logvars) = model.encode(params, model.padded(images));
            let (eps, keys) = noise(keys, 1, latent);
            let samples = sample(means, logvars, eps.reshape(&[batch, latent]));
            let outputs = [("means", means), ("logvars", logvars), ("samples", samples), ("keys", keys)];
            outputs.map(|(name, sym)| (name.to_string(), sym)).to_vec()
        })?;
        Ok(Encoder { program, latent, images: model.frame.pixels(all), batch: all })
    }

    /// Encodes the images with the indices `rows`, at most a batch of them.
    ///
    /// As in the evaluation, image i uses the i-th split of `key`. Its sample is the first of the samples in its bound.
    ///
    /// # Errors
    /// When `rows` is empty or longer than the batch, or the device fails.
    pub fn encode(&self, split: &Split, rows: &[usize], key: Key) -> Result<Latents> {
        let n = rows.len();
        ensure!((1..=self.batch).contains(&n), "{n} images for a batch of {}", self.batch);
        // The last image fills up the batch. The latents of its copies are dropped below.
        let filled = || (0..self.batch).map(|i| rows[i.min(n - 1)]);
        let pixels: Vec<u8> = filled().flat_map(|i| split.image(i)).copied().collect();
        let keys: Vec<u32> = filled().flat_map(|i| key.split_at(i as u64).0).collect();
        let images = Array::new(&self.images.dims, &pixels);
        let results = self.program.call_by_rows(&[images, Array::new(&[self.batch, 2], &keys)])?;
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

/// The compiled program that grows cells from latents.
pub struct Grower<'s> {
    program: SessionProgram<'s>,
    latent: usize,
    /// Number of cells in a grid.
    cells: usize,
    /// Latents per call.
    batch: usize,
}

impl<'s> Grower<'s> {
    /// Compiles the program for `batch` latents per call, which the session's replicas share.
    ///
    /// # Errors
    /// When the model has no cells, the number of replicas does not divide the batch, or the program does not compile.
    pub fn new(session: &'s Session, batch: usize) -> Result<Grower<'s>> {
        let model = &session.model;
        let (all, batch) = (batch, each(session, batch)?);
        let grow = model.automaton()?;
        let program = session.compile("grow", |g, params| {
            let latents = g.input("latents", &Shape::f32(&[batch, model.latent]));
            let keys = g.input("keys", &Shape::u32(&[batch, 2]));
            vec![(
                "states".to_string(),
                grow.grow(params, &model.frame, latents, keys, &GrowOptions::default()),
            )]
        })?;
        let cells = model.frame.grid.iter().product();
        Ok(Grower { program, latent: model.latent, cells, batch: all })
    }

    /// Grows n latents (n, Z) with their keys (n, 2), at most a batch. Returns the cells' final states, (n, rows, columns, Z) in row-major
    /// order.
    ///
    /// # Errors
    /// When there are no latents or more than a batch, or the device fails.
    pub fn grow(&self, latents: &[f32], keys: &[u32]) -> Result<Vec<f32>> {
        let n = keys.len() / 2;
        ensure!((1..=self.batch).contains(&n), "{n} latents for a batch of {}", self.batch);
        let (mut latents, mut keys) = (latents.to_vec(), keys.to_vec());
        latents.resize(self.batch * self.latent, 0.0);
        keys.resize(self.batch * 2, 0);
        let latents = Array::new(&[self.batch, self.latent], &latents);
        let results = self.program.call_by_rows(&[latents, Array::new(&[self.batch, 2], &keys)])?;
        let mut states = results[0].to_vec::<f32>();
        states.truncate(n * self.cells * self.latent);
        Ok(states)
    }
}

/// Returns each replica's share of a batch.
fn each(session: &Session, batch: usize) -> Result<usize> {
    let replicas = session.mesh.replicas();
    valid!(batch.is_multiple_of(replicas), "batch", "{batch} is not divided evenly by {replicas} replicas");
    Ok(batch / replicas)
}

/// Draws latents from the prior: the i-th is `normal(key_i, (Z,))`, where key_i is the i-th split of `key`. Also returns the keys
/// for growing cells from them.
pub fn prior(key: Key, count: usize, latent: usize) -> Latents {
    let keys = key.split(count);
    Latents {
        samples: keys.iter().flat_map(|k| k.normal(latent)).collect(),
        // Drawing a sample uses the first Z numbers of its key. This takes the next one.
        keys: keys.iter().flat_map(|k| k.split_at(latent as u64).0).collect(),
        ..Latents::default()
    }
}
