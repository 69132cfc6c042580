//! What a trained model shows: pictures of latents, reconstructions, growth, and recovery from damage.
//!
//! Everything comes from a [`Session`] as logits on the host; who wants files makes them with `figure`.

pub mod recovery;

use anyhow::{Result, ensure};

use crate::data::Split;
use crate::engine::array::Array;
use crate::engine::random::Key;
use crate::engine::shape::{DType, Shape};
use crate::error::valid;
use crate::model::grow::Growth as Growing;
use crate::model::{Grow, SIDE, Vae};
use crate::study::session::{Session, SessionProgram};

/// Logits of a picture.
pub const PIXELS: usize = SIDE * SIDE;
/// Pictures a device call at most, so that memory does not grow with their number.
pub const AT_ONCE: usize = 32;

/// A point of the latent space, and the key of everything that is drawn for its picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Latent {
    /// The point, Z numbers.
    pub z: Vec<f32>,
    /// The key of what is drawn for its picture.
    pub key: Key,
}

impl Latent {
    /// The prior's sample of a key.
    pub fn prior(key: Key, size: usize) -> Latent {
        Latent { z: key.normal(size), key }
    }

    /// The prior's samples of the split of a key: sample i has the i-th.
    pub fn priors(key: Key, count: usize, size: usize) -> Vec<Latent> {
        key.split(count).into_iter().map(|key| Latent::prior(key, size)).collect()
    }

    /// The key that chooses the cells that take a step, where not all do: of what the latent's draw left unused.
    pub fn steps_key(&self) -> Key {
        self.key.split_at(self.z.len() as u64)
    }

    /// An image drawn from the picture's probabilities: 0 or 1.
    pub fn toss(&self, probabilities: &[f32]) -> Vec<f32> {
        let key = self.key.split_at(self.z.len() as u64 + 1);
        let heads = key.bernoulli(probabilities.len(), |i| probabilities[i]);
        heads.into_iter().map(|on| f32::from(u8::from(on))).collect()
    }
}

/// Latents (n, Z) and the keys of steps (n, 2) as programs take them; the last latent fills the batch up.
fn arguments(latents: &[Latent], batch: usize) -> [Array; 2] {
    let rows: Vec<&Latent> = (0..batch).map(|i| &latents[i.min(latents.len() - 1)]).collect();
    let z: Vec<f32> = rows.iter().flat_map(|l| l.z.iter().copied()).collect();
    let keys: Vec<u32> = rows.iter().flat_map(|l| l.steps_key().0).collect();
    [Array::new(&[batch, latents[0].z.len()], &z), Array::new(&[batch, 2], &keys)]
}

/// How many pictures a call is compiled for, when there are so many in all.
fn batch_of(count: usize) -> Result<usize> {
    ensure!(count > 0, "there is no picture to make");
    // As few calls as may be, and as little as possible that only fills the last one up.
    Ok(count.div_ceil(count.div_ceil(AT_ONCE)))
}

/// Logits of latents' pictures, 32 x 32 each, one after the other.
///
/// # Errors
/// When there are no latents, or the device fails.
pub fn decode(session: &Session, latents: &[Latent]) -> Result<Vec<f32>> {
    let (model, batch) = (&session.model, batch_of(latents.len())?);
    let program = session.compile("decode", |g, params| model.decoder_program(batch, g, params))?;
    let mut logits = Vec::with_capacity(latents.len() * PIXELS);
    for part in latents.chunks(batch) {
        let results = program.call(&arguments(part, batch))?;
        results[0].with_elements(|values: &[f32]| logits.extend_from_slice(&values[..part.len() * PIXELS]));
    }
    Ok(logits)
}

/// What the encoder says of an image: a normal distribution over latents.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Mean of q(z | x), Z numbers.
    pub mean: Vec<f32>,
    /// Log-variance of q(z | x), Z numbers.
    pub logvar: Vec<f32>,
}

impl Encoded {
    /// The distribution's mean; `key` is for what else is drawn.
    pub fn middle(&self, key: Key) -> Latent {
        Latent { z: self.mean.clone(), key }
    }

    /// A latent drawn from the distribution.
    pub fn draw(&self, key: Key) -> Latent {
        let eps = key.normal(self.mean.len());
        let of = |((mean, logvar), eps): ((&f32, &f32), f32)| mean + (0.5 * logvar).exp() * eps;
        Latent { z: self.mean.iter().zip(&self.logvar).zip(eps).map(of).collect(), key }
    }

    /// KL to the standard normal, in nats.
    pub fn kl(&self) -> f64 {
        let part = |(mean, logvar): (&f32, &f32)| {
            let (mean, logvar) = (f64::from(*mean), f64::from(*logvar));
            0.5 * (mean * mean + logvar.exp() - logvar - 1.0)
        };
        self.mean.iter().zip(&self.logvar).map(part).sum()
    }
}

/// Encodes all images of a split.
///
/// # Errors
/// When there are none, or the device fails.
pub fn encode(session: &Session, images: &Split) -> Result<Vec<Encoded>> {
    let (batch, model) = (batch_of(images.len())?, &session.model);
    let size = model.latent;
    let program = session.compile("encode", |g, params| {
        let pixels = g.input("images", &Shape::new(DType::U8, &[batch, 28, 28]));
        let (mean, logvar) = model.encode(params, model.padded(pixels));
        vec![("mean".into(), mean), ("logvar".into(), logvar)]
    })?;
    let mut encoded = Vec::with_capacity(images.len());
    while encoded.len() < images.len() {
        let at = |i: usize| (encoded.len() + i).min(images.len() - 1);
        let pixels: Vec<u8> = (0..batch).flat_map(|i| images.image(at(i))).copied().collect();
        let results = program.call(&[Array::new(&[batch, 28, 28], &pixels)])?;
        let (mean, logvar) = (results[0].to_vec::<f32>(), results[1].to_vec::<f32>());
        let rows = mean.chunks_exact(size).zip(logvar.chunks_exact(size));
        let left = images.len() - encoded.len();
        encoded.extend(rows.take(left).map(|(m, v)| Encoded { mean: m.to_vec(), logvar: v.to_vec() }));
    }
    Ok(encoded)
}

