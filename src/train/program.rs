//! The train program: many gradient steps per device call, with the whole state on the device.
//!
//! In a step each replica takes the examples that the order names, splits its key, computes the task's loss and gradient,
//! averages both over the replicas, and applies the optimiser's transforms. After a loss or gradient norm that is not finite on
//! any replica, the state stays unchanged until the end of the call.

use anyhow::{Result, bail};

use super::checkpoint::META;
use super::task::{Entry, Outcome, Sizes, Spread, Step, Task};
use crate::engine::ir::{Function, Graph, Sym, gradient};
use crate::engine::random::graph as draw;
use crate::engine::shape::{DType, Shape};
use crate::error::valid;
use crate::nn::optimiser::{Context, Slot, Transform, Updates, global_norm};
use crate::nn::params::{Leaf, Params};
use crate::nn::tree::Tree;

/// Name of the state entry that holds the replica's key.
pub const KEY: &str = "key";
/// Name of the state entry that is true as long as all values were finite.
pub const HEALTHY: &str = "healthy";

/// Name of the input with the indices of each step's examples: (chunk, each) on a replica.
const ORDER: &str = "order";

/// An entry of the state, which is both an input and an output of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct StateEntry {
    /// Name in checkpoints, and of the program's input and output.
    pub name: String,
    /// Shape on each replica.
    pub shape: Shape,
    /// How the replicas' parts relate.
    pub spread: Spread,
    /// The parameter whose layouts the entry has. Its name is the entry's.
    pub leaf: Option<Leaf>,
}

/// A task with an optimiser and sizes, which together determine the train program.
#[derive(Clone, Copy)]
pub struct TrainProgram<'a> {
    /// The task.
    pub task: &'a dyn Task,
    /// The optimiser's transforms, in order.
    pub optimiser: &'a [Box<dyn Transform>],
    /// The sizes that the program is built for.
    pub sizes: Sizes,
}

