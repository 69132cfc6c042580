//! The pool of the non-doubling model: images with the grids that their automata ended with. Half of a batch starts from the
//! grids of the pool instead of latents, so that the automaton learns to keep its image. Source: the report, section 3.3.
//!
//! Every replica has a share of the pool and takes entries from its beginning. Half a batch of entries provides the initial
//! grids. After the step the results of the whole batch replace the first entries of the share. Then the entries are shuffled.

use std::fmt;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::elbo::{Elbo, Latents, round_share};
use super::grow::{Damage, Grids, first_channels};
use super::pool_host::PoolHost;
pub use super::pool_host::initial_pool;
use super::vae::Vae;
use crate::engine::ir::{Graph, Sym};
use crate::engine::random::graph::{self as draw, permutation};
use crate::engine::runtime::Mesh;
use crate::engine::shape::{Precision, Shape};
use crate::error::valid;
use crate::nn::params::Leaf;
use crate::train::task::{Entry, Feed, Host, Outcome, Sizes, Spread, Step, Task};

/// How the pool's entries are shuffled after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shuffle {
    /// The result of `global`, bit for bit, by moving only the entries that a replica needs next
    Exchange,
    /// One permutation of all replicas' entries, after an all-gather, as the report describes
    Global,
    /// Each replica permutes its own entries
    Local,
    /// Whole shares change transfers among the replicas: what the report's code does
    Replica,
}

impl Shuffle {
    /// Returns the shuffle with the same results that permutes the entries themselves.
    pub fn result(self) -> Shuffle {
        match self {
            Shuffle::Exchange => Shuffle::Global,
            Shuffle::Global | Shuffle::Local | Shuffle::Replica => self,
        }
    }
}

impl fmt::Display for Shuffle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Shuffle::Exchange => "exchange",
            Shuffle::Global => "global",
            Shuffle::Local => "local",
            Shuffle::Replica => "replica",
        })
    }
}

/// Size of a pool, its shuffle, and the number of automaton steps in a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    /// Number of entries, over all replicas.
    pub size: usize,
    /// How the entries are shuffled after a step.
    pub shuffle: Shuffle,
    /// Smallest number of automaton steps in a training step. The number is drawn from `steps_min` to `steps_max - 1`.
    pub steps_min: usize,
    /// Excluded upper bound of the number of automaton steps.
    pub steps_max: usize,
    /// Number of automaton steps after damage of every grown grid, within the same training step. Their results are scored like
    /// the grown ones. With 0, only grids from the pool are damaged, as in the report.
    ///
    /// The gradient passes through the damage. Thus an automaton learns to keep in every cell what its neighbours need to regrow,
    /// which no gradient rewards if a grid comes from the pool.
    #[serde(default)]
    pub recovery_steps: usize,
}

impl PoolSpec {
    /// The pool of the report.
    pub const REPORT: PoolSpec =
        PoolSpec { size: 1024, shuffle: Shuffle::Exchange, steps_min: 32, steps_max: 64, recovery_steps: 0 };

    /// Returns the number of rows in which each replica holds its share. Under `exchange` entries stay on the replica that
    /// wrote them, so that the number of entries on a replica varies around the share. The additional rows almost always
    /// suffice; otherwise the plan ends early and the entries are redistributed.
    pub fn rows(&self, replicas: usize) -> usize {
        let share = self.size / replicas;
        match self.shuffle {
            Shuffle::Exchange => self.size.min(share + 6 * (share as f64).sqrt().ceil() as usize),
            Shuffle::Global | Shuffle::Local | Shuffle::Replica => share,
        }
    }
}

/// Entries of the pool on one replica: images of u8 and grids of cells.
#[derive(Clone, Copy)]
pub(super) struct Entries<'g> {
    pub images: Sym<'g>,
    pub grids: Sym<'g>,
}

impl<'g> Entries<'g> {
    /// Returns the shapes of the images and grids of `rows` entries.
    pub fn shapes(model: &Vae, rows: usize) -> [Shape; 2] {
        let [height, width] = model.frame.grid;
        [model.frame.pixels(rows), Shape::f32(&[rows, height, width, model.latent])]
    }

