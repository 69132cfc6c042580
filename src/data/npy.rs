//! NumPy's `.npy` arrays of binary images or of labels.
//!
//! The header is read by hand, since it is not to be trusted: nothing is allocated on its word.

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::input::Input;
use super::{PIXELS, SIDE};

pub const MAGIC: &[u8] = b"\x93NUMPY";
/// NumPy's own headers have 118 bytes; anything near this is not one.
const LONGEST_HEADER: usize = 1 << 14;

/// Reads images of shape (n, 784), (n, 28, 28) or (n, 1, 28, 28): `n * 784` bytes, each 0 or 1.
///
/// # Errors
/// Name the file, what its header says instead of what was expected, or the index of a value that is not 0 or 1.
pub fn read_images(mut input: Input) -> Result<Vec<u8>> {
    let header = Header::read(&mut input)?;
    let n = match header.shape[..] {
        [n, PIXELS] | [n, SIDE, SIDE] | [n, 1, SIDE, SIDE] => n,
        _ => bail!(input.error(format_args!(
            "expected the shape (n, 784), (n, 28, 28) or (n, 1, 28, 28), got {:?}",
            header.shape
        ))),
    };
    ensure!(n > 0, input.error("expected at least one image, got the shape of none"));
    header.read_values(&mut input, 1)
}

/// Reads labels of shape (n,): `n` bytes of 0 to 9.
///
/// # Errors
/// As of `read_images`.
pub fn read_labels(mut input: Input) -> Result<Vec<u8>> {
    let header = Header::read(&mut input)?;
    if header.shape.len() != 1 {
        bail!(input.error(format_args!("expected labels of the shape (n,), got {:?}", header.shape)));
    }
    header.read_values(&mut input, 9)
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Unsigned,
    Signed,
    Float,
}

/// What a `.npy` header says of the values that follow it.
pub struct Header {
    pub kind: Kind,
    pub big_endian: bool,
    /// Bytes of one element.
    pub width: usize,
    /// Whether the first dimension is the fastest one.
    pub fortran: bool,
    pub shape: Vec<usize>,
}

impl Header {
    fn read(input: &mut Input) -> Result<Header> {
        let mut start = [0; 8];
        input.read_all(&mut start, "the .npy magic")?;
        if !start.starts_with(MAGIC) {
            let got = start[..6].escape_ascii();
            bail!(input.error(format_args!("byte 0: expected '\\x93NUMPY' of a .npy file, got '{got}'")));
        }
        let length = match start[6] {
            1 => {
                let mut length = [0; 2];
                input.read_all(&mut length, "the .npy header")?;
                usize::from(u16::from_le_bytes(length))
            }
            2 | 3 => {
                let mut length = [0; 4];
                input.read_all(&mut length, "the .npy header")?;
                u32::from_le_bytes(length) as usize
            }
            version => {
                bail!(input.error(format_args!("byte 6: expected .npy version 1, 2 or 3, got {version}")))
            }
        };
        if length > LONGEST_HEADER {
            bail!(input.error(format_args!(
                "byte 8: expected a .npy header of up to {LONGEST_HEADER} bytes, got a claim of {length}"
            )));
        }
        let mut text = vec![0; length];
        input.read_all(&mut text, "the .npy header")?;
        let shown = text.trim_ascii();
        let shown = shown[..shown.len().min(200)].escape_ascii();
        let at = || format!("{}: the .npy header is {shown}", input.path.display());
        let header = Header::parse(&text).with_context(at)?;
        if header.fortran {
            return Err(anyhow!("expected C order (fortran_order False), got True")).with_context(at);
        }
        Ok(header)
    }

    /// The element type as NumPy writes it, but for the byte order: `f4`.
    pub fn element_name(&self) -> String {
        let letter = match self.kind {
            Kind::Unsigned => 'u',
            Kind::Signed => 'i',
            Kind::Float => 'f',
        };
        format!("{letter}{}", self.width)
    }

