//! NumPy's `.npy` format, versions 1 to 3: one header, then one array. Specification: NEP 1.
//!
//! Files are not trusted. No memory is allocated for a header's claims alone, and a nested header cannot exhaust the stack. The
//! reader accepts either byte order, C and Fortran order, f2 to f8, and Python 2's long integers.
//!
//! The crate `ndarray-npy` is not used here, because its parser allocates as many bytes as the header claims, descends into
//! nested literals, and supports neither `6L` nor half precision; its writer needs the whole array. The tests read the files
//! that are written here with this crate.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use sha2::{Digest, Sha256};

use crate::engine::array::{Array, Element};
use crate::engine::shape::{DType, Shape};
use crate::files::Draft;

/// The first bytes of every `.npy` file.
pub const MAGIC: &[u8] = b"\x93NUMPY";
/// Limit on the header's length in bytes. NumPy's headers have 118 bytes.
const MAX_HEADER_BYTES: usize = 1 << 14;
/// Bytes before the text of a version 1 header.
const PREFIX_BYTES: usize = 10;
/// NumPy aligns the values to this number of bytes.
const ALIGNMENT: usize = 64;

/// The kind of number that an array holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Unsigned integers and booleans.
    Unsigned,
    /// Signed integers.
    Signed,
    /// Floating-point numbers.
    Float,
}

/// A source of bytes for the header. It formats the errors, with the name of its file.
pub trait Source {
    /// Fills the buffer.
    ///
    /// # Errors
    /// When the source ends within `what`.
    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<()>;

    /// Returns the error for a malformed header, from a message that describes the problem.
    fn wrong(&self, message: String) -> anyhow::Error;
}

/// A parsed `.npy` header: describes the values that follow it.
#[derive(Clone, Debug)]
pub struct Header {
    /// The kind of number.
    pub kind: Kind,
    /// Whether the most significant byte comes first.
    pub big_endian: bool,
    /// Bytes of one element.
    pub width: usize,
    /// Whether the first index varies fastest (Fortran order).
    pub fortran: bool,
    /// The array's dimensions.
    pub shape: Vec<usize>,
}

impl Header {
    /// Reads a header, up to the first value.
    ///
    /// # Errors
    /// When the source ends early, is not a `.npy` file, or has elements that are not numbers.
    pub fn read(source: &mut impl Source) -> Result<Header> {
        let mut start = [0; 8];
        source.fill(&mut start[..MAGIC.len()], "the .npy magic")?;
        if !start.starts_with(MAGIC) {
            let got = start[..MAGIC.len()].escape_ascii();
            return Err(source.wrong(format!("byte 0: expected '\\x93NUMPY' of a .npy file, got '{got}'")));
        }
        source.fill(&mut start[MAGIC.len()..], "the .npy magic")?;
        let mut length = [0; 4];
        match start[6] {
            1 => source.fill(&mut length[..2], "the .npy header")?,
            2 | 3 => source.fill(&mut length, "the .npy header")?,
            version => {
                return Err(source.wrong(format!("byte 6: expected .npy version 1, 2 or 3, got {version}")));
            }
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_HEADER_BYTES {
            return Err(source.wrong(format!(
                "byte 8: expected a .npy header of up to {MAX_HEADER_BYTES} bytes, got a claim of {length}"
            )));
        }
        let mut text = vec![0; length];
        source.fill(&mut text, "the .npy header")?;
        Header::parse(&text).map_err(|error| {
            let shown = text.trim_ascii();
            let shown = shown[..shown.len().min(200)].escape_ascii();
            source.wrong(format!("the .npy header is {shown}: {error:#}"))
        })
    }

    /// Reads the dictionary, a Python literal: `{'descr': '<f4', 'fortran_order': False, 'shape': (10, 784), }`.
    fn parse(text: &[u8]) -> Result<Header> {
        let text =
            std::str::from_utf8(text).ok().context("expected a dictionary in ASCII, got other bytes")?;
        let descr = text_after_key(text, "descr")?;
        let descr = descr
            .strip_prefix(['\'', '"'])
            .and_then(|rest| rest.split(['\'', '"']).next())
            .with_context(|| format!("expected one element type, got {}", first_chars(descr)))?;
        let (kind, big_endian, width) = parse_element_type(descr)?;
        let order = text_after_key(text, "fortran_order")?;
        let fortran = order.starts_with("True");
        if !fortran && !order.starts_with("False") {
            bail!("expected fortran_order False or True, got {}", first_chars(order));
        }
        let shape = text_after_key(text, "shape")?;
        let inner = shape
            .strip_prefix('(')
            .and_then(|rest| rest.split_once(')'))
            .with_context(|| format!("expected a tuple of integers as shape, got {}", first_chars(shape)))?
            .0;
        let shape = inner
            .split(',')
            .map(str::trim)
            .filter(|number| !number.is_empty())
            .map(|number| {
                // Python 2 writes long integers with an L.
                let digits = number.strip_suffix('L').unwrap_or(number);
                digits.parse().with_context(|| format!("expected integers as shape, got ({inner})"))
            })
            .collect::<Result<Vec<usize>>>()?;
        // A size of 0 hides the others' product, in one order of them and not in another.
        let mut elements = shape.iter().filter(|size| **size > 0);
        let bytes = elements.try_fold(width, |bytes, size| bytes.checked_mul(*size));
        ensure!(bytes.is_some(), "the sizes ({inner}) are those of more than 2^64 bytes");
        Ok(Header { kind, big_endian, width, fortran, shape })
    }

    /// Returns the element type in NumPy's notation without the byte order, such as `f4`.
    pub fn element_name(&self) -> String {
        let letter = match self.kind {
            Kind::Unsigned => 'u',
            Kind::Signed => 'i',
            Kind::Float => 'f',
        };
        format!("{letter}{}", self.width)
    }

    /// Converts the bytes of one element to a number. Exact, except for integers beyond 2^53.
    ///
    /// # Panics
    /// When `element` is not [`Header::width`] bytes long.
    pub fn value(&self, element: &[u8]) -> f64 {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..self.width];
        bytes.copy_from_slice(element);
        if self.big_endian {
            bytes.reverse();
        }
        let bits = bytes.iter().rev().fold(0u64, |bits, &byte| bits << 8 | u64::from(byte));
        match (self.kind, self.width) {
            (Kind::Unsigned, _) => bits as f64,
            (Kind::Signed, width) => {
                let unused = 64 - 8 * width;
                ((bits << unused) as i64 >> unused) as f64
            }
            (Kind::Float, 2) => half::f16::from_bits(bits as u16).to_f64(),
            (Kind::Float, 4) => f64::from(f32::from_bits(bits as u32)),
            (Kind::Float, _) => f64::from_bits(bits),
        }
    }

