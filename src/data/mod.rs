//! Binary images for training: static binarized MNIST, any other set of 28 x 28 images, or the embedded digits.
//!
//! `load` reads the data set that a user names: `glyphs` (the embedded digits), a folder with the usual file names, or a file.
//! Files are recognised by content, gzip or not. Errors name the file, the position, what was expected and what was found.
//! Memory grows with the data read, never with a header's claim.
//!
//! A folder may contain several kinds of binary images. The first kind found is used: `binarized_mnist_{train,valid,test}.amat`
//! (the training set is train, followed by valid if present), IDX images like MNIST's (binarized here, see [`Split::binarized`]),
//! or `{train,test}.npy`. Kinds are never mixed, and labels must be of the same kind as the images. Malformed labels are
//! ignored with a warning, because few uses of the images need them.
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
#[cfg(feature = "download")]
pub mod download;
pub mod emoji;
pub mod glyphs;
pub mod identity;
pub mod idx;
pub mod input;
pub mod known;
pub mod labels;
pub mod npy;
pub mod npz;
mod pictures;
mod reading;
mod resize;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::engine::array::Array;
use crate::engine::random::host::{Key, unit};
use crate::error::{Error, Tag};
pub use emoji::EMOJI;
use input::Input;
use npz::Archive;
use pictures::Pictures;
pub use reading::Reading;

/// Rows and columns of an image.
pub const IMAGE_SIDE: usize = 28;
/// Pixels of an image.
pub const PIXELS: usize = IMAGE_SIDE * IMAGE_SIDE;
/// Rows and columns of an image after padding with zeros, as models take it.
pub const PADDED: usize = 32;
/// The fewest rows or columns of an image.
pub const FEWEST_SIDE: usize = 8;
/// The most rows or columns of an image.
pub const MOST_SIDE: usize = 256;
/// The name of the embedded digits.
pub const GLYPHS: &str = "glyphs";
/// The names of data sets that are not paths.
pub const NAMES: [&str; 2] = [GLYPHS, EMOJI];
/// Share of the emoji for training, unless a reading has another one.
const EMOJI_TRAIN_SHARE: f64 = 0.9;

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
    /// Returns images of levels from 0 to 255.
    fn levels(
        name: String,
        (shape, pixels): (ImageShape, Vec<u8>),
        labels: Option<Vec<u8>>,
        sources: Vec<PathBuf>,
    ) -> Split {
        Split { name, shape, values: Values::Levels, pixels, labels, sources }
    }

    /// Adds the labels of a file, if they fit, and the file to the sources.
    fn add_labels(&mut self, path: PathBuf, reader: fn(Input) -> Result<Vec<u8>>) {
        let place = path.display().to_string();
        self.labels = labels_beside(Input::open(&path).and_then(reader), self.len(), &place);
        if self.labels.is_some() {
            self.sources.push(path);
        }
    }

    /// Returns the images with levels from 0 to 255. Bits become 0 and 255.
    pub fn with_levels(mut self) -> Split {
        if self.values == Values::Bits {
            self.pixels.iter_mut().for_each(|pixel| *pixel *= 255);
            self.values = Values::Levels;
        }
        self
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
    /// Names of the classes that labels count, if they are the names of folders.
    pub classes: Vec<String>,
    /// Remarks for people, such as the number of skipped files.
    pub notes: Vec<String>,
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
        match (found, &self.origin) {
            (Some(split), _) => Ok(split),
            (None, Origin::File(_)) => self.train.as_ref().context("a single file's images are not loaded"),
            (None, Origin::Archive(archive)) if archive.has_parts() => Err(archive.missing(part)),
            (None, Origin::Archive(_)) => self.train.as_ref().context("the file's only array is not loaded"),
            // Image files without a folder `test` are like a single file.
            (None, Origin::Folder(folder)) if folder.kind().is_none() && part == Part::Test => {
                self.train.as_ref().ok_or_else(|| folder.missing(part))
            }
            (None, Origin::Folder(folder)) => Err(folder.missing(part)),
            (None, Origin::Glyphs | Origin::Emoji) => bail!("the {} images are not loaded", part.name()),
        }
    }
}

/// Loads a data set: `glyphs`, `emoji`, a file or a folder, with the default [`Reading`]. The images of a file are in `train`, and
/// `test` is `None`; see `Dataset::split`. Write a folder named `glyphs` as `./glyphs`.
///
/// # Errors
/// [`Error::Data`] when the images cannot be found or read; see the module's documentation.
pub fn load(spec: &str) -> Result<Dataset> {
    load_with(spec, &Reading::default(), &mut |_, _| {})
}

/// Loads a data set as a reading says. `progress` is called with the number of image files that are decoded, and of all.
///
/// # Errors
/// The errors of [`load`]. [`Error::Invalid`] when the reading does not fit the images.
pub fn load_with(spec: &str, reading: &Reading, progress: &mut dyn FnMut(usize, usize)) -> Result<Dataset> {
    let mut read = || {
        reading.check()?;
        reading.apply(read_parts(spec, &[Part::Train, Part::Test], reading, progress)?)
    };
    read().tag(Error::Data)
}

