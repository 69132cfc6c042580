//! A folder of image files: PNG, JPEG, WebP, GIF and BMP.
//!
//! Files are found in all subfolders. If files lie in several subfolders of the top folder, these are the classes. Folders `train`
//! and `test` at the top divide the images into parts, each with its own classes.

use std::collections::BTreeSet;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{AnimationDecoder, ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::resize::resize;
use super::{ImageShape, MOST_SIDE, Part, Reading, Split, Values};
use crate::error::Error;
use crate::files;

const ENDINGS: [&str; 6] = ["png", "jpg", "jpeg", "webp", "gif", "bmp"];
/// Bytes of a file at most.
const MOST_BYTES: u64 = 256 << 20;
/// Bytes that decoding a file may take. A small file can claim to be a huge image.
const MOST_DECODED: u64 = 512 << 20;
/// Files that are decoded between two reports of progress.
const AT_ONCE: usize = 256;
/// The most folders between the top and a file. Deeper ones are taken for a circle of links.
const MOST_DEPTH: usize = 32;

/// An image file.
#[derive(Clone, Debug)]
struct Picture {
    path: PathBuf,
    /// Name of the subfolder that is its class.
    class: Option<String>,
}

/// The image files of a folder.
#[derive(Clone, Debug, Default)]
pub struct Pictures {
    train: Vec<Picture>,
    test: Vec<Picture>,
    /// Names of the classes, sorted.
    pub classes: Vec<String>,
    /// Remarks for people.
    pub notes: Vec<String>,
}

impl Pictures {
    /// Lists the image files of a folder; `None` if there are none.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub fn find(folder: &Path) -> Result<Option<Pictures>> {
        let mut found = Pictures::default();
        let [train, test] = ["train", "test"].map(|part| folder.join(part));
        let parts = match test.is_dir() {
            true if train.is_dir() => vec![(Part::Train, train), (Part::Test, test)],
            // Without a folder `train`, everything else is for training.
            true => vec![(Part::Train, folder.to_owned()), (Part::Test, test)],
            false if train.is_dir() => vec![(Part::Train, train)],
            false => vec![(Part::Train, folder.to_owned())],
        };
        let (mut others, mut classes) = (0, BTreeSet::new());
        for (part, top) in &parts {
            let mut walk = Walk { pictures: vec![], others: 0, empty: vec![], visiting: vec![] };
            let except = (*part == Part::Train && parts.len() > 1).then(|| folder.join("test"));
            walk.folder(top, None, except.as_deref())?;
            others += walk.others;
            walk.pictures.sort_by(|a, b| a.path.cmp(&b.path));
            for class in &walk.empty {
                found.notes.push(format!("the folder {} has no images", class.display()));
            }
            classes.extend(walk.pictures.iter().filter_map(|picture| picture.class.clone()));
            match part {
                Part::Train => found.train = walk.pictures,
                Part::Test => found.test = walk.pictures,
            }
        }
        if found.train.is_empty() && found.test.is_empty() {
            return Ok(None);
        }
        let all = || found.train.iter().chain(&found.test);
        // One subfolder is no class, and a label has one byte.
        if (2..=256).contains(&classes.len()) && all().all(|picture| picture.class.is_some()) {
            found.classes = classes.into_iter().collect();
        }
        if others > 0 {
            found.notes.push(format!("{others} files are no images"));
        }
        Ok(Some(found))
    }

    /// Decodes the images of both parts to one shape. `progress` is called with the number of files done and of all.
    ///
    /// # Errors
    /// When a file cannot be read, unless bad files are skipped, or the images' sizes differ.
    pub fn read(
        &self,
        folder: &Path,
        reading: &Reading,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Option<Split>, Option<Split>, Vec<String>)> {
        let all: Vec<&Picture> = self.train.iter().chain(&self.test).collect();
        let relative = |picture: &Picture| {
            picture.path.strip_prefix(folder).unwrap_or(&picture.path).to_string_lossy().into_owned()
        };
        let cache = match &reading.cache {
            Some(cache) => Some(cache.join(format!("{}.images", content_key(&all, relative, reading)?))),
            None => None,
        };
        let decoded = match cache.as_deref().and_then(Decoded::from_cache) {
            Some(decoded) => decoded,
            None => {
                let decoded = Decoded::from_files(&all, reading, progress)?;
                if let Some(path) = &cache {
                    decoded
                        .save(path)
                        .unwrap_or_else(|error| log::warn!("the decoded images are not kept: {error:#}"));
                }
                decoded
            }
        };
        let Header { shape, kept, animated, bad, .. } = &decoded.header;
        let mut notes = self.notes.clone();
        if *animated > 0 {
            notes.push(format!("{animated} files are animated: only their first frames are used"));
        }
        if let Some(first) = bad.first() {
            notes.push(format!("{} files are skipped, because they cannot be read: {first}", bad.len()));
        }
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        let label = |picture: &Picture| -> u8 {
            let class = picture.class.as_ref();
            class.and_then(|class| self.classes.binary_search(class).ok()).unwrap_or(0) as u8
        };
        let part = |part: Part| {
            let chosen: Vec<usize> =
                (0..kept.len()).filter(|i| (kept[*i] < self.train.len()) == (part == Part::Train)).collect();
            let pixels = chosen.iter().flat_map(|i| &decoded.pixels[i * shape.values()..][..shape.values()]);
            let split = Split {
                name: if self.test.is_empty() { name.clone() } else { format!("{name} {}", part.name()) },
                shape: *shape,
                values: Values::Levels,
                pixels: pixels.copied().collect(),
                labels: (!self.classes.is_empty())
                    .then(|| chosen.iter().map(|i| label(all[kept[*i]])).collect()),
                sources: vec![folder.to_owned()],
            };
            (!split.is_empty()).then_some(split)
        };
        Ok((part(Part::Train), part(Part::Test), notes))
    }
}

