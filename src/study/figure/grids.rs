//! Draws images in rows and columns.

use std::path::Path;

use anyhow::{Result, ensure};

use super::picture::{Colour, Picture};

/// The smallest side of an image's pixel, in pixels of the picture.
const SCALE: usize = 3;
/// Larger images are scaled less, so that a side has about this many pixels of the picture.
const MOST_SCALED: usize = 192;
/// Few images are enlarged until the picture is about this wide, in pixels.
const WIDTH: usize = 480;
/// Gap between images, in pixels.
const GAP: usize = 2;
/// Gap between groups of rows, in pixels.
const WIDE_GAP: usize = 10;
/// Grey level of the gaps.
const BACKGROUND: u8 = 96;

/// Brightness of the squares behind transparent pixels, and their side in pixels of the picture.
const CHECKS: [f32; 2] = [0.97, 0.87];
const CHECK: usize = 6;

/// The layout of images in rows and columns.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Rows, columns and channels of an image.
    pub image: [usize; 3],
    /// Images per row.
    pub columns: usize,
    /// Rows per group. A wider gap separates groups. 0: all rows are one group.
    pub group: usize,
}

impl Grid {
    /// Draws images of brightness from 0 (black) to 1 (white), row by row from the top, in grey or RGB. Images with an opacity are
    /// drawn before light squares; their colours are multiplied by the opacity.
    ///
    /// # Errors
    /// When the values are not a whole number of images.
    pub fn picture(&self, values: &[f32]) -> Result<Picture> {
        let Grid { image: [image_height, image_width, channels], columns, group } = *self;
        let size = image_height * image_width * channels;
        let count = values.len() / size.max(1);
        ensure!(
            count > 0 && columns > 0 && values.len() == count * size,
            "{} values are not a whole number of images of {image_height} x {image_width} pixels and {channels} channels",
            values.len()
        );
        // Small images have large pixels. Large ones have pixels of their own size.
        let least = SCALE.min((MOST_SCALED / image_width.max(image_height)).max(1));
        let scale = (WIDTH / (image_width * columns)).clamp(least, 4 * least);
        let (cell_height, cell_width) = (image_height * scale + GAP, image_width * scale + GAP);
        let rows = count.div_ceil(columns);
        let top = |row: usize| {
            let breaks = row.checked_div(group).unwrap_or(0);
            GAP + row * cell_height + breaks * (WIDE_GAP - GAP)
        };
        let (width, height) = (columns * cell_width + GAP, top(rows - 1) + cell_height);
        let colour = if channels == 1 { Colour::Grey } else { Colour::Rgb };
        let bytes = colour.channels();
        let mut pixels = vec![BACKGROUND; width * height * bytes];
        for (i, image) in values.chunks_exact(size).enumerate() {
            let (top, left) = (top(i / columns), GAP + i % columns * cell_width);
            for y in 0..image_height * scale {
                for x in 0..image_width * scale {
                    let pixel = &image[(y / scale * image_width + x / scale) * channels..][..channels];
                    let behind = match pixel {
                        [_, _, _, opacity] => {
                            (1.0 - opacity.clamp(0.0, 1.0)) * CHECKS[(y / CHECK + x / CHECK) % 2]
                        }
                        _ => 0.0,
                    };
                    let at = ((top + y) * width + left + x) * bytes;
                    for (to, value) in pixels[at..at + bytes].iter_mut().zip(pixel) {
                        *to = ((value + behind).clamp(0.0, 1.0) * 255.0).round() as u8;
                    }
                }
            }
        }
        Ok(Picture { width, height, colour, pixels })
    }
}

/// Writes a PNG of images in rows of `columns`; see [`Grid::picture`].
///
/// # Errors
/// When the values are not a whole number of images, or the file cannot be written.
pub fn write(path: &Path, values: &[f32], image: [usize; 3], columns: usize) -> Result<()> {
    Grid { image, columns, group: 0 }.picture(values)?.write(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_drawn_at_their_positions() {
        let grid = Grid { image: [32, 32, 1], columns: 2, group: 1 };
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

    #[test]
    fn colours_are_drawn_and_transparent_pixels_show_squares() {
        let red = [1.0, 0.0, 0.0].repeat(8 * 16);
        let picture = Grid { image: [8, 16, 3], columns: 1, group: 0 }.picture(&red).unwrap();
        assert_eq!(picture.colour, Colour::Rgb);
        let at = |picture: &Picture, y: usize, x: usize| {
            picture.pixels[(y * picture.width + x) * 3..][..3].to_vec()
        };
        assert_eq!(at(&picture, GAP, GAP), [255, 0, 0]);
        assert_eq!(picture.width - 2 * GAP, 2 * (picture.height - 2 * GAP));
        let clear = vec![0.0; 8 * 8 * 4];
        let picture = Grid { image: [8, 8, 4], columns: 1, group: 0 }.picture(&clear).unwrap();
        assert_eq!(at(&picture, GAP, GAP), [247; 3]);
        assert_eq!(at(&picture, GAP, GAP + CHECK), [222; 3]);
        // Half transparent red, multiplied by its opacity.
        let half = [0.5, 0.0, 0.0, 0.5].repeat(64);
        let picture = Grid { image: [8, 8, 4], columns: 1, group: 0 }.picture(&half).unwrap();
        assert_eq!(at(&picture, GAP, GAP), [251, 124, 124]);
    }
}
