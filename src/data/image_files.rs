//! A folder of image files: PNG, JPEG, WebP, GIF and BMP.
//!
//! Files are found in subfolders of any depth, in the order of their names. If they lie in subfolders, the first level of these
//! are the classes. Folders `train` and `test` (also `Training`, `testing`) at the top are the parts, each with its own classes.
//! Links are followed; a folder that is reached twice within a class is read once. Names that begin with a dot are ignored.
//!
//! Files are decoded in parallel, in batches, so that memory grows with the resized images and not with the files.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::decode::{decode, widened};
use super::reading::{GREATEST_SIDE, LEAST_SIDE, Reading, fits};
use super::resize::resized;
use super::{ImageShape, Part, Split, Values, decoded_cache};

/// Endings of the names of image files, in lower case.
const ENDINGS: [&str; 9] = ["png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp"];
/// Images that are decoded between two calls of the progress function.
const BATCH: usize = 256;
/// Most bytes of a file that is read.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// An image file.
#[derive(Clone, Debug)]
struct Item {
    path: PathBuf,
    /// The path from the data set's folder on.
    name: String,
    part: Part,
    class: Option<String>,
}

/// The image files of a folder.
#[derive(Clone, Debug)]
pub struct Listing {
    folder: PathBuf,
    items: Vec<Item>,
    /// Whether the folder has a part `train` or `test`.
    pub has_parts: bool,
    /// Names of the classes, sorted; empty if there are none.
    classes: Vec<String>,
    /// What the user should know.
    notes: Vec<String>,
}

/// The images of a folder.
#[derive(Clone, Debug)]
pub struct Images {
    /// The training images.
    pub train: Option<Split>,
    /// The test images.
    pub test: Option<Split>,
    /// Names of the classes, in the order of the labels.
    pub classes: Vec<String>,
    /// Number of files that could not be read.
    pub skipped: usize,
    /// What the user should know.
    pub notes: Vec<String>,
    /// Whether the images were decoded before.
    pub from_cache: bool,
}

/// What a cache file says about its bytes: labels, then pixels.
#[derive(Serialize, Deserialize)]
struct Description {
    key: String,
    shape: ImageShape,
    /// The images that were read, as indices of files.
    read: Vec<usize>,
    notes: Vec<String>,
}

/// Walks folders in the order of names.
struct Walk {
    files: Vec<PathBuf>,
    seen: HashSet<(u64, u64)>,
    ignored: usize,
}

impl Walk {
    /// Finds the files of a folder and of those below it.
    fn all(folder: &Path) -> Result<Walk> {
        let mut walk = Walk { files: Vec::new(), seen: HashSet::new(), ignored: 0 };
        // A list of what is left, because a call for each level could exhaust the stack.
        let mut left = vec![folder.to_owned()];
        while let Some(path) = left.pop() {
            let Ok(meta) = fs::metadata(&path) else {
                // A link to nothing.
                walk.ignored += 1;
                continue;
            };
            if meta.is_dir() {
                if walk.seen.insert((meta.dev(), meta.ino())) {
                    left.extend(entries(&path)?.into_iter().rev());
                }
            } else if meta.is_file() && is_image(&path) {
                walk.files.push(path);
            } else {
                walk.ignored += 1;
            }
        }
        Ok(walk)
    }
}

/// Returns the paths in a folder that are not hidden, sorted.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        let paths =
            fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
        let shown = |path: &PathBuf| {
            path.file_name()
                .is_some_and(|name| !name.as_encoded_bytes().starts_with(b".") && name != "__MACOSX")
        };
        Ok(paths.into_iter().filter(shown).collect())
    };
    let mut paths = read().with_context(|| format!("{}: the folder cannot be listed", folder.display()))?;
    paths.sort();
    Ok(paths)
}

/// Reports whether a file's name ends as that of an image file.
pub(super) fn is_image(path: &Path) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

