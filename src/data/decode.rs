//! Decodes an image file: PNG, JPEG, WebP, GIF or BMP, whichever its content is.
//!
//! The result has as few channels as show the image: grey if red, green and blue are equal everywhere, and an opacity only if
//! some pixel is not opaque. Colours are multiplied by the opacity. Rotations that EXIF asks for are applied. Of an animation
//! the first frame is read.

use std::io::Cursor;

use anyhow::{Context, Result, bail, ensure};
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::ImageShape;
use super::resize::MAX_SIDE;

/// Most pixels of a file. A larger claim is refused before memory is taken for it.
pub const MAX_PIXELS: u64 = 64 << 20;
/// Most bytes that a decoder takes beside the pixels, and for them in 16 bits a value.
const MAX_BYTES: u64 = 8 * MAX_PIXELS + (64 << 20);

/// A decoded image.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// Height, width, and 1, 3 or 4 channels.
    pub shape: ImageShape,
    /// Row after row, pixel after pixel.
    pub pixels: Vec<u8>,
    /// Whether the file is an animation, of which this is the first frame.
    pub animated: bool,
}

/// Decodes the bytes of a file.
///
/// # Errors
/// When the bytes are no image of a known format, are truncated or damaged, or claim more than [`MAX_PIXELS`].
pub fn decode(bytes: &[u8]) -> Result<Decoded> {
    let format = image::guess_format(bytes).ok().filter(|format| {
        use ImageFormat::{Bmp, Gif, Jpeg, Png, WebP};
        matches!(format, Bmp | Gif | Jpeg | Png | WebP)
    });
    let Some(format) = format else {
        let head = bytes[..bytes.len().min(8)].escape_ascii();
        ensure!(!bytes.is_empty(), "the file is empty (0 bytes)");
        bail!("expected a PNG, JPEG, WebP, GIF or BMP image, got a file that starts with '{head}'");
    };
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().with_context(damaged)?;
    let (width, height) = decoder.dimensions();
    ensure!(
        u64::from(width) * u64::from(height) <= MAX_PIXELS && width.max(height) as usize <= MAX_SIDE,
        "{height} x {width} pixels: at most {MAX_PIXELS} pixels, and {MAX_SIDE} a side, are read from a file"
    );
    let orientation = decoder.orientation().with_context(damaged)?;
    match format {
        ImageFormat::Jpeg => check_jpeg_end(bytes)?,
        ImageFormat::Gif => check_gif_frame(bytes)?,
        _ => {}
    }
    let mut image = DynamicImage::from_decoder(decoder).with_context(damaged)?;
    image.apply_orientation(orientation);
    let animated = is_animated(bytes, format);
    let mut decoded = simplified(image);
    decoded.animated = animated;
    Ok(decoded)
}

fn damaged() -> &'static str {
    "truncated or damaged"
}

/// Returns the image with as few channels as show it.
fn simplified(image: DynamicImage) -> Decoded {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let made = |channels, pixels| {
        let shape = ImageShape { height, width, channels };
        Decoded { shape, pixels, animated: false }
    };
    match &image {
        DynamicImage::ImageLuma8(_) | DynamicImage::ImageLuma16(_) => {
            return made(1, image.into_luma8().into_raw());
        }
        DynamicImage::ImageRgb8(_) | DynamicImage::ImageRgb16(_) => {
            let pixels = image.into_rgb8().into_raw();
            let is_grey = pixels.chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2]);
            return if is_grey {
                made(1, pixels.chunks_exact(3).map(|p| p[0]).collect())
            } else {
                made(3, pixels)
            };
        }
        _ => {}
    }
    let mut pixels = image.into_rgba8().into_raw();
    if pixels.chunks_exact(4).any(|p| p[3] < 255) {
        premultiply(&mut pixels);
        made(4, pixels)
    } else if pixels.chunks_exact(4).all(|p| p[0] == p[1] && p[1] == p[2]) {
        made(1, pixels.chunks_exact(4).map(|p| p[0]).collect())
    } else {
        made(3, pixels.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect())
    }
}

