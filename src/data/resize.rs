//! Resizes images by the mean of the area that a pixel covers.

use super::ImageShape;

/// Returns an image of `height` x `width` pixels. `pixels` has the given shape, row after row.
///
/// First crops the image in the middle to the new ratio of height to width. A new pixel is the mean of the area that it covers, so
/// that enlarging by a whole number repeats pixels. Between whole numbers the covered pixels count by their share of the area.
pub fn resize(pixels: &[u8], shape: ImageShape, [height, width]: [usize; 2]) -> Vec<u8> {
    if [shape.height, shape.width] == [height, width] {
        return pixels.to_vec();
    }
    let (full_height, full_width, channels) = (shape.height as f64, shape.width as f64, shape.channels);
    let scale = (full_height / height as f64).min(full_width / width as f64);
    let rows = spans(full_height, height, scale);
    let columns = spans(full_width, width, scale);
    // Rows first, in f32: (height, full width, channels).
    let row_values = shape.width * channels;
    let mut narrow = vec![0.0f32; height * row_values];
    for (row, shares) in narrow.chunks_exact_mut(row_values).zip(&rows) {
        for (from, share) in shares {
            for (sum, pixel) in row.iter_mut().zip(&pixels[from * row_values..][..row_values]) {
                *sum += share * f32::from(*pixel);
            }
        }
    }
    let mut result = Vec::with_capacity(height * width * channels);
    for row in narrow.chunks_exact(row_values) {
        for shares in &columns {
            for channel in 0..channels {
                let sum: f32 =
                    shares.iter().map(|(from, share)| share * row[from * channels + channel]).sum();
                result.push(sum.round().clamp(0.0, 255.0) as u8);
            }
        }
    }
    result
}

/// Returns for each of `count` new pixels the old pixels that it covers, each with its share of the area. A new pixel covers
/// `scale` old ones, and all together lie in the middle of the `full` old ones.
fn spans(full: f64, count: usize, scale: f64) -> Vec<Vec<(usize, f32)>> {
    let before = (full - scale * count as f64) / 2.0;
    let span = |i: usize| {
        let (start, end) = (before + scale * i as f64, before + scale * (i + 1) as f64);
        let (first, last) = (start.max(0.0) as usize, end.min(full).ceil() as usize);
        (first..last)
            .map(|from| {
                let covered = end.min(from as f64 + 1.0) - start.max(from as f64);
                (from, (covered / scale) as f32)
            })
            .filter(|(_, share)| *share > 0.0)
            .collect()
    };
    (0..count).map(span).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(height: usize, width: usize, channels: usize) -> ImageShape {
        ImageShape { height, width, channels }
    }

    #[test]
    fn pixels_are_means_of_areas() {
        let image: Vec<u8> = (0..16).map(|i| i * 10).collect();
        assert_eq!(resize(&image, shape(4, 4, 1), [2, 2]), [25, 45, 105, 125]);
        assert_eq!(resize(&[10, 20], shape(1, 2, 1), [2, 4]), [10, 10, 20, 20, 10, 10, 20, 20]);
        // Each new pixel covers one and a half old ones.
        assert_eq!(resize(&[0, 30, 60, 0, 30, 60, 0, 30, 60], shape(3, 3, 1), [2, 2]), [10, 50, 10, 50]);
        let colours = [0, 100, 40, 200, 20, 0, 60, 100];
        assert_eq!(resize(&colours, shape(2, 2, 2), [1, 1]), [30, 100]);
    }

    #[test]
    fn the_middle_is_kept() {
        let image: Vec<u8> = [0, 1, 2, 3, 4, 5].repeat(2);
        assert_eq!(resize(&image, shape(2, 6, 1), [2, 2]), [2, 3, 2, 3]);
        assert_eq!(resize(&image, shape(2, 6, 1), [1, 1]), [3]);
    }
}
