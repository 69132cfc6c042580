//! The data set `emoji`: the pictures of a font, one for each character that has one.
//!
//! The font is Noto Color Emoji, which Debian and Ubuntu have as the package `fonts-noto-color-emoji`. The environment variable
//! `VNCA_EMOJI_FONT` names another font with bitmaps in PNG.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use skrifa::bitmap::BitmapData;
use skrifa::instance::Size;
use skrifa::{FontRef, MetadataProvider};

use super::decode::{decode, widened};
use super::reading::{Reading, content_hash};
use super::resize::resized;
use super::{EMOJI, ImageShape, Split, Values};

/// Height and width of the images if no others are asked for.
pub const SIZE: [usize; 2] = [64, 64];
/// Share of the images for training if no other is asked for.
pub const TRAIN_SHARE: f64 = 0.9;
/// Names the font.
pub const VARIABLE: &str = "VNCA_EMOJI_FONT";
const FONT: &str = "NotoColorEmoji.ttf";
const PACKAGE: &str = "fonts-noto-color-emoji";

/// Returns the path of the emoji font: that of the environment variable, or the one in the system's folders.
///
/// # Errors
/// When there is none. The message says which package has it.
pub fn font() -> Result<PathBuf> {
    if let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "{}: no such file; {VARIABLE} names it as the emoji font", path.display());
        return Ok(path);
    }
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let folders = [
        PathBuf::from("/usr/share/fonts"),
        PathBuf::from("/usr/local/share/fonts"),
        home.join(".local/share/fonts"),
        home.join(".fonts"),
    ];
    folders.iter().find_map(|folder| find(folder, 4)).with_context(|| {
        format!(
            "{EMOJI}: no font {FONT} in the system's folders: install the package {PACKAGE}, or name the font with {VARIABLE}"
        )
    })
}

/// Looks for the font in a folder and, down to a depth, in those below.
fn find(folder: &Path, depth: usize) -> Option<PathBuf> {
    let path = folder.join(FONT);
    if path.is_file() {
        return Some(path);
    }
    let mut below: Vec<PathBuf> = match depth {
        0 => Vec::new(),
        _ => fs::read_dir(folder)
            .ok()?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect(),
    };
    below.sort();
    below.iter().find_map(|folder| find(folder, depth - 1))
}

/// Draws the pictures of a font as RGBA images, in the order of the characters, each picture once.
///
/// # Errors
/// When the font cannot be read or has no pictures. The message names it.
pub fn draw(font: &Path, reading: &Reading) -> Result<Split> {
    let place = font.display();
    let bytes = fs::read(font).with_context(|| format!("{place}: cannot be read"))?;
    let face =
        FontRef::from_index(&bytes, 0).with_context(|| format!("{place}: no font that can be read"))?;
    let [height, width] = reading.size.unwrap_or(SIZE);
    let shape = ImageShape { height, width, channels: 4 };
    let strikes = face.bitmap_strikes();
    // A damaged font may name one picture for each of a million characters.
    let (mut glyphs, mut places) = (HashSet::new(), HashSet::new());
    let pictures: Vec<(u32, &[u8])> = face
        .charmap()
        .mappings()
        .filter(|(_, glyph)| glyphs.insert(*glyph))
        .filter_map(|(character, glyph)| match strikes.glyph_for_size(Size::unscaled(), glyph)?.data {
            BitmapData::Png(png) => places.insert(png.as_ptr_range()).then_some((character, png)),
            BitmapData::Bgra(_) | BitmapData::Mask(_) => None,
        })
        .collect();
    let drawn: Vec<Option<Vec<u8>>> = pictures
        .par_iter()
        .map(|(character, png)| {
            let decoded = decode(png).with_context(|| format!("{place}: character U+{character:04X}"))?;
            let pixels = resized(&decoded.pixels, decoded.shape, [height, width]);
            let pixels = widened(pixels, decoded.shape.channels, shape.channels);
            // Nothing to see.
            Ok(pixels.iter().any(|value| *value > 0).then_some(pixels))
        })
        .collect::<Result<_>>()?;
    let mut seen = HashSet::new();
    let images = drawn.into_iter().flatten().filter(|pixels| seen.insert(content_hash(pixels, shape)));
    let pixels: Vec<u8> = images.flatten().collect();
    ensure!(!pixels.is_empty(), "{place}: no pictures in PNG for characters: expected a font such as {FONT}");
    let sources = vec![font.to_owned()];
    Ok(Split { name: EMOJI.into(), shape, values: Values::Levels, pixels, labels: None, sources })
}
