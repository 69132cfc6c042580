//! The embedded data set: drawn digits that look handwritten. It needs no files.
//!
//! Each digit consists of pen strokes, defined below by points on smooth curves. An image takes one of the digit's forms, moves
//! its points a little, slants, rotates and stretches it, fits it into a box of about 20 pixels as MNIST does, and draws it with
//! a pen of random width. Pixels at the edge of the ink are 1 with a probability equal to their coverage, so that the images
//! look like binarized MNIST.
//!
//! All numbers come from `Key`s and from additions, multiplications, divisions and square roots in f32, which IEEE 754 defines
//! to the last bit. The set is therefore the same on every platform. A test compares its checksum.

use super::{GLYPHS, IMAGE_SIDE, ImageShape, PIXELS, Part, Split, Values};
use crate::engine::random::host::{Key, unit};

/// Number of embedded training digits.
pub const TRAIN: usize = 10_000;
/// Number of embedded test digits.
pub const TEST: usize = 2_000;

/// Seed of the embedded digits. An arbitrary value that must never change.
const SEED: u64 = 0x6769_7479;

/// A point of a stroke, in a box of 1 x 1: x to the right, y downwards.
type Point = (f32, f32);
/// The points that the pen passes through. A point given twice is a corner.
type Stroke = &'static [Point];
/// One way to write a digit.
type Form = &'static [Stroke];

