//! Images for training: MNIST and its like, arrays, folders of image files, the embedded digits, or the pictures of a font.
//!
//! `load` reads the data set that a user names: `glyphs` (the embedded digits), `emoji` (the system's emoji font), a folder or a
//! file. Files are recognised by content, gzip or not. Errors name the file, the position, what was expected and what was found.
//! Memory grows with the data read, never with a header's claim. [`load_with`] also resizes, splits and binarizes, as a
//! [`Reading`] says.
//!
//! A folder may contain several kinds of images. The first kind found is used: `binarized_mnist_{train,valid,test}.amat`
//! (the training set is train, followed by valid if present), IDX images like MNIST's (see [`Split::binarized`]),
//! `{train,test}.npy`, or image files (see [`image_files`]). Kinds are never mixed, and labels must be of the same kind as the
//! images. Malformed labels are ignored with a warning, because few uses of the images need them.
//!
//! An `.npz` file contains training and test images under Keras's names: `x_train`, `x_test` and the labels `y_train`, `y_test`.
//!
//! ```
//! use vnca::data::{self, Part};
//!
//! let digits = data::load(data::GLYPHS)?;
//! let test = digits.split(Part::Test)?.spread(16);
//! assert_eq!(test.to_array().dims(), [16, 28, 28]);
//! # Ok::<(), anyhow::Error>(())
//! ```

pub mod amat;
mod channels;
pub mod decode;
pub mod decoded_cache;
#[cfg(feature = "download")]
pub mod download;
pub mod emoji;
mod folder;
pub mod glyphs;
pub mod identity;
pub mod idx;
pub mod image_files;
pub mod input;
pub mod known;
pub mod labels;
pub mod npy;
pub mod npz;
pub mod reading;
pub mod resize;
mod split;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::error::{Error, Tag};
use folder::{Folder, Kind, idx_name};
use image_files::{Listing, is_image};
use input::Input;
use npz::Archive;
pub use reading::Reading;
use reading::{divided, shaped, usual_values, with_values};
use split::mean;
pub use split::{ImageShape, Part, Split, Values};

/// Rows and columns of an image.
pub const IMAGE_SIDE: usize = 28;
/// Pixels of an image.
pub const PIXELS: usize = IMAGE_SIDE * IMAGE_SIDE;
/// Rows and columns of an image after padding with zeros, as models take it.
pub const PADDED: usize = 32;
/// The name of the embedded digits.
pub const GLYPHS: &str = "glyphs";
/// The name of the pictures of the system's emoji font.
pub const EMOJI: &str = "emoji";
/// The names of data sets that are not paths.
pub const NAMES: [&str; 2] = [GLYPHS, EMOJI];

/// A loaded data set, with at least one part.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The user's name of the data set.
    pub name: String,
    /// The training images, or the images of a single file.
    pub train: Option<Split>,
    /// The test images, if the set has any.
    pub test: Option<Split>,
    /// Names of the classes, in the order of the labels; empty if the set does not name them.
    pub classes: Vec<String>,
    /// Number of files that could not be read and were skipped.
    pub skipped: usize,
    /// What the user should know of the reading, a sentence each. They are logged as warnings too.
    pub notes: Vec<String>,
    /// The kind of the files, for people.
    pub format: &'static str,
    /// Whether the decoded images were in the cache.
    pub from_cache: bool,
    origin: Origin,
}

impl Dataset {
    /// Reports whether the images are the image files of a folder: then a picture that is written there becomes one of them.
    pub fn is_of_image_files(&self) -> bool {
        matches!(self.origin, Origin::Images(_))
    }

    /// Returns the images of a part. The images of a single file serve as both parts.
    ///
    /// # Errors
    /// [`Error::Data`] when a folder lacks the part. The message lists the expected and the existing files.
    pub fn split(&self, part: Part) -> Result<&Split> {
        self.find(part).tag(Error::Data)
    }

    /// Reports whether the images serve for training and for testing, because the data set has no parts.
    pub fn is_one_for_both(&self) -> bool {
        self.test.is_none() && !self.origin.has_parts()
    }

    fn find(&self, part: Part) -> Result<&Split> {
        let found = match part {
            Part::Train => &self.train,
            Part::Test => &self.test,
        };
        match found {
            Some(split) => Ok(split),
            None if self.origin.has_parts() => Err(self.origin.missing(part)),
            None => self.train.as_ref().with_context(|| format!("{}: the images are not loaded", self.name)),
        }
    }
}

