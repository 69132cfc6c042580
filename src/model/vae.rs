//! A variational autoencoder: an encoder, a decoder and a likelihood.

use std::sync::Arc;

use anyhow::Result;

use super::decoder::{Canvas, Decoder, GrowOptions};
use super::encoder::Encoder;
use super::frame::Frame;
use super::grow::Grow;
use super::likelihood::{self, Likelihood};
use crate::engine::ir::{Function, Graph, Sym};
use crate::engine::shape::Precision;
use crate::error::{Error, valid};
use crate::nn::params::{Leaf, Params, scoped};

/// A model of images: latents z from a standard normal distribution, decoded to the parameters of each pixel's distribution.
#[derive(Clone)]
pub struct Vae {
    /// Name of the model, and last part of its programs' names.
    pub name: String,
    /// Latent size Z.
    pub latent: usize,
    /// Element type of the operands of matmuls and convolutions.
    pub precision: Precision,
    /// The sizes of the images.
    pub frame: Frame,
    /// The encoder, q(z | x).
    pub encoder: Arc<dyn Encoder>,
    /// The decoder from latents to the likelihood's outputs.
    pub decoder: Arc<dyn Decoder>,
    /// The likelihood p(x | z), given the decoder's outputs.
    pub likelihood: Arc<dyn Likelihood>,
}

impl Vae {
    /// Combines the parts of a model of the report's images, with f32 operands.
    pub fn new(
        name: &str,
        latent: usize,
        encoder: impl Encoder + 'static,
        decoder: impl Decoder + 'static,
        likelihood: impl Likelihood + 'static,
    ) -> Vae {
        Vae {
            name: name.into(),
            latent,
            precision: Precision::F32,
            frame: Frame::REPORT,
            encoder: Arc::new(encoder),
            decoder: Arc::new(decoder),
            likelihood: Arc::new(likelihood),
        }
    }

    /// Sets the sizes of the images.
    pub fn with_frame(self, frame: Frame) -> Vae {
        Vae { frame, ..self }
    }

    /// Returns what the decoder computes.
    pub fn canvas(&self) -> Canvas {
        Canvas { frame: self.frame, outputs: self.likelihood.outputs() }
    }

    /// Checks the fields.
    ///
    /// # Errors
    /// [`Error::Invalid`], with the field that is out of range.
    pub fn check(&self) -> Result<()> {
        let channels = self.likelihood.outputs().channels;
        valid!((1..=65_536).contains(&self.latent), "latent", "{}: it must be from 1 to 65536", self.latent);
        self.frame.check()?;
        self.likelihood.check()?;
        self.decoder.check(&self.canvas())?;
        if self.decoder.automaton().is_some() {
            valid!(
                self.latent >= channels,
                "latent",
                "{}: at least {channels}, because the first channels of a cell are the likelihood's outputs",
                self.latent
            );
        }
        Ok(())
    }

    /// Returns the decoder's automaton.
    ///
    /// # Errors
    /// When the decoder has none.
    pub fn automaton(&self) -> Result<&Grow> {
        let none = || Error::Invalid {
            field: "model",
            problem: format!("{} has no automaton: its decoder has no cells", self.name),
        };
        self.decoder.automaton().ok_or_else(|| none().into())
    }

    /// Returns a graph in the model's precision.
    pub fn graph(&self, name: &str) -> Graph {
        Graph::with_precision(name, self.precision)
    }

    /// Returns all parameters in the order of checkpoints: the encoder's, then the decoder's.
    pub fn leaves(&self) -> Vec<Leaf> {
        let mut leaves = scoped("encoder", &[0], self.encoder.parameters(&self.frame, self.latent));
        let decoder = self.decoder.parameters(self.latent, &self.canvas());
        leaves.extend(
            decoder.into_iter().map(|leaf| Leaf { path: [&[1], leaf.path.as_slice()].concat(), ..leaf }),
        );
        leaves
    }

