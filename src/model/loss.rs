//! What training minimises.

use serde::{Deserialize, Serialize};

use super::Model;
use super::encoder::encode;
use super::objective::{bernoulli_log_likelihood, kl_to_standard_normal, noise, sample};
use super::vnca::{Automaton, Damage, logits};
use crate::engine::ir::{RepeatOptions, Sym};
use crate::engine::random::graph as draw;
use crate::model::{Kind, baseline};
use crate::nn::params::Params;

/// What is trained on when an image has more than one latent sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ManySamples {
    /// The importance-weighted bound: log mean of p(x | z) p(z) / q(z | x)
    Importance,
    /// What the report's code does, which bounds nothing: log mean of p(x | z), less the KL
    Report,
}

/// The training loss: minus a bound on log p(x), the mean over images, in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// Weight of the part that draws q(z | x) to the prior.
    pub beta: f64,
    /// Latents an image. With one, the loss is minus the ELBO with its KL in closed form.
    pub samples: usize,
    pub many: ManySamples,
}

impl Loss {
    pub const ELBO: Loss = Loss { beta: 1.0, samples: 1, many: ManySamples::Importance };
}

/// How a training step runs an automaton.
#[derive(Clone, Copy, Default)]
pub struct Course<'g> {
    /// What the gradient saves of its steps.
    pub memory: RepeatOptions,
    /// Damage at one of the doublings.
    pub damage: Option<Damage<'g>>,
}

/// Latents of images and what they were drawn from.
pub struct Latents<'g> {
    pub mean: Sym<'g>,
    pub logvar: Sym<'g>,
    /// (n, M, Z), as is `z`.
    pub eps: Sym<'g>,
    pub z: Sym<'g>,
}

impl<'g> Latents<'g> {
    /// Encodes images (n, 32, 32, 1) and samples with `eps` (n, M, Z).
    pub fn of(params: &Params<'g>, images: Sym<'g>, eps: Sym<'g>) -> Latents<'g> {
        let (mean, logvar) = encode(params, images);
        let d = mean.dims();
        let row = |x: Sym<'g>| x.reshape(&[d[0], 1, d[1]]);
        Latents { mean, logvar, eps, z: sample(row(mean), row(logvar), eps) }
    }
}

impl Loss {
    /// The loss of latents whose log-likelihoods are (n, M).
    pub fn of<'g>(&self, latents: &Latents<'g>, log_likelihood: Sym<'g>) -> Sym<'g> {
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

    /// The loss of images (n, 32, 32, 1). A batch's key is split into one an image, of which its M latents are one draw.
    pub fn of_images<'g>(
        &self,
        model: &Model,
        params: &Params<'g>,
        images: Sym<'g>,
        key: Sym<'g>,
        course: &Course<'g>,
    ) -> Sym<'g> {
        let (n, m) = (images.dims()[0], self.samples);
        let (eps, keys) = noise(draw::split(key, n), m, model.latent);
        let latents = Latents::of(params, images, eps);
        let z = latents.z.reshape(&[n * m, model.latent]);
        let logits = match model.kind {
            Kind::Baseline => baseline::decode(params, z),
            Kind::Doubling | Kind::NonDoubling => {
                let keys = draw::split(keys, m).reshape(&[n * m, 2]);
                logits(Automaton::new(model, params).on(course).grow(z, keys))
            }
        };
        let d = images.dims();
        let tiled = images.broadcast_in_dim(&[n, m, d[1], d[2], d[3]], &[0, 2, 3, 4]);
        let tiled = tiled.reshape(&[n * m, d[1], d[2], d[3]]);
        self.of(&latents, bernoulli_log_likelihood(tiled, logits).reshape(&[n, m]))
    }
}
