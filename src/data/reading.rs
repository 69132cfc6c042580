//! How a data set's images are read: what the values mean, the size, and which images are for testing.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ImageShape, Values};
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
