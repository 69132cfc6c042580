//! Files of labels, and labels for images that came without.

use std::path::Path;

use anyhow::{Result, bail};

use super::input::Input;
use super::{Split, idx, npy};
use crate::error::{Error, Tag};

/// Reads labels, one of 0 to 9 for each image: IDX or `.npy` of shape (n,), gzip or not.
///
/// # Errors
/// When the file is neither or holds other numbers; the error names it and the place.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let input = Input::open(path)?;
    if input.head().starts_with(npy::MAGIC) {
        npy::read_labels(input)
    } else if idx::is_idx(input.head()) {
        idx::read_labels(input)
    } else {
        let head = input.head().escape_ascii().to_string();
        bail!(input.error(format_args!(
            "expected labels as IDX or .npy (gzip or not), got a file that starts with '{head}'"
        )))
    }
}

/// Reads labels for `images` images.
///
/// # Errors
/// As of [`read`], or when their number is another.
pub fn read_for(path: &Path, images: usize, of: &str) -> Result<Vec<u8>> {
    read_counted(path, images, of).tag(Error::Data)
}

fn read_counted(path: &Path, images: usize, of: &str) -> Result<Vec<u8>> {
    let labels = read(path)?;
    if labels.len() != images {
        bail!(
            "{}: expected {images} labels, one for each image of {of}, got {}",
            path.display(),
            labels.len()
        );
    }
    Ok(labels)
}

impl Split {
    /// The images with the labels of a file, in place of those that they may have.
    ///
    /// # Errors
    /// As of [`read_for`].
    pub fn labelled(mut self, path: &Path) -> Result<Split> {
        self.labels = Some(read_for(path, self.len(), &self.name)?);
        self.sources.push(path.to_owned());
        Ok(self)
    }
}
