//! Pixels of 256 levels, in grey, in colour, and in colour with opacity.

use anyhow::Result;

use super::{Likelihood, Outputs};
use crate::engine::ir::Sym;
use crate::engine::ir::ops::layout::Padding;
use crate::engine::random::graph as draw;
use crate::engine::shape::{DType, Shape};
use crate::error::valid;

/// A mixture of discretised logistic distributions over the 256 levels of each channel.
///
/// Level l is the value l / 127.5 − 1, from −1 to 1. A component's probability of a level is the mass of a logistic
/// distribution between the middles to both neighbours; the outermost levels include all mass beyond them. All channels of a
/// pixel share the choice of the component, and pixels are independent of each other.
///
/// # Channels
/// - 1: grey.
/// - 3: red, green, blue. Within a component, green's mean is linear in the pixel's red, and blue's in its red and green.
/// - 4: red, green and blue, each multiplied by the opacity, then opacity. Where the opacity is 0, the colours are 0 with
///   certainty, and log p is that of the opacity alone. Elsewhere log p counts every colour level, also those above the
///   opacity.
///
/// # Outputs
/// For K components and c channels a pixel has K (1 + 2 c) outputs, and 3 K more if c is 3 or 4, in this order:
///
/// 1. K logits of the components.
/// 2. Means: K for each channel. They are limited to [−1000, 1000].
/// 3. Logarithms of scales: K for each channel. They are limited to [−7, 7]. At −7 a scale is a ninth of the distance between
///    two levels; at 7 the mass between two levels is almost the same everywhere.
/// 4. For colours, coefficients before tanh: K for green from red, K for blue from red, K for blue from green.
///
/// All outputs that are finite give finite results and gradients.
///
/// Source: Salimans, Karpathy, Chen, Kingma, "PixelCNN++", 2017. The paper's code replaces small probabilities by
/// approximations. Here all are exact up to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogisticMixture {
    /// Number of components, from 1 to 100.
    pub components: usize,
    /// Number of an image's channels: 1, 3 or 4.
    pub channels: usize,
}

/// Levels per unit of value.
const LEVELS_PER_UNIT: f64 = 127.5;
const HIGHEST_LEVEL: f64 = 255.0;
/// The level of the value 0.
const MIDDLE: f64 = HIGHEST_LEVEL / 2.0;
/// Limit of the size of a mean. The mean is far outside of [−1, 1] at any scale, and small enough for f32 with all its
/// products.
const MOST_MEAN: f64 = 1000.0;
/// Limit of the size of a log-scale. The lower one is that of the paper's code.
const MOST_LOG_SCALE: f64 = 7.0;
/// Colours whose means depend on other colours have this many coefficients.
const COEFFICIENTS: usize = 3;
/// Index of the opacity among the channels.
const OPACITY: usize = 3;

/// The parameters of the distributions of all pixels.
struct Parts<'g> {
    /// Logarithms of the components' probabilities: (n, h, w, 1, K).
    log_weights: Sym<'g>,
    /// Means without the contributions of other colours: (n, h, w, c, K).
    means: Sym<'g>,
    /// Logarithms of scales: (n, h, w, c, K).
    log_scales: Sym<'g>,
    /// Coefficients from −1 to 1 of colours: (n, h, w, 3, K).
    coefficients: Option<Sym<'g>>,
}

