//! A run's state on the devices: how it begins, and how it goes into checkpoints and comes back.

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::checkpoint::{Checkpoint, keys_array};
use super::order::replica_key;
use super::pool_run::PoolRun;
use super::step::{MOMENT_PREFIXES, Spread, StepSpec};
use crate::engine::array::Array;
use crate::engine::random::Key;
use crate::engine::runtime::{Buffers, Mesh};
use crate::engine::shape::DType;
use crate::nn::params::{Leaf, arrange, init};

/// The state, in the order of the train program's inputs.
pub struct State {
    pub buffers: Vec<Buffers>,
    spec: StepSpec,
    leaves: Vec<Leaf>,
}

impl State {
    /// The state of a run that begins: initial values, moments of zero, a pool of nothing.
    ///
    /// # Errors
    /// When a device fails.
    pub fn fresh(spec: &StepSpec, mesh: &Mesh, model_key: Key) -> Result<State> {
        let leaves = spec.model.leaves();
        let mut buffers = Vec::new();
        for (leaf, values) in leaves.iter().zip(init(&leaves, model_key)) {
            buffers.push(mesh.replicate(&leaf.to_inner(&values))?);
        }
        for entry in &spec.state()[leaves.len()..] {
            buffers.push(mesh.replicate(&match entry.shape.dtype {
                DType::Pred => Array::truth(true),
                _ => Array::zeros(&entry.shape),
            })?);
        }
        Ok(State { buffers, spec: spec.clone(), leaves })
    }

    /// The state of a checkpoint but for its pool, which `pool` puts in place. Replicas whose number has changed get the
    /// keys with which they would stand at this step, had there been as many from the chunk's beginning.
    ///
    /// # Errors
    /// When the checkpoint is of another model or other data, or lacks a part.
    pub fn restored(
        spec: &StepSpec,
        mesh: &Mesh,
        checkpoint: Checkpoint,
        seed_data: Key,
        pool: Option<&mut PoolRun>,
    ) -> Result<State> {
        let Checkpoint { meta, mut arrays } = checkpoint;
        ensure!(meta.model == spec.model, "the checkpoint is of another model: {:?}", meta.model);
        let leaves = spec.model.leaves();
        let mut take = |name: &str| {
            let at = arrays.iter().position(|(n, _)| n == name);
            at.map(|at| arrays.swap_remove(at).1).ok_or_else(|| anyhow!("the checkpoint has no {name}"))
        };
        let (count, keys) = (take("count")?, take("key")?);
        let pooled = match &pool {
            Some(_) => Some([take("pool.key")?, take("pool.images")?, take("pool.grids")?]),
            None => None,
        };
        let mut buffers = Vec::new();
        for prefix in ["", MOMENT_PREFIXES[0], MOMENT_PREFIXES[1]] {
            let mut part = Vec::new();
            arrays.retain(|(name, array)| {
                let own = match MOMENT_PREFIXES.iter().find(|p| name.starts_with(**p)) {
                    Some(found) => *found == prefix,
                    None => prefix.is_empty(),
                };
                if own {
                    part.push((name[prefix.len()..].to_string(), array.clone()));
                }
                !own
            });
            for (leaf, values) in leaves.iter().zip(arrange(&leaves, part)?) {
                buffers.push(mesh.replicate(&leaf.to_inner(&values))?);
            }
        }
        buffers.push(mesh.replicate(&count)?);
        let keys = match keys.dims() == [spec.replicas, 2] {
            true => keys.to_vec::<u32>().chunks_exact(2).map(|k| Key([k[0], k[1]])).collect(),
            false => keys_at(spec, seed_data, meta.step),
        };
        buffers.push(put_keys(mesh, &keys)?);
        if let (Some(pool), Some([key, images, grids])) = (pool, pooled) {
            buffers.push(mesh.replicate(&key)?);
            buffers.extend(pool.put(mesh, &images, &grids)?);
        }
        buffers.push(mesh.replicate(&Array::truth(true))?);
        Ok(State { buffers, spec: spec.clone(), leaves })
    }