    /// Reads the dictionary, a Python literal: `{'descr': '<f4', 'fortran_order': False, 'shape': (10, 784), }`.
    ///
    /// # Errors
    /// When it is no such text, or the element type is no number's.
    pub fn parse(text: &[u8]) -> Result<Header> {
        let text =
            std::str::from_utf8(text).ok().context("expected a dictionary in ASCII, got other bytes")?;
        let descr = value_of(text, "descr")?;
        let descr = descr
            .strip_prefix(['\'', '"'])
            .and_then(|rest| rest.split(['\'', '"']).next())
            .with_context(|| format!("expected one element type, got {}", first_chars(descr)))?;
        let (kind, big_endian, width) = element(descr)?;
        let order = value_of(text, "fortran_order")?;
        let fortran = order.starts_with("True");
        if !fortran && !order.starts_with("False") {
            bail!("expected fortran_order False or True, got {}", first_chars(order));
        }
        let shape = value_of(text, "shape")?;
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
                number.parse().with_context(|| format!("expected integers as shape, got ({inner})"))
            })
            .collect::<Result<_>>()?;
        Ok(Header { kind, big_endian, width, fortran, shape })
    }

    /// Reads all values, which must be integers from 0 to `max`, to the end of the file.
    fn read_values(&self, input: &mut Input, max: u8) -> Result<Vec<u8>> {
        let elements = self.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n as u64));
        let bytes = elements.and_then(|n| n.checked_mul(self.width as u64));
        let what = format!("an array of shape {:?}, {} bytes an element", self.shape, self.width);
        let Some(bytes) = bytes else {
            bail!(input.error(format_args!("the header claims {what}: that is more than 2^64 bytes")));
        };
        input.check_claim(bytes, &what)?;
        let mut values = Vec::new();
        let mut chunk = vec![0; (1 << 13) * self.width];
        let mut left = bytes;
        while left > 0 {
            let part = &mut chunk[..left.min((1 << 13) * self.width as u64) as usize];
            input.read_all(part, &what)?;
            left -= part.len() as u64;
            for element in part.chunks_exact(self.width) {
                let value = self.value(element);
                if !(0.0..=f64::from(max)).contains(&value) || value.fract() != 0.0 {
                    let (i, allowed) = (values.len(), if max == 1 { "0 or 1" } else { "0 to 9" });
                    bail!(input.error(format_args!(
                        "value {i} (index {:?}): expected {allowed}, got {value}",
                        index(i, &self.shape)
                    )));
                }
                values.push(value as u8);
            }
        }
        input.finish(&what)?;
        Ok(values)
    }

    /// One element as a number: exact for all that can be 0 to 9.
    fn value(&self, element: &[u8]) -> f64 {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..self.width];
        bytes.copy_from_slice(element);
        if self.big_endian {
            bytes.reverse();
        }
        match (self.kind, &*bytes) {
            (Kind::Unsigned, bytes) => bytes.iter().rev().fold(0u64, |v, &b| v << 8 | u64::from(b)) as f64,
            (Kind::Signed, bytes) => {
                let bits = bytes.iter().rev().fold(0u64, |v, &b| v << 8 | u64::from(b));
                let unused = 64 - 8 * self.width;
                ((bits << unused) as i64 >> unused) as f64
            }
            (Kind::Float, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
            (Kind::Float, bytes) => {
                f64::from_bits(bytes.iter().rev().fold(0u64, |v, &b| v << 8 | u64::from(b)))
            }
        }
    }
}

/// The element type of a NumPy name such as `<f4`: kind, whether big-endian, bytes.
fn element(descr: &str) -> Result<(Kind, bool, usize)> {
    const KNOWN: &str = "b1, u1, i1, and u2 to u8, i2 to i8, f4, f8 in either byte order";
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
        "f4" => (Kind::Float, 4),
        "f8" => (Kind::Float, 8),
        _ => bail!(unknown()),
    };
    match order {
        "<" => Ok((kind, false, width)),
        ">" => Ok((kind, true, width)),
        // '=' is never written by NumPy; '|' means that the order does not matter.
        "|" if width == 1 => Ok((kind, false, width)),
        _ => bail!(unknown()),
    }
}

/// What follows `'key':` in the header.
fn value_of<'a>(text: &'a str, key: &str) -> Result<&'a str> {
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

/// The index in an array of this shape of its `i`-th element in C order.
fn index(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&n| {
            let place = i % n;
            i /= n;
            place
        })
        .collect();
    index.reverse();
    index
}
