//! Checkpoints: a training run's whole state in one `.npz` file.
//!
//! Parameters have their names (`encoder.conv0.weight`, in the checkpoint layout). Adam's moments have the same names after
//! `adam.m.` and `adam.v.`. `meta` is JSON text as bytes. A file with a final name is complete (`crate::files`). Each array has
//! a checksum, which reading verifies.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::engine::array::Array;
use crate::error::{Error, Tag};
use crate::files::{self, Draft};
use crate::nn::weights::npz;

/// The entry of a checkpoint that is no array of the state.
pub(super) const META: &str = "meta";

/// A checkpoint's metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Version of the format.
    pub version: u32,
    /// The run's description of its model.
    pub model: serde_json::Value,
    /// Number of gradient steps taken.
    pub step: usize,
    /// The data key of the chunk that the next step belongs to.
    pub data_key: [u32; 2],
    /// CRC-32 of the training set's pixels.
    pub data_crc: u32,
    /// Best evaluation so far. The name in files is that of their first version.
    #[serde(rename = "best_iwelbo")]
    pub best: Option<f64>,
}

/// The whole state of a training run.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Everything but the arrays.
    pub meta: Meta,
    /// Parameters, moments and other arrays, by name.
    pub arrays: Vec<(String, Array)>,
}

impl Checkpoint {
    /// Writes the file, completely or not at all.
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
    /// Returns the checkpoints in a run's folder. Keeps `keep` of them, at least one, besides the best. Writes nothing yet.
    pub fn in_run(run: &Path, keep: usize) -> Store {
        Store { folder: run.join("checkpoints"), keep: keep.max(1), whole: BTreeMap::new() }
    }

    /// Checks that the folder can be written to and has room for the checkpoints of a run: `saves` of them at most, of
    /// `bytes` each.
    ///
    /// # Errors
    /// When the folder cannot be written to or has too little room.
    pub fn check_room(&self, bytes: usize, saves: usize) -> Result<()> {
        fs::create_dir_all(&self.folder).with_context(|| format!("cannot make {}", self.folder.display()))?;
        let checked = self.has_room(bytes, saves);
        if checked.is_err() {
            // Fails where there are checkpoints.
            let _ = fs::remove_dir(&self.folder);
        }
        checked
    }

    fn has_room(&self, bytes: usize, saves: usize) -> Result<()> {
        drop(Draft::create(&self.path(0))?);
        let there = self.steps()?.len() + usize::from(self.best().exists());
        // Those to keep, the best one, and one that is being written before an old one goes.
        let to_come = saves.min((self.keep + 2).saturating_sub(there).max(1));
        let needed = (bytes as u64).saturating_mul(to_come as u64);
        let Some(free) = files::free_space(&self.folder).filter(|free| *free < needed) else { return Ok(()) };
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let problem = format!(
            "{} has {} MiB free, and {to_come} checkpoints of {} MiB are to come: make room, keep fewer checkpoints, or \
             name another folder",
            self.folder.display(),
            mib(free),
            mib(bytes as u64)
        );
        Err(io::Error::new(ErrorKind::StorageFull, problem).into())
    }

    /// Prepares the folder for a run that starts, or that resumes from the checkpoint of step `from`. Renames checkpoints of later
    /// steps, such as a damaged one that the resume skipped, so that they are never taken for the newest of this run.
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

    /// Returns the steps that have a checkpoint, lowest first. Empty if there is no folder yet.
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

    /// Saves a checkpoint, also as the best one if `best`. Deletes old checkpoints beyond those to keep.
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

    /// Reports whether a checkpoint is whole. Logs a warning, once, if it is not.
    fn is_whole(&mut self, step: usize) -> bool {
        let path = self.path(step);
        *self.whole.entry(step).or_insert_with(|| load_or_warn(path).is_some())
    }

    /// Returns the newest whole checkpoint of a step, with its file. Skips damaged ones with a warning.
    fn newest(&self) -> Result<Option<(PathBuf, Checkpoint)>> {
        Ok(self.steps()?.into_iter().rev().find_map(|step| load_or_warn(self.path(step))))
    }

    /// Returns the newest whole checkpoint, or `None` if the run was stopped before its first. Skips damaged ones with a warning;
    /// the best checkpoint may then be the newest that is left.
    ///
    /// # Errors
    /// [`Error::Data`] when there are checkpoints and all are damaged.
    pub fn latest(&self) -> Result<Option<Checkpoint>> {
        self.newest_or_best().tag(Error::Data)
    }

    fn newest_or_best(&self) -> Result<Option<Checkpoint>> {
        let newest = self.newest()?;
        let last = self.steps()?.pop();
        if newest.as_ref().is_some_and(|(_, found)| Some(found.meta.step) == last) {
            return Ok(newest.map(|(_, found)| found));
        }
        let best = Some(self.best()).filter(|path| path.exists());
        if last.is_none() && best.is_none() {
            return Ok(None);
        }
        let best = best.and_then(load_or_warn);
        let found = [best, newest].into_iter().flatten().max_by_key(|(_, found)| found.meta.step);
        found.map(|(_, found)| Some(found)).ok_or_else(|| self.nothing_whole())
    }

    fn best_or_newest(&self) -> Result<(PathBuf, Checkpoint)> {
        let best = Some(self.best()).filter(|path| path.exists());
        if best.is_none() && self.steps()?.is_empty() {
            bail!("{} has no checkpoint", self.folder.display());
        }
        let found = match best.and_then(load_or_warn) {
            None => self.newest()?,
            best => best,
        };
        found.ok_or_else(|| self.nothing_whole())
    }

    fn nothing_whole(&self) -> anyhow::Error {
        anyhow!("{} has no whole checkpoint", self.folder.display())
    }
}

/// Loads a checkpoint, with its file. Logs a warning and returns `None` if it is damaged.
fn load_or_warn(path: PathBuf) -> Option<(PathBuf, Checkpoint)> {
    match Checkpoint::load(&path) {
        Ok(checkpoint) => Some((path, checkpoint)),
        Err(error) => {
            log::warn!("{error:#}; it is passed over");
            None
        }
    }
}

/// Returns the checkpoint that a run's results are computed from, with its file: the best one if there is one, else the newest.
/// Skips damaged ones with a warning.
///
/// # Errors
/// [`Error::Data`] when the run has none that is whole.
pub fn chosen(run: &Path) -> Result<(PathBuf, Checkpoint)> {
    Store::in_run(run, 1).best_or_newest().tag(Error::Data)
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
        let mut store = Store::in_run(run, 100);
        store.begin(None).unwrap();
        steps.iter().for_each(|step| store.save(&checkpoint(*step), false).unwrap());
        Store::in_run(run, keep)
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
        assert!(Store::in_run(folder.path(), 1).latest().unwrap().is_none());
        assert!(chosen(folder.path()).unwrap_err().to_string().contains("has no checkpoint"));
        assert!(!folder.path().join("checkpoints").exists());
    }
}
