//! Adam, Muon, clipping by norm and averaging, as transforms of a list of updates.
//!
//! Kingma & Ba, "Adam: A Method for Stochastic Optimization" (2015), with the bias correction of its algorithm 1.
//! Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024): Muon replaces a matrix's momentum by the
//! orthogonal matrix nearest to it. Liu et al., "Muon is Scalable for LLM Training" (2025): its update is scaled to the size of
//! Adam's at the same learning rate.
//! Polyak & Juditsky, "Acceleration of stochastic approximation by averaging" (1992): the average of the parameters has less noise
//! than the last ones.

use std::f64::consts::PI;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::params::{AVERAGED, Leaf};
use super::tree::Tree;
use crate::engine::ir::Sym;
use crate::engine::shape::{DType, Shape};
use crate::error::valid;

/// The updates of a step: one for each parameter, in their order. The first transform gets the gradients. The values after the
/// last transform are added to the parameters.
pub struct Updates<'g> {
    values: Vec<Sym<'g>>,
    norm: Option<Sym<'g>>,
}

impl<'g> Updates<'g> {
    /// Wraps values whose global norm is known.
    pub fn with_norm(values: Vec<Sym<'g>>, norm: Sym<'g>) -> Updates<'g> {
        Updates { values, norm: Some(norm) }
    }

    /// Wraps values in the order of the parameters.
    pub fn new(values: Vec<Sym<'g>>) -> Updates<'g> {
        Updates { values, norm: None }
    }

    /// Returns the values, in the order of the parameters.
    pub fn values(&self) -> &[Sym<'g>] {
        &self.values
    }

    /// Returns the global norm: the square root of the sum of all squares.
    pub fn norm(&self) -> Sym<'g> {
        self.norm.unwrap_or_else(|| global_norm(&self.values))
    }
}

/// Inputs of a transform besides the updates and its state.
pub struct Context<'g, 'a> {
    /// The parameters, in the order of the updates.
    pub leaves: &'a [Leaf],
    /// The values of the parameters before the update.
    pub params: &'a [Sym<'g>],
    /// Whether the step is valid: the loss and all gradients are finite.
    pub healthy: Sym<'g>,
}

impl<'g> Context<'g, '_> {
    /// Returns the new value if the step is valid, else the old one.
    pub fn keep(&self, new: Sym<'g>, old: Sym<'g>) -> Sym<'g> {
        self.healthy.select(new, old)
    }
}

/// One stage of an optimiser, which maps updates to new updates. The first transform of a chain gets the gradients, averaged
/// over the replicas. The results of the last one are added to the parameters, so one transform must turn the sign: [`Adam`] and
/// [`Sgd`] do.
pub trait Transform: Send + Sync {
    /// Returns the names and shapes of the state that the transform keeps between steps. The state is initially zero and is
    /// the same on every replica.
    fn state(&self, _leaves: &[Leaf]) -> Vec<Slot> {
        vec![]
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid), with the field that is out of range.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Returns the new updates, and the new state under the names of [`Transform::state`]. If the step is not valid, the state
    /// keeps its old values ([`Context::keep`]).
    fn apply<'g>(
        &self,
        context: &Context<'g, '_>,
        updates: Updates<'g>,
        state: &Tree<Sym<'g>>,
    ) -> (Updates<'g>, Tree<Sym<'g>>);
}

/// An array of a transform's state.
#[derive(Clone, Debug, PartialEq)]
pub enum Slot {
    /// An array with the shape of a parameter, in the checkpoint layout of the parameter. Its name is `prefix` followed by the
    /// parameter's name.
    Like {
        /// The beginning of its name.
        prefix: &'static str,
        /// The parameter.
        leaf: Leaf,
    },
    /// An array of any shape.
    Array {
        /// Its name in checkpoints.
        name: String,
        /// Its shape. Its values are initially zero.
        shape: Shape,
    },
}

/// The transforms of an optimiser, in the order in which they are applied.
pub type Chain = Vec<Box<dyn Transform>>;

