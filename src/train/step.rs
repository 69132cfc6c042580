//! The train program: many gradient steps a call, all state on the device.
//!
//! A step on each replica: take the images that the order names; draw a key; the loss and its gradient; average both
//! over the replicas; Adam with clipping. A loss or norm that is not finite on any replica leaves the state as it
//! was, from there to the end of the call.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::optimiser::{Moments, Optimiser, global_norm};
use crate::ir::{Function, Graph, Sym, gradient};
use crate::model::params::{Leaf, Params};
use crate::model::{Model, objective, padded};
use crate::random::graph as draw;
use crate::shape::{DType, Shape};

/// All that the train program depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepSpec {
    pub model: Model,
    pub optimiser: Optimiser,
    pub replicas: usize,
    /// Images a step, over all replicas.
    pub batch: usize,
    /// Steps that a call makes at most.
    pub chunk: usize,
    /// Images in the training set.
    pub images: usize,
    pub beta: f64,
}

/// Where a parameter's array stands among the state's.
pub const MOMENT_PREFIXES: [&str; 2] = ["adam.m.", "adam.v."];

/// A part of the state that goes into a call and comes out of it.
#[derive(Clone, Debug, PartialEq)]
pub struct StateEntry {
    pub name: String,
    pub shape: Shape,
}

impl StepSpec {
    /// # Errors
    /// When the sizes do not fit each other; the error names the flag.
    pub fn check(&self) -> Result<()> {
        let StepSpec { replicas, batch, chunk, images, .. } = *self;
        ensure!(replicas > 0, "--replicas is 0: at least one is needed");
        ensure!(
            batch > 0 && batch.is_multiple_of(replicas),
            "--batch-size {batch} is not divided evenly by --replicas {replicas}"
        );
        ensure!(chunk > 0, "--chunk is 0: a device call makes at least one step");
        ensure!(images >= batch, "--batch-size {batch} is more than the {images} images of the training set");
        Ok(())
    }

    /// The state, in the order of the program's inputs: parameters, first moments, second moments, the number of
    /// updates, the replica's key, and whether all was finite so far.
    pub fn state(&self) -> Vec<StateEntry> {
        let leaves = self.model.leaves();
        let mut entries = Vec::new();
        for prefix in ["", MOMENT_PREFIXES[0], MOMENT_PREFIXES[1]] {
            entries.extend(leaves.iter().map(|leaf| StateEntry {
                name: format!("{prefix}{}", leaf.name),
                shape: Shape::f32(&leaf.inner_shape()),
            }));
        }
        let scalars = [
            ("count", Shape::s32(&[])),
            ("key", Shape::u32(&[2])),
            ("healthy", Shape::new(DType::Pred, &[])),
        ];
        entries.extend(scalars.map(|(name, shape)| StateEntry { name: name.into(), shape }));
        entries
    }

    /// The train program. After the state come the inputs `images` (u8, all of them), `order` (which images each
    /// step takes), `start` (the call's first row of the order) and `trips` (how many steps); after the state the
    /// outputs `loss` and `grad_norm`, a row a step.
    ///
    /// # Errors
    /// When the sizes do not fit.
    pub fn function(&self) -> Result<Function> {
        self.check()?;
        let leaves = self.model.leaves();
        let g = Graph::new(&format!("train_{}", self.model.kind));
        let entries = self.state();
        let state: Vec<Sym<'_>> = entries.iter().map(|e| g.input(&e.name, &e.shape)).collect();
        let images = g.input("images", &Shape::new(DType::U8, &[self.images, 28, 28]));
        let order = g.input("order", &Shape::s32(&[self.chunk, self.batch / self.replicas]));
        let start = g.input("start", &Shape::s32(&[]));
        let trips = g.input("trips", &Shape::s32(&[]));
        let results = g.repeat_upto(trips, self.chunk, &state, |i, state| {
            let taken = images.take(order.row(start + i));
            let (next, loss, norm) = self.step(&leaves, state, padded(&g, taken));
            (next, vec![loss, norm])
        });
        let names = entries.iter().map(|e| e.name.clone()).chain(["loss".into(), "grad_norm".into()]);
        let outputs: Vec<(String, Sym<'_>)> = names.zip(results).collect();
        let donors: Vec<(String, String)> =
            entries.iter().map(|e| (e.name.clone(), e.name.clone())).collect();
        g.finish(&outputs, &donors)
    }

    /// One gradient step: the next state, the loss and the gradient's norm.
    fn step<'g>(
        &self,
        leaves: &[Leaf],
        state: &[Sym<'g>],
        images: Sym<'g>,
    ) -> (Vec<Sym<'g>>, Sym<'g>, Sym<'g>) {
        let n = leaves.len();
        let (values, first, second) = (&state[..n], &state[n..2 * n], &state[2 * n..3 * n]);
        let [count, key, healthy] = [state[3 * n], state[3 * n + 1], state[3 * n + 2]];
        let [next_key, sub] = draw::split_each(key);
        let params = Params::new(leaves, values);
        let loss = objective::loss(&self.model, &params, images, sub, self.beta);
        let gradients: Vec<Sym<'g>> = gradient(loss, values).into_iter().map(|s| self.average(s)).collect();
        let loss = self.average(loss);
        let norm = global_norm(&gradients);
        let healthy = healthy.and(loss.is_finite()).and(norm.is_finite());
        let moments = Moments { first: first.to_vec(), second: second.to_vec(), count };
        let (updates, moments) = self.optimiser.updates(&gradients, norm, &moments);
        let mut next: Vec<Sym<'g>> = values.iter().zip(&updates).map(|(v, u)| *v + *u).collect();
        next.extend(moments.first);
        next.extend(moments.second);
        next.extend([moments.count, next_key]);
        let mut kept: Vec<Sym<'g>> =
            next.iter().zip(state).map(|(new, old)| healthy.select(*new, *old)).collect();
        kept.push(healthy);
        (kept, loss, norm)
    }

    /// The mean over the replicas.
    fn average<'g>(&self, value: Sym<'g>) -> Sym<'g> {
        match self.replicas {
            1 => value,
            replicas => value.all_reduce() * (1.0 / replicas as f64),
        }
    }
}
