//! The train program: many gradient steps a call, all state on the device.
//!
//! A step on each replica: take the images that the order names; draw a key; the loss and its gradient; average both
//! over the replicas; Adam with clipping. A loss or norm that is not finite on any replica leaves the state as it
//! was, from there to the end of the call.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::pool::{Entries, Places, Pool, PoolSpec, Shuffle};
use crate::engine::ir::{Function, Graph, RepeatOptions, Sym, gradient};
use crate::engine::random::graph as draw;
use crate::engine::shape::{DType, Shape};
use crate::model::loss::{Course, Latents, Loss};
use crate::model::objective::bernoulli_log_likelihood;
use crate::model::vnca::{Automaton, Damage, Grids, logits, start};
use crate::model::{Kind, Model, padded};
use crate::nn::optimiser::{CellRule, Moments, Optimiser, global_norm};
use crate::nn::params::{Leaf, Params};

/// All that the train program depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepSpec {
    pub model: Model,
    pub optimiser: Optimiser,
    pub loss: Loss,
    /// What the gradient of the automaton's steps saves.
    pub memory: RepeatOptions,
    /// Share of a batch whose grids are damaged: of those from the pool, or at a random doubling.
    pub damage: f64,
    /// The non-doubling model's.
    pub pool: Option<PoolSpec>,
    pub replicas: usize,
    /// Images a step, over all replicas.
    pub batch: usize,
    /// Steps that a call makes at most.
    pub chunk: usize,
    /// Images in the training set.
    pub images: usize,
}

/// Where a parameter's array stands among the state's.
pub const MOMENT_PREFIXES: [&str; 2] = ["adam.m.", "adam.v."];

/// How the replicas' parts of a state entry relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Each replica holds the same.
    Same,
    /// Each replica holds its own.
    Own,
}

/// A part of the state that goes into a call and comes out of it.
#[derive(Clone, Debug, PartialEq)]
pub struct StateEntry {
    pub name: String,
    pub shape: Shape,
    pub spread: Spread,
}

impl StepSpec {
    /// The step of a model with the report's optimiser and loss.
    pub fn new(model: Model, batch: usize, chunk: usize, images: usize) -> StepSpec {
        let nondoubling = model.kind == Kind::NonDoubling;
        StepSpec {
            model,
            optimiser: Optimiser::REPORT,
            loss: Loss::ELBO,
            memory: RepeatOptions::of(model.precision),
            damage: if nondoubling { 0.25 } else { 0.0 },
            pool: nondoubling.then_some(PoolSpec::REPORT),
            replicas: 1,
            batch,
            chunk,
            images,
        }
    }

    /// # Errors
    /// When the sizes do not fit each other; the error names the flag.
    pub fn check(&self) -> Result<()> {
        let StepSpec { replicas, batch, chunk, images, .. } = *self;
        self.model.check()?;
        ensure!(replicas > 0, "--replicas is 0: at least one is needed");
        ensure!(
            batch > 0 && batch.is_multiple_of(replicas),
            "--batch-size {batch} is not divided evenly by --replicas {replicas}"
        );
        ensure!(chunk > 0, "--chunk is 0: a device call makes at least one step");
        ensure!(images >= batch, "--batch-size {batch} is more than the {images} images of the training set");
        ensure!(
            self.optimiser.cell == CellRule::Adam || self.model.kind != Kind::Baseline,
            "--cell-optimiser is of the doubling or nondoubling model, not of the baseline"
        );
        ensure!(self.loss.samples > 0, "--train-samples is 0: an image has at least one latent");
        let most = match self.model.kind {
            Kind::Baseline => 0.0,
            Kind::Doubling => 1.0,
            // The other half of the batch comes from latents, and is whole.
            Kind::NonDoubling => 0.5,
        };
        ensure!(
            (0.0..=most).contains(&self.damage),
            "--damage {}: for the {} model it is from 0 to {most}",
            self.damage,
            self.model.kind
        );
        match &self.pool {
            Some(pool) => self.check_pool(pool),
            None => Ok(()),
        }
    }

    fn check_pool(&self, pool: &PoolSpec) -> Result<()> {
        let StepSpec { replicas, images, .. } = *self;
        let (size, each) = (pool.size, self.each());
        ensure!(
            each.is_multiple_of(2),
            "--batch-size {}: half of each replica's {each} images come from the pool, which takes an even number",
            self.batch
        );
        ensure!(
            size > 0 && size.is_multiple_of(replicas),
            "--pool-size {size} is not divided evenly by --replicas {replicas}"
        );
        ensure!(
            size / replicas >= each,
            "--pool-size {size}: a replica's share of {} is less than the {each} images of its batch",
            size / replicas
        );
        ensure!(
            size <= images,
            "--pool-size {size} is more than the {images} training images that the pool starts with"
        );
        ensure!(
            pool.steps_min < pool.steps_max && pool.steps_max <= 10_000,
            "--nca-steps-min {} and --nca-steps-max {}: the least must be below the most, which is excluded and at most 10000",
            pool.steps_min,
            pool.steps_max
        );
        ensure!(self.loss.samples == 1, "--train-samples {}: with the pool it is 1", self.loss.samples);
        Ok(())
    }

