//! Checkpoints: a training run's whole state in one `.npz` file.
//!
//! Parameters have their names (`encoder.conv0.weight`, in the edges' layout), Adam's moments the same with `adam.m.`
//! and `adam.v.` before; `meta` is JSON text as bytes. A file with a final name is whole (`crate::files`); each array has a
//! checksum, which reading verifies.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
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
    /// Whether the checkpoint of a step is whole, as far as this process has seen: each file is read once at most.
    whole: BTreeMap<usize, bool>,
}

impl Store {
    /// The checkpoints of a run's folder, which nothing is written to yet.
    pub fn of(run: &Path, keep: usize) -> Store {
        Store { folder: run.join("checkpoints"), keep: keep.max(1), whole: BTreeMap::new() }
    }

    /// Makes the folder ready for a run that goes on from a checkpoint of step `from`, or that begins. What is there of later
    /// steps, such as a damaged checkpoint that a resume has passed over, is not of this run: it gets another name, so that
    /// it is never taken for the run's newest.
    ///
    /// # Errors
    /// When the folder cannot be made or a file in it cannot be renamed.
    pub fn begin(&mut self, from: Option<usize>) -> Result<()> {
        fs::create_dir_all(&self.folder).with_context(|| format!("cannot make {}", self.folder.display()))?;
        files::remove_drafts(&self.folder);
        let later = self.steps()?.into_iter().filter(|step| from.is_none_or(|from| *step > from));
        let mut later: Vec<PathBuf> = later.map(|step| self.path(step)).collect();
        if from.is_none() {
            later.extend(Some(self.best()).filter(|path| path.exists()));
        }
        for path in later {
            let aside = path.with_extension("npz.aside");
            fs::rename(&path, &aside).with_context(|| format!("cannot rename {}", path.display()))?;
            let step = from.unwrap_or(0);
            log::warn!("the run goes on from step {step}: {} is now {}", path.display(), aside.display());
        }
        self.whole = from.into_iter().map(|step| (step, true)).collect();
        Ok(())
    }

    fn path(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step:08}.npz"))
    }

    fn best(&self) -> PathBuf {
        self.folder.join("best.npz")
    }

    /// Steps that have a checkpoint, lowest first; none if there is no folder yet.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn steps(&self) -> Result<Vec<usize>> {
        let at = || format!("cannot read {}", self.folder.display());
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(at)?,
        };
        let mut steps = Vec::new();
        for entry in entries {
            let name = entry.with_context(at)?.file_name();
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
    pub fn save(&mut self, checkpoint: &Checkpoint, best: bool) -> Result<()> {
        let step = checkpoint.meta.step;
        let path = self.path(step);
        checkpoint.save(&path)?;
        self.whole.insert(step, true);
        if best {
            files::link(&path, &self.best()).context("cannot keep the best checkpoint")?;
        }
        self.prune(step)
    }

    /// Deletes the checkpoints before the newest `keep` whole ones, of which the one just saved, of step `saved`, is the
    /// first. What is damaged among these stays and does not count; nothing of a later step is touched.
    fn prune(&mut self, saved: usize) -> Result<()> {
        let mut kept = 0;
        for step in self.steps()?.into_iter().rev().filter(|step| *step <= saved) {
            if kept == self.keep {
                let _ = fs::remove_file(self.path(step));
            } else if self.is_whole(step) {
                kept += 1;
            }
        }
        Ok(())
    }

    /// Whether a checkpoint is whole. Of one that is not, a warning tells once.
    fn is_whole(&mut self, step: usize) -> bool {
        let path = self.path(step);
        *self.whole.entry(step).or_insert_with(|| told_if_damaged(path).is_some())
    }

    /// The newest checkpoint of the steps' that is whole, with its file. Those that are damaged are passed over with a warning.
    fn newest(&self) -> Result<Option<(PathBuf, Checkpoint)>> {
        Ok(self.steps()?.into_iter().rev().find_map(|step| told_if_damaged(self.path(step))))
    }

    /// The newest checkpoint that is whole; none if the run was stopped before it made its first. One that is damaged is
    /// passed over with a warning, and then the best one may be the newest that is left.
    ///
    /// # Errors
    /// When there are checkpoints and all are damaged.
    pub fn latest(&self) -> Result<Option<Checkpoint>> {
        let newest = self.newest()?;
        let last = self.steps()?.pop();
        if newest.as_ref().is_some_and(|(_, found)| Some(found.meta.step) == last) {
            return Ok(newest.map(|(_, found)| found));
        }
        let best = Some(self.best()).filter(|path| path.exists());
        if last.is_none() && best.is_none() {
            return Ok(None);
        }
        let best = best.and_then(told_if_damaged);
        let found = [best, newest].into_iter().flatten().max_by_key(|(_, found)| found.meta.step);
        found.map(|(_, found)| Some(found)).ok_or_else(|| self.nothing_whole())
    }

    fn nothing_whole(&self) -> anyhow::Error {
        anyhow!("{} has no whole checkpoint", self.folder.display())
    }
}

