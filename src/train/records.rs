//! What a run writes to its folder. With several processes, process 0 alone writes.

use anyhow::{Context, Result, ensure};

use super::checkpoint::{Checkpoint, Meta, Store};
use super::folder::RunFolder;
use super::metrics::{Line, Metrics};
use super::options::RunOptions;
use crate::engine::array::Array;
use crate::engine::runtime::Mesh;
use crate::engine::shape::Shape;

/// The files of a run.
pub struct Records {
    /// Keeps the folder locked.
    _folder: RunFolder,
    pub metrics: Metrics,
    store: Store,
}

impl Records {
    /// Opens the files of a run that starts, or that resumes from a checkpoint. `bytes` is the size of a checkpoint.
    ///
    /// # Errors
    /// When the folder lacks space for the checkpoints, or a file cannot be written.
    pub fn begin(
        folder: RunFolder,
        options: &RunOptions,
        resumed: Option<&Meta>,
        bytes: usize,
    ) -> Result<Records> {
        let step = resumed.map_or(0, |meta| meta.step);
        let mut store = Store::in_run(folder.path(), options.keep);
        let saves = options.steps.saturating_sub(step).div_ceil(options.checkpoint_every.max(1));
        if options.checkpoint_every > 0 {
            store.check_room(bytes, saves)?;
        }
        // The first write: all checks have passed.
        let unevaluated = resumed.is_some_and(|meta| meta.unevaluated.is_some());
        let metrics = Metrics::open(folder.path(), step.saturating_sub(usize::from(unevaluated)))?;
        store.begin(resumed.map(|meta| meta.step))?;
        Ok(Records { _folder: folder, metrics, store })
    }

    /// Writes lines to the metrics.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&mut self, lines: &[Line]) -> Result<()> {
        lines.iter().try_for_each(|line| self.metrics.write(line))
    }

    /// Saves a checkpoint.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&mut self, checkpoint: &Checkpoint, best: bool) -> Result<()> {
        self.store.save(checkpoint, best)
    }
}

/// Gives all processes the checkpoint that process 0 has read, if any. The others need not see its file.
///
/// # Errors
/// When a device or the processes' store fails.
pub fn shared(mesh: &Mesh, own: Option<Checkpoint>) -> Result<Option<Checkpoint>> {
    if mesh.is_local() {
        return Ok(own);
    }
    let described = mesh.lead(|| {
        Ok(own.as_ref().map(|Checkpoint { meta, arrays }| {
            let named = arrays.iter().map(|(name, array)| (name.clone(), array.shape().clone()));
            (meta.clone(), named.collect::<Vec<(String, Shape)>>())
        }))
    })?;
    let Some((meta, described)) = described else { return Ok(None) };
    let bytes = own.map(|own| own.arrays.iter().flat_map(|(_, array)| array.bytes()).copied().collect());
    let bytes = mesh.share(bytes)?;
    let mut rest = bytes.as_slice();
    let mut arrays = Vec::new();
    for (name, shape) in described {
        let (own, left) = rest.split_at_checked(shape.bytes()).context("the checkpoint came incomplete")?;
        arrays.push((name, Array::from_bytes(shape, own.to_vec())?));
        rest = left;
    }
    ensure!(rest.is_empty(), "the checkpoint came with {} bytes too many", rest.len());
    Ok(Some(Checkpoint { meta, arrays }))
}
