//! Binary images to learn from: static binarized MNIST, any other set of 28 x 28 images, or the embedded digits.
//!
//! `load` reads whatever a user names: the word `glyphs` (see `glyphs`), a folder with the usual file names, or one
//! file. Files are recognised by content, gzip or not. Bad input gives an error that names the file and the place in
//! it, what was expected and what was there; memory grows with the data that is read, never with what a header claims.
//!
//! A folder's binary images are, first of these that it has: `binarized_mnist_{train,valid,test}.amat` (training set:
//! train, followed by valid if it is there), IDX images as of MNIST (binarized here, see [`Grey::binarize`]), or
//! `{train,test}.npy`. Kinds are never mixed; labels go with the images of their own kind only. Labels that are wrong are
//! left out with a word in the log, for few uses of the images need them.
//!
//! An `.npz` file has training and test images as Keras has them: `x_train`, `x_test` and the labels `y_train`, `y_test`.
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
#[cfg(feature = "download")]
pub mod download;
pub mod glyphs;
pub mod identity;
pub mod idx;
pub mod input;
pub mod known;
pub mod labels;
pub mod npy;
pub mod npz;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::engine::array::Array;
use crate::engine::random::host::{Key, unit};
use crate::error::{Error, Tag};
use input::Input;
use npz::Archive;

/// Rows and columns of an image.
pub const IMAGE_SIDE: usize = 28;
/// Pixels of an image.
pub const PIXELS: usize = IMAGE_SIDE * IMAGE_SIDE;
/// Rows and columns of an image as the models see it: zeros are added on every side.
pub const PADDED: usize = 32;
/// The name that stands for the embedded digits.
pub const GLYPHS: &str = "glyphs";

/// The two parts of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The images that models learn from.
    Train,
    /// The images that models are evaluated on.
    Test,
}

impl Part {
    /// `train` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Test => "test",
        }
    }
}

/// Binary images.
#[derive(Clone, Debug)]
pub struct Split {
    /// What the images are, for people: `binarized_mnist_test`, `glyphs train`.
    pub name: String,
    /// `n * 784` bytes, each 0 or 1: image after image, row after row.
    pub pixels: Vec<u8>,
    /// One of 0 to 9 for each image.
    pub labels: Option<Vec<u8>>,
    /// The files that the images and labels come from.
    pub sources: Vec<PathBuf>,
}

impl Split {
    /// Returns the pixels as an array of u8, (images, 28, 28).
    pub fn to_array(&self) -> Array {
        Array::new(&[self.len(), IMAGE_SIDE, IMAGE_SIDE], &self.pixels)
    }

    /// At most `n` images, evenly spaced: test sets are often sorted by class, and their beginning is then one class.
    pub fn spread(&self, n: usize) -> Split {
        self.chosen(&self.spread_indices(n))
    }

    /// Indices of at most `n` images, evenly spaced.
    pub fn spread_indices(&self, n: usize) -> Vec<usize> {
        let count = self.len().min(n);
        (0..count).map(|i| i * self.len() / count).collect()
    }

    /// The images of these indices, in this order.
    ///
    /// # Panics
    /// When there is no such image.
    pub fn chosen(&self, indices: &[usize]) -> Split {
        Split {
            name: self.name.clone(),
            pixels: indices.iter().flat_map(|i| self.image(*i)).copied().collect(),
            labels: self.labels.as_ref().map(|labels| indices.iter().map(|i| labels[*i]).collect()),
            sources: self.sources.clone(),
        }
    }

    /// Returns the images with rows and columns exchanged. EMNIST's files have their images so.
    pub fn transposed(mut self) -> Split {
        for image in self.pixels.chunks_exact_mut(PIXELS) {
            for row in 0..IMAGE_SIDE {
                for column in 0..row {
                    image.swap(row * IMAGE_SIDE + column, column * IMAGE_SIDE + row);
                }
            }
        }
        self
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.pixels.len() / PIXELS
    }

    /// Reports whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    /// The 784 pixels of image `i`.
    ///
    /// # Panics
    /// When there is no image `i`.
    pub fn image(&self, i: usize) -> &[u8] {
        &self.pixels[i * PIXELS..][..PIXELS]
    }

    /// The part of all pixels that is 1; 0 when there are none.
    pub fn mean(&self) -> f64 {
        mean(&self.pixels)
    }
}

/// Grey images.
#[derive(Clone, Debug)]
pub struct Grey {
    /// What the images are, for people.
    pub name: String,
    /// `n * 784` bytes from 0 (background) to 255: image after image, row after row.
    pub pixels: Vec<u8>,
    /// One of 0 to 9 for each image.
    pub labels: Option<Vec<u8>>,
    /// The files that they were read from.
    pub sources: Vec<PathBuf>,
}

