//! Training: a task becomes a train program, and a run of it with metrics and checkpoints. Knows no model.
//!
//! [`task::Task`] is what one writes; [`trainer::Trainer`] runs it.

pub mod checkpoint;
pub mod metrics;
pub mod order;
pub mod program;
pub mod state;
pub mod task;
pub mod trainer;

pub use program::TrainProgram;
pub use task::{Outcome, Sizes, Step, Task};
pub use trainer::{RunOptions, Trainer, Watch};
