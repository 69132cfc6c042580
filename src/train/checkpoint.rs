//! Checkpoints: the complete state of a training run in one `.npz` file.
//!
//! Parameters are stored under their names (`encoder.conv0.weight`), in the checkpoint layout. Adam's moments are stored under
//! these names after `adam.m.` and `adam.v.`. `meta` is JSON text as bytes. A file with its final name is complete
//! (`crate::files`). Each array has a checksum, which reading verifies.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::metrics::Line;
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
    /// Description of the model, from [`RunOptions::model`](super::trainer::RunOptions::model).
    #[serde(deserialize_with = "crate::files::description")]
    pub model: serde_json::Value,
    /// Number of gradient steps taken.
    pub step: usize,
    /// Data key of the chunk that contains the next step.
    pub data_key: [u32; 2],
    /// CRC-32 of the training set's pixels.
    pub data_crc: u32,
    /// Best evaluation so far. Its name in files is that of the first file version.
    #[serde(rename = "best_iwelbo")]
    pub best: Option<f64>,
    /// The line of step [`Meta::step`] for the metrics, if an error has ended the run during the evaluation after this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unevaluated: Option<Line>,
}

/// The complete state of a training run.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The metadata.
    pub meta: Meta,
    /// Parameters, moments and other arrays, by name.
    pub arrays: Vec<(String, Array)>,
}

impl Checkpoint {
    /// Writes the file, completely or not at all.
    ///
    /// # Errors
    /// When the file cannot be written. The message names it.
    pub fn save(&self, path: &Path) -> Result<()> {
        let meta = serde_json::to_vec(&self.meta)?;
        let meta = Array::new(&[meta.len()], &meta);
        let named = self.arrays.iter().map(|(name, array)| (name.as_str(), array));
        npz::write(path, std::iter::once((META, &meta)).chain(named))
    }

    /// Reads and verifies a checkpoint.
    ///
    /// # Errors
    /// When the file is missing, truncated, changed or not a checkpoint. The message names it.
    pub fn load(path: &Path) -> Result<Checkpoint> {
        read(path).with_context(|| format!("{} is not an intact checkpoint", path.display()))
    }
}

fn read(path: &Path) -> Result<Checkpoint> {
    let mut arrays = npz::read(path)?;
    let at = arrays.iter().position(|(name, _)| name == META);
    let (_, meta) = arrays.remove(at.ok_or_else(|| anyhow!("it has no entry {META:?}"))?);
    let meta = serde_json::from_slice(meta.bytes()).context("cannot parse its entry \"meta\"")?;
    Ok(Checkpoint { meta, arrays })
}

/// The checkpoints of a run: `step-00001000.npz`, ... and `best.npz`.
pub struct Store {
    folder: PathBuf,
    keep: usize,
    /// Whether the checkpoint of a step is intact. Cached, so that each file is read at most once.
    intact: BTreeMap<usize, bool>,
}

impl Store {
    /// Returns the checkpoints in a run's folder, without writing anything. [`Store::save`] keeps the newest `keep` checkpoints,
    /// at least one, besides the best one.
    pub fn in_run(run: &Path, keep: usize) -> Store {
        Store { folder: run.join("checkpoints"), keep: keep.max(1), intact: BTreeMap::new() }
    }

    /// Checks that the folder can be written to and has space for a run's checkpoints: at most `saves` files of `bytes` bytes.
    ///
    /// # Errors
    /// When the folder cannot be written to or has too little space.
    pub fn check_room(&self, bytes: usize, saves: usize) -> Result<()> {
        files::create_within(&self.folder)?;
        let checked = self.has_room(bytes, saves);
        if checked.is_err() {
            // Fails if the folder contains checkpoints.
            let _ = fs::remove_dir(&self.folder);
        }
        checked
    }

    fn has_room(&self, bytes: usize, saves: usize) -> Result<()> {
        drop(Draft::create(&self.path(0))?);
        let there = self.steps()?.len() + usize::from(self.best().exists());
        // The kept ones, the best one, and the one that is written before an old one is deleted.
        let to_come = saves.min((self.keep + 2).saturating_sub(there).max(1));
        let needed = (bytes as u64).saturating_mul(to_come as u64);
        let Some(free) = files::free_space(&self.folder).filter(|free| *free < needed) else { return Ok(()) };
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let problem = format!(
            "{} has {} MiB free, and the run will write {to_come} checkpoints of {} MiB: free some space, keep fewer \
             checkpoints, or choose another folder",
            self.folder.display(),
            mib(free),
            mib(bytes as u64)
        );
        Err(io::Error::new(ErrorKind::StorageFull, problem).into())
    }