    /// Returns the index in the array of the file's `i`-th element.
    pub fn index(&self, mut i: usize) -> Vec<usize> {
        let mut index = vec![0; self.shape.len()];
        let mut set = |d: usize| {
            index[d] = i % self.shape[d];
            i /= self.shape[d];
        };
        match self.fortran {
            true => (0..self.shape.len()).for_each(&mut set),
            false => (0..self.shape.len()).rev().for_each(&mut set),
        }
        index
    }

    /// Creates an array from elements in the file's order.
    ///
    /// # Errors
    /// When the number of bytes differs from the shape's.
    pub fn array(&self, dtype: DType, bytes: Vec<u8>) -> Result<Array> {
        let mut dims = self.shape.clone();
        if !self.fortran {
            return Array::from_bytes(Shape::new(dtype, &dims), bytes);
        }
        dims.reverse();
        let axes: Vec<usize> = (0..dims.len()).rev().collect();
        Ok(Array::from_bytes(Shape::new(dtype, &dims), bytes)?.transpose(&axes))
    }
}

/// Parses a NumPy type name such as `<f4`. Returns the kind, whether it is big-endian, and the bytes per element.
fn parse_element_type(descr: &str) -> Result<(Kind, bool, usize)> {
    const KNOWN: &str = "b1, u1, i1, and u2 to u8, i2 to i8, f2 to f8 in either byte order";
    let unknown = || format!("expected an element type among {KNOWN}, got '{descr}'");
    let (order, name) = descr.split_at_checked(1).with_context(unknown)?;
    let (kind, width) = match name {
        "b1" | "u1" => (Kind::Unsigned, 1),
        "u2" => (Kind::Unsigned, 2),
        "u4" => (Kind::Unsigned, 4),
        "u8" => (Kind::Unsigned, 8),
        "i1" => (Kind::Signed, 1),
        "i2" => (Kind::Signed, 2),
        "i4" => (Kind::Signed, 4),
        "i8" => (Kind::Signed, 8),
        "f2" => (Kind::Float, 2),
        "f4" => (Kind::Float, 4),
        "f8" => (Kind::Float, 8),
        _ => bail!(unknown()),
    };
    match order {
        "<" => Ok((kind, false, width)),
        ">" => Ok((kind, true, width)),
        // NumPy never writes '='. '|' means that the byte order does not matter.
        "|" if width == 1 => Ok((kind, false, width)),
        _ => bail!(unknown()),
    }
}

