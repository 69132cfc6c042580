//! Computes the pictures of a trained model: decoded latents, reconstructions, growth, and recovery from damage.
//!
//! The functions run a [`Session`]'s programs and return pictures: the pixels that count, (h, w, channels) of
//! [`Frame::counted`](crate::model::Frame::counted), as brightness from 0 to 1. The module `figure` turns them into files.

pub mod recovery;

use anyhow::{Result, ensure};

use crate::data::Split;
use crate::engine::array::Array;
use crate::engine::ir::{Graph, Sym};
use crate::engine::random::Key;
use crate::engine::shape::Shape;
use crate::error::valid;
use crate::model::grow::{Growth as Growing, first_channels};
use crate::model::{Frame, Grow, Vae};
use crate::nn::params::Params;
use crate::study::session::{Session, SessionProgram};

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

    /// Returns the key that draws the picture's pixels.
    pub fn draw_key(&self) -> Key {
        self.key.split_at(self.z.len() as u64 + 1)
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
/// Pictures with more cells than 64 x 64 come in smaller batches.
fn batch_size(count: usize, frame: &Frame) -> Result<usize> {
    ensure!(count > 0, "there are no pictures to compute");
    let cells = frame.grid[0] * frame.grid[1];
    let most = (MAX_BATCH * 64 * 64 / cells.max(64 * 64)).max(1);
    Ok(count.div_ceil(count.div_ceil(most)))
}

/// Decoded latents.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// The mean of each pixel: (n, h, w, channels) in row-major order.
    pub means: Vec<f32>,
    /// Pixels drawn from their distributions, in the same form.
    pub drawn: Vec<f32>,
    /// log p(x | z) of the images in nats, (n), if there are any.
    pub log_likelihoods: Vec<f32>,
}

/// Returns the inputs of [`picture_program`].
fn picture_arguments(latents: &[Latent], batch: usize) -> Vec<Array> {
    let keys: Vec<u32> = (0..batch).flat_map(|i| latents[i.min(latents.len() - 1)].draw_key().0).collect();
    let mut all = arguments(latents, batch).to_vec();
    all.push(Array::new(&[batch, 2], &keys));
    all
}

/// Declares the inputs `latents` (n, Z), `keys` (n, 2) of the steps and `draw_keys` (n, 2) of the pixels. Returns the outputs of the
/// decoder, and the pictures' `means` and `drawn` pixels.
fn decoded<'g>(
    model: &Vae,
    n: usize,
    g: &'g Graph,
    params: &Params<'g>,
) -> (Sym<'g>, Vec<(String, Sym<'g>)>) {
    let latents = g.input("latents", &Shape::f32(&[n, model.latent]));
    let keys = g.input("keys", &Shape::u32(&[n, 2]));
    let draw_keys = g.input("draw_keys", &Shape::u32(&[n, 2]));
    let outputs = model.decode(params, latents, keys);
    let named = vec![
        ("means".to_string(), model.means(outputs)),
        ("drawn".to_string(), model.drawn(outputs, draw_keys)),
    ];
    (outputs, named)
}

/// Builds the program that decodes `n` latents to pictures.
pub fn picture_program<'g>(
    model: &Vae,
    n: usize,
    g: &'g Graph,
    params: &Params<'g>,
) -> Vec<(String, Sym<'g>)> {
    decoded(model, n, g, params).1
}

/// Decodes latents.
///
/// # Errors
/// When there are no latents, or the device fails.
pub fn decode(session: &Session, latents: &[Latent]) -> Result<Decoded> {
    let (model, batch) = (&session.model, batch_size(latents.len(), &session.model.frame)?);
    let program = session.compile("decode", |g, params| picture_program(model, batch, g, params))?;
    let size: usize = model.frame.counted().iter().product();
    let mut all = Decoded::default();
    for part in latents.chunks(batch) {
        let results = program.call(&picture_arguments(part, batch))?;
        for (values, result) in [&mut all.means, &mut all.drawn].into_iter().zip(&results) {
            result.with_elements(|new: &[f32]| values.extend_from_slice(&new[..part.len() * size]));
        }
    }
    Ok(all)
}