    /// Images a step on each replica.
    pub fn each(&self) -> usize {
        self.batch / self.replicas
    }

    /// Grids that are damaged in a step on each replica.
    fn damaged(&self) -> usize {
        (self.damage * self.each() as f64 * self.loss.samples as f64 + 1e-9) as usize
    }

    /// The state, in the order of the program's inputs: parameters, first moments, second moments, the number of
    /// updates, the replica's key; with a pool, the key of its steps and shuffles and this replica's rows of it; and
    /// whether all was finite so far.
    pub fn state(&self) -> Vec<StateEntry> {
        let entry = |name: &str, shape: Shape, spread| StateEntry { name: name.into(), shape, spread };
        let leaves = self.model.leaves();
        let mut entries = Vec::new();
        for prefix in ["", MOMENT_PREFIXES[0], MOMENT_PREFIXES[1]] {
            entries.extend(leaves.iter().map(|leaf| {
                entry(&format!("{prefix}{}", leaf.name), Shape::f32(&leaf.inner_shape()), Spread::Same)
            }));
        }
        entries.push(entry("count", Shape::s32(&[]), Spread::Same));
        entries.push(entry("key", Shape::u32(&[2]), Spread::Own));
        if let Some(pool) = &self.pool {
            let [images, grids] = Entries::shapes(&self.model, pool.rows(self.replicas));
            entries.push(entry("pool.key", Shape::u32(&[2]), Spread::Same));
            entries.push(entry("pool.images", images, Spread::Own));
            entries.push(entry("pool.grids", grids, Spread::Own));
        }
        entries.push(entry("healthy", Shape::new(DType::Pred, &[]), Spread::Same));
        entries
    }

    /// The place of an entry in the state.
    ///
    /// # Panics
    /// When the state has no such entry: a mistake in the program.
    pub fn place_of(&self, name: &str) -> usize {
        let found = self.state().iter().position(|e| e.name == name);
        found.unwrap_or_else(|| panic!("the state has no {name}"))
    }

