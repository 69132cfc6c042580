//! Training tasks that maximise a bound on log p(x).

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::decoder::GrowOptions;
use super::grow::{Damage, Growth};
use super::objective::{kl_to_standard_normal, kl_with_free_bits, noise, sample};
use super::vae::Vae;
use crate::engine::ir::{RepeatOptions, Sym, pullback};
use crate::engine::random::graph as draw;
use crate::engine::shape::{DType, Precision, Shape};
use crate::error::valid;
use crate::nn::params::{Leaf, Params};
use crate::train::task::{Entry, Outcome, Sizes, Spread, Step, Task};

/// The objective when an image has more than one latent sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ManySamples {
    /// The importance-weighted bound: log mean of p(x | z) p(z) / q(z | x)
    Importance,
    /// The objective of the report's code, which is not a bound: log mean of p(x | z), less the KL
    Report,
}

/// How training estimates the gradient of the importance-weighted bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IwGradient {
    /// The derivative of the bound
    #[default]
    Plain,
    /// The doubly reparameterised estimator for the encoder: it has the same mean, and its noise does not grow with the samples.
    /// Source: Tucker et al., "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives" (2019)
    Dreg,
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
    /// The gradient of the importance-weighted bound.
    #[serde(default, skip_serializing_if = "is_default")]
    pub iw_gradient: IwGradient,
    /// KL in nats below which a latent dimension does not count, as a mean over the batch. 0: each dimension counts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub free_bits: f64,
    /// Number of steps over which the weight of the KL rises linearly to `beta`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kl_warmup: usize,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Name of the state that counts the steps of the KL's warm-up.
const KL_STEP: &str = "kl_step";

impl Loss {
    /// The negative ELBO with one sample.
    pub const ELBO: Loss = Loss {
        beta: 1.0,
        samples: 1,
        many: ManySamples::Importance,
        iw_gradient: IwGradient::Plain,
        free_bits: 0.0,
        kl_warmup: 0,
    };

    /// Checks that the fields fit each other.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid), with the field that does not fit.
    pub fn check(&self) -> Result<()> {
        let importance = self.samples > 1 && self.many == ManySamples::Importance;
        valid!(self.samples > 0, "loss.samples", "is 0: an image has at least one latent");
        valid!(
            self.iw_gradient == IwGradient::Plain || importance,
            "loss.iw_gradient",
            "dreg is a gradient of the importance-weighted bound: it needs more than one latent sample per image"
        );
        valid!(
            self.free_bits >= 0.0 && self.free_bits.is_finite(),
            "loss.free_bits",
            "is {}: it must be a number of nats, at least 0",
            self.free_bits
        );
        valid!(
            self.free_bits == 0.0 || !importance,
            "loss.free_bits",
            "is {}: the importance-weighted bound has no KL of single dimensions; use one latent sample per image",
            self.free_bits
        );
        Ok(())
    }

    /// Returns the state that the loss needs in training.
    pub(super) fn state(&self) -> Option<Entry> {
        (self.kl_warmup > 0).then(|| Entry::zeros(KL_STEP, Shape::s32(&[]), Spread::Same))
    }

    /// Returns the circumstances of a step.
    pub(super) fn at<'g>(&self, step: &Step<'g, '_>) -> LossStep<'g> {
        let kl_share = step.state.get(KL_STEP).map(|done| {
            let risen = (done.convert(DType::F32) + 1.0) / self.kl_warmup as f64;
            risen.min(risen.scalar_like(1.0))
        });
        LossStep { replicas: step.sizes.replicas, kl_share }
    }

    /// Adds the new value of [`Loss::state`] to a step's outcome.
    pub(super) fn counted<'g>(&self, outcome: Outcome<'g>, step: &Step<'g, '_>) -> Outcome<'g> {
        match step.state.get(KL_STEP) {
            Some(done) => outcome.with(KL_STEP, *done + 1.0),
            None => outcome,
        }
    }
}

/// The circumstances of a loss in training. By default one replica, after the KL's warm-up.
#[derive(Clone, Copy)]
pub struct LossStep<'g> {
    /// Number of replicas that share the batch.
    pub replicas: usize,
    /// Share of the KL's weight that its warm-up has reached, from 0 to 1; `None` for all of it.
    pub kl_share: Option<Sym<'g>>,
}

