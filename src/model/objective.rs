//! Objectives: the evidence lower bound (ELBO), and the importance-weighted one (IWELBO).
//!
//! Kingma & Welling, "Auto-Encoding Variational Bayes" (2014); Burda, Grosse & Salakhutdinov, "Importance Weighted
//! Autoencoders" (2016).

use super::Model;
use super::encoder::encode;
use super::params::Params;
use crate::ir::Sym;
use crate::random::graph as draw;

/// log p(x | logits), summed over the pixels of each image: (n). `images` is 0 or 1, broadcast to `logits`.
/// A logit of −∞ makes a 0 certain: 0 nats, with a gradient of 0.
pub fn bernoulli_log_likelihood<'g>(images: Sym<'g>, logits: Sym<'g>) -> Sym<'g> {
    let on = images.gt(images.like(0.5));
    (on.mask(logits) - logits.softplus()).sum(&[1, 2, 3])
}

/// KL(N(mean, exp(logvar)) ‖ N(0, I)), summed over the latent's dimensions: (n).
pub fn kl_to_standard_normal<'g>(mean: Sym<'g>, logvar: Sym<'g>) -> Sym<'g> {
    (mean.square() + logvar.exp() - logvar - 1.0).sum(&[1]) * 0.5
}

/// z = mean + exp(logvar / 2) · eps.
pub fn sample<'g>(mean: Sym<'g>, logvar: Sym<'g>, eps: Sym<'g>) -> Sym<'g> {
    mean + (logvar * 0.5).exp() * eps
}

/// Draws of images: `eps`, one normal of (samples, Z) an image from its own key, so (n, samples, Z); and for each
/// image a key (n, 2) that the draw of `eps` left unused.
pub fn noise<'g>(keys: Sym<'g>, samples: usize, latent: usize) -> (Sym<'g>, Sym<'g>) {
    (draw::normal(keys, &[samples, latent]), draw::split_at(keys, samples * latent))
}

/// The training loss in nats, −ELBO with `beta` on its KL part, the mean over images (n, 32, 32, 1).
pub fn loss<'g>(model: &Model, params: &Params<'g>, images: Sym<'g>, key: Sym<'g>, beta: f64) -> Sym<'g> {
    let n = images.dims()[0];
    let (mean, logvar) = encode(params, images);
    let (eps, keys) = noise(draw::split(key, n), 1, model.latent);
    let eps = eps.reshape(&[n, model.latent]);
    let logits = model.decode(params, sample(mean, logvar, eps), keys);
    let bound = bernoulli_log_likelihood(images, logits) - kl_to_standard_normal(mean, logvar) * beta;
    -bound.mean(&[0])
}

/// The largest divisor of `n` that is at most `most`.
fn divisor(n: usize, most: usize) -> usize {
    (1..=most.clamp(1, n)).rev().find(|d| n.is_multiple_of(*d)).unwrap_or(1)
}

/// IWELBO in nats of each image, (n), from `samples` latents each; `keys` (n, 2) is one key an image.
///
/// Samples are decoded `at_once` images at a time at most (or one sample of each image), so that memory does not grow
/// with their number.
pub fn iwelbo<'g>(
    model: &Model,
    params: &Params<'g>,
    images: Sym<'g>,
    keys: Sym<'g>,
    samples: usize,
    at_once: usize,
) -> Sym<'g> {
    let g = images.graph();
    let (n, latent) = (images.dims()[0], model.latent);
    let (mean, logvar) = encode(params, images);
    let (eps, keys) = noise(keys, samples, latent);
    let eps = eps.transpose(&[1, 0, 2]);
    let group = divisor(samples, at_once / n.max(1));
    let rows = group * n;
    let tile = |x: Sym<'g>| {
        let dims = x.dims();
        let tiled = [&[group], dims.as_slice()].concat();
        x.broadcast_in_dim(&tiled, &(1..tiled.len()).collect::<Vec<_>>())
            .reshape(&[&[rows], &dims[1..]].concat())
    };
    let (images, mean, logvar) = (tile(images), tile(mean), tile(logvar));
    let groups = eps.reshape(&[samples / group, rows, latent]);
    let keys = draw::split(keys, samples).transpose(&[1, 0, 2]).reshape(&[samples / group, rows, 2]);
    let weights = g.repeat(samples / group, &[], |i, _| {
        let eps = groups.row(i);
        let z = sample(mean, logvar, eps);
        let log_likelihood = bernoulli_log_likelihood(images, model.decode(params, z, keys.row(i)));
        // log p(z) − log q(z | x): the normalising constants cancel.
        let log_ratio = (logvar + eps.square() - z.square()).sum(&[1]) * 0.5;
        (vec![], vec![log_likelihood + log_ratio])
    });
    let by_sample = weights[0].reshape(&[samples, n]);
    by_sample.logsumexp(0) - (samples as f64).ln()
}