/// Returns the text after `'key':` in the header.
fn text_after_key<'a>(text: &'a str, key: &str) -> Result<&'a str> {
    ["'", "\""]
        .iter()
        .find_map(|quote| text.split_once(&format!("{quote}{key}{quote}")))
        .and_then(|(_, rest)| rest.trim_start().strip_prefix(':'))
        .map(str::trim_start)
        .with_context(|| format!("expected an entry '{key}', got none"))
}

fn first_chars(text: &str) -> String {
    text.chars().take(40).collect()
}

/// A record in memory: a header, and the values as bytes of the file. An entry of an `.npz` file is one record. Equinox's `.eqx`
/// file is a sequence of records.
pub struct Record<'a> {
    header: Header,
    values: &'a [u8],
}

impl Source for &[u8] {
    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<()> {
        let (taken, rest) = self.split_at_checked(buffer.len()).with_context(|| {
            format!(
                "the record ends in its header ({what}): expected {} bytes, got {}",
                buffer.len(),
                self.len()
            )
        })?;
        buffer.copy_from_slice(taken);
        *self = rest;
        Ok(())
    }

    fn wrong(&self, message: String) -> anyhow::Error {
        anyhow!(message)
    }
}

impl<'a> Record<'a> {
    /// Takes the next record from the front of `bytes`.
    ///
    /// # Errors
    /// When the bytes do not begin with a complete record.
    pub fn take(bytes: &mut &'a [u8]) -> Result<Record<'a>> {
        let header = Header::read(bytes)?;
        let size = header.shape.iter().try_fold(header.width, |size, n| size.checked_mul(*n));
        let (values, rest) = size.and_then(|size| bytes.split_at_checked(size)).with_context(|| {
            format!(
                "the header claims an array of shape {:?}, {} bytes per element: {} bytes are left",
                header.shape,
                header.width,
                bytes.len()
            )
        })?;
        *bytes = rest;
        Ok(Record { header, values })
    }

    /// Reports whether the record is a scalar. Equinox writes a module's plain Python numbers as scalars.
    pub fn is_scalar(&self) -> bool {
        self.header.shape.is_empty()
    }

    /// Converts the record to an array, in C order and native byte order. Converts f2 and f8 to f32; f8 is rounded.
    ///
    /// # Errors
    /// When the element type does not occur in weights and checkpoints.
    pub fn array(&self) -> Result<Array> {
        let Header { kind, width, .. } = self.header;
        let dtype = match (kind, width) {
            (Kind::Float, 2 | 8) => {
                // Widened after the transposition, which needs a copy.
                let same_width = if width == 2 { DType::Bf16 } else { DType::U64 };
                let narrow = self.header.array(same_width, self.values.to_vec())?;
                let floats = narrow.bytes().chunks_exact(width).map(|b| self.header.value(b) as f32);
                let bytes = floats.flat_map(f32::to_ne_bytes).collect();
                return Array::from_bytes(narrow.shape().with_dtype(DType::F32), bytes);
            }
            (Kind::Float, 4) => DType::F32,
            (Kind::Unsigned, 4) => DType::U32,
            (Kind::Signed, 4) => DType::S32,
            (Kind::Unsigned, 1) => DType::U8,
            _ => bail!("expected elements of f2, f4, f8, u4, i4 or u1, got {}", self.header.element_name()),
        };
        let mut bytes = self.values.to_vec();
        if self.header.big_endian {
            bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse);
        }
        self.header.array(dtype, bytes)
    }
}

/// Returns the bytes before the values, as NumPy writes them.
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
    let sizes: Vec<String> = shape.dims.iter().map(ToString::to_string).collect();
    let comma = if sizes.len() == 1 { "," } else { "" };
    let mut text =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}", sizes.join(", "));
    let unpadded = PREFIX_BYTES + text.len() + 1;
    text += &" ".repeat(unpadded.next_multiple_of(ALIGNMENT) - unpadded);
    text.push('\n');
    let mut bytes = [MAGIC, &[1, 0]].concat();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    Ok(bytes)
}

/// Writes an array as one record.
///
/// # Errors
/// When the writer fails, or NumPy has no name for the element type.
pub fn write(out: &mut impl Write, array: &Array) -> Result<()> {
    out.write_all(&header(array.shape())?)?;
    out.write_all(array.bytes())?;
    Ok(())
}

/// Writes a file of one array in parts, for arrays larger than memory. The file gets its name only when it is complete.
pub struct Writer {
    out: Draft,
    hash: Sha256,
    shape: Shape,
    /// Bytes of elements that are still missing.
    missing: usize,
}

