//! Objectives: the evidence lower bound (ELBO) and the importance-weighted ELBO (IWELBO).
//!
//! Sources: Kingma & Welling, "Auto-Encoding Variational Bayes" (2014); Burda, Grosse & Salakhutdinov, "Importance Weighted
//! Autoencoders" (2016).

use super::vae::Vae;
use crate::engine::ir::Sym;
use crate::engine::random::graph as draw;
use crate::engine::shape::{DType, largest_divisor};
use crate::nn::params::Params;

/// Returns KL(N(mean, exp(logvar)) ‖ N(0, I)), summed over the latent's dimensions: (n).
pub fn kl_to_standard_normal<'g>(mean: Sym<'g>, logvar: Sym<'g>) -> Sym<'g> {
    twice_kl_by_dimension(mean, logvar).sum(&[1]) * 0.5
}

/// Returns KL(N(mean, exp(logvar)) ‖ N(0, I)) of each dimension with at least `least` nats in the sum over the dimensions, as a mean
/// over a batch: (n). A dimension whose mean KL over the batches of all replicas is lower counts as `least`, and has no gradient.
///
/// Source: Kingma et al., "Improving Variational Inference with Inverse Autoregressive Flow" (2016), appendix C.8, with a group for
/// each dimension.
pub fn kl_with_free_bits<'g>(mean: Sym<'g>, logvar: Sym<'g>, least: f64, replicas: usize) -> Sym<'g> {
    let kl = twice_kl_by_dimension(mean, logvar) * 0.5;
    let own = kl.mean(&[0]).detach();
    let over_replicas = if replicas == 1 { own } else { own.all_reduce() * (1.0 / replicas as f64) };
    // Between the losses of the replicas this mask does not differ, so that their mean is the loss of the whole batch.
    let counts = over_replicas.scalar_like(least).lt(over_replicas).convert(DType::F32);
    (kl * counts - counts * least + least).sum(&[1])
}

/// Returns 2 KL(N(mean, exp(logvar)) ‖ N(0, I)) of each dimension: (n, Z).
fn twice_kl_by_dimension<'g>(mean: Sym<'g>, logvar: Sym<'g>) -> Sym<'g> {
    mean.square() + logvar.exp() - logvar - 1.0
}

/// Returns z = mean + exp(logvar / 2) · eps.
pub fn sample<'g>(mean: Sym<'g>, logvar: Sym<'g>, eps: Sym<'g>) -> Sym<'g> {
    mean + (logvar * 0.5).exp() * eps
}

/// Draws the noise `eps` (n, samples, Z), each image's part from its own key. Also returns keys (n, 2), one per image, that are
/// independent of `eps`.
pub fn noise<'g>(keys: Sym<'g>, samples: usize, latent: usize) -> (Sym<'g>, Sym<'g>) {
    (draw::normal(keys, &[samples, latent]), draw::split_at(keys, samples * latent))
}

/// Results of an evaluation for each image. All but `mean` are (n), in nats.
pub struct Scores<'g> {
    /// The importance-weighted lower bound on log p(x).
    pub iwelbo: Sym<'g>,
    /// Mean of log p(x | z) over the samples. The ELBO is this value minus `kl`.
    pub reconstruction: Sym<'g>,
    /// KL(q(z | x) ‖ p(z)).
    pub kl: Sym<'g>,
    /// Mean of q(z | x): (n, Z).
    pub mean: Sym<'g>,
}

/// Returns the scores of images (n, rows, columns, channels), with their margin, from `samples` latents each. `keys` (n, 2) has one key per image.
///
/// Each image is encoded once. At most `at_once` samples (or one sample of each image) are drawn and decoded at a time, so that
/// memory does not grow with the number of samples.
pub fn scores<'g>(
    model: &Vae,
    params: &Params<'g>,
    images: Sym<'g>,
    keys: Sym<'g>,
    samples: usize,
    at_once: usize,
) -> Scores<'g> {
    let g = images.graph();
    let (n, latent) = (images.dims()[0], model.latent);
    let (mean, logvar) = model.encode(params, images);
    let group = largest_divisor(samples, at_once / n.max(1));
    let rows = group * n;
    let tile = |x: Sym<'g>| {
        let dims = x.dims();
        let tiled = [&[group], dims.as_slice()].concat();
        x.broadcast_in_dim(&tiled, &(1..tiled.len()).collect::<Vec<_>>())
            .reshape(&[&[rows], &dims[1..]].concat())
    };
    let by_sample = |x: Sym<'g>, last: usize| x.transpose(&[1, 0, 2]).reshape(&[rows, last]);
    let (tiled_images, tiled_mean, tiled_logvar) = (tile(images), tile(mean), tile(logvar));
    let params = model.prepared(params, samples * n);
    // Draws the same values and keys as [`noise`], one group of samples at a time.
    let stepping = draw::split_at(keys, samples * latent);
    let stacked = g.repeat(samples / group, &[], |i, _| {
        let first = i.convert(DType::U32) * group as f64;
        let eps = by_sample(draw::normal_from(keys, first * latent as f64, &[group, latent]), latent);
        let z = sample(tiled_mean, tiled_logvar, eps);
        let logits = model.decode(&params, z, by_sample(draw::split_from(stepping, first, group), 2));
        let log_likelihood = model.log_prob(tiled_images, logits);
        // log p(z) − log q(z | x): the normalising constants cancel.
        let log_ratio = (tiled_logvar + eps.square() - z.square()).sum(&[1]) * 0.5;
        (vec![], vec![log_likelihood + log_ratio, log_likelihood])
    });
    let [weights, log_likelihoods] = [0, 1].map(|i| stacked[i].reshape(&[samples, n]));
    Scores {
        iwelbo: weights.logsumexp(0) - (samples as f64).ln(),
        reconstruction: log_likelihoods.mean(&[0]),
        kl: kl_to_standard_normal(mean, logvar),
        mean,
    }
}
