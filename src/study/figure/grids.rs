//! Draws grey images in rows and columns.

use std::path::Path;

use anyhow::{Result, ensure};

use super::picture::{Colour, Picture};

/// The smallest side of an image's pixel, in pixels of the picture.
const SCALE: usize = 3;
/// Few images are enlarged until the picture is about this wide, in pixels.
const WIDTH: usize = 480;
/// Gap between images, in pixels.
const GAP: usize = 2;
/// Gap between groups of rows, in pixels.
const WIDE_GAP: usize = 10;
/// Grey level of the gaps.
const BACKGROUND: u8 = 96;

/// The layout of square grey images in rows and columns.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Side of an image, in its own pixels.
    pub side: usize,
    /// Images per row.
    pub columns: usize,
    /// Rows per group. A wider gap separates groups. 0: all rows are one group.
    pub group: usize,
}

impl Grid {
    /// Draws images of `side * side` values each, from 0 (black) to 1 (white), row by row from the top.
    ///
    /// # Errors
    /// When the values are not a whole number of images.
    pub fn picture(&self, values: &[f32]) -> Result<Picture> {
        let Grid { side, columns, group } = *self;
        let count = values.len() / (side * side).max(1);
        ensure!(
            count > 0 && columns > 0 && values.len() == count * side * side,
            "{} values are not a whole number of images of {side} x {side}",
            values.len()
        );
        let scale = (WIDTH / (side * columns)).clamp(SCALE, 4 * SCALE);
        let cell = side * scale + GAP;
        let rows = count.div_ceil(columns);
        let top = |row: usize| {
            let breaks = row.checked_div(group).unwrap_or(0);
            GAP + row * cell + breaks * (WIDE_GAP - GAP)
        };
        let (width, height) = (columns * cell + GAP, top(rows - 1) + cell);
        let mut pixels = vec![BACKGROUND; width * height];
        for (i, image) in values.chunks_exact(side * side).enumerate() {
            let (top, left) = (top(i / columns), GAP + i % columns * cell);
            for y in 0..side * scale {
                for x in 0..side * scale {
                    let value = image[y / scale * side + x / scale];
                    pixels[(top + y) * width + left + x] = (value.clamp(0.0, 1.0) * 255.0).round() as u8;
                }
            }
        }
        Ok(Picture { width, height, colour: Colour::Grey, pixels })
    }
}

/// Writes a PNG of square grey images, of `side * side` values each, from 0 (black) to 1 (white), in rows of `columns`.
///
/// # Errors
/// When the values are not a whole number of images, or the file cannot be written.
pub fn write(path: &Path, values: &[f32], side: usize, columns: usize) -> Result<()> {
    Grid { side, columns, group: 0 }.picture(values)?.write(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_drawn_at_their_positions() {
        let grid = Grid { side: 32, columns: 2, group: 1 };
        let values: Vec<f32> = [0.0, 1.0, 0.5].iter().flat_map(|v| vec![*v; 32 * 32]).collect();
        let picture = grid.picture(&values).unwrap();
        let cell = (picture.width - GAP) / 2;
        assert_eq!(picture.height, 2 * cell + WIDE_GAP);
        let at = |y: usize, x: usize| picture.pixels[y * picture.width + x];
        let below = cell + WIDE_GAP;
        assert_eq!((at(GAP, GAP), at(GAP, GAP + cell), at(below, GAP)), (0, 255, 128));
        assert_eq!(
            (at(below, GAP + cell), at(0, 0), at(below - 1, GAP)),
            (BACKGROUND, BACKGROUND, BACKGROUND)
        );
        assert!(grid.picture(&values[1..]).is_err() && grid.picture(&[]).is_err());
    }
}
