//! Tasks: the definition of what is trained. A task has parameters, a loss, and optionally its own state. The rest of training
//! (train program, replicas, device calls, checkpoints, exact resume, metrics, the check for finite numbers) is the same for
//! every task.

use anyhow::Result;

use super::state::State;
use crate::engine::array::Array;
use crate::engine::ir::{Graph, Sym};
use crate::engine::random::Key;
use crate::engine::runtime::{Buffers, Mesh};
use crate::engine::shape::{Precision, Shape};
use crate::nn::params::{Leaf, Params};
use crate::nn::tree::Tree;

/// The sizes that a train program is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Devices that share each batch.
    pub replicas: usize,
    /// Examples per step, over all replicas.
    pub batch: usize,
    /// Number of gradient steps that share one order of examples. A device call runs at most this number of steps.
    pub chunk: usize,
    /// Examples in the training set; 0 if the task has none.
    pub examples: usize,
}

impl Sizes {
    /// Returns the number of examples per step on each replica.
    pub fn each(&self) -> usize {
        self.batch / self.replicas
    }
}

/// How a state entry is distributed over the replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Each replica holds the same values.
    Same,
    /// Each replica holds its own rows. A checkpoint contains all rows.
    Own,
}

/// An entry of a task's state, which every step reads and may replace.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Name in checkpoints. No other entry and no parameter may have it.
    pub name: String,
    /// Shape on each replica.
    pub shape: Shape,
    /// How the entry is distributed over the replicas.
    pub spread: Spread,
    /// Initial values on each replica. `None` means zeros, which [`Host::begin`] may replace.
    pub initial: Option<Array>,
}

impl Entry {
    /// Returns an entry that is initially zero.
    pub fn zeros(name: &str, shape: Shape, spread: Spread) -> Entry {
        Entry { name: name.into(), shape, spread, initial: None }
    }

    /// Returns an entry whose initial values are the same on every replica.
    pub fn new(name: &str, initial: Array, spread: Spread) -> Entry {
        Entry { name: name.into(), shape: initial.shape().clone(), spread, initial: Some(initial) }
    }
}

/// An input of the train program that [`Host::inputs`] provides.
#[derive(Clone, Debug, PartialEq)]
pub struct Feed {
    /// Name of the input. No state entry may have it.
    pub name: String,
    /// Shape that a step gets on each replica.
    pub shape: Shape,
    /// Whether every step of a chunk gets its own row. The input is then (chunk, shape...). Otherwise all steps get the same
    /// value.
    pub by_step: bool,
}

/// The inputs of a step on each replica.
pub struct Step<'g, 'a> {
    /// The graph of the train program.
    pub graph: &'g Graph,
    /// The sizes that the program is built for.
    pub sizes: &'a Sizes,
    /// The parameters, under the names of [`Task::parameters`].
    pub params: Params<'g>,
    /// The state, under the names of [`Task::state`].
    pub state: Tree<Sym<'g>>,
    /// This replica's examples, (each, shape...), if the task has examples.
    pub examples: Option<Sym<'g>>,
    /// Two keys of this step and replica for all random draws. Split them if more are needed.
    pub keys: [Sym<'g>; 2],
    /// The inputs from the host, under the names of [`Task::feeds`].
    pub feed: Tree<Sym<'g>>,
}

impl Step<'_, '_> {
    /// Returns the mean of a value over the replicas, which is the same on each of them. New values of state with
    /// [`Spread::Same`] must be computed from such means: losses and examples differ between replicas.
    pub fn mean_over_replicas<'g>(&self, value: Sym<'g>) -> Sym<'g> {
        self.sizes.mean_over_replicas(value)
    }
}

impl Sizes {
    pub(super) fn mean_over_replicas<'g>(&self, value: Sym<'g>) -> Sym<'g> {
        match self.replicas {
            1 => value,
            replicas => value.all_reduce() * (1.0 / replicas as f64),
        }
    }
}

