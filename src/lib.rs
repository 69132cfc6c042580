//! Variational Neural Cellular Automata as XLA programs: build, train, evaluate and study them.

pub mod cli;
pub mod data;
pub mod engine;
pub mod files;
pub mod model;
pub mod nn;
pub mod study;
pub mod train;
