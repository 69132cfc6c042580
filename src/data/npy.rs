//! Reads images and labels from NumPy's `.npy` arrays: a file, or an entry of an `.npz` file.

use anyhow::{Context, Result, bail, ensure};

use super::input::Input;
use super::{ImageShape, check_grey};
pub use crate::engine::npy::MAGIC;
use crate::engine::npy::{Header, Source};
use crate::engine::shape::DType;

/// Number of elements read at a time.
const CHUNK: usize = 1 << 13;

/// Reads images of shape (n, h, w), (n, h, w, c), (n, c, h, w) or (n, side · side), where c is 1, 3 or 4. If both the second and the
/// last dimension can be channels, the last one has them. Returns the shape, and bytes from 0 to 255 with the channels last.
///
/// In the file the values are whole numbers from 0 to 255, or numbers from 0 to 1. Numbers that are only 0 and 1 stay 0 and 1.
///
/// # Errors
/// When the header is malformed or of another shape, or a value is out of range. The message names the file, and the header's entry
/// or the index of the value.
pub fn read_images(mut input: Input) -> Result<(ImageShape, Vec<u8>)> {
    let header = Header::read(&mut input)?;
    let is_channels = |c: usize| matches!(c, 1 | 3 | 4);
    let (n, height, width, channels, first) = match header.shape[..] {
        [n, pixels] if pixels.isqrt().pow(2) == pixels => (n, pixels.isqrt(), pixels.isqrt(), 1, false),
        [n, h, w] => (n, h, w, 1, false),
        [n, h, w, c] if is_channels(c) => (n, h, w, c, false),
        [n, c, h, w] if is_channels(c) => (n, h, w, c, true),
        _ => bail!(input.error(format_args!(
            "expected the shape (n, h, w), (n, h, w, c), (n, c, h, w) with c = 1, 3 or 4, or (n, side * side), got {:?}",
            header.shape
        ))),
    };
    ensure!(n > 0, input.error("expected at least one image, got none"));
    ensure!(height > 0 && width > 0, input.error(format_args!("expected pixels, got {:?}", header.shape)));
    let place = input.error("").to_string();
    let mut pixels = read_values(&header, &mut input, Values::Pixels)?;
    let shape = ImageShape { height, width, channels };
    if first && channels > 1 {
        let plane = height * width;
        let images = pixels.chunks_exact(channels * plane);
        pixels = images
            .flat_map(|image| (0..plane).flat_map(move |i| (0..channels).map(move |c| image[c * plane + i])))
            .collect();
    }
    if channels == 1 && !header.is_float() {
        check_grey(&pixels).with_context(|| place.trim_end().trim_end_matches(':').to_owned())?;
    }
    Ok((shape, pixels))
}

/// Reads labels of shape (n,) or (n, 1). Returns `n` bytes.
///
/// # Errors
/// The errors of [`read_images`].
pub fn read_labels(mut input: Input) -> Result<Vec<u8>> {
    let header = Header::read(&mut input)?;
    // Keras stores the labels of some sets as a column.
    if !matches!(header.shape[..], [_] | [_, 1]) {
        bail!(
            input.error(format_args!("expected labels of the shape (n,) or (n, 1), got {:?}", header.shape))
        );
    }
    read_values(&header, &mut input, Values::Labels)
}

impl Source for Input<'_> {
    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<()> {
        self.read_all(buffer, what)
    }

    fn wrong(&self, message: String) -> anyhow::Error {
        self.error(message)
    }
}

/// The values that an array may contain.
#[derive(Clone, Copy, PartialEq)]
enum Values {
    /// Whole numbers from 0 to 255, or numbers from 0 to 1.
    Pixels,
    /// Whole numbers from 0 to 255.
    Labels,
}

/// Reads all values to the end of the file. Returns them in C order.
fn read_values(header: &Header, input: &mut Input, values: Values) -> Result<Vec<u8>> {
    let elements = header.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n as u64));
    let bytes = elements.and_then(|n| n.checked_mul(header.width as u64));
    let what = format!("an array of shape {:?}, {} bytes an element", header.shape, header.width);
    let (Some(elements), Some(bytes)) = (elements, bytes) else {
        bail!(input.error(format_args!("the header claims {what}: that is more than 2^64 bytes")));
    };
    input.check_claim(bytes, &what)?;
    input.check_memory(elements)?;
    let mut found = Vec::new();
    // Whether all numbers so far are whole, or all are from 0 to 1. Until it is known, the bytes are the whole numbers.
    let (mut whole, mut unit) = (true, header.is_float() && values == Values::Pixels);
    let mut fractions: Vec<u8> = Vec::new();
    let mut chunk = vec![0; CHUNK * header.width];
    let mut left = bytes;
    while left > 0 {
        let part = &mut chunk[..left.min((CHUNK * header.width) as u64) as usize];
        input.read_all(part, &what)?;
        left -= part.len() as u64;
        for element in part.chunks_exact(header.width) {
            let value = header.value(element);
            whole &= value.fract() == 0.0 && (0.0..=255.0).contains(&value);
            unit &= (0.0..=1.0).contains(&value);
            if !whole && !unit {
                let i = found.len().max(fractions.len());
                let expected = match values {
                    Values::Pixels if header.is_float() => {
                        "whole numbers from 0 to 255, or numbers from 0 to 1"
                    }
                    _ => "a whole number from 0 to 255",
                };
                bail!(input.error(format_args!(
                    "value {i} (index {:?}): expected {expected}, got {value}",
                    header.index(i)
                )));
            }
            if whole {
                found.push(value as u8);
            }
            if unit {
                fractions.push((value * 255.0).round() as u8);
            }
        }
        // Only one of both can be right from here on.
        if !unit {
            fractions = Vec::new();
        }
    }
    input.finish(&what)?;
    let found = if whole { found } else { fractions };
    if !header.fortran {
        return Ok(found);
    }
    Ok(header.array(DType::U8, found)?.to_vec())
}