/// Limits elements to a range. The gradient is 0 outside of it.
fn clamp(x: Sym<'_>, low: f64, high: f64) -> Sym<'_> {
    x.max(x.scalar_like(low)).min(x.scalar_like(high))
}

/// Returns channel `i` of an array (n, h, w, c, ...), as (n, h, w, 1, ...).
fn channel(x: Sym<'_>, i: usize) -> Sym<'_> {
    x.slice_axis(3, i, i + 1)
}

/// Returns the level of each value from −1 to 1, rounded: f32 from 0 to 255.
fn level(value: Sym<'_>) -> Sym<'_> {
    let scaled = clamp(value * LEVELS_PER_UNIT + MIDDLE, 0.0, HIGHEST_LEVEL);
    (scaled + 0.5).convert(DType::S32).convert(DType::F32)
}

/// Returns the value of each level. Centred before the division, so that the outermost values are exactly −1 and 1 although
/// compilers replace the division by a product.
fn value(level: Sym<'_>) -> Sym<'_> {
    (level - MIDDLE) / LEVELS_PER_UNIT
}

/// Returns log(1 / (1 + exp(−x))), whose gradient at 0 is exact too.
fn log_sigmoid(x: Sym<'_>) -> Sym<'_> {
    let size = x.abs();
    (x - size) * 0.5 - (-size).exp().log1p()
}

/// Returns the sum over the components, without their dimension.
fn sum_components(x: Sym<'_>) -> Sym<'_> {
    x.sum(&[4])
}

impl LogisticMixture {
    fn has_colours(&self) -> bool {
        self.channels >= 3
    }

    fn has_opacity(&self) -> bool {
        self.channels > OPACITY
    }

    /// Splits the outputs (n, h, w, channels) into parameters in f32. Records a build error and returns `None` if that is
    /// impossible.
    fn parts<'g>(&self, outputs: Sym<'g>) -> Option<Parts<'g>> {
        let Outputs { channels, .. } = self.outputs();
        if let Err(error) = Likelihood::check(self) {
            outputs.graph().reject(&format!("LogisticMixture: {error:#}"));
            return None;
        }
        let dims = outputs.dims();
        let ([n, h, w, _], true) = (&dims[..], dims.last() == Some(&channels) && outputs.dtype().is_float())
        else {
            let shape = outputs.shape();
            outputs
                .graph()
                .reject(&format!("LogisticMixture needs outputs (n, h, w, {channels}), got {shape}"));
            return None;
        };
        let outputs = outputs.convert(DType::F32);
        let (k, c) = (self.components, self.channels);
        let mut from = 0;
        let mut next = |count: usize| {
            let part = outputs.slice_axis(3, from, from + count * k);
            from += count * k;
            part.reshape(&[*n, *h, *w, count, k])
        };
        let logits = next(1);
        let means = clamp(next(c), -MOST_MEAN, MOST_MEAN);
        let log_scales = clamp(next(c), -MOST_LOG_SCALE, MOST_LOG_SCALE);
        let coefficients = self.has_colours().then(|| next(COEFFICIENTS).tanh());
        // Relative to the greatest logit, so that the sum of probabilities is 1 however great it is.
        let highest = logits.detach().reduce_max(&[4]);
        let logits = logits - highest.reshape(&[*n, *h, *w, 1, 1]);
        let total = sum_components(logits.exp()).log();
        let log_weights = logits - total.reshape(&[*n, *h, *w, 1, 1]);
        Some(Parts { log_weights, means, log_scales, coefficients })
    }

    /// Returns the contributions of a pixel's observed colours (n, h, w, c, 1) to its means: (n, h, w, c, K).
    fn observed_shift<'g>(&self, coefficients: Sym<'g>, observed: Sym<'g>) -> Sym<'g> {
        let factors = Sym::concat(&[channel(observed, 0), observed.slice_axis(3, 0, 2)], 3);
        let products = coefficients * factors;
        let blue = channel(products, 1) + channel(products, 2);
        let mut padding = vec![Padding::default(); 5];
        padding[3] = Padding::new(1, self.channels as i64 - 3);
        Sym::concat(&[channel(products, 0), blue], 3).pad(products.scalar_like(0.0), &padding)
    }

    /// Computes the channels one after the other, because the mean of a colour depends on the values of those before it.
    /// `value_of` returns the value of a channel, given its index and its mean. Returns all values along the channels.
    fn in_order<'g>(
        &self,
        means: Sym<'g>,
        coefficients: Option<Sym<'g>>,
        value_of: impl Fn(usize, Sym<'g>) -> Sym<'g>,
    ) -> Sym<'g> {
        let opacity = self.has_opacity().then(|| value_of(OPACITY, channel(means, OPACITY)));
        let mut values: Vec<Sym<'g>> = Vec::new();
        for i in 0..self.channels.min(OPACITY) {
            let mut mean = channel(means, i);
            // Coefficient 0 is green's, coefficients 1 and 2 are blue's.
            for (j, before) in values.iter().enumerate() {
                mean = coefficients.map_or(mean, |all| mean + channel(all, i - 1 + j) * *before);
            }
            let value = value_of(i, mean);
            values.push(opacity.map_or(value, |most| value.min(most)));
        }
        values.extend(opacity);
        Sym::concat(&values, 3)
    }

    /// Returns zeros in the place of a result whose outputs were rejected.
    fn nothing<'g>(&self, outputs: Sym<'g>) -> Sym<'g> {
        let dims = outputs.dims();
        let size = |i: usize| dims.get(i).copied().unwrap_or(1);
        outputs.graph().full(&Shape::f32(&[size(0), size(1), size(2), self.channels]), 0.0)
    }
}

impl Likelihood for LogisticMixture {
    fn check(&self) -> Result<()> {
        let LogisticMixture { components, channels } = *self;
        valid!((1..=100).contains(&components), "components", "{components}: it must be from 1 to 100");
        valid!([1, 3, 4].contains(&channels), "channels", "{channels}: it must be 1, 3 or 4");
        Ok(())
    }

    fn outputs(&self) -> Outputs {
        let colours = if self.has_colours() { COEFFICIENTS } else { 0 };
        let each = self.channels.saturating_mul(2).saturating_add(1 + colours);
        Outputs { channels: self.components.saturating_mul(each), outside: 0.0 }
    }

    /// Values between levels count as the nearest level.
    fn log_prob<'g>(&self, images: Sym<'g>, outputs: Sym<'g>) -> Sym<'g> {
        let dims = [outputs.dims().get(..3).unwrap_or(&[]), &[self.channels]].concat();
        let Some(parts) = self.parts(outputs).filter(|_| images.expect(&dims).dims() == dims) else {
            return self.nothing(outputs).sum(&[1, 2, 3]);
        };
        let levels = level(images.convert(DType::F32)).reshape(&[dims.as_slice(), &[1]].concat());
        let means = match parts.coefficients {
            Some(all) => parts.means + self.observed_shift(all, value(levels)),
            None => parts.means,
        };

        // In units of levels the borders are exact in f32. So the upper border of one level and the lower border of the next
        // give the same number, and all probabilities add up to 1.
        let rate = (-parts.log_scales - LEVELS_PER_UNIT.ln()).exp();
        let means = means * LEVELS_PER_UNIT;
        let centred = levels - MIDDLE;
        let upper = rate * (centred + 0.5 - means);
        let lower = rate * (centred - 0.5 - means);
        // σ(upper) − σ(lower) = σ(upper) σ(−lower) (1 − exp(lower − upper)), where upper − lower = rate. The lowest level lacks
        // the second factor, the highest one the first, and both the third. Each factor is finite whichever level is observed,
        // so that the factors left out add no NaN to the gradient.
        let mut above_lowest = levels.gt(levels.scalar_like(0.5));
        let mut below_highest = levels.lt(levels.scalar_like(HIGHEST_LEVEL - 0.5));
        let mut between = above_lowest.and(below_highest);
        if self.has_opacity() {
            // A colour counts where the opacity does.
            let index = levels.graph().iota(&Shape::s32(&[self.channels, 1]), 0);
            let counts = channel(above_lowest, OPACITY).or(index.eq(index.scalar_like(OPACITY as f64)));
            [above_lowest, below_highest, between] =
                [above_lowest, below_highest, between].map(|factor| factor.and(counts));
        }
        let log_probs = below_highest.mask(log_sigmoid(upper))
            + above_lowest.mask(log_sigmoid(-lower))
            + between.mask((-(-rate).expm1()).log());
        let components =
            log_probs.sum(&[3]) + parts.log_weights.reshape(&[&dims[..3], &[self.components]].concat());
        components.logsumexp(3).sum(&[1, 2])
    }

    /// Returns the mean of the components' means, each of which is limited to the range of values. The means of colours use
    /// those of the colours before them.
    fn mean<'g>(&self, outputs: Sym<'g>) -> Sym<'g> {
        let Some(parts) = self.parts(outputs) else { return self.nothing(outputs) };
        let each = self.in_order(parts.means, parts.coefficients, |_, mean| clamp(mean, -1.0, 1.0));
        let mean = clamp(sum_components(parts.log_weights.exp() * each), -1.0, 1.0);
        // Again, because the sums are rounded.
        if self.has_opacity() { mean.min(channel(mean, OPACITY)) } else { mean }
    }

    /// Draws the component of each pixel, then its channels. Opacity comes first, and colours are at most the opacity.
    fn draw<'g>(&self, outputs: Sym<'g>, keys: Sym<'g>) -> Sym<'g> {
        let Some(parts) = self.parts(outputs) else { return self.nothing(outputs) };
        let [for_component, for_noise] = draw::split_each(keys);
        let dims = parts.means.dims();
        let one = |x: Sym<'g>| x.reshape(&[&x.dims()[..4], &[1]].concat());

        // The highest sum of log-weight and Gumbel noise. Of equal sums the last one counts.
        let uniform = draw::uniform(for_component, &parts.log_weights.dims()[1..], f32::MIN_POSITIVE, 1.0);
        let score = parts.log_weights - (-uniform.log()).log();
        let index = score.graph().iota(&Shape::f32(&[self.components]), 0);
        let best = score.ge(one(score.reduce_max(&[4])));
        let chosen = index.eq(one(best.mask(index).reduce_max(&[4])));
        let of_chosen = |x: Sym<'g>| one(sum_components(chosen.mask(x)));

        // The inverse of the cumulative distribution function. Neither logarithm is infinite: the least uniform number is half
        // of the distance to the next one, and the greatest is less than 1.
        let least = f32::EPSILON / 2.0;
        let uniform = draw::uniform(for_noise, &[&dims[1..4], &[1]].concat(), least, 1.0);
        let noise = of_chosen(parts.log_scales).exp() * (uniform.log() - (-uniform).log1p());
        let coefficients = parts.coefficients.map(of_chosen);
        let drawn = self
            .in_order(of_chosen(parts.means), coefficients, |i, mean| value(level(mean + channel(noise, i))));
        drawn.reshape(&dims[..4])
    }

    fn observe<'g>(&self, pixels: Sym<'g>) -> Sym<'g> {
        value(pixels.convert(DType::F32))
    }

    fn white(&self) -> u8 {
        255
    }

    fn shown<'g>(&self, images: Sym<'g>) -> Sym<'g> {
        (images + 1.0) * 0.5
    }
}