/// For each digit the forms in which people write it. Each entry is equally likely, so that common forms may occur twice.
#[rustfmt::skip]
const FORMS: [&[Form]; 10] = [
    &[
        &[&[(0.6, 0.03), (0.25, 0.12), (0.06, 0.5), (0.2, 0.88), (0.52, 0.98), (0.85, 0.75), (0.93, 0.4), (0.76, 0.1), (0.5, 0.02)]],
        &[&[(0.45, 0.0), (0.16, 0.2), (0.08, 0.6), (0.3, 0.95), (0.65, 0.95), (0.9, 0.6), (0.82, 0.2), (0.55, 0.03), (0.36, 0.1)]],
        &[&[(0.72, 0.12), (0.4, 0.03), (0.1, 0.3), (0.1, 0.72), (0.42, 0.99), (0.8, 0.82), (0.92, 0.45), (0.72, 0.12), (0.6, 0.2)]],
    ],
    &[
        &[&[(0.5, 0.0), (0.5, 0.5), (0.5, 1.0)]],
        &[&[(0.55, 0.0), (0.5, 0.5), (0.46, 1.0)]],
        &[&[(0.5, 0.0), (0.51, 0.5), (0.5, 1.0)]],
        &[&[(0.34, 0.2), (0.54, 0.0), (0.54, 0.0), (0.53, 0.5), (0.52, 1.0)]],
        &[&[(0.3, 0.22), (0.52, 0.0), (0.52, 0.0), (0.5, 0.98)], &[(0.25, 1.0), (0.78, 0.98)]],
    ],
    &[
        &[&[(0.12, 0.26), (0.3, 0.04), (0.66, 0.03), (0.8, 0.26), (0.58, 0.58), (0.08, 0.97), (0.08, 0.97), (0.5, 0.95), (0.92, 0.96)]],
        &[&[(0.1, 0.2), (0.38, 0.02), (0.74, 0.08), (0.76, 0.36), (0.46, 0.72), (0.2, 0.95), (0.04, 0.86), (0.2, 0.72), (0.48, 0.84), (0.72, 0.97), (0.98, 0.84)]],
        &[&[(0.16, 0.12), (0.5, 0.0), (0.8, 0.18), (0.68, 0.5), (0.3, 0.86), (0.1, 0.98), (0.1, 0.98), (0.4, 0.9), (0.7, 0.94), (0.96, 0.88)]],
        &[&[(0.06, 0.08), (0.4, 0.04), (0.78, 0.05), (0.78, 0.05), (0.44, 0.5), (0.06, 0.94), (0.06, 0.94), (0.5, 0.96), (1.0, 0.92)]],
        &[&[(0.14, 0.3), (0.34, 0.03), (0.74, 0.06), (0.82, 0.4), (0.6, 0.78), (0.28, 1.0), (0.06, 0.84), (0.24, 0.64), (0.56, 0.78), (0.94, 1.0)]],
    ],
    &[
        &[&[(0.15, 0.13), (0.45, 0.0), (0.78, 0.13), (0.72, 0.36), (0.38, 0.47), (0.38, 0.47), (0.76, 0.55), (0.86, 0.79), (0.5, 1.0), (0.1, 0.88)]],
        &[&[(0.12, 0.04), (0.46, 0.03), (0.8, 0.03), (0.8, 0.03), (0.42, 0.4), (0.42, 0.4), (0.76, 0.5), (0.84, 0.78), (0.48, 1.0), (0.1, 0.92)]],
        &[&[(0.14, 0.18), (0.4, 0.0), (0.74, 0.1), (0.72, 0.33), (0.46, 0.46), (0.36, 0.5), (0.5, 0.48), (0.8, 0.6), (0.82, 0.84), (0.48, 1.0), (0.12, 0.86)]],
        &[&[(0.12, 0.1), (0.5, 0.02), (0.82, 0.16), (0.6, 0.38), (0.36, 0.44), (0.44, 0.54), (0.48, 0.46), (0.8, 0.52), (0.9, 0.78), (0.56, 1.0), (0.04, 0.94)]],
    ],
    &[
        &[&[(0.2, 0.02), (0.14, 0.28), (0.08, 0.54), (0.08, 0.54), (0.5, 0.55), (0.92, 0.48)], &[(0.8, 0.0), (0.74, 0.5), (0.68, 1.0)]],
        &[&[(0.66, 0.0), (0.34, 0.36), (0.04, 0.66), (0.04, 0.66), (0.5, 0.66), (0.96, 0.63)], &[(0.66, 0.0), (0.65, 0.5), (0.62, 1.0)]],
        &[&[(0.14, 0.05), (0.1, 0.34), (0.26, 0.54), (0.56, 0.5), (0.8, 0.3)], &[(0.82, 0.02), (0.78, 0.5), (0.76, 1.0)]],
        &[&[(0.1, 0.06), (0.12, 0.4), (0.3, 0.56), (0.64, 0.42), (0.86, 0.04), (0.86, 0.04), (0.7, 0.5), (0.56, 1.0)]],
    ],
    &[
        &[&[(0.28, 0.05), (0.22, 0.42), (0.22, 0.42), (0.55, 0.37), (0.84, 0.6), (0.72, 0.9), (0.4, 1.0), (0.08, 0.9)], &[(0.28, 0.05), (0.56, 0.05), (0.9, 0.02)]],
        &[&[(0.88, 0.02), (0.6, 0.05), (0.3, 0.04), (0.3, 0.04), (0.2, 0.44), (0.2, 0.44), (0.5, 0.4), (0.8, 0.6), (0.66, 0.92), (0.36, 1.0), (0.06, 0.9)]],
        &[&[(0.9, 0.06), (0.6, 0.0), (0.34, 0.12), (0.28, 0.36), (0.5, 0.5), (0.74, 0.7), (0.6, 0.95), (0.3, 0.99), (0.1, 0.86)]],
    ],
    &[
        &[&[(0.68, 0.0), (0.36, 0.22), (0.12, 0.62), (0.24, 0.93), (0.58, 0.98), (0.82, 0.77), (0.64, 0.54), (0.34, 0.6), (0.16, 0.8)]],
        &[&[(0.3, 0.0), (0.12, 0.36), (0.16, 0.8), (0.46, 1.0), (0.88, 0.9), (0.92, 0.64), (0.66, 0.54), (0.42, 0.72), (0.5, 0.96)]],
        &[&[(0.4, 0.0), (0.2, 0.34), (0.12, 0.72), (0.34, 0.98), (0.7, 0.94), (0.84, 0.7), (0.6, 0.52), (0.28, 0.64), (0.2, 0.84)]],
        &[&[(0.8, 0.06), (0.5, 0.08), (0.2, 0.38), (0.12, 0.74), (0.4, 0.99), (0.76, 0.88), (0.74, 0.62), (0.44, 0.56), (0.22, 0.76)]],
    ],
    &[
        &[&[(0.08, 0.07), (0.5, 0.06), (0.88, 0.04), (0.88, 0.04), (0.62, 0.5), (0.42, 1.0)]],
        &[&[(0.1, 0.06), (0.5, 0.08), (0.86, 0.04), (0.86, 0.04), (0.66, 0.44), (0.46, 1.0)], &[(0.34, 0.52), (0.86, 0.48)]],
        &[&[(0.08, 0.24), (0.1, 0.06), (0.1, 0.06), (0.46, 0.08), (0.84, 0.02), (0.84, 0.02), (0.72, 0.4), (0.62, 1.0)]],
        &[&[(0.06, 0.16), (0.34, 0.04), (0.72, 0.04), (0.84, 0.2), (0.66, 0.58), (0.5, 1.0)]],
    ],
    &[
        &[&[(0.78, 0.14), (0.5, 0.0), (0.22, 0.15), (0.36, 0.4), (0.68, 0.6), (0.82, 0.82), (0.5, 1.0), (0.18, 0.83), (0.32, 0.6), (0.66, 0.38), (0.8, 0.16)]],
        &[
            &[(0.5, 0.46), (0.24, 0.3), (0.3, 0.06), (0.6, 0.02), (0.76, 0.22), (0.5, 0.46)],
            &[(0.5, 0.46), (0.18, 0.66), (0.26, 0.94), (0.6, 1.0), (0.84, 0.76), (0.5, 0.46)],
        ],
        &[&[(0.84, 0.08), (0.5, 0.02), (0.24, 0.18), (0.46, 0.44), (0.72, 0.68), (0.66, 0.94), (0.36, 1.0), (0.22, 0.8), (0.44, 0.52), (0.84, 0.1)]],
    ],
    &[
        &[&[(0.8, 0.18), (0.5, 0.02), (0.18, 0.2), (0.24, 0.47), (0.56, 0.46), (0.8, 0.16), (0.8, 0.16), (0.77, 0.55), (0.72, 1.0)]],
        &[&[(0.78, 0.16), (0.46, 0.02), (0.16, 0.24), (0.3, 0.48), (0.62, 0.42), (0.8, 0.16), (0.8, 0.16), (0.82, 0.6), (0.62, 0.92), (0.34, 1.0), (0.12, 0.9)]],
        &[&[(0.84, 0.06), (0.46, 0.06), (0.2, 0.28), (0.34, 0.47), (0.66, 0.38), (0.84, 0.06), (0.84, 0.06), (0.66, 0.5), (0.48, 1.0)]],
    ],
];

