//! Which grey image a binarized one was drawn from: the one that gives it the highest likelihood. The report, section
//! 5.2: static binarized MNIST comes without labels, and its originals' labels become its own.
//!
//! log p(x | original) = Σ over pixels of x · log p + (1 − x) · log(1 − p), p = grey / 255: a matrix product of
//! (x, 1 − x) with (log p, log(1 − p)). A pixel that the original rules out has log 0 = −∞; in the product stands a
//! number in its place that is beyond all that possible pixels sum up to, so that no 0 · −∞ makes a NaN, and the
//! originals are compared first by the number of pixels that they rule out and then by the likelihood of the others.

use anyhow::{Result, ensure};

use crate::data::{Grey, PIXELS, Split};
use crate::engine::array::Array;
use crate::engine::compile::compile;
use crate::engine::ir::ops::linalg::Dot;
use crate::engine::ir::{Function, Graph, Sym};
use crate::engine::runtime::{Arg, Buffers, Executable, Mesh};
use crate::engine::shape::{DType, Shape};

/// Images and originals that are compared in one call: scores of 16 MB.
const BLOCK: usize = 2048;
/// Stands for log 0. All 784 pixels at p = 1/255 make 784 · log 255 = 4,345 nats, which is less.
const RULED_OUT: f64 = -131_072.0;

/// The likeliest original of each image.
#[derive(Clone, Debug, PartialEq)]
pub struct Matches {
    /// Which original; the first of equals.
    pub indices: Vec<i32>,
    /// How much likelier it is than the next best, in nats: infinite where no other is possible, 0 where none is.
    pub margins: Vec<f32>,
    /// Number of images that every original rules out.
    pub impossible: usize,
}

/// Finds the likeliest original of each image. `done` hears the number of images that have been compared.
///
/// # Errors
/// When there are no originals, or the device fails.
pub fn likeliest(
    mesh: &Mesh,
    images: &Split,
    originals: &Grey,
    mut done: impl FnMut(usize),
) -> Result<Matches> {
    ensure!(!originals.is_empty(), "{}: there are no original images", originals.name);
    let searcher = Searcher::new(mesh, images.len().min(BLOCK), originals)?;
    let mut matches = Matches { indices: vec![], margins: vec![], impossible: 0 };
    for block in images.pixels.chunks(BLOCK * PIXELS) {
        for (image, best) in block.chunks_exact(PIXELS).zip(searcher.best_two(block)?) {
            // The device ranks in single precision: what two originals differ by is found out exactly.
            let mut ranked: Vec<(Likelihood, usize)> =
                best.into_iter().map(|i| (Likelihood::of(image, originals.image(i)), i)).collect();
            ranked.sort_by(|(a, i), (b, j)| b.order(a).then(i.cmp(j)));
            let (first, index) = ranked[0];
            matches.indices.push(index as i32);
            matches.margins.push(first.margin(ranked.get(1).map(|(second, _)| *second)));
            matches.impossible += usize::from(first.ruled_out > 0);
        }
        done(matches.indices.len());
    }
    Ok(matches)
}

/// log p(x | original): over the pixels that are possible, and the number of those that are not.
#[derive(Clone, Copy, Debug)]
struct Likelihood {
    ruled_out: usize,
    nats: f64,
}

impl Likelihood {
    fn of(image: &[u8], original: &[u8]) -> Likelihood {
        let mut sum = Likelihood { ruled_out: 0, nats: 0.0 };
        for (x, grey) in image.iter().zip(original) {
            match if *x == 1 { *grey } else { 255 - grey } {
                0 => sum.ruled_out += 1,
                255 => {}
                p => sum.nats += (f64::from(p) / 255.0).ln(),
            }
        }
        sum
    }

    fn order(&self, other: &Likelihood) -> std::cmp::Ordering {
        other.ruled_out.cmp(&self.ruled_out).then(self.nats.total_cmp(&other.nats))
    }

    fn margin(&self, second: Option<Likelihood>) -> f32 {
        match second {
            _ if self.ruled_out > 0 => 0.0,
            Some(second) if second.ruled_out == 0 => (self.nats - second.nats) as f32,
            _ => f32::INFINITY,
        }
    }
}

/// The originals on the device.
struct Searcher<'a> {
    mesh: &'a Mesh,
    program: Executable,
    /// Logarithms of a block of originals, and the number of its first and of all.
    tables: Vec<(Buffers, usize)>,
    images: usize,
    count: usize,
}

