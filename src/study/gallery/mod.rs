//! Computes the pictures of a trained model: decoded latents, reconstructions, growth, and recovery from damage.
//!
//! The functions run a [`Session`]'s programs and return logits on the host. The module `figure` turns them into files.

pub mod recovery;

use anyhow::{Result, ensure};

use crate::data::Split;
use crate::engine::array::Array;
use crate::engine::random::Key;
use crate::engine::shape::{DType, Shape};
use crate::error::valid;
use crate::model::grow::Growth as Growing;
use crate::model::{GRID_SIDE, Grow, Vae};
use crate::study::session::{Session, SessionProgram};

/// Number of pixels, and so of logits, in a picture.
pub const PIXELS: usize = GRID_SIDE * GRID_SIDE;
/// The largest number of pictures per device call. It bounds the memory use.
pub const MAX_BATCH: usize = 32;

/// A point of the latent space, and the key of all random draws for its picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Latent {
    /// The point, Z numbers.
    pub z: Vec<f32>,
    /// The key of all random draws for its picture.
    pub key: Key,
}

impl Latent {
    /// Draws a sample of the prior with a key.
    pub fn prior(key: Key, size: usize) -> Latent {
        Latent { z: key.normal(size), key }
    }

    /// Draws samples of the prior. Sample i uses the i-th split of the key.
    pub fn priors(key: Key, count: usize, size: usize) -> Vec<Latent> {
        key.split(count).into_iter().map(|key| Latent::prior(key, size)).collect()
    }

    /// Returns the key that chooses which cells update in each step, for models where not all do. Drawing the latent uses the first
    /// Z numbers of its key, so this takes the next one.
    pub fn steps_key(&self) -> Key {
        self.key.split_at(self.z.len() as u64)
    }

    /// Draws an image of zeros and ones from the pixels' probabilities.
    pub fn draw_image(&self, probabilities: &[f32]) -> Vec<f32> {
        let key = self.key.split_at(self.z.len() as u64 + 1);
        let pixels = key.bernoulli(probabilities.len(), |i| probabilities[i]);
        pixels.into_iter().map(|on| f32::from(u8::from(on))).collect()
    }
}

/// Returns a program's inputs: latents (batch, Z) and keys of steps (batch, 2). The last latent fills up the batch.
fn arguments(latents: &[Latent], batch: usize) -> [Array; 2] {
    let rows: Vec<&Latent> = (0..batch).map(|i| &latents[i.min(latents.len() - 1)]).collect();
    let z: Vec<f32> = rows.iter().flat_map(|l| l.z.iter().copied()).collect();
    let keys: Vec<u32> = rows.iter().flat_map(|l| l.steps_key().0).collect();
    [Array::new(&[batch, latents[0].z.len()], &z), Array::new(&[batch, 2], &keys)]
}

/// Returns the batch size for `count` pictures: as few calls as possible, and then as little padding of the last call as possible.
fn batch_size(count: usize) -> Result<usize> {
    ensure!(count > 0, "there are no pictures to compute");
    Ok(count.div_ceil(count.div_ceil(MAX_BATCH)))
}

/// Decodes latents. Returns the logits of the pictures, (n, 32, 32) in row-major order.
///
/// # Errors
/// When there are no latents, the likelihood has more than one output per pixel, or the device fails.
pub fn decode(session: &Session, latents: &[Latent]) -> Result<Vec<f32>> {
    let (model, batch) = (&session.model, batch_size(latents.len())?);
    let channels = model.likelihood.outputs().channels;
    ensure!(channels == 1, "the likelihood has {channels} outputs per pixel: there is no picture of logits");
    let program = session.compile("decode", |g, params| model.decoder_program(batch, g, params))?;
    let mut logits = Vec::with_capacity(latents.len() * PIXELS);
    for part in latents.chunks(batch) {
        let results = program.call(&arguments(part, batch))?;
        results[0].with_elements(|values: &[f32]| logits.extend_from_slice(&values[..part.len() * PIXELS]));
    }
    Ok(logits)
}

/// The approximate posterior q(z | x) of an image: a normal distribution over latents with a diagonal covariance.
#[derive(Clone, Debug, PartialEq)]
pub struct Posterior {
    /// The mean, Z numbers.
    pub mean: Vec<f32>,
    /// The log-variance, Z numbers.
    pub logvar: Vec<f32>,
}

