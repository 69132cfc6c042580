//! A weight gradient divided among threads: each makes the whole gradient of some images' rows, then each adds up some
//! channels of all.

use std::ffi::c_void;
use std::ops::Range;

use anyhow::Result;

use super::library::{Array, Library, Moves, Number, Primitive, Role};
use super::threads::Threads;

/// Places of the result that are worth a thread.
const PLACES: usize = 256;

/// Channels of the result that one thread adds up: a multiple of the blocks of all of oneDNN's layouts.
const CHANNELS: i64 = 64;

/// A convolution whose weight gradient is wanted: image (n, h, w, in), result (n, h', w', out), kernel (kh, kw).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Conv {
    pub number: Number,
    pub image: [i64; 4],
    pub result: [i64; 4],
    pub kernel: [i64; 2],
    pub moves: Moves,
}

/// Where an array lies; who reads and writes there is for [`Plan::run`] to see to.
#[derive(Clone, Copy)]
pub struct Address(pub *mut c_void);

// SAFETY: a number, until somebody looks there.
unsafe impl Sync for Address {}

impl Address {
    fn plus(self, bytes: usize) -> *mut c_void {
        self.0.wrapping_byte_add(bytes)
    }
}

/// Where the arrays of a call lie.
#[derive(Clone, Copy)]
pub struct Addresses {
    pub image: Address,
    pub cotangent: Address,
    pub gradient: Address,
}

/// Memory as oneDNN wants it.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Memory that calls work in, kept from one to the next.
#[derive(Default)]
pub struct Workspace(Vec<Line>);

/// The gradient of some images' rows.
struct Part {
    primitive: Primitive,
    /// Bytes before its first pixel of the image and of the cotangent.
    offsets: [usize; 2],
    /// Lines of the workspace before its gradient, and before its scratch.
    places: [usize; 2],
}

pub struct Plan {
    parts: Vec<Part>,
    /// For some channels each: the copy of the first part's gradient into the result, and the others' additions to it.
    sums: Vec<Vec<Primitive>>,
    lines: usize,
}

impl Plan {
    /// # Errors
    /// When oneDNN has no such gradient.
    pub fn new(library: &Library, conv: &Conv, threads: usize) -> Result<Plan> {
        let [_, _, channels, out] = conv.gradient();
        let (mut parts, mut lines) = (Vec::new(), 0);
        for (images, rows) in conv.divided(threads) {
            let (primitive, offsets) = conv.part(library, &images, &rows)?;
            let mut take = |role| {
                let at = lines;
                lines += primitive.array(role).map_or(0, |a| library.bytes(a)).div_ceil(size_of::<Line>());
                at
            };
            let places = [take(Role::WeightGradient), take(Role::Scratch)];
            parts.push(Part { primitive, offsets, places });
        }
        let gradient = conv.kernel_array(library, Number::F32, true)?;
        let mut sums = Vec::new();
        for from in (0..out).step_by(CHANNELS as usize) {
            let dims = [CHANNELS.min(out - from), channels, conv.kernel[0], conv.kernel[1]];
            let of = |array: &Array| library.part(array, dims, [from, 0, 0, 0]);
            let copies = parts.iter().enumerate().map(|(i, part)| {
                let own = part.primitive.array(Role::WeightGradient).expect("it writes one");
                library.copy(of(own)?, of(&gradient)?, i > 0)
            });
            sums.push(copies.collect::<Result<Vec<_>>>()?);
        }
        Ok(Plan { parts, sums, lines })
    }

    /// Computes the gradient.
    ///
    /// # Safety
    /// The addresses are those of the convolution's arrays, which nobody else writes meanwhile, and nobody else reads the
    /// gradient.
    pub unsafe fn run(
        &self,
        library: &Library,
        at: Addresses,
        workspace: &mut Workspace,
        threads: &Threads<'_>,
    ) -> Result<()> {
        if workspace.0.len() < self.lines {
            workspace.0.resize(self.lines, Line([0; 64]));
        }
        let own = Address(workspace.0.as_mut_ptr().cast());
        let line = |place: usize| own.plus(place * size_of::<Line>());
        threads.share(self.parts.len(), &|i| {
            let Part { primitive, offsets: [image, cotangent], places: [gradient, scratch] } = &self.parts[i];
            let read = [at.image.plus(*image), at.cotangent.plus(*cotangent)];
            // SAFETY: image and cotangent are only read, and each part has its own lines of the workspace.
            unsafe { library.execute(primitive, &[read[0], read[1], line(*gradient), line(*scratch)]) }
        })?;
        threads.share(self.sums.len(), &|i| {
            for (part, copy) in self.parts.iter().zip(&self.sums[i]) {
                // SAFETY: the parts are done and are only read; each task writes other channels of the gradient.
                unsafe { library.execute(copy, &[line(part.places[0]), at.gradient.plus(0)]) }?;
            }
            Ok(())
        })
    }
}