/// Builds an optimiser from transforms: `chain![ClipByGlobalNorm(10.0), Adam::new(1e-4)]`.
#[macro_export]
macro_rules! chain {
    ($($transform:expr),* $(,)?) => {
        vec![$(Box::new($transform) as Box<dyn $crate::nn::optimiser::Transform>),*]
    };
}

/// Returns the square root of the sum of all squares.
pub fn global_norm<'g>(values: &[Sym<'g>]) -> Sym<'g> {
    let squares: Vec<Sym<'g>> = values.iter().map(|v| v.square().sum_all()).collect();
    squares.iter().skip(1).fold(squares[0], |sum, s| sum + *s).sqrt()
}

/// Returns the factor that limits values of norm `norm` to the norm `limit`.
fn clip_factor<'g>(norm: Sym<'g>, limit: f64) -> Sym<'g> {
    norm.lt(norm.scalar_like(limit)).select(norm.scalar_like(1.0), norm.scalar_like(limit) / norm)
}

/// Scales all updates by one factor, which limits their global norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipByGlobalNorm(pub f64);

impl Transform for ClipByGlobalNorm {
    fn check(&self) -> Result<()> {
        check_limit(self.0)
    }

    fn apply<'g>(
        &self,
        _context: &Context<'g, '_>,
        updates: Updates<'g>,
        _state: &Tree<Sym<'g>>,
    ) -> (Updates<'g>, Tree<Sym<'g>>) {
        let factor = clip_factor(updates.norm(), self.0);
        (Updates::new(updates.values.iter().map(|u| *u * factor).collect()), Tree::default())
    }
}

/// Limits the norm of each parameter's update separately. An exploding gradient of one parameter does not shrink the updates of
/// the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipEach(pub f64);

impl Transform for ClipEach {
    fn check(&self) -> Result<()> {
        check_limit(self.0)
    }

    fn apply<'g>(
        &self,
        _context: &Context<'g, '_>,
        updates: Updates<'g>,
        _state: &Tree<Sym<'g>>,
    ) -> (Updates<'g>, Tree<Sym<'g>>) {
        let own = |u: &Sym<'g>| *u * clip_factor(global_norm(&[*u]), self.0);
        (Updates::new(updates.values.iter().map(own).collect()), Tree::default())
    }
}

fn check_limit(limit: f64) -> Result<()> {
    valid!(limit > 0.0, "clip_norm", "is {limit}: it must be a positive number");
    Ok(())
}

/// Stochastic gradient descent: the negative gradient times a learning rate.
///
/// ```
/// use vnca::chain;
/// use vnca::nn::optimiser::{ClipByGlobalNorm, Sgd};
///
/// let optimiser = chain![ClipByGlobalNorm(1.0), Sgd { learning_rate: 0.1 }];
/// assert!(optimiser.iter().all(|transform| transform.check().is_ok()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// The learning rate, positive.
    pub learning_rate: f64,
}

impl Transform for Sgd {
    fn check(&self) -> Result<()> {
        check_learning_rate(self.learning_rate)
    }

    fn apply<'g>(
        &self,
        _context: &Context<'g, '_>,
        updates: Updates<'g>,
        _state: &Tree<Sym<'g>>,
    ) -> (Updates<'g>, Tree<Sym<'g>>) {
        (Updates::new(updates.values.iter().map(|u| *u * -self.learning_rate).collect()), Tree::default())
    }
}

/// The exponentially decaying average of the parameters after each update, for evaluation. It changes no update. It must be the last
/// transform of a chain, because it adds the updates to the parameters itself. Its state is `ema.NAME` for each parameter, and
/// `ema_count`, the number of updates.
///
/// After t updates the parameters of update i have the weight decay^(t − i), divided by the sum of all weights. So the average has
/// no trace of the initial values, which would outweigh everything in a run that is shorter than 1 / (1 − decay) updates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Average(pub f64);

const AVERAGE_COUNT: &str = "ema_count";

impl Transform for Average {
    fn check(&self) -> Result<()> {
        valid!(self.0 > 0.0 && self.0 < 1.0, "ema", "is {}: it must be between 0 and 1", self.0);
        Ok(())
    }

