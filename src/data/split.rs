//! The images of one part of a data set.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{IMAGE_SIDE, PADDED};
use crate::engine::array::Array;
use crate::engine::random::host::{Key, unit};
use crate::error::valid;

/// Height, width and channels of a data set's images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageShape {
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Values of a pixel: 1 grey; 3 red, green, blue; 4 red, green and blue, each multiplied by the opacity, and the opacity.
    pub channels: usize,
}

impl ImageShape {
    /// The images of MNIST.
    pub const MNIST: ImageShape = ImageShape { height: IMAGE_SIDE, width: IMAGE_SIDE, channels: 1 };

    /// Returns the number of values of an image.
    pub fn values(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Returns the dimensions of an image's array: (h, w) of grey images, (h, w, channels) of others.
    pub fn dims(&self) -> Vec<usize> {
        match self.channels {
            1 => vec![self.height, self.width],
            channels => vec![self.height, self.width, channels],
        }
    }

    /// Names the channels: `grey`, `RGB` or `RGBA`.
    pub fn colours(&self) -> &'static str {
        match self.channels {
            1 => "grey",
            3 => "RGB",
            _ => "RGBA",
        }
    }
}

impl fmt::Display for ImageShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {} {}", self.height, self.width, self.colours())
    }
}

/// What the bytes of a data set's pixels mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Values {
    /// 0 and 1.
    Bits,
    /// 0 to 255.
    Levels,
}

/// The two parts of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The images for training.
    Train,
    /// The images for evaluation.
    Test,
}

impl Part {
    /// Returns `train` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Test => "test",
        }
    }
}

/// Images of one size.
#[derive(Clone, Debug)]
pub struct Split {
    /// Description of the images for people, such as `binarized_mnist_test` or `glyphs train`.
    pub name: String,
    /// The images' size.
    pub shape: ImageShape,
    /// What the pixels' bytes mean.
    pub values: Values,
    /// Image after image, row after row, pixel after pixel, each with its channels.
    pub pixels: Vec<u8>,
    /// A label for each image.
    pub labels: Option<Vec<u8>>,
    /// The files that the images and labels come from.
    pub sources: Vec<PathBuf>,
}

impl Split {
    /// Returns grey images of 28 x 28.
    pub(super) fn levels(
        name: String,
        pixels: Vec<u8>,
        labels: Option<Vec<u8>>,
        sources: Vec<PathBuf>,
    ) -> Split {
        Split { name, shape: ImageShape::MNIST, values: Values::Levels, pixels, labels, sources }
    }

    /// Returns the pixels as an array of u8: (images, h, w) of grey images, (images, h, w, channels) of others.
    pub fn to_array(&self) -> Array {
        Array::new(&[&[self.len()], self.shape.dims().as_slice()].concat(), &self.pixels)
    }

    /// Returns at most `n` images, evenly spaced. In a set sorted by class, the first images would all be of one class.
    pub fn spread(&self, n: usize) -> Split {
        self.chosen(&self.spread_indices(n))
    }

    /// Returns the indices of at most `n` images, evenly spaced.
    pub fn spread_indices(&self, n: usize) -> Vec<usize> {
        let count = self.len().min(n);
        (0..count).map(|i| i * self.len() / count).collect()
    }

    /// Divides training images: returns those to train on, and the last `valid` ones for validation, if that is not 0. The last
    /// 10,000 training images of binarized MNIST are its validation set.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid) for the field `valid` if nothing would be left to train on.
    pub fn held_out(self, valid: usize) -> Result<(Split, Option<Split>)> {
        valid!(valid < self.len(), "valid", "is {valid}: {} has {} images", self.name, self.len());
        if valid == 0 {
            return Ok((self, None));
        }
        let part = |indices: Range<usize>, which: String| Split {
            name: format!("{} ({which})", self.name),
            ..self.chosen(&indices.collect::<Vec<_>>())
        };
        let end = self.len() - valid;
        let last = part(end..self.len(), format!("the last {valid}, for validation"));
        Ok((part(0..end, format!("without the last {valid}")), Some(last)))
    }

    /// Returns the images of these indices, in this order.
    ///
    /// # Panics
    /// When an index is out of range.
    pub fn chosen(&self, indices: &[usize]) -> Split {
        Split {
            name: self.name.clone(),
            shape: self.shape,
            values: self.values,
            pixels: indices.iter().flat_map(|i| self.image(*i)).copied().collect(),
            labels: self.labels.as_ref().map(|labels| indices.iter().map(|i| labels[*i]).collect()),
            sources: self.sources.clone(),
        }
    }

    /// Returns the images with rows and columns exchanged. EMNIST's files store transposed images.
    pub fn transposed(mut self) -> Split {
        let ImageShape { height, width, channels } = self.shape;
        let mut pixels = Vec::with_capacity(self.pixels.len());
        for image in self.pixels.chunks_exact(self.shape.values().max(1)) {
            for column in 0..width {
                for row in 0..height {
                    pixels.extend_from_slice(&image[(row * width + column) * channels..][..channels]);
                }
            }
        }
        self.pixels = pixels;
        self.shape = ImageShape { height: width, width: height, channels };
        self
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.pixels.len() / self.shape.values().max(1)
    }

