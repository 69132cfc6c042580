//! The images of an emoji font, with opacity.
//!
//! The font is Noto Color Emoji (SIL Open Font License), or another one with bitmaps. The package `fonts-noto-color-emoji` of
//! Debian and Ubuntu brings it. Each character that has an image is one image. Equal images are used once.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use ttf_parser::{Face, RasterImageFormat};

use super::pictures::from_memory;
use super::{Split, Values};

/// The name of the data set.
pub const EMOJI: &str = "emoji";
/// Names another font.
pub const FONT: &str = "VNCA_EMOJI_FONT";
/// Height and width of the images, unless other ones are asked for.
const SIDE: usize = 64;
/// Where packages put the font.
const PLACES: [&str; 4] = [
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto-emoji/NotoColorEmoji.ttf",
];

/// Reads the font's images.
///
/// # Errors
/// When the font is missing, or is not a font with bitmaps.
pub fn read(size: Option<[usize; 2]>) -> Result<Split> {
    let path = find()?;
    let bytes = fs::read(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let mut split =
        from_font(&bytes, size.unwrap_or([SIDE; 2])).with_context(|| path.display().to_string())?;
    split.sources.push(path);
    Ok(split)
}

fn find() -> Result<PathBuf> {
    if let Some(path) = env::var_os(FONT) {
        return Ok(path.into());
    }
    let found = PLACES.iter().map(PathBuf::from).find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "{EMOJI}: no emoji font is installed: install Noto Color Emoji (`apt-get install fonts-noto-color-emoji`), or name \
             the file of such a font in {FONT}"
        )
    })
}

/// Draws the images of a font's characters, in the order of their code points.
fn from_font(bytes: &[u8], size: [usize; 2]) -> Result<Split> {
    let face = Face::parse(bytes, 0).context("not a font")?;
    let mut characters = BTreeSet::new();
    for table in face.tables().cmap.iter().flat_map(|cmap| cmap.subtables).filter(|table| table.is_unicode())
    {
        table.codepoints(|code| {
            characters.insert(code);
        });
    }
    let (mut seen, mut images) = (BTreeSet::new(), Vec::new());
    for code in characters {
        let Some(glyph) = char::from_u32(code).and_then(|character| face.glyph_index(character)) else {
            continue;
        };
        let Some(image) = face.glyph_raster_image(glyph, u16::MAX) else { continue };
        if image.format != RasterImageFormat::PNG {
            bail!("the bitmaps are no PNG images");
        }
        if seen.insert(image.data) {
            images.push((format!("U+{code:04X}"), image.data));
        }
    }
    ensure!(
        !images.is_empty(),
        "the font has no bitmaps: Noto Color Emoji has, in its file NotoColorEmoji.ttf"
    );
    let (shape, pixels) = from_memory(&images, size)?;
    Ok(Split { name: EMOJI.into(), shape, values: Values::Levels, pixels, labels: None, sources: vec![] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_font_of_bitmaps_is_refused() {
        assert!(format!("{:#}", from_font(b"no font", [8, 8]).unwrap_err()).contains("not a font"));
    }
}