    fn state(&self, leaves: &[Leaf]) -> Vec<Slot> {
        let averages = leaves.iter().map(|leaf| Slot::Like { prefix: AVERAGED, leaf: leaf.clone() });
        let count = Slot::Array { name: AVERAGE_COUNT.into(), shape: Shape::s32(&[]) };
        averages.chain([count]).collect()
    }

    fn apply<'g>(
        &self,
        context: &Context<'g, '_>,
        updates: Updates<'g>,
        state: &Tree<Sym<'g>>,
    ) -> (Updates<'g>, Tree<Sym<'g>>) {
        let count = state[AVERAGE_COUNT] + 1.0;
        // The weight of the newest parameters, 1 at the first update: (1 − decay) / (1 − decay^count), without cancellation.
        let weights = -(count.convert(DType::F32) * self.0.ln()).expm1();
        let newest = weights.scalar_like(1.0 - self.0) / weights;
        let mut next = Tree::default();
        for ((leaf, value), update) in context.leaves.iter().zip(context.params).zip(&updates.values) {
            let name = format!("{AVERAGED}{}", leaf.name);
            let old = state[&name];
            next.set(&name, context.keep(old + (*value + *update - old) * newest, old));
        }
        next.set(AVERAGE_COUNT, context.keep(count, state[AVERAGE_COUNT]));
        (updates, next)
    }
}

fn check_learning_rate(rate: f64) -> Result<()> {
    valid!(rate > 0.0 && rate.is_finite(), "learning_rate", "is {rate}: it must be a positive number");
    Ok(())
}

/// A learning rate that depends on the number of the update. The first update has number 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The learning rate after the warm-up.
    pub learning_rate: f64,
    /// Number of updates over which the rate rises linearly from 0.
    pub warmup: usize,
    /// A decay that begins at the first update.
    pub fall: Option<Fall>,
}

/// The course of a learning rate's decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FallShape {
    /// In a straight line
    #[default]
    Linear,
    /// Along half a cosine: slowly at first and at last
    Cosine,
}

/// A decay of the learning rate to `end_factor` times its value, reached at update `steps`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fall {
    /// The course of the decay.
    pub shape: FallShape,
    /// Final share of the learning rate.
    pub end_factor: f64,
    /// The update at which the final share is reached.
    pub steps: usize,
}

impl Schedule {
    /// Returns a constant learning rate.
    pub fn constant(learning_rate: f64) -> Schedule {
        Schedule { learning_rate, warmup: 0, fall: None }
    }

    /// Returns the factor of the learning rate at an update; `None` if the rate is constant.
    fn factor<'g>(&self, count: Sym<'g>) -> Option<Sym<'g>> {
        let one = || count.scalar_like(1.0);
        let up = (self.warmup > 0).then(|| (count / self.warmup as f64).min(one()));
        let down = self.fall.map(|fall| {
            let passed = (count / fall.steps as f64).min(one());
            let fallen = match fall.shape {
                FallShape::Linear => passed,
                FallShape::Cosine => (passed * PI).cos() * -0.5 + 0.5,
            };
            fallen * (fall.end_factor - 1.0) + 1.0
        });
        [up, down].into_iter().flatten().reduce(|up, down| up * down)
    }
}

/// Adam, and Muon for the weights that `muon` selects. Its state is `adam.m.NAME` and `adam.v.NAME`, the moments of each
/// parameter, and `count`, the number of updates.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// The learning rate.
    pub schedule: Schedule,
    /// Decay of the first moments.
    pub b1: f64,
    /// Decay of the second moments.
    pub b2: f64,
    /// Term added to the square root of the second moment.
    pub eps: f64,
    /// Selects the parameters that Muon updates with their orthogonalised first moment.
    pub muon: fn(&Leaf) -> bool,
}

const FIRST: &str = "adam.m.";
const SECOND: &str = "adam.v.";
const COUNT: &str = "count";

impl Adam {
    /// Returns Adam for all parameters, with its usual constants.
    pub fn new(learning_rate: f64) -> Adam {
        let schedule = Schedule::constant(learning_rate);
        Adam { schedule, b1: 0.9, b2: 0.999, eps: 1e-8, muon: |_| false }
    }
}

