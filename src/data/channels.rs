//! Conversions between grey, RGB and RGBA images.

use super::{ImageShape, Split, Values};

/// Weights of red, green and blue in the brightness of a pixel, in 256ths. Source: ITU-R BT.601.
const LUMA: [u32; 3] = [77, 150, 29];

impl Split {
    /// Returns the images with this number of channels: 1 (grey), 3 (RGB) or 4 (RGBA, colours multiplied by the opacity).
    ///
    /// Images with an opacity lose it before a white background. Images without one become opaque. Grey images get equal
    /// colours. Bits become the levels 0 and 255 if channels are added.
    pub fn with_channels(mut self, channels: usize) -> Split {
        let before = self.shape.channels;
        if before == channels {
            return self;
        }
        if self.values == Values::Bits {
            self.pixels.iter_mut().for_each(|pixel| *pixel *= 255);
            self.values = Values::Levels;
        }
        let rgba = |pixel: &[u8]| match *pixel {
            [grey] => [grey, grey, grey, 255],
            [red, green, blue] => [red, green, blue, 255],
            [red, green, blue, opacity, ..] => [red, green, blue, opacity],
            _ => [0; 4],
        };
        let mut pixels = Vec::with_capacity(self.pixels.len() / before.max(1) * channels);
        for pixel in self.pixels.chunks_exact(before.max(1)) {
            let [red, green, blue, opacity] = rgba(pixel);
            if channels == 4 {
                pixels.extend([red, green, blue, opacity]);
                continue;
            }
            // Premultiplied colours are at most the opacity, so that the sum is at most 255.
            let on_white = [red, green, blue].map(|colour| colour.saturating_add(255 - opacity));
            if channels == 3 {
                pixels.extend(on_white);
                continue;
            }
            let luma: u32 =
                on_white.iter().zip(LUMA).map(|(colour, weight)| u32::from(*colour) * weight).sum();
            pixels.push((luma / 256) as u8);
        }
        Split { shape: ImageShape { channels, ..self.shape }, pixels, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(channels: usize, pixels: &[u8]) -> Split {
        let shape = ImageShape { height: 1, width: pixels.len() / channels, channels };
        let pixels = pixels.to_vec();
        Split { name: String::new(), shape, values: Values::Levels, pixels, labels: None, sources: vec![] }
    }

    #[test]
    fn channels_are_added_and_removed() {
        let grey = split(1, &[0, 255, 128]);
        assert_eq!(grey.clone().with_channels(3).pixels, [0, 0, 0, 255, 255, 255, 128, 128, 128]);
        assert_eq!(grey.clone().with_channels(4).pixels[8..], [128, 128, 128, 255]);
        assert_eq!(grey.clone().with_channels(4).with_channels(1).pixels, grey.pixels);
        // Half transparent red before white is pink. Full transparency is white.
        let rgba = split(4, &[128, 0, 0, 128, 0, 0, 0, 0]);
        assert_eq!(rgba.clone().with_channels(3).pixels, [255, 127, 127, 255, 255, 255]);
        let bits = Split { values: Values::Bits, ..split(1, &[0, 1]) };
        assert_eq!(bits.with_channels(3).pixels, [0, 0, 0, 255, 255, 255]);
    }
}
