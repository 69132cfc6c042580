//! The images of a command: those that the user names, else those of the run. Checksums make sure that they are the run's images.

use std::cell::OnceCell;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;

use super::bar;
use crate::cli::config::TrainConfig;
use crate::cli::models::Model;
use crate::cli::pretrained::Card;
use crate::data::identity::{DataCrc, crc};
use crate::data::{self, Dataset, ImageShape, Part, Reading, Split};
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
    /// Number of the last training images that are for validation.
    valid: usize,
    /// How the run reads its images.
    reading: Reading,
    model: Model,
}

impl RunData {
    pub fn new(run: &Path, config: &TrainConfig, meta: &Meta) -> RunData {
        let model = config.model;
        RunData {
            owner: format!("the run {}", run.display()),
            spec: config.data.clone(),
            elsewhere: false,
            train_crc: Some(meta.data_crc),
            crc: config.data_crc,
            valid: config.valid,
            reading: config.reading(Some(model.likelihood.values()), run),
            model,
        }
    }

    /// The embedded digits, for weights without a data set.
    pub fn unknown(model: Model) -> RunData {
        RunData {
            owner: "the weights".into(),
            spec: data::GLYPHS.into(),
            elsewhere: false,
            train_crc: None,
            crc: None,
            valid: 0,
            reading: Reading { values: Some(model.likelihood.values()), ..Reading::default() },
            model,
        }
    }

    /// The data set that the card of pretrained weights names. Only the embedded digits are found without `--data`.
    pub fn pretrained(name: &str, card: &Card) -> RunData {
        let owner = format!("the pretrained weights {name}");
        let spec = card.data.clone();
        let elsewhere = !data::NAMES.contains(&spec.as_str());
        RunData { owner, spec, elsewhere, ..RunData::unknown(card.model) }
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

    /// Reports whether images have a checksum of the run's. A run without checksums may have any.
    fn is_own(&self, part: Part, images: &Split) -> bool {
        let known = self.crc.map(|crc| crc.part(part)).or(self.train_crc);
        known.is_none_or(|known| known == crc(images))
    }

    /// Checks that these are the run's images.
    ///
    /// # Errors
    /// When they are not.
    fn check(&self, part: Part, images: &Split) -> Result<()> {
        let same = match (self.is_own(part, images), self.train_crc) {
            // The run has no checksum of test images. They are its own if the training images beside them are.
            (false, Some(train)) if self.crc.is_none() && part == Part::Test => {
                crc(&self.read(Part::Train)?) == train
            }
            (same, _) => same,
        };
        let RunData { owner, spec, .. } = self;
        ensure!(
            same,
            "{spec}: these are not the {} images of {owner}: name their location, or other images, with --data PATH",
            part.name(),
        );
        Ok(())
    }

    /// Reads images as the run's are read. Images that the user names are the run's in another place, or contain them: what
    /// `--split` has kept for testing is for testing still. Says so in a line if the images are not of the model's size or colours.
    fn load<T>(
        &self,
        spec: &str,
        read: impl Fn(&Reading) -> Result<T>,
        shape: impl Fn(&T) -> Option<ImageShape>,
    ) -> Result<T> {
        let ImageShape { height, width, channels } = self.model.image;
        let is_fitting = |shape: ImageShape| [shape.height, shape.width] == [height, width];
        let asked = self.reading.size;
        // Images of several sizes, or too large ones, are an error unless they are resized.
        let fitting = match asked {
            Some(_) => None,
            None => read(&self.reading).ok().filter(|images| shape(images).is_some_and(is_fitting)),
        };
        let mut changes: Vec<String> = Vec::new();
        let images = match fitting {
            Some(images) => images,
            None => {
                if asked.is_none() {
                    changes.push(format!("resized to {height} x {width}"));
                }
                read(&Reading { size: asked.or(Some([height, width])), ..self.reading.clone() })?
            }
        };
        if shape(&images).is_some_and(|shape| shape.channels != channels) {
            changes.push(format!("made {}", self.model.image.colours()));
        }
        if !changes.is_empty() {
            let changes = changes.join(" and ");
            log::warn!("{spec}: the images are {changes}, because the model's are {}", self.model.image);
        }
        Ok(images)
    }

    /// Says so if images that are not the run's are read in a way that the run's images needed.
    fn tell_reading(&self, named: &str, part: Part, images: &Split) {
        let Reading { train_share, skip_bad, transpose, .. } = self.reading;
        let mut how: Vec<String> = train_share.map(|share| format!("--split {share}")).into_iter().collect();
        how.extend(skip_bad.then(|| "--skip-bad".into()));
        how.extend(transpose.then(|| "--transpose".into()));
        if !how.is_empty() && !self.is_own(part, images) {
            let how = how.join(" ");
            log::warn!("{named}: read with {how}, as the images of {} are: these are others", self.owner);
        }
    }

    fn read(&self, part: Part) -> Result<Split> {
        Ok(self.divided(part, self.read_whole(part)?)?.0)
    }

    fn read_whole(&self, part: Part) -> Result<Split> {
        self.load_split(self.location()?, part).with_context(|| self.cannot_read())
    }

    fn load_split(&self, spec: &str, part: Part) -> Result<Split> {
        self.load(spec, |reading| load_split(spec, part, reading), |images| Some(images.shape))
    }

    fn load_all(&self, spec: &str) -> Result<Dataset> {
        let first = |set: &Dataset| set.train.as_ref().or(set.test.as_ref()).map(|images| images.shape);
        self.load(spec, |reading| load(spec, reading), first)
    }

    /// Returns the images of a part that the run trains on or tests with, and of training images those for validation.
    fn divided(&self, part: Part, images: Split) -> Result<(Split, Option<Split>)> {
        images.held_out(self.held_out_of(part))
    }

    /// Leaves out what the run holds out of images that the user names, if they are the run's own. Others are taken as they are.
    fn without_held_out(&self, part: Part, images: Split) -> Split {
        match self.held_out_of(part) {
            0 => images,
            count => match images.clone().held_out(count) {
                Ok((first, _)) if self.is_own(part, &first) => first,
                _ => images,
            },
        }
    }

    /// Returns the number of images of a part that the run holds out for validation.
    fn held_out_of(&self, part: Part) -> usize {
        if part == Part::Train { self.valid } else { 0 }
    }

    fn cannot_read(&self) -> String {
        let RunData { owner, .. } = self;
        format!("cannot read the images of {owner}: name their location, or other images, with --data PATH")
    }
}

fn load_split(spec: &str, part: Part, reading: &Reading) -> Result<Split> {
    let progress = DecodingBar::default();
    data::load_split_with(spec, part, reading, &mut |done, all| progress.show(done, all))
}

fn load(spec: &str, reading: &Reading) -> Result<Dataset> {
    let progress = DecodingBar::default();
    data::load_with(spec, reading, &mut |done, all| progress.show(done, all))
}

/// A progress bar that appears when images are decoded.
#[derive(Default)]
pub struct DecodingBar(OnceCell<ProgressBar>);

impl DecodingBar {
    pub fn show(&self, done: usize, all: usize) {
        let bar = self.0.get_or_init(|| bar(all, "images"));
        bar.set_position(done as u64);
        if done >= all {
            bar.finish_and_clear();
        }
    }
}

/// Returns images as a model takes them: with its channels, and as bits if it evaluates bits.
fn for_model(images: Split, model: &Model) -> Result<Split> {
    let images = images.with_channels(model.image.channels);
    let (got, expected) = (images.shape, model.image);
    ensure!(got == expected, "{}: the images are {got}, and the model's are {expected}", images.name);
    Ok(if model.likelihood.of_bits() { images.binarized() } else { images })
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
        let read = || match (self.named, self.run) {
            (None, Some(run)) => {
                let images = run.read(part)?;
                run.check(part, &images)?;
                for_model(images, &run.model)
            }
            (Some(named), Some(run)) => {
                let images = run.without_held_out(part, run.load_split(named, part)?);
                run.tell_reading(named, part, &images);
                for_model(images, &run.model)
            }
            _ => data::load_split(self.spec(), part),
        };
        read().tag(Error::Data)
    }

