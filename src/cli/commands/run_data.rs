//! The images of a command: those that the user names, else those of the run. Checksums make sure that they are the run's images.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::cli::config::TrainConfig;
use crate::cli::pretrained::Card;
use crate::data::identity::{DataCrc, crc};
use crate::data::{self, Dataset, Part, Split};
use crate::error::{Error, Tag};
use crate::train::checkpoint::Meta;

/// The data set of a run: its location, and checksums of its images.
#[derive(Clone, Debug)]
pub struct RunData {
    /// What was trained on it, such as `the run runs/first`.
    owner: String,
    /// Location of the images, or the name of a data set.
    spec: String,
    /// The images are in no known place: `spec` is only the name of a data set.
    elsewhere: bool,
    /// Checksum of the training images, from the checkpoint of a run.
    train_crc: Option<u32>,
    /// Checksums of both parts. `None` for runs of older versions, which did not save them.
    crc: Option<DataCrc>,
}

impl RunData {
    pub fn new(run: &Path, config: &TrainConfig, meta: &Meta) -> RunData {
        let (train_crc, crc) = (Some(meta.data_crc), config.data_crc);
        let (owner, spec) = (format!("the run {}", run.display()), config.data.clone());
        RunData { owner, spec, elsewhere: false, train_crc, crc }
    }

    /// The data set that the card of pretrained weights names. Only the embedded digits are found without `--data`.
    pub fn pretrained(name: &str, card: &Card) -> RunData {
        let (owner, spec) = (format!("the pretrained weights {name}"), card.data.clone());
        RunData { owner, elsewhere: spec != data::GLYPHS, spec, train_crc: None, crc: None }
    }

    /// Returns the location of the images.
    ///
    /// # Errors
    /// When it is unknown.
    fn location(&self) -> Result<&str> {
        let RunData { owner, spec, .. } = self;
        ensure!(
            !self.elsewhere,
            "{owner} come without images: name those of {spec}, or others, with --data PATH; `vnca data fetch {spec}` \
             downloads them"
        );
        Ok(spec)
    }

    /// Checks that these are the run's images.
    ///
    /// # Errors
    /// When they are not.
    fn check(&self, part: Part, images: &Split) -> Result<()> {
        let found = crc(images);
        let same = match (self.crc, self.train_crc, part) {
            (Some(crc), _, part) => found == crc.part(part),
            (None, None, _) => true,
            (None, Some(train), Part::Train) => found == train,
            // The run has no checksum of test images. They are its own if the training images beside them are.
            (None, Some(train), Part::Test) => found == train || crc(&self.read(Part::Train)?) == train,
        };
        let RunData { owner, spec, .. } = self;
        ensure!(
            same,
            "{spec}: these are not the {} images of {owner}: name their location, or other images, with --data PATH",
            part.name(),
        );
        Ok(())
    }

    fn read(&self, part: Part) -> Result<Split> {
        data::load_split(self.location()?, part).with_context(|| self.cannot_read())
    }

    fn cannot_read(&self) -> String {
        let RunData { owner, .. } = self;
        format!("cannot read the images of {owner}: name their location, or other images, with --data PATH")
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
            let dataset = data::load(run.location()?).with_context(|| run.cannot_read())?;
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
