//! Training: one gradient step as a graph, many of them a device call, and the run around them.

pub mod checkpoint;
pub mod exchange;
pub mod metrics;
pub mod order;
pub mod pool;
pub mod pool_run;
pub mod run;
pub mod state;
pub mod step;