/// Decodes the latents of images, and computes the images' log-likelihoods given their latents.
///
/// # Errors
/// When there are no latents, or the device fails.
pub fn reconstruct(session: &Session, latents: &[Latent], images: &Split) -> Result<Decoded> {
    let (model, batch) = (&session.model, batch_size(latents.len(), &session.model.frame)?);
    let frame = model.frame;
    let program = session.compile("reconstruct", |g, params| {
        let (outputs, mut named) = decoded(model, batch, g, params);
        let pixels = g.input("images", &frame.pixels(batch));
        named.push(("log_likelihoods".into(), model.log_prob(model.padded(pixels), outputs)));
        named
    })?;
    let size: usize = frame.counted().iter().product();
    let mut all = Decoded::default();
    for (i, part) in latents.chunks(batch).enumerate() {
        let image = |row: usize| images.image((i * batch + row).min(images.len() - 1));
        let pixels: Vec<u8> = (0..batch).flat_map(image).copied().collect();
        let mut inputs = picture_arguments(part, batch);
        inputs.push(Array::new(&frame.pixels(batch).dims, &pixels));
        let results = program.call(&inputs)?;
        let lists = [&mut all.means, &mut all.drawn, &mut all.log_likelihoods];
        for ((values, result), size) in lists.into_iter().zip(&results).zip([size, size, 1]) {
            result.with_elements(|new: &[f32]| values.extend_from_slice(&new[..part.len() * size]));
        }
    }
    Ok(all)
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
    let (batch, model) = (batch_size(images.len(), &session.model.frame)?, &session.model);
    let size = model.latent;
    let program = session.compile("encode", |g, params| {
        let pixels = g.input("images", &model.frame.pixels(batch));
        let (mean, logvar) = model.encode(params, model.padded(pixels));
        vec![("mean".into(), mean), ("logvar".into(), logvar)]
    })?;
    let mut posteriors = Vec::with_capacity(images.len());
    while posteriors.len() < images.len() {
        // The last image fills up the batch.
        let index = |i: usize| (posteriors.len() + i).min(images.len() - 1);
        let pixels: Vec<u8> = (0..batch).flat_map(|i| images.image(index(i))).copied().collect();
        let results = program.call(&[Array::new(&model.frame.pixels(batch).dims, &pixels)])?;
        let (mean, logvar) = (results[0].to_vec::<f32>(), results[1].to_vec::<f32>());
        let rows = mean.chunks_exact(size).zip(logvar.chunks_exact(size));
        let left = images.len() - posteriors.len();
        posteriors.extend(rows.take(left).map(|(m, v)| Posterior { mean: m.to_vec(), logvar: v.to_vec() }));
    }
    Ok(posteriors)
}

/// The pictures of growing latents: the mean of each pixel at each stage (see [`Grow::stages`]).
#[derive(Clone, Debug)]
pub struct Growth {
    /// Number of stages.
    pub stages: usize,
    /// (stages, pictures, h, w, channels) in row-major order.
    pub shown: Vec<f32>,
}

/// Grows latents and returns the pictures of all stages.
///
/// # Errors
/// When the model has no automaton that grows, there are no latents, or the device fails.
pub fn grow(session: &Session, latents: &[Latent]) -> Result<Growth> {
    let batch = batch_size(latents.len(), &session.model.frame)?;
    let program = compile_growth(session, batch)?;
    let mut parts = Vec::new();
    for part in latents.chunks(batch) {
        let results = program.call(&arguments(part, batch))?;
        parts.push((results[2].dims()[0], part.len(), results[2].to_vec::<f32>()));
    }
    let stages = parts[0].0;
    let size: usize = session.model.frame.counted().iter().product();
    let of_stage = |stage: usize| {
        let rows = move |(_, n, shown): &(usize, usize, Vec<f32>)| {
            let from = stage * batch * size;
            shown[from..from + n * size].to_vec()
        };
        parts.iter().flat_map(rows).collect::<Vec<f32>>()
    };
    Ok(Growth { stages, shown: (0..stages).flat_map(of_stage).collect() })
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

/// Compiles the program that grows latents. Outputs: the last grids, their keys, and the pictures of all stages.
fn compile_growth(session: &Session, batch: usize) -> Result<SessionProgram<'_>> {
    let model = &session.model;
    let grow = automaton(model)?;
    let frame = model.frame;
    session.compile("grow", |g, params| {
        let z = g.input("latents", &Shape::f32(&[batch, model.latent]));
        let keys = g.input("keys", &Shape::u32(&[batch, 2]));
        // A grid that is smaller than the image lies in its middle, before black or full transparency.
        let (grids, shown) = grow.stages(params, &frame, z, keys, |cells| mean_of_cells(model, cells), 0.0);
        let d = shown.dims();
        let flat = shown.reshape(&[&[d[0] * d[1]], &d[2..]].concat());
        let cropped = frame.crop(flat);
        let shown = cropped.reshape(&[&[d[0], d[1]], &cropped.dims()[1..]].concat());
        vec![("cells".into(), grids.cells), ("keys".into(), grids.keys), ("shown".into(), shown)]
    })
}