impl Grey {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.pixels.len() / PIXELS
    }

    /// Reports whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    /// The 784 pixels of image `i`.
    ///
    /// # Panics
    /// When there is no image `i`.
    pub fn image(&self, i: usize) -> &[u8] {
        &self.pixels[i * PIXELS..][..PIXELS]
    }

    /// The static binarization: pixel by pixel 1 with probability grey / 255, from `key(42)`, drawn over the images as
    /// an array of shape (n, 1, 32, 32), in which they stand with a border of two zeros.
    ///
    /// Images in which no pixel is above 1 are binary already, and are taken as they are. Of pixels 0 and 255 only, 255 is 1.
    pub fn binarize(self) -> Split {
        let mut pixels = self.pixels;
        if pixels.iter().any(|&p| p > 1) {
            binarize(&mut pixels);
        }
        Split { name: self.name, pixels, labels: self.labels, sources: self.sources }
    }
}

fn binarize(pixels: &mut [u8]) {
    let key = Key::new(42);
    let border = (PADDED - IMAGE_SIDE) / 2;
    let mut bits = [0; IMAGE_SIDE * PADDED];
    for (i, image) in pixels.chunks_exact_mut(PIXELS).enumerate() {
        // From the first pixel inside the border to the end of its last row.
        let start = i * PADDED * PADDED + border * PADDED + border;
        key.bits32_from(start as u64, &mut bits);
        for (row, bits) in image.chunks_exact_mut(IMAGE_SIDE).zip(bits.chunks_exact(PADDED)) {
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

/// All that a user's word for a data set leads to. At least one part is there.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The name it was asked by.
    pub name: String,
    /// The training images; the images of a single file.
    pub train: Option<Split>,
    /// The test images, if the set has any.
    pub test: Option<Split>,
    origin: Origin,
}

impl Dataset {
    /// The images of a part. A single file has no parts: its images serve as either.
    ///
    /// # Errors
    /// [`Error::Data`] when a folder does not have the part: what was looked for and what is there.
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
            (None, Origin::Folder(folder)) => Err(folder.missing(part)),
            (None, Origin::Glyphs) => bail!("the embedded digits are not loaded"),
        }
    }
}

/// Loads all of a data set: `glyphs`, a file (`train` is its images and `test` is `None`, see `Dataset::split`) or a
/// folder. A folder named `glyphs` is `./glyphs`.
///
/// # Errors
/// [`Error::Data`]; see the head of this module.
pub fn load(spec: &str) -> Result<Dataset> {
    read_dataset(spec).tag(Error::Data)
}

fn read_dataset(spec: &str) -> Result<Dataset> {
    let origin = Origin::find(spec)?;
    let (train, test) = match &origin {
        Origin::Glyphs => (Some(glyphs::split(Part::Train)), Some(glyphs::split(Part::Test))),
        Origin::File(path) => (Some(read_binary(path)?), None),
        Origin::Archive(archive) => {
            let test = if archive.has_parts() { archive.grey(Part::Test)? } else { None };
            (archive.grey(Part::Train)?.map(Grey::binarize), test.map(Grey::binarize))
        }
        Origin::Folder(folder) => (folder.binary(Part::Train)?, folder.binary(Part::Test)?),
    };
    if let Origin::Archive(archive) = &origin {
        ensure!(train.is_some() || test.is_some(), archive.missing(Part::Train));
    }
    if let Origin::Folder(folder) = &origin {
        ensure!(train.is_some() || test.is_some(), folder.missing(Part::Train));
    }
    Ok(Dataset { name: spec.to_owned(), train, test, origin })
}

/// Loads one part only. A single file has no parts: its images serve as either.
///
/// # Errors
/// As of `load`; and when a folder does not have the part.
pub fn load_split(spec: &str, part: Part) -> Result<Split> {
    read_split(spec, part).tag(Error::Data)
}

fn read_split(spec: &str, part: Part) -> Result<Split> {
    match Origin::find(spec)? {
        Origin::Glyphs => Ok(glyphs::split(part)),
        Origin::File(path) => read_binary(&path),
        Origin::Archive(archive) => {
            archive.grey(part)?.map(Grey::binarize).ok_or_else(|| archive.missing(part))
        }
        Origin::Folder(folder) => folder.binary(part)?.ok_or_else(|| folder.missing(part)),
    }
}

/// Loads the grey images (IDX) of a part of a folder, also where the folder has binary images besides; or those of a
/// single file (IDX, `.npz`, text with commas). Not binarized.
///
/// # Errors
/// As of `load_split`; the embedded digits have no grey images.
pub fn load_grey(spec: &str, part: Part) -> Result<Grey> {
    read_grey(spec, part).tag(Error::Data)
}