/// Multiplies red, green and blue of RGBA pixels by the opacity.
pub fn premultiply(pixels: &mut [u8]) {
    for pixel in pixels.chunks_exact_mut(4) {
        let opacity = u32::from(pixel[3]);
        for value in &mut pixel[..3] {
            *value = ((u32::from(*value) * opacity + 127) / 255) as u8;
        }
    }
}

/// Returns pixels with more channels: grey as equal colours, and opaque.
pub fn widened(pixels: Vec<u8>, from: usize, to: usize) -> Vec<u8> {
    match (from, to) {
        (1, 3) => pixels.iter().flat_map(|p| [*p; 3]).collect(),
        (1, 4) => pixels.iter().flat_map(|p| [*p, *p, *p, 255]).collect(),
        (3, 4) => pixels.chunks_exact(3).flat_map(|p| [p[0], p[1], p[2], 255]).collect(),
        _ => pixels,
    }
}

/// Checks that a JPEG file has its end marker. The decoder fills the missing rest of a truncated file with grey.
fn check_jpeg_end(bytes: &[u8]) -> Result<()> {
    let mut at = 2;
    let truncated = || format!("truncated: no end of the JPEG image within {} bytes", bytes.len());
    loop {
        // In an image's data, 0xff is followed by 0, or by a restart marker.
        while bytes.get(at).is_some_and(|byte| *byte != 0xff) {
            at += 1;
        }
        match *bytes.get(at + 1).with_context(truncated)? {
            0xff => at += 1,
            0xd9 => return Ok(()),
            0 | 1 | 0xd0..=0xd8 => at += 2,
            _ => {
                let length = bytes.get(at + 2..at + 4).with_context(truncated)?;
                at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
            }
        }
    }
}

/// Checks that a GIF file's first frame is not larger than the image, which memory would be taken for.
fn check_gif_frame(bytes: &[u8]) -> Result<()> {
    let mut first = None;
    gif_blocks(bytes, |frame| {
        first = Some(frame);
        false
    });
    let number = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    let (Some(frame), Some(screen)) = (first, bytes.get(6..10)) else { return Ok(()) };
    let (frame, screen) =
        ([number(&frame[4..]), number(&frame[6..])], [number(screen), number(&screen[2..])]);
    ensure!(
        frame[0] <= screen[0] && frame[1] <= screen[1],
        "damaged: a frame of {} x {} in an image of {} x {}",
        frame[1],
        frame[0],
        screen[1],
        screen[0]
    );
    Ok(())
}

fn is_animated(bytes: &[u8], format: ImageFormat) -> bool {
    match format {
        ImageFormat::Gif => gif_frames(bytes) > 1,
        ImageFormat::Png => PngDecoder::new(Cursor::new(bytes)).and_then(|d| d.is_apng()).unwrap_or(false),
        ImageFormat::WebP => WebPDecoder::new(Cursor::new(bytes)).is_ok_and(|d| d.has_animation()),
        _ => false,
    }
}

/// Counts the frames of a GIF file without decoding them, up to two.
fn gif_frames(bytes: &[u8]) -> usize {
    let mut frames = 0;
    gif_blocks(bytes, |_| {
        frames += 1;
        frames < 2
    });
    frames
}

/// Calls a function with the place and size of each frame of a GIF file, four numbers of two bytes, until it returns false.
/// Returns `None` if the file ends before.
fn gif_blocks<'a>(bytes: &'a [u8], mut frame: impl FnMut(&'a [u8]) -> bool) -> Option<()> {
    let table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let mut at = 13 + table(*bytes.get(10)?);
    loop {
        match *bytes.get(at)? {
            0x2c => {
                if !frame(bytes.get(at + 1..at + 9)?) {
                    return Some(());
                }
                at += 11 + table(*bytes.get(at + 9)?);
            }
            0x21 => at += 2,
            _ => return Some(()),
        }
        // Blocks of data, each with its length before it; an empty one is the last.
        while *bytes.get(at)? != 0 {
            at += 1 + usize::from(bytes[at]);
        }
        at += 1;
    }
}
