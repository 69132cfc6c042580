//! A variational autoencoder: an encoder, a decoder and a likelihood.

use std::sync::Arc;

use anyhow::Result;

use super::decoder::{Decoder, GrowOptions};
use super::encoder::Encoder;
use super::grow::Grow;
use super::likelihood::Likelihood;
use super::{GRID_SIDE, MARGIN};
use crate::engine::ir::ops::layout::Padding;
use crate::engine::ir::{Function, Graph, Sym};
use crate::engine::shape::{Precision, Shape};
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
    /// The encoder, q(z | x).
    pub encoder: Arc<dyn Encoder>,
    /// The decoder from latents to the likelihood's outputs.
    pub decoder: Arc<dyn Decoder>,
    /// The likelihood p(x | z), given the decoder's outputs.
    pub likelihood: Arc<dyn Likelihood>,
}

impl Vae {
    /// Combines the parts of a model, with f32 operands.
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
            encoder: Arc::new(encoder),
            decoder: Arc::new(decoder),
            likelihood: Arc::new(likelihood),
        }
    }

    /// Checks the fields.
    ///
    /// # Errors
    /// [`Error::Invalid`], with the field that is out of range.
    pub fn check(&self) -> Result<()> {
        let channels = self.likelihood.outputs().channels;
        valid!((1..=65_536).contains(&self.latent), "latent", "{}: it must be from 1 to 65536", self.latent);
        if let Some(grow) = self.decoder.automaton() {
            grow.check()?;
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
        let mut leaves = scoped("encoder", &[0], self.encoder.parameters(self.latent));
        let decoder = self.decoder.parameters(self.latent, self.likelihood.outputs());
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
        self.decoder.prepared(params, latents)
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

    /// Returns mean and log-variance of q(z | x), (n, Z) each, for images (n, 32, 32, 1).
    pub fn encode<'g>(&self, params: &Params<'g>, images: Sym<'g>) -> (Sym<'g>, Sym<'g>) {
        self.encoder.encode(&params.scope("encoder"), images)
    }

    /// Decodes latents (n, Z) to the likelihood's outputs (n, 32, 32, channels), as in evaluation. Random draws while decoding
    /// use the keys (n, 2).
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
        self.decoder.decode(params, z, keys, self.likelihood.outputs(), options)
    }

    /// Declares the inputs `latents` (n, Z) and `keys` (n, 2). Returns [`Vae::decode`] as the output `logits`.
    pub fn decoder_program<'g>(&self, n: usize, g: &'g Graph, params: &Params<'g>) -> Vec<(String, Sym<'g>)> {
        let latents = g.input("latents", &Shape::f32(&[n, self.latent]));
        let keys = g.input("keys", &Shape::u32(&[n, 2]));
        vec![("logits".into(), self.decode(params, latents, keys))]
    }

    /// Converts u8 pixels (n, 28, 28) to padded images (n, 32, 32, 1) of the values that the likelihood observes.
    pub fn padded<'g>(&self, pixels: Sym<'g>) -> Sym<'g> {
        let observed = self.likelihood.observe(pixels);
        let margin = Padding::new(MARGIN as i64, MARGIN as i64);
        let images = observed.pad(observed.scalar_like(0.0), &[Padding::default(), margin, margin]);
        let n = images.dims()[0];
        images.reshape(&[n, GRID_SIDE, GRID_SIDE, 1])
    }
}
