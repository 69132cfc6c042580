//! Options that choose images.

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

/// The images that a verb evaluates.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Evaluated {
    /// Images: a file, a folder, or `glyphs` [default: those that the run was trained on, else glyphs]
    #[arg(long, env = "VNCA_DATA", value_name = "PATH")]
    pub data: Option<String>,
    /// Which part of the data; `valid`: the images that the run holds out of training for validation
    #[arg(long, default_value = "test", value_parser = ["train", "test", "valid"])]
    pub split: String,
    /// Evaluate only the first N images
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Evaluate only N images, evenly spaced
    #[arg(long, value_name = "N", conflicts_with = "limit")]
    pub spread: Option<usize>,
}

impl Evaluated {
    /// Returns where the images come from. `trained_on` is the data set of the run, if there is one.
    pub fn source<'a>(&'a self, trained_on: Option<&'a RunData>) -> ImageSource<'a> {
        ImageSource::new(self.data.as_deref(), trained_on)
    }

    /// Reads the images.
    ///
    /// # Errors
    /// Those of [`ImageSource::split`] and [`ImageSource::valid`].
    pub fn load(&self, source: ImageSource<'_>) -> Result<Split> {
        let split = match self.split.as_str() {
            "valid" => source.valid()?,
            "train" => source.split(Part::Train)?,
            _ => source.split(Part::Test)?,
        };
        Ok(match (self.spread, self.limit) {
            (Some(n), _) => split.spread(n),
            (None, limit) => {
                let indices: Vec<usize> = (0..split.len().min(limit.unwrap_or(usize::MAX))).collect();
                split.chosen(&indices)
            }
        })
    }
}
