//! Reads and writes `.npz` files: zip archives of named `.npy` records with checksums. Checkpoints are `.npz` files. Compressed
//! entries are read but never written.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::engine::array::Array;
use crate::engine::npy::{self, Record};
use crate::files::{self, Draft};

/// A file may unpack to this many times its size plus [`EXPANSION_ALLOWANCE`]. The limit stops small files that would unpack to
/// more than the memory. Weights stay far below it, because floats hardly compress.
const MAX_EXPANSION: u64 = 4;
/// Bytes that any file may unpack to.
const EXPANSION_ALLOWANCE: u64 = 16 << 20;

/// Reads all arrays of a file, with their names, and verifies their checksums.
///
/// # Errors
/// When the file is not a `.npz`, is truncated or corrupted, has an array of an unsupported type, or unpacks to more than four
/// times its size and 16 MiB.
pub fn read(path: &Path) -> Result<Vec<(String, Array)>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut zip = ZipArchive::new(BufReader::new(file))?;
    ensure!(!zip.has_duplicate_names(), "two entries have the same name");
    let most = MAX_EXPANSION.saturating_mul(length).saturating_add(EXPANSION_ALLOWANCE);
    let (mut left, mut stored) = (most, 0u64);
    let mut arrays = Vec::new();
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i)?;
        let full_name = entry.name()?.into_owned();
        ensure!(
            files::stays_inside(&full_name) && !entry.is_symlink(),
            "{full_name} is no name of an array: it leads out of the archive"
        );
        let name = full_name.strip_suffix(".npy").unwrap_or(&full_name).to_string();
        let method = entry.compression();
        ensure!(
            matches!(method, CompressionMethod::Stored | CompressionMethod::Deflated),
            "{name} is compressed with {method}, which NumPy does not write: write the file with np.savez"
        );
        let size = entry.size();
        if method == CompressionMethod::Stored {
            // Together, for an archive may name the same bytes again and again.
            stored = stored.saturating_add(size);
            ensure!(stored <= length, "{name} claims {size} bytes in a file of {length}");
        }
        left = left.checked_sub(size).with_context(|| {
            format!(
                "the arrays up to {name} claim to unpack to more than {most} bytes, from a file of {length} bytes: if the \
                 file is right, write it with np.savez, without compression"
            )
        })?;
        // Reading to the end verifies the entry's checksum. Reading one byte more than claimed detects a claim that is too small.
        let mut bytes = Vec::with_capacity(size as usize);
        entry
            .by_ref()
            .take(size.saturating_add(1))
            .read_to_end(&mut bytes)
            .with_context(|| format!("{name} was changed"))?;
        ensure!(
            bytes.len() as u64 == size,
            "{name} was changed: it claims {size} bytes and has {}",
            if bytes.len() as u64 > size { "more".to_string() } else { bytes.len().to_string() }
        );
        let array = single_record(&bytes).with_context(|| name.clone())?;
        arrays.push((name, array));
    }
    Ok(arrays)
}

/// Reads the array of an entry, which is exactly one record.
fn single_record(mut bytes: &[u8]) -> Result<Array> {
    let array = Record::take(&mut bytes)?.array()?;
    ensure!(bytes.is_empty(), "{} bytes follow the array", bytes.len());
    Ok(array)
}

/// Writes named arrays to a file.
///
/// # Errors
/// When the file cannot be written. The message names it.
pub fn write<'a>(path: &Path, arrays: impl Iterator<Item = (&'a str, &'a Array)>) -> Result<()> {
    archive(path, |zip| {
        for (name, array) in arrays {
            let large = array.bytes().len() >= u32::MAX as usize / 2;
            zip.start_file(format!("{name}.npy"), options(large))?;
            npy::write(zip, array).with_context(|| name.to_string())?;
        }
        Ok(())
    })
}

/// Moves `.npy` files into one `.npz`, each under a given name. Serves arrays larger than memory. Deletes each file once it is
/// in the archive, so that the disk never holds all arrays twice.
///
/// # Errors
/// When a file cannot be read or the archive cannot be written. The message names it.
pub fn pack(path: &Path, files: &[(&str, PathBuf)]) -> Result<()> {
    archive(path, |zip| {
        for (name, file) in files {
            zip.start_file(format!("{name}.npy"), options(true))?;
            let mut move_in = || {
                File::open(file)
                    .and_then(|mut from| io::copy(&mut from, zip))
                    .and_then(|_| fs::remove_file(file))
            };
            move_in().with_context(|| file.display().to_string())?;
        }
        Ok(())
    })
}

/// Returns the options of an uncompressed entry. Entries over 4 GiB need the 64-bit form.
fn options(large: bool) -> SimpleFileOptions {
    SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(large)
}

fn archive(path: &Path, fill: impl FnOnce(&mut ZipWriter<&mut Draft>) -> Result<()>) -> Result<()> {
    files::write(path, |out| {
        // Dropping an unfinished archive would try to finish it, and print a message when that fails.
        let mut zip = ManuallyDrop::new(ZipWriter::new(out));
        fill(&mut zip)?;
        ManuallyDrop::into_inner(zip).finish()?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_arrays_are_read_back_from_an_archive() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        npy::save(&at("rows.npy"), &[2, 2], &[1f32, 2.0, 3.0, 4.0]).unwrap();
        npy::save(&at("labels.npy"), &[3], &[7u8, 8, 9]).unwrap();
        pack(&at("files.npz"), &[("rows", at("rows.npy")), ("labels", at("labels.npy"))]).unwrap();
        let arrays = [
            ("rows", Array::new(&[2, 2], &[1f32, 2.0, 3.0, 4.0])),
            ("labels", Array::new(&[3], &[7u8, 8, 9])),
        ];
        write(&at("arrays.npz"), arrays.iter().map(|(name, array)| (*name, array))).unwrap();
        let expected = arrays.map(|(name, array)| (name.to_string(), array));
        for name in ["files.npz", "arrays.npz"] {
            assert_eq!(read(&at(name)).unwrap(), expected, "{name}");
        }
        let missing = pack(&at("no.npz"), &[("rows", at("gone.npy"))]).unwrap_err();
        assert!(format!("{missing:#}").contains("no.npz"), "{missing:#}");
        assert!(!at("no.npz").exists());
    }
}
