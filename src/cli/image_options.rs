//! The options that say how a data set's images are read.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::data::{Reading, Values};

/// Height and width of images: `64x48`, or `64` for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageSize(pub [usize; 2]);

impl FromStr for ImageSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ImageSize, String> {
        let number = |text: &str| text.parse::<usize>().ok();
        let size = match text.split_once('x') {
            Some((height, width)) => number(height).zip(number(width)),
            None => number(text).map(|side| (side, side)),
        };
        let (height, width) =
            size.ok_or_else(|| format!("expected HEIGHTxWIDTH, such as 64x48, or 64, got {text:?}"))?;
        Ok(ImageSize([height, width]))
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ImageSize([height, width]) = self;
        write!(f, "{height}x{width}")
    }
}

impl TryFrom<String> for ImageSize {
    type Error = String;

    fn try_from(text: String) -> Result<ImageSize, String> {
        text.parse()
    }
}

impl From<ImageSize> for String {
    fn from(size: ImageSize) -> String {
        size.to_string()
    }
}

/// How a data set's images are read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageOptions {
    /// The size to which images are resized.
    pub image_size: Option<ImageSize>,
    /// Share of the images for training, if the data set has no test images of its own.
    pub split: Option<f64>,
    /// Whether files that cannot be read are skipped.
    pub skip_bad: bool,
    /// Whether rows and columns are exchanged.
    pub transpose: bool,
}

impl ImageOptions {
    /// Reports whether the images are read as they are.
    pub fn is_default(&self) -> bool {
        *self == ImageOptions::default()
    }

    /// Returns how the library reads the images. Files of images are decoded once if there is a cache.
    pub fn reading(&self, values: Option<Values>, cache: Option<PathBuf>) -> Reading {
        Reading {
            values,
            size: self.image_size.map(|ImageSize(size)| size),
            train_share: self.split,
            skip_bad: self.skip_bad,
            transpose: self.transpose,
            cache,
        }
    }
}

/// Returns the folder for the decoded images of a run: `.images` beside the run's folder.
pub fn cache_beside(run: &Path) -> Option<PathBuf> {
    Some(run.parent()?.join(".images"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_one_number_or_two() {
        assert_eq!("64".parse(), Ok(ImageSize([64, 64])));
        assert_eq!("64x48".parse(), Ok(ImageSize([64, 48])));
        for wrong in ["", "x", "64x", "64x48x3", "-1", "big"] {
            assert!(wrong.parse::<ImageSize>().is_err(), "{wrong}");
        }
    }
}
