//! `.npz`: a zip of `.npy` records by name, with a checksum of each. Checkpoints are such files.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::npy::{self, Record};
use crate::engine::array::Array;

/// Every array of a file, its checksum verified.
///
/// # Errors
/// When the file is no `.npz`, is cut or changed, or holds an array of a type that is not used here.
pub fn read(path: &Path) -> Result<Vec<(String, Array)>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut zip = ZipArchive::new(BufReader::new(file))?;
    ensure!(!zip.has_duplicate_names(), "two entries have the same name");
    let mut arrays = Vec::new();
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i)?;
        let name = entry.name()?.trim_end_matches(".npy").to_string();
        ensure!(
            entry.compression() == CompressionMethod::Stored,
            "{name} is compressed: write it with np.savez"
        );
        ensure!(entry.size() <= length, "{name} claims {} bytes in a file of {length}", entry.size());
        // Reading to the end verifies the entry's checksum.
        let mut bytes = Vec::with_capacity(entry.size() as usize);
        entry.read_to_end(&mut bytes).with_context(|| format!("{name} was changed"))?;
        let array = only(&bytes).with_context(|| name.clone())?;
        arrays.push((name, array));
    }
    Ok(arrays)
}

/// The array of an entry, which is one record and nothing after it.
fn only(mut bytes: &[u8]) -> Result<Array> {
    let array = Record::take(&mut bytes)?.array()?;
    ensure!(bytes.is_empty(), "{} bytes follow the array", bytes.len());
    Ok(array)
}

/// Writes the arrays and flushes the file to the disk.
///
/// # Errors
/// When the file cannot be written.
pub fn write<'a>(path: &Path, arrays: impl Iterator<Item = (&'a str, &'a Array)>) -> Result<()> {
    let mut zip = ZipWriter::new(BufWriter::with_capacity(1 << 20, File::create(path)?));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, array) in arrays {
        let large = array.bytes().len() >= u32::MAX as usize / 2;
        zip.start_file(format!("{name}.npy"), options.large_file(large))?;
        npy::write(&mut zip, array).with_context(|| name.to_string())?;
    }
    let mut out = zip.finish()?;
    out.flush()?;
    out.get_ref().sync_all()?;
    Ok(())
}
