//! The images of a command: those that the user names, else those of the run. Checksums make sure that they are the run's images.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cli::config::TrainConfig;
use crate::data::identity::{DataCrc, crc};
use crate::data::{self, Dataset, Part, Split};
use crate::error::{Error, Tag};
use crate::train::checkpoint::Meta;

/// The data set of a run: its location, and checksums of its images.
#[derive(Clone, Debug)]
pub struct RunData {
    run: PathBuf,
    spec: String,
    /// Checksum of the training images, from the checkpoint.
    train_crc: u32,
    /// Checksums of both parts. `None` for runs of older versions, which did not save them.
    crc: Option<DataCrc>,
}

impl RunData {
    pub fn new(run: &Path, config: &TrainConfig, meta: &Meta) -> RunData {
        let (train_crc, crc) = (meta.data_crc, config.data_crc);
        RunData { run: run.to_path_buf(), spec: config.data.clone(), train_crc, crc }
    }

    /// Checks that these are the run's images.
    ///
    /// # Errors
    /// When they are not.
    fn check(&self, part: Part, images: &Split) -> Result<()> {
        let found = crc(images);
        let same = match (self.crc, part) {
            (Some(crc), part) => found == crc.part(part),
            (None, Part::Train) => found == self.train_crc,
            // The run has no checksum of test images. They are its own if the training images beside them are.
            (None, Part::Test) => found == self.train_crc || crc(&self.read(Part::Train)?) == self.train_crc,
        };
        let RunData { run, spec, .. } = self;
        ensure!(
            same,
            "{spec}: these are not the {} images of the run {}: name their location, or other images, with --data PATH",
            part.name(),
            run.display()
        );
        Ok(())
    }

    fn read(&self, part: Part) -> Result<Split> {
        data::load_split(&self.spec, part).with_context(|| self.cannot_read())
    }

    fn cannot_read(&self) -> String {
        format!(
            "cannot read the images of the run {}: name their location, or other images, with --data PATH",
            self.run.display()
        )
    }
}

/// Where a command's images come from.
#[derive(Clone, Copy)]
pub struct ImageSource<'a> {
    named: Option<&'a str>,
    run: Option<&'a RunData>,
}

impl<'a> ImageSource<'a> {
    /// Chooses the images that `--data` names, else the run's, else the embedded digits.
    pub fn new(named: Option<&'a str>, run: Option<&'a RunData>) -> ImageSource<'a> {
        ImageSource { named, run }
    }

    /// Returns the location of the images.
    pub fn spec(&self) -> &'a str {
        self.named.or(self.run.map(|run| run.spec.as_str())).unwrap_or(data::GLYPHS)
    }

    /// Reads one part.
    ///
    /// # Errors
    /// When a file is missing or invalid, or the location of the run's images now has other images.
    pub fn split(&self, part: Part) -> Result<Split> {
        let from_run = |run: &RunData| {
            let images = run.read(part)?;
            run.check(part, &images).map(|()| images)
        };
        match (self.named, self.run) {
            (None, Some(run)) => from_run(run),
            _ => data::load_split(self.spec(), part),
        }
        .tag(Error::Data)
    }

    /// Reads all parts.
    ///
    /// # Errors
    /// As for [`ImageSource::split`].
    pub fn all(&self) -> Result<Dataset> {
        let from_run = |run: &RunData| {
            let dataset = data::load(&run.spec).with_context(|| run.cannot_read())?;
            for (part, images) in [(Part::Train, &dataset.train), (Part::Test, &dataset.test)] {
                images.iter().try_for_each(|images| run.check(part, images))?;
            }
            Ok(dataset)
        };
        match (self.named, self.run) {
            (None, Some(run)) => from_run(run),
            _ => data::load(self.spec()),
        }
        .tag(Error::Data)
    }
}