impl Searcher<'_> {
    fn new<'a>(mesh: &'a Mesh, images: usize, originals: &Grey) -> Result<Searcher<'a>> {
        let count = originals.len();
        let rows = count.min(BLOCK);
        let logarithms = compile(mesh, &logarithms(rows)?)?;
        let mut tables = Vec::new();
        for (i, block) in originals.pixels.chunks(BLOCK * PIXELS).enumerate() {
            let block = mesh.replicate(&filled(block, rows))?;
            tables.push((logarithms.call(vec![block.into()])?.swap_remove(0), i * BLOCK));
        }
        let program = compile(mesh, &search(images, rows)?)?;
        Ok(Searcher { mesh, program, tables, images, count })
    }

    /// The best two originals of each image, in single precision; one where there are no two.
    fn best_two(&self, block: &[u8]) -> Result<Vec<Vec<usize>>> {
        let images = self.mesh.replicate(&filled(block, self.images))?;
        let mut best: Vec<Vec<(f32, usize)>> = vec![Vec::new(); block.len() / PIXELS];
        for (table, first) in &self.tables {
            let here = self.mesh.replicate(&Array::scalar((self.count - first).min(BLOCK) as i32))?;
            let found = self.program.call(vec![Arg::Lent(&images), Arg::Lent(table), here.into()])?;
            for pair in found.chunks_exact(2) {
                let (scores, places) = (pair[0].get(0)?.to_vec::<f32>(), pair[1].get(0)?.to_vec::<i32>());
                for (best, (score, place)) in best.iter_mut().zip(scores.into_iter().zip(places)) {
                    if score > f32::MIN {
                        best.push((score, first + place as usize));
                    }
                }
            }
            for best in &mut best {
                best.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                best.truncate(2);
            }
        }
        Ok(best.into_iter().map(|two| two.into_iter().map(|(_, i)| i).collect()).collect())
    }
}

/// Images as (rows, 784): the last one again where there are too few.
fn filled(pixels: &[u8], rows: usize) -> Array {
    let last = &pixels[pixels.len() - PIXELS..];
    let mut all = pixels.to_vec();
    while all.len() < rows * PIXELS {
        all.extend_from_slice(last);
    }
    Array::new(&[rows, PIXELS], &all)
}

/// log p; for p = 0 the number that stands for it.
fn logarithm(p: Sym<'_>) -> Sym<'_> {
    let possible = p.gt(p.like(0.0));
    possible.select(possible.select(p, p.like(1.0)).log(), p.like(RULED_OUT))
}

/// Grey originals (rows, 784) to (log p, log(1 − p)): (rows, 1568).
fn logarithms(rows: usize) -> Result<Function> {
    let g = Graph::new("logarithms");
    let grey = g.input("originals", &Shape::new(DType::U8, &[rows, PIXELS])).convert(DType::F32);
    let (on, off) = (grey / 255.0, (grey.like(255.0) - grey) / 255.0);
    let table = Sym::concat(&[logarithm(on), logarithm(off)], 1);
    g.finish(&[("table".into(), table)], &[])
}

/// The highest score of each image and its place, the first of equals. `places` counts the scores.
fn best<'g>(scores: Sym<'g>, places: Sym<'g>) -> (Sym<'g>, Sym<'g>) {
    let [rows, columns] = scores.dims()[..] else { return (scores, places) };
    let highest = scores.reduce_max(&[1]);
    let at = scores.eq(highest.reshape(&[rows, 1]));
    // The first is the largest of the places counted backwards.
    let backwards = at.mask(-places + columns as f64).reduce_max(&[1]);
    (highest, -backwards + columns as f64)
}

/// Images (u8, 784 each), a table of logarithms and how many of its rows count, to the best two rows for each image:
/// score, row, score, row. Where there are no two, the second score is the lowest number.
fn search(images: usize, originals: usize) -> Result<Function> {
    let g = Graph::new("originals");
    let x = g.input("images", &Shape::new(DType::U8, &[images, PIXELS])).convert(DType::F32);
    let table = g.input("table", &Shape::f32(&[originals, 2 * PIXELS]));
    let count = g.input("count", &Shape::s32(&[]));
    let pixels = Sym::concat(&[x, -x + 1.0], 1);
    let dot = Dot { lhs_contract: vec![1], rhs_contract: vec![1], ..Dot::default() };
    let row = g.iota(&Shape::s32(&[images, originals]), 1);
    let lowest = g.scalar(DType::F32, f64::from(f32::MIN));
    let scores = row.lt(count).select(pixels.dot_general(table, dot), lowest);
    let (first, place) = best(scores, row);
    let (second, second_place) = best(row.eq(place.reshape(&[images, 1])).select(lowest, scores), row);
    let outputs = [("best", first), ("place", place), ("second", second), ("second_place", second_place)];
    g.finish(&outputs.map(|(name, sym)| (name.to_string(), sym)), &[])
}
