//! Reads MNIST's IDX files: a big-endian header, then bytes.

use anyhow::{Result, bail};

use super::input::Input;
use super::resize::MAX_SIDE;
use super::{IMAGE_SIDE, ImageShape};

/// Magic number: `0, 0`, element type (8: unsigned byte), number of dimensions.
const IMAGES: [u8; 4] = [0, 0, 8, 3];
const LABELS: [u8; 4] = [0, 0, 8, 1];

/// Reports whether a file's first bytes are those of an IDX file of any type.
pub fn is_idx(head: &[u8]) -> bool {
    matches!(head, [0, 0, 0x08 | 0x09 | 0x0b..=0x0e, 1..=4, ..])
}

/// Reads grey images: `n * 784` bytes from 0 (background) to 255, image after image.
///
/// # Errors
/// When the file is not an IDX file of 28 x 28 images. The message names the file and the byte.
pub fn read_images(input: Input) -> Result<Vec<u8>> {
    read_sized(input, |rows, columns| [rows, columns] == [IMAGE_SIDE; 2], "images of 28 x 28")
        .map(|read| read.1)
}

/// Reads grey images of any one size. Returns their shape, and their bytes from 0 (background) to 255, image after image.
///
/// # Errors
/// When the file is not an IDX file of images. The message names the file and the byte.
pub fn read_any(input: Input) -> Result<(ImageShape, Vec<u8>)> {
    let fits = |side| (1..=MAX_SIDE).contains(&side);
    read_sized(input, |rows, columns| fits(rows) && fits(columns), "images of 1 x 1 to 65535 x 65535")
}

fn read_sized(
    mut input: Input,
    fits: impl Fn(usize, usize) -> bool,
    expected: &str,
) -> Result<(ImageShape, Vec<u8>)> {
    read_magic(&mut input, IMAGES, "images")?;
    let n = read_u32(&mut input, "number of images")?;
    let rows = read_u32(&mut input, "number of rows")?;
    let columns = read_u32(&mut input, "number of columns")?;
    let shape = ImageShape { height: rows as usize, width: columns as usize, channels: 1 };
    if !fits(shape.height, shape.width) {
        bail!(input.error(format_args!("byte 8: expected {expected}, got {rows} x {columns}")));
    }
    if n == 0 {
        bail!(input.error("byte 4: expected at least one image, got 0"));
    }
    let Some(bytes) = u64::from(n).checked_mul(shape.values() as u64) else {
        bail!(
            input.error(format_args!(
                "the header claims {n} images of {rows} x {columns}: more than 2^64 bytes"
            ))
        );
    };
    Ok((shape, input.read_body(bytes, &format!("{n} images of {rows} x {columns}"))?))
}

/// Reads labels: `n` bytes.
///
/// # Errors
/// When the file is not an IDX file of labels. The message names the file and the byte.
pub fn read_labels(mut input: Input) -> Result<Vec<u8>> {
    read_magic(&mut input, LABELS, "labels")?;
    let n = read_u32(&mut input, "number of labels")?;
    input.read_body(u64::from(n), &format!("{n} labels"))
}

fn read_magic(input: &mut Input, expected: [u8; 4], what: &str) -> Result<()> {
    let mut magic = [0; 4];
    input.read_all(&mut magic, "the IDX magic number")?;
    if magic != expected {
        let holds = match magic {
            IMAGES => " (a file of images)",
            LABELS => " (a file of labels)",
            _ => "",
        };
        bail!(input.error(format_args!(
            "byte 0: expected the magic number 0x{:08x} of an IDX file of {what}, got 0x{:08x}{holds}",
            u32::from_be_bytes(expected),
            u32::from_be_bytes(magic)
        )));
    }
    Ok(())
}

fn read_u32(input: &mut Input, what: &str) -> Result<u32> {
    let mut bytes = [0; 4];
    input.read_all(&mut bytes, &format!("the IDX header ({what})"))?;
    Ok(u32::from_be_bytes(bytes))
}