fn read_grey(spec: &str, part: Part) -> Result<Grey> {
    match Origin::find(spec)? {
        Origin::Glyphs => bail!("{GLYPHS}: the embedded digits are binary: there are no grey images of them"),
        Origin::File(path) => read_file(&path),
        Origin::Archive(archive) => archive.grey(part)?.ok_or_else(|| archive.missing(part)),
        Origin::Folder(folder) => folder.grey(part)?.ok_or_else(|| {
            folder.lacks(
                &format!("grey {} images", part.name()),
                &format!("{}[.gz]", idx_name(part, "images-idx3", '-')),
            )
        }),
    }
}

/// Where a data set comes from.
#[derive(Clone, Debug)]
enum Origin {
    Glyphs,
    File(PathBuf),
    Archive(Archive),
    Folder(Folder),
}

impl Origin {
    fn find(spec: &str) -> Result<Origin> {
        if spec == GLYPHS {
            return Ok(Origin::Glyphs);
        }
        let path = Path::new(spec);
        let meta = std::fs::metadata(path)
            .with_context(|| format!("{spec}: expected '{GLYPHS}', a file or a folder with images"))?;
        if meta.is_dir() { Ok(Origin::Folder(Folder::open(path)?)) } else { find_file(path) }
    }
}

/// A single file: images, or an archive of them.
fn find_file(path: &Path) -> Result<Origin> {
    match Input::open(path)?.head().starts_with(npz::MAGIC) {
        true => Ok(Origin::Archive(Archive::open(path)?)),
        false => Ok(Origin::File(path.to_owned())),
    }
}

/// Reads one file of images of any known kind.
fn read_binary(path: &Path) -> Result<Split> {
    Ok(read_file(path)?.binarize())
}

/// Reads one file of images of any known kind. Images that are binary in the file have pixels 0 and 1.
fn read_file(path: &Path) -> Result<Grey> {
    let input = Input::open(path)?;
    let name = file_name(path);
    let sources = vec![path.to_owned()];
    let head = input.head();
    // The name decides only what a broken file is taken for, so that its error speaks of what the user meant.
    let stem = name.strip_suffix(".gz").unwrap_or(&name);
    let text = [".amat", ".csv"].iter().any(|ending| stem.ends_with(ending));
    let (pixels, labels) = if head.starts_with(npy::MAGIC) || stem.ends_with(".npy") {
        (npy::read_images(input)?, None)
    } else if idx::is_idx(head) || stem.ends_with("-ubyte") {
        (idx::read_images(input)?, None)
    } else if text || matches!(head.trim_ascii_start().first(), Some(b'0'..=b'9')) {
        let text = amat::read(input)?;
        let place = path.display().to_string();
        let labels = text.labels.and_then(|labels| labels_beside(digits(labels), &text.pixels, &place));
        (text.pixels, labels)
    } else {
        bail!(input.error(format_args!(
            "expected images as .amat text, IDX or .npy (gzip or not), .npz or .csv, got a file that starts with '{}'",
            head.escape_ascii()
        )));
    };
    Ok(Grey { name, pixels, labels, sources })
}

/// Labels that are all from 0 to 9.
fn digits(labels: Vec<u8>) -> Result<Vec<u8>> {
    match labels.iter().position(|label| *label > 9) {
        Some(i) => bail!("expected a label from 0 to 9 for image {i}, got {}", labels[i]),
        None => Ok(labels),
    }
}

/// The labels that stand beside images, if they fit. Few verbs need them: what is wrong with them is said, and does not
/// keep the images from being read.
fn labels_beside(labels: Result<Vec<u8>>, pixels: &[u8], place: &str) -> Option<Vec<u8>> {
    let images = pixels.len() / PIXELS;
    let checked = labels.and_then(|labels| {
        ensure!(
            labels.len() == images,
            "{place}: expected {images} labels, one for each image, got {}",
            labels.len()
        );
        Ok(labels)
    });
    checked.inspect_err(|error| log::warn!("{error:#}: the images of {place} are used without labels")).ok()
}

/// Refuses grey images that are too dark to be any: pixels such as 2 among 0 and 1 are a mistake, and binarization would
/// make them almost all background.
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