/// Loads one part of a data set. The images of a single file serve as both parts.
///
/// # Errors
/// The errors of `load`, and when a folder lacks the part.
pub fn load_split(spec: &str, part: Part) -> Result<Split> {
    load_split_with(spec, part, &Reading::default(), &mut |_, _| {})
}

/// Loads one part of a data set as a reading says.
///
/// # Errors
/// The errors of [`load_with`], and when a folder lacks the part.
pub fn load_split_with(
    spec: &str,
    part: Part,
    reading: &Reading,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Split> {
    let mut read = || {
        reading.check()?;
        // A share takes all images to divide them.
        let both = [Part::Train, Part::Test];
        let parts = if reading.train_share.is_some() { both.as_slice() } else { &[part] };
        let dataset = reading.apply(read_parts(spec, parts, reading, progress)?)?;
        dataset.find(part).cloned()
    };
    read().tag(Error::Data)
}

/// Reads parts of a data set, without changes.
///
/// # Errors
/// When an image cannot be read, or the data set has none of the parts.
fn read_parts(
    spec: &str,
    parts: &[Part],
    reading: &Reading,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Dataset> {
    let origin = Origin::find(spec)?;
    let has = |part: Part| parts.contains(&part);
    let (mut classes, mut notes) = (vec![], vec![]);
    let each = |read: &dyn Fn(Part) -> Result<Option<Split>>| -> Result<(Option<Split>, Option<Split>)> {
        let part = |part: Part| if has(part) { read(part) } else { Ok(None) };
        Ok((part(Part::Train)?, part(Part::Test)?))
    };
    let (train, test) = match &origin {
        Origin::Glyphs => each(&|part| Ok(Some(glyphs::split(part))))?,
        Origin::Emoji => {
            let all = emoji::read(reading.size)?;
            let share = reading.train_share.unwrap_or(EMOJI_TRAIN_SHARE);
            let (train, test) = reading::divide(&all, share);
            (Some(train), Some(test))
        }
        Origin::File(path) => (Some(read_file(path)?), None),
        Origin::Archive(archive) if archive.has_parts() => each(&|part| archive.images(part))?,
        Origin::Archive(archive) => (archive.images(Part::Train)?, None),
        Origin::Folder(folder) if folder.kind().is_some() => each(&|part| folder.images(part))?,
        Origin::Folder(folder) => match Pictures::find(&folder.path)? {
            Some(pictures) => {
                let (train, test, remarks) = pictures.read(&folder.path, reading, progress)?;
                (classes, notes) = (pictures.classes, remarks);
                (train, test)
            }
            None => (None, None),
        },
    };
    if train.is_none() && test.is_none() {
        let part = parts[0];
        match &origin {
            Origin::Archive(archive) => return Err(archive.missing(part)),
            Origin::Folder(folder) => return Err(folder.missing(part)),
            _ => bail!("{spec}: no images"),
        }
    }
    Ok(Dataset { name: spec.to_owned(), train, test, classes, notes, origin })
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
        Origin::Emoji => bail!("{EMOJI}: the images of a font have colours"),
        Origin::File(path) => of_mnist(read_file(&path)?),
        Origin::Archive(archive) => of_mnist(archive.images(part)?.ok_or_else(|| archive.missing(part))?),
        Origin::Folder(folder) => folder.grey(part)?.ok_or_else(|| {
            folder.lacks(
                &format!("grey {} images", part.name()),
                &format!("{}[.gz]", idx_name(part, "images-idx3", '-')),
            )
        }),
    }
}

/// Checks that images have the size of MNIST's.
fn of_mnist(split: Split) -> Result<Split> {
    let shape = split.shape;
    ensure!(shape == ImageShape::MNIST, "{}: expected grey images of 28 x 28, got {shape}", split.name);
    Ok(split)
}

/// The source of a data set.
#[derive(Clone, Debug)]
enum Origin {
    Glyphs,
    Emoji,
    File(PathBuf),
    Archive(Archive),
    Folder(Folder),
}

impl Origin {
    fn find(spec: &str) -> Result<Origin> {
        if spec == GLYPHS {
            return Ok(Origin::Glyphs);
        }
        if spec == EMOJI {
            return Ok(Origin::Emoji);
        }
        let path = Path::new(spec);
        let meta = std::fs::metadata(path).with_context(|| {
            format!("{spec}: expected '{GLYPHS}', '{EMOJI}', a file or a folder with images")
        })?;
        if meta.is_dir() { Ok(Origin::Folder(Folder::open(path)?)) } else { find_file(path) }
    }
}

/// Finds out whether a single file contains images or is an archive of them.
fn find_file(path: &Path) -> Result<Origin> {
    match Input::open(path)?.head().starts_with(npz::MAGIC) {
        true => Ok(Origin::Archive(Archive::open(path)?)),
        false => Ok(Origin::File(path.to_owned())),
    }
}

/// Reads one file of images of any known kind. Images that are binary in the file get pixels 0 and 1.
fn read_file(path: &Path) -> Result<Split> {
    let input = Input::open(path)?;
    let name = file_name(path);
    let sources = vec![path.to_owned()];
    let head = input.head();
    // The name matters only for malformed files: the error then describes the type that the user meant.
    let stem = name.strip_suffix(".gz").unwrap_or(&name);
    let text = [".amat", ".csv"].iter().any(|ending| stem.ends_with(ending));
    let (images, labels) = if head.starts_with(npy::MAGIC) || stem.ends_with(".npy") {
        (npy::read_images(input)?, None)
    } else if idx::is_idx(head) || stem.ends_with("-ubyte") {
        (idx::read_images(input)?, None)
    } else if text || matches!(head.trim_ascii_start().first(), Some(b'0'..=b'9')) {
        let text = amat::read(input)?;
        let place = path.display().to_string();
        let images = text.pixels.len() / PIXELS;
        let labels = text.labels.and_then(|labels| labels_beside(Ok(labels), images, &place));
        ((ImageShape::MNIST, text.pixels), labels)
    } else {
        bail!(input.error(format_args!(
            "expected images as .amat text, IDX or .npy (gzip or not), .npz or .csv, got a file that starts with '{}'",
            head.escape_ascii()
        )));
    };
    Ok(Split::levels(name, images, labels, sources))
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

/// The kinds of binary images, in the order in which a folder is searched for them.
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

    /// Returns the first kind of binary images that the folder contains.
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

    /// Reads the images of a part, if the folder has them.
    fn images(&self, part: Part) -> Result<Option<Split>> {
        match self.kind() {
            Some(Kind::Amat) => self.amat(part),
            Some(Kind::Idx) => self.grey(part),
            Some(Kind::Npy) => self.npy(part),
            None => Ok(None),
        }
    }

    fn amat(&self, part: Part) -> Result<Option<Split>> {
        let Some(path) = self.file(&amat_name(part.name())) else { return Ok(None) };
        let mut name = format!("binarized_mnist_{}", part.name());
        let Split { mut pixels, mut labels, mut sources, .. } = read_file(&path)?;
        if part == Part::Train
            && let Some(path) = self.file(&amat_name("valid"))
        {
            name += "+valid";
            let mut valid = read_file(&path)?;
            pixels.append(&mut valid.pixels);
            labels = labels.zip(valid.labels).map(|(labels, more)| [labels, more].concat());
            sources.push(path);
        }
        Ok(Some(Split::levels(name, (ImageShape::MNIST, pixels), labels, sources)))
    }

    fn grey(&self, part: Part) -> Result<Option<Split>> {
        let Some(path) = self.idx_file(part, "images-idx3") else { return Ok(None) };
        let images = idx::read_images(Input::open(&path)?)?;
        let name = file_name(&path);
        let mut split = Split::levels(name, images, None, vec![path]);
        if let Some(path) = self.idx_file(part, "labels-idx1") {
            split.add_labels(path, idx::read_labels);
        }
        Ok(Some(split))
    }

    fn npy(&self, part: Part) -> Result<Option<Split>> {
        let Some(path) = self.file(&format!("{}.npy", part.name())) else { return Ok(None) };
        let images = npy::read_images(Input::open(&path)?)?;
        let name = file_name(&path);
        let mut split = Split::levels(name, images, None, vec![path]);
        if let Some(path) = self.file(&format!("{}_labels.npy", part.name())) {
            split.add_labels(path, npy::read_labels);
        }
        Ok(Some(split))
    }

    /// Returns the error that the folder lacks the binary images of a part.
    fn missing(&self, part: Part) -> anyhow::Error {
        let amat = format!("{}[.gz]", amat_name(part.name()));
        let idx = format!("{}[.gz]", idx_name(part, "images-idx3", '-'));
        let npy = format!("{}.npy", part.name());
        // If the folder has one kind, files of other kinds would be ignored.
        let looked_for = match self.kind() {
            Some(Kind::Amat) => amat,
            Some(Kind::Idx) => idx,
            Some(Kind::Npy) => npy,
            None => format!("{amat}, {idx} or {npy}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binarization_draws_over_the_padded_array() {
        let pixels: Vec<u8> = (0..3 * PIXELS).map(|i| (i * 31 % 256) as u8).collect();
        let grey = Split::levels("ramp".into(), (ImageShape::MNIST, pixels.clone()), None, vec![]);
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
        let grey = Split::levels(String::new(), (ImageShape::MNIST, pixels.clone()), None, vec![]);
        assert_eq!(grey.binarized().pixels, pixels);
    }

    #[test]
    fn a_transposed_image_has_its_rows_as_columns() {
        let pixels: Vec<u8> = (0..2 * PIXELS).map(|i| u8::from(i % 5 == 0)).collect();
        let split = Split::levels(String::new(), (ImageShape::MNIST, pixels), None, vec![]);
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