/// Returns the images of a part with labels, in random order, with equally many of each digit.
pub fn split(part: Part) -> Split {
    let (pixels, labels) = first(part, usize::MAX);
    Split {
        name: format!("{GLYPHS} {}", part.name()),
        shape: ImageShape::MNIST,
        values: Values::Bits,
        pixels,
        labels: Some(labels),
        sources: Vec::new(),
    }
}

/// Returns the first `n` images of a part, or all if it has fewer, and their labels.
fn first(part: Part, n: usize) -> (Vec<u8>, Vec<u8>) {
    let [train, test] = Key::new(SEED).split2();
    let (key, all) = match part {
        Part::Train => (train, TRAIN),
        Part::Test => (test, TEST),
    };
    let [order, images] = key.split2();
    let order = order.permutation(all);
    let labels: Vec<u8> = order.into_iter().take(n).map(|i| (i % 10) as u8).collect();
    let mut pixels = vec![0; labels.len() * PIXELS];
    for (i, (image, &digit)) in (0..).zip(pixels.chunks_exact_mut(PIXELS).zip(&labels)) {
        draw(images.split_at(i), digit, image);
    }
    (pixels, labels)
}

/// A straight piece of a pen stroke, from one point to the next, in pixels.
struct Piece {
    from: Point,
    to: Point,
    /// Half the width of the ink.
    radius: f32,
}