/// A folder and the names of what is in it.
#[derive(Clone, Debug)]
struct Folder {
    path: PathBuf,
    /// Sorted. Those of folders end with a slash.
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
                    // A folder is no data file, whatever its name: the ending makes that no file is looked for by it.
                    Ok(if is_folder { name + "/" } else { name })
                })
                .collect()
        };
        let mut names = read().with_context(|| format!("{}: the folder cannot be listed", path.display()))?;
        names.sort();
        Ok(Folder { path: path.to_owned(), names })
    }

    /// The path of a file in this folder, unpacked or gzip.
    fn file(&self, name: &str) -> Option<PathBuf> {
        [name.to_owned(), format!("{name}.gz")]
            .iter()
            .find(|&name| self.names.binary_search(name).is_ok())
            .map(|name| self.path.join(name))
    }

    /// An IDX file, in either spelling that is in use.
    fn idx_file(&self, part: Part, what: &str) -> Option<PathBuf> {
        ['-', '.'].iter().find_map(|&dot| self.file(&idx_name(part, what, dot)))
    }

    /// The first kind of binary images of which the folder has any.
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

    /// The binary images of a part, if the folder has them.
    fn binary(&self, part: Part) -> Result<Option<Split>> {
        match self.kind() {
            Some(Kind::Amat) => self.amat(part),
            Some(Kind::Idx) => Ok(self.grey(part)?.map(Grey::binarize)),
            Some(Kind::Npy) => self.npy(part),
            None => Ok(None),
        }
    }

    fn amat(&self, part: Part) -> Result<Option<Split>> {
        let Some(path) = self.file(&amat_name(part.name())) else { return Ok(None) };
        let mut name = format!("binarized_mnist_{}", part.name());
        let Grey { mut pixels, mut labels, mut sources, .. } = read_file(&path)?;
        if part == Part::Train
            && let Some(path) = self.file(&amat_name("valid"))
        {
            name += "+valid";
            let mut valid = read_file(&path)?;
            pixels.append(&mut valid.pixels);
            labels = labels.zip(valid.labels).map(|(labels, more)| [labels, more].concat());
            sources.push(path);
        }
        Ok(Some(Grey { name, pixels, labels, sources }.binarize()))
    }

    fn grey(&self, part: Part) -> Result<Option<Grey>> {
        let Some(path) = self.idx_file(part, "images-idx3") else { return Ok(None) };
        let pixels = idx::read_images(Input::open(&path)?)?;
        let name = file_name(&path);
        let mut sources = vec![path];
        let labels = match self.idx_file(part, "labels-idx1") {
            Some(path) => with_labels(path, idx::read_labels, &pixels, &mut sources),
            None => None,
        };
        Ok(Some(Grey { name, pixels, labels, sources }))
    }

    fn npy(&self, part: Part) -> Result<Option<Split>> {
        let Some(path) = self.file(&format!("{}.npy", part.name())) else { return Ok(None) };
        let pixels = npy::read_images(Input::open(&path)?)?;
        let name = file_name(&path);
        let mut sources = vec![path];
        let labels = match self.file(&format!("{}_labels.npy", part.name())) {
            Some(path) => with_labels(path, npy::read_labels, &pixels, &mut sources),
            None => None,
        };
        Ok(Some(Split { name, pixels, labels, sources }))
    }

    /// The error that the folder does not have the binary images of a part.
    fn missing(&self, part: Part) -> anyhow::Error {
        let amat = format!("{}[.gz]", amat_name(part.name()));
        let idx = format!("{}[.gz]", idx_name(part, "images-idx3", '-'));
        let npy = format!("{}.npy", part.name());
        // Once one kind is there, another's files would not be used.
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

/// The published name of an IDX file: `train-images-idx3-ubyte`, or with a dot as second separator.
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

/// Reads the labels beside images, if they fit, and adds their file to the sources.
fn with_labels(
    path: PathBuf,
    reader: fn(Input) -> Result<Vec<u8>>,
    pixels: &[u8],
    sources: &mut Vec<PathBuf>,
) -> Option<Vec<u8>> {
    let place = path.display().to_string();
    let labels = labels_beside(Input::open(&path).and_then(reader), pixels, &place)?;
    sources.push(path);
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binarization_draws_over_the_padded_array() {
        let pixels: Vec<u8> = (0..3 * PIXELS).map(|i| (i * 31 % 256) as u8).collect();
        let grey = Grey { name: "ramp".into(), pixels: pixels.clone(), labels: None, sources: vec![] };
        let binary = grey.binarize();
        // Written down as the definition says it: pad, draw all, cut.
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
    fn images_that_are_binary_already_stay() {
        let pixels: Vec<u8> = (0..PIXELS).map(|i| (i % 2) as u8).collect();
        let grey = Grey { name: String::new(), pixels: pixels.clone(), labels: None, sources: vec![] };
        assert_eq!(grey.binarize().pixels, pixels);
    }

    #[test]
    fn a_transposed_image_has_its_rows_as_columns() {
        let pixels: Vec<u8> = (0..2 * PIXELS).map(|i| u8::from(i % 5 == 0)).collect();
        let split = Split { name: String::new(), pixels, labels: None, sources: vec![] };
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
    fn both_spellings_of_idx_names() {
        assert_eq!(idx_name(Part::Train, "images-idx3", '-'), "train-images-idx3-ubyte");
        assert_eq!(idx_name(Part::Test, "labels-idx1", '.'), "t10k-labels.idx1-ubyte");
    }
}
