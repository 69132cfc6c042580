//! Reads images and labels from NumPy's `.npy` arrays: a file, or an entry of an `.npz` file.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::decode::premultiply;
use super::input::Input;
use super::resize::MAX_SIDE;
use super::{IMAGE_SIDE, ImageShape, PIXELS, check_grey};
pub use crate::engine::npy::MAGIC;
use crate::engine::npy::{Header, Kind, Source};
use crate::engine::shape::DType;

/// Number of elements read at a time.
const CHUNK: usize = 1 << 13;

/// Reads binary images of shape (n, 784), (n, 28, 28), (n, 1, 28, 28) or (n, 28, 28, 1). Returns `n * 784` bytes, each 0 or 1.
/// In the file the pixels are 0 and 1, or 0 and 255, of any number type.
///
/// # Errors
/// When the header is malformed or of another shape, or a value is neither background nor ink. The message names the file, and
/// the header's entry or the index of the value.
pub fn read_images(input: Input) -> Result<Vec<u8>> {
    let mut pixels = read_pixels(input)?;
    pixels.iter_mut().for_each(|pixel| *pixel = (*pixel).min(1));
    Ok(pixels)
}

/// Reads images of shape (n, h, w), (n, h, w, c), (n, c, h, w) with c = 1, 3 or 4, or (n, h * w) of squares. Returns their shape,
/// and their bytes from 0 to 255, or 0 and 1 if none is greater, image after image and pixel after pixel.
///
/// In the file they are whole numbers from 0 to 255, or floats from 0 to 1. The axis of the channels is the last one if it has
/// 1, 3 or 4 elements, else the second one. Of four channels the last one is the opacity, with which the others are multiplied
/// here.
///
/// # Errors
/// When the header is malformed or of another shape, or a value is out of range. The message names the file, and the header's
/// entry or the index of the value.
pub fn read_any(mut input: Input) -> Result<(ImageShape, Vec<u8>)> {
    let place = input.error("").to_string().trim_end().to_owned();
    let header = Header::read(&mut input)?;
    let (n, shape, channels_first) = match header.shape[..] {
        [n, values] => (n, square(values), false),
        [n, height, width] => (n, grey(height, width), false),
        [n, height, width, channels @ (1 | 3 | 4)] => {
            (n, Some(ImageShape { height, width, channels }), false)
        }
        [n, channels @ (1 | 3 | 4), height, width] => (n, Some(ImageShape { height, width, channels }), true),
        _ => (0, None, false),
    };
    let fits = |side| (1..=MAX_SIDE).contains(&side);
    let Some(shape) = shape.filter(|shape| fits(shape.height) && fits(shape.width)) else {
        bail!(input.error(format_args!(
            "expected the shape (n, h, w), (n, h, w, c) or (n, c, h, w) with 1, 3 or 4 channels c, or (n, h * w) of squares \
             such as (n, 784), got {:?}",
            header.shape
        )));
    };
    ensure!(n > 0, input.error("expected at least one image, got none"));
    let mut values = read_values(&header, &mut input, Values::Grey)?;
    if shape == ImageShape::MNIST {
        check_grey(&values).context(place)?;
    }
    if channels_first && shape.channels > 1 {
        values = channels_last(&values, shape);
    }
    if shape.channels == 4 && values.iter().any(|value| *value > 1) {
        premultiply(&mut values);
    }
    Ok((shape, values))
}

/// Reads images as [`read_any`] does. Those of 28 x 28 must be binary, as for [`read_images`].
///
/// # Errors
/// The errors of [`read_any`] and [`read_images`].
pub fn read_binary_or_any(path: &Path) -> Result<(ImageShape, Vec<u8>)> {
    let header = Header::read(&mut Input::open(path)?)?;
    match of_mnist(&header) {
        Some(_) => Ok((ImageShape::MNIST, read_images(Input::open(path)?)?)),
        None => read_any(Input::open(path)?),
    }
}

fn grey(height: usize, width: usize) -> Option<ImageShape> {
    Some(ImageShape { height, width, channels: 1 })
}

fn square(values: usize) -> Option<ImageShape> {
    let side = values.isqrt();
    if side * side == values { grey(side, side) } else { None }
}

/// Returns images of (c, h, w) as (h, w, c).
fn channels_last(values: &[u8], shape: ImageShape) -> Vec<u8> {
    let plane = shape.height * shape.width;
    let image = |image: &[u8]| -> Vec<u8> {
        (0..plane)
            .flat_map(|pixel| (0..shape.channels).map(move |c| c * plane + pixel))
            .map(|i| image[i])
            .collect()
    };
    values.chunks_exact(shape.values()).flat_map(image).collect()
}

