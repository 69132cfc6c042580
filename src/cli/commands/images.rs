//! Images with labels, as the studies of latents take them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::run_data::{RunData, Wanted};
use crate::data::{Part, Split};
use crate::error::{Error, Tag};

/// The images with the labels of a file that --labels names, if it does.
///
/// # Errors
/// When the file is missing or wrong, or the number of labels is not that of the images.
pub fn labelled(split: Split, labels: Option<&Path>) -> Result<Split> {
    match labels {
        Some(path) => split.labelled(path).context("--labels").tag(Error::Data),
        None => Ok(split),
    }
}

/// Which images, and where their labels are.
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
    /// When a file is missing or wrong, or the number of labels is not that of the images.
    pub fn load(&self, part: &str, trained_on: Option<&RunData>) -> Result<Split> {
        let part = if part == "train" { Part::Train } else { Part::Test };
        let split = Wanted::new(self.data.as_deref(), trained_on).split(part)?;
        labelled(split, self.labels.as_deref())
    }

    /// The labels of images that need them.
    ///
    /// # Errors
    /// When there are none; the error says how to have them.
    pub fn labels<'a>(&self, split: &'a Split) -> Result<&'a [u8]> {
        split.labels.as_deref().ok_or_else(|| {
            anyhow!(
                "{} has no labels: name a file with --labels (`vnca label` finds those of binarized images)",
                split.name
            )
        })
    }
}
