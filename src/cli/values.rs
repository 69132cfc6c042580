//! Names and help texts of the library's enums on the command line.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::engine::program::Target;
use crate::engine::shape::Precision;
use crate::model::elbo::{IwGradient, ManySamples};
use crate::model::pool::Shuffle;
use crate::nn::optimiser::FallShape;

/// Defines the names of an enum's values on the command line, each with its help.
macro_rules! values {
    ($type:ty { $($value:ident: $name:literal $(, $help:literal)?;)+ }) => {
        impl ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                &[$(<$type>::$value),+]
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                Some(match self {
                    $(<$type>::$value => PossibleValue::new($name)$(.help($help))?,)+
                })
            }
        }
    };
}

values!(Precision {
    F32: "f32";
    Bf16: "bf16";
});

values!(Target {
    Cpu: "cpu", "For XLA's CPU compiler: matmuls where it is slow at convolutions, all in f32";
    OneDnn: "onednn",
        "For XLA's CPU compiler, with calls of the oneDNN that most builds of its library contain, and of a separate one";
    Native: "native", "For TPUs: only XLA's own operations";
    Gpu: "gpu", "For GPUs: as native, with results in bf16 where --precision is bf16";
});

values!(Shuffle {
    Exchange: "exchange",
        "The result of `global`, bit for bit, by moving only the entries that a replica needs next";
    Global: "global",
        "One permutation of all replicas' entries, after an all-gather, as the report describes";
    Local: "local", "Each replica permutes its own entries";
    Replica: "replica", "The replicas exchange whole shares, as in the report's code";
});

values!(ManySamples {
    Importance: "importance",
        "The importance-weighted bound: log mean of p(x | z) p(z) / q(z | x)";
    Report: "report",
        "The objective of the report's code, which is not a bound: log mean of p(x | z), less the KL";
});

values!(IwGradient {
    Plain: "plain", "The derivative of the bound";
    Dreg: "dreg", "The doubly reparameterised estimator for the encoder, with the same mean and less noise";
});

values!(FallShape {
    Linear: "linear", "In a straight line";
    Cosine: "cosine", "Along half a cosine: slowly at first and at last";
});