fn last_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Listing {
    /// Finds the image files of a folder; `None` if there are none.
    ///
    /// # Errors
    /// When a folder cannot be listed. The message names it.
    pub fn find(folder: &Path) -> Result<Option<Listing>> {
        let mut listing = Listing {
            folder: folder.to_owned(),
            items: Vec::new(),
            has_parts: false,
            classes: Vec::new(),
            notes: Vec::new(),
        };
        let top = entries(folder)?;
        let part = |names: [&str; 2]| {
            let is_part = |path: &&PathBuf| names.contains(&last_name(path).to_lowercase().as_str());
            top.iter().find(|path| is_part(path) && path.is_dir())
        };
        let (train, test) = (part(["train", "training"]), part(["test", "testing"]));
        listing.has_parts = train.is_some() || test.is_some();
        let mut ignored = 0;
        if let Some(test) = test {
            ignored += listing.add(Part::Test, &entries(test)?)?;
        }
        let rest: Vec<PathBuf> =
            top.iter().filter(|path| Some(*path) != train && Some(*path) != test).cloned().collect();
        if let Some(train) = train {
            ignored += listing.add(Part::Train, &entries(train)?)?;
            let beside = rest.iter().map(|path| last_name(path)).collect::<Vec<_>>();
            if !beside.is_empty() && !listing.items.is_empty() {
                let shown = beside[..beside.len().min(8)].join(", ");
                listing
                    .notes
                    .push(format!("{}: only train and test are read, not {shown}", folder.display()));
            }
        } else {
            ignored += listing.add(Part::Train, &rest)?;
        }
        if listing.items.is_empty() {
            return Ok(None);
        }
        if ignored > 0 {
            listing.notes.push(format!("{}: ignored {ignored} files that are no images", folder.display()));
        }
        let mut classes: Vec<String> = listing.items.iter().filter_map(|item| item.class.clone()).collect();
        classes.sort();
        classes.dedup();
        if classes.len() > 256 {
            let text = format!("{}: {} classes, more than 256", folder.display(), classes.len());
            listing.notes.push(text + ": using the images without labels");
            classes.clear();
        } else if !classes.is_empty() && listing.items.iter().any(|item| item.class.is_none()) {
            let text = "images lie both in subfolders and beside them";
            listing.notes.push(format!("{}: {text}: using them without labels", folder.display()));
            classes.clear();
        }
        let like_part =
            |class: &&String| ["val", "valid", "validation", "dev"].contains(&class.to_lowercase().as_str());
        if let Some(class) = classes.iter().find(like_part) {
            let text = format!("the folder {class} is taken for a class; only train and test are parts");
            listing.notes.push(format!("{}: {text}", folder.display()));
        }
        listing.classes = classes;
        Ok(Some(listing))
    }

    /// Adds the files of a part. Returns the number of other files.
    fn add(&mut self, part: Part, paths: &[PathBuf]) -> Result<usize> {
        let mut ignored = 0;
        for path in paths {
            let class = path.is_dir().then(|| last_name(path));
            let walk = Walk::all(path)?;
            if class.is_some() && walk.files.is_empty() {
                self.notes.push(format!("{}: no images in this folder", path.display()));
            }
            ignored += walk.ignored;
            for path in walk.files {
                let name = path.strip_prefix(&self.folder).unwrap_or(&path).to_string_lossy().into_owned();
                self.items.push(Item { path, name, part, class: class.clone() });
            }
        }
        Ok(ignored)
    }

    /// Reads the images, from the cache if they are there. Calls `progress` with the number of files decoded and of all.
    ///
    /// # Errors
    /// When a file cannot be read and is not to be skipped, or the sizes differ. The message names the files.
    pub fn load(&self, reading: &Reading, progress: &mut dyn FnMut(usize, usize)) -> Result<Images> {
        let kept = match &reading.cache {
            Some(folder) => {
                let key = self.key(reading)?;
                Some((folder.join(format!("{}.images", &key[..32])), key))
            }
            None => None,
        };
        if let Some((path, key)) = &kept
            && let Some((description, pixels)) = decoded_cache::read::<Description>(path)
            && description.key == *key
            && self.fits(&description, &pixels)
        {
            return Ok(self.images(description, pixels, true));
        }
        let (mut description, pixels) = self.decode(reading, progress)?;
        if let Some((path, key)) = kept {
            description.key = key;
            // Without a cache the images are decoded again, which is slow and not wrong.
            let _ = decoded_cache::write(&path, &description, &pixels)
                .inspect_err(|error| log::warn!("decoded images are not kept: {error:#}"));
        }
        Ok(self.images(description, pixels, false))
    }

    /// Returns a hash of all that the decoded images depend on: names and content of the files, and the options.
    fn key(&self, reading: &Reading) -> Result<String> {
        let sums: Vec<(u64, u32)> = self
            .items
            .par_iter()
            .map(|item| match read_file(&item.path) {
                Ok(bytes) => (bytes.len() as u64, crc32fast::hash(&bytes)),
                // Decoding meets the same error and reports or skips it.
                Err(_) => (u64::MAX, 0),
            })
            .collect();
        let mut hash = Sha256::new();
        let options = serde_json::json!([2, reading.size, reading.transpose, reading.skip_bad]);
        hash.update(options.to_string());
        for (item, (bytes, crc)) in self.items.iter().zip(sums) {
            let name = item.name.as_bytes();
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
            hash.update(bytes.to_le_bytes());
            hash.update(crc.to_le_bytes());
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn fits(&self, description: &Description, pixels: &[u8]) -> bool {
        let ImageShape { height, width, channels } = description.shape;
        let known = description.read.iter().all(|i| *i < self.items.len());
        known
            && fits(height)
            && fits(width)
            && [1, 3, 4].contains(&channels)
            && pixels.len() == description.read.len() * description.shape.values()
    }

    fn decode(
        &self,
        reading: &Reading,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Description, Vec<u8>)> {
        let mut gathered = Gathered::default();
        // Rows and columns are exchanged afterwards.
        let size = reading
            .size
            .map(|[height, width]| if reading.transpose { [width, height] } else { [height, width] });
        let (mut read, mut bad, mut animated) = (Vec::new(), Vec::new(), 0);
        for (batch, items) in self.items.chunks(BATCH).enumerate() {
            let decoded: Vec<Result<(ImageShape, Vec<u8>, bool)>> =
                items.par_iter().map(|item| decode_file(&item.path, size)).collect();
            for (i, (item, decoded)) in items.iter().zip(decoded).enumerate() {
                match decoded {
                    Ok((shape, pixels, frames)) => {
                        gathered.push(&item.path, shape, pixels)?;
                        read.push(batch * BATCH + i);
                        animated += usize::from(frames);
                    }
                    Err(error) if reading.skip_bad => {
                        log::debug!("skipped {error:#}");
                        bad.push(item.name.clone());
                    }
                    Err(error) => {
                        return Err(
                            error.context("a file cannot be read (--skip-bad goes on without such files)")
                        );
                    }
                }
            }
            progress((batch * BATCH + items.len()).min(self.items.len()), self.items.len());
        }
        let folder = self.folder.display();
        ensure!(!read.is_empty(), "{folder}: none of the {} image files can be read", self.items.len());
        let mut notes = Vec::new();
        if animated > 0 {
            notes
                .push(format!("{folder}: {animated} files are animations: only their first frames are used"));
        }
        if !bad.is_empty() {
            let shown = bad[..bad.len().min(8)].join(", ");
            notes.push(format!("{folder}: skipped {} files that cannot be read: {shown}", bad.len()));
        }
        let (shape, pixels) = gathered.finish();
        Ok((Description { key: String::new(), shape, read, notes }, pixels))
    }

    /// Divides decoded images into the parts.
    fn images(&self, description: Description, mut pixels: Vec<u8>, from_cache: bool) -> Images {
        let Description { shape, read, notes, .. } = description;
        // The files of the test part come first.
        let tests = read.iter().take_while(|i| self.items[**i].part == Part::Test).count();
        let train_pixels =
            if tests == 0 { std::mem::take(&mut pixels) } else { pixels.split_off(tests * shape.values()) };
        let index: BTreeMap<&str, u8> =
            self.classes.iter().enumerate().map(|(i, class)| (class.as_str(), i as u8)).collect();
        let split = |part: Part, pixels: Vec<u8>, read: &[usize]| {
            let label = |i: &usize| index.get(self.items[*i].class.as_deref()?).copied();
            let labels = if self.classes.is_empty() { None } else { read.iter().map(label).collect() };
            let name = match self.has_parts {
                true => format!("{} {}", last_name(&self.folder), part.name()),
                false => last_name(&self.folder),
            };
            let sources = vec![self.folder.clone()];
            (!read.is_empty()).then_some(Split {
                name,
                shape,
                values: Values::Levels,
                pixels,
                labels,
                sources,
            })
        };
        Images {
            train: split(Part::Train, train_pixels, &read[tests..]),
            test: split(Part::Test, pixels, &read[..tests]),
            classes: self.classes.clone(),
            skipped: self.items.len() - read.len(),
            notes: [self.notes.clone(), notes].concat(),
            from_cache,
        }
    }

    /// Returns the error that the folder has no images of a part.
    pub fn missing(&self, part: Part) -> anyhow::Error {
        let (folder, name) = (self.folder.display(), part.name());
        let other = if part == Part::Test { "train" } else { "test" };
        anyhow::anyhow!("{folder}: no {name} images: the folder has images in {other}, and none in {name}")
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let bytes = fs::metadata(path).with_context(|| format!("{name}: cannot be read"))?.len();
    ensure!(bytes <= MAX_FILE_BYTES, "{name}: {bytes} bytes: expected at most {MAX_FILE_BYTES} of an image");
    fs::read(path).with_context(|| format!("{name}: cannot be read"))
}

/// Decodes a file and resizes its image. Also returns whether the file is an animation.
fn decode_file(path: &Path, size: Option<[usize; 2]>) -> Result<(ImageShape, Vec<u8>, bool)> {
    let decoded = decode(&read_file(path)?).with_context(|| path.display().to_string())?;
    let (shape, pixels) = match size {
        Some(size) => {
            let shape = ImageShape { height: size[0], width: size[1], ..decoded.shape };
            (shape, resized(&decoded.pixels, decoded.shape, size))
        }
        // The caller refuses such an image, and a batch of them would take much memory.
        None if !fits(decoded.shape.height) || !fits(decoded.shape.width) => (decoded.shape, Vec::new()),
        None => (decoded.shape, decoded.pixels),
    };
    Ok((shape, pixels, decoded.animated))
}

/// Images of one size, with the most channels of any so far.
#[derive(Default)]
pub struct Gathered {
    /// The first image's file, and the shape of all.
    first: Option<(PathBuf, ImageShape)>,
    pixels: Vec<u8>,
}

impl Gathered {
    /// Adds an image.
    ///
    /// # Errors
    /// When its size differs from the first one's, or is out of range. The message names the files.
    pub fn push(&mut self, path: &Path, shape: ImageShape, pixels: Vec<u8>) -> Result<()> {
        let ImageShape { height, width, channels } = shape;
        let Some((first, all)) = &mut self.first else {
            if !fits(height) || !fits(width) {
                bail!(
                    "{}: {height} x {width} pixels: expected a height and a width from {LEAST_SIDE} to {GREATEST_SIDE}: \
                     --image-size HxW resizes images",
                    path.display()
                );
            }
            self.first = Some((path.to_owned(), shape));
            self.pixels = pixels;
            return Ok(());
        };
        if (height, width) != (all.height, all.width) {
            bail!(
                "images of different sizes: {} has {} x {} pixels, {} has {height} x {width}: --image-size HxW resizes \
                 images to one size",
                first.display(),
                all.height,
                all.width,
                path.display()
            );
        }
        if channels > all.channels {
            self.pixels = widened(std::mem::take(&mut self.pixels), all.channels, channels);
            all.channels = channels;
        }
        self.pixels.extend_from_slice(&widened(pixels, channels, all.channels));
        Ok(())
    }

    /// Returns the shape of the images, and their values.
    ///
    /// # Panics
    /// When there is no image.
    pub fn finish(self) -> (ImageShape, Vec<u8>) {
        let (_, shape) = self.first.expect("at least one image");
        (shape, self.pixels)
    }
}
