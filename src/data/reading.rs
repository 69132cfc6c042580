//! How a data set's images are read: what the values mean, the size, and which images are for testing.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ImageShape, Split, Values, resize};
use crate::error::valid;

/// Least height and width of images after resizing.
pub const LEAST_SIDE: usize = 8;
/// Greatest height and width of images after resizing.
pub const GREATEST_SIDE: usize = 256;

/// How a data set's images are read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reading {
    /// Whether grey levels are kept, or binarized once. `None`: bits of a data set of bits, and of 28 x 28 grey images from IDX
    /// files, `.npz` files and text; levels of everything else.
    pub values: Option<Values>,
    /// Height and width to which images are resized. `None`: the images' own, which must then be equal.
    pub size: Option<[usize; 2]>,
    /// Share of the images for training if the data set has no test images of its own; the rest are test images.
    pub train_share: Option<f64>,
    /// Skips image files that cannot be read, and counts them.
    pub skip_bad: bool,
    /// Exchanges rows and columns, as EMNIST's files need.
    pub transpose: bool,
    /// Folder for decoded images, so that later runs need not decode them. `None`: they are not kept.
    pub cache: Option<PathBuf>,
}

impl Reading {
    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid) for the fields `image_size` and `split`.
    pub fn check(&self) -> Result<()> {
        if let Some([height, width]) = self.size {
            valid!(
                fits(height) && fits(width),
                "image_size",
                "{height}x{width}: expected a height and a width from {LEAST_SIDE} to {GREATEST_SIDE}"
            );
        }
        if let Some(share) = self.train_share {
            valid!(share > 0.0 && share < 1.0, "split", "{share}: expected a number between 0 and 1");
        }
        Ok(())
    }
}

/// Reports whether models take images with this height or width.
pub fn fits(side: usize) -> bool {
    (LEAST_SIDE..=GREATEST_SIDE).contains(&side)
}

/// Returns a hash of an image that depends on what it shows, not on its number of channels.
pub fn content_hash(image: &[u8], shape: ImageShape) -> [u8; 32] {
    let mut hash = Sha256::new();
    for side in [shape.height, shape.width] {
        hash.update((side as u64).to_le_bytes());
    }
    match shape.channels {
        4 => hash.update(image),
        channels => {
            let opaque = |p: &[u8]| [p[0], p[p.len() / 2], p[p.len() - 1], 255];
            hash.update(image.chunks_exact(channels).flat_map(opaque).collect::<Vec<u8>>());
        }
    }
    hash.finalize().into()
}

/// Reports whether an image is for training, from the hash of its content: a number that other images have no part in.
pub fn is_for_training(hash: &[u8; 32], share: f64) -> bool {
    let [a, b, c, d, e, f, g, h, ..] = *hash;
    let place = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    (place as f64) < share * 2f64.powi(64)
}

/// Returns what the values of a data set are if the reading does not say it. `parts` are as they are in the files.
pub(super) fn usual_values(parts: &[&Split], reading: &Reading) -> Values {
    let resizes =
        |split: &&Split| reading.size.is_some_and(|size| size != [split.shape.height, split.shape.width]);
    let is_binary = |split: &&Split| {
        split.values == Values::Bits
            || split.shape == ImageShape::MNIST
            || split.pixels.iter().all(|value| *value <= 1)
            || split.shape.channels == 1 && split.pixels.iter().all(|value| matches!(value, 0 | 255))
    };
    if !parts.iter().any(resizes) && parts.iter().all(is_binary) { Values::Bits } else { Values::Levels }
}

/// Transposes and resizes images.
pub(super) fn shaped(split: Split, reading: &Reading) -> Result<Split> {
    let mut split = if reading.transpose { split.transposed() } else { split };
    let ImageShape { height, width, .. } = split.shape;
    match reading.size {
        Some(size) if size != [height, width] => {
            split = with_values(split, Values::Levels);
            let shape = split.shape;
            let images: Vec<&[u8]> = split.pixels.chunks_exact(shape.values()).collect();
            let pixels: Vec<Vec<u8>> =
                images.into_par_iter().map(|image| resize::resized(image, shape, size)).collect();
            split.pixels = pixels.concat();
            split.shape = ImageShape { height: size[0], width: size[1], ..shape };
        }
        _ => ensure!(
            fits(height) && fits(width),
            "{}: images of {height} x {width}: expected a height and a width from {LEAST_SIDE} to {GREATEST_SIDE}; \
             --image-size HxW resizes them",
            split.sources.first().map_or_else(|| split.name.clone(), |path| path.display().to_string())
        ),
    }
    Ok(split)
}

/// Returns images with values of this meaning.
pub(super) fn with_values(mut split: Split, values: Values) -> Split {
    match values {
        Values::Bits => split.binarized(),
        Values::Levels => {
            // In a file, 0 and 1 alone are bits.
            if split.pixels.iter().all(|value| *value <= 1) {
                split.pixels.iter_mut().for_each(|value| *value *= 255);
            }
            split.values = Values::Levels;
            split
        }
    }
}

/// Returns the indices of the images for training and for testing, by their content: adding images moves none from one side
/// to the other, and equal images are on one side.
pub(super) fn divided(all: &Split, share: f64) -> Result<(Vec<usize>, Vec<usize>)> {
    let training: Vec<bool> = (0..all.len())
        .into_par_iter()
        .map(|i| is_for_training(&content_hash(all.image(i), all.shape), share))
        .collect();
    let (train, test): (Vec<usize>, Vec<usize>) = (0..all.len()).partition(|i| training[*i]);
    ensure!(
        !train.is_empty() && !test.is_empty(),
        "{}: --split {share} of {} images leaves {} for training and {} for testing: expected some of each",
        all.name,
        all.len(),
        train.len(),
        test.len()
    );
    Ok((train, test))
}
