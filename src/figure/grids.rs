//! Images in rows and columns, as PNG.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Pixels of a picture for one of an image: large enough to be seen.
const SCALE: usize = 3;
/// Pixels between images.
const GAP: usize = 2;
/// Grey of the gaps.
const BACKGROUND: u8 = 96;

/// Writes square grey images, `side * side` values from 0 (black) to 1 each, in rows of `columns`.
///
/// # Errors
/// When the values do not make whole images, or the file cannot be written.
pub fn write(path: &Path, values: &[f32], side: usize, columns: usize) -> Result<()> {
    let count = values.len() / (side * side);
    ensure!(
        count > 0 && columns > 0 && values.len() == count * side * side,
        "no whole images of {side} x {side}"
    );
    let rows = count.div_ceil(columns);
    let cell = side * SCALE + GAP;
    let (width, height) = (columns * cell + GAP, rows * cell + GAP);
    let mut pixels = vec![BACKGROUND; width * height];
    for (i, image) in values.chunks_exact(side * side).enumerate() {
        let (top, left) = (GAP + i / columns * cell, GAP + i % columns * cell);
        for y in 0..side * SCALE {
            for x in 0..side * SCALE {
                let value = image[y / SCALE * side + x / SCALE];
                pixels[(top + y) * width + left + x] = (value.clamp(0.0, 1.0) * 255.0).round() as u8;
            }
        }
    }
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut encoder = png::Encoder::new(BufWriter::new(file), width as u32, height as u32);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer
        .write_image_data(&pixels)
        .and_then(|()| writer.finish())
        .with_context(|| format!("cannot write {}", path.display()))
}
