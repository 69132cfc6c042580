//! Grey images in rows and columns.

use std::path::Path;

use anyhow::{Result, ensure};

use super::picture::{Colour, Picture};

/// Pixels of a picture for one of an image, at most: large enough to be seen.
const SCALE: usize = 3;
/// Few images are shown larger, until the picture is about as wide as this.
const WIDE: usize = 480;
/// Pixels between images.
const GAP: usize = 2;
/// Pixels between groups of rows.
const WIDE_GAP: usize = 10;
/// Grey of the gaps.
const BACKGROUND: u8 = 96;

/// Square grey images in rows and columns.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Rows and columns of pixels of an image.
    pub side: usize,
    /// Images a row.
    pub columns: usize,
    /// Rows that belong together: a wider gap stands between groups. 0: all.
    pub group: usize,
}

impl Grid {
    /// The picture of images, `side * side` values from 0 (black) to 1 each, in rows from the top.
    ///
    /// # Errors
    /// When the values do not make whole images.
    pub fn picture(&self, values: &[f32]) -> Result<Picture> {
        let Grid { side, columns, group } = *self;
        let count = values.len() / (side * side).max(1);
        ensure!(
            count > 0 && columns > 0 && values.len() == count * side * side,
            "no whole images of {side} x {side}"
        );
        let scale = (WIDE / (side * columns)).clamp(SCALE, 4 * SCALE);
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

/// Writes square grey images, `side * side` values from 0 (black) to 1 each, in rows of `columns` as PNG.
///
/// # Errors
/// When the values do not make whole images, or the file cannot be written.
pub fn write(path: &Path, values: &[f32], side: usize, columns: usize) -> Result<()> {
    Grid { side, columns, group: 0 }.picture(values)?.write(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_stand_at_their_places() {
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