fn draw(key: Key, digit: u8, image: &mut [u8]) {
    let [shape, edge] = key.split2();
    let pieces = write(&mut Hand { key: shape, drawn: 0 }, digit);
    let mut ink = [0.0f32; PIXELS];
    for piece in &pieces {
        cover(&mut ink, piece);
    }
    let mut bits = [0; PIXELS];
    edge.bits32_from(0, &mut bits);
    for ((pixel, ink), bits) in image.iter_mut().zip(ink).zip(bits) {
        *pixel = u8::from(unit(bits) < ink);
    }
}

/// The random numbers of one image.
struct Hand {
    key: Key,
    drawn: u64,
}

impl Hand {
    fn uniform(&mut self, min: f32, max: f32) -> f32 {
        let mut bits = [0];
        self.key.bits32_from(self.drawn, &mut bits);
        self.drawn += 1;
        min + unit(bits[0]) * (max - min)
    }

    /// Draws an approximately normal number as a sum of four uniform ones. Avoids logarithms, which differ between platforms.
    fn normal(&mut self, mean: f32, deviation: f32) -> f32 {
        let sum = self.uniform(-1.0, 1.0)
            + self.uniform(-1.0, 1.0)
            + self.uniform(-1.0, 1.0)
            + self.uniform(-1.0, 1.0);
        mean + deviation * sum * 0.866_025_4
    }
}

/// Returns the pieces of a digit's strokes, placed in the image.
fn write(hand: &mut Hand, digit: u8) -> Vec<Piece> {
    let forms = FORMS[usize::from(digit)];
    let form = forms[(hand.uniform(0.0, forms.len() as f32) as usize).min(forms.len() - 1)];
    // The width of the pen varies between writers, with a longer tail towards broad pens.
    let radius = 1.0 + hand.normal(0.0, 0.13) + hand.uniform(0.0, 1.0) * hand.uniform(0.0, 1.0);
    let strokes: Vec<Vec<Point>> = {
        let place = Placing::new(hand);
        form.iter().map(|stroke| curve(stroke, hand, &place)).collect()
    };
    let (scale, shift) = fit(&strokes, radius, hand);
    let mut pieces = Vec::new();
    for stroke in &strokes {
        // Pressure makes the end of a stroke thinner or thicker than its start.
        let (start, end) = (radius * hand.normal(1.0, 0.07), radius * hand.normal(0.96, 0.09));
        let last = (stroke.len() - 1) as f32;
        for (i, pair) in stroke.windows(2).enumerate() {
            let [from, to] = [pair[0], pair[1]].map(|(x, y)| (x * scale + shift.0, y * scale + shift.1));
            pieces.push(Piece { from, to, radius: start + (end - start) * (i as f32 / last) });
        }
    }
    pieces
}

/// The linear map that slants, rotates and stretches an image's digit.
struct Placing {
    x: Point,
    y: Point,
}

impl Placing {
    fn new(hand: &mut Hand) -> Placing {
        let slant = hand.normal(0.16, 0.2);
        let (width, height) = (hand.normal(0.86, 0.13), 1.0);
        // The tangent of half the angle gives sine and cosine with divisions only.
        let half = hand.normal(0.0, 0.06);
        let (cos, sin) = ((1.0 - half * half) / (1.0 + half * half), 2.0 * half / (1.0 + half * half));
        let slanted = -slant * height;
        Placing {
            x: (cos * width, cos * slanted - sin * height),
            y: (sin * width, sin * slanted + cos * height),
        }
    }

    fn apply(&self, (x, y): Point) -> Point {
        (self.x.0 * x + self.x.1 * y, self.y.0 * x + self.y.1 * y)
    }
}