impl Transform for Adam {
    fn check(&self) -> Result<()> {
        check_learning_rate(self.schedule.learning_rate)
    }

    fn state(&self, leaves: &[Leaf]) -> Vec<Slot> {
        let moments = |prefix| leaves.iter().map(move |leaf| Slot::Like { prefix, leaf: leaf.clone() });
        let count = Slot::Array { name: COUNT.into(), shape: Shape::s32(&[]) };
        moments(FIRST).chain(moments(SECOND)).chain([count]).collect()
    }

    fn apply<'g>(
        &self,
        context: &Context<'g, '_>,
        updates: Updates<'g>,
        state: &Tree<Sym<'g>>,
    ) -> (Updates<'g>, Tree<Sym<'g>>) {
        let old = |prefix: &str| -> Vec<Sym<'g>> {
            context.leaves.iter().map(|leaf| state[&format!("{prefix}{}", leaf.name)]).collect()
        };
        let (old_first, old_second) = (old(FIRST), old(SECOND));
        let decayed = |m: &[Sym<'g>], decay: f64, power: fn(Sym<'g>) -> Sym<'g>| -> Vec<Sym<'g>> {
            m.iter().zip(&updates.values).map(|(m, g)| *m * decay + power(*g) * (1.0 - decay)).collect()
        };
        let first = decayed(&old_first, self.b1, |g| g);
        let second = decayed(&old_second, self.b2, Sym::square);
        let count = state[COUNT] + 1.0;
        // Select before computing updates. Otherwise XLA evaluates the new moments twice and copies the old ones.
        let kept = |new: Vec<Sym<'g>>, old: &[Sym<'g>]| -> Vec<Sym<'g>> {
            new.into_iter().zip(old).map(|(new, old)| context.keep(new, *old)).collect()
        };
        let (first, second) = (kept(first, &old_first), kept(second, &old_second));
        let count = context.keep(count, state[COUNT]);
        let directions = self.updates(context.leaves, &first, &second, count);
        let names = |prefix: &'static str| context.leaves.iter().map(move |l| format!("{prefix}{}", l.name));
        let mut next: Tree<Sym<'g>> = names(FIRST).zip(first).collect();
        next.extend(names(SECOND).zip(second));
        next.set(COUNT, count);
        (Updates::new(directions), next)
    }
}

impl Adam {
    /// Returns the values to add to the parameters, from the moments after this step.
    fn updates<'g>(
        &self,
        leaves: &[Leaf],
        first: &[Sym<'g>],
        second: &[Sym<'g>],
        count: Sym<'g>,
    ) -> Vec<Sym<'g>> {
        let count = count.convert(DType::F32);
        // 1 − decay^count, without cancellation.
        let correction = |decay: f64| -(count * decay.ln()).expm1();
        let (first_correction, second_correction) = (correction(self.b1), correction(self.b2));
        let factor = self.schedule.factor(count);
        let update = |(leaf, (m, v)): (&Leaf, (&Sym<'g>, &Sym<'g>))| {
            let direction = match (self.muon)(leaf) {
                true => orthogonalised(*m) * MUON_SCALE,
                false => (*m / first_correction) / ((*v / second_correction).sqrt() + self.eps),
            };
            let full = direction * -self.schedule.learning_rate;
            factor.map_or(full, |factor| full * factor)
        };
        leaves.iter().zip(first.iter().zip(second)).map(update).collect()
    }
}

/// Typical root mean square of Adam's updates as a share of the learning rate, after the first part of training.
const MUON_SCALE: f64 = 0.2;
/// Coefficients of the odd polynomial that moves singular values towards 1, as Muon's authors chose them.
const MUON_POLYNOMIAL: [f64; 3] = [3.4445, -4.775, 2.0315];
const MUON_ITERATIONS: usize = 5;

/// Returns approximately the orthogonal matrix nearest to a weight, times the square root of its longer side, so that the root
/// mean square of the elements is 1. The weight is read as the matrix (all inputs, outputs). Its scale has no effect. Zeros
/// stay zeros.
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