    /// Prepares the folder for a run that starts, or that resumes from the checkpoint of step `from`. Renames checkpoints of
    /// later steps, such as a damaged one that the resume skipped, so that they are never mistaken for this run's newest one.
    ///
    /// # Errors
    /// When the folder cannot be created or a file in it cannot be renamed.
    pub fn begin(&mut self, from: Option<usize>) -> Result<()> {
        files::create_within(&self.folder)?;
        files::remove_drafts(&self.folder);
        let later = self.steps()?.into_iter().filter(|step| from.is_none_or(|from| *step > from));
        let mut later: Vec<PathBuf> = later.map(|step| self.path(step)).collect();
        if from.is_none() {
            later.extend(self.best_there()?);
        }
        for path in later {
            let aside = path.with_extension("npz.aside");
            fs::rename(&path, &aside).with_context(|| format!("cannot rename {}", path.display()))?;
            let step = from.unwrap_or(0);
            log::warn!(
                "the run continues from step {step}: renamed {} to {}",
                path.display(),
                aside.display()
            );
        }
        self.intact = from.into_iter().map(|step| (step, true)).collect();
        Ok(())
    }

    fn path(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step:08}.npz"))
    }

    fn best(&self) -> PathBuf {
        self.folder.join("best.npz")
    }

    /// Returns the best checkpoint's file, if there is one. An error is not taken for its absence.
    fn best_there(&self) -> Result<Option<PathBuf>> {
        let path = self.best();
        let there = path.try_exists().with_context(|| format!("cannot read {}", path.display()))?;
        Ok(there.then_some(path))
    }

    /// Returns the steps that have a checkpoint, lowest first. Empty if the folder does not exist.
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
            // Only names as they are written here: `step-5.npz` is somebody's copy.
            steps.extend(step.filter(|step| self.path(*step).file_name() == Some(&name)));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Saves a checkpoint, also as the best one if `best` is set. Deletes old checkpoints beyond those to keep.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&mut self, checkpoint: &Checkpoint, best: bool) -> Result<()> {
        let step = checkpoint.meta.step;
        let path = self.path(step);
        let written = if best {
            // In this order: a checkpoint that knows the best score is only there if the best checkpoint is.
            checkpoint.save(&self.best()).and_then(|()| files::link(&self.best(), &path))
        } else {
            checkpoint.save(&path)
        };
        written.map_err(|error| self.with_free_space(error, checkpoint))?;
        self.intact.insert(step, true);
        self.prune(step)
    }

    /// Adds to the error of a full disk how much is missing.
    fn with_free_space(&self, error: anyhow::Error, checkpoint: &Checkpoint) -> anyhow::Error {
        let is_full = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::StorageFull)
        };
        let Some(free) = files::free_space(&self.folder).filter(|_| error.chain().any(is_full)) else {
            return error;
        };
        let needed: usize = checkpoint.arrays.iter().map(|(_, array)| array.bytes().len()).sum();
        error.context(format!(
            "{} has {} MiB free, and a checkpoint needs {}",
            self.folder.display(),
            free >> 20,
            needed.div_ceil(1 << 20)
        ))
    }

    /// Deletes the checkpoints that are older than the newest `keep` intact ones, counted from the one just saved, of step
    /// `saved`. Damaged ones among those kept stay and do not count. Later steps are not touched.
    fn prune(&mut self, saved: usize) -> Result<()> {
        let mut kept = 0;
        for step in self.steps()?.into_iter().rev().filter(|step| *step <= saved) {
            if kept == self.keep {
                let _ = fs::remove_file(self.path(step));
            } else if self.is_intact(step) {
                kept += 1;
            }
        }
        Ok(())
    }

    /// Reports whether a checkpoint is intact. Logs one warning if it is not.
    fn is_intact(&mut self, step: usize) -> bool {
        let intact = self.intact.get(&step).copied().unwrap_or_else(|| self.load(step).is_some());
        self.intact.insert(step, intact);
        intact
    }

    /// Loads the checkpoint of a step. Logs a warning and returns `None` if it is damaged, or the state of another step.
    fn load(&self, step: usize) -> Option<(PathBuf, Checkpoint)> {
        let (path, found) = load_or_warn(self.path(step))?;
        if found.meta.step != step {
            log::warn!("{} holds the state of step {}; skipped it", path.display(), found.meta.step);
            return None;
        }
        Some((path, found))
    }

    /// Returns the newest intact checkpoint of a step, with its file. Skips damaged ones with a warning.
    fn newest(&self) -> Result<Option<(PathBuf, Checkpoint)>> {
        Ok(self.steps()?.into_iter().rev().find_map(|step| self.load(step)))
    }

    /// Returns the newest intact checkpoint, or `None` if the run was stopped before its first one. Skips damaged ones with a
    /// warning. Falls back to the best checkpoint.
    ///
    /// # Errors
    /// [`Error::Data`] when checkpoints exist but all are damaged.
    pub fn latest(&self) -> Result<Option<Checkpoint>> {
        self.newest_or_best().tag(Error::Data)
    }

    fn newest_or_best(&self) -> Result<Option<Checkpoint>> {
        let newest = self.newest()?;
        let last = self.steps()?.pop();
        if newest.as_ref().is_some_and(|(_, found)| Some(found.meta.step) == last) {
            return Ok(newest.map(|(_, found)| found));
        }
        let best = self.best_there()?;
        if last.is_none() && best.is_none() {
            return Ok(None);
        }
        let best = best.and_then(load_or_warn);
        let found = [best, newest].into_iter().flatten().max_by_key(|(_, found)| found.meta.step);
        found.map(|(_, found)| Some(found)).ok_or_else(|| self.no_intact_checkpoint())
    }

    fn best_or_newest(&self) -> Result<(PathBuf, Checkpoint)> {
        let best = self.best_there()?;
        if best.is_none() && self.steps()?.is_empty() {
            bail!("{} has no checkpoint", self.folder.display());
        }
        let found = match best.and_then(load_or_warn) {
            None => self.newest()?,
            best => best,
        };
        found.ok_or_else(|| self.no_intact_checkpoint())
    }

    fn no_intact_checkpoint(&self) -> anyhow::Error {
        anyhow!("{} has no intact checkpoint", self.folder.display())
    }
}

