//! `.npy` records in memory: one array each, one after the other in Equinox's `.eqx`, one an entry in `.npz`.

use std::io::Write;

use anyhow::{Context, Result, bail, ensure};

use crate::data::npy::{Header, Kind, MAGIC};
use crate::engine::array::Array;
use crate::engine::shape::{DType, Shape};

/// Bytes before the text of a version 1 header.
const PREFIX: usize = 10;
/// NumPy begins the values at a multiple of this.
const ALIGNED: usize = 64;

/// A record's header, and its values as they lie in the file.
pub struct Record<'a> {
    header: Header,
    values: &'a [u8],
}

impl<'a> Record<'a> {
    /// Takes the next record from the front of `bytes`.
    ///
    /// # Errors
    /// When there is no whole record; nothing is allocated on its header's word.
    pub fn take(bytes: &mut &'a [u8]) -> Result<Record<'a>> {
        let start = &bytes[..bytes.len().min(MAGIC.len())];
        ensure!(start == MAGIC, "expected '\\x93NUMPY' of a .npy record, got '{}'", start.escape_ascii());
        let version = *bytes.get(6).context("the record ends in its magic")?;
        let cut = "the record ends in its header";
        let (prefix, length) = match version {
            1 => (PREFIX, bytes.get(8..10).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])))),
            2 | 3 => {
                let length = bytes.get(8..12).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                (PREFIX + 2, length.map(|n| n as usize))
            }
            other => bail!("expected .npy version 1, 2 or 3, got {other}"),
        };
        let rest = &bytes[prefix.min(bytes.len())..];
        let length = length.context(cut)?;
        let text = rest.get(..length).with_context(|| format!("{cut}, which claims {length} bytes"))?;
        let header = Header::parse(text)?;
        let size = header.shape.iter().try_fold(header.width, |size, n| size.checked_mul(*n));
        let rest = &rest[length..];
        let values = size.and_then(|size| rest.get(..size)).with_context(|| {
            format!(
                "the header claims an array of shape {:?}, {} bytes an element: {} bytes are left",
                header.shape,
                header.width,
                rest.len()
            )
        })?;
        *bytes = &rest[values.len()..];
        Ok(Record { header, values })
    }

    /// Whether it is a single number, as Equinox writes a module's plain Python numbers.
    pub fn is_scalar(&self) -> bool {
        self.header.shape.is_empty()
    }

    /// The array in C order and the machine's byte order; f8 is rounded to f32.
    ///
    /// # Errors
    /// When its element type is none that weights or checkpoints have.
    pub fn array(&self) -> Result<Array> {
        let Header { kind, width, .. } = self.header;
        let mut bytes = self.values.to_vec();
        if self.header.big_endian {
            bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse);
        }
        let dtype = match (kind, width) {
            (Kind::Float, 4) => DType::F32,
            (Kind::Float, 8) => {
                let narrow = |b: &[u8]| f64::from_le_bytes(b.try_into().unwrap_or_default()) as f32;
                bytes = bytes.chunks_exact(8).flat_map(|b| narrow(b).to_le_bytes()).collect();
                DType::F32
            }
            (Kind::Unsigned, 4) => DType::U32,
            (Kind::Signed, 4) => DType::S32,
            (Kind::Unsigned, 1) => DType::U8,
            _ => bail!("expected elements of f4, f8, u4, i4 or u1, got {}", self.header.element_name()),
        };
        let mut dims = self.header.shape.clone();
        if !self.header.fortran {
            return Array::from_bytes(Shape::new(dtype, &dims), bytes);
        }
        dims.reverse();
        let axes: Vec<usize> = (0..dims.len()).rev().collect();
        Ok(Array::from_bytes(Shape::new(dtype, &dims), bytes)?.transpose(&axes))
    }
}

/// Writes a record, as NumPy does.
///
/// # Errors
/// When the writer fails, or the element type has no NumPy name here.
pub fn write(out: &mut impl Write, array: &Array) -> Result<()> {
    let descr = match array.shape().dtype {
        DType::F32 => "<f4",
        DType::U32 => "<u4",
        DType::S32 => "<i4",
        DType::U8 => "|u1",
        other => bail!("an array of {other} has no place in a file of weights"),
    };
    let dims: Vec<String> = array.dims().iter().map(ToString::to_string).collect();
    let comma = if dims.len() == 1 { "," } else { "" };
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}", dims.join(", "));
    let padding = (PREFIX + header.len() + 1).next_multiple_of(ALIGNED) - PREFIX - header.len() - 1;
    header.push_str(&" ".repeat(padding));
    header.push('\n');
    out.write_all(MAGIC)?;
    out.write_all(&[1, 0])?;
    out.write_all(&(header.len() as u16).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    out.write_all(array.bytes())?;
    Ok(())
}
