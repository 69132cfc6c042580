//! How a data set's images are read: their size, what their bytes mean, and their division into training and test images.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use super::{Dataset, FEWEST_SIDE, ImageShape, MOST_SIDE, Part, Split, Values, resize};
use crate::error::{Error, Tag, valid};

/// How a data set's images are read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// What the pixels' bytes mean. `Bits` binarizes grey levels once. `None`: bits for images that are bits or grey with 28 x 28
    /// pixels, as MNIST's; levels for others.
    pub values: Option<Values>,
    /// Height and width to which images are resized. `None`: their own, which must then be equal.
    pub size: Option<[usize; 2]>,
    /// Share of the images for training, if the data set has no test images of its own. The others are its test images.
    ///
    /// A checksum of an image's pixels decides. More images therefore move none to the other part, and equal images are in one
    /// part.
    pub train_share: Option<f64>,
    /// Whether image files that cannot be read are skipped.
    pub skip_bad: bool,
    /// Whether rows and columns are exchanged.
    pub transpose: bool,
    /// Folder for the decoded images of image files, which are then decoded only once. `None`: they are decoded each time.
    pub cache: Option<PathBuf>,
}

impl Reading {
    /// Checks the fields.
    ///
    /// # Errors
    /// [`Error::Invalid`], with the field that is out of range.
    pub fn check(&self) -> Result<()> {
        if let Some([height, width]) = self.size {
            check_size(height, width)?;
        }
        if let Some(share) = self.train_share {
            valid!(share > 0.0 && share < 1.0, "split", "{share}: it must be between 0 and 1");
        }
        Ok(())
    }

    /// Applies the reading to both parts of a data set.
    pub(super) fn apply(&self, mut dataset: Dataset) -> Result<Dataset> {
        let sized = |split: Option<Split>| split.map(|split| self.sized(split)).transpose();
        (dataset.train, dataset.test) = (sized(dataset.train)?, sized(dataset.test)?);
        if let (Some(share), Some(all), None) = (self.train_share, &dataset.train, &dataset.test) {
            let (train, test) = divide(all, share);
            ensure!(
                !train.is_empty() && !test.is_empty(),
                "{}: a share of {share} for training leaves one part of {} images empty",
                all.name,
                all.len()
            );
            (dataset.train, dataset.test) = (Some(train), Some(test));
        }
        let shapes: Vec<ImageShape> =
            [&dataset.train, &dataset.test].into_iter().flatten().map(|split| split.shape).collect();
        if let [train, test] = shapes[..]
            && train != test
        {
            // Parts may differ in colour, because channels are those that the images need.
            ensure!(
                (train.height, train.width) == (test.height, test.width),
                Error::Invalid {
                    field: "image_size",
                    problem: format!("is needed: the training images are {train}, the test images {test}")
                }
            );
            let channels = train.channels.max(test.channels);
            let widened = |split: Option<Split>| split.map(|split| split.with_channels(channels));
            (dataset.train, dataset.test) = (widened(dataset.train), widened(dataset.test));
        }
        let values = self.values.unwrap_or_else(|| {
            let parts: Vec<&Split> = [&dataset.train, &dataset.test].into_iter().flatten().collect();
            match parts.iter().all(|part| part.values == Values::Bits || part.shape == ImageShape::MNIST) {
                true => Values::Bits,
                false => Values::Levels,
            }
        });
        let meaning = |split: Option<Split>| split.map(|split| with_values(split, values)).transpose();
        (dataset.train, dataset.test) = (meaning(dataset.train)?, meaning(dataset.test)?);
        Ok(dataset)
    }

    /// Transposes and resizes images, and finds out whether they are bits.
    fn sized(&self, split: Split) -> Result<Split> {
        let mut split = if self.transpose { split.transposed() } else { split };
        let ImageShape { height, width, .. } = split.shape;
        if let Some(size) = self.size.filter(|size| *size != [height, width]) {
            split = split.with_levels();
            let images = split.pixels.chunks_exact(split.shape.values().max(1));
            split.pixels = images.flat_map(|image| resize::resize(image, split.shape, size)).collect();
            split.shape = ImageShape { height: size[0], width: size[1], ..split.shape };
        }
        check_size(split.shape.height, split.shape.width)?;
        if split.values == Values::Levels && split.shape.channels == 1 {
            let all = |white: u8| split.pixels.iter().all(|pixel| *pixel == 0 || *pixel == white);
            if all(1) || all(255) {
                split.pixels.iter_mut().for_each(|pixel| *pixel = (*pixel).min(1));
                split.values = Values::Bits;
            }
        }
        Ok(split)
    }
}

fn check_size(height: usize, width: usize) -> Result<()> {
    valid!(
        [height, width].iter().all(|side| (FEWEST_SIDE..=MOST_SIDE).contains(side)),
        "image_size",
        "is needed: images of {height} x {width} pixels cannot be used, only those with {FEWEST_SIDE} to {MOST_SIDE} rows and columns"
    );
    Ok(())
}

fn with_values(split: Split, values: Values) -> Result<Split> {
    match values {
        Values::Levels => Ok(split.with_levels()),
        Values::Bits if split.shape.channels == 1 => Ok(split.binarized()),
        Values::Bits => {
            let shape = split.shape;
            let problem = format!("of bits is for grey images, and {} has {shape}", split.name);
            Err::<Split, _>(Error::Invalid { field: "likelihood", problem }).tag(Error::Data)
        }
    }
}

/// Divides images by a checksum of their pixels.
pub(super) fn divide(all: &Split, share: f64) -> (Split, Split) {
    let in_train = |i: &usize| {
        let digest = Sha256::digest(all.image(*i));
        let first = digest.iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        // The 53 upper bits are a number from 0 to 1.
        ((first >> 11) as f64) / (1u64 << 53) as f64 <= share
    };
    let (train, test): (Vec<usize>, Vec<usize>) = (0..all.len()).partition(in_train);
    let part = |rows: &[usize], part: Part| {
        let chosen = all.chosen(rows);
        Split { name: format!("{} {}", all.name, part.name()), ..chosen }
    };
    (part(&train, Part::Train), part(&test, Part::Test))
}