/// Returns the mean of each cell's pixel, (n, h, w, channels), as brightness from 0 to 1.
fn mean_of_cells<'g>(model: &Vae, cells: Sym<'g>) -> Sym<'g> {
    let likelihood = &model.likelihood;
    likelihood.shown(likelihood.mean(first_channels(cells, likelihood.outputs().channels)))
}

/// Returns a data set's image with the pixels that count: for the report's frame, with the margin of zeros.
pub fn framed(frame: &Frame, pixels: &[u8]) -> Vec<u8> {
    let [height, width, channels] = frame.counted();
    let [[top, _], [left, _]] = if frame.counts_margin { frame.margins() } else { [[0, 0]; 2] };
    let mut out = vec![0; height * width * channels];
    for (y, row) in pixels.chunks_exact(frame.width * channels).enumerate() {
        out[((top + y) * width + left) * channels..][..row.len()].copy_from_slice(row);
    }
    out
}

/// Returns pixels of a data set as brightness from 0 to 1.
pub fn brightness(model: &Vae, pixels: &[u8]) -> Vec<f32> {
    let white = f32::from(model.likelihood.white());
    pixels.iter().map(|pixel| f32::from(*pixel) / white).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_sizes_give_few_and_full_calls() {
        assert_eq!(
            (1..=4).map(|n| batch_size(n * 16, &Frame::REPORT).unwrap()).collect::<Vec<_>>(),
            [16, 32, 24, 32]
        );
        assert_eq!(batch_size(11, &Frame::REPORT).unwrap(), 11);
        assert_eq!(batch_size(33, &Frame::REPORT).unwrap(), 17);
        assert!(batch_size(0, &Frame::REPORT).is_err());
        assert_eq!(batch_size(32, &Frame::new(256, 256, 3)).unwrap(), 2);
    }

    #[test]
    fn a_report_image_is_padded_on_all_sides() {
        let mut pixels = vec![0; 784];
        (pixels[0], pixels[783]) = (1, 1);
        let padded = framed(&Frame::REPORT, &pixels);
        let ones: Vec<usize> = (0..padded.len()).filter(|i| padded[*i] == 1).collect();
        assert_eq!(ones, [2 * 32 + 2, 29 * 32 + 29]);
        let other = Frame { grid: [16, 16], ..Frame::new(9, 10, 3) };
        let pixels: Vec<u8> = (0..=255).cycle().take(270).collect();
        assert_eq!(framed(&other, &pixels), pixels);
    }

    #[test]
    fn the_draws_of_a_latent_use_its_own_key() {
        let [a, b]: [Latent; 2] = Latent::priors(Key::new(3), 2, 4).try_into().unwrap();
        assert_eq!(a.z, Key::new(3).split_at(0).normal(4));
        assert_ne!(a.draw_key(), b.draw_key());
        assert_eq!(a.draw_key(), a.key.split_at(5));
        let certain = Posterior { mean: vec![1.0; 4], logvar: vec![f32::NEG_INFINITY; 4] };
        assert_eq!(certain.draw(Key::new(1)), certain.mean_latent(Key::new(1)));
        assert_eq!(Posterior { mean: vec![0.0; 4], logvar: vec![0.0; 4] }.kl(), 0.0);
    }
}
