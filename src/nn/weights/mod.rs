//! Reads and writes a model's parameters as files: `.npz` (also checkpoints), Equinox's `.eqx` and `.safetensors`. The file
//! name's extension decides the type.
//!
//! Files are not trusted. An error names the file and the problem. No memory is allocated for a header's claims alone. The
//! readers accept any byte order, C and Fortran order, any width of floats, and compressed `.npz` files. A prefix that all names
//! share is removed, such as the `_orig_mod.` of `torch.compile`.

pub mod npz;
pub mod safetensors;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::de::IgnoredAny;
use strum::{IntoEnumIterator, IntoStaticStr};

use crate::engine::array::Array;
use crate::engine::npy::{self, Record};
use crate::error::{Error, Tag};
use crate::files;
use crate::nn::params::{AVERAGED, Leaf, Role, arrange};

/// The type of a file of parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumIter, strum::EnumString, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum FileType {
    /// Named arrays in a zip archive.
    Npz,
    /// Equinox's `tree_serialise_leaves`: `.npy` records in the order of the leaves, without names. A line of JSON may
    /// precede them; Equinox's documentation stores a model's settings there.
    Eqx,
    /// Named arrays after a JSON header.
    Safetensors,
}

impl FileType {
    /// Returns the type that a file name's extension denotes.
    ///
    /// # Errors
    /// When the extension is unknown.
    pub fn from_path(path: &Path) -> Result<FileType> {
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let known =
            || FileType::iter().map(|t| format!(".{}", <&str>::from(t))).collect::<Vec<_>>().join(", ");
        match ending {
            "pt" | "pth" | "bin" | "ckpt" => bail!(
                "{}: PyTorch pickles are not supported: write the state_dict with safetensors.torch.save_file",
                path.display()
            ),
            _ => ending
                .parse()
                .ok()
                .with_context(|| format!("{}: expected a name that ends in {}", path.display(), known())),
        }
    }
}

/// Reads the leaves' values from a file, in the order of the leaves and in the checkpoint layout.
///
/// # Errors
/// [`Error::Data`] when the file cannot be read or is damaged, or when entries are missing, unknown or of another shape. The
/// message lists all of them by name, with both shapes.
pub fn read(path: &Path, leaves: &[Leaf]) -> Result<Vec<Array>> {
    let file_type = FileType::from_path(path).tag(Error::Data)?;
    let load = || -> Result<Vec<(String, Array)>> {
        match file_type {
            FileType::Npz => {
                let arrays = npz::read(path)?;
                let is_checkpoint = arrays.iter().any(|(name, _)| name == "meta");
                Ok(if is_checkpoint { parameters(leaves, arrays) } else { arrays })
            }
            FileType::Eqx => records(&fs::read(path)?, leaves),
            FileType::Safetensors => safetensors::read(&fs::read(path)?),
        }
    };
    let named = load().with_context(|| format!("cannot use {}", path.display())).tag(Error::Data)?;
    match_to_leaves(path, leaves, named)
}

/// Returns the leaves' values from the arrays of a checkpoint. Error messages name its file, `path`.
///
/// # Errors
/// [`Error::Data`] when entries are missing or of another shape.
pub fn from_checkpoint(path: &Path, leaves: &[Leaf], arrays: Vec<(String, Array)>) -> Result<Vec<Array>> {
    match_to_leaves(path, leaves, parameters(leaves, arrays))
}

/// Converts a file's arrays to the order, names and shapes of the leaves.
fn match_to_leaves(path: &Path, leaves: &[Leaf], mut named: Vec<(String, Array)>) -> Result<Vec<Array>> {
    if let Some(prefix) = shared_prefix(leaves, &named) {
        log::warn!("{}: every name begins with '{prefix}'; the prefix is ignored", path.display());
        named.iter_mut().for_each(|(name, _)| drop(name.drain(..prefix.len())));
    }
    for (name, array) in &mut named {
        // PyTorch stores a convolution's bias as (out), Equinox as (out, 1, 1).
        let leaf = leaves.iter().find(|l| l.name == *name && l.role == Role::ConvBias);
        if let Some(leaf) = leaf.filter(|l| array.dims() == &l.shape[..1]) {
            *array = array.clone().reshape(&leaf.shape);
        }
    }
    arrange(leaves, named).with_context(|| format!("cannot use {}", path.display())).tag(Error::Data)
}

