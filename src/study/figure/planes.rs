//! Draws square maps of values as a stack of planes, seen from above at an angle.

use anyhow::{Result, ensure};
use plotters::prelude::ViridisRGB;
use plotters::style::colors::colormaps::ColorMap;

use super::picture::{Colour, Picture};

// Sizes in pixels of the drawing, before it is halved.
/// Width of a cell.
const CELL_WIDTH: usize = 14;
/// Height of a cell, foreshortened.
const CELL_HEIGHT: usize = 6;
/// Shift to the right for each pixel of height, from a plane's lower edge to its upper one.
const SLANT: f64 = 0.8;
/// Vertical distance of one plane to the next.
const STEP: usize = 96;
const MARGIN: usize = 24;
/// Width of a plane's border.
const BORDER: usize = 3;

/// Draws stacks side by side, each of `planes` maps of `rows * columns` values, the first on top. A plane's colours range from its own
/// lowest value to its highest.
///
/// # Errors
/// When the values are not a whole number of stacks.
pub fn stacks(values: &[f32], [rows, columns]: [usize; 2], planes: usize) -> Result<Picture> {
    let size = rows * columns;
    ensure!(
        size * planes > 0 && !values.is_empty() && values.len().is_multiple_of(size * planes),
        "{} values are not a whole number of stacks of {planes} planes of {rows} x {columns}",
        values.len()
    );
    let (across, down) = (columns * CELL_WIDTH, rows * CELL_HEIGHT);
    // The picture is halved below, so its size must be even.
    let stack_width = (across + (SLANT * down as f64) as usize + MARGIN).next_multiple_of(2);
    let width = MARGIN + values.len() / (size * planes) * stack_width;
    let height = 2 * MARGIN + down + (planes - 1) * STEP;
    let mut picture = Picture { width, height, colour: Colour::Rgb, pixels: vec![255; width * height * 3] };
    for (s, stack) in values.chunks_exact(size * planes).enumerate() {
        for (p, plane) in stack.chunks_exact(size).enumerate().rev() {
            draw(&mut picture, plane, [rows, columns], MARGIN + s * stack_width, MARGIN + p * STEP);
        }
    }
    Ok(picture.halved())
}

fn draw(picture: &mut Picture, plane: &[f32], [rows, columns]: [usize; 2], left: usize, top: usize) {
    let (across, down) = (columns * CELL_WIDTH, rows * CELL_HEIGHT);
    let finite = || plane.iter().copied().filter(|v| v.is_finite());
    let (low, high) = finite().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    for y in 0..down {
        let shift = (SLANT * (down - 1 - y) as f64) as usize;
        for x in 0..across {
            let border = y < BORDER || y >= down - BORDER || x < BORDER || x >= across - BORDER;
            let value = plane[y / CELL_HEIGHT * columns + x / CELL_WIDTH];
            let colour = match (border, value.is_finite()) {
                (true, _) => [60; 3],
                (false, false) => [160; 3],
                (false, true) => {
                    // A plane of equal values needs a range too.
                    let range = if high > low { (low, high) } else { (low - 1.0, low + 1.0) };
                    let c = ViridisRGB.get_color_normalized(value, range.0, range.1);
                    [c.0, c.1, c.2]
                }
            };
            let at = ((top + y) * picture.width + left + shift + x) * 3;
            picture.pixels[at..at + 3].copy_from_slice(&colour);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_plane_lies_on_top() {
        let plane = |low: f32| (0..16).map(|i| if i < 8 { low } else { 1.0 - low }).collect::<Vec<f32>>();
        let values = [plane(0.0), plane(1.0)].concat();
        let one = stacks(&values, [4, 4], 2).unwrap();
        let two = stacks(&[values.clone(), values.clone()].concat(), [4, 4], 2).unwrap();
        assert_eq!(one.height, two.height);
        assert!(two.width > one.width);
        assert!(stacks(&values[1..], [4, 4], 2).is_err() && stacks(&[], [4, 4], 2).is_err());
        // The last row of a plane is near its lower edge: yellow for high values, violet for low ones.
        let at = |top: usize| {
            let (y, x) = ((top + 4 * CELL_HEIGHT - 8) / 2, (MARGIN + 4 * CELL_WIDTH / 2) / 2);
            one.pixels[(y * one.width + x) * 3]
        };
        assert!(at(MARGIN) > 200 && at(MARGIN + STEP) < 100, "{} {}", at(MARGIN), at(MARGIN + STEP));
    }
}
