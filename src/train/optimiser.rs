//! Adam, Muon and clipping by norm, as transforms of a list of updates.
//!
//! Kingma & Ba, "Adam: A Method for Stochastic Optimization" (2015), with the bias correction of its algorithm 1.
//! Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024): a matrix's momentum is replaced by the
//! orthogonal matrix nearest to it; and scaled as in Liu et al., "Muon is Scalable for LLM Training" (2025), so that its update
//! is as large as Adam's at the same learning rate.

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

/// Whose norm is clipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ClipScope {
    /// That of all parameters' gradients together
    #[default]
    All,
    /// Each parameter's own: a gradient that explodes in one leaves the others as they are
    Each,
}

/// How the weights of an automaton's cell are updated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CellRule {
    /// As all other parameters
    #[default]
    Adam,
    /// By their orthogonalised momentum: learns in fewer steps
    Muon,
}

/// A learning rate that falls evenly, to so large a share of it at step `steps`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fall {
    pub end_factor: f64,
    pub steps: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Optimiser {
    pub learning_rate: f64,
    pub b1: f64,
    pub b2: f64,
    pub eps: f64,
    /// Infinite where nothing is clipped.
    #[serde(with = "limit")]
    pub clip_norm: f64,
    pub clip_order: ClipOrder,
    #[serde(default)]
    pub clip_scope: ClipScope,
    #[serde(default)]
    pub cell: CellRule,
    /// Updates in which the learning rate rises evenly to its full height.
    #[serde(default)]
    pub warmup: usize,
    #[serde(default)]
    pub fall: Option<Fall>,
}

/// A limit that may be infinite, as JSON, which has no such number: the text "inf" stands for it.
mod limit {
    use serde::de::{Error, Unexpected};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    const NONE: &str = "inf";

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Limit {
        Number(f64),
        Text(String),
    }

    pub fn serialize<S: Serializer>(limit: &f64, to: S) -> Result<S::Ok, S::Error> {
        match *limit {
            f64::INFINITY => Limit::Text(NONE.into()),
            limit => Limit::Number(limit),
        }
        .serialize(to)
    }

    pub fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<f64, D::Error> {
        match Limit::deserialize(from)? {
            Limit::Number(limit) => Ok(limit),
            Limit::Text(text) if text == NONE => Ok(f64::INFINITY),
            Limit::Text(text) => Err(Error::invalid_value(Unexpected::Str(&text), &"a number or \"inf\"")),
        }
    }
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
        clip_scope: ClipScope::All,
        cell: CellRule::Adam,
        warmup: 0,
        fall: None,
    };

    /// The share of the learning rate that is left at the end.
    pub fn end_factor(&self) -> f64 {
        self.fall.map_or(1.0, |fall| fall.end_factor)
    }

    /// Whether a norm can be over the limit, in the f32 of devices.
    fn clips(&self) -> bool {
        (self.clip_norm as f32).is_finite()
    }
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
        let clipped: Vec<Sym<'g>> = match (self.clip_order, self.clip_scope) {
            _ if !self.clips() => gradients.to_vec(),
            (ClipOrder::After, _) => gradients.to_vec(),
            (ClipOrder::Before, ClipScope::All) => {
                let factor = clip_factor(norm, self.clip_norm);
                gradients.iter().map(|g| *g * factor).collect()
            }
            (ClipOrder::Before, ClipScope::Each) => {
                let own = |g: &Sym<'g>| *g * clip_factor(global_norm(&[*g]), self.clip_norm);
                gradients.iter().map(own).collect()
            }
        };
        let decayed = |m: &[Sym<'g>], decay: f64, power: fn(Sym<'g>) -> Sym<'g>| -> Vec<Sym<'g>> {
            m.iter().zip(&clipped).map(|(m, g)| *m * decay + power(*g) * (1.0 - decay)).collect()
        };
        let first = decayed(&before.first, self.b1, |g| g);
        let second = decayed(&before.second, self.b2, Sym::square);
        Moments { first, second, count: before.count + 1.0 }
    }

    /// What to add to each parameter, after the moments of this step. `muon` says which parameters that one updates; where it
    /// says nothing, Adam does.
    pub fn updates<'g>(&self, moments: &Moments<'g>, muon: &[bool]) -> Vec<Sym<'g>> {
        let count = moments.count.convert(DType::F32);
        // 1 − decay^count, without the cancellation.
        let correction = |decay: f64| -(count * decay.ln()).expm1();
        let (first_correction, second_correction) = (correction(self.b1), correction(self.b2));
        let part = self.part_of_rate(count);
        let update = |(i, (m, v)): (usize, (&Sym<'g>, &Sym<'g>))| {
            let direction = match muon.get(i) {
                Some(true) => orthogonalised(*m) * MUON_SCALE,
                _ => (*m / first_correction) / ((*v / second_correction).sqrt() + self.eps),
            };
            let full = direction * -self.learning_rate;
            part.map_or(full, |part| full * part)
        };
        let updates: Vec<Sym<'g>> =
            moments.first.iter().zip(&moments.second).enumerate().map(update).collect();
        match self.clip_order {
            _ if !self.clips() => updates,
            ClipOrder::Before => updates,
            ClipOrder::After => {
                let factor = clip_factor(global_norm(&updates), self.clip_norm);
                updates.iter().map(|u| *u * factor).collect()
            }
        }
    }

    /// By what the learning rate is multiplied at an update, of which the first is 1.
    fn part_of_rate<'g>(&self, count: Sym<'g>) -> Option<Sym<'g>> {
        let one = || count.like(1.0);
        let up = (self.warmup > 0).then(|| (count / self.warmup as f64).min(one()));
        let down = self.fall.map(|fall| {
            let passed = (count / fall.steps as f64).min(one());
            passed * (fall.end_factor - 1.0) + 1.0
        });
        [up, down].into_iter().flatten().reduce(|up, down| up * down)
    }
}

/// The root mean square of Adam's updates, as a share of the learning rate, when a model has learned for a while.
const MUON_SCALE: f64 = 0.2;
/// Of the odd polynomial that draws singular values towards 1, as Muon's authors chose it; and how often it is applied.
const MUON_POLYNOMIAL: [f64; 3] = [3.4445, -4.775, 2.0315];
const MUON_ITERATIONS: usize = 5;

/// Nearly the orthogonal matrix that is nearest to a weight, read as the matrix (all that comes in, out), whatever its
/// scale; times the root of the longer side, so that its elements' root mean square is 1. Zeros stay zeros.
fn orthogonalised(weight: Sym<'_>) -> Sym<'_> {
    let dims = weight.dims();
    let (incoming, out) = dims.split_at(dims.len() - 1);
    let (rows, columns) = (incoming.iter().product::<usize>(), out[0]);
    let matrix = weight.reshape(&[rows, columns]);
    let mut x = matrix / (global_norm(&[matrix]) + 1e-12);
    let [a, b, c] = MUON_POLYNOMIAL;
    for _ in 0..MUON_ITERATIONS {
        let gram = x.transpose(&[1, 0]).dot(x);
        x = x * a + x.dot(gram * b + gram.dot(gram) * c);
    }
    (x * (rows.max(columns) as f64).sqrt()).reshape(&dims)
}
