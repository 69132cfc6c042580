//! Arrays on disk that are written row after row, so that they may be larger than memory.
//!
//! The format: NumPy Enhancement Proposal 1, version 1.0.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;

use crate::engine::array::Element;
use crate::engine::shape::{DType, Shape};
use crate::train::checkpoint::publish;

/// An `.npy` file in the making. It has its name only when all of it is there.
pub struct NpyWriter {
    out: BufWriter<File>,
    hash: Sha256,
    shape: Shape,
    /// Bytes of elements still to come.
    left: usize,
    path: PathBuf,
    aside: PathBuf,
}

impl NpyWriter {
    /// Begins a file of this type and these sizes, row-major.
    ///
    /// # Errors
    /// When the file cannot be written; the error names it.
    pub fn create(path: &Path, shape: &Shape) -> Result<NpyWriter> {
        let name = path.file_name().with_context(|| format!("{} is no file name", path.display()))?;
        let aside = path.with_file_name(format!("{}.part", name.to_string_lossy()));
        let file = File::create(&aside).with_context(|| format!("cannot write {}", aside.display()))?;
        let mut writer = NpyWriter {
            out: BufWriter::with_capacity(1 << 20, file),
            hash: Sha256::new(),
            shape: shape.clone(),
            left: shape.bytes(),
            path: path.to_owned(),
            aside,
        };
        writer.put(&header(shape)?)?;
        Ok(writer)
    }

    /// Adds elements in row-major order.
    ///
    /// # Errors
    /// When there is no room in the array or on the disk.
    pub fn push<T: Element>(&mut self, elements: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        ensure!(
            T::DTYPE == self.shape.dtype && bytes.len() <= self.left,
            "{} elements of {} are too many for {}, {}",
            elements.len(),
            T::DTYPE,
            self.path.display(),
            self.shape
        );
        self.left -= bytes.len();
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes).with_context(|| format!("cannot write {}", self.aside.display()))
    }

    /// Gives the file its name, and returns its sha256.
    ///
    /// # Errors
    /// When elements are missing, or the file cannot be written.
    pub fn finish(mut self) -> Result<String> {
        ensure!(self.left == 0, "{} lacks {} bytes of {}", self.path.display(), self.left, self.shape);
        let flush = |out: &mut BufWriter<File>| out.flush().and_then(|()| out.get_ref().sync_all());
        flush(&mut self.out).with_context(|| format!("cannot write {}", self.aside.display()))?;
        publish(&self.aside, &self.path)?;
        Ok(hex(&std::mem::take(&mut self.hash).finalize()))
    }
}

impl Drop for NpyWriter {
    /// A file that was not finished leaves nothing behind.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.aside);
    }
}

/// Writes a whole array; returns the file's sha256.
///
/// # Errors
/// When it cannot be written; the error names the file.
pub fn write<T: Element>(path: &Path, dims: &[usize], elements: &[T]) -> Result<String> {
    let mut writer = NpyWriter::create(path, &Shape::new(T::DTYPE, dims))?;
    writer.push(elements)?;
    writer.finish()
}

/// Puts `.npy` files, by the names that the archive's arrays get, into one `.npz`, and deletes them.
///
/// # Errors
/// When a file cannot be read or the archive cannot be written; the error names it.
pub fn pack(path: &Path, files: &[(&str, PathBuf)]) -> Result<()> {
    let aside = path.with_extension("npz.part");
    let write = || -> Result<()> {
        let mut zip = zip::ZipWriter::new(BufWriter::with_capacity(1 << 20, File::create(&aside)?));
        // Sizes over 4 GiB need the 64-bit form.
        let options =
            SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored).large_file(true);
        for (name, file) in files {
            zip.start_file(format!("{name}.npy"), options)?;
            std::io::copy(&mut File::open(file)?, &mut zip)?;
            fs::remove_file(file)?;
        }
        let mut out = zip.finish()?;
        out.flush()?;
        out.get_ref().sync_all()?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", aside.display()))?;
    publish(&aside, path)
}

fn header(shape: &Shape) -> Result<Vec<u8>> {
    let descr = match shape.dtype {
        DType::Pred => "|b1",
        DType::U8 => "|u1",
        DType::S32 => "<i4",
        DType::U32 => "<u4",
        DType::U64 => "<u8",
        DType::F32 => "<f4",
        DType::Bf16 => bail!("NumPy has no type for {}", shape.dtype),
    };
    let sizes: String = shape.dims.iter().map(|d| format!("{d}, ")).collect();
    let mut text =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", sizes.trim_end());
    // Magic, version, length, text and a line's end together are a multiple of 64 bytes.
    let unpadded = 10 + text.len() + 1;
    text += &" ".repeat(unpadded.next_multiple_of(64) - unpadded);
    text.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::weights::npz::read as read_npz;

    #[test]
    fn what_is_written_is_read_back_from_an_archive() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut rows = NpyWriter::create(&at("rows.npy"), &Shape::f32(&[2, 3])).unwrap();
        rows.push(&[1f32, 2.0]).unwrap();
        rows.push(&[3f32, 4.0, 5.0, 6.0]).unwrap();
        assert!(rows.push(&[7f32]).unwrap_err().to_string().contains("too many"));
        assert!(!at("rows.npy").exists());
        let sha = rows.finish().unwrap();
        assert_eq!(sha, hex(&Sha256::digest(fs::read(at("rows.npy")).unwrap())));
        write(&at("labels.npy"), &[3], &[7u8, 8, 9]).unwrap();
        pack(&at("all.npz"), &[("rows", at("rows.npy")), ("labels", at("labels.npy"))]).unwrap();
        let arrays = read_npz(&at("all.npz")).unwrap();
        assert_eq!((arrays[0].0.as_str(), arrays[0].1.dims()), ("rows", [2, 3].as_slice()));
        assert_eq!(arrays[0].1.to_vec::<f32>(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!((arrays[1].0.as_str(), arrays[1].1.to_vec::<u8>()), ("labels", vec![7, 8, 9]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.npy");
        let rows = NpyWriter::create(&path, &Shape::f32(&[2])).unwrap();
        assert!(rows.finish().unwrap_err().to_string().contains("lacks 8 bytes"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