    /// Reports whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    /// The values of image `i`.
    ///
    /// # Panics
    /// When there is no image `i`.
    pub fn image(&self, i: usize) -> &[u8] {
        let values = self.shape.values();
        &self.pixels[i * values..][..values]
    }

    /// Returns the mean value from 0 to 1; 0 if there are no images.
    pub fn mean(&self) -> f64 {
        match self.values {
            Values::Bits => mean(&self.pixels),
            Values::Levels => mean(&self.pixels) / 255.0,
        }
    }

    /// Returns the static binarization: each value is 1 with probability level / 255. The draw uses `key(42)`. For images of 28 x
    /// 28 it has the shape (n, 1, 32, 32), in which the images have a border of two zeros; for others, that of the images.
    ///
    /// Bits stay unchanged. If no value is above 1, the levels are bits already. If all values are 0 or 255, 255 becomes 1.
    pub fn binarized(mut self) -> Split {
        if self.values == Values::Levels && self.pixels.iter().any(|&p| p > 1) {
            binarize(&mut self.pixels, self.shape);
        }
        self.values = Values::Bits;
        self
    }
}

fn binarize(pixels: &mut [u8], shape: ImageShape) {
    let key = Key::new(42);
    let border = if shape == ImageShape::MNIST { (PADDED - IMAGE_SIDE) / 2 } else { 0 };
    let row_values = shape.width * shape.channels;
    let (drawn_row, drawn_rows) = (row_values + 2 * border, shape.height + 2 * border);
    let mut bits = vec![0; shape.height * drawn_row];
    for (i, image) in pixels.chunks_exact_mut(shape.values()).enumerate() {
        // Draw from the first pixel inside the border to the last one.
        let start = i * drawn_rows * drawn_row + border * drawn_row + border;
        key.bits32_from(start as u64, &mut bits);
        for (row, bits) in image.chunks_exact_mut(row_values).zip(bits.chunks_exact(drawn_row)) {
            for (pixel, &bits) in row.iter_mut().zip(bits) {
                *pixel = u8::from(unit(bits) < f32::from(*pixel) / 255.0);
            }
        }
    }
}

pub(super) fn mean(pixels: &[u8]) -> f64 {
    let sum: u64 = pixels.iter().map(|&p| u64::from(p)).sum();
    sum as f64 / pixels.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::PIXELS;

    #[test]
    fn binarization_draws_over_the_padded_array() {
        let pixels: Vec<u8> = (0..3 * PIXELS).map(|i| (i * 31 % 256) as u8).collect();
        let grey = Split::levels("ramp".into(), pixels.clone(), None, vec![]);
        let binary = grey.binarized();
        // Follows the definition literally: pad, draw all pixels, crop.
        let border = (PADDED - IMAGE_SIDE) / 2;
        let place = |i: usize| {
            let (image, row, column) = (i / PIXELS, i % PIXELS / IMAGE_SIDE, i % IMAGE_SIDE);
            (image * PADDED + row + border) * PADDED + column + border
        };
        let mut padded = vec![0.0; 3 * PADDED * PADDED];
        for (i, &p) in pixels.iter().enumerate() {
            padded[place(i)] = f32::from(p) / 255.0;
        }
        let drawn = Key::new(42).bernoulli(padded.len(), |i| padded[i]);
        let expected: Vec<u8> = (0..pixels.len()).map(|i| u8::from(drawn[place(i)])).collect();
        assert_eq!(binary.pixels, expected);
        assert!((0.45..0.55).contains(&binary.mean()), "{}", binary.mean());
    }

    #[test]
    fn the_last_images_are_held_out_with_their_labels() {
        let pixels: Vec<u8> = (0..5 * PIXELS).map(|i| (i / PIXELS) as u8).collect();
        let all = Split::levels("x".into(), pixels, Some(vec![9, 8, 7, 6, 5]), vec![]);
        let (train, valid) = all.clone().held_out(2).unwrap();
        let valid = valid.unwrap();
        assert_eq!((train.len(), train.labels.clone(), train.image(2)[0]), (3, Some(vec![9, 8, 7]), 2));
        assert_eq!((valid.len(), valid.labels.clone(), valid.image(0)[0]), (2, Some(vec![6, 5]), 3));
        assert!(all.clone().held_out(0).unwrap().1.is_none() && all.clone().held_out(4).is_ok());
        assert!(all.held_out(5).unwrap_err().to_string().contains("is 5"));
    }

    #[test]
    fn binary_images_stay_unchanged() {
        let pixels: Vec<u8> = (0..PIXELS).map(|i| (i % 2) as u8).collect();
        let grey = Split::levels(String::new(), pixels.clone(), None, vec![]);
        assert_eq!(grey.binarized().pixels, pixels);
    }

    #[test]
    fn a_transposed_image_has_its_rows_as_columns() {
        let pixels: Vec<u8> = (0..2 * PIXELS).map(|i| u8::from(i % 5 == 0)).collect();
        let split = Split::levels(String::new(), pixels, None, vec![]);
        let turned = split.clone().transposed();
        let [image, other] = [split.image(1), turned.image(1)];
        for (row, column) in [(0, 0), (3, 20), (20, 3), (27, 0)] {
            assert_eq!(image[row * IMAGE_SIDE + column], other[column * IMAGE_SIDE + row]);
        }
        assert_ne!(split.pixels, turned.pixels);
        assert_eq!(split.pixels, turned.transposed().pixels);
    }
}