/// The search for image files.
struct Walk {
    pictures: Vec<Picture>,
    others: usize,
    /// Folders of classes without images.
    empty: Vec<PathBuf>,
    /// The folders from the top to the present one, without links.
    visiting: Vec<PathBuf>,
}

impl Walk {
    fn folder(&mut self, folder: &Path, class: Option<&str>, except: Option<&Path>) -> Result<()> {
        let real =
            fs::canonicalize(folder).with_context(|| format!("{}: cannot be opened", folder.display()))?;
        // A link to a folder above leads to the same files again.
        if self.visiting.contains(&real) || self.visiting.len() > MOST_DEPTH {
            return Ok(());
        }
        self.visiting.push(real);
        let entries = fs::read_dir(folder)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("{}: the folder cannot be listed", folder.display()))?;
        for entry in entries {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if name.starts_with('.') || except == Some(path.as_path()) {
                continue;
            }
            // A link that leads nowhere is a file that cannot be read.
            let is_folder = fs::metadata(&path).is_ok_and(|meta| meta.is_dir());
            if is_folder {
                let before = self.pictures.len();
                self.folder(&path, Some(class.unwrap_or(&name)), None)?;
                if class.is_none() && self.pictures.len() == before {
                    self.empty.push(path);
                }
            } else if path
                .extension()
                .is_some_and(|e| ENDINGS.iter().any(|ending| e.eq_ignore_ascii_case(ending)))
            {
                self.pictures.push(Picture { path, class: class.map(String::from) });
            } else {
                self.others += 1;
            }
        }
        self.visiting.pop();
        Ok(())
    }
}

/// A decoded image.
struct Image {
    shape: ImageShape,
    pixels: Vec<u8>,
    animated: bool,
}