impl Writer {
    /// Begins a file with a row-major array of this shape.
    ///
    /// # Errors
    /// When the file cannot be written. The message names it.
    pub fn create(path: &Path, shape: &Shape) -> Result<Writer> {
        let out = Draft::create(path)?;
        let mut writer = Writer { out, hash: Sha256::new(), shape: shape.clone(), missing: shape.bytes() };
        writer.put(&header(shape)?)?;
        Ok(writer)
    }

    /// Appends elements in row-major order.
    ///
    /// # Errors
    /// When the elements do not fit in the array or on the disk.
    pub fn push<T: Element>(&mut self, elements: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        ensure!(
            T::DTYPE == self.shape.dtype && bytes.len() <= self.missing,
            "{} elements of {} are too many for {}, {}",
            elements.len(),
            T::DTYPE,
            self.out.path().display(),
            self.shape
        );
        self.missing -= bytes.len();
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes).with_context(|| format!("cannot write {}", self.out.path().display()))
    }

    /// Renames the file to its final name. Returns its sha256.
    ///
    /// # Errors
    /// When elements are missing, or the file cannot be written.
    pub fn finish(self) -> Result<String> {
        let path = self.out.path().display();
        ensure!(self.missing == 0, "{path} lacks {} bytes of {}", self.missing, self.shape);
        self.out.publish()?;
        Ok(self.hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }
}

/// Writes a file of one array. Returns its sha256.
///
/// # Errors
/// When the file cannot be written, or the number of elements does not match `dims`. The message names the file.
pub fn save<T: Element>(path: &Path, dims: &[usize], elements: &[T]) -> Result<String> {
    let mut writer = Writer::create(path, &Shape::new(T::DTYPE, dims))?;
    writer.push(elements)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ndarray::ArrayD;

    use super::*;

    #[test]
    fn another_reader_reads_rows_written_one_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.npy");
        let mut rows = Writer::create(&path, &Shape::f32(&[2, 3])).unwrap();
        rows.push(&[1f32, 2.0]).unwrap();
        rows.push(&[3f32, 4.0, 5.0, 6.0]).unwrap();
        assert!(rows.push(&[7f32]).unwrap_err().to_string().contains("too many"));
        assert!(!path.exists());
        let sha = rows.finish().unwrap();
        let bytes = fs::read(&path).unwrap();
        let own: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!((sha, bytes.len()), (own, 128 + 24));
        let array: ArrayD<f32> = ndarray_npy::read_npy(&path).unwrap();
        assert_eq!(array.shape(), [2, 3]);
        assert_eq!(array.into_raw_vec_and_offset().0, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        for dims in [&[][..], &[1], &[1, 1, 1]] {
            save(&path, dims, &[7u8]).unwrap();
            let array: ArrayD<u8> = ndarray_npy::read_npy(&path).unwrap();
            assert_eq!((array.shape(), array.first()), (dims, Some(&7)));
        }
    }

    #[test]
    fn an_unfinished_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let rows = Writer::create(&folder.path().join("rows.npy"), &Shape::f32(&[2])).unwrap();
        assert!(rows.finish().unwrap_err().to_string().contains("lacks 8 bytes"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_size_of_zero_hides_no_overflow() {
        for order in ["False", "True"] {
            let header = |shape: &str| {
                let text = format!("{{'descr': '<u4', 'fortran_order': {order}, 'shape': {shape}, }}");
                Header::parse(text.as_bytes()).map(|header| header.shape)
            };
            for shape in
                ["(0, 64, 4611686018427387904)", "(4611686018427387904, 64, 0)", "(4611686018427387904,)"]
            {
                assert!(header(shape).unwrap_err().to_string().contains("more than 2^64"), "{shape}");
            }
            assert_eq!(header("(0, 7)").unwrap(), [0, 7]);
        }
    }

    #[test]
    fn index_returns_the_position_in_either_order() {
        let text = |order: &str| format!("{{'descr': '<f2', 'fortran_order': {order}, 'shape': (2L, 3L), }}");
        let [rows, columns] = ["False", "True"].map(|order| Header::parse(text(order).as_bytes()).unwrap());
        assert_eq!((rows.index(4), columns.index(4)), (vec![1, 1], vec![0, 2]));
        let array = columns.array(DType::U8, vec![0, 3, 1, 4, 2, 5]).unwrap();
        assert_eq!((array.dims(), array.bytes()), (&[2, 3][..], &[0, 1, 2, 3, 4, 5][..]));
        assert_eq!((rows.value(&[0x00, 0x3c]), rows.value(&[0x00, 0xc0])), (1.0, -2.0));
    }
}