/// Loads a data set: `glyphs`, `emoji`, a file or a folder. The images of a file are in `train`, and `test` is `None`; see
/// `Dataset::split`. Write a folder named `glyphs` as `./glyphs`.
///
/// # Errors
/// [`Error::Data`] when the images cannot be found or read; see the module's documentation.
pub fn load(spec: &str) -> Result<Dataset> {
    load_with(spec, &Reading::default(), &mut |_, _| {})
}

/// Loads a data set as [`load`] does, with images that are resized, split or binarized. Calls `progress` with the number of
/// files decoded and of all, if the data set has a file for each image.
///
/// # Errors
/// [`Error::Data`] when the images cannot be found or read, and [`Error::Invalid`] for the fields of `reading`.
pub fn load_with(spec: &str, reading: &Reading, progress: &mut dyn FnMut(usize, usize)) -> Result<Dataset> {
    read_dataset(spec, reading, progress).tag(Error::Data)
}

fn read_dataset(spec: &str, reading: &Reading, progress: &mut dyn FnMut(usize, usize)) -> Result<Dataset> {
    reading.check()?;
    let origin = Origin::find(spec)?;
    let mut set = Dataset {
        name: spec.to_owned(),
        train: None,
        test: None,
        classes: Vec::new(),
        skipped: 0,
        notes: Vec::new(),
        format: origin.format()?,
        from_cache: false,
        origin,
    };
    let mut share = reading.train_share;
    let mut default = None;
    match &set.origin {
        Origin::Images(listing) => {
            let images = listing.load(reading, progress)?;
            (set.train, set.test, set.classes) = (images.train, images.test, images.classes);
            (set.skipped, set.notes, set.from_cache) = (images.skipped, images.notes, images.from_cache);
            default = Some(Values::Levels);
        }
        Origin::Emoji => {
            set.train = Some(emoji::draw(&emoji::font()?, reading)?);
            share = share.or(Some(emoji::TRAIN_SHARE));
            default = Some(Values::Levels);
        }
        origin => {
            if let Origin::Folder(folder) = origin {
                set.notes.extend(folder.unread_images().map(|text| format!("{spec}: {text}")));
            }
            set.train = origin.part(Part::Train, reading)?;
            set.test = if origin.has_parts() { origin.part(Part::Test, reading)? } else { None };
            ensure!(set.train.is_some() || set.test.is_some(), origin.missing(Part::Train));
        }
    }
    if set.test.is_some() && reading.train_share.is_some() {
        set.notes.push(format!("{spec}: the data set has test images of its own, so that it is not split"));
    }
    let parts: Vec<&Split> = [&set.train, &set.test].into_iter().flatten().collect();
    if let [train, test] = parts[..] {
        ensure!(
            reading.size.is_some() || train.shape == test.shape,
            "{spec}: the training images are {}, the test images {}: expected images of one size; --image-size HxW resizes \
             them",
            train.shape,
            test.shape
        );
        ensure!(
            train.shape.channels == test.shape.channels,
            "{spec}: the training images are {}, the test images {}",
            train.shape,
            test.shape
        );
    }
    let values = reading.values.or(default).unwrap_or_else(|| usual_values(&parts, reading));
    set.train = set.train.map(|split| shaped(split, reading)).transpose()?;
    set.test = set.test.map(|split| shaped(split, reading)).transpose()?;
    let mut sides = None;
    if let (Some(share), Some(train), None) = (share, &set.train, &set.test) {
        // Binarization draws by an image's place in the set, so that it comes after.
        sides = Some(divided(train, share)?);
    }
    set.train = set.train.map(|split| with_values(split, values));
    set.test = set.test.map(|split| with_values(split, values));
    if let (Some((train, test)), Some(all)) = (sides, &set.train) {
        let named =
            |split: Split, part: Part| Split { name: format!("{} {}", all.name, part.name()), ..split };
        (set.train, set.test) =
            (Some(named(all.chosen(&train), Part::Train)), Some(named(all.chosen(&test), Part::Test)));
    }
    for note in &set.notes {
        log::warn!("{note}");
    }
    Ok(set)
}

/// Loads one part of a data set. The images of a single file serve as both parts.
///
/// # Errors
/// The errors of `load`, and when a folder lacks the part.
pub fn load_split(spec: &str, part: Part) -> Result<Split> {
    load_split_with(spec, part, &Reading::default(), &mut |_, _| {})
}

