//! The optimiser's options: Adam, optionally Muon for the cell, and clipping before or after it.

use serde::{Deserialize, Serialize};

use crate::chain;
use crate::nn::optimiser::{Adam, Average, Chain, ClipByGlobalNorm, ClipEach, Fall, FallShape, Schedule};

/// Where the norm is clipped: the gradient before Adam, or the update after it. The report's code clips the update, whose norm
/// never reaches its limit of 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ClipOrder {
    /// Clip the gradient, before the optimiser
    Before,
    /// Clip the update, after the optimiser
    After,
}

/// Whose norm is clipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ClipScope {
    /// The norm of all parameters' gradients together
    #[default]
    All,
    /// The norm of each parameter's gradient: an exploding gradient of one parameter does not affect the others
    Each,
}

/// How the weights of an automaton's cell are updated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CellRule {
    /// With Adam, like all other parameters
    #[default]
    Adam,
    /// With their orthogonalised momentum: learns in fewer steps
    Muon,
}

/// The optimiser's settings, as stored in a run's `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Optimiser {
    /// The learning rate after warm-up and without decay.
    pub learning_rate: f64,
    /// Adam's decay rate of the first moment.
    pub b1: f64,
    /// Adam's decay rate of the second moment.
    pub b2: f64,
    /// The term that Adam adds to the denominator.
    pub eps: f64,
    /// The largest norm that is not clipped. Infinite for no clipping.
    #[serde(with = "limit")]
    pub clip_norm: f64,
    /// Whether the gradient or the update is clipped.
    pub clip_order: ClipOrder,
    /// Whether all parameters are clipped by one norm.
    #[serde(default)]
    pub clip_scope: ClipScope,
    /// The rule for the automaton's cell.
    #[serde(default)]
    pub cell: CellRule,
    /// Number of updates over which the learning rate rises linearly from zero.
    #[serde(default)]
    pub warmup: usize,
    /// Final share of the learning rate, after a decay; 1 for no decay.
    #[serde(rename = "fall", with = "fall", default = "fall::none")]
    pub end_factor: f64,
    /// The course of the decay.
    #[serde(default, skip_serializing_if = "is_linear")]
    pub decay: FallShape,
    /// Decay per update of the average of the parameters that is evaluated. `None`: the parameters themselves are evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
}

fn is_linear(decay: &FallShape) -> bool {
    *decay == FallShape::Linear
}

/// The decay of the learning rate as JSON; null for no decay.
mod fall {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Fall {
        end_factor: f64,
    }

    pub fn none() -> f64 {
        1.0
    }

    pub fn serialize<S: Serializer>(end_factor: &f64, to: S) -> Result<S::Ok, S::Error> {
        let falls = *end_factor != none();
        falls.then_some(Fall { end_factor: *end_factor }).serialize(to)
    }

    pub fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<f64, D::Error> {
        Ok(Option::<Fall>::deserialize(from)?.map_or(none(), |fall| fall.end_factor))
    }
}

/// A limit as JSON. JSON has no infinity, so that the text "inf" represents it.
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
    /// The report's optimiser: Adam with its usual constants, gradients clipped to a global norm of 10.
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
        end_factor: 1.0,
        decay: FallShape::Linear,
        ema: None,
    };

    /// Builds the chain of transforms for a training of `steps` steps.
    pub fn chain(&self, steps: usize) -> Chain {
        let Optimiser { learning_rate, warmup, end_factor, decay: shape, .. } = *self;
        let fall = (end_factor != 1.0).then_some(Fall { shape, end_factor, steps });
        let adam = Adam {
            schedule: Schedule { learning_rate, warmup, fall },
            b1: self.b1,
            b2: self.b2,
            eps: self.eps,
            muon: match self.cell {
                CellRule::Adam => |_| false,
                CellRule::Muon => |leaf| leaf.name.starts_with("cell.") && leaf.is_weight(),
            },
        };
        let mut chain = match (self.clip_order, self.clip_scope) {
            // Devices compute in f32, where no norm exceeds such a limit.
            _ if (self.clip_norm as f32).is_infinite() => chain![adam],
            (ClipOrder::After, _) => chain![adam, ClipByGlobalNorm(self.clip_norm)],
            (ClipOrder::Before, ClipScope::All) => chain![ClipByGlobalNorm(self.clip_norm), adam],
            (ClipOrder::Before, ClipScope::Each) => chain![ClipEach(self.clip_norm), adam],
        };
        chain.extend(self.ema.into_iter().flat_map(|decay| chain![Average(decay)]));
        chain
    }
}
