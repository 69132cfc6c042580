//! A run's state on the devices: its initial values, saving to checkpoints and restoring.

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::order::replica_key;
use super::program::{HEALTHY, KEY, StateEntry, TrainProgram};
use super::task::{Host, Sizes, Spread};
use crate::engine::array::Array;
use crate::engine::random::Key;
use crate::engine::runtime::{Buffers, Mesh};
use crate::engine::shape::DType;
use crate::nn::params::{AVERAGED, Leaf, arrange, init};
use crate::nn::tree::Tree;

/// The state, with the names and the order of the train program's inputs.
pub struct State {
    entries: Vec<StateEntry>,
    buffers: Tree<Buffers>,
    parameters: usize,
}

impl State {
    /// Creates the state of a new run: initial parameters, zeros for the optimiser, the task's initial values. `begun` has parameters to
    /// begin with, in the task's order and the checkpoint layout.
    ///
    /// # Errors
    /// When a device fails.
    pub fn fresh(
        program: &TrainProgram<'_>,
        mesh: &Mesh,
        model_key: Key,
        begun: Option<Vec<Array>>,
    ) -> Result<State> {
        let leaves = program.task.parameters();
        let own = program.task.state(&program.sizes);
        let mut initial: Tree<Array> = (leaves.iter().zip(begun.unwrap_or_else(|| init(&leaves, model_key))))
            .map(|(leaf, values)| (leaf.name.clone(), leaf.to_device_layout(&values)))
            .collect();
        initial.extend(own.into_iter().filter_map(|e| Some((e.name, e.initial?))));
        initial.set(HEALTHY, Array::boolean(true));
        let entries = program.state();
        let mut buffers = Tree::default();
        for entry in &entries {
            let value = initial.remove(&entry.name).unwrap_or_else(|| Array::zeros(&entry.shape));
            buffers.extend([(entry.name.clone(), mesh.replicate(&value)?)]);
        }
        Ok(State { entries, buffers, parameters: leaves.len() })
    }

    /// Restores the state from a checkpoint that was saved before a step. If the number of replicas has changed, each gets the
    /// key that it would have, had this number trained since the beginning of the chunk.
    ///
    /// # Errors
    /// When an array is missing or has another shape than the task's.
    pub fn restored(
        program: &TrainProgram<'_>,
        mesh: &Mesh,
        mut arrays: Tree<Array>,
        step: usize,
        seed_data: Key,
        host: &mut dyn Host,
    ) -> Result<State> {
        let sizes = &program.sizes;
        let entries = program.state();
        let mut restored: Tree<Buffers> = host.restore(mesh, &mut arrays)?.into_iter().collect();
        for entry in entries.iter().filter(|e| e.leaf.is_none() && e.name != HEALTHY) {
            if restored.get(&entry.name).is_some() {
                continue;
            }
            let whole = arrays.remove(&entry.name);
            let whole = whole.ok_or_else(|| anyhow!("the checkpoint has no {}", entry.name))?;
            let buffers = match entry.spread {
                Spread::Own if entry.name == KEY => put_keys(mesh, &keys(&whole, sizes, seed_data, step)?)?,
                Spread::Own => mesh.shard(&split_rows(&whole, entry, sizes.replicas)?)?,
                Spread::Same => {
                    ensure!(
                        *whole.shape() == entry.shape,
                        "the checkpoint's {} is {}, expected {}",
                        entry.name,
                        whole.shape(),
                        entry.shape
                    );
                    mesh.replicate(&whole)?
                }
            };
            restored.set(&entry.name, buffers);
        }
        let leaves: Vec<Leaf> = entries.iter().filter_map(|e| e.leaf.clone()).collect();
        for (leaf, values) in leaves.iter().zip(arrange(&leaves, arrays.into_iter().collect())?) {
            restored.set(&leaf.name, mesh.replicate(&leaf.to_device_layout(&values))?);
        }
        restored.set(HEALTHY, mesh.replicate(&Array::boolean(true))?);
        let mut take = |e: &StateEntry| {
            let found = restored.remove(&e.name);
            found.map(|b| (e.name.clone(), b)).ok_or_else(|| anyhow!("the checkpoint has no {}", e.name))
        };
        let buffers = entries.iter().map(&mut take).collect::<Result<_>>()?;
        Ok(State { entries, buffers, parameters: program.task.parameters().len() })
    }

    /// Returns the parameters in the task's order, in the device layout.
    pub fn parameters(&self) -> Vec<&Buffers> {
        self.buffers.values().take(self.parameters).collect()
    }

    /// Returns the parameters to evaluate, in the task's order and the device layout: their averages if the optimiser keeps them.
    pub fn evaluated(&self) -> Vec<&Buffers> {
        let averaged = |name: &str| self.buffers.get(&format!("{AVERAGED}{name}"));
        let raw = self.buffers.iter().take(self.parameters);
        raw.map(|(name, buffers)| averaged(name).unwrap_or(buffers)).collect()
    }

    /// Returns the bytes of a checkpoint of this state on a number of replicas.
    pub fn bytes(&self, replicas: usize) -> usize {
        let size = |entry: &StateEntry| match entry.spread {
            Spread::Same => entry.shape.bytes(),
            Spread::Own => entry.shape.bytes() * replicas,
        };
        self.entries.iter().map(size).sum()
    }

    /// Reports whether all buffers are present. After a failed device call they are not.
    pub fn is_complete(&self) -> bool {
        self.entries.iter().all(|entry| self.buffers.get(&entry.name).is_some())
    }

    /// Takes all buffers out of the state, in order. A call consumes them; pass its outputs to [`State::put_all`].
    pub fn take_all(&mut self) -> Vec<Buffers> {
        std::mem::take(&mut self.buffers).into_iter().map(|(_, b)| b).collect()
    }

