//! Checkpoints: a training run's whole state in one `.npz` file.
//!
//! Parameters have their names (`encoder.conv0.weight`, in the edges' layout), Adam's moments the same with `adam.m.`
//! and `adam.v.` before; `meta` is JSON text as bytes. A file with a final name is whole (`crate::files`); each array has a
//! checksum, which reading verifies.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::engine::array::Array;
use crate::files;
use crate::nn::weights::npz;

const META: &str = "meta";

/// What a checkpoint says of itself besides its arrays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    pub version: u32,
    /// What the run says of its model.
    pub model: serde_json::Value,
    /// Gradient steps made.
    pub step: usize,
    /// The data key of the chunk that the next step belongs to.
    pub data_key: [u32; 2],
    /// CRC-32 of the training set's pixels.
    pub data_crc: u32,
    /// Best evaluation so far. The name in files is that of their first version.
    #[serde(rename = "best_iwelbo")]
    pub best: Option<f64>,
}

#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub meta: Meta,
    pub arrays: Vec<(String, Array)>,
}

impl Checkpoint {
    /// Writes the file so that it is either there as a whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written; the error names it.
    pub fn save(&self, path: &Path) -> Result<()> {
        let meta = serde_json::to_vec(&self.meta)?;
        let meta = Array::new(&[meta.len()], &meta);
        let named = self.arrays.iter().map(|(name, array)| (name.as_str(), array));
        npz::write(path, std::iter::once((META, &meta)).chain(named))
    }

    /// Reads and verifies a checkpoint.
    ///
    /// # Errors
    /// When the file is missing, cut, changed, or no checkpoint; the error names it.
    pub fn load(path: &Path) -> Result<Checkpoint> {
        read(path).with_context(|| format!("{} is no whole checkpoint", path.display()))
    }
}

fn read(path: &Path) -> Result<Checkpoint> {
    let mut arrays = npz::read(path)?;
    let at = arrays.iter().position(|(name, _)| name == META);
    let (_, meta) = arrays.remove(at.ok_or_else(|| anyhow!("it has no entry {META:?}"))?);
    let meta = serde_json::from_slice(meta.bytes()).context("its entry \"meta\" is not understood")?;
    Ok(Checkpoint { meta, arrays })
}

/// The checkpoints of a run: `step-00001000.npz` ... and `best.npz`.
pub struct Store {
    folder: PathBuf,
    keep: usize,
}

impl Store {
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(run: &Path, keep: usize) -> Result<Store> {
        let folder = run.join("checkpoints");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        files::remove_drafts(&folder);
        Ok(Store { folder, keep: keep.max(1) })
    }

    fn path(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step:08}.npz"))
    }

    /// Steps that have a checkpoint, lowest first.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn steps(&self) -> Result<Vec<usize>> {
        let mut steps = Vec::new();
        for entry in
            fs::read_dir(&self.folder).with_context(|| format!("cannot read {}", self.folder.display()))?
        {
            let name = entry?.file_name();
            let step: Option<usize> =
                name.to_str().and_then(|n| n.strip_prefix("step-")?.strip_suffix(".npz")?.parse().ok());
            steps.extend(step);
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Saves a checkpoint and deletes those that are too many; as the best one too, if it is.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, checkpoint: &Checkpoint, best: bool) -> Result<()> {
        let path = self.path(checkpoint.meta.step);
        checkpoint.save(&path)?;
        if best {
            files::link(&path, &self.folder.join("best.npz")).context("cannot keep the best checkpoint")?;
        }
        let steps = self.steps()?;
        for step in &steps[..steps.len().saturating_sub(self.keep)] {
            let _ = fs::remove_file(self.path(*step));
        }
        Ok(())
    }

    /// The newest checkpoint that is whole; none if the run was stopped before it made its first. One that is damaged is
    /// passed over with a warning.
    ///
    /// # Errors
    /// When there are checkpoints and all are damaged.
    pub fn latest(&self) -> Result<Option<Checkpoint>> {
        let steps = self.steps()?;
        if steps.is_empty() {
            return Ok(None);
        }
        for step in steps.into_iter().rev() {
            match Checkpoint::load(&self.path(step)) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(error) => log::warn!("{error:#}; trying the one before"),
            }
        }
        bail!("{} has no whole checkpoint", self.folder.display())
    }
}

/// The file that a run's results come from: the best checkpoint if there is one, else the newest.
///
/// # Errors
/// When the run has none.
pub fn chosen(run: &Path) -> Result<PathBuf> {
    let store = Store { folder: run.join("checkpoints"), keep: 1 };
    let best = store.folder.join("best.npz");
    if best.exists() {
        return Ok(best);
    }
    let step = store.steps()?.pop();
    step.map(|s| store.path(s)).ok_or_else(|| anyhow!("{} has no checkpoint", store.folder.display()))
}
