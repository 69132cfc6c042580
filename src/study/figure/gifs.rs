//! Animations of grey pictures, as GIF files that repeat for ever.

use anyhow::{Result, ensure};

use super::picture::{Colour, Picture};

/// A GIF file's bytes from grey pictures of one size, each shown for its number of hundredths of a second.
///
/// # Errors
/// When there are no pictures, or they are not grey or of one size that a GIF can have.
pub fn animation(frames: &[(Picture, u16)]) -> Result<Vec<u8>> {
    let Some((first, _)) = frames.first() else { anyhow::bail!("an animation without pictures") };
    let (width, height) = (u16::try_from(first.width)?, u16::try_from(first.height)?);
    let palette: Vec<u8> = (0..=255).flat_map(|grey| [grey; 3]).collect();
    let mut bytes = Vec::new();
    let mut encoder = gif::Encoder::new(&mut bytes, width, height, &palette)?;
    encoder.set_repeat(gif::Repeat::Infinite)?;
    for (picture, delay) in frames {
        let same =
            (picture.width, picture.height, picture.colour) == (first.width, first.height, Colour::Grey);
        ensure!(same && picture.pixels.len() == first.pixels.len(), "an animation of unlike pictures");
        let pixels = picture.pixels.clone();
        let mut frame = gif::Frame::from_indexed_pixels(width, height, pixels, None);
        frame.delay = *delay;
        encoder.write_frame(&frame)?;
    }
    drop(encoder);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(width: usize, value: u8) -> Picture {
        Picture { width, height: 2, colour: Colour::Grey, pixels: vec![value; 2 * width] }
    }

    #[test]
    fn frames_come_back_with_their_delays() {
        let bytes = animation(&[(grey(3, 7), 10), (grey(3, 200), 50)]).unwrap();
        let mut decoder = gif::DecodeOptions::new().read_info(bytes.as_slice()).unwrap();
        assert_eq!((decoder.width(), decoder.height(), decoder.repeat()), (3, 2, gif::Repeat::Infinite));
        for (value, delay) in [(7, 10), (200, 50)] {
            let frame = decoder.read_next_frame().unwrap().unwrap();
            assert_eq!((frame.delay, frame.buffer.to_vec()), (delay, vec![value; 6]));
        }
        assert!(decoder.read_next_frame().unwrap().is_none());
    }

    #[test]
    fn unlike_pictures_are_refused() {
        assert!(animation(&[]).is_err());
        assert!(animation(&[(grey(3, 0), 1), (grey(4, 0), 1)]).is_err());
    }
}
