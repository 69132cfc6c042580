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

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::engine::array::Array;
use crate::engine::random::host::{Key, unit};
use crate::error::{Error, Tag};
use image_files::Listing;
use input::Input;
use npz::Archive;
pub use reading::Reading;
use reading::{GREATEST_SIDE, LEAST_SIDE, content_hash, fits, is_for_training};

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

/// Height, width and channels of a data set's images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageShape {
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Values of a pixel: 1 grey; 3 red, green, blue; 4 red, green and blue, each multiplied by the opacity, and the opacity.
    pub channels: usize,
}

impl ImageShape {
    /// The images of MNIST.
    pub const MNIST: ImageShape = ImageShape { height: IMAGE_SIDE, width: IMAGE_SIDE, channels: 1 };

    /// Returns the number of values of an image.
    pub fn values(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Returns the dimensions of an image's array: (h, w) of grey images, (h, w, channels) of others.
    pub fn dims(&self) -> Vec<usize> {
        match self.channels {
            1 => vec![self.height, self.width],
            channels => vec![self.height, self.width, channels],
        }
    }
}

impl fmt::Display for ImageShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.channels {
            1 => "grey",
            3 => "RGB",
            _ => "RGBA",
        };
        write!(f, "{} x {} {kind}", self.height, self.width)
    }
}

/// What the bytes of a data set's pixels mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Values {
    /// 0 and 1.
    Bits,
    /// 0 to 255.
    Levels,
}

/// The two parts of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The images for training.
    Train,
    /// The images for evaluation.
    Test,
}

impl Part {
    /// Returns `train` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Test => "test",
        }
    }
}

/// Images of one size.
#[derive(Clone, Debug)]
pub struct Split {
    /// Description of the images for people, such as `binarized_mnist_test` or `glyphs train`.
    pub name: String,
    /// The images' size.
    pub shape: ImageShape,
    /// What the pixels' bytes mean.
    pub values: Values,
    /// Image after image, row after row, pixel after pixel, each with its channels.
    pub pixels: Vec<u8>,
    /// A label for each image.
    pub labels: Option<Vec<u8>>,
    /// The files that the images and labels come from.
    pub sources: Vec<PathBuf>,
}

impl Split {
    /// Returns grey images of 28 x 28.
    fn levels(name: String, pixels: Vec<u8>, labels: Option<Vec<u8>>, sources: Vec<PathBuf>) -> Split {
        Split { name, shape: ImageShape::MNIST, values: Values::Levels, pixels, labels, sources }
    }

    /// Returns the pixels as an array of u8: (images, h, w) of grey images, (images, h, w, channels) of others.
    pub fn to_array(&self) -> Array {
        Array::new(&[&[self.len()], self.shape.dims().as_slice()].concat(), &self.pixels)
    }

    /// Returns at most `n` images, evenly spaced. In a set sorted by class, the first images would all be of one class.
    pub fn spread(&self, n: usize) -> Split {
        self.chosen(&self.spread_indices(n))
    }

    /// Returns the indices of at most `n` images, evenly spaced.
    pub fn spread_indices(&self, n: usize) -> Vec<usize> {
        let count = self.len().min(n);
        (0..count).map(|i| i * self.len() / count).collect()
    }

    /// Returns the images of these indices, in this order.
    ///
    /// # Panics
    /// When an index is out of range.
    pub fn chosen(&self, indices: &[usize]) -> Split {
        Split {
            name: self.name.clone(),
            shape: self.shape,
            values: self.values,
            pixels: indices.iter().flat_map(|i| self.image(*i)).copied().collect(),
            labels: self.labels.as_ref().map(|labels| indices.iter().map(|i| labels[*i]).collect()),
            sources: self.sources.clone(),
        }
    }

