//! What a training run tells its caller, and asks it.

use anyhow::Result;

use crate::engine::runtime::Buffers;

/// Why [`Run::train`](super::trainer::Run::train) returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Done,
    /// [`Watch::stop`] requested a stop. The state is saved.
    Stopped,
}

/// The result of an evaluation during training.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Name in the metrics, such as `test/iwelbo`.
    pub name: &'static str,
    /// Value of the score; greater is better. The best checkpoint has the greatest value.
    pub value: f64,
}

/// Callbacks of a run. A closure that takes the step and the loss implements this trait.
///
/// A watch that evaluates a model on 100 test images when [`RunOptions::eval_every`](super::RunOptions::eval_every) says so, so that
/// `best.npz` is the checkpoint with the greatest score:
///
/// ```
/// use vnca::data::Split;
/// use vnca::engine::random::Key;
/// use vnca::engine::runtime::Buffers;
/// use vnca::study::eval::Evaluator;
/// use vnca::train::Watch;
/// use vnca::train::trainer::Score;
///
/// struct Evaluated {
///     evaluator: Evaluator,
///     test: Split,
/// }
///
/// impl Watch for Evaluated {
///     fn steps(&mut self, step: usize, loss: f32) {
///         println!("step {step}: loss {loss:.1} nats");
///     }
///
///     fn evaluate(&mut self, parameters: &[&Buffers], step: usize) -> anyhow::Result<Option<Score>> {
///         let scores = self.evaluator.run(parameters, &self.test, Key::new(2), 0..100, |_| {})?;
///         println!("step {step}: {} nats", scores.bound()?.text(2));
///         Ok(Some(Score { name: "test/iwelbo", value: scores.bound()?.mean }))
///     }
/// }
/// ```
pub trait Watch {
    /// Called after each device call with the number of steps done and the last step's loss.
    fn steps(&mut self, step: usize, loss: f32);

    /// Evaluates the parameters, or their averages if the optimiser keeps them, in the task's order. Called every
    /// [`RunOptions::eval_every`](super::RunOptions::eval_every) steps.
    ///
    /// # Errors
    /// When a device or file fails. An error ends the run after its state is saved. Resumed, it begins with this evaluation. The
    /// same holds for a watch that gives up because [`Watch::stop`] asks for it, but then the run has stopped, without an error.
    fn evaluate(&mut self, _parameters: &[&Buffers], _step: usize) -> Result<Option<Score>> {
        Ok(None)
    }

    /// Reports whether to stop after this call.
    fn stop(&self) -> bool {
        false
    }
}

impl<F: FnMut(usize, f32)> Watch for F {
    fn steps(&mut self, step: usize, loss: f32) {
        self(step, loss);
    }
}