impl TrainProgram<'_> {
    /// Checks that the sizes are consistent and fit the task.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid), with the field that does not fit.
    pub fn check(&self) -> Result<()> {
        let Sizes { replicas, batch, chunk, examples } = self.sizes;
        valid!(replicas > 0, "replicas", "0: at least one is needed");
        valid!(
            batch > 0 && batch.is_multiple_of(replicas),
            "batch",
            "{batch} is not divided evenly by {replicas} replicas"
        );
        valid!(chunk > 0, "chunk", "0: a device call runs at least one step");
        valid!(
            self.task.example().is_none() || examples >= batch,
            "batch",
            "{batch} is more than the {examples} examples of the training set"
        );
        valid!(
            !self.optimiser.is_empty(),
            "optimiser",
            "has no transform: nothing would turn the gradient into a descent"
        );
        self.optimiser.iter().try_for_each(|transform| transform.check())?;
        self.task.check(&self.sizes)?;
        self.check_names()
    }

    /// Checks that names are unique, and that no two parameters draw the same initial values.
    fn check_names(&self) -> Result<()> {
        let task = self.task.name();
        let leaves = self.task.parameters();
        let mut owners = Tree::default();
        let named = |owner: &'static str| move |name: String| (name, owner);
        let optimiser = self.optimiser.iter().flat_map(|t| t.state(&leaves));
        let optimiser = optimiser.map(|slot| match slot {
            Slot::Like { prefix, leaf } => format!("{prefix}{}", leaf.name),
            Slot::Array { name, .. } => name,
        });
        let own = self.task.state(&self.sizes).into_iter().map(|e| e.name);
        let reserved = [KEY, HEALTHY, META, "loss", "grad_norm"].map(String::from);
        let all = (leaves.iter().map(|leaf| leaf.name.clone()).map(named("a parameter")))
            .chain(optimiser.map(named("the optimiser")))
            .chain(reserved.into_iter().map(named("every run")))
            .chain(own.map(named("the task's state")));
        for (name, owner) in all {
            if let Some(other) = owners.set(&name, owner) {
                bail!("task {task}: {owner} has the name {name:?}, which {other} has too");
            }
        }
        for (i, leaf) in leaves.iter().enumerate() {
            if let Some(other) = leaves[..i].iter().find(|other| other.path == leaf.path) {
                bail!(
                    "task {task}: parameters {} and {} have the same path {:?}, and so the same initial values",
                    other.name,
                    leaf.name,
                    leaf.path
                );
            }
        }
        Ok(())
    }

    /// Returns the state in the order of the program's inputs: parameters, the optimiser's state, the replica's key, the task's
    /// state, and whether all values were finite so far.
    pub fn state(&self) -> Vec<StateEntry> {
        let leaves = self.task.parameters();
        let like = |prefix: &str, leaf: &Leaf| {
            let name = format!("{prefix}{}", leaf.name);
            let shape = Shape::f32(&leaf.device_shape());
            let leaf = Leaf { name: name.clone(), ..leaf.clone() };
            StateEntry { name, shape, spread: Spread::Same, leaf: Some(leaf) }
        };
        let array =
            |name: &str, shape: Shape, spread| StateEntry { name: name.into(), shape, spread, leaf: None };
        let mut entries: Vec<StateEntry> = leaves.iter().map(|leaf| like("", leaf)).collect();
        entries.extend(self.optimiser.iter().flat_map(|t| t.state(&leaves)).map(|slot| match slot {
            Slot::Like { prefix, leaf } => like(prefix, &leaf),
            Slot::Array { name, shape } => array(&name, shape, Spread::Same),
        }));
        entries.push(array(KEY, Shape::u32(&[2]), Spread::Own));
        let own = self.task.state(&self.sizes);
        entries.extend(own.into_iter().map(|e| array(&e.name, e.shape, e.spread)));
        entries.push(array(HEALTHY, Shape::new(DType::Pred, &[]), Spread::Same));
        entries
    }

    /// Builds the train program. Its inputs are the state; if the task has examples, all examples and `order`, the indices that
    /// each step takes; the inputs that the task's host provides; `start`, the first step of the call in its chunk; and `trips`,
    /// the number of steps. Its outputs are the state, and `loss` and `grad_norm` with one row per step.
    ///
    /// # Errors
    /// When the sizes do not fit, or the task builds an invalid graph.
    pub fn function(&self) -> Result<Function> {
        self.check()?;
        let Sizes { chunk, examples, .. } = self.sizes;
        let g = Graph::with_precision(&format!("train_{}", self.task.name()), self.task.precision());
        let leaves = self.task.parameters();
        let entries = self.state();
        let state: Vec<Sym<'_>> = entries.iter().map(|e| g.input(&e.name, &e.shape)).collect();
        let data = self.task.example().map(|(name, shape)| {
            let all = g.input(name, &shape.with_dims(&[&[examples], shape.dims.as_slice()].concat()));
            (all, g.input(ORDER, &Shape::s32(&[chunk, self.sizes.each()])))
        });
        let feeds = self.task.feeds(&self.sizes);
        let fed: Vec<Sym<'_>> = (feeds.iter())
            .map(|feed| {
                let rows = if feed.by_step { vec![chunk] } else { vec![] };
                g.input(&feed.name, &feed.shape.with_dims(&[&rows, feed.shape.dims.as_slice()].concat()))
            })
            .collect();
        let start = g.input("start", &Shape::s32(&[]));
        let trips = g.input("trips", &Shape::s32(&[]));
        let results = g.repeat_upto(trips, chunk, &state, |i, state| {
            let at = start + i;
            let examples = data.map(|(all, order)| all.take(order.row(at)));
            let mut feed = Tree::default();
            for (of, all) in feeds.iter().zip(&fed) {
                feed.set(&of.name, if of.by_step { all.row(at) } else { *all });
            }
            let state: Tree<Sym<'_>> =
                entries.iter().map(|e| e.name.clone()).zip(state.iter().copied()).collect();
            let (next, loss, norm) = self.step(&g, &leaves, &state, examples, feed);
            (next, vec![loss, norm])
        });
        let names = entries.iter().map(|e| e.name.clone()).chain(["loss".into(), "grad_norm".into()]);
        let outputs: Vec<(String, Sym<'_>)> = names.zip(results).collect();
        let donors: Vec<(String, String)> =
            entries.iter().map(|e| (e.name.clone(), e.name.clone())).collect();
        g.finish(&outputs, &donors)
    }

    /// Builds one gradient step. Returns the next state in order, the loss and the gradient norm.
    fn step<'g>(
        &self,
        graph: &'g Graph,
        leaves: &[Leaf],
        state: &Tree<Sym<'g>>,
        examples: Option<Sym<'g>>,
        feed: Tree<Sym<'g>>,
    ) -> (Vec<Sym<'g>>, Sym<'g>, Sym<'g>) {
        let values: Vec<Sym<'g>> = leaves.iter().map(|leaf| state[&leaf.name]).collect();
        let [next_key, first, second] = draw::split_each(state[KEY]);
        let own = self.task.state(&self.sizes);
        let Outcome { loss, gradient: own_gradient, state: kept, next } = self.task.step(Step {
            graph,
            sizes: &self.sizes,
            params: Params::new(leaves, &values),
            state: own.iter().map(|e| (e.name.clone(), state[&e.name])).collect(),
            examples,
            keys: [first, second],
            feed,
        });
        if let Some(problem) = self.mistake(loss, &kept, &own) {
            graph.reject(&format!("task {}: {problem}", self.task.name()));
        }
        let gradients = own_gradient.unwrap_or_else(|| gradient(loss, &values));
        let shapes = |of: &[Sym<'g>]| of.iter().map(|s| s.shape()).collect::<Vec<Shape>>();
        if shapes(&gradients) != shapes(&values) {
            graph
                .reject(&format!("task {}: the gradient's shapes are not the parameters'", self.task.name()));
        }
        let gradients: Vec<Sym<'g>> =
            gradients.into_iter().map(|s| self.sizes.mean_over_replicas(s)).collect();
        let loss = self.sizes.mean_over_replicas(loss);
        let norm = global_norm(&gradients);
        let healthy = state[HEALTHY].and(loss.is_finite()).and(norm.is_finite());
        let context = Context { leaves, params: &values, healthy };
        let mut after = Tree::default();
        let mut updates = Updates::with_norm(gradients, norm);
        for transform in self.optimiser {
            let remembered;
            (updates, remembered) = transform.apply(&context, updates, state);
            after.extend(remembered);
        }
        for ((leaf, value), update) in leaves.iter().zip(&values).zip(updates.values()) {
            after.set(&leaf.name, context.keep(*value + *update, *value));
        }
        after.set(KEY, context.keep(next_key, state[KEY]));
        for (name, value) in kept {
            if let Some(old) = state.get(&name) {
                after.set(&name, context.keep(value, *old));
            }
        }
        after.extend(next.map(|next| next(healthy)).unwrap_or_default());
        after.set(HEALTHY, healthy);
        // Entries that the task does not update keep their values.
        let in_order = state.iter().map(|(name, old)| after.get(name).copied().unwrap_or(*old));
        (in_order.collect(), loss, norm)
    }

    /// Finds what is wrong with a step's loss and new state.
    fn mistake(&self, loss: Sym<'_>, state: &[(String, Sym<'_>)], entries: &[Entry]) -> Option<String> {
        if loss.shape() != Shape::f32(&[]) {
            return Some(format!(
                "the loss is {}, not an f32 scalar: loss.mean(&[0]) averages it",
                loss.shape()
            ));
        }
        state.iter().enumerate().find_map(|(i, (name, value))| {
            let Some(entry) = entries.iter().find(|entry| entry.name == *name) else {
                let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
                return Some(format!("the step returned the state {name:?}; there are {names:?}"));
            };
            if state[..i].iter().any(|(other, _)| other == name) {
                return Some(format!("the step returned the state {name:?} twice"));
            }
            let differs = value.shape() != entry.shape;
            differs.then(|| {
                format!("the state {name:?} is {}, the step returned {}", entry.shape, value.shape())
            })
        })
    }
}