/// Loads one part of a data set as [`load_with`] does.
///
/// # Errors
/// The errors of [`load_with`], and when a folder lacks the part.
pub fn load_split_with(
    spec: &str,
    part: Part,
    reading: &Reading,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Split> {
    read_split(spec, part, reading, progress).tag(Error::Data)
}

fn read_split(
    spec: &str,
    part: Part,
    reading: &Reading,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Split> {
    reading.check()?;
    let origin = Origin::find(spec)?;
    let alone = !matches!(origin, Origin::Images(_) | Origin::Emoji) && reading.train_share.is_none();
    if alone {
        let split = origin.part(part, reading)?.ok_or_else(|| origin.missing(part))?;
        // What other images are is decided over both parts.
        if reading.values.is_some() || split.shape == ImageShape::MNIST {
            let values = reading.values.unwrap_or_else(|| usual_values(&[&split], reading));
            return Ok(with_values(shaped(split, reading)?, values));
        }
    }
    let set = read_dataset(spec, reading, progress)?;
    set.find(part)?;
    let found = if part == Part::Test && set.test.is_some() { set.test } else { set.train };
    found.with_context(|| format!("{spec}: the images are not loaded"))
}

/// Loads the grey images of a part without binarization: IDX images of a folder, even if it also contains binary images, or
/// those of a single file (IDX, `.npz`, text with commas).
///
/// # Errors
/// The errors of `load_split`, and for the embedded digits, which have no grey images.
pub fn load_grey(spec: &str, part: Part) -> Result<Split> {
    read_grey(spec, part).tag(Error::Data)
}

fn read_grey(spec: &str, part: Part) -> Result<Split> {
    match Origin::find(spec)? {
        Origin::Glyphs => bail!("{GLYPHS}: the embedded digits are binary and have no grey images"),
        Origin::File(path) => read_file(&path, false),
        Origin::Archive(archive) => archive.grey(part)?.ok_or_else(|| archive.missing(part)),
        Origin::Folder(folder) => folder.grey(part)?.ok_or_else(|| {
            folder.lacks(
                &format!("grey {} images", part.name()),
                &format!("{}[.gz]", idx_name(part, "images-idx3", '-')),
            )
        }),
        Origin::Images(_) | Origin::Emoji => read_split(spec, part, &Reading::default(), &mut |_, _| {}),
    }
}

/// The source of a data set.
#[derive(Clone, Debug)]
enum Origin {
    Glyphs,
    Emoji,
    File(PathBuf),
    Archive(Archive),
    Folder(Folder),
    Images(Listing),
}

impl Origin {
    fn find(spec: &str) -> Result<Origin> {
        match spec {
            GLYPHS => return Ok(Origin::Glyphs),
            EMOJI => return Ok(Origin::Emoji),
            _ => {}
        }
        let path = Path::new(spec);
        let meta = std::fs::metadata(path).with_context(|| {
            format!("{spec}: expected '{GLYPHS}', '{EMOJI}', a file or a folder with images")
        })?;
        if !meta.is_dir() {
            return find_file(path);
        }
        let folder = Folder::open(path)?;
        if folder.kind().is_none()
            && let Some(listing) = Listing::find(path)?
        {
            return Ok(Origin::Images(listing));
        }
        Ok(Origin::Folder(folder))
    }

    /// Reports whether the set can have separate training and test images. Otherwise all images serve as both parts.
    fn has_parts(&self) -> bool {
        match self {
            Origin::Glyphs | Origin::Emoji | Origin::Folder(_) => true,
            Origin::File(_) => false,
            Origin::Archive(archive) => archive.has_parts(),
            Origin::Images(listing) => listing.has_parts,
        }
    }

    /// Returns the error that the set lacks a part.
    fn missing(&self, part: Part) -> anyhow::Error {
        match self {
            Origin::Archive(archive) => archive.missing(part),
            Origin::Folder(folder) => folder.missing(part),
            Origin::Images(listing) => listing.missing(part),
            Origin::File(path) => anyhow::anyhow!("{}: the images are not loaded", path.display()),
            Origin::Glyphs | Origin::Emoji => anyhow::anyhow!("the {} images are not loaded", part.name()),
        }
    }

    /// Reads a part as it is in the files, for the kinds that can be read part by part. A single file serves as both.
    fn part(&self, part: Part, reading: &Reading) -> Result<Option<Split>> {
        let grey = reading.values.is_some() || reading.size.is_some();
        match self {
            Origin::Glyphs => Ok(Some(glyphs::split(part))),
            Origin::File(path) => read_file(path, grey).map(Some),
            Origin::Archive(archive) => archive.grey(part),
            Origin::Folder(folder) => folder.read(part, grey),
            Origin::Images(_) | Origin::Emoji => Ok(None),
        }
    }

    /// Names the kind of the files, for people.
    fn format(&self) -> Result<&'static str> {
        Ok(match self {
            Origin::Glyphs => "embedded digits",
            Origin::Emoji => "pictures of a font",
            Origin::Archive(_) => "NumPy archive",
            Origin::Images(_) => "image files",
            Origin::Folder(folder) => match folder.kind() {
                Some(Kind::Idx) => "IDX",
                Some(Kind::Npy) => "NumPy arrays",
                Some(Kind::Amat) | None => "text",
            },
            Origin::File(path) => match Input::open(path)?.head() {
                head if head.starts_with(npy::MAGIC) => "NumPy array",
                head if idx::is_idx(head) => "IDX",
                _ => "text",
            },
        })
    }
}

/// Finds out whether a single file contains images or is an archive of them.
fn find_file(path: &Path) -> Result<Origin> {
    match Input::open(path)?.head().starts_with(npz::MAGIC) {
        true => Ok(Origin::Archive(Archive::open(path)?)),
        false => Ok(Origin::File(path.to_owned())),
    }
}

/// Reads one file of images of any known kind. Images that are binary in the file get pixels 0 and 1. Arrays of 28 x 28 may be
/// grey only if `grey`.
fn read_file(path: &Path, grey: bool) -> Result<Split> {
    let input = Input::open(path)?;
    let name = file_name(path);
    let sources = vec![path.to_owned()];
    let head = input.head();
    // The name matters only for malformed files: the error then describes the type that the user meant.
    let stem = name.strip_suffix(".gz").unwrap_or(&name);
    let text = [".amat", ".csv"].iter().any(|ending| stem.ends_with(ending));
    let (shape, pixels, labels) = if head.starts_with(npy::MAGIC) || stem.ends_with(".npy") {
        let (shape, pixels) = read_npy(path, grey)?;
        (shape, pixels, None)
    } else if idx::is_idx(head) || stem.ends_with("-ubyte") {
        let (shape, pixels) = idx::read_any(input)?;
        (shape, pixels, None)
    } else if text || matches!(head.trim_ascii_start().first(), Some(b'0'..=b'9')) {
        let text = amat::read(input)?;
        let place = path.display().to_string();
        let images = text.pixels.len() / PIXELS;
        let labels = text.labels.and_then(|labels| labels_beside(check_labels(labels), images, &place));
        (ImageShape::MNIST, text.pixels, labels)
    } else {
        bail!(input.error(format_args!(
            "expected images as .amat text, IDX or .npy (gzip or not), .npz or .csv, or a folder of image files, got a file \
             that starts with '{}'",
            head.escape_ascii()
        )));
    };
    Ok(Split { shape, ..Split::levels(name, pixels, labels, sources) })
}

fn read_npy(path: &Path, grey: bool) -> Result<(ImageShape, Vec<u8>)> {
    if grey { npy::read_any(Input::open(path)?) } else { npy::read_binary_or_any(path) }
}

/// Checks that all labels are from 0 to 9.
fn check_labels(labels: Vec<u8>) -> Result<Vec<u8>> {
    match labels.iter().position(|label| *label > 9) {
        Some(i) => bail!("expected a label from 0 to 9 for image {i}, got {}", labels[i]),
        None => Ok(labels),
    }
}

/// Returns the labels that belong to images, if they fit. Otherwise logs a warning: few commands need labels, so that the images
/// are loaded without them.
fn labels_beside(labels: Result<Vec<u8>>, images: usize, place: &str) -> Option<Vec<u8>> {
    let checked = labels.and_then(|labels| {
        ensure!(
            labels.len() == images,
            "{place}: expected {images} labels, one for each image, got {}",
            labels.len()
        );
        Ok(labels)
    });
    checked.inspect_err(|error| log::warn!("{error:#}: using the images of {place} without labels")).ok()
}

/// Checks that grey images are not implausibly dark. Pixels such as 2 among 0 and 1 are a mistake, and binarization would turn
/// almost all of them into background.
fn check_grey(pixels: &[u8]) -> Result<()> {
    let most = pixels.iter().max().copied().unwrap_or(0);
    ensure!(
        !(2..128).contains(&most),
        "expected pixels 0 and 1, or grey values up to 255, got {most} as the greatest"
    );
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn glyphs_need_no_file() {
        let test = load_split(GLYPHS, Part::Test).unwrap();
        assert_eq!((test.len(), test.name.as_str()), (glyphs::TEST, "glyphs test"));
        assert!(test.sources.is_empty());
        assert!(load_grey(GLYPHS, Part::Test).unwrap_err().to_string().contains("binary"));
    }
}