/// Returns the number of images if the header is of images of 28 x 28.
fn of_mnist(header: &Header) -> Option<usize> {
    match header.shape[..] {
        [n, PIXELS]
        | [n, IMAGE_SIDE, IMAGE_SIDE]
        | [n, 1, IMAGE_SIDE, IMAGE_SIDE]
        | [n, IMAGE_SIDE, IMAGE_SIDE, 1] => Some(n),
        _ => None,
    }
}

fn read_pixels(mut input: Input) -> Result<Vec<u8>> {
    let header = Header::read(&mut input)?;
    let Some(n) = of_mnist(&header) else {
        bail!(input.error(format_args!(
            "expected the shape (n, 784), (n, 28, 28), (n, 1, 28, 28) or (n, 28, 28, 1), got {:?}",
            header.shape
        )));
    };
    ensure!(n > 0, input.error("expected at least one image, got none"));
    read_values(&header, &mut input, Values::Binary)
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
    /// 0 and 1, or 0 and 255.
    Binary,
    /// Whole numbers from 0 to 255, or floats from 0 to 1.
    Grey,
    /// 0 to 255.
    Labels,
}

impl Values {
    /// Returns the value as a byte, if it is allowed. `ink` is the ink value of earlier pixels, or 0 if all were background.
    fn byte(self, value: f64, ink: u8) -> Option<u8> {
        let byte = (value.fract() == 0.0 && (0.0..=255.0).contains(&value)).then_some(value as u8)?;
        let allowed = match self {
            Values::Binary => byte == 0 || byte == ink || ink == 0 && matches!(byte, 1 | 255),
            Values::Grey | Values::Labels => true,
        };
        allowed.then_some(byte)
    }

    /// Describes the expected values and the value found.
    fn expected(self, value: f64, ink: u8) -> String {
        match (self, ink) {
            (Values::Binary, _) => {
                let expected = if ink == 255 { "0 or 255" } else { "0 or 1" };
                // Mention grey images only if the value could be a grey value.
                match Values::Grey.byte(value, 0) {
                    Some(_) => format!("{expected}, got {value}: {GREY_HELP}"),
                    None => format!("{expected}, got {value}"),
                }
            }
            (Values::Grey, _) => {
                format!("a whole number from 0 to 255, got {value} (floats may be from 0 to 1, if all are)")
            }
            (Values::Labels, _) => format!("a whole number from 0 to 255 as label, got {value}"),
        }
    }
}

/// Advice for grey images where binary ones were expected.
pub const GREY_HELP: &str = "grey images are binarized from IDX files, from .npz files of x_train and x_test, and from text with \
                             commas; arrays of 28 x 28 grey values, if the reading asks for levels; --likelihood bernoulli binarizes those of .npy files too, --likelihood logistic keeps their levels";

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
    let (mut found, mut ink, mut fractions) = (Vec::new(), 0, false);
    let mut chunk = vec![0; CHUNK * header.width];
    let mut left = bytes;
    while left > 0 {
        let part = &mut chunk[..left.min((CHUNK * header.width) as u64) as usize];
        input.read_all(part, &what)?;
        left -= part.len() as u64;
        for element in part.chunks_exact(header.width) {
            let value = header.value(element);
            if values == Values::Grey && header.kind == Kind::Float {
                if !fractions && ink <= 1 && value > 0.0 && value < 1.0 {
                    // All values so far are 0 and 1, of the same scale.
                    found.iter_mut().for_each(|byte: &mut u8| *byte *= 255);
                    fractions = true;
                }
                if fractions {
                    if !(0.0..=1.0).contains(&value) {
                        let i = found.len();
                        let index = header.index(i);
                        bail!(input.error(format_args!(
                            "value {i} (index {index:?}): expected 0 to 1, as of the values before it, got {value}"
                        )));
                    }
                    found.push((value * 255.0).round() as u8);
                    continue;
                }
            }
            let Some(byte) = values.byte(value, ink) else {
                let i = found.len();
                bail!(input.error(format_args!(
                    "value {i} (index {:?}): expected {}",
                    header.index(i),
                    values.expected(value, ink)
                )));
            };
            ink = ink.max(byte);
            found.push(byte);
        }
    }
    input.finish(&what)?;
    if !header.fortran {
        return Ok(found);
    }
    Ok(header.array(DType::U8, found)?.to_vec())
}