    fn map(self, f: impl Fn(Sym<'g>) -> Sym<'g>) -> Entries<'g> {
        Entries { images: f(self.images), grids: f(self.grids) }
    }

    fn zip(self, other: Entries<'g>, f: impl Fn(Sym<'g>, Sym<'g>) -> Sym<'g>) -> Entries<'g> {
        Entries { images: f(self.images, other.images), grids: f(self.grids, other.grids) }
    }
}

/// A replica's transfers in a step under `exchange`: rows of the inputs that [`super::exchange`] plans.
#[derive(Clone, Copy)]
struct Transfers<'g> {
    /// Rows to send to each replica: (replicas, half a batch).
    send: Sym<'g>,
    /// The replica that each taken entry comes from: (half a batch).
    holder: Sym<'g>,
    /// Rows for the new entries: (batch).
    place: Sym<'g>,
}

/// A replica's share within a step.
struct Pool<'g> {
    entries: Entries<'g>,
    shuffle: Shuffle,
    replicas: usize,
    /// This replica's index.
    replica: Sym<'g>,
    /// The planned transfers; only under `exchange`.
    transfers: Option<Transfers<'g>>,
}

impl<'g> Pool<'g> {
    fn graph(&self) -> &'g Graph {
        self.replica.graph()
    }

    /// Returns the first `count` entries of the share.
    fn head(&self, count: usize) -> Entries<'g> {
        let Some(transfers) = self.transfers else {
            return self.entries.map(|x| x.slice_axis(0, 0, count));
        };
        let sent = self.entries.map(|x| x.take(transfers.send));
        if self.replicas == 1 {
            return sent.map(|x| x.reshape(&x.dims()[1..]));
        }
        let got = sent.map(|x| x.all_to_all(self.replicas));
        let order = self.graph().iota(&Shape::s32(&[count]), 0);
        let rows = transfers.holder * count as f64 + order;
        got.map(|x| x.reshape(&[&[self.replicas * count], &x.dims()[2..]].concat()).take(rows))
    }

    /// Returns the pool after a step: `new` replaces its first entries, then `key` shuffles it. Returns the old pool if
    /// `healthy` is false.
    fn after(&self, new: Entries<'g>, key: Sym<'g>, healthy: Sym<'g>) -> Entries<'g> {
        if let Some(transfers) = self.transfers {
            let old = self.entries.map(|x| x.take(transfers.place));
            let kept = new.zip(old, |new, old| healthy.select(new, old));
            return self.entries.zip(kept, |x, kept| x.set_rows(transfers.place, kept));
        }
        let zero = self.replica.scalar_like(0.0);
        let replaced = self.entries.zip(new, |x, new| {
            let starts: Vec<Sym<'g>> = (0..x.rank()).map(|_| zero).collect();
            x.dynamic_update_slice(new, &starts)
        });
        let shuffled = replaced.map(|x| self.shuffled(x, key));
        shuffled.zip(self.entries, |new, old| healthy.select(new, old))
    }

    fn shuffled(&self, x: Sym<'g>, key: Sym<'g>) -> Sym<'g> {
        let share = x.dims()[0];
        let all = || match self.replicas {
            1 => x.reshape(&[&[1], x.dims().as_slice()].concat()),
            replicas => x.all_gather(self.replica, replicas),
        };
        match self.shuffle {
            Shuffle::Global | Shuffle::Exchange => {
                let size = self.replicas * share;
                let order = permutation(key, size).reshape(&[self.replicas, share]).row(self.replica);
                all().reshape(&[&[size], &x.dims()[1..]].concat()).take(order)
            }
            Shuffle::Local => x.take(permutation(key, share)),
            Shuffle::Replica => all().row(permutation(key, self.replicas).row(self.replica)),
        }
    }
}

/// Names of the state's entries.
pub(super) const KEY: &str = "pool.key";
pub(super) const IMAGES: &str = "pool.images";
pub(super) const GRIDS: &str = "pool.grids";
/// Names of the inputs that the host provides: the replica's index, and under `exchange` the plan of [`super::exchange`].
const REPLICA: &str = "replica";
const PLANNED: [&str; 3] = ["send", "holder", "place"];

