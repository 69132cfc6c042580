//! Binary images and labels in NumPy's `.npy` arrays.

use anyhow::{Result, bail, ensure};

use super::input::Input;
use super::{PIXELS, SIDE};
pub use crate::engine::npy::MAGIC;
use crate::engine::npy::{Header, Source};
use crate::engine::shape::DType;

/// Elements that are read at a time.
const CHUNK: usize = 1 << 13;

/// Reads images of shape (n, 784), (n, 28, 28), (n, 1, 28, 28) or (n, 28, 28, 1): `n * 784` bytes, each 0 or 1.
///
/// # Errors
/// Name the file, what its header says instead of what was expected, or the index of a value that is not 0 or 1.
pub fn read_images(mut input: Input) -> Result<Vec<u8>> {
    let header = Header::read(&mut input)?;
    let n = match header.shape[..] {
        [n, PIXELS] | [n, SIDE, SIDE] | [n, 1, SIDE, SIDE] | [n, SIDE, SIDE, 1] => n,
        _ => bail!(input.error(format_args!(
            "expected the shape (n, 784), (n, 28, 28), (n, 1, 28, 28) or (n, 28, 28, 1), got {:?}",
            header.shape
        ))),
    };
    ensure!(n > 0, input.error("expected at least one image, got the shape of none"));
    read_values(&header, &mut input, 1)
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
    read_values(&header, &mut input, 9)
}

impl Source for Input {
    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<()> {
        self.read_all(buffer, what)
    }

    fn wrong(&self, message: String) -> anyhow::Error {
        self.error(message)
    }
}

/// Reads all values, which must be integers from 0 to `max`, to the end of the file; gives them in C order.
fn read_values(header: &Header, input: &mut Input, max: u8) -> Result<Vec<u8>> {
    let elements = header.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n as u64));
    let bytes = elements.and_then(|n| n.checked_mul(header.width as u64));
    let what = format!("an array of shape {:?}, {} bytes an element", header.shape, header.width);
    let Some(bytes) = bytes else {
        bail!(input.error(format_args!("the header claims {what}: that is more than 2^64 bytes")));
    };
    input.check_claim(bytes, &what)?;
    let mut values = Vec::new();
    let mut chunk = vec![0; CHUNK * header.width];
    let mut left = bytes;
    while left > 0 {
        let part = &mut chunk[..left.min((CHUNK * header.width) as u64) as usize];
        input.read_all(part, &what)?;
        left -= part.len() as u64;
        for element in part.chunks_exact(header.width) {
            let value = header.value(element);
            if !(0.0..=f64::from(max)).contains(&value) || value.fract() != 0.0 {
                let (i, allowed) = (values.len(), if max == 1 { "0 or 1" } else { "0 to 9" });
                bail!(input.error(format_args!(
                    "value {i} (index {:?}): expected {allowed}, got {value}",
                    header.index(i)
                )));
            }
            values.push(value as u8);
        }
    }
    input.finish(&what)?;
    Ok(header.array(DType::U8, values)?.to_vec())
}