impl Conv {
    /// The gradient's size: (kh, kw, in, out).
    fn gradient(&self) -> [i64; 4] {
        [self.kernel[0], self.kernel[1], self.image[3], self.result[3]]
    }

    /// What each thread takes: whole images, or some rows where there are fewer images than threads.
    fn divided(&self, threads: usize) -> Vec<(Range<i64>, Range<i64>)> {
        let [n, rows, columns, _] = self.result;
        let parts = ((n * rows * columns) as usize).div_ceil(PLACES).min(threads).max(1) as i64;
        let (groups, slices) = (parts.min(n), (parts / n).clamp(1, rows));
        let nth = |i: i64, of: i64, all: i64| i * all / of..(i + 1) * all / of;
        let part = |i: i64| (nth(i / slices, groups, n), nth(i % slices, slices, rows));
        (0..groups * slices).map(part).collect()
    }

    /// The primitive for some images and some of the result's rows, and the bytes before the first pixel that it reads of
    /// the image and of the cotangent.
    fn part(
        &self,
        library: &Library,
        images: &Range<i64>,
        rows: &Range<i64>,
    ) -> Result<(Primitive, [usize; 2])> {
        let Conv { image: [_, height, width, channels], result: [_, all_rows, columns, out], moves, .. } =
            *self;
        let first = rows.start * moves.stride[0] - moves.before[0];
        let last =
            (rows.end - 1) * moves.stride[0] + (self.kernel[0] - 1) * moves.dilation[0] + 1 - moves.before[0];
        let (from, to) = (first.max(0), last.min(height));
        let moves =
            Moves { before: [from - first, moves.before[1]], after: [last - to, moves.after[1]], ..moves };
        let count = images.end - images.start;
        let pixels = |rows: i64, columns: i64, channels: i64, all_rows: i64| {
            let strides = [all_rows * columns * channels, 1, columns * channels, channels];
            library.array(self.number, [count, channels, rows, columns], Some(strides))
        };
        let primitive = library.weight_gradient(
            pixels(to - from, width, channels, height)?,
            &self.kernel_array(library, Number::F32, false)?,
            pixels(rows.end - rows.start, columns, out, all_rows)?,
            &self.kernel_array(library, self.number, false)?,
            &moves,
        )?;
        let bytes = match self.number {
            Number::Bf16 => 2,
            Number::F32 => 4,
        };
        let before = [
            (images.start * height + from) * width * channels,
            (images.start * all_rows + rows.start) * columns * out,
        ];
        Ok((primitive, before.map(|numbers| numbers as usize * bytes)))
    }

    /// The kernel's description: HWIO, or as oneDNN likes it best.
    fn kernel_array(&self, library: &Library, number: Number, natural: bool) -> Result<Array> {
        let [kh, kw, channels, out] = self.gradient();
        let strides = natural.then_some([1, out, kw * channels * out, channels * out]);
        library.array(number, [out, channels, kh, kw], strides)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conv(n: i64, rows: i64) -> Conv {
        let moves = Moves { stride: [1, 1], dilation: [1, 1], before: [1, 1], after: [1, 1] };
        Conv { number: Number::F32, image: [n, rows, 32, 8], result: [n, rows, 32, 8], kernel: [3, 3], moves }
    }

    #[test]
    fn every_row_of_every_image_is_one_threads() {
        for (n, rows, threads, parts) in
            [(4, 32, 2, 2), (5, 32, 3, 3), (1, 32, 3, 3), (2, 32, 7, 6), (4, 2, 9, 1)]
        {
            let divided = conv(n, rows).divided(threads);
            assert_eq!(divided.len(), parts, "{n} images of {rows} rows, {threads} threads");
            for place in 0..n * rows {
                let (image, row) = (place / rows, place % rows);
                let takers = divided.iter().filter(|(i, r)| i.contains(&image) && r.contains(&row));
                assert_eq!(takers.count(), 1, "image {image}, row {row}");
            }
        }
    }
}
