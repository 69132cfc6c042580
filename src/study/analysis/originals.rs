//! Finds the grey image that a binarized image was most likely drawn from.
//!
//! Static binarized MNIST has no labels. As in section 5.2 of the report, each image gets the label of its likeliest original.
//!
//! log p(x | original) = Σ over pixels of x · log p + (1 − x) · log(1 − p) with p = grey / 255. This is a matmul of (x, 1 − x) with
//! (log p, log(1 − p)). Where an original rules a pixel out, the logarithm is −∞ and 0 · −∞ would be NaN. A finite number takes its
//! place, of larger magnitude than the sum over all possible pixels. Originals are thus ranked first by the number of pixels that
//! they rule out, then by the likelihood of the other pixels.

use anyhow::{Result, ensure};

use crate::data::{PIXELS, Split};
use crate::engine::array::Array;
use crate::engine::compile::compile;
use crate::engine::ir::ops::linalg::Dot;
use crate::engine::ir::{Function, Graph, Sym};
use crate::engine::runtime::{Arg, Buffers, Executable, Mesh};
use crate::engine::shape::{DType, Shape};

/// Number of images and of originals per call. The call's scores take 16 MB.
const BLOCK: usize = 2048;
/// Stands for log 0. Its magnitude is larger than 784 · log 255 = 4,345 nats, the cost of 784 pixels at p = 1/255.
const RULED_OUT: f64 = -131_072.0;

/// The likeliest original of each image.
#[derive(Clone, Debug, PartialEq)]
pub struct Matches {
    /// Index of the original. Of equals, the first.
    pub indices: Vec<i32>,
    /// Log-likelihood minus that of the second best original, in nats. Infinite if no other original is possible, 0 if none is.
    pub margins: Vec<f32>,
    /// Number of images that every original rules out.
    pub impossible: usize,
}

/// Finds the likeliest original of each image. `done` is called with the number of finished images.
///
/// # Errors
/// When there are no originals, or the device fails.
pub fn likeliest(
    mesh: &Mesh,
    images: &Split,
    originals: &Split,
    mut done: impl FnMut(usize),
) -> Result<Matches> {
    ensure!(!originals.is_empty(), "{}: there are no original images", originals.name);
    let searcher = Searcher::new(mesh, images.len().min(BLOCK), originals)?;
    let mut matches = Matches { indices: vec![], margins: vec![], impossible: 0 };
    for block in images.pixels.chunks(BLOCK * PIXELS) {
        for (image, best) in block.chunks_exact(PIXELS).zip(searcher.best_two(block)?) {
            // The device ranks in single precision. The host computes the margin of the best two in double precision.
            let mut ranked: Vec<(Likelihood, usize)> =
                best.into_iter().map(|i| (Likelihood::new(image, originals.image(i)), i)).collect();
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

/// log p(x | original).
#[derive(Clone, Copy, Debug)]
struct Likelihood {
    /// Number of pixels that the original rules out.
    ruled_out: usize,
    /// The log-likelihood of the other pixels.
    nats: f64,
}

impl Likelihood {
    fn new(image: &[u8], original: &[u8]) -> Likelihood {
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

/// The originals on a device, with the compiled search program.
struct Searcher<'a> {
    mesh: &'a Mesh,
    program: Executable,
    /// For each block of originals: its table of logarithms, and the index of its first original.
    tables: Vec<(Buffers, usize)>,
    /// Images per call.
    images: usize,
    /// Number of originals.
    count: usize,
}

impl Searcher<'_> {
    fn new<'a>(mesh: &'a Mesh, images: usize, originals: &Split) -> Result<Searcher<'a>> {
        let count = originals.len();
        let rows = count.min(BLOCK);
        let logarithms = compile(mesh, &logarithms(rows)?)?;
        let mut tables = Vec::new();
        for (i, block) in originals.pixels.chunks(BLOCK * PIXELS).enumerate() {
            let block = mesh.replicate(&filled_up(block, rows))?;
            tables.push((logarithms.call(vec![block.into()])?.swap_remove(0), i * BLOCK));
        }
        let program = compile(mesh, &search(images, rows)?)?;
        Ok(Searcher { mesh, program, tables, images, count })
    }

    /// Returns the best two originals of each image, ranked in single precision. Only one if there is only one original.
    fn best_two(&self, block: &[u8]) -> Result<Vec<Vec<usize>>> {
        let images = self.mesh.replicate(&filled_up(block, self.images))?;
        let mut best: Vec<Vec<(f32, usize)>> = vec![Vec::new(); block.len() / PIXELS];
        for (table, first) in &self.tables {
            let rows = self.mesh.replicate(&Array::scalar((self.count - first).min(BLOCK) as i32))?;
            let found = self.program.call(vec![Arg::Borrowed(&images), Arg::Borrowed(table), rows.into()])?;
            for pair in found.chunks_exact(2) {
                let (scores, rows) = (pair[0].get(0)?.to_vec::<f32>(), pair[1].get(0)?.to_vec::<i32>());
                for (best, (score, row)) in best.iter_mut().zip(scores.into_iter().zip(rows)) {
                    if score > f32::MIN {
                        best.push((score, first + row as usize));
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

/// Returns images as an array (rows, 784). The last image fills up missing rows.
fn filled_up(pixels: &[u8], rows: usize) -> Array {
    let last = &pixels[pixels.len() - PIXELS..];
    let mut all = pixels.to_vec();
    while all.len() < rows * PIXELS {
        all.extend_from_slice(last);
    }
    Array::new(&[rows, PIXELS], &all)
}

/// Returns log p, or [`RULED_OUT`] where p = 0.
fn logarithm(p: Sym<'_>) -> Sym<'_> {
    let possible = p.gt(p.scalar_like(0.0));
    possible.select(possible.select(p, p.scalar_like(1.0)).log(), p.scalar_like(RULED_OUT))
}

/// Builds the program from grey originals (rows, 784) to their table (log p, log(1 − p)), (rows, 1568).
fn logarithms(rows: usize) -> Result<Function> {
    let g = Graph::new("logarithms");
    let grey = g.input("originals", &Shape::new(DType::U8, &[rows, PIXELS])).convert(DType::F32);
    let (on, off) = (grey / 255.0, (grey.scalar_like(255.0) - grey) / 255.0);
    let table = Sym::concat(&[logarithm(on), logarithm(off)], 1);
    g.finish(&[("table".into(), table)], &[])
}

/// Returns the highest score of each row and its column, of equals the first. `column` holds each score's column.
fn best<'g>(scores: Sym<'g>, column: Sym<'g>) -> (Sym<'g>, Sym<'g>) {
    let [rows, columns] = scores.dims()[..] else { return (scores, column) };
    let highest = scores.reduce_max(&[1]);
    let is_highest = scores.eq(highest.reshape(&[rows, 1]));
    // The first column is the largest when counted backwards.
    let backwards = is_highest.mask(-column + columns as f64).reduce_max(&[1]);
    (highest, -backwards + columns as f64)
}

/// Builds the program that searches a table.
///
/// Inputs: images u8 (n, 784), a table of logarithms, and the number of its rows in use. Outputs for each image: score and row of
/// the best row, then of the second best. If there is no second row, its score is the lowest finite number.
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
    let (first, first_row) = best(scores, row);
    let (second, second_row) = best(row.eq(first_row.reshape(&[images, 1])).select(lowest, scores), row);
    let outputs = [("best", first), ("place", first_row), ("second", second), ("second_place", second_row)];
    g.finish(&outputs.map(|(name, sym)| (name.to_string(), sym)), &[])
}
