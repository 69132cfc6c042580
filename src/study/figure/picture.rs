//! A picture in memory, and its PNG encoding.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::files;

/// The colour format of a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// One byte, from black to white.
    Grey,
    /// Three bytes: red, green, blue.
    Rgb,
}

impl Colour {
    /// Returns the bytes per pixel.
    pub fn channels(self) -> usize {
        match self {
            Colour::Grey => 1,
            Colour::Rgb => 3,
        }
    }
}

/// A picture of grey or RGB pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// The colour format.
    pub colour: Colour,
    /// The bytes of the pixels, row by row from the top.
    pub pixels: Vec<u8>,
}

impl Picture {
    /// Encodes the picture as PNG.
    ///
    /// # Errors
    /// When there are no pixels, or their number does not match the size.
    pub fn png(&self) -> Result<Vec<u8>> {
        let Picture { width, height, colour, pixels } = self;
        ensure!(
            pixels.len() == width * height * colour.channels(),
            "a picture of {width} x {height} pixels cannot have {} bytes",
            pixels.len()
        );
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, u32::try_from(*width)?, u32::try_from(*height)?);
        encoder.set_color(match colour {
            Colour::Grey => png::ColorType::Grayscale,
            Colour::Rgb => png::ColorType::Rgb,
        });
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(pixels)?;
        writer.finish()?;
        Ok(bytes)
    }

    /// Writes a PNG file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        files::write_bytes(path, self.png()?)
    }

    /// Returns the picture at half its size. Each pixel is the mean of four. Drawing at double size and halving smooths edges.
    ///
    /// # Panics
    /// When the width or the height is odd, which is a bug.
    pub fn halved(&self) -> Picture {
        assert!(
            self.width.is_multiple_of(2) && self.height.is_multiple_of(2),
            "an odd size cannot be halved"
        );
        let (width, height, n) = (self.width / 2, self.height / 2, self.colour.channels());
        let row = self.width * n;
        let mut pixels = Vec::with_capacity(width * height * n);
        for y in 0..height {
            for x in 0..width {
                for c in 0..n {
                    let at = 2 * y * row + 2 * x * n + c;
                    let sum: u32 =
                        [at, at + n, at + row, at + row + n].iter().map(|&i| u32::from(self.pixels[i])).sum();
                    pixels.push(((sum + 2) / 4) as u8);
                }
            }
        }
        Picture { width, height, colour: self.colour, pixels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_png_contains_the_pixels() {
        let picture = Picture { width: 2, height: 1, colour: Colour::Rgb, pixels: vec![1, 2, 3, 4, 5, 6] };
        let bytes = picture.png().unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; 6];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height, pixels), (2, 1, picture.pixels.clone()));
        assert!(Picture { width: 3, ..picture }.png().is_err());
    }

    #[test]
    fn halving_takes_means() {
        let pixels = vec![0, 4, 8, 8, 2, 2, 8, 8];
        let picture = Picture { width: 4, height: 2, colour: Colour::Grey, pixels };
        assert_eq!(picture.halved().pixels, [2, 8]);
    }
}