    /// Puts buffers back, in the order of the state.
    pub fn put_all(&mut self, buffers: Vec<Buffers>) {
        self.buffers = self.entries.iter().map(|e| e.name.clone()).zip(buffers).collect();
    }

    /// Replaces an entry.
    pub fn set(&mut self, name: &str, value: Buffers) {
        self.buffers.set(name, value);
    }

    /// Copies an entry to the host: one array per replica, or one array if all replicas hold the same.
    ///
    /// # Errors
    /// When no entry has the name, or a device fails.
    pub fn get(&self, name: &str) -> Result<Vec<Array>> {
        let entry = self.entries.iter().find(|e| e.name == name);
        let (entry, buffers) = entry.zip(self.buffers.get(name)).with_context(|| {
            let names: Vec<&str> = self.entries.iter().map(|entry| entry.name.as_str()).collect();
            format!("the state has no {name}: there are {}", names.join(", "))
        })?;
        match entry.spread {
            Spread::Same => Ok(vec![buffers.replicated()?]),
            Spread::Own => buffers.all(),
        }
    }

    /// Reports whether all values were finite so far.
    ///
    /// # Errors
    /// When a device fails.
    pub fn healthy(&self) -> Result<bool> {
        Ok(self.get(HEALTHY)?[0].bytes() == [1])
    }

    /// Sets each replica's key to that of a chunk's first step.
    ///
    /// # Errors
    /// When a device fails.
    pub fn enter_chunk(&mut self, mesh: &Mesh, sizes: &Sizes, seed_data: Key, chunk: usize) -> Result<()> {
        let keys = keys_at(sizes, seed_data, chunk * sizes.chunk);
        self.set(KEY, put_keys(mesh, &keys)?);
        Ok(())
    }

    /// Returns the arrays of a checkpoint by name, in the checkpoint layout. Arrays from the host replace state entries of the
    /// same names.
    ///
    /// # Errors
    /// When a device fails.
    pub fn arrays(&self, host: &dyn Host, step: usize) -> Result<Tree<Array>> {
        let mut hosted: Tree<Array> = host.save(self, step)?.into_iter().collect();
        let mut arrays = Tree::default();
        for entry in self.entries.iter().filter(|e| e.name != HEALTHY) {
            let array = match (hosted.remove(&entry.name), &entry.leaf) {
                (Some(array), _) => array,
                (None, Some(leaf)) => leaf.to_checkpoint_layout(&self.get(&entry.name)?[0]),
                (None, None) if entry.name == KEY => {
                    let keys: Result<Vec<[u32; 2]>> = self.get(KEY)?.iter().map(words).collect();
                    keys_array(&keys?)
                }
                (None, None) => concatenate(entry, self.get(&entry.name)?)?,
            };
            arrays.extend([(entry.name.clone(), array)]);
        }
        Ok(arrays)
    }
}

/// Concatenates the replicas' rows.
fn concatenate(entry: &StateEntry, mut parts: Vec<Array>) -> Result<Array> {
    match entry.spread {
        Spread::Same => Ok(parts.swap_remove(0)),
        Spread::Own => Array::join_rows(&parts).with_context(|| format!("state {}", entry.name)),
    }
}

/// Splits an array into each replica's rows.
fn split_rows(whole: &Array, entry: &StateEntry, replicas: usize) -> Result<Vec<Array>> {
    let dims = &entry.shape.dims;
    let expected = dims.first().map(|first| [&[first * replicas], &dims[1..]].concat());
    ensure!(
        expected.as_deref() == Some(whole.dims()) && whole.shape().dtype == entry.shape.dtype,
        "the checkpoint's {} is {}, expected {replicas} parts of {}",
        entry.name,
        whole.shape(),
        entry.shape
    );
    whole.split_rows(replicas)
}

/// Returns the two words of a key.
///
/// # Errors
/// When the array is not a key.
pub fn words(key: &Array) -> Result<[u32; 2]> {
    match key.to_vec::<u32>().try_into() {
        Ok(words) => Ok(words),
        Err(_) => bail!("expected a key of two words, got {}", key.shape()),
    }
}

/// Returns the keys of all replicas as an array (replicas, 2).
fn keys_array(keys: &[[u32; 2]]) -> Array {
    Array::new(&[keys.len(), 2], keys.as_flattened())
}

/// Returns the replicas' keys from a checkpoint. If another number of replicas saved it, computes the keys from the seed.
fn keys(saved: &Array, sizes: &Sizes, seed_data: Key, step: usize) -> Result<Vec<Key>> {
    ensure!(saved.shape().dtype == DType::U32, "the checkpoint's {KEY} is {}", saved.shape());
    Ok(match saved.dims() == [sizes.replicas, 2] {
        true => saved.to_vec::<u32>().chunks_exact(2).map(|k| Key([k[0], k[1]])).collect(),
        false => keys_at(sizes, seed_data, step),
    })
}

/// Returns the replicas' keys before a step: those at the beginning of its chunk, split once per step since.
fn keys_at(sizes: &Sizes, seed_data: Key, step: usize) -> Vec<Key> {
    let key = |r| {
        let first = replica_key(seed_data, step / sizes.chunk, sizes.replicas, r);
        (0..step % sizes.chunk).fold(first, |key, _| key.split_at(0))
    };
    (0..sizes.replicas).map(key).collect()
}

fn put_keys(mesh: &Mesh, keys: &[Key]) -> Result<Buffers> {
    mesh.shard(&keys.iter().map(|k| Array::new(&[2], &k.0)).collect::<Vec<_>>())
}
