//! Plans the `exchange` shuffle on the host. Entries stay in the rows where they were written; a shuffle permutes the list of
//! their locations. A replica receives only the entries that it needs next.
//!
//! The plan depends on the key alone. It covers many steps at once and goes to the devices as three small arrays. Its results
//! equal those of `global` bit for bit, because each step takes the same entries.

use crate::engine::array::Array;
use crate::engine::random::Key;

/// The location of an entry: a row on a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The replica that holds the entry.
    pub replica: usize,
    /// The row on this replica.
    pub row: usize,
}

/// Sizes of a pool under the `exchange` shuffle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Replicas that share the pool.
    pub replicas: usize,
    /// Entries in a replica's share.
    pub share: usize,
    /// Rows that each replica has for entries.
    pub rows: usize,
    /// Images in a replica's batch. Half of them come from the pool.
    pub batch: usize,
}

/// Planned transfers of consecutive steps.
#[derive(Clone, Debug)]
pub struct Plan {
    sizes: Sizes,
    /// Locations of the entries in the pool's order (one share after the other), before each step and after the last one.
    locations: Vec<Vec<Location>>,
    steps: Vec<Step>,
}

/// A step's arrays, each with the values of one replica after the other.
#[derive(Clone, Debug, Default)]
struct Step {
    send: Vec<i32>,
    holder: Vec<i32>,
    place: Vec<i32>,
}

impl Sizes {
    /// Returns the locations of entries that fill the replicas' first rows in the pool's order.
    pub fn initial_locations(&self) -> Vec<Location> {
        let place = |i: usize| Location { replica: i / self.share, row: i % self.share };
        (0..self.replicas * self.share).map(place).collect()
    }
}

impl Plan {
    /// Plans up to `steps` steps of a pool whose entries are at `locations`. The plan is shorter if a replica runs out of rows.
    /// `key` is the key of the first step.
    pub fn new(sizes: Sizes, locations: &[Location], mut key: Key, steps: usize) -> Plan {
        let mut now = locations.to_vec();
        let mut taken = vec![vec![false; sizes.rows]; sizes.replicas];
        for place in locations {
            taken[place.replica][place.row] = true;
        }
        let left = |taken: &Vec<bool>| (0..sizes.rows).rev().filter(|row| !taken[*row]).collect();
        let mut free: Vec<Vec<usize>> = taken.iter().map(left).collect();
        let mut plan = Plan { sizes, locations: vec![now.clone()], steps: Vec::new() };
        while plan.steps.len() < steps {
            let Some(step) = plan.step(&mut now, &mut free) else { break };
            key = key.split_at(1);
            now = key.permutation(now.len()).iter().map(|i| now[*i as usize]).collect();
            plan.locations.push(now.clone());
            plan.steps.push(step);
        }
        plan
    }

    /// Plans how a step takes and replaces the shares' first entries. Returns `None` if a replica lacks rows for its new
    /// entries.
    fn step(&self, now: &mut [Location], free: &mut [Vec<usize>]) -> Option<Step> {
        let Sizes { replicas, share, batch, .. } = self.sizes;
        let taken = batch / 2;
        let head = |r: usize, i: usize| r * share + i;
        let mut step = Step { send: vec![0; replicas * replicas * taken], ..Step::default() };
        for (r, i) in (0..replicas).flat_map(|r| (0..taken).map(move |i| (r, i))) {
            let Location { replica, row } = now[head(r, i)];
            step.send[(replica * replicas + r) * taken + i] = row as i32;
            step.holder.push(replica as i32);
        }
        // Check before changing anything: a step that does not fit must leave the lists unchanged.
        let room =
            |r: usize| (0..replicas * batch).filter(|i| now[head(i / batch, i % batch)].replica == r).count();
        if (0..replicas).any(|r| free[r].len() + room(r) < batch) {
            return None;
        }
        for i in (0..replicas * batch).rev() {
            let Location { replica, row } = now[head(i / batch, i % batch)];
            free[replica].push(row);
        }
        for (r, i) in (0..replicas).flat_map(|r| (0..batch).map(move |i| (r, i))) {
            let row = free[r].pop()?;
            now[head(r, i)] = Location { replica: r, row };
            step.place.push(row as i32);
        }
        Some(step)
    }

    /// Returns the number of planned steps.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Reports whether no step is planned.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Returns the locations of the entries after a number of the planned steps.
    pub fn locations(&self, after: usize) -> &[Location] {
        &self.locations[after]
    }