/// Returns the curve through a stroke's points as a polyline, after moving each point a little.
fn curve(stroke: Stroke, hand: &mut Hand, place: &Placing) -> Vec<Point> {
    const STEPS: u8 = 6;
    const TREMOR: f32 = 0.035;
    let mut points: Vec<Point> = Vec::with_capacity(stroke.len());
    for (i, &(x, y)) in stroke.iter().enumerate() {
        if i > 0 && stroke[i] == stroke[i - 1] {
            points.push(points[i - 1]);
        } else {
            points.push(place.apply((x + hand.normal(0.0, TREMOR), y + hand.normal(0.0, TREMOR))));
        }
    }
    let mut line = vec![points[0]];
    for i in 0..points.len() - 1 {
        let (b, c) = (points[i], points[i + 1]);
        if b == c {
            continue;
        }
        // Beyond an end or a corner the curve continues straight.
        let a = if i > 0 && points[i - 1] != b { points[i - 1] } else { reflected(c, b) };
        let d = if i + 2 < points.len() && points[i + 2] != c { points[i + 2] } else { reflected(b, c) };
        for step in 1..=STEPS {
            let t = f32::from(step) / f32::from(STEPS);
            line.push((catmull_rom([a.0, b.0, c.0, d.0], t), catmull_rom([a.1, b.1, c.1, d.1], t)));
        }
    }
    line
}

/// Returns the reflection of `point` at `centre`.
fn reflected(point: Point, centre: Point) -> Point {
    (2.0 * centre.0 - point.0, 2.0 * centre.1 - point.1)
}

/// Evaluates the cubic through `b` at t = 0 and `c` at t = 1, with the directions from `a` to `c` and from `b` to `d`.
fn catmull_rom([a, b, c, d]: [f32; 4], t: f32) -> f32 {
    let first = c - a;
    let second = 2.0 * a - 5.0 * b + 4.0 * c - d;
    let third = 3.0 * (b - c) + d - a;
    b + 0.5 * t * (first + t * (second + t * third))
}

/// Returns the scale and shift that fit the ink into MNIST's box of 20 pixels, with the centre of mass near the image's centre.
fn fit(strokes: &[Vec<Point>], radius: f32, hand: &mut Hand) -> (f32, Point) {
    let points = || strokes.iter().flatten();
    let min = points().fold((f32::MAX, f32::MAX), |m, p| (m.0.min(p.0), m.1.min(p.1)));
    let max = points().fold((f32::MIN, f32::MIN), |m, p| (m.0.max(p.0), m.1.max(p.1)));
    let size = (max.0 - min.0).max(max.1 - min.1);
    let scale = (hand.uniform(18.8, 20.2) - 2.0 * radius) / size;
    // Centre of mass of the line, with the length of each piece as its weight.
    let (mut x, mut y, mut total) = (0.0, 0.0, 0.0);
    for pair in strokes.iter().flat_map(|stroke| stroke.windows(2)) {
        let (dx, dy) = (pair[1].0 - pair[0].0, pair[1].1 - pair[0].1);
        let length = (dx * dx + dy * dy).sqrt();
        x += length * 0.5 * (pair[0].0 + pair[1].0);
        y += length * 0.5 * (pair[0].1 + pair[1].1);
        total += length;
    }
    let centre = IMAGE_SIDE as f32 / 2.0;
    // Keep the ink inside the image, whatever its centre of mass. The outermost pixels stay free even of the broadest ink.
    let place = |mass: f32, min: f32, max: f32, jitter: f32| {
        let shift = centre + jitter - scale * mass / total;
        let margin = 1.3 * radius + 1.6;
        shift.max(margin - scale * min).min(IMAGE_SIDE as f32 - margin - scale * max)
    };
    let (jx, jy) = (hand.normal(0.0, 0.4), hand.normal(0.0, 0.4));
    (scale, (place(x, min.0, max.0, jx), place(y, min.1, max.1, jy)))
}

