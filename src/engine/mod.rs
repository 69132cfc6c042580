//! Arrays, computation graphs with gradients, programs and the devices that run them. Independent of any model.

pub mod array;
pub mod compile;
pub mod conformance;
pub mod ir;
pub mod key_values;
#[cfg(feature = "xla")]
pub mod lower;
pub mod npy;
pub mod program;
pub mod random;
pub mod runtime;
pub mod shape;
pub mod xla_log;