    /// Returns each replica's inputs `send` (steps, replicas, batch / 2), `holder` (steps, batch / 2) and `place` (steps,
    /// batch). The arrays have `rows` steps. The planned steps begin at row `first`; the others are zero.
    pub fn arrays(&self, first: usize, rows: usize) -> [Vec<Array>; 3] {
        let Sizes { replicas, batch, .. } = self.sizes;
        let taken = batch / 2;
        let parts = |dims: &[usize], part: fn(&Step) -> &[i32]| {
            let size: usize = dims.iter().product();
            let of_replica = |r: usize| {
                let mut values = vec![0i32; rows * size];
                for (step, row) in self.steps.iter().zip(values.chunks_exact_mut(size.max(1)).skip(first)) {
                    row.copy_from_slice(&part(step)[r * size..(r + 1) * size]);
                }
                Array::new(&[&[rows], dims].concat(), &values)
            };
            (0..replicas).map(of_replica).collect()
        };
        [
            parts(&[replicas, taken], |s| &s.send),
            parts(&[taken], |s| &s.holder),
            parts(&[batch], |s| &s.place),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the entries that the replicas take in each step when all entries are permuted, and the final pool. Entries are
    /// numbers here.
    fn by_permutation(sizes: Sizes, mut key: Key, steps: usize) -> (Vec<Vec<u64>>, Vec<u64>) {
        let Sizes { replicas, share, batch, .. } = sizes;
        let mut pool: Vec<u64> = (0..(replicas * share) as u64).collect();
        let mut taken = Vec::new();
        for step in 0..steps as u64 {
            taken.push((0..replicas).flat_map(|r| pool[r * share..][..batch / 2].to_vec()).collect());
            for r in 0..replicas {
                for i in 0..batch {
                    pool[r * share + i] = 1_000_000 * (step + 1) + (r * batch + i) as u64;
                }
            }
            key = key.split_at(1);
            pool = key.permutation(pool.len()).iter().map(|i| pool[*i as usize]).collect();
        }
        (taken, pool)
    }

    /// Computes the results of `by_permutation` from the plan's arrays, with the rows of each replica.
    fn by_plan(sizes: Sizes, plan: &Plan) -> (Vec<Vec<u64>>, Vec<u64>) {
        let Sizes { replicas, share, rows, batch } = sizes;
        let taken = batch / 2;
        let mut held = vec![vec![u64::MAX; rows]; replicas];
        for i in 0..replicas * share {
            held[i / share][i % share] = i as u64;
        }
        let [send, holder, place] = plan.arrays(0, plan.len());
        let values = |arrays: &[Array]| arrays.iter().map(Array::to_vec::<i32>).collect::<Vec<_>>();
        let (send, holder, place) = (values(&send), values(&holder), values(&place));
        let mut all = Vec::new();
        for step in 0..plan.len() {
            let mut got = Vec::new();
            for r in 0..replicas {
                for i in 0..taken {
                    let from = holder[r][step * taken + i] as usize;
                    let row = send[from][(step * replicas + r) * taken + i] as usize;
                    got.push(held[from][row]);
                }
            }
            all.push(got);
            for r in 0..replicas {
                for i in 0..batch {
                    let row = place[r][step * batch + i] as usize;
                    held[r][row] = 1_000_000 * (step as u64 + 1) + (r * batch + i) as u64;
                }
            }
        }
        let last = plan.locations(plan.len()).iter().map(|p| held[p.replica][p.row]).collect();
        (all, last)
    }

    #[test]
    fn the_plan_takes_the_same_entries_as_a_global_shuffle() {
        for (replicas, share, batch) in [(1, 16, 4), (2, 32, 8), (4, 8, 8), (8, 128, 16)] {
            let rows = (replicas * share).min(share + 6 * (share as f64).sqrt().ceil() as usize);
            let sizes = Sizes { replicas, share, rows, batch };
            let plan = Plan::new(sizes, &sizes.initial_locations(), Key::new(7), 300);
            assert_eq!(plan.len(), 300, "{sizes:?}");
            assert_eq!(by_plan(sizes, &plan), by_permutation(sizes, Key::new(7), 300), "{sizes:?}");
        }
    }

    #[test]
    fn a_plan_ends_when_rows_run_out_and_is_right_until_then() {
        let sizes = Sizes { replicas: 2, share: 8, rows: 9, batch: 4 };
        let plan = Plan::new(sizes, &sizes.initial_locations(), Key::new(3), 50);
        assert!(plan.len() < 50);
        assert_eq!(by_plan(sizes, &plan), by_permutation(sizes, Key::new(3), plan.len()));
    }
}