/// The growth of latents' pictures: logits of each stage (see [`Grow::stages`](crate::model::Grow::stages)) and picture, stage after stage.
#[derive(Clone, Debug)]
pub struct Growth {
    /// Number of stages.
    pub stages: usize,
    /// (stages, pictures, 32, 32) in row-major order.
    pub logits: Vec<f32>,
}

/// # Errors
/// When the model has no automaton that grows, there are no latents, or the device fails.
pub fn grow(session: &Session, latents: &[Latent]) -> Result<Growth> {
    let batch = batch_of(latents.len())?;
    let program = compile_growth(session, batch)?;
    let mut parts = Vec::new();
    for part in latents.chunks(batch) {
        let results = program.call(&arguments(part, batch))?;
        parts.push((results[2].dims()[0], part.len(), results[2].to_vec::<f32>()));
    }
    let stages = parts[0].0;
    let of_stage = |stage: usize| {
        let rows = move |(_, n, logits): &(usize, usize, Vec<f32>)| {
            let from = stage * batch * PIXELS;
            logits[from..from + n * PIXELS].to_vec()
        };
        parts.iter().flat_map(rows).collect::<Vec<f32>>()
    };
    Ok(Growth { stages, logits: (0..stages).flat_map(of_stage).collect() })
}

/// Returns the automaton of a model, which something grows by.
///
/// # Errors
/// When the model has none, or it has no step and no doubling.
pub fn automaton(model: &Vae) -> Result<&Grow> {
    let grow = model.automaton()?;
    valid!(
        !matches!(grow.growth, Growing::Doublings { doublings: 0, .. }),
        "doublings",
        "0: nothing grows without one"
    );
    Ok(grow)
}

/// The program that grows latents: last grids, their keys, and the outputs of all stages out.
fn compile_growth(session: &Session, batch: usize) -> Result<SessionProgram<'_>> {
    let model = &session.model;
    let grow = automaton(model)?;
    session.compile("grow", |g, params| {
        let z = g.input("latents", &Shape::f32(&[batch, model.latent]));
        let keys = g.input("keys", &Shape::u32(&[batch, 2]));
        let (grids, logits) = grow.stages(params, z, keys, model.likelihood.outputs());
        vec![("cells".into(), grids.cells), ("keys".into(), grids.keys), ("logits".into(), logits)]
    })
}

/// The probability that a pixel is 1.
pub fn probability(logit: f32) -> f32 {
    0.5 * (0.5 * logit).tanh() + 0.5
}

/// The probabilities of logits.
pub fn probabilities(logits: &[f32]) -> Vec<f32> {
    logits.iter().map(|l| probability(*l)).collect()
}

/// log p(image | logits) in nats; a logit of −∞ makes a 0 certain. An image's pixels are 0 or 1.
pub fn log_likelihood(image: &[f32], logits: &[f32]) -> f64 {
    let of = |(pixel, logit): (&f32, &f32)| {
        let logit = f64::from(*logit);
        let on = if *pixel > 0.5 { logit } else { 0.0 };
        on - logit.max(0.0) - (-logit.abs()).exp().ln_1p()
    };
    image.iter().zip(logits).map(of).sum()
}

/// An image in its margin of zeros, as models see it.
pub fn framed(pixels: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; PIXELS];
    let rows = out.chunks_exact_mut(SIDE).skip(2).zip(pixels.chunks_exact(28));
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
    fn calls_are_few_and_full() {
        assert_eq!((1..=4).map(|n| batch_of(n * 16).unwrap()).collect::<Vec<_>>(), [16, 32, 24, 32]);
        assert_eq!(batch_of(11).unwrap(), 11);
        assert_eq!(batch_of(33).unwrap(), 17);
        assert!(batch_of(0).is_err());
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
    fn an_image_stands_in_its_margin() {
        let mut pixels = vec![0; 784];
        (pixels[0], pixels[783]) = (1, 1);
        let framed = framed(&pixels);
        let ones: Vec<usize> = (0..PIXELS).filter(|i| framed[*i] == 1.0).collect();
        assert_eq!(ones, [2 * SIDE + 2, 29 * SIDE + 29]);
    }

    #[test]
    fn draws_of_a_latent_follow_its_own_key() {
        let [a, b]: [Latent; 2] = Latent::priors(Key::new(3), 2, 4).try_into().unwrap();
        assert_eq!(a.z, Key::new(3).split_at(0).normal(4));
        let half = [0.5; 64];
        assert_eq!(a.toss(&half), a.toss(&half));
        assert_ne!(a.toss(&half), b.toss(&half));
        assert_eq!(a.toss(&[0.0, 1.0]), [0.0, 1.0]);
        let sure = Encoded { mean: vec![1.0; 4], logvar: vec![f32::NEG_INFINITY; 4] };
        assert_eq!(sure.draw(Key::new(1)), sure.middle(Key::new(1)));
        assert_eq!(Encoded { mean: vec![0.0; 4], logvar: vec![0.0; 4] }.kl(), 0.0);
    }
}
