//! Animations, as GIF files that loop forever.

use anyhow::{Result, ensure};

use super::picture::{Colour, Picture};

/// How coarsely colours are chosen, from 1 to 30. At 10, the time is small beside that of growing.
const QUANTIZATION_SPEED: i32 = 10;

/// Encodes pictures as a GIF file. Each picture comes with its duration in hundredths of a second. Grey levels are kept. Each
/// picture in colour gets its own 256 colours.
///
/// # Errors
/// When there are no pictures, when they are not of one size and kind, or when they are too large for a GIF.
pub fn animation(frames: &[(Picture, u16)]) -> Result<Vec<u8>> {
    let Some((first, _)) = frames.first() else { anyhow::bail!("the animation has no pictures") };
    let (width, height) = (u16::try_from(first.width)?, u16::try_from(first.height)?);
    let palette: Vec<u8> = match first.colour {
        Colour::Grey => (0..=255).flat_map(|grey| [grey; 3]).collect(),
        Colour::Rgb => vec![],
    };
    let mut bytes = Vec::new();
    let mut encoder = gif::Encoder::new(&mut bytes, width, height, &palette)?;
    encoder.set_repeat(gif::Repeat::Infinite)?;
    for (picture, delay) in frames {
        let same =
            (picture.width, picture.height, picture.colour) == (first.width, first.height, first.colour);
        ensure!(
            same && picture.pixels.len() == first.pixels.len(),
            "the animation's pictures differ in size or kind"
        );
        let mut frame = match picture.colour {
            Colour::Grey => gif::Frame::from_indexed_pixels(width, height, picture.pixels.clone(), None),
            Colour::Rgb => gif::Frame::from_rgb_speed(width, height, &picture.pixels, QUANTIZATION_SPEED),
        };
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
    fn frames_are_encoded_with_their_delays() {
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
    fn pictures_of_different_sizes_are_refused() {
        assert!(animation(&[]).is_err());
        assert!(animation(&[(grey(3, 0), 1), (grey(4, 0), 1)]).is_err());
    }
}
