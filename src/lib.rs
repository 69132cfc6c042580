//! Variational Neural Cellular Automata as XLA programs: build, train, evaluate and study them.

pub mod analysis;
pub mod array;
pub mod build;
pub mod cli;
pub mod commands;
pub mod config;
pub mod conformance;
pub mod data;
pub mod error;
pub mod eval;
pub mod figure;
pub mod gallery;
pub mod ir;
#[cfg(feature = "xla")]
pub mod lower;
pub mod model;
pub mod pages;
pub mod program;
pub mod quiet;
pub mod random;
pub mod runtime;
pub mod session;
pub mod shape;
pub mod train;
pub mod weights;
