//! The pool of the non-doubling model: images and the grids that their automata ended with, from which half of a batch
//! goes on. What is kept alive so need not start from a latent, and learns to persist. The report, section 3.3.
//!
//! Every replica has a share of the pool, and takes from the head of its own: the first half a batch of entries start
//! its grids, and the first batch of entries is replaced by what came of it. Then the entries are shuffled.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::engine::ir::{Graph, Sym};
use crate::engine::random::graph::permutation;
use crate::engine::shape::{DType, Shape};
use crate::model::{Model, SIDE};

/// How the pool's entries change places after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Shuffle {
    /// The result of `global`, bit for bit, by moving only the entries that a replica needs next
    Exchange,
    /// One permutation of all replicas' entries, after an all-gather: what the report describes
    Global,
    /// Each replica permutes its own entries
    Local,
    /// Whole shares change places among the replicas: what the report's code does
    Replica,
}

impl Shuffle {
    /// The shuffle that gives the same numbers by permuting the entries themselves.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    /// Entries, over all replicas.
    pub size: usize,
    pub shuffle: Shuffle,
    /// Steps of the automaton in training: drawn from `steps_min` to `steps_max`, which is excluded.
    pub steps_min: usize,
    pub steps_max: usize,
}

impl PoolSpec {
    /// The report's.
    pub const REPORT: PoolSpec =
        PoolSpec { size: 1024, shuffle: Shuffle::Exchange, steps_min: 32, steps_max: 64 };

    /// Rows in which each of `replicas` holds its share. Where entries stay on the replica that made them, the shares'
    /// sizes vary about their mean, by far less than the room given here; whoever plans the places sees to the rest.
    pub fn rows(&self, replicas: usize) -> usize {
        let share = self.size / replicas;
        match self.shuffle {
            Shuffle::Exchange => self.size.min(share + 6 * (share as f64).sqrt().ceil() as usize),
            Shuffle::Global | Shuffle::Local | Shuffle::Replica => share,
        }
    }
}

/// Images (rows, 28, 28) of u8 and grids (rows, 32, 32, Z), on one replica.
#[derive(Clone, Copy)]
pub struct Entries<'g> {
    pub images: Sym<'g>,
    pub grids: Sym<'g>,
}

impl<'g> Entries<'g> {
    /// Shapes of so many entries.
    pub fn shapes(model: &Model, rows: usize) -> [Shape; 2] {
        [Shape::new(DType::U8, &[rows, 28, 28]), Shape::f32(&[rows, SIDE, SIDE, model.latent])]
    }

    fn map(self, f: impl Fn(Sym<'g>) -> Sym<'g>) -> Entries<'g> {
        Entries { images: f(self.images), grids: f(self.grids) }
    }

    fn zip(self, other: Entries<'g>, f: impl Fn(Sym<'g>, Sym<'g>) -> Sym<'g>) -> Entries<'g> {
        Entries { images: f(self.images, other.images), grids: f(self.grids, other.grids) }
    }
}

/// Where a replica's entries are in a step under `exchange`: rows of the inputs that [`super::exchange`] plans.
#[derive(Clone, Copy)]
pub struct Places<'g> {
    /// Rows to send to each replica: (replicas, half a batch).
    pub send: Sym<'g>,
    /// From which replica each taken entry comes: (half a batch).
    pub holder: Sym<'g>,
    /// Rows for the new entries: (batch).
    pub place: Sym<'g>,
}

/// A replica's share within a step.
pub struct Pool<'g> {
    pub entries: Entries<'g>,
    pub shuffle: Shuffle,
    pub replicas: usize,
    /// This replica's index.
    pub replica: Sym<'g>,
    /// Given under `exchange`.
    pub places: Option<Places<'g>>,
}

impl<'g> Pool<'g> {
    fn graph(&self) -> &'g Graph {
        self.replica.graph()
    }

    /// The first `count` entries.
    pub fn head(&self, count: usize) -> Entries<'g> {
        let Some(places) = self.places else {
            return self.entries.map(|x| x.slice_axis(0, 0, count));
        };
        let sent = self.entries.map(|x| x.take(places.send));
        if self.replicas == 1 {
            return sent.map(|x| x.reshape(&x.dims()[1..]));
        }
        let got = sent.map(|x| x.all_to_all(self.replicas));
        let order = self.graph().iota(&Shape::s32(&[count]), 0);
        let rows = places.holder * count as f64 + order;
        got.map(|x| x.reshape(&[&[self.replicas * count], &x.dims()[2..]].concat()).take(rows))
    }

    /// The pool after a step whose batch ended as `new`: these in the place of its first entries, then shuffled with
    /// `key`. Nothing changes where `healthy` does not hold.
    pub fn after(&self, new: Entries<'g>, key: Sym<'g>, healthy: Sym<'g>) -> Entries<'g> {
        if let Some(places) = self.places {
            let old = self.entries.map(|x| x.take(places.place));
            let kept = new.zip(old, |new, old| healthy.select(new, old));
            return self.entries.zip(kept, |x, kept| x.set_rows(places.place, kept));
        }
        let zero = self.replica.like(0.0);
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