    pub fn parameters(&self) -> &[Buffers] {
        &self.buffers[..self.leaves.len()]
    }

    /// Replaces an entry.
    pub fn set(&mut self, name: &str, value: Buffers) {
        let at = self.spec.place_of(name);
        self.buffers[at] = value;
    }

    /// An entry, one array a replica.
    ///
    /// # Errors
    /// When a device fails.
    pub fn get(&self, name: &str) -> Result<Vec<Array>> {
        let entry = &self.spec.state()[self.spec.place_of(name)];
        let buffers = &self.buffers[self.spec.place_of(name)];
        match entry.spread {
            Spread::Same => Ok(vec![buffers.get(0)?]),
            Spread::Own => buffers.all(),
        }
    }

    /// Whether all was finite so far.
    ///
    /// # Errors
    /// When a device fails.
    pub fn healthy(&self) -> Result<bool> {
        Ok(self.buffers.last().context("the state ends with its health")?.get(0)?.bytes() == [1])
    }

    /// Each replica's key at the beginning of a chunk, and the pool's.
    ///
    /// # Errors
    /// When a device fails.
    pub fn enter_chunk(&mut self, mesh: &Mesh, seed_data: Key, chunk: usize) -> Result<()> {
        let keys = keys_at(&self.spec, seed_data, chunk * self.spec.chunk);
        self.set("key", put_keys(mesh, &keys)?);
        if self.spec.pool.is_some() {
            let key = Array::new(&[2], &seed_data.split_at(chunk as u64).0);
            self.set("pool.key", mesh.replicate(&key)?);
        }
        Ok(())
    }

    /// Everything under its name in a checkpoint, in the edges' layout.
    ///
    /// # Errors
    /// When a device fails.
    pub fn arrays(&self, pool: Option<(&PoolRun, usize)>) -> Result<Vec<(String, Array)>> {
        let mut arrays = Vec::new();
        let parts = self.buffers.chunks(self.leaves.len());
        for (prefix, part) in ["", MOMENT_PREFIXES[0], MOMENT_PREFIXES[1]].iter().zip(parts) {
            for (leaf, buffers) in self.leaves.iter().zip(part) {
                arrays.push((format!("{prefix}{}", leaf.name), leaf.to_edge(&buffers.get(0)?)));
            }
        }
        let keys: Result<Vec<[u32; 2]>> = self.get("key")?.iter().map(words).collect();
        arrays.push(("count".into(), self.get("count")?.swap_remove(0)));
        arrays.push(("key".into(), keys_array(&keys?)));
        if let Some((pool, step)) = pool {
            let [images, grids] = pool.in_order(self, step)?;
            arrays.push(("pool.key".into(), self.get("pool.key")?.swap_remove(0)));
            arrays.push(("pool.images".into(), images));
            arrays.push(("pool.grids".into(), grids));
        }
        Ok(arrays)
    }
}

/// The two words of a key.
///
/// # Errors
/// When the array is none.
pub fn words(key: &Array) -> Result<[u32; 2]> {
    match key.to_vec::<u32>().try_into() {
        Ok(words) => Ok(words),
        Err(_) => bail!("a key is two words, not {}", key.shape()),
    }
}

/// The replicas' keys before a step: those of its chunk, split as often as steps were made since.
fn keys_at(spec: &StepSpec, seed_data: Key, step: usize) -> Vec<Key> {
    let key = |r| {
        let first = replica_key(seed_data, step / spec.chunk, spec.replicas, r);
        (0..step % spec.chunk).fold(first, |key, _| key.split_at(0))
    };
    (0..spec.replicas).map(key).collect()
}

fn put_keys(mesh: &Mesh, keys: &[Key]) -> Result<Buffers> {
    mesh.shard(&keys.iter().map(|k| Array::new(&[2], &k.0)).collect::<Vec<_>>())
}
