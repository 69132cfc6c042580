//! The images that a verb takes: those that a user names, else the run's own, which are told from others by what they are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cli::config::TrainConfig;
use crate::data::identity::{DataCrc, crc};
use crate::data::{self, Dataset, Part, Split};
use crate::error::{Error, Tag};
use crate::train::checkpoint::Meta;

/// A run's data set: where it lay, and how its images are told from others that lie there now.
#[derive(Clone, Debug)]
pub struct RunData {
    run: PathBuf,
    spec: String,
    /// Of its training images, as its checkpoints have it.
    trained: u32,
    /// `None` of a run that did not write it down.
    crc: Option<DataCrc>,
}

impl RunData {
    pub fn new(run: &Path, config: &TrainConfig, meta: &Meta) -> RunData {
        let (trained, crc) = (meta.data_crc, config.data_crc);
        RunData { run: run.to_path_buf(), spec: config.data.clone(), trained, crc }
    }

    /// Refuses images that are not the run's.
    fn check(&self, part: Part, images: &Split) -> Result<()> {
        let found = crc(images);
        let own = match (self.crc, part) {
            (Some(crc), part) => found == crc.part(part),
            (None, Part::Train) => found == self.trained,
            // Such a run knows its training images only: test images are its own where these are.
            (None, Part::Test) => found == self.trained || crc(&self.read(Part::Train)?) == self.trained,
        };
        let RunData { run, spec, .. } = self;
        ensure!(
            own,
            "{spec}: these are not the {} images of the run {}: name where its images are with --data PATH, or others on \
             purpose",
            part.name(),
            run.display()
        );
        Ok(())
    }

    fn read(&self, part: Part) -> Result<Split> {
        data::load_split(&self.spec, part).with_context(|| self.unread())
    }

    fn unread(&self) -> String {
        format!("the images of the run {}: --data PATH names where they are, or others", self.run.display())
    }
}

/// What a verb was told of its images.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    named: Option<&'a str>,
    run: Option<&'a RunData>,
}

impl<'a> Wanted<'a> {
    /// The images that `--data` names, else the run's own, else the embedded digits.
    pub fn new(named: Option<&'a str>, run: Option<&'a RunData>) -> Wanted<'a> {
        Wanted { named, run }
    }

    /// Where they are.
    pub fn spec(&self) -> &'a str {
        self.named.or(self.run.map(|run| run.spec.as_str())).unwrap_or(data::GLYPHS)
    }

    /// One part of them.
    ///
    /// # Errors
    /// When a file is missing or wrong, or what lies where the run's images were is others.
    pub fn split(&self, part: Part) -> Result<Split> {
        let own = |run: &RunData| {
            let images = run.read(part)?;
            run.check(part, &images).map(|()| images)
        };
        match (self.named, self.run) {
            (None, Some(run)) => own(run),
            _ => data::load_split(self.spec(), part),
        }
        .tag(Error::Data)
    }

    /// All of them.
    ///
    /// # Errors
    /// As of [`Wanted::split`].
    pub fn all(&self) -> Result<Dataset> {
        let own = |run: &RunData| {
            let dataset = data::load(&run.spec).with_context(|| run.unread())?;
            for (part, images) in [(Part::Train, &dataset.train), (Part::Test, &dataset.test)] {
                images.iter().try_for_each(|images| run.check(part, images))?;
            }
            Ok(dataset)
        };
        match (self.named, self.run) {
            (None, Some(run)) => own(run),
            _ => data::load(self.spec()),
        }
        .tag(Error::Data)
    }
}