impl Posterior {
    /// Returns the mean as a latent. `key` is for the other draws of its picture.
    pub fn mean_latent(&self, key: Key) -> Latent {
        Latent { z: self.mean.clone(), key }
    }

    /// Draws a latent from the distribution.
    pub fn draw(&self, key: Key) -> Latent {
        let eps = key.normal(self.mean.len());
        let sample = |((mean, logvar), eps): ((&f32, &f32), f32)| mean + (0.5 * logvar).exp() * eps;
        Latent { z: self.mean.iter().zip(&self.logvar).zip(eps).map(sample).collect(), key }
    }

    /// Returns the KL divergence KL(q(z | x) ‖ N(0, I)), in nats.
    pub fn kl(&self) -> f64 {
        let term = |(mean, logvar): (&f32, &f32)| {
            let (mean, logvar) = (f64::from(*mean), f64::from(*logvar));
            0.5 * (mean * mean + logvar.exp() - logvar - 1.0)
        };
        self.mean.iter().zip(&self.logvar).map(term).sum()
    }
}

/// Encodes all images of a split.
///
/// # Errors
/// When there are no images, or the device fails.
pub fn encode(session: &Session, images: &Split) -> Result<Vec<Posterior>> {
    let (batch, model) = (batch_size(images.len())?, &session.model);
    let size = model.latent;
    let program = session.compile("encode", |g, params| {
        let pixels = g.input("images", &Shape::new(DType::U8, &[batch, 28, 28]));
        let (mean, logvar) = model.encode(params, model.padded(pixels));
        vec![("mean".into(), mean), ("logvar".into(), logvar)]
    })?;
    let mut posteriors = Vec::with_capacity(images.len());
    while posteriors.len() < images.len() {
        // The last image fills up the batch.
        let index = |i: usize| (posteriors.len() + i).min(images.len() - 1);
        let pixels: Vec<u8> = (0..batch).flat_map(|i| images.image(index(i))).copied().collect();
        let results = program.call(&[Array::new(&[batch, 28, 28], &pixels)])?;
        let (mean, logvar) = (results[0].to_vec::<f32>(), results[1].to_vec::<f32>());
        let rows = mean.chunks_exact(size).zip(logvar.chunks_exact(size));
        let left = images.len() - posteriors.len();
        posteriors.extend(rows.take(left).map(|(m, v)| Posterior { mean: m.to_vec(), logvar: v.to_vec() }));
    }
    Ok(posteriors)
}

/// The pictures of growing latents: logits of each stage (see [`Grow::stages`]) and picture.
#[derive(Clone, Debug)]
pub struct Growth {
    /// Number of stages.
    pub stages: usize,
    /// (stages, pictures, 32, 32) in row-major order.
    pub logits: Vec<f32>,
}

/// Grows latents and returns the pictures of all stages.
///
/// # Errors
/// When the model has no automaton that grows, there are no latents, or the device fails.
pub fn grow(session: &Session, latents: &[Latent]) -> Result<Growth> {
    let batch = batch_size(latents.len())?;
    let program = compile_growth(session, batch)?;
    let mut parts = Vec::new();
    for part in latents.chunks(batch) {
        let results = program.call(&arguments(part, batch))?;
        parts.push((results[2].dims()[0], part.len(), results[2].to_vec::<f32>()));
    }
    let stages = parts[0].0;
    let stage_logits = |stage: usize| {
        let rows = move |(_, n, logits): &(usize, usize, Vec<f32>)| {
            let from = stage * batch * PIXELS;
            logits[from..from + n * PIXELS].to_vec()
        };
        parts.iter().flat_map(rows).collect::<Vec<f32>>()
    };
    Ok(Growth { stages, logits: (0..stages).flat_map(stage_logits).collect() })
}

/// Returns the automaton of a model, checking that it grows.
///
/// # Errors
/// When the model has none, or a doubling model has no doublings.
pub fn automaton(model: &Vae) -> Result<&Grow> {
    let grow = model.automaton()?;
    valid!(
        !matches!(grow.growth, Growing::Doublings { doublings: 0, .. }),
        "doublings",
        "0: nothing grows without a doubling"
    );
    Ok(grow)
}