/// Computes new values of a task's state from a pred scalar that reports whether the step is valid.
pub type Next<'g> = Box<dyn FnOnce(Sym<'g>) -> Vec<(String, Sym<'g>)> + 'g>;

/// The results of a step.
pub struct Outcome<'g> {
    /// The loss: an f32 scalar, the mean over this replica's examples. Training minimises its mean over the replicas.
    pub loss: Sym<'g>,
    /// The gradient for each parameter, in the order of [`Task::parameters`], if training uses an estimator that is not the loss's
    /// derivative. Training averages it over the replicas.
    pub gradient: Option<Vec<Sym<'g>>>,
    /// New values of the state. If the step's loss or gradient is not finite, the old values stay.
    pub state: Vec<(String, Sym<'g>)>,
    /// Computes new values of state for which the task itself must keep the old values if the step is not valid. Serves state
    /// so large that selecting between old and new values would cost too much.
    pub next: Option<Next<'g>>,
}

impl<'g> Outcome<'g> {
    /// Returns the outcome of a task without state, whose gradient is the loss's derivative.
    pub fn new(loss: Sym<'g>) -> Outcome<'g> {
        Outcome { loss, gradient: None, state: vec![], next: None }
    }

    /// Adds a new value of the state.
    pub fn with(mut self, name: &str, value: Sym<'g>) -> Outcome<'g> {
        self.state.push((name.to_string(), value));
        self
    }
}

/// A training task.
pub trait Task: Send + Sync {
    /// Returns the name of its programs.
    fn name(&self) -> String;

    /// Returns the parameters, in the order of checkpoints.
    fn parameters(&self) -> Vec<Leaf>;

    /// Builds one replica's part of a gradient step: the loss and the new state.
    fn step<'g>(&self, step: Step<'g, '_>) -> Outcome<'g>;

    /// Returns the element type of the operands of matmuls and convolutions.
    fn precision(&self) -> Precision {
        Precision::F32
    }

    /// Returns name and shape of one example of the training set; `None` if the task needs no examples.
    fn example(&self) -> Option<(&'static str, Shape)> {
        None
    }

    /// Checks that the task can be trained with these sizes.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid), with the field that does not fit.
    fn check(&self, _sizes: &Sizes) -> Result<()> {
        Ok(())
    }

    /// Returns the task's state besides the parameters.
    fn state(&self, _sizes: &Sizes) -> Vec<Entry> {
        vec![]
    }

    /// Returns the inputs that the host provides.
    fn feeds(&self, _sizes: &Sizes) -> Vec<Feed> {
        vec![]
    }

    /// Returns the part of the task that runs on the host between device calls.
    ///
    /// # Errors
    /// When a device fails.
    fn host(&self, _mesh: &Mesh, _sizes: &Sizes) -> Result<Box<dyn Host>> {
        Ok(Box::new(Idle))
    }
}

impl<T: Task + ?Sized> Task for Box<T> {
    fn name(&self) -> String {
        (**self).name()
    }

    fn parameters(&self) -> Vec<Leaf> {
        (**self).parameters()
    }

    fn step<'g>(&self, step: Step<'g, '_>) -> Outcome<'g> {
        (**self).step(step)
    }

    fn precision(&self) -> Precision {
        (**self).precision()
    }

    fn example(&self) -> Option<(&'static str, Shape)> {
        (**self).example()
    }

    fn check(&self, sizes: &Sizes) -> Result<()> {
        (**self).check(sizes)
    }

    fn state(&self, sizes: &Sizes) -> Vec<Entry> {
        (**self).state(sizes)
    }

    fn feeds(&self, sizes: &Sizes) -> Vec<Feed> {
        (**self).feeds(sizes)
    }

    fn host(&self, mesh: &Mesh, sizes: &Sizes) -> Result<Box<dyn Host>> {
        (**self).host(mesh, sizes)
    }
}

/// The parts of a run that a task's host part works on.
pub struct Hosted<'a> {
    /// The devices.
    pub mesh: &'a Mesh,
    /// The sizes that the program is built for.
    pub sizes: &'a Sizes,
    /// The run's state on the devices.
    pub state: &'a mut State,
    /// All examples, (examples, shape...).
    pub examples: Option<&'a Array>,
}

/// The part of a task that runs on the host between device calls. Few tasks need one.
pub trait Host {
    /// Sets the initial values of the state at the beginning of a run.
    ///
    /// # Errors
    /// When a device fails.
    fn begin(&mut self, _run: &mut Hosted<'_>, _key: Key) -> Result<()> {
        Ok(())
    }

    /// Prepares for the first step of a chunk. The key is the chunk's, and is the same for any number of replicas.
    ///
    /// # Errors
    /// When a device fails.
    fn enter_chunk(&mut self, _run: &mut Hosted<'_>, _key: Key) -> Result<()> {
        Ok(())
    }

    /// Prepares for the next device call, which begins at `step`. Returns the step before which the call must end, if any.
    ///
    /// # Errors
    /// When a device fails.
    fn prepare(&mut self, _run: &mut Hosted<'_>, _step: usize) -> Result<Option<usize>> {
        Ok(None)
    }

    /// Returns the inputs of [`Task::feeds`], in their order.
    fn inputs(&self) -> Vec<&Buffers> {
        vec![]
    }

    /// Returns checkpoint entries that replace or extend the state's. `step` is the next step.
    ///
    /// # Errors
    /// When a device fails.
    fn save(&self, _state: &State, _step: usize) -> Result<Vec<(String, Array)>> {
        Ok(vec![])
    }

    /// Restores the entries that [`Host::save`] returned, and removes them from `arrays`. Returns state entries.
    ///
    /// # Errors
    /// When an entry is missing or of another shape, or a device fails.
    fn restore(&mut self, _mesh: &Mesh, _arrays: &mut Tree<Array>) -> Result<Vec<(String, Buffers)>> {
        Ok(vec![])
    }
}

/// The host part of a task that needs no work on the host.
struct Idle;

impl Host for Idle {}
