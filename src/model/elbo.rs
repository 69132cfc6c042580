//! Training tasks that maximise a bound on log p(x).

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::decoder::GrowOptions;
use super::grow::{Damage, Growth};
use super::objective::{kl_to_standard_normal, noise, sample};
use super::vae::Vae;
use crate::engine::ir::{RepeatOptions, Sym};
use crate::engine::random::graph as draw;
use crate::engine::shape::{DType, Precision, Shape};
use crate::error::valid;
use crate::nn::params::{Leaf, Params};
use crate::train::task::{Outcome, Sizes, Step, Task};

/// The objective when an image has more than one latent sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ManySamples {
    /// The importance-weighted bound: log mean of p(x | z) p(z) / q(z | x)
    Importance,
    /// The objective of the report's code, which is not a bound: log mean of p(x | z), less the KL
    Report,
}

/// The training loss in nats: the negative bound on log p(x), averaged over the images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// Weight of the term that pulls q(z | x) towards the prior.
    pub beta: f64,
    /// Latent samples per image. With one sample the loss is the negative ELBO, with its KL in closed form.
    pub samples: usize,
    /// The objective with more than one latent per image.
    pub many: ManySamples,
}

impl Loss {
    /// The negative ELBO with one sample.
    pub const ELBO: Loss = Loss { beta: 1.0, samples: 1, many: ManySamples::Importance };
}

/// Latents of images and the distributions that they were drawn from.
pub struct Latents<'g> {
    /// Mean of q(z | x), (n, Z).
    pub mean: Sym<'g>,
    /// Log-variance of q(z | x), (n, Z).
    pub logvar: Sym<'g>,
    /// The standard normal noise, (n, M, Z).
    pub eps: Sym<'g>,
    /// The latents, (n, M, Z).
    pub z: Sym<'g>,
}

impl<'g> Latents<'g> {
    /// Encodes images (n, rows, columns, channels) and samples latents with the noise `eps` (n, M, Z).
    pub fn from_images(model: &Vae, params: &Params<'g>, images: Sym<'g>, eps: Sym<'g>) -> Latents<'g> {
        let (mean, logvar) = model.encode(params, images);
        let d = mean.dims();
        let row = |x: Sym<'g>| x.reshape(&[d[0], 1, d[1]]);
        Latents { mean, logvar, eps, z: sample(row(mean), row(logvar), eps) }
    }
}

impl Loss {
    /// Returns the loss of latents with the log-likelihoods (n, M).
    pub fn from_latents<'g>(&self, latents: &Latents<'g>, log_likelihood: Sym<'g>) -> Sym<'g> {
        let Latents { mean, logvar, eps, z } = *latents;
        let n = log_likelihood.dims()[0];
        let kl = || kl_to_standard_normal(mean, logvar) * self.beta;
        let log_mean = |weights: Sym<'g>| weights.logsumexp(1) - (self.samples as f64).ln();
        let bound = match (self.samples, self.many) {
            (1, _) => log_likelihood.reshape(&[n]) - kl(),
            (_, ManySamples::Report) => log_mean(log_likelihood) - kl(),
            (_, ManySamples::Importance) => {
                // log p(z) − log q(z | x): the normalising constants cancel.
                let logvar = logvar.reshape(&[n, 1, logvar.dims()[1]]);
                let log_ratio = (logvar + eps.square() - z.square()).sum(&[2]) * 0.5;
                log_mean(log_likelihood + log_ratio * self.beta)
            }
        };
        -bound.mean(&[0])
    }

    /// Returns the loss of images (n, rows, columns, channels) with their margin. The batch's key is split into one key per image, which draws the image's M
    /// latents at once.
    pub fn from_images<'g>(
        &self,
        model: &Vae,
        params: &Params<'g>,
        images: Sym<'g>,
        key: Sym<'g>,
        options: &GrowOptions<'g>,
    ) -> Sym<'g> {
        let (n, m) = (images.dims()[0], self.samples);
        let (eps, keys) = noise(draw::split(key, n), m, model.latent);
        let latents = Latents::from_images(model, params, images, eps);
        let z = latents.z.reshape(&[n * m, model.latent]);
        let keys = if model.decoder.draws() { draw::split(keys, m).reshape(&[n * m, 2]) } else { keys };
        let outputs = model.decode_with(params, z, keys, options);
        let d = images.dims();
        let tiled = images.broadcast_in_dim(&[n, m, d[1], d[2], d[3]], &[0, 2, 3, 4]);
        let tiled = tiled.reshape(&[n * m, d[1], d[2], d[3]]);
        self.from_latents(&latents, model.log_prob(tiled, outputs).reshape(&[n, m]))
    }
}

/// The task of training a model with a bound on log p(x).
#[derive(Clone)]
pub struct Elbo {
    /// The model to train.
    pub model: Vae,
    /// The loss, which selects the bound.
    pub loss: Loss,
    /// Which values of the forward pass are saved for the gradient of an automaton's steps.
    pub memory: RepeatOptions,
    /// Share of a batch's grids that is damaged after a random doubling. Must be 0 for a decoder that does not double its grid.
    pub damage: f64,
}

impl Elbo {
    /// Returns the task of maximising the ELBO, without damage.
    pub fn new(model: Vae) -> Elbo {
        Elbo { memory: RepeatOptions::for_precision(model.precision), model, loss: Loss::ELBO, damage: 0.0 }
    }

    /// Returns the number of grids that a step damages on each replica.
    fn damaged_grids(&self, sizes: &Sizes) -> usize {
        round_share(self.damage, sizes.each() * self.loss.samples)
    }
}

/// Returns a share of a number of grids, rounded down. The small term keeps a whole product from being rounded down by one.
pub(super) fn round_share(share: f64, grids: usize) -> usize {
    (share * grids as f64 + 1e-9) as usize
}

impl Task for Elbo {
    fn name(&self) -> String {
        self.model.name.clone()
    }

    fn precision(&self) -> Precision {
        self.model.precision
    }

    fn parameters(&self) -> Vec<Leaf> {
        self.model.leaves()
    }

    fn example(&self) -> Option<(&'static str, Shape)> {
        Some(("images", Shape::new(DType::U8, &self.model.frame.pixel_dims())))
    }

    fn check(&self, _sizes: &Sizes) -> Result<()> {
        self.model.check()?;
        valid!(self.loss.samples > 0, "loss.samples", "is 0: an image has at least one latent");
        let doubles =
            self.model.decoder.automaton().is_some_and(|a| matches!(a.growth, Growth::Doublings { .. }));
        let most = if doubles { 1.0 } else { 0.0 };
        valid!(
            (0.0..=most).contains(&self.damage),
            "damage",
            "{}: for the {} model it is from 0 to {most}",
            self.damage,
            self.model.name
        );
        Ok(())
    }

    fn step<'g>(&self, step: Step<'g, '_>) -> Outcome<'g> {
        let [noise, damage_key] = step.keys;
        let images = step.examples.expect("the task has examples");
        let n = images.dims()[0];
        // The latents of n images do not use this child of the key.
        let pixels =
            self.model.likelihood.training_pixels(images, &|| draw::split(draw::split_at(noise, n), n));
        let images = self.model.padded(pixels);
        let damage =
            Some(Damage { grids: self.damaged_grids(step.sizes), key: damage_key }).filter(|d| d.grids > 0);
        let options = GrowOptions { memory: self.memory, damage };
        Outcome::new(self.loss.from_images(&self.model, &step.params, images, noise, &options))
    }
}
