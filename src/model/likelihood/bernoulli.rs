//! Pixels of 0 and 1.

use super::{Likelihood, Outputs};
use crate::engine::ir::Sym;
use crate::engine::random::graph as draw;
use crate::engine::shape::DType;

/// Independent pixels that are 0 or 1. The outputs are logits. A logit of −∞ makes the pixel 0 with certainty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bernoulli;

impl Likelihood for Bernoulli {
    fn outputs(&self) -> Outputs {
        Outputs { channels: 1, outside: f64::NEG_INFINITY }
    }

    /// A logit of −∞ contributes 0 nats, with a gradient of 0.
    fn log_prob<'g>(&self, images: Sym<'g>, logits: Sym<'g>) -> Sym<'g> {
        let on = images.gt(images.scalar_like(0.5));
        (on.mask(logits) - logits.softplus()).sum(&[1, 2, 3])
    }

    fn mean<'g>(&self, logits: Sym<'g>) -> Sym<'g> {
        logits.sigmoid()
    }

    fn draw<'g>(&self, logits: Sym<'g>, keys: Sym<'g>) -> Sym<'g> {
        draw::bernoulli(keys, &logits.dims()[1..], logits.sigmoid()).convert(DType::F32)
    }
}

/// [`Bernoulli`] pixels whose training data are grey levels from 0 to 255. Each training step draws its bits anew: a bit is 1
/// with probability level / 255.
///
/// Evaluation needs bits that do not change. It gets a data set of zeros and ones.
///
/// Source: Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", 2015.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DynamicBernoulli;

impl Likelihood for DynamicBernoulli {
    fn outputs(&self) -> Outputs {
        Bernoulli.outputs()
    }

    fn log_prob<'g>(&self, images: Sym<'g>, logits: Sym<'g>) -> Sym<'g> {
        Bernoulli.log_prob(images, logits)
    }

    fn mean<'g>(&self, logits: Sym<'g>) -> Sym<'g> {
        Bernoulli.mean(logits)
    }

    fn draw<'g>(&self, logits: Sym<'g>, keys: Sym<'g>) -> Sym<'g> {
        Bernoulli.draw(logits, keys)
    }

    /// Draws a bit (u8, 0 or 1) for each grey level, with the key of its image.
    fn training_pixels<'g>(&self, pixels: Sym<'g>, keys: &dyn Fn() -> Sym<'g>) -> Sym<'g> {
        let dims = pixels.dims();
        let share = pixels.convert(DType::F32) / 255.0;
        draw::bernoulli(keys(), dims.get(1..).unwrap_or(&[]), share).convert(DType::U8)
    }
}