/// Compiles the program that grows latents. Outputs: the last grids, their keys, and the logits of all stages.
fn compile_growth(session: &Session, batch: usize) -> Result<SessionProgram<'_>> {
    let model = &session.model;
    let grow = automaton(model)?;
    session.compile("grow", |g, params| {
        let z = g.input("latents", &Shape::f32(&[batch, model.latent]));
        let keys = g.input("keys", &Shape::u32(&[batch, 2]));
        let (grids, logits) = {
            let outputs = model.likelihood.outputs();
            let show = |cells| crate::model::grow::first_channels(cells, outputs.channels);
            grow.stages(params, &model.frame, z, keys, show, outputs.outside)
        };
        vec![("cells".into(), grids.cells), ("keys".into(), grids.keys), ("logits".into(), logits)]
    })
}

/// Returns the probability that a pixel is 1, given its logit.
pub fn probability(logit: f32) -> f32 {
    0.5 * (0.5 * logit).tanh() + 0.5
}

/// Returns the probabilities that pixels are 1, given their logits.
pub fn probabilities(logits: &[f32]) -> Vec<f32> {
    logits.iter().map(|l| probability(*l)).collect()
}

/// Returns log p(image | logits) in nats. The image's pixels are 0 or 1. A logit of −∞ makes a 0 certain.
pub fn log_likelihood(image: &[f32], logits: &[f32]) -> f64 {
    let term = |(pixel, logit): (&f32, &f32)| {
        let logit = f64::from(*logit);
        let on = if *pixel > 0.5 { logit } else { 0.0 };
        on - logit.max(0.0) - (-logit.abs()).exp().ln_1p()
    };
    image.iter().zip(logits).map(term).sum()
}

/// Pads an image of 28 x 28 pixels with zeros to 32 x 32, as models see it.
pub fn framed(pixels: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; PIXELS];
    let rows = out.chunks_exact_mut(GRID_SIDE).skip(2).zip(pixels.chunks_exact(28));
    for (row, from) in rows {
        for (to, pixel) in row[2..].iter_mut().zip(from) {
            *to = f32::from(*pixel);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_sizes_give_few_and_full_calls() {
        assert_eq!((1..=4).map(|n| batch_size(n * 16).unwrap()).collect::<Vec<_>>(), [16, 32, 24, 32]);
        assert_eq!(batch_size(11).unwrap(), 11);
        assert_eq!(batch_size(33).unwrap(), 17);
        assert!(batch_size(0).is_err());
    }

    #[test]
    fn likelihoods_of_certain_and_fair_pixels() {
        let fair = log_likelihood(&[1.0, 0.0], &[0.0, 0.0]);
        assert!((fair - 2.0 * 0.5f64.ln()).abs() < 1e-12);
        assert_eq!(log_likelihood(&[0.0], &[f32::NEG_INFINITY]), 0.0);
        assert_eq!(log_likelihood(&[1.0], &[f32::NEG_INFINITY]), f64::NEG_INFINITY);
        assert!((log_likelihood(&[1.0], &[-200.0]) + 200.0).abs() < 1e-9);
        assert_eq!(probability(f32::NEG_INFINITY), 0.0);
        let (p, q) = (f64::from(probability(1.3)), 1.0 / (1.0 + (-1.3f64).exp()));
        assert!((p - q).abs() < 1e-6);
    }

    #[test]
    fn an_image_is_padded_on_all_sides() {
        let mut pixels = vec![0; 784];
        (pixels[0], pixels[783]) = (1, 1);
        let framed = framed(&pixels);
        let ones: Vec<usize> = (0..PIXELS).filter(|i| framed[*i] == 1.0).collect();
        assert_eq!(ones, [2 * GRID_SIDE + 2, 29 * GRID_SIDE + 29]);
    }

    #[test]
    fn the_draws_of_a_latent_use_its_own_key() {
        let [a, b]: [Latent; 2] = Latent::priors(Key::new(3), 2, 4).try_into().unwrap();
        assert_eq!(a.z, Key::new(3).split_at(0).normal(4));
        let half = [0.5; 64];
        assert_eq!(a.draw_image(&half), a.draw_image(&half));
        assert_ne!(a.draw_image(&half), b.draw_image(&half));
        assert_eq!(a.draw_image(&[0.0, 1.0]), [0.0, 1.0]);
        let certain = Posterior { mean: vec![1.0; 4], logvar: vec![f32::NEG_INFINITY; 4] };
        assert_eq!(certain.draw(Key::new(1)), certain.mean_latent(Key::new(1)));
        assert_eq!(Posterior { mean: vec![0.0; 4], logvar: vec![0.0; 4] }.kl(), 0.0);
    }
}
