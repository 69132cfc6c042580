//! Adam and clipping by global norm, as transforms of a list of updates.
//!
//! Kingma & Ba, "Adam: A Method for Stochastic Optimization" (2015), with the bias correction of its algorithm 1.

use serde::{Deserialize, Serialize};

use crate::ir::Sym;
use crate::shape::DType;

/// Where the norm is clipped: the gradient before Adam, or the update after it (as the report's code does, where a
/// limit of 10 never bites).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ClipOrder {
    Before,
    After,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Optimiser {
    pub learning_rate: f64,
    pub b1: f64,
    pub b2: f64,
    pub eps: f64,
    pub clip_norm: f64,
    pub clip_order: ClipOrder,
}

impl Optimiser {
    /// The report's: Adam with its usual constants, gradients clipped to a norm of 10.
    pub const REPORT: Optimiser = Optimiser {
        learning_rate: 1e-4,
        b1: 0.9,
        b2: 0.999,
        eps: 1e-8,
        clip_norm: 10.0,
        clip_order: ClipOrder::Before,
    };
}

/// First and second moments, and the number of updates made.
#[derive(Clone)]
pub struct Moments<'g> {
    pub first: Vec<Sym<'g>>,
    pub second: Vec<Sym<'g>>,
    pub count: Sym<'g>,
}

/// Square root of the sum of all squares.
pub fn global_norm<'g>(values: &[Sym<'g>]) -> Sym<'g> {
    let squares: Vec<Sym<'g>> = values.iter().map(|v| v.square().sum_all()).collect();
    squares.iter().skip(1).fold(squares[0], |sum, s| sum + *s).sqrt()
}

/// What to multiply values of norm `norm` by, so that none is longer than `limit`.
fn clip_factor<'g>(norm: Sym<'g>, limit: f64) -> Sym<'g> {
    norm.lt(norm.like(limit)).select(norm.like(1.0), norm.like(limit) / norm)
}

impl<'g> Moments<'g> {
    /// These where it is true, else the others.
    pub fn or(&self, these: Sym<'g>, others: &Moments<'g>) -> Moments<'g> {
        let chosen = |new: &[Sym<'g>], old: &[Sym<'g>]| -> Vec<Sym<'g>> {
            new.iter().zip(old).map(|(new, old)| these.select(*new, *old)).collect()
        };
        Moments {
            first: chosen(&self.first, &others.first),
            second: chosen(&self.second, &others.second),
            count: these.select(self.count, others.count),
        }
    }
}

impl Optimiser {
    /// The moments after gradients whose global norm is `norm`.
    pub fn moments<'g>(&self, gradients: &[Sym<'g>], norm: Sym<'g>, before: &Moments<'g>) -> Moments<'g> {
        let factor = (self.clip_order == ClipOrder::Before).then(|| clip_factor(norm, self.clip_norm));
        let clipped: Vec<Sym<'g>> = gradients.iter().map(|g| factor.map_or(*g, |f| *g * f)).collect();
        let decayed = |m: &[Sym<'g>], decay: f64, power: fn(Sym<'g>) -> Sym<'g>| -> Vec<Sym<'g>> {
            m.iter().zip(&clipped).map(|(m, g)| *m * decay + power(*g) * (1.0 - decay)).collect()
        };
        let first = decayed(&before.first, self.b1, |g| g);
        let second = decayed(&before.second, self.b2, Sym::square);
        Moments { first, second, count: before.count + 1.0 }
    }

    /// What to add to each parameter, after the moments of this step.
    pub fn updates<'g>(&self, moments: &Moments<'g>) -> Vec<Sym<'g>> {
        // 1 − decay^count, without the cancellation.
        let correction = |decay: f64| -(moments.count.convert(DType::F32) * decay.ln()).expm1();
        let (first_correction, second_correction) = (correction(self.b1), correction(self.b2));
        let update = |(m, v): (&Sym<'g>, &Sym<'g>)| {
            let direction = (*m / first_correction) / ((*v / second_correction).sqrt() + self.eps);
            direction * -self.learning_rate
        };
        let updates: Vec<Sym<'g>> = moments.first.iter().zip(&moments.second).map(update).collect();
        match self.clip_order {
            ClipOrder::Before => updates,
            ClipOrder::After => {
                let factor = clip_factor(global_norm(&updates), self.clip_norm);
                updates.iter().map(|u| *u * factor).collect()
            }
        }
    }
}
