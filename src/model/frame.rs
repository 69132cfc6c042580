//! The sizes of a model's images: the pixels of the data set, and the grid of cells that the model computes.
//!
//! Images lie in the middle of the grid. The grid is as large as the image, or larger if the model needs it: the first grid of a
//! doubling model becomes twice as high and wide in every doubling.

use anyhow::Result;

use crate::engine::ir::Sym;
use crate::engine::ir::ops::layout::Padding;
use crate::engine::shape::{DType, Shape};
use crate::error::valid;

/// The fewest rows or columns of an image.
pub const FEWEST: usize = 8;
/// The most rows or columns of an image.
pub const MOST: usize = 256;

/// The sizes of a model's images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Values of a pixel: 1 for grey, 3 for RGB, 4 for RGBA.
    pub channels: usize,
    /// Rows and columns of the grid.
    pub grid: [usize; 2],
    /// Whether the margin around the image counts as pixels of zeros, which are scored and shown like the others. Otherwise a
    /// decoder's outputs in the margin have no effect.
    ///
    /// The report's models count the margin: their images have 32 x 32 pixels.
    pub counts_margin: bool,
}

impl Frame {
    /// The report's images of 28 x 28 pixels, with a margin of two zeros on every side.
    pub const REPORT: Frame =
        Frame { height: 28, width: 28, channels: 1, grid: [32, 32], counts_margin: true };

    /// Returns the frame of images without a margin.
    pub fn new(height: usize, width: usize, channels: usize) -> Frame {
        Frame { height, width, channels, grid: [height, width], counts_margin: false }
    }

    /// Returns the frame with a grid whose rows and columns are the next multiples of `unit`. Without effect on a frame that
    /// counts its margin.
    pub fn in_multiples_of(self, unit: usize) -> Frame {
        match self.counts_margin {
            true => self,
            false => {
                Frame { grid: [self.height, self.width].map(|side| side.next_multiple_of(unit)), ..self }
            }
        }
    }

    /// Returns the larger side of the grid.
    pub fn side(&self) -> usize {
        self.grid[0].max(self.grid[1])
    }

    /// Returns how often a grid is halved until its larger side has two cells, at least `least` times.
    pub fn halvings(&self, least: usize) -> usize {
        least.max(self.side().div_ceil(2).next_power_of_two().trailing_zeros() as usize)
    }

    /// Returns the shape of `n` images of a data set: u8, (n, h, w) of grey images, (n, h, w, channels) of others.
    pub fn pixels(&self, n: usize) -> Shape {
        Shape::new(DType::U8, &[&[n], self.pixel_dims().as_slice()].concat())
    }

    /// Returns the dimensions of an image of a data set.
    pub fn pixel_dims(&self) -> Vec<usize> {
        match self.channels {
            1 => vec![self.height, self.width],
            channels => vec![self.height, self.width, channels],
        }
    }

    /// Returns rows, columns and channels of the pixels that count: those of the image, or those of the grid if its margin counts.
    pub fn counted(&self) -> [usize; 3] {
        match self.counts_margin {
            true => [self.grid[0], self.grid[1], self.channels],
            false => [self.height, self.width, self.channels],
        }
    }

    /// Returns the margin before and after the rows, and before and after the columns.
    pub fn margins(&self) -> [[usize; 2]; 2] {
        [(self.grid[0], self.height), (self.grid[1], self.width)].map(|(grid, image)| {
            let margin = grid - image;
            [margin / 2, margin - margin / 2]
        })
    }

    /// Pads images (n, h, w) or (n, h, w, channels) with zeros to the grid: (n, rows, columns, channels).
    pub fn pad<'g>(&self, images: Sym<'g>) -> Sym<'g> {
        let n = images.dims()[0];
        let mut padding = vec![Padding::default(); images.rank()];
        for (padding, [before, after]) in padding[1..].iter_mut().zip(self.margins()) {
            *padding = Padding::new(before as i64, after as i64);
        }
        let padded = match self.grid == [self.height, self.width] {
            true => images,
            false => images.pad(images.scalar_like(0.0), &padding),
        };
        padded.reshape(&[n, self.grid[0], self.grid[1], self.channels])
    }

    /// Returns the pixels that count of values (n, rows, columns, k) for the whole grid.
    pub fn crop<'g>(&self, values: Sym<'g>) -> Sym<'g> {
        let [[top, _], [left, _]] = self.margins();
        let [height, width, _] = self.counted();
        if [height, width] == self.grid {
            return values;
        }
        values.slice_axis(1, top, top + height).slice_axis(2, left, left + width)
    }

    /// Checks the fields.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid), with the field that is out of range.
    pub fn check(&self) -> Result<()> {
        let Frame { height, width, channels, grid, .. } = *self;
        for side in [height, width] {
            valid!(
                (FEWEST..=MOST).contains(&side),
                "image_size",
                "{height}x{width}: images have {FEWEST} to {MOST} rows and columns"
            );
        }
        valid!(matches!(channels, 1 | 3 | 4), "channels", "{channels}: 1 (grey), 3 (RGB) or 4 (RGBA)");
        valid!(
            grid[0] >= height && grid[1] >= width && grid[0].max(grid[1]) <= 2 * MOST,
            "grid",
            "{}x{}: at least the image's {height}x{width}, at most {}",
            grid[0],
            grid[1],
            2 * MOST
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_has_room_for_the_doublings() {
        let frame = Frame::new(60, 33, 3);
        assert_eq!(frame.in_multiples_of(32).grid, [64, 64]);
        assert_eq!(frame.in_multiples_of(8).margins(), [[2, 2], [3, 4]]);
        assert_eq!(Frame::REPORT.in_multiples_of(64), Frame::REPORT);
        assert_eq!(frame.counted(), [60, 33, 3]);
        assert_eq!(Frame::REPORT.counted(), [32, 32, 1]);
    }

    #[test]
    fn halvings_end_at_two_cells() {
        let halvings = |side| Frame::new(side, 8, 1).halvings(4);
        assert_eq!([8, 32, 33, 64, 128, 256].map(halvings), [4, 4, 5, 5, 6, 7]);
    }
}
