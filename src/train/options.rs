//! The options of a training run.

/// Options of a run: its length, seeds, and when it evaluates and saves.
#[derive(Clone, Debug, PartialEq)]
pub struct RunOptions {
    /// Total number of gradient steps.
    pub steps: usize,
    /// Examples per step, over all replicas.
    pub batch: usize,
    /// Number of gradient steps that share one order of examples. A device call runs at most this number of steps.
    pub chunk: usize,
    /// Seed of the initial parameters.
    pub seed_model: u64,
    /// Seed of the order of examples and of the random draws in steps.
    pub seed_data: u64,
    /// Steps between evaluations; 0 for none.
    pub eval_every: usize,
    /// Steps between checkpoints; 0 for none, not even at the end.
    pub checkpoint_every: usize,
    /// Number of checkpoints to keep besides the best one.
    pub keep: usize,
    /// Description of the model in checkpoints. Readers of the weights can reconstruct the model from it.
    pub model: serde_json::Value,
}

impl Default for RunOptions {
    fn default() -> RunOptions {
        RunOptions {
            steps: 1000,
            batch: 32,
            chunk: 125,
            seed_model: 0,
            seed_data: 1,
            eval_every: 0,
            checkpoint_every: 1000,
            keep: 3,
            model: serde_json::Value::Null,
        }
    }
}
