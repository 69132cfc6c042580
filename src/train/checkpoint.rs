//! Checkpoints: a training run's whole state in one `.npz` file.
//!
//! Parameters have their names (`encoder.conv0.weight`, in the edges' layout), Adam's moments the same with `adam.m.`
//! and `adam.v.` before; `meta` is JSON text as bytes. A file is written to the side, flushed, renamed, and its folder
//! flushed, so that one with a final name is whole; each array has a checksum, which reading verifies.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ndarray::{ArrayD, IxDyn};
use ndarray_npy::NpzWriter;
use serde::{Deserialize, Serialize};

use super::step::MOMENT_PREFIXES;
use crate::array::Array;
use crate::model::Model;
use crate::shape::DType;

const META: &str = "meta";

/// What a checkpoint says of itself besides its arrays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    pub version: u32,
    pub model: Model,
    /// Gradient steps made.
    pub step: usize,
    /// The data key of the chunk that the next step belongs to.
    pub data_key: [u32; 2],
    /// CRC-32 of the training set's pixels.
    pub data_crc: u32,
    /// Best test IWELBO so far, in nats.
    pub best_iwelbo: Option<f64>,
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
        let aside = path.with_extension("npz.part");
        self.write(&aside).with_context(|| format!("cannot write {}", aside.display()))?;
        publish(&aside, path)
    }

    fn write(&self, path: &Path) -> Result<()> {
        let mut writer = NpzWriter::new(BufWriter::with_capacity(1 << 20, File::create(path)?));
        let meta = serde_json::to_vec(&self.meta)?;
        writer.add_array(META, &ndarray::Array1::from(meta))?;
        for (name, array) in &self.arrays {
            let dims = IxDyn(array.dims());
            match array.shape().dtype {
                DType::F32 => {
                    writer.add_array(name, &ArrayD::from_shape_vec(dims, array.to_vec::<f32>())?)?
                }
                DType::U32 => {
                    writer.add_array(name, &ArrayD::from_shape_vec(dims, array.to_vec::<u32>())?)?
                }
                DType::S32 => {
                    writer.add_array(name, &ArrayD::from_shape_vec(dims, array.to_vec::<i32>())?)?
                }
                DType::U8 => writer.add_array(name, &ArrayD::from_shape_vec(dims, array.to_vec::<u8>())?)?,
                other => bail!("array {name} of {other} has no place in a checkpoint"),
            };
        }
        let mut out = writer.finish()?;
        out.flush()?;
        out.get_ref().sync_all()?;
        Ok(())
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
    let mut arrays = read_npz(path)?;
    let at = arrays.iter().position(|(name, _)| name == META);
    let (_, meta) = arrays.remove(at.ok_or_else(|| anyhow!("it has no entry {META:?}"))?);
    let meta = serde_json::from_slice(meta.bytes()).context("its entry \"meta\" is not understood")?;
    Ok(Checkpoint { meta, arrays })
}

/// Every array of an `.npz` file, its checksum verified.
///
/// # Errors
/// When the file is no `.npz`, is cut or changed, or holds an array of a type that is not used here.
pub fn read_npz(path: &Path) -> Result<Vec<(String, Array)>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut zip = zip::ZipArchive::new(BufReader::new(file))?;
    let mut arrays = Vec::new();
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i)?;
        let name = entry.name()?.trim_end_matches(".npy").to_string();
        ensure!(
            entry.compression() == zip::CompressionMethod::Stored,
            "{name} is compressed: write it with np.savez"
        );
        ensure!(entry.size() <= length, "{name} claims {} bytes in a file of {length}", entry.size());
        // Reading to the end verifies the entry's checksum.
        let mut bytes = Vec::with_capacity(entry.size() as usize);
        entry.read_to_end(&mut bytes).with_context(|| format!("{name} was changed"))?;
        arrays.push((name.clone(), read_npy(&bytes).with_context(|| name)?));
    }
    Ok(arrays)
}

/// An array of one of the types that checkpoints have, from the bytes of a `.npy` file.
fn read_npy(bytes: &[u8]) -> Result<Array> {
    use ndarray_npy::ReadNpyExt;
    // The header's text is within the first bytes; the sizes that it claims are held against what there is.
    let header = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]).into_owned();
    let elements = claimed_elements(&header).ok_or_else(|| anyhow!("no .npy header"))?;
    ensure!(elements <= bytes.len(), "a header of {elements} elements over {} bytes", bytes.len());
    macro_rules! of {
        ($t:ty) => {{
            let array = ArrayD::<$t>::read_npy(bytes)?;
            let dims = array.shape().to_vec();
            let data: Vec<$t> = array.as_standard_layout().iter().copied().collect();
            Array::new(&dims, &data)
        }};
    }
    for (code, dtype) in [("f4", DType::F32), ("u4", DType::U32), ("i4", DType::S32), ("u1", DType::U8)] {
        if header.contains(code) {
            return Ok(match dtype {
                DType::F32 => of!(f32),
                DType::U32 => of!(u32),
                DType::S32 => of!(i32),
                _ => of!(u8),
            });
        }
    }
    bail!("an element type that is not f4, u4, i4 or u1")
}

/// Product of the sizes in a header's `'shape': (2, 3)`.
fn claimed_elements(header: &str) -> Option<usize> {
    let after = header.split_once("'shape': (")?.1;
    let sizes = after.split_once(')')?.0;
    sizes
        .split(',')
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .try_fold(1usize, |n, s| n.checked_mul(s.parse().ok()?))
}

/// Gives a finished file its name, for good: also after a loss of power.
///
/// # Errors
/// When the file system refuses; the error names the file.
pub fn publish(aside: &Path, path: &Path) -> Result<()> {
    fs::rename(aside, path)
        .with_context(|| format!("cannot rename {} to {}", aside.display(), path.display()))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|f| f.sync_all())
        .with_context(|| format!("cannot flush {}", folder.display()))
}

/// Whether an array of a checkpoint is a parameter, and not a part of the training's state.
pub fn is_parameter(name: &str) -> bool {
    let state = MOMENT_PREFIXES.iter().chain(&["pool."]).any(|prefix| name.starts_with(prefix));
    !state && ![META, "count", "key"].contains(&name)
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
            let aside = self.folder.join("best.npz.part");
            let _ = fs::remove_file(&aside);
            // A second name costs no space; a file system without links gets a copy.
            fs::hard_link(&path, &aside)
                .or_else(|_| fs::copy(&path, &aside).map(|_| ()))
                .context("cannot keep the best checkpoint")?;
            publish(&aside, &self.folder.join("best.npz"))?;
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

/// An array of keys for all replicas, (replicas, 2).
pub fn keys_array(keys: &[[u32; 2]]) -> Array {
    let words: Vec<u32> = keys.iter().flatten().copied().collect();
    Array::new(&[keys.len(), 2], &words)
}