/// Finds the prefix, ending with a dot, that every name of a file has before a leaf's name.
fn shared_prefix(leaves: &[Leaf], named: &[(String, Array)]) -> Option<String> {
    let is_leaf = |name: &str| leaves.iter().any(|leaf| leaf.name == name);
    let (first, _) = named.first()?;
    let dots = first.match_indices('.').map(|(dot, _)| &first[..=dot]);
    let mut prefixes = dots.filter(|prefix| is_leaf(&first[prefix.len()..]));
    let prefix =
        prefixes.find(|prefix| named.iter().all(|(name, _)| name.starts_with(prefix) && !is_leaf(name)))?;
    Some(prefix.to_string())
}

/// Returns the parameters among a checkpoint's arrays: the leaves, and layers that the leaves lack, which are then reported. An
/// optimiser's array of a parameter, such as `adam.m.cell.conv0.weight`, has the parameter's name behind its own. If the checkpoint has
/// averages of the parameters, these are the leaves' values.
fn parameters(leaves: &[Leaf], mut arrays: Vec<(String, Array)>) -> Vec<(String, Array)> {
    let names: BTreeSet<String> = arrays.iter().map(|(name, _)| name.clone()).collect();
    let is_layer = |name: &str| {
        let mut tails = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        (name.ends_with(".weight") || name.ends_with(".bias")) && !tails.any(|tail| names.contains(tail))
    };
    let is_leaf = |name: &str| leaves.iter().any(|leaf| leaf.name == name);
    let is_average = |name: &str| name.strip_prefix(AVERAGED).is_some_and(is_leaf);
    if names.iter().any(|name| is_average(name)) {
        arrays.retain(|(name, _)| !is_leaf(name));
        for (name, _) in arrays.iter_mut().filter(|(name, _)| is_average(name)) {
            name.drain(..AVERAGED.len());
        }
    }
    arrays.retain(|(name, _)| is_leaf(name) || is_layer(name));
    arrays
}

/// Reads the records of an `.eqx` file and names them after the leaves, in order. Skips scalars, which are settings of modules,
/// not weights.
fn records(mut bytes: &[u8], leaves: &[Leaf]) -> Result<Vec<(String, Array)>> {
    let length = bytes.len();
    let mut arrays = Vec::new();
    if bytes.starts_with(b"{") {
        let end = bytes.iter().position(|b| *b == b'\n').context("the first line has no end")?;
        let settings: Result<IgnoredAny, _> = serde_json::from_slice(&bytes[..end]);
        settings.context("expected records or a line of JSON before them: the first line is not JSON")?;
        bytes = &bytes[end + 1..];
    }
    while !bytes.is_empty() {
        let from = length - bytes.len();
        let at = || format!("record {} at byte {from}", arrays.len());
        let record = Record::take(&mut bytes).with_context(at)?;
        if !record.is_scalar() {
            let name = leaves.get(arrays.len()).map_or_else(at, |leaf| leaf.name.clone());
            let array = record.array().with_context(|| name.clone())?;
            arrays.push((name, array));
        }
    }
    Ok(arrays)
}

/// Writes the leaves' values to a file, completely or not at all.
///
/// # Errors
/// When the name has no known ending, the arrays are not those of the leaves, or the file cannot be written.
pub fn write(path: &Path, leaves: &[Leaf], arrays: &[Array]) -> Result<()> {
    ensure!(leaves.len() == arrays.len(), "{} leaves and {} arrays", leaves.len(), arrays.len());
    for (leaf, array) in leaves.iter().zip(arrays) {
        ensure!(
            array.dims() == leaf.shape,
            "{}: expected {:?}, got {}",
            leaf.name,
            leaf.shape,
            array.shape()
        );
    }
    let named = leaves.iter().map(|leaf| leaf.name.as_str()).zip(arrays);
    match FileType::from_path(path)? {
        FileType::Npz => npz::write(path, named),
        FileType::Safetensors => files::write_bytes(path, safetensors::written(named)?),
        FileType::Eqx => files::write(path, |out| arrays.iter().try_for_each(|array| npy::write(out, array))),
    }
}