    /// Returns the images with rows and columns exchanged. EMNIST's files store transposed images.
    pub fn transposed(mut self) -> Split {
        let ImageShape { height, width, channels } = self.shape;
        let mut pixels = Vec::with_capacity(self.pixels.len());
        for image in self.pixels.chunks_exact(self.shape.values().max(1)) {
            for column in 0..width {
                for row in 0..height {
                    pixels.extend_from_slice(&image[(row * width + column) * channels..][..channels]);
                }
            }
        }
        self.pixels = pixels;
        self.shape = ImageShape { height: width, width: height, channels };
        self
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.pixels.len() / self.shape.values().max(1)
    }

    /// Reports whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    /// The values of image `i`.
    ///
    /// # Panics
    /// When there is no image `i`.
    pub fn image(&self, i: usize) -> &[u8] {
        let values = self.shape.values();
        &self.pixels[i * values..][..values]
    }

    /// Returns the mean value from 0 to 1; 0 if there are no images.
    pub fn mean(&self) -> f64 {
        match self.values {
            Values::Bits => mean(&self.pixels),
            Values::Levels => mean(&self.pixels) / 255.0,
        }
    }

    /// Returns the static binarization: each value is 1 with probability level / 255. The draw uses `key(42)`. For images of 28 x
    /// 28 it has the shape (n, 1, 32, 32), in which the images have a border of two zeros; for others, that of the images.
    ///
    /// Bits stay unchanged. If no value is above 1, the levels are bits already. If all values are 0 or 255, 255 becomes 1.
    pub fn binarized(mut self) -> Split {
        if self.values == Values::Levels && self.pixels.iter().any(|&p| p > 1) {
            binarize(&mut self.pixels, self.shape);
        }
        self.values = Values::Bits;
        self
    }
}

fn binarize(pixels: &mut [u8], shape: ImageShape) {
    let key = Key::new(42);
    let border = if shape == ImageShape::MNIST { (PADDED - IMAGE_SIDE) / 2 } else { 0 };
    let row_values = shape.width * shape.channels;
    let (drawn_row, drawn_rows) = (row_values + 2 * border, shape.height + 2 * border);
    let mut bits = vec![0; shape.height * drawn_row];
    for (i, image) in pixels.chunks_exact_mut(shape.values()).enumerate() {
        // Draw from the first pixel inside the border to the last one.
        let start = i * drawn_rows * drawn_row + border * drawn_row + border;
        key.bits32_from(start as u64, &mut bits);
        for (row, bits) in image.chunks_exact_mut(row_values).zip(bits.chunks_exact(drawn_row)) {
            for (pixel, &bits) in row.iter_mut().zip(bits) {
                *pixel = u8::from(unit(bits) < f32::from(*pixel) / 255.0);
            }
        }
    }
}