/// Adds a piece's ink: each pixel gets the larger of its present ink and its coverage by this piece, from 0 to 1.
fn cover(ink: &mut [f32; PIXELS], piece: &Piece) {
    /// Width of the ink's soft edge in pixels. MNIST's digits have one because they were drawn larger and scaled down.
    const FADE: f32 = 1.15;
    let (from, to) = (piece.from, piece.to);
    let reach = piece.radius + FADE / 2.0;
    let range = |a: f32, b: f32| {
        let low = (a.min(b) - reach - 0.5).max(0.0) as usize;
        let high = (a.max(b) + reach + 0.5).max(0.0) as usize;
        low..high.min(IMAGE_SIDE)
    };
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let squared = (dx * dx + dy * dy).max(1e-12);
    for row in range(from.1, to.1) {
        for column in range(from.0, to.0) {
            let (px, py) = (column as f32 + 0.5 - from.0, row as f32 + 0.5 - from.1);
            let along = ((px * dx + py * dy) / squared).clamp(0.0, 1.0);
            let (ox, oy) = (px - along * dx, py - along * dy);
            let distance = (ox * ox + oy * oy).sqrt();
            let covered = (0.5 + (piece.radius - distance) / FADE).clamp(0.0, 1.0);
            let place = &mut ink[row * IMAGE_SIDE + column];
            *place = place.max(covered);
        }
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn sha256(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Runs and figures refer to this set by name. A change of these checksums would make it another data set.
    #[test]
    fn the_set_is_the_same_on_every_platform() {
        // A part suffices: without optimisation an image takes almost a millisecond.
        let (pixels, labels) = first(Part::Train, 500);
        assert_eq!(sha256(&pixels), "cf0af776e09abfb4ef022029637cfac568928e9d8488325d6a0211f2c28ad2c9");
        assert_eq!(sha256(&labels), "f9ff83d3e941e76a096547291d5e4c8ff3f8c5a0309165ed045602c821601971");
        let (pixels, labels) = first(Part::Test, 500);
        assert_eq!(sha256(&pixels), "d4b9e952784d28347e3f2f4b500d144b007f9fa52678ff27dce1deb4666b011c");
        assert_eq!(sha256(&labels), "6fbf33e9b37b6a70c3c0ab450accd336874380358ed4e4b512e8b2ed2fb38afb");
    }

    #[test]
    fn the_set_looks_like_mnist_in_numbers() {
        let test = split(Part::Test);
        let labels = test.labels.as_ref().unwrap();
        assert!((0.12..0.14).contains(&test.mean()), "{}", test.mean());
        for digit in 0..10 {
            assert_eq!(labels.iter().filter(|&&label| label == digit).count(), TEST / 10);
        }
        assert!(labels[..20] != labels[20..40], "the labels are in random order");
        assert!(test.pixels.iter().all(|&p| p <= 1));
        let mut distinct = std::collections::HashSet::new();
        for i in 0..test.len() {
            let ink: usize = test.image(i).iter().map(|&p| usize::from(p)).sum();
            assert!(distinct.insert(test.image(i)), "image {i} occurs twice");
            assert!((20..250).contains(&ink), "image {i} has {ink} pixels of ink");
            let image = test.image(i);
            let border =
                (0..IMAGE_SIDE).any(|k| image[k] + image[PIXELS - 1 - k] + image[k * IMAGE_SIDE] > 0);
            assert!(!border, "image {i} has ink on its border");
        }
    }

    #[test]
    fn curves_pass_through_their_points() {
        let points = [0.3, 0.5, 0.2, 0.9];
        assert!((catmull_rom(points, 0.0) - 0.5).abs() < 1e-6);
        assert!((catmull_rom(points, 1.0) - 0.2).abs() < 1e-6);
        let straight = catmull_rom([0.0, 1.0, 2.0, 3.0], 0.25);
        assert!((straight - 1.25).abs() < 1e-6);
    }
}
