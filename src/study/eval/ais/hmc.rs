//! Hamiltonian Monte Carlo for densities between a standard normal one and another one: log f(x) = −|x|² / 2 + b r(x), up to a
//! constant. b is the inverse temperature, from 0 to 1, and r the logarithm of a ratio of densities.
//!
//! Source: Neal, "MCMC using Hamiltonian dynamics" (2011): the leapfrog method in section 2.3, the Metropolis test in 3.2, random
//! step sizes in 4.2. Each row of an array is a chain of its own.

use crate::engine::ir::{Sym, pullback};
use crate::engine::random::graph as draw;
use crate::engine::shape::Shape;

/// A move's step is the given one times a number that is drawn from this range. With one length for all moves, a chain could come
/// back to where it started, again and again.
const STEP_FACTORS: [f32; 2] = [0.8, 1.2];

/// One point of each chain, with r and its gradient there.
#[derive(Clone, Copy)]
pub struct Points<'g> {
    /// The points, (n, Z).
    pub at: Sym<'g>,
    /// r at the points, (n).
    pub log_ratio: Sym<'g>,
    /// The gradient of r at the points, (n, Z).
    pub slope: Sym<'g>,
}

/// The density of all chains, and how they move.
pub struct Target<'g, 'f> {
    /// The function r, from (n, Z) to (n). A row of its result depends on the same row of its argument only.
    pub log_ratio: &'f dyn Fn(Sym<'g>) -> Sym<'g>,
    /// The inverse temperature b, a scalar.
    pub b: Sym<'g>,
    /// Leapfrog steps of a move, an s32 scalar known at run time.
    pub leapfrog: Sym<'g>,
    /// The most leapfrog steps of a move.
    pub most: usize,
}

impl<'g> Target<'g, '_> {
    /// Evaluates r and its gradient at points (n, Z).
    pub fn evaluate(&self, at: Sym<'g>) -> Points<'g> {
        let log_ratio = (self.log_ratio)(at);
        let ones = at.graph().full(&Shape::f32(&log_ratio.dims()), 1.0);
        let slope = pullback(&[(log_ratio, ones)], &[at])[0];
        Points { at, log_ratio, slope }
    }

    /// Follows the equations of motion from points with momenta (n, Z), in steps (n). Returns the last points and momenta.
    ///
    /// With the last momenta negated, the way leads back to the first points.
    pub fn leapfrog(&self, start: Points<'g>, momenta: Sym<'g>, steps: Sym<'g>) -> (Points<'g>, Sym<'g>) {
        let step = steps.reshape(&[steps.dims()[0], 1]);
        let force = |points: Points<'g>| points.slope * self.b - points.at;
        let init = [start.at, start.log_ratio, start.slope, momenta];
        let last = step.graph().repeat_upto(self.leapfrog, self.most, &init, |_, carry| {
            let points = Points { at: carry[0], log_ratio: carry[1], slope: carry[2] };
            let halfway = carry[3] + force(points) * step * 0.5;
            let next = self.evaluate(points.at + halfway * step);
            let momenta = halfway + force(next) * step * 0.5;
            (vec![next.at, next.log_ratio, next.slope, momenta], vec![])
        });
        (Points { at: last[0], log_ratio: last[1], slope: last[2] }, last[3])
    }

    /// Makes one move that leaves the density as it is. `keys` (n, 2) draw the momenta, the lengths of the steps and the decisions;
    /// `steps` (n) are the mean lengths. Returns the new points, which are the old ones where the move is refused, and the
    /// probabilities of acceptance (n).
    ///
    /// A move that leads to numbers that are not finite is refused.
    pub fn hmc(&self, start: Points<'g>, keys: Sym<'g>, steps: Sym<'g>) -> (Points<'g>, Sym<'g>) {
        let (n, latent) = (start.at.dims()[0], start.at.dims()[1]);
        let momenta = draw::normal(keys, &[latent]);
        // The momenta do not use these children of the keys.
        let [decisions, lengths] = [latent, latent + 1].map(|i| draw::split_at(keys, i));
        let factors = draw::uniform(lengths, &[], STEP_FACTORS[0], STEP_FACTORS[1]);
        let (end, last) = self.leapfrog(start, momenta, steps * factors);
        // Twice the difference of energies from squares. It is 0 to the last bit for a step of length 0.
        let squares = |a: Sym<'g>, b: Sym<'g>| (a - b) * (a + b);
        let change = (squares(end.at, start.at) + squares(last, momenta)).sum(&[1]) * 0.5
            - (end.log_ratio - start.log_ratio) * self.b;
        let lower = (-change).min(change.scalar_like(0.0)).exp();
        let probability = change.is_finite().mask(lower);
        let accepted = draw::uniform(decisions, &[], 0.0, 1.0).lt(probability);
        let rows = accepted.reshape(&[n, 1]);
        let points = Points {
            at: rows.select(end.at, start.at),
            log_ratio: accepted.select(end.log_ratio, start.log_ratio),
            slope: rows.select(end.slope, start.slope),
        };
        (points, probability)
    }
}
