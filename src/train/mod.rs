//! Training: one gradient step as a graph, many of them a device call, and the run around them.

pub mod checkpoint;
pub mod metrics;
pub mod optimiser;
pub mod order;
pub mod pictures;
pub mod run;
pub mod step;