/// The task of training an automaton with the ELBO of batches whose second half starts from the pool's grids.
#[derive(Clone)]
pub struct Pooled {
    /// The model, whose decoder is an automaton, and the bound with one latent per image. The damage is a share of each batch and
    /// affects only grids from the pool.
    pub elbo: Elbo,
    /// The pool.
    pub pool: PoolSpec,
}

impl Pooled {
    /// Returns the report's task, which damages half of the grids from the pool.
    pub fn new(model: Vae) -> Pooled {
        Pooled { elbo: Elbo { damage: 0.25, ..Elbo::new(model) }, pool: PoolSpec::REPORT }
    }

    /// Returns the pool with the inputs that the host provides.
    fn pool<'g>(&self, step: &Step<'g, '_>, entries: Entries<'g>) -> Pool<'g> {
        let [send, holder, place] = PLANNED;
        let transfers = (self.pool.shuffle == Shuffle::Exchange).then(|| Transfers {
            send: step.feed[send],
            holder: step.feed[holder],
            place: step.feed[place],
        });
        let (replicas, replica) = (step.sizes.replicas, step.feed[REPLICA]);
        Pool { entries, shuffle: self.pool.shuffle, replicas, replica, transfers }
    }
}

impl Task for Pooled {
    fn name(&self) -> String {
        self.elbo.name()
    }

    fn precision(&self) -> Precision {
        self.elbo.precision()
    }

    fn parameters(&self) -> Vec<Leaf> {
        self.elbo.parameters()
    }

    fn example(&self) -> Option<(&'static str, Shape)> {
        self.elbo.example()
    }

    fn check(&self, sizes: &Sizes) -> Result<()> {
        let Elbo { model, loss, damage, .. } = &self.elbo;
        model.check()?;
        model.automaton()?;
        let PoolSpec { size, steps_min, steps_max, recovery_steps, .. } = self.pool;
        let (replicas, each) = (sizes.replicas, sizes.each());
        // Only grids from the pool are damaged, and they are half of the batch.
        valid!(
            (0.0..=0.5).contains(damage),
            "damage",
            "{damage}: for the {} model it is from 0 to 0.5",
            model.name
        );
        valid!(
            each.is_multiple_of(2),
            "batch",
            "{}: each replica has {each} images, and half of them come from the pool: the number must be even",
            sizes.batch
        );
        valid!(
            size > 0 && size.is_multiple_of(replicas),
            "pool.size",
            "{size} is not divided evenly by {replicas} replicas"
        );
        valid!(
            size / replicas >= each,
            "pool.size",
            "{size}: a replica's share of {} is less than the {each} images of its batch",
            size / replicas
        );
        valid!(
            size <= sizes.examples,
            "pool.size",
            "{size} is more than the {} training images, which fill the pool at the start",
            sizes.examples
        );
        valid!(
            steps_min < steps_max && steps_max <= 10_000,
            "pool.steps_min",
            "{steps_min} and steps_max {steps_max}: the minimum must be below the maximum, which is excluded and at most 10000"
        );
        valid!(recovery_steps <= 10_000, "pool.recovery_steps", "{recovery_steps}: at most 10000");
        valid!(loss.samples == 1, "loss.samples", "is {}: with the pool it is 1", loss.samples);
        loss.check()?;
        Ok(())
    }

    fn state(&self, sizes: &Sizes) -> Vec<Entry> {
        let [images, grids] = Entries::shapes(&self.elbo.model, self.pool.rows(sizes.replicas));
        let pool = [
            Entry::zeros(KEY, Shape::u32(&[2]), Spread::Same),
            Entry::zeros(IMAGES, images, Spread::Own),
            Entry::zeros(GRIDS, grids, Spread::Own),
        ];
        pool.into_iter().chain(self.elbo.loss.state()).collect()
    }

