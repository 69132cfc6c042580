//! Variational Neural Cellular Automata as XLA programs: build, train, evaluate and study them.

pub mod array;
pub mod data;
pub mod ir;
#[cfg(feature = "xla")]
pub mod lower;
pub mod model;
pub mod program;
pub mod quiet;
pub mod random;
pub mod runtime;
pub mod shape;
pub mod train;