impl Default for LossStep<'_> {
    fn default() -> Self {
        LossStep { replicas: 1, kl_share: None }
    }
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
    pub fn from_latents<'g>(
        &self,
        latents: &Latents<'g>,
        log_likelihood: Sym<'g>,
        step: LossStep<'g>,
    ) -> Sym<'g> {
        let Latents { mean, logvar, .. } = *latents;
        let n = log_likelihood.dims()[0];
        let kl = || {
            let kl = match self.free_bits {
                0.0 => kl_to_standard_normal(mean, logvar),
                least => kl_with_free_bits(mean, logvar, least, step.replicas),
            };
            self.weighted(kl, step)
        };
        let log_mean = |weights: Sym<'g>| weights.logsumexp(1) - (self.samples as f64).ln();
        let bound = match (self.samples, self.many) {
            (1, _) => log_likelihood.reshape(&[n]) - kl(),
            (_, ManySamples::Report) => log_mean(log_likelihood) - kl(),
            (_, ManySamples::Importance) => log_mean(self.log_weights(latents, log_likelihood, step)),
        };
        -bound.mean(&[0])
    }

    /// Scales a term by the weight of the KL.
    fn weighted<'g>(&self, term: Sym<'g>, step: LossStep<'g>) -> Sym<'g> {
        let full = term * self.beta;
        step.kl_share.map_or(full, |share| full * share)
    }

    /// Returns the logarithms of the importance weights, log p(x | z) + log p(z) − log q(z | x): (n, M).
    fn log_weights<'g>(&self, latents: &Latents<'g>, log_likelihood: Sym<'g>, step: LossStep<'g>) -> Sym<'g> {
        let Latents { logvar, eps, z, .. } = *latents;
        let [n, latent] = [logvar.dims()[0], logvar.dims()[1]];
        // log p(z) − log q(z | x): the normalising constants cancel.
        let logvar = logvar.reshape(&[n, 1, latent]);
        let log_ratio = (logvar + eps.square() - z.square()).sum(&[2]) * 0.5;
        log_likelihood + self.weighted(log_ratio, step)
    }

    /// Returns the doubly reparameterised gradient of the loss for the parameters `values` of `leaves`, in their order.
    ///
    /// With the normalised weights w of an image's samples, the decoder's gradient is the derivative Σ w ∂log p(x | z). The
    /// encoder's is Σ w (1 − b (1 − w)) ∂log v/∂z ∂z, where v are the importance weights as a function of z alone, and b is the weight
    /// of log p(z) − log q(z | x). At b = 1 the factor is the paper's w². For another b it follows from the same identity.
    fn doubly_reparameterised<'g>(
        &self,
        leaves: &[Leaf],
        values: &[Sym<'g>],
        latents: &Latents<'g>,
        log_likelihood: Sym<'g>,
        step: LossStep<'g>,
    ) -> Vec<Sym<'g>> {
        let Latents { logvar, eps, z, .. } = *latents;
        let (n, m, latent) = (z.dims()[0], z.dims()[1], z.dims()[2]);
        let log_weights = self.log_weights(latents, log_likelihood, step);
        let weights = (log_weights - log_weights.logsumexp(1).reshape(&[n, 1])).exp();
        let of_encoder = |leaf: &Leaf| leaf.name.starts_with("encoder.");
        let chosen = |encoder: bool| -> Vec<Sym<'g>> {
            leaves.iter().zip(values).filter(|(l, _)| of_encoder(l) == encoder).map(|(_, v)| *v).collect()
        };
        // One walk back through the decoder gives the gradients of its parameters and of the latents.
        let share = -1.0 / n as f64;
        let mut decoder = pullback(&[(log_likelihood, weights * share)], &[chosen(false), vec![z]].concat());
        let through_likelihood = decoder.pop().expect("a gradient for each value");
        let by_latent = weights.reshape(&[n, m, 1]);
        let deviation = (logvar.reshape(&[n, 1, latent]) * -0.5).exp();
        let through_densities = self.weighted(eps * deviation - z, step) * by_latent * share;
        let factor = -self.weighted(-by_latent + 1.0, step) + 1.0;
        let cotangent = (through_likelihood + through_densities) * factor;
        let encoder = pullback(&[(z, cotangent)], &chosen(true));
        let (mut encoder, mut decoder) = (encoder.into_iter(), decoder.into_iter());
        let next = |leaf| if of_encoder(leaf) { encoder.next() } else { decoder.next() };
        leaves.iter().filter_map(next).collect()
    }

    /// Returns the loss of images (n, rows, columns, channels) with their margin, and its gradient if that is not the loss's
    /// derivative. The batch's key is split into one key per image, which draws the image's M latents at once.
    pub fn from_images<'g>(
        &self,
        model: &Vae,
        params: &Params<'g>,
        (images, key): (Sym<'g>, Sym<'g>),
        options: &GrowOptions<'g>,
        step: LossStep<'g>,
    ) -> Outcome<'g> {
        let (n, m) = (images.dims()[0], self.samples);
        let (eps, keys) = noise(draw::split(key, n), m, model.latent);
        let latents = Latents::from_images(model, params, images, eps);
        let z = latents.z.reshape(&[n * m, model.latent]);
        let keys = if model.decoder.draws() { draw::split(keys, m).reshape(&[n * m, 2]) } else { keys };
        let outputs = model.decode_with(params, z, keys, options);
        let d = images.dims();
        let tiled = images.broadcast_in_dim(&[n, m, d[1], d[2], d[3]], &[0, 2, 3, 4]);
        let tiled = tiled.reshape(&[n * m, d[1], d[2], d[3]]);
        let log_likelihood = model.log_prob(tiled, outputs).reshape(&[n, m]);
        let loss = self.from_latents(&latents, log_likelihood, step);
        let gradient = (self.iw_gradient == IwGradient::Dreg).then(|| {
            let leaves = model.leaves();
            let values: Vec<Sym<'g>> = leaves.iter().map(|leaf| params.get(&leaf.name)).collect();
            self.doubly_reparameterised(&leaves, &values, &latents, log_likelihood, step)
        });
        Outcome { gradient, ..Outcome::new(loss) }
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
        self.loss.check()?;
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

    fn state(&self, _sizes: &Sizes) -> Vec<Entry> {
        self.loss.state().into_iter().collect()
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
        let drawn = (images, noise);
        let outcome = self.loss.from_images(&self.model, &step.params, drawn, &options, self.loss.at(&step));
        self.loss.counted(outcome, &step)
    }
}
