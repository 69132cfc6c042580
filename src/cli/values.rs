//! Values that options take by name: how the command line reads and explains the library's enums.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::engine::program::Target;
use crate::engine::shape::Precision;
use crate::model::elbo::ManySamples;
use crate::model::pool::Shuffle;

/// Names an enum's values for the command line, each with its help.
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
        "For the same, with calls of the oneDNN that most builds of XLA's CPU library contain, and of another one";
    Native: "native", "For TPUs and GPUs: every operation as XLA's own";
});

values!(Shuffle {
    Exchange: "exchange",
        "The result of `global`, bit for bit, by moving only the entries that a replica needs next";
    Global: "global",
        "One permutation of all replicas' entries, after an all-gather: what the report describes";
    Local: "local", "Each replica permutes its own entries";
    Replica: "replica", "Whole shares change places among the replicas: what the report's code does";
});

values!(ManySamples {
    Importance: "importance",
        "The importance-weighted bound: log mean of p(x | z) p(z) / q(z | x)";
    Report: "report",
        "What the report's code does, which bounds nothing: log mean of p(x | z), less the KL";
});
