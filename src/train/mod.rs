//! Training: turns a task into a train program and runs it, with metrics and checkpoints. Independent of any model.
//!
//! Implement [`task::Task`] to define a task. [`trainer::Trainer`] runs it. The train program is also available as a
//! computation:
//!
//! ```
//! use vnca::chain;
//! use vnca::model::{Elbo, report};
//! use vnca::nn::optimiser::Adam;
//! use vnca::train::{Sizes, TrainProgram};
//!
//! let task = Elbo::new(report::baseline(16));
//! let sizes = Sizes { replicas: 2, batch: 32, chunk: 125, examples: 1000 };
//! let program = TrainProgram { task: &task, optimiser: &chain![Adam::new(1e-3)], sizes }.function()?;
//! assert_eq!(program.name, "train_baseline");
//! # Ok::<(), anyhow::Error>(())
//! ```

pub mod checkpoint;
pub mod folder;
pub mod metrics;
mod options;
pub mod order;
pub mod program;
mod records;
pub mod state;
pub mod task;
pub mod trainer;
mod watch;

pub use folder::RunFolder;
pub use program::TrainProgram;
pub use task::{Outcome, Sizes, Step, Task};
pub use trainer::{RunOptions, Trainer, Watch};
