//! Resizes images: a centre crop to the new aspect ratio, then the average of the area that each new pixel covers.
//!
//! An axis that grows is interpolated linearly instead. All weights are whole numbers, so that a result is the exact average,
//! rounded once.

use super::ImageShape;

/// Greatest height or width of an image that is resized. The sums of a column's weights then fit in 32 bits.
pub const MAX_SIDE: usize = 65_535;

/// The part of an image that is kept: the first row and column, the rows and the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// Rows above the part.
    pub top: usize,
    /// Columns left of the part.
    pub left: usize,
    /// Rows of the part.
    pub height: usize,
    /// Columns of the part.
    pub width: usize,
}

/// Returns the largest part in the centre of an image that has the aspect ratio of `size`, to the nearest pixel.
pub fn centre_crop(shape: ImageShape, size: [usize; 2]) -> Crop {
    let ImageShape { height, width, .. } = shape;
    let rounded = |a: usize, b: usize, c: usize| ((2 * a * b + c) / (2 * c)).max(1);
    let (h, w) = if width * size[0] > height * size[1] {
        (height, rounded(height, size[1], size[0]).min(width))
    } else {
        (rounded(width, size[0], size[1]).min(height), width)
    };
    Crop { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
}

/// Returns an image of the new height and width, after a centre crop.
///
/// # Panics
/// When a size is 0 or above [`MAX_SIDE`], or the number of pixels does not match the shape.
pub fn resized(pixels: &[u8], shape: ImageShape, size: [usize; 2]) -> Vec<u8> {
    assert_eq!(pixels.len(), shape.values(), "an image of another shape");
    let sides = [shape.height, shape.width, size[0], size[1]];
    assert!(sides.iter().all(|side| (1..=MAX_SIDE).contains(side)), "a side out of range");
    if [shape.height, shape.width] == size {
        return pixels.to_vec();
    }
    let Crop { top, left, height, width } = centre_crop(shape, size);
    let (rows, columns) = (Taps::new(height, size[0]), Taps::new(width, size[1]));
    let channels = shape.channels;
    let total = u64::from(rows.total) * u64::from(columns.total);
    let mut out = Vec::with_capacity(size[0] * size[1] * channels);
    let mut sums = vec![0u32; width * channels];
    for (first, weights) in &rows.taps {
        sums.fill(0);
        for (i, weight) in weights.iter().enumerate() {
            let start = ((top + first + i) * shape.width + left) * channels;
            for (sum, pixel) in sums.iter_mut().zip(&pixels[start..][..width * channels]) {
                *sum += weight * u32::from(*pixel);
            }
        }
        for (first, weights) in &columns.taps {
            for channel in 0..channels {
                let column = |i: usize| u64::from(sums[(first + i) * channels + channel]);
                let sum: u64 = weights.iter().enumerate().map(|(i, w)| u64::from(*w) * column(i)).sum();
                out.push(((sum + total / 2) / total) as u8);
            }
        }
    }
    out
}

/// The old pixels of each new pixel along an axis, with their weights.
struct Taps {
    /// The first old pixel, and the weights from there on.
    taps: Vec<(usize, Vec<u32>)>,
    /// The sum of a new pixel's weights.
    total: u32,
}

impl Taps {
    fn new(old: usize, new: usize) -> Taps {
        if new > old { Taps::linear(old, new) } else { Taps::area(old, new) }
    }

    /// In units of 1 / (old x new) of the axis, an old pixel has the length `new` and a new pixel the length `old`.
    fn area(old: usize, new: usize) -> Taps {
        let taps = (0..new).map(|i| {
            let (begin, end) = (i * old, (i + 1) * old);
            let first = begin / new;
            let overlap = |pixel: usize| (end.min((pixel + 1) * new) - begin.max(pixel * new)) as u32;
            (first, (first..end.div_ceil(new)).map(overlap).collect())
        });
        Taps { taps: taps.collect(), total: old as u32 }
    }

    /// A new pixel's centre lies between the centres of two old ones, or beyond that at the border.
    fn linear(old: usize, new: usize) -> Taps {
        let taps = (0..new).map(|i| {
            let from_first = ((2 * i + 1) * old).saturating_sub(new).min(2 * new * (old - 1));
            let (first, rest) = (from_first / (2 * new), from_first % (2 * new));
            let weights =
                if rest == 0 { vec![2 * new as u32] } else { vec![(2 * new - rest) as u32, rest as u32] };
            (first, weights)
        });
        Taps { taps: taps.collect(), total: 2 * new as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(height: usize, width: usize) -> ImageShape {
        ImageShape { height, width, channels: 1 }
    }

    #[test]
    fn a_smaller_image_has_the_averages_of_areas() {
        let pixels = [0, 4, 8, 8, 2, 2, 8, 8];
        assert_eq!(resized(&pixels, grey(2, 4), [1, 2]), [2, 8]);
        // Each new pixel covers one and a half old ones.
        assert_eq!(resized(&[30, 60, 90], grey(1, 3), [1, 2]).len(), 2);
        let column = resized(&[30, 60, 90, 30, 60, 90, 30, 60, 90], grey(3, 3), [2, 2]);
        assert_eq!(column, [40, 80, 40, 80]);
        let rgb = ImageShape { channels: 3, ..grey(2, 2) };
        assert_eq!(resized(&[0, 10, 255, 4, 20, 255, 8, 30, 255, 12, 40, 253], rgb, [1, 1]), [6, 25, 255]);
    }

    #[test]
    fn a_larger_image_is_interpolated() {
        assert_eq!(resized(&[0, 100, 0, 100], grey(2, 2), [4, 4])[..4], [0, 25, 75, 100]);
        assert_eq!(resized(&[7], grey(1, 1), [3, 3]), [7; 9]);
    }

    #[test]
    fn a_crop_keeps_the_centre_and_the_new_aspect_ratio() {
        assert_eq!(centre_crop(grey(10, 30), [8, 8]), Crop { top: 0, left: 10, height: 10, width: 10 });
        assert_eq!(centre_crop(grey(30, 10), [8, 16]), Crop { top: 12, left: 0, height: 5, width: 10 });
        assert_eq!(centre_crop(grey(1, 1000), [256, 8]), Crop { top: 0, left: 499, height: 1, width: 1 });
        let mut pixels = vec![9; 10 * 30];
        for row in 0..10 {
            pixels[row * 30 + 10..][..10].fill(77);
        }
        assert_eq!(resized(&pixels, grey(10, 30), [5, 5]), [77; 25]);
    }
}