    fn feeds(&self, sizes: &Sizes) -> Vec<Feed> {
        let feed = |name: &str, dims: &[usize], by_step| Feed {
            name: name.into(),
            shape: Shape::s32(dims),
            by_step,
        };
        let mut feeds = vec![feed(REPLICA, &[], false)];
        if self.pool.shuffle == Shuffle::Exchange {
            let each = sizes.each();
            let rows: [&[usize]; 3] = [&[sizes.replicas, each / 2], &[each / 2], &[each]];
            feeds.extend(PLANNED.iter().zip(rows).map(|(name, dims)| feed(name, dims, true)));
        }
        feeds
    }

    fn host(&self, mesh: &Mesh, sizes: &Sizes) -> Result<Box<dyn Host>> {
        Ok(Box::new(PoolHost::new(self, mesh, sizes)?))
    }

    /// The second half of the batch starts from the pool's grids, not from latents. Its images therefore give the encoder only
    /// the gradient of the KL. All images and final grids of the batch go into the pool. Every replica takes the same number of
    /// automaton steps.
    fn step<'g>(&self, step: Step<'g, '_>) -> Outcome<'g> {
        let entries = Entries { images: step.state[IMAGES], grids: step.state[GRIDS] };
        let pool = self.pool(&step, entries);
        let Elbo { model, loss, memory, damage } = &self.elbo;
        let grow = model.decoder.automaton().expect("checked: the decoder is an automaton");
        let (spec, params, [noise, damage_key]) = (&self.pool, &step.params, step.keys);
        let [steps, shuffle] = draw::split_each(step.state[KEY]);
        let (n, z) = (step.sizes.each(), model.latent);
        let half = n / 2;
        let head = pool.head(half);
        let images = step.examples.expect("the task has examples");
        let images = Sym::concat(&[images.slice_axis(0, 0, half), head.images], 0);
        // The draws of the latents and of the cells that are updated do not use this child of the key.
        let pixels =
            model.likelihood.training_pixels(images, &|| draw::split(draw::split_at(noise, n * z + 1), n));
        let padded = model.padded(pixels);
        let eps = draw::normal(noise, &[n, z]).reshape(&[n, 1, z]);
        let latents = Latents::from_images(model, params, padded, eps);
        let grown = grow.start(&model.frame, latents.z.reshape(&[n, z]).slice_axis(0, 0, half));
        let pooled = match round_share(*damage, n * loss.samples) {
            0 => head.grids,
            grids => Damage { grids, key: damage_key }.apply(head.grids),
        };
        let cells = Sym::concat(&[grown, pooled], 0);
        // The draw of the latents does not use this child of the key.
        let keys = draw::split(draw::split_at(noise, n * z), n);
        let count = draw::randint(steps, &[], spec.steps_min as i32, spec.steps_max as i32);
        let automaton = grow.automaton(params).saving(*memory);
        // The steps that are always taken are a loop of their own, whose number of trips compilers know.
        let least = automaton.steps(Grids { cells, keys }, spec.steps_min);
        let most = spec.steps_max - 1 - spec.steps_min;
        let grown = automaton.steps_upto(least, count - spec.steps_min as f64, most);
        let scored = |grids| {
            let outputs = first_channels(grids, model.likelihood.outputs().channels);
            model.log_prob(padded, outputs)
        };
        let (grids, log_likelihood) = match spec.recovery_steps {
            0 => (grown.cells, scored(grown.cells)),
            steps => {
                // The damage of the grids from the pool does not use this child of the key.
                let damage = Damage { grids: n, key: draw::split_at(damage_key, n) };
                let damaged = Grids { cells: damage.apply(grown.cells), ..grown };
                let recovered = automaton.steps(damaged, steps).cells;
                (recovered, (scored(grown.cells) + scored(recovered)) * 0.5)
            }
        };
        let value = loss.from_latents(&latents, log_likelihood.reshape(&[n, 1]), loss.at(&step));
        let next = move |healthy| {
            let Entries { images, grids } = pool.after(Entries { images, grids }, shuffle, healthy);
            vec![(IMAGES.to_string(), images), (GRIDS.to_string(), grids)]
        };
        let outcome = loss.counted(Outcome::new(value).with(KEY, shuffle), &step);
        Outcome { next: Some(Box::new(next)), ..outcome }
    }
}
