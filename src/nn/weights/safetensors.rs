//! Reads and writes `.safetensors` files: a JSON header of names, types, shapes and offsets, then the values.

use std::collections::HashSet;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::engine::array::Array;
use crate::engine::shape::Shape;

/// Reads all arrays, with their names, from the bytes of a file. Converts their elements to f32; f64 is rounded.
///
/// # Errors
/// When the header is malformed or does not match the data, a name occurs twice, or elements are not floats.
pub fn read(bytes: &[u8]) -> Result<Vec<(String, Array)>> {
    let file = SafeTensors::deserialize(bytes).context("not a safetensors file")?;
    unique_names(bytes)?;
    let mut arrays = Vec::new();
    for (name, view) in file.iter() {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => convert(data, f32::from_le_bytes),
            Dtype::F64 => convert(data, |b| f64::from_le_bytes(b) as f32),
            Dtype::BF16 => convert(data, |b| half::bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => convert(data, |b| half::f16::from_le_bytes(b).to_f32()),
            other => bail!("{name}: expected elements of F32, F64, F16 or BF16, got {other:?}"),
        };
        arrays.push((name.to_string(), Array::from_bytes(Shape::f32(view.shape()), values)?));
    }
    Ok(arrays)
}

fn convert<const N: usize>(data: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<u8> {
    data.as_chunks::<N>().0.iter().flat_map(|b| value(*b).to_ne_bytes()).collect()
}

/// Checks that no name occurs twice. The crate `safetensors` would silently keep the last of two entries with one name.
fn unique_names(bytes: &[u8]) -> Result<()> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a header of tensors by name")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<String>, A::Error> {
            let mut names = Vec::new();
            while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                names.push(name);
            }
            Ok(names)
        }
    }
    let length = bytes.first_chunk().map_or(0, |n| u64::from_le_bytes(*n)) as usize;
    let header = bytes[8..].get(..length).context("the header is longer than the file")?;
    let mut seen = HashSet::new();
    for name in serde_json::Deserializer::from_slice(header).deserialize_map(Names)? {
        ensure!(seen.insert(name.clone()), "{name} occurs twice");
    }
    Ok(())
}

/// Returns the bytes of a `.safetensors` file with named f32 arrays.
///
/// # Errors
/// When two arrays have the same name.
pub fn written<'a>(arrays: impl Iterator<Item = (&'a str, &'a Array)>) -> Result<Vec<u8>> {
    let views: Result<Vec<_>> = arrays
        .map(|(name, array)| Ok((name, TensorView::new(Dtype::F32, array.dims().to_vec(), array.bytes())?)))
        .collect();
    Ok(safetensors::serialize(views?, None)?)
}