/// Decodes an image file's content to grey, RGB or premultiplied RGBA. Turns it as its EXIF data says.
///
/// # Errors
/// When the content is damaged or of an unknown kind, or the image is larger than memory should be.
fn decode(bytes: &[u8]) -> Result<Image> {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST_DECODED);
    limits.max_image_width = Some(1 << 16);
    limits.max_image_height = Some(1 << 16);
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    reader.limits(limits);
    let format = reader.format().context("the content is of no known kind of image")?;
    let mut decoder = reader.into_decoder()?;
    let orientation = decoder.orientation()?;
    let mut picture = DynamicImage::from_decoder(decoder)?;
    picture.apply_orientation(orientation);
    let (height, width) = (picture.height() as usize, picture.width() as usize);
    let grey = matches!(picture.color(), ColorType::L8 | ColorType::L16);
    let animated = is_animated(format, bytes).unwrap_or(false);
    if grey {
        let shape = ImageShape { height, width, channels: 1 };
        return Ok(Image { shape, pixels: picture.into_luma8().into_raw(), animated });
    }
    let grey = matches!(picture.color(), ColorType::La8 | ColorType::La16);
    let has_opacity = picture.color().has_alpha();
    let mut pixels = match has_opacity {
        true => picture.into_rgba8().into_raw(),
        false => picture.into_rgb8().into_raw(),
    };
    let mut channels = if has_opacity { 4 } else { 3 };
    let opaque = pixels.chunks_exact(4).all(|pixel| pixel[3] == 255);
    if has_opacity && opaque {
        channels = if grey { 1 } else { 3 };
        pixels = pixels.chunks_exact(4).flat_map(|pixel| pixel[..channels].to_vec()).collect();
    } else if has_opacity {
        for pixel in pixels.chunks_exact_mut(4) {
            let opacity = u32::from(pixel[3]);
            pixel[..3]
                .iter_mut()
                .for_each(|colour| *colour = ((u32::from(*colour) * opacity + 127) / 255) as u8);
        }
    }
    Ok(Image { shape: ImageShape { height, width, channels }, pixels, animated })
}

/// Reports whether a file has more than one frame.
fn is_animated(format: ImageFormat, bytes: &[u8]) -> Result<bool> {
    let bytes = Cursor::new(bytes);
    Ok(match format {
        ImageFormat::Gif => GifDecoder::new(bytes)?.into_frames().nth(1).is_some(),
        ImageFormat::WebP => WebPDecoder::new(bytes)?.has_animation(),
        ImageFormat::Png => PngDecoder::new(bytes)?.is_apng()?,
        _ => false,
    })
}

/// Decodes one image file's content for a reading: resized, in its own channels.
fn decode_sized(bytes: &[u8], reading: &Reading) -> Result<Image> {
    let image = decode(bytes)?;
    let ImageShape { height, width, channels } = image.shape;
    let Some(size) = reading.size else {
        ensure!(
            height.max(width) <= MOST_SIDE,
            "the image has {height} x {width} pixels, more than {MOST_SIDE}: choose a size with --image-size"
        );
        return Ok(image);
    };
    let size = if reading.transpose { [size[1], size[0]] } else { size };
    let pixels = resize(&image.pixels, image.shape, size);
    Ok(Image { shape: ImageShape { height: size[0], width: size[1], channels }, pixels, ..image })
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let size = fs::metadata(path).context("cannot be read")?.len();
    ensure!(size <= MOST_BYTES, "the file has {size} bytes, more than an image should");
    fs::read(path).context("cannot be read")
}

/// What a cache file says about its images.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
    shape: ImageShape,
    /// Indices of the files that were decoded, in order.
    kept: Vec<usize>,
    animated: usize,
    /// The files that were skipped, with the reasons.
    bad: Vec<String>,
    /// Checksum of the pixels.
    crc: u32,
}

const VERSION: u32 = 1;

/// Images of one shape.
struct Decoded {
    header: Header,
    pixels: Vec<u8>,
}