/// A checkpoint with its file, if it is whole; a warning if not.
fn told_if_damaged(path: PathBuf) -> Option<(PathBuf, Checkpoint)> {
    match Checkpoint::load(&path) {
        Ok(checkpoint) => Some((path, checkpoint)),
        Err(error) => {
            log::warn!("{error:#}; it is passed over");
            None
        }
    }
}

/// What a run's results come from, and its file: the best checkpoint if there is one, else the newest. One that is damaged
/// is passed over with a warning.
///
/// # Errors
/// When the run has none that is whole.
pub fn chosen(run: &Path) -> Result<(PathBuf, Checkpoint)> {
    let store = Store::of(run, 1);
    let best = Some(store.best()).filter(|path| path.exists());
    if best.is_none() && store.steps()?.is_empty() {
        bail!("{} has no checkpoint", store.folder.display());
    }
    let best_or_newest = match best.and_then(told_if_damaged) {
        None => store.newest()?,
        best => best,
    };
    best_or_newest.ok_or_else(|| store.nothing_whole())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(step: usize) -> Checkpoint {
        let model = serde_json::Value::Null;
        let meta = Meta { version: 1, model, step, data_key: [0, 1], data_crc: 7, best: None };
        Checkpoint { meta, arrays: vec![("count".into(), Array::new(&[64], &[step as u32; 64]))] }
    }

    /// A store that goes on from a step, in whose folder checkpoints of these steps are.
    fn store(run: &Path, steps: &[usize], keep: usize) -> Store {
        let mut store = Store::of(run, 100);
        store.begin(None).unwrap();
        steps.iter().for_each(|step| store.save(&checkpoint(*step), false).unwrap());
        Store::of(run, keep)
    }

    fn damage(path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn the_checkpoint_just_saved_stays_though_later_ones_were_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = store(folder.path(), &[2, 4, 6, 8], 1);
        damage(&store.path(6));
        damage(&store.path(8));
        let found = store.latest().unwrap().unwrap();
        assert_eq!(found.meta.step, 4);
        // Nothing has changed so far: whoever asks may still be refused.
        assert_eq!(store.steps().unwrap(), [2, 4, 6, 8]);
        store.begin(Some(4)).unwrap();
        store.save(&checkpoint(5), false).unwrap();
        assert_eq!(store.steps().unwrap(), [5]);
        assert_eq!(store.latest().unwrap().unwrap().meta.step, 5);
        assert!(store.folder.join("step-00000008.npz.aside").exists());
    }

    #[test]
    fn what_is_damaged_takes_no_place_among_those_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = store(folder.path(), &[2, 4, 6, 8], 3);
        damage(&store.path(6));
        store.begin(Some(8)).unwrap();
        store.save(&checkpoint(10), false).unwrap();
        assert_eq!(store.steps().unwrap(), [4, 6, 8, 10]);
        // Each file is looked at once: what is damaged later is not seen, and what was damaged stays so.
        damage(&store.path(4));
        store.save(&checkpoint(12), false).unwrap();
        assert_eq!(store.steps().unwrap(), [8, 10, 12]);
    }

    #[test]
    fn the_best_serves_where_all_that_is_newer_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = store(folder.path(), &[2], 5);
        store.begin(Some(2)).unwrap();
        store.save(&checkpoint(4), true).unwrap();
        store.save(&checkpoint(6), false).unwrap();
        // A copy, as on a file system without links.
        let bytes = fs::read(store.best()).unwrap();
        fs::remove_file(store.best()).unwrap();
        fs::write(store.best(), bytes).unwrap();
        damage(&store.path(4));
        damage(&store.path(6));
        assert_eq!(store.latest().unwrap().unwrap().meta.step, 4);
        assert_eq!(chosen(folder.path()).unwrap().0, store.best());
        damage(&store.best());
        assert_eq!(store.latest().unwrap().unwrap().meta.step, 2);
        assert_eq!(chosen(folder.path()).unwrap().0, store.path(2));
        damage(&store.path(2));
        let error = chosen(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no whole checkpoint"), "{error}");
        assert!(store.latest().is_err());
    }

    #[test]
    fn a_run_without_checkpoints_has_none_and_asking_makes_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Store::of(folder.path(), 1).latest().unwrap().is_none());
        assert!(chosen(folder.path()).unwrap_err().to_string().contains("has no checkpoint"));
        assert!(!folder.path().join("checkpoints").exists());
    }
}