    /// Reads the images that the run holds out of training for validation.
    ///
    /// # Errors
    /// When the run has none, or the images are not the run's. Also the errors of [`ImageSource::split`].
    pub fn valid(&self) -> Result<Split> {
        let run = self.run.filter(|run| run.valid > 0).context(
            "there are no validation images: a run has those that `vnca train --valid N` holds out of training",
        );
        let run = run.tag(Error::Usage)?;
        let read = || {
            let (train, valid) = match self.named {
                None => run.divided(Part::Train, run.read_whole(Part::Train)?)?,
                Some(named) => run.load_split(named, Part::Train)?.held_out(run.valid)?,
            };
            run.check(Part::Train, &train)?;
            for_model(valid.context("the run has no validation images")?, &run.model)
        };
        read().tag(Error::Data)
    }

    /// Reads all parts.
    ///
    /// # Errors
    /// As for [`ImageSource::split`].
    pub fn all(&self) -> Result<Dataset> {
        let read = || {
            let mut dataset = match (self.named, self.run) {
                (None, Some(run)) => {
                    let mut dataset = run.load_all(run.location()?).with_context(|| run.cannot_read())?;
                    let divided = dataset.train.take().map(|images| run.divided(Part::Train, images));
                    dataset.train = divided.transpose()?.map(|(images, _)| images);
                    for (part, images) in [(Part::Train, &dataset.train), (Part::Test, &dataset.test)] {
                        images.iter().try_for_each(|images| run.check(part, images))?;
                    }
                    dataset
                }
                (Some(named), Some(run)) => {
                    let mut dataset = run.load_all(named)?;
                    let whole = dataset.train.take();
                    dataset.train = whole.map(|images| run.without_held_out(Part::Train, images));
                    if let Some(train) = &dataset.train {
                        run.tell_reading(named, Part::Train, train);
                    }
                    dataset
                }
                _ => data::load(self.spec())?,
            };
            if let Some(run) = self.run {
                let fitted =
                    |images: Option<Split>| images.map(|images| for_model(images, &run.model)).transpose();
                (dataset.train, dataset.test) = (fitted(dataset.train)?, fitted(dataset.test)?);
            }
            anyhow::Ok(dataset)
        };
        read().tag(Error::Data)
    }
}