    /// The train program. After the state come the inputs `images` (u8, all of them) and `order` (which images each
    /// step takes); with a pool, `replica` (this one's index) and, under `exchange`, what [`super::exchange`] plans; then
    /// `start` (the call's first row of the order) and `trips` (how many steps). After the state come the outputs
    /// `loss` and `grad_norm`, a row a step.
    ///
    /// # Errors
    /// When the sizes do not fit.
    pub fn function(&self) -> Result<Function> {
        self.check()?;
        let leaves = self.model.leaves();
        let g = self.model.graph(&format!("train_{}", self.model.kind));
        let entries = self.state();
        let state: Vec<Sym<'_>> = entries.iter().map(|e| g.input(&e.name, &e.shape)).collect();
        let images = g.input("images", &Shape::new(DType::U8, &[self.images, 28, 28]));
        let order = g.input("order", &Shape::s32(&[self.chunk, self.each()]));
        let feed = self.pool.as_ref().map(|pool| Feed::inputs(&g, self, pool));
        let start = g.input("start", &Shape::s32(&[]));
        let trips = g.input("trips", &Shape::s32(&[]));
        let results = g.repeat_upto(trips, self.chunk, &state, |i, state| {
            let at = start + i;
            let taken = images.take(order.row(at));
            let (next, loss, norm) = self.step(&leaves, state, taken, feed.as_ref().map(|f| f.row(at)));
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
        feed: Option<Feed<'g>>,
    ) -> (Vec<Sym<'g>>, Sym<'g>, Sym<'g>) {
        let n = leaves.len();
        let (values, first, second) = (&state[..n], &state[n..2 * n], &state[2 * n..3 * n]);
        let [count, key] = [state[3 * n], state[3 * n + 1]];
        let healthy = state[state.len() - 1];
        let [next_key, noise, hurt] = draw::split_each(key);
        let params = Params::new(leaves, values);
        let pooled = self.pool.as_ref().zip(feed).map(|(spec, feed)| {
            let [pool_key, images, grids] = [state[3 * n + 2], state[3 * n + 3], state[3 * n + 4]];
            (spec, pool_key, feed.pool(spec, self.replicas, Entries { images, grids }))
        });
        let mut after = None;
        let loss = match &pooled {
            Some((spec, pool_key, pool)) => {
                let [steps, shuffle] = draw::split_each(*pool_key);
                let (loss, new) = self.pool_loss(spec, &params, images, pool, [noise, hurt, steps]);
                after = Some((pool, new, shuffle));
                loss
            }
            None => {
                let damage =
                    Some(Damage { grids: self.damaged(), key: hurt }).filter(|damage| damage.grids > 0);
                let course = Course { memory: self.memory, damage };
                self.loss.of_images(&self.model, &params, padded(key.graph(), images), noise, &course)
            }
        };
        let gradients: Vec<Sym<'g>> = gradient(loss, values).into_iter().map(|s| self.average(s)).collect();
        let loss = self.average(loss);
        let norm = global_norm(&gradients);
        let healthy = healthy.and(loss.is_finite()).and(norm.is_finite());
        let before = Moments { first: first.to_vec(), second: second.to_vec(), count };
        // Chosen before the updates are made of them: what both a result and another computation take is computed once,
        // where the old moments lie. Else the compiler computes them twice, and copies the old ones.
        let moments = self.optimiser.moments(&gradients, norm, &before).or(healthy, &before);
        let updates = self.optimiser.updates(&moments, &self.by_muon(leaves));
        let keep = |new: Sym<'g>, old: &Sym<'g>| healthy.select(new, *old);
        let mut kept: Vec<Sym<'g>> = values.iter().zip(&updates).map(|(v, u)| keep(*v + *u, v)).collect();
        kept.extend(moments.first);
        kept.extend(moments.second);
        kept.extend([moments.count, keep(next_key, &key)]);
        if let Some((pool, new, shuffle)) = after {
            kept.push(keep(shuffle, &state[3 * n + 2]));
            let Entries { images, grids } = pool.after(new, shuffle, healthy);
            kept.extend([images, grids]);
        }
        kept.push(healthy);
        (kept, loss, norm)
    }

    /// The loss of a batch whose last half comes from the pool, and what becomes of the batch: its images and the grids
    /// that it ended with. The keys draw latents, damage and the number of steps, which is the same on every replica.
    ///
    /// The pool's grids take the place of those that grow from latents, so that these images give the encoder the
    /// gradient of the KL part alone.
    fn pool_loss<'g>(
        &self,
        spec: &PoolSpec,
        params: &Params<'g>,
        images: Sym<'g>,
        pool: &Pool<'g>,
        [noise, hurt, steps]: [Sym<'g>; 3],
    ) -> (Sym<'g>, Entries<'g>) {
        let (n, z) = (self.each(), self.model.latent);
        let half = n / 2;
        let head = pool.head(half);
        let images = Sym::concat(&[images.slice_axis(0, 0, half), head.images], 0);
        let padded = padded(images.graph(), images);
        let latents = Latents::of(params, padded, draw::normal(noise, &[n, z]).reshape(&[n, 1, z]));
        let grown = start(&self.model, latents.z.reshape(&[n, z]).slice_axis(0, 0, half));
        let pooled = match self.damaged() {
            0 => head.grids,
            grids => Damage { grids, key: hurt }.of(head.grids),
        };
        let cells = Sym::concat(&[grown, pooled], 0);
        // A child of the key that the latents' draw left unused.
        let keys = draw::split(draw::split_at(noise, n * z), n);
        let count = draw::randint(steps, &[], spec.steps_min as i32, spec.steps_max as i32);
        let automaton = Automaton::new(&self.model, params).on(&Course { memory: self.memory, damage: None });
        let grids = automaton.steps_upto(Grids { cells, keys }, count, spec.steps_max - 1).cells;
        let log_likelihood = bernoulli_log_likelihood(padded, logits(grids));
        (self.loss.of(&latents, log_likelihood.reshape(&[n, 1])), Entries { images, grids })
    }

    /// Which parameters Muon updates: the matrices of the automaton's cell, if it is to.
    fn by_muon(&self, leaves: &[Leaf]) -> Vec<bool> {
        let muon = self.optimiser.cell == CellRule::Muon;
        leaves.iter().map(|leaf| muon && leaf.is_of_cell() && leaf.is_weight()).collect()
    }

    /// The mean over the replicas.
    fn average<'g>(&self, value: Sym<'g>) -> Sym<'g> {
        match self.replicas {
            1 => value,
            replicas => value.all_reduce() * (1.0 / replicas as f64),
        }
    }
}

/// What the host feeds to the pool: the replica's index, and plans of the call's steps under `exchange`.
struct Feed<'g> {
    replica: Sym<'g>,
    places: Option<Places<'g>>,
}

/// Names of the inputs that [`super::exchange`] plans.
pub const PLANNED: [&str; 3] = ["send", "holder", "place"];

impl<'g> Feed<'g> {
    fn inputs(g: &'g Graph, spec: &StepSpec, pool: &PoolSpec) -> Feed<'g> {
        let (chunk, each) = (spec.chunk, spec.each());
        let replica = g.input("replica", &Shape::s32(&[]));
        let planned = |i: usize, dims: &[usize]| g.input(PLANNED[i], &Shape::s32(dims));
        let places = (pool.shuffle == Shuffle::Exchange).then(|| Places {
            send: planned(0, &[chunk, spec.replicas, each / 2]),
            holder: planned(1, &[chunk, each / 2]),
            place: planned(2, &[chunk, each]),
        });
        Feed { replica, places }
    }

    fn row(&self, at: Sym<'g>) -> Feed<'g> {
        let places = self.places.map(|p| Places {
            send: p.send.row(at),
            holder: p.holder.row(at),
            place: p.place.row(at),
        });
        Feed { replica: self.replica, places }
    }

    fn pool(self, spec: &PoolSpec, replicas: usize, entries: Entries<'g>) -> Pool<'g> {
        Pool { entries, shuffle: spec.shuffle, replicas, replica: self.replica, places: self.places }
    }
}
