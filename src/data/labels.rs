//! Reads files of labels and adds them to images.

use std::path::Path;

use anyhow::{Result, bail};

use super::input::Input;
use super::{Split, idx, npy};
use crate::error::{Error, Tag};

/// Reads labels, one for each image: IDX or `.npy` of shape (n,), gzip or not.
///
/// # Errors
/// When the file is neither or contains other numbers. The message names the file and the position.
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

/// Reads labels for `images` images. `of` names the images in messages.
///
/// # Errors
/// The errors of [`read`], and when the number of labels differs.
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
    /// Returns the images with the labels of a file, which replace any labels that they have.
    ///
    /// # Errors
    /// The errors of [`read_for`].
    pub fn labelled(mut self, path: &Path) -> Result<Split> {
        self.labels = Some(read_for(path, self.len(), &self.name)?);
        self.sources.push(path.to_owned());
        Ok(self)
    }
}