fn mean(pixels: &[u8]) -> f64 {
    let sum: u64 = pixels.iter().map(|&p| u64::from(p)).sum();
    sum as f64 / pixels.len().max(1) as f64
}

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
    /// Returns the images of a part. The images of a single file serve as both parts.
    ///
    /// # Errors
    /// [`Error::Data`] when a folder lacks the part. The message lists the expected and the existing files.
    pub fn split(&self, part: Part) -> Result<&Split> {
        self.find(part).tag(Error::Data)
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

/// Returns what the values of a data set are if the reading does not say it. `parts` are as they are in the files.
fn usual_values(parts: &[&Split], reading: &Reading) -> Values {
    let resizes =
        |split: &&Split| reading.size.is_some_and(|size| size != [split.shape.height, split.shape.width]);
    let is_binary = |split: &&Split| {
        split.values == Values::Bits
            || split.shape == ImageShape::MNIST
            || split.pixels.iter().all(|value| *value <= 1)
            || split.shape.channels == 1 && split.pixels.iter().all(|value| matches!(value, 0 | 255))
    };
    if !parts.iter().any(resizes) && parts.iter().all(is_binary) { Values::Bits } else { Values::Levels }
}

/// Transposes and resizes images.
fn shaped(split: Split, reading: &Reading) -> Result<Split> {
    let mut split = if reading.transpose { split.transposed() } else { split };
    let ImageShape { height, width, .. } = split.shape;
    match reading.size {
        Some(size) if size != [height, width] => {
            split = with_values(split, Values::Levels);
            let shape = split.shape;
            let images: Vec<&[u8]> = split.pixels.chunks_exact(shape.values()).collect();
            let pixels: Vec<Vec<u8>> =
                images.into_par_iter().map(|image| resize::resized(image, shape, size)).collect();
            split.pixels = pixels.concat();
            split.shape = ImageShape { height: size[0], width: size[1], ..shape };
        }
        _ => ensure!(
            fits(height) && fits(width),
            "{}: images of {height} x {width}: expected a height and a width from {LEAST_SIDE} to {GREATEST_SIDE}; \
             --image-size HxW resizes them",
            split.sources.first().map_or_else(|| split.name.clone(), |path| path.display().to_string())
        ),
    }
    Ok(split)
}

/// Returns images with values of this meaning.
fn with_values(mut split: Split, values: Values) -> Split {
    match values {
        Values::Bits => split.binarized(),
        Values::Levels => {
            // In a file, 0 and 1 alone are bits.
            if split.pixels.iter().all(|value| *value <= 1) {
                split.pixels.iter_mut().for_each(|value| *value *= 255);
            }
            split.values = Values::Levels;
            split
        }
    }
}

/// Returns the indices of the images for training and for testing, by their content: adding images moves none from one side
/// to the other, and equal images are on one side.
fn divided(all: &Split, share: f64) -> Result<(Vec<usize>, Vec<usize>)> {
    let training: Vec<bool> = (0..all.len())
        .into_par_iter()
        .map(|i| is_for_training(&content_hash(all.image(i), all.shape), share))
        .collect();
    let (train, test): (Vec<usize>, Vec<usize>) = (0..all.len()).partition(|i| training[*i]);
    ensure!(
        !train.is_empty() && !test.is_empty(),
        "{}: --split {share} of {} images leaves {} for training and {} for testing: expected some of each",
        all.name,
        all.len(),
        train.len(),
        test.len()
    );
    Ok((train, test))
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

/// A folder and the names in it.
#[derive(Clone, Debug)]
struct Folder {
    path: PathBuf,
    /// Sorted names. Names of folders end with a slash.
    names: Vec<String>,
}

/// The kinds of data files, in the order in which a folder is searched for them.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Amat,
    Idx,
    Npy,
}

impl Folder {
    fn open(path: &Path) -> Result<Folder> {
        let read = || -> std::io::Result<Vec<String>> {
            std::fs::read_dir(path)?
                .map(|entry| {
                    let entry = entry?;
                    let kind = entry.file_type()?;
                    let is_folder = kind.is_dir()
                        || kind.is_symlink()
                            && std::fs::metadata(entry.path()).is_ok_and(|meta| meta.is_dir());
                    let name = entry.file_name().to_string_lossy().into_owned();
                    // The slash keeps a folder from matching the name of a data file.
                    Ok(if is_folder { name + "/" } else { name })
                })
                .collect()
        };
        let mut names = read().with_context(|| format!("{}: the folder cannot be listed", path.display()))?;
        names.sort();
        Ok(Folder { path: path.to_owned(), names })
    }

    /// Returns the path of a file in this folder, unpacked or gzip.
    fn file(&self, name: &str) -> Option<PathBuf> {
        [name.to_owned(), format!("{name}.gz")]
            .iter()
            .find(|&name| self.names.binary_search(name).is_ok())
            .map(|name| self.path.join(name))
    }

    /// Returns the path of an IDX file, in either common spelling.
    fn idx_file(&self, part: Part, what: &str) -> Option<PathBuf> {
        ['-', '.'].iter().find_map(|&dot| self.file(&idx_name(part, what, dot)))
    }

    /// Returns the first kind of data files that the folder contains.
    fn kind(&self) -> Option<Kind> {
        let amat = ["train", "valid", "test"].map(amat_name);
        if amat.iter().any(|name| self.file(name).is_some()) {
            Some(Kind::Amat)
        } else if [Part::Train, Part::Test].iter().any(|&part| self.idx_file(part, "images-idx3").is_some()) {
            Some(Kind::Idx)
        } else if ["train.npy", "test.npy"].iter().any(|name| self.file(name).is_some()) {
            Some(Kind::Npy)
        } else {
            None
        }
    }

    /// Reads the images of a part, if the folder has them. Arrays of 28 x 28 may be grey only if `grey`.
    fn read(&self, part: Part, grey: bool) -> Result<Option<Split>> {
        match self.kind() {
            Some(Kind::Amat) => self.amat(part),
            Some(Kind::Idx) => self.grey(part),
            Some(Kind::Npy) => self.npy(part, grey),
            None => Ok(None),
        }
    }

    fn amat(&self, part: Part) -> Result<Option<Split>> {
        let Some(path) = self.file(&amat_name(part.name())) else { return Ok(None) };
        let mut name = format!("binarized_mnist_{}", part.name());
        let Split { mut pixels, mut labels, mut sources, .. } = read_file(&path, true)?;
        if part == Part::Train
            && let Some(path) = self.file(&amat_name("valid"))
        {
            name += "+valid";
            let mut valid = read_file(&path, true)?;
            pixels.append(&mut valid.pixels);
            labels = labels.zip(valid.labels).map(|(labels, more)| [labels, more].concat());
            sources.push(path);
        }
        Ok(Some(Split::levels(name, pixels, labels, sources)))
    }

    fn grey(&self, part: Part) -> Result<Option<Split>> {
        let Some(path) = self.idx_file(part, "images-idx3") else { return Ok(None) };
        let (shape, pixels) = idx::read_any(Input::open(&path)?)?;
        let n = pixels.len() / shape.values();
        let name = file_name(&path);
        let mut sources = vec![path];
        let labels = match self.idx_file(part, "labels-idx1") {
            Some(path) => with_labels(path, idx::read_labels, n, &mut sources),
            None => None,
        };
        Ok(Some(Split { shape, ..Split::levels(name, pixels, labels, sources) }))
    }

    fn npy(&self, part: Part, grey: bool) -> Result<Option<Split>> {
        let Some(path) = self.file(&format!("{}.npy", part.name())) else { return Ok(None) };
        let (shape, pixels) = read_npy(&path, grey)?;
        let n = pixels.len() / shape.values();
        let name = file_name(&path);
        let mut sources = vec![path];
        let labels = match self.file(&format!("{}_labels.npy", part.name())) {
            Some(path) => with_labels(path, npy::read_labels, n, &mut sources),
            None => None,
        };
        Ok(Some(Split { shape, ..Split::levels(name, pixels, labels, sources) }))
    }

    /// Returns the error that the folder lacks the images of a part.
    fn missing(&self, part: Part) -> anyhow::Error {
        let amat = format!("{}[.gz]", amat_name(part.name()));
        let idx = format!("{}[.gz]", idx_name(part, "images-idx3", '-'));
        let npy = format!("{}.npy", part.name());
        // If the folder has one kind, files of other kinds would be ignored.
        let looked_for = match self.kind() {
            Some(Kind::Amat) => amat,
            Some(Kind::Idx) => idx,
            Some(Kind::Npy) => npy,
            None => {
                format!("{amat}, {idx} or {npy}, and for PNG, JPEG, WebP, GIF and BMP files in it and below")
            }
        };
        self.lacks(&format!("{} images", part.name()), &looked_for)
    }

    fn lacks(&self, what: &str, looked_for: &str) -> anyhow::Error {
        const SHOWN: usize = 12;
        let mut found = self.names[..self.names.len().min(SHOWN)].join(", ");
        match self.names.len() {
            0 => found += "nothing",
            n if n > SHOWN => found += &format!(" and {} more", n - SHOWN),
            _ => {}
        }
        anyhow::anyhow!(
            "{}: no {what} in this folder: looked for {looked_for}; found {found}",
            self.path.display()
        )
    }
}

fn amat_name(part: &str) -> String {
    format!("binarized_mnist_{part}.amat")
}

/// Returns the published name of an IDX file: `train-images-idx3-ubyte`, or with a dot as second separator.
fn idx_name(part: Part, what: &str, dot: char) -> String {
    let part = match part {
        Part::Train => "train",
        Part::Test => "t10k",
    };
    match dot {
        '-' => format!("{part}-{what}-ubyte"),
        _ => format!("{part}-{}-ubyte", what.replacen('-', &dot.to_string(), 1)),
    }
}

/// Adds the labels of a file to images, if they fit, and their file to the sources.
fn with_labels(
    path: PathBuf,
    reader: fn(Input) -> Result<Vec<u8>>,
    images: usize,
    sources: &mut Vec<PathBuf>,
) -> Option<Vec<u8>> {
    let place = path.display().to_string();
    let labels = labels_beside(Input::open(&path).and_then(reader), images, &place)?;
    sources.push(path);
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binarization_draws_over_the_padded_array() {
        let pixels: Vec<u8> = (0..3 * PIXELS).map(|i| (i * 31 % 256) as u8).collect();
        let grey = Split::levels("ramp".into(), pixels.clone(), None, vec![]);
        let binary = grey.binarized();
        // Follows the definition literally: pad, draw all pixels, crop.
        let border = (PADDED - IMAGE_SIDE) / 2;
        let place = |i: usize| {
            let (image, row, column) = (i / PIXELS, i % PIXELS / IMAGE_SIDE, i % IMAGE_SIDE);
            (image * PADDED + row + border) * PADDED + column + border
        };
        let mut padded = vec![0.0; 3 * PADDED * PADDED];
        for (i, &p) in pixels.iter().enumerate() {
            padded[place(i)] = f32::from(p) / 255.0;
        }
        let drawn = Key::new(42).bernoulli(padded.len(), |i| padded[i]);
        let expected: Vec<u8> = (0..pixels.len()).map(|i| u8::from(drawn[place(i)])).collect();
        assert_eq!(binary.pixels, expected);
        assert!((0.45..0.55).contains(&binary.mean()), "{}", binary.mean());
    }

    #[test]
    fn binary_images_stay_unchanged() {
        let pixels: Vec<u8> = (0..PIXELS).map(|i| (i % 2) as u8).collect();
        let grey = Split::levels(String::new(), pixels.clone(), None, vec![]);
        assert_eq!(grey.binarized().pixels, pixels);
    }

    #[test]
    fn a_transposed_image_has_its_rows_as_columns() {
        let pixels: Vec<u8> = (0..2 * PIXELS).map(|i| u8::from(i % 5 == 0)).collect();
        let split = Split::levels(String::new(), pixels, None, vec![]);
        let turned = split.clone().transposed();
        let [image, other] = [split.image(1), turned.image(1)];
        for (row, column) in [(0, 0), (3, 20), (20, 3), (27, 0)] {
            assert_eq!(image[row * IMAGE_SIDE + column], other[column * IMAGE_SIDE + row]);
        }
        assert_ne!(split.pixels, turned.pixels);
        assert_eq!(split.pixels, turned.transposed().pixels);
    }

    #[test]
    fn glyphs_need_no_file() {
        let test = load_split(GLYPHS, Part::Test).unwrap();
        assert_eq!((test.len(), test.name.as_str()), (glyphs::TEST, "glyphs test"));
        assert!(test.sources.is_empty());
        assert!(load_grey(GLYPHS, Part::Test).unwrap_err().to_string().contains("binary"));
    }

    #[test]
    fn idx_names_have_two_spellings() {
        assert_eq!(idx_name(Part::Train, "images-idx3", '-'), "train-images-idx3-ubyte");
        assert_eq!(idx_name(Part::Test, "labels-idx1", '.'), "t10k-labels.idx1-ubyte");
    }
}
