//! What is learned: a task has parameters, perhaps a state of its own, and a loss. All else of training (the train
//! program, replicas, device calls, checkpoints, exact resume, metrics, the check for finite numbers) is the same for
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

/// The sizes that a train program is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Devices that share each batch.
    pub replicas: usize,
    /// Examples a step, over all replicas.
    pub batch: usize,
    /// Gradient steps that a device call makes at most, and that share one shuffling of keys and examples.
    pub chunk: usize,
    /// Examples in the training set; 0 where the task has none.
    pub examples: usize,
}

impl Sizes {
    /// Returns the examples a step on each replica.
    pub fn each(&self) -> usize {
        self.batch / self.replicas
    }
}

/// How the replicas' parts of a state entry relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Each replica holds the same.
    Same,
    /// Each replica holds its own rows of a whole. A checkpoint has the whole.
    Own,
}

/// A part of a task's state, which goes into every step and comes out of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name in checkpoints; no other entry and no parameter has it.
    pub name: String,
    /// On each replica.
    pub shape: Shape,
    /// How the replicas' parts relate.
    pub spread: Spread,
    /// What a run begins with on each replica; `None`: zeros, which [`Host::begin`] may replace.
    pub initial: Option<Array>,
}

impl Entry {
    /// Returns an entry that is zero at first.
    pub fn zeros(name: &str, shape: Shape, spread: Spread) -> Entry {
        Entry { name: name.into(), shape, spread, initial: None }
    }

    /// Returns an entry that is the same array at first on every replica.
    pub fn new(name: &str, initial: Array, spread: Spread) -> Entry {
        Entry { name: name.into(), shape: initial.shape().clone(), spread, initial: Some(initial) }
    }
}

/// An input of the train program that [`Host::inputs`] feeds.
#[derive(Clone, Debug, PartialEq)]
pub struct Feed {
    /// Name of the input; no state entry has it.
    pub name: String,
    /// What a step gets of it, on each replica.
    pub shape: Shape,
    /// Whether every step of a chunk gets a row of its own: the input then is (chunk, shape...). Otherwise all steps get
    /// the same.
    pub by_step: bool,
}

/// What a step is made of, on each replica.
pub struct Step<'g, 'a> {
    /// The graph of the train program.
    pub graph: &'g Graph,
    /// The sizes that the program is made for.
    pub sizes: &'a Sizes,
    /// The parameters, under the names of [`Task::parameters`].
    pub params: Params<'g>,
    /// The state, under the names of [`Task::state`].
    pub state: Tree<Sym<'g>>,
    /// This replica's examples, (each, shape...), where the task has examples.
    pub examples: Option<Sym<'g>>,
    /// Two keys of this step and replica, for all that is drawn: split them for more.
    pub keys: [Sym<'g>; 2],
    /// What the host feeds, under the names of [`Task::feeds`].
    pub feed: Tree<Sym<'g>>,
}

impl Step<'_, '_> {
    /// Returns the mean of a value over the replicas, the same on each. State of [`Spread::Same`] is computed from such values:
    /// each replica's own loss or examples differ.
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

/// How a task's state goes on after a step.
pub type Next<'g> = Box<dyn FnOnce(Sym<'g>) -> Vec<(String, Sym<'g>)> + 'g>;

/// What comes of a step.
pub struct Outcome<'g> {
    /// An f32 scalar, the mean over this replica's examples. Training minimises its mean over the replicas.
    pub loss: Sym<'g>,
    /// New values of the state. Where a loss or gradient of the step is not finite, the old ones stay.
    pub state: Vec<(String, Sym<'g>)>,
    /// New values that the task itself keeps from a step that does not hold: gets whether the step holds, a pred scalar.
    /// For state so large that selecting between old and new would cost too much.
    pub next: Option<Next<'g>>,
}

impl<'g> Outcome<'g> {
    /// Returns the outcome of a task without state.
    pub fn new(loss: Sym<'g>) -> Outcome<'g> {
        Outcome { loss, state: vec![], next: None }
    }

    /// Adds a new value of the state.
    pub fn with(mut self, name: &str, value: Sym<'g>) -> Outcome<'g> {
        self.state.push((name.to_string(), value));
        self
    }
}

/// Something to learn.
pub trait Task: Send + Sync {
    /// Returns the name of its programs.
    fn name(&self) -> String;

    /// Returns the parameters, in the order of checkpoints.
    fn parameters(&self) -> Vec<Leaf>;

    /// Builds one replica's part of a gradient step: the loss, and how the state goes on.
    fn step<'g>(&self, step: Step<'g, '_>) -> Outcome<'g>;

    /// Returns the element type of the operands of matmuls and convolutions.
    fn precision(&self) -> Precision {
        Precision::F32
    }

    /// Returns name and shape of one example of the training set; `None`: the task learns from no examples.
    fn example(&self) -> Option<(&'static str, Shape)> {
        None
    }

    /// Checks that the task can be learned with such sizes.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid), with the field that does not fit.
    fn check(&self, _sizes: &Sizes) -> Result<()> {
        Ok(())
    }

    /// Returns the state beyond the parameters.
    fn state(&self, _sizes: &Sizes) -> Vec<Entry> {
        vec![]
    }

    /// Returns the inputs that the host feeds.
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

/// What a task's host part works on.
pub struct Hosted<'a> {
    /// The devices.
    pub mesh: &'a Mesh,
    /// The sizes that the program is made for.
    pub sizes: &'a Sizes,
    /// The run's state on the devices.
    pub state: &'a mut State,
    /// All examples, (examples, shape...).
    pub examples: Option<&'a Array>,
}

/// The part of a task that runs on the host between device calls. Few tasks need one.
pub trait Host {
    /// Gives the state its first values, at the beginning of a run.
    ///
    /// # Errors
    /// When a device fails.
    fn begin(&mut self, _run: &mut Hosted<'_>, _key: Key) -> Result<()> {
        Ok(())
    }

    /// Prepares for the first step of a chunk. The key is that of this chunk, the same for any number of replicas.
    ///
    /// # Errors
    /// When a device fails.
    fn enter_chunk(&mut self, _run: &mut Hosted<'_>, _key: Key) -> Result<()> {
        Ok(())
    }

    /// Prepares for the next device call, which begins at a step. Returns the step that it must end before, if any.
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

    /// Returns those entries of a checkpoint that are not simply the state's; a step is the one that comes next.
    ///
    /// # Errors
    /// When a device fails.
    fn save(&self, _state: &State, _step: usize) -> Result<Vec<(String, Array)>> {
        Ok(vec![])
    }

    /// Puts back what [`Host::save`] gave; takes its entries out of `arrays`.
    ///
    /// # Errors
    /// When an entry is missing or of another shape, or a device fails.
    fn restore(&mut self, _mesh: &Mesh, _arrays: &mut Tree<Array>) -> Result<Vec<(String, Buffers)>> {
        Ok(vec![])
    }
}

/// The host part of a task that needs none.
struct Idle;

impl Host for Idle {}
