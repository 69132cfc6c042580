//! The identity of a run's images: their location, independent of the working folder, and their checksums.

use std::path::absolute;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{EMOJI, GLYPHS, Part, Split};
use crate::error::Error;

/// Converts the user's name of a data set to one that is valid in any working folder. A path becomes absolute; the names
/// `glyphs` and `emoji` stay. Links in the path stay, because their targets may move.
pub fn located(spec: &str) -> String {
    if [GLYPHS, EMOJI].contains(&spec) {
        return spec.into();
    }
    let path = absolute(spec).ok().and_then(|path| path.to_str().map(String::from));
    // A path that is not valid text cannot be recorded. The checksums still identify the images.
    path.unwrap_or_else(|| spec.into())
}

/// Checksums of a run's images: CRC-32 of their pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataCrc {
    /// Checksum of the training images.
    pub train: u32,
    /// Checksum of the test images; `None` if the set has none.
    pub test: Option<u32>,
}

/// Returns the checksum of images.
pub fn crc(images: &Split) -> u32 {
    crc32fast::hash(&images.pixels)
}

impl DataCrc {
    /// Returns the checksums of a set's parts.
    pub fn from_splits(train: &Split, test: Option<&Split>) -> DataCrc {
        DataCrc { train: crc(train), test: test.map(crc) }
    }

    /// Returns the checksum of a part. The images of a single file serve as both parts.
    pub fn part(&self, part: Part) -> u32 {
        match part {
            Part::Train => self.train,
            Part::Test => self.test.unwrap_or(self.train),
        }
    }

    /// Returns the checksums of a run that resumes with the images of `now`. Test images may be missing on either side.
    ///
    /// # Errors
    /// [`Error::OtherExamples`] when the images differ.
    pub fn resumed_with(&self, now: &DataCrc) -> Result<DataCrc> {
        if self.train != now.train {
            return Err(Error::OtherExamples { part: "training" }.into());
        }
        if self.test.is_some() && now.test.is_some() && self.test != now.test {
            return Err(Error::OtherExamples { part: "test" }.into());
        }
        Ok(DataCrc { train: self.train, test: self.test.or(now.test) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_absolute_and_a_name_stays() {
        assert_eq!((located("glyphs"), located("emoji")), ("glyphs".into(), "emoji".into()));
        assert_eq!(located("/a/b"), "/a/b");
        let here = std::env::current_dir().unwrap();
        for spec in ["images", "./images"] {
            assert_eq!(located(spec), here.join("images").to_str().unwrap());
        }
        assert_eq!(located("./glyphs"), here.join("glyphs").to_str().unwrap());
    }

    #[test]
    fn a_run_resumes_only_with_its_own_images() {
        let run = DataCrc { train: 1, test: Some(2) };
        assert_eq!(run.resumed_with(&run).unwrap(), run);
        assert_eq!(run.resumed_with(&DataCrc { test: None, ..run }).unwrap(), run);
        assert_eq!(DataCrc { test: None, ..run }.resumed_with(&run).unwrap(), run);
        let error = run.resumed_with(&DataCrc { test: Some(3), ..run }).unwrap_err().to_string();
        assert!(error.contains("test images"), "{error}");
        let error = run.resumed_with(&DataCrc { train: 3, ..run }).unwrap_err().to_string();
        assert!(error.contains("training images"), "{error}");
    }
}