/// Loads a checkpoint. Logs a warning and returns `None` if it is damaged.
fn load_or_warn(path: PathBuf) -> Option<(PathBuf, Checkpoint)> {
    match Checkpoint::load(&path) {
        Ok(checkpoint) => Some((path, checkpoint)),
        Err(error) => {
            log::warn!("{error:#}; skipped it");
            None
        }
    }
}

/// Returns the checkpoint that a run's results are computed from, with its file: the best one if it exists, else the newest.
/// Skips damaged ones with a warning.
///
/// # Errors
/// [`Error::Data`] when the run has no intact checkpoint.
pub fn chosen(run: &Path) -> Result<(PathBuf, Checkpoint)> {
    Store::in_run(run, 1).best_or_newest().tag(Error::Data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_folder_that_has_been_moved_away_is_not_made_anew() {
        let outer = tempfile::tempdir().unwrap();
        let run = outer.path().join("run");
        let mut store = Store::in_run(&run, 3);
        for error in [store.check_room(1, 1).unwrap_err(), store.begin(None).unwrap_err()] {
            assert!(format!("{error:#}").contains("run/checkpoints: No such file"), "{error:#}");
        }
        assert!(!run.exists());
        fs::create_dir(&run).unwrap();
        store.begin(None).unwrap();
        store.check_room(1, 1).unwrap();
    }

    fn checkpoint(step: usize) -> Checkpoint {
        let model = serde_json::Value::Null;
        let meta =
            Meta { version: 1, model, step, data_key: [0, 1], data_crc: 7, best: None, unevaluated: None };
        Checkpoint { meta, arrays: vec![("count".into(), Array::new(&[64], &[step as u32; 64]))] }
    }

    /// Returns a store after saving checkpoints of these steps.
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
    fn the_checkpoint_just_saved_is_kept_after_later_ones_were_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = store(folder.path(), &[2, 4, 6, 8], 1);
        damage(&store.path(6));
        damage(&store.path(8));
        let found = store.latest().unwrap().unwrap();
        assert_eq!(found.meta.step, 4);
        // Nothing has changed so far, because the run may still be refused.
        assert_eq!(store.steps().unwrap(), [2, 4, 6, 8]);
        store.begin(Some(4)).unwrap();
        store.save(&checkpoint(5), false).unwrap();
        assert_eq!(store.steps().unwrap(), [5]);
        assert_eq!(store.latest().unwrap().unwrap().meta.step, 5);
        assert!(store.folder.join("step-00000008.npz.aside").exists());
    }

    #[test]
    fn a_copy_under_another_name_is_not_the_newest_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = store(folder.path(), &[2, 4, 6], 3);
        for name in ["step-00000099.npz", "step-50.npz"] {
            fs::copy(store.path(2), store.folder.join(name)).unwrap();
        }
        assert_eq!(store.latest().unwrap().unwrap().meta.step, 6);
        store.begin(Some(6)).unwrap();
        assert_eq!(store.steps().unwrap(), [2, 4, 6]);
        assert!(
            store.folder.join("step-00000099.npz.aside").exists()
                && store.folder.join("step-50.npz").exists()
        );
    }

    #[test]
    fn damaged_checkpoints_do_not_count_as_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = store(folder.path(), &[2, 4, 6, 8], 3);
        damage(&store.path(6));
        store.begin(Some(8)).unwrap();
        store.save(&checkpoint(10), false).unwrap();
        assert_eq!(store.steps().unwrap(), [4, 6, 8, 10]);
        // Each file is read once: later damage is not noticed, and a damaged file is never read again.
        damage(&store.path(4));
        store.save(&checkpoint(12), false).unwrap();
        assert_eq!(store.steps().unwrap(), [8, 10, 12]);
    }

    #[test]
    fn the_best_checkpoint_is_used_when_all_newer_ones_are_damaged() {
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
        assert!(error.contains("no intact checkpoint"), "{error}");
        assert!(store.latest().is_err());
    }

    #[test]
    fn a_run_without_checkpoints_has_none_and_reading_creates_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Store::in_run(folder.path(), 1).latest().unwrap().is_none());
        assert!(chosen(folder.path()).unwrap_err().to_string().contains("has no checkpoint"));
        assert!(!folder.path().join("checkpoints").exists());
    }
}
