//! Reads images and labels from NumPy's `.npy` arrays: a file, or an entry of an `.npz` file.

use anyhow::{Context, Result, bail, ensure};

use super::input::Input;
use super::{IMAGE_SIDE, PIXELS, check_grey};
pub use crate::engine::npy::MAGIC;
use crate::engine::npy::{Header, Source};
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
    let mut pixels = read_pixels(input, Values::Binary)?;
    pixels.iter_mut().for_each(|pixel| *pixel = (*pixel).min(1));
    Ok(pixels)
}

/// Reads grey images of the shapes of [`read_images`]. Returns `n * 784` bytes from 0 to 255. In the file they are whole numbers.
///
/// # Errors
/// The errors of [`read_images`].
pub fn read_grey(input: Input) -> Result<Vec<u8>> {
    let place = input.error("");
    let pixels = read_pixels(input, Values::Grey)?;
    check_grey(&pixels).with_context(|| place.to_string().trim_end().to_owned())?;
    Ok(pixels)
}

fn read_pixels(mut input: Input, values: Values) -> Result<Vec<u8>> {
    let header = Header::read(&mut input)?;
    let n = match header.shape[..] {
        [n, PIXELS]
        | [n, IMAGE_SIDE, IMAGE_SIDE]
        | [n, 1, IMAGE_SIDE, IMAGE_SIDE]
        | [n, IMAGE_SIDE, IMAGE_SIDE, 1] => n,
        _ => bail!(input.error(format_args!(
            "expected the shape (n, 784), (n, 28, 28), (n, 1, 28, 28) or (n, 28, 28, 1), got {:?}",
            header.shape
        ))),
    };
    ensure!(n > 0, input.error("expected at least one image, got none"));
    read_values(&header, &mut input, values)
}

/// Reads labels of shape (n,) or (n, 1). Returns `n` bytes from 0 to 9.
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
    /// 0 to 255.
    Grey,
    /// 0 to 9.
    Labels,
}

impl Values {
    /// Returns the value as a byte, if it is allowed. `ink` is the ink value of earlier pixels, or 0 if all were background.
    fn byte(self, value: f64, ink: u8) -> Option<u8> {
        let byte = (value.fract() == 0.0 && (0.0..=255.0).contains(&value)).then_some(value as u8)?;
        let allowed = match self {
            Values::Binary => byte == 0 || byte == ink || ink == 0 && matches!(byte, 1 | 255),
            Values::Grey => true,
            Values::Labels => byte <= 9,
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
            (Values::Grey, _) => format!("a whole number from 0 to 255, got {value}"),
            (Values::Labels, _) => format!("0 to 9, got {value}"),
        }
    }
}

/// Advice for grey images where binary ones were expected.
pub const GREY_HELP: &str = "grey images are binarized from IDX files, from .npz files of x_train and x_test, and from text with \
                             commas";

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
    let (mut found, mut ink) = (Vec::new(), 0);
    let mut chunk = vec![0; CHUNK * header.width];
    let mut left = bytes;
    while left > 0 {
        let part = &mut chunk[..left.min((CHUNK * header.width) as u64) as usize];
        input.read_all(part, &what)?;
        left -= part.len() as u64;
        for element in part.chunks_exact(header.width) {
            let value = header.value(element);
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
