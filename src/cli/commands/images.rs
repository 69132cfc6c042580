//! Options for images with labels, for the commands that study latents.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::run_data::{ImageSource, RunData};
use crate::data::{Part, Split};

/// Adds the labels from the file that `--labels` names, if given.
///
/// # Errors
/// When the file is missing or invalid, or the numbers of labels and images differ.
pub fn add_labels(split: Split, labels: Option<&Path>) -> Result<Split> {
    match labels {
        Some(path) => split.labelled(path).context("--labels"),
        None => Ok(split),
    }
}

/// The images and their labels.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Images {
    /// Images: a file, a folder, or `glyphs` [default: those that the run was trained on, else glyphs]
    #[arg(long, env = "VNCA_DATA", value_name = "PATH")]
    pub data: Option<String>,
    /// The images' labels, IDX or .npy, as `vnca label` writes them [default: those that come with the data]
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
}

impl Images {
    /// Reads the `train` or the `test` part. `trained_on` is the data set of the run, if there is one.
    ///
    /// # Errors
    /// When a file is missing or invalid, or the numbers of labels and images differ.
    pub fn load(&self, part: &str, trained_on: Option<&RunData>) -> Result<Split> {
        let part = if part == "train" { Part::Train } else { Part::Test };
        let split = ImageSource::new(self.data.as_deref(), trained_on).split(part)?;
        add_labels(split, self.labels.as_deref())
    }

    /// Returns the labels of images.
    ///
    /// # Errors
    /// When there are none. The error says how to get them.
    pub fn labels<'a>(&self, split: &'a Split) -> Result<&'a [u8]> {
        split.labels.as_deref().ok_or_else(|| {
            anyhow!(
                "{} has no labels: name a file with --labels (`vnca label` finds those of binarized images)",
                split.name
            )
        })
    }
}