impl Decoded {
    fn from_files(
        all: &[&Picture],
        reading: &Reading,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Decoded> {
        let (mut images, mut kept, mut bad) = (Vec::new(), Vec::new(), Vec::new());
        let mut first: Option<(ImageShape, &Path)> = None;
        let mut done = 0;
        for files in all.chunks(AT_ONCE) {
            let decoded: Vec<Result<Image>> = files
                .par_iter()
                .map(|picture| {
                    let image = read_bytes(&picture.path).and_then(|bytes| decode_sized(&bytes, reading));
                    image.with_context(|| picture.path.display().to_string())
                })
                .collect();
            for (i, image) in decoded.into_iter().enumerate() {
                let picture = files[i];
                match image {
                    Err(error) if reading.skip_bad => bad.push(format!("{error:#}")),
                    Err(error) => {
                        return Err(error.context("--skip-bad goes on without files that cannot be read"));
                    }
                    Ok(image) => {
                        let (shape, path) = *first.get_or_insert((image.shape, &picture.path));
                        let same = (shape.height, shape.width) == (image.shape.height, image.shape.width);
                        if !same {
                            bail!(different_sizes(path, shape, &picture.path, image.shape));
                        }
                        kept.push(done + i);
                        images.push(image);
                    }
                }
            }
            done += files.len();
            progress(done, all.len());
        }
        let Some((shape, _)) = first else {
            bail!("none of {} files can be read: {}", all.len(), bad.first().map_or("", String::as_str));
        };
        let channels = images.iter().map(|image| image.shape.channels).max().unwrap_or(1);
        let animated = images.iter().filter(|image| image.animated).count();
        let shape = ImageShape { channels, ..shape };
        let mut pixels = Vec::with_capacity(images.len() * shape.values());
        for image in images {
            let one = Split {
                name: String::new(),
                shape: image.shape,
                values: Values::Levels,
                pixels: image.pixels,
                labels: None,
                sources: vec![],
            };
            pixels.extend(one.with_channels(channels).pixels);
        }
        let crc = crc32fast::hash(&pixels);
        Ok(Decoded { header: Header { version: VERSION, shape, kept, animated, bad, crc }, pixels })
    }

    /// Reads a cache file: a line of JSON, then the pixels. Returns `None` for a missing or damaged file.
    fn from_cache(path: &Path) -> Option<Decoded> {
        let mut bytes = fs::read(path).ok()?;
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let header: Header = serde_json::from_slice(&bytes[..end]).ok()?;
        let pixels = bytes.split_off(end + 1);
        let values = header.kept.len().checked_mul(header.shape.values())?;
        let sound =
            header.version == VERSION && pixels.len() == values && crc32fast::hash(&pixels) == header.crc;
        sound.then_some(Decoded { header, pixels })
    }

    fn save(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let mut bytes = serde_json::to_vec(&self.header)?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&self.pixels);
        files::write_bytes(path, bytes)
    }
}

/// Returns the error that two files have different sizes.
fn different_sizes(a: &Path, a_shape: ImageShape, b: &Path, b_shape: ImageShape) -> anyhow::Error {
    let size = |shape: ImageShape| format!("{} x {}", shape.height, shape.width);
    let problem = format!(
        "is needed, because the images differ in size: {} has {} pixels and {} has {}",
        a.display(),
        size(a_shape),
        b.display(),
        size(b_shape)
    );
    Error::Invalid { field: "image_size", problem }.into()
}

/// Returns the name of the cache file for files and a reading. The files' names and contents determine it.
fn content_key(all: &[&Picture], relative: impl Fn(&Picture) -> String, reading: &Reading) -> Result<String> {
    let sums: Vec<Result<u32>> =
        all.par_iter().map(|picture| Ok(crc32fast::hash(&read_bytes(&picture.path)?))).collect();
    let mut hash = Sha256::new();
    hash.update(format!("{VERSION} {:?} {} {}\n", reading.size, reading.transpose, reading.skip_bad));
    for (picture, sum) in all.iter().zip(sums) {
        // A file that cannot be read has no sum. Decoding reports it.
        hash.update(format!("{} {:?}\n", relative(picture), sum.ok()));
    }
    Ok(hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

/// Decodes images that are in memory, each with a name for messages, to one size.
///
/// # Errors
/// When an image cannot be read.
pub fn from_memory(images: &[(String, &[u8])], size: [usize; 2]) -> Result<(ImageShape, Vec<u8>)> {
    let reading = Reading { size: Some(size), ..Reading::default() };
    let decoded: Vec<Image> = images
        .par_iter()
        .map(|(name, bytes)| decode_sized(bytes, &reading).with_context(|| name.clone()))
        .collect::<Result<_>>()?;
    let shape = ImageShape { height: size[0], width: size[1], channels: 4 };
    let mut pixels = Vec::with_capacity(images.len() * shape.values());
    for image in decoded {
        let one = Split {
            name: String::new(),
            shape: image.shape,
            values: Values::Levels,
            pixels: image.pixels,
            labels: None,
            sources: vec![],
        };
        pixels.extend(one.with_channels(4).pixels);
    }
    Ok((shape, pixels))
}