    /// Returns the number of parameters.
    pub fn parameter_count(&self) -> usize {
        self.leaves().iter().map(|leaf| leaf.shape.iter().product::<usize>()).sum()
    }

    /// Returns the parameters in the form that decodes this number of latents fastest, over all calls of [`Vae::decode`].
    pub fn prepared<'g>(&self, params: &Params<'g>, latents: usize) -> Params<'g> {
        self.decoder.prepared(params, &self.canvas(), latents)
    }

    /// Builds a computation whose first inputs are the parameters. `build` declares the other inputs and returns the outputs by
    /// name.
    ///
    /// # Errors
    /// When the graph is invalid.
    pub fn function(
        &self,
        name: &str,
        build: impl for<'g> FnOnce(&'g Graph, &Params<'g>) -> Vec<(String, Sym<'g>)>,
    ) -> Result<Function> {
        let leaves = self.leaves();
        let g = self.graph(&format!("{name}_{}", self.name));
        let params = Params::new(&leaves, &Params::inputs(&g, &leaves, ""));
        g.finish(&build(&g, &params), &[])
    }

    /// Returns mean and log-variance of q(z | x), (n, Z) each, for images (n, rows, columns, channels) with
    /// their margin.
    pub fn encode<'g>(&self, params: &Params<'g>, images: Sym<'g>) -> (Sym<'g>, Sym<'g>) {
        self.encoder.encode(&params.scope("encoder"), images)
    }

    /// Decodes latents (n, Z) to the likelihood's outputs (n, rows, columns, channels) of the whole grid, as in evaluation. Random
    /// draws while decoding use the keys (n, 2).
    pub fn decode<'g>(&self, params: &Params<'g>, z: Sym<'g>, keys: Sym<'g>) -> Sym<'g> {
        self.decode_with(params, z, keys, &GrowOptions::default())
    }

    /// Decodes like [`Vae::decode`], with the options of a training step.
    pub fn decode_with<'g>(
        &self,
        params: &Params<'g>,
        z: Sym<'g>,
        keys: Sym<'g>,
        options: &GrowOptions<'g>,
    ) -> Sym<'g> {
        self.decoder.decode(params, z, keys, &self.canvas(), options)
    }

    /// Converts u8 pixels (n, h, w) or (n, h, w, channels) to images (n, rows, columns, channels) with their margin, of the values
    /// that the likelihood observes.
    pub fn padded<'g>(&self, pixels: Sym<'g>) -> Sym<'g> {
        self.frame.pad(self.likelihood.observe(pixels))
    }

    /// Returns log p(image | outputs) in nats, (n), of images and a decoder's outputs for the whole grid. The likelihood sees the
    /// pixels that count.
    pub fn log_prob<'g>(&self, images: Sym<'g>, outputs: Sym<'g>) -> Sym<'g> {
        likelihood::log_prob(self.likelihood.as_ref(), self.frame.crop(images), self.frame.crop(outputs))
    }

    /// Returns the means of the pixels that count, (n, h, w, channels), as brightness from 0 to 1.
    pub fn means<'g>(&self, outputs: Sym<'g>) -> Sym<'g> {
        self.likelihood.shown(self.likelihood.mean(self.frame.crop(outputs)))
    }

    /// Draws the pixels that count, (n, h, w, channels), with one key per image (n, 2). Returns them as brightness from 0 to 1.
    pub fn drawn<'g>(&self, outputs: Sym<'g>, keys: Sym<'g>) -> Sym<'g> {
        self.likelihood.shown(self.likelihood.draw(self.frame.crop(outputs), keys))
    }

    /// Returns log p(image | outputs) as [`Vae::log_prob`] does, of images of u8 (n, h, w, channels) that have the pixels that count.
    pub fn log_prob_of_counted<'g>(&self, pixels: Sym<'g>, outputs: Sym<'g>) -> Sym<'g> {
        let images = self.likelihood.observe(pixels);
        likelihood::log_prob(self.likelihood.as_ref(), images, self.frame.crop(outputs))
    }
}
