//! A weight gradient computed by several threads. First each thread computes the gradient over some rows of some images. Then
//! each thread adds up some channels of these partial gradients.

use std::ffi::c_void;
use std::ops::Range;

use anyhow::Result;

use super::library::{Array, ElementType, OneDnnLibrary, Primitive, Role, Window};
use super::threads::Threads;

/// The least number of result pixels for which a thread is worth its overhead.
const PIXELS_PER_THREAD: usize = 256;

/// Output channels that one task adds up: a multiple of the block size of every oneDNN layout.
const CHANNELS: i64 = 64;

/// The convolution whose weight gradient is computed: image (n, h, w, in), result (n, h', w', out), kernel (kh, kw).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Conv {
    pub element: ElementType,
    pub image: [i64; 4],
    pub result: [i64; 4],
    pub kernel: [i64; 2],
    pub window: Window,
}

/// The address of an array. [`Plan::run`] makes sure that threads do not read and write it at the same time.
#[derive(Clone, Copy)]
pub struct Address(pub *mut c_void);

// SAFETY: the pointer is only a number here. Reading or writing through it is unsafe, and justified where that happens.
unsafe impl Sync for Address {}

impl Address {
    fn offset(self, bytes: usize) -> *mut c_void {
        self.0.wrapping_byte_add(bytes)
    }
}

/// The addresses of a call's arrays.
#[derive(Clone, Copy)]
pub struct Addresses {
    pub image: Address,
    pub cotangent: Address,
    pub gradient: Address,
}

/// A cache line: the alignment that oneDNN prefers.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

/// Scratch memory, reused from one call to the next.
#[derive(Default)]
pub struct Workspace(Vec<CacheLine>);

/// The partial gradient over some rows of some images.
struct Part {
    primitive: Primitive,
    /// Byte offset of its first pixel in the image and in the cotangent.
    offsets: [usize; 2],
    /// Workspace line at which its gradient begins, and its scratch memory.
    lines: [usize; 2],
}

/// The primitives that compute one weight gradient.
pub struct Plan {
    parts: Vec<Part>,
    /// For each block of channels: a copy of the first part's gradient into the result, then an addition of each other part's.
    sums: Vec<Vec<Primitive>>,
    /// Lines of the workspace that a run needs.
    lines: usize,
}

impl Plan {
    /// Creates the primitives of a convolution for a number of threads.
    ///
    /// # Errors
    /// When oneDNN does not implement this gradient.
    pub fn new(library: &OneDnnLibrary, conv: &Conv, threads: usize) -> Result<Plan> {
        let [_, _, channels, out] = conv.gradient();
        let (mut parts, mut lines) = (Vec::new(), 0);
        for (images, rows) in conv.partition(threads) {
            let (primitive, offsets) = conv.part(library, &images, &rows)?;
            let mut reserve = |role| {
                let first = lines;
                lines +=
                    primitive.array(role).map_or(0, |a| library.bytes(a)).div_ceil(size_of::<CacheLine>());
                first
            };
            let lines = [reserve(Role::WeightGradient), reserve(Role::Scratch)];
            parts.push(Part { primitive, offsets, lines });
        }
        let gradient = conv.kernel_array(library, ElementType::F32, true)?;
        let mut sums = Vec::new();
        for first in (0..out).step_by(CHANNELS as usize) {
            let dims = [CHANNELS.min(out - first), channels, conv.kernel[0], conv.kernel[1]];
            let channel_block = |array: &Array| library.block(array, dims, [first, 0, 0, 0]);
            let reorders = parts.iter().enumerate().map(|(i, part)| {
                let own = part.primitive.array(Role::WeightGradient).expect("the primitive has a result");
                library.reorder(channel_block(own)?, channel_block(&gradient)?, i > 0)
            });
            sums.push(reorders.collect::<Result<Vec<_>>>()?);
        }
        Ok(Plan { parts, sums, lines })
    }

    /// Computes the gradient.
    ///
    /// # Safety
    /// The addresses are those of the convolution's arrays. During the call nobody else writes these arrays, and nobody else
    /// reads the gradient.
    pub unsafe fn run(
        &self,
        library: &OneDnnLibrary,
        addresses: Addresses,
        workspace: &mut Workspace,
        threads: &Threads<'_>,
    ) -> Result<()> {
        if workspace.0.len() < self.lines {
            workspace.0.resize(self.lines, CacheLine([0; 64]));
        }
        let own = Address(workspace.0.as_mut_ptr().cast());
        let line = |index: usize| own.offset(index * size_of::<CacheLine>());
        threads.run_tasks(self.parts.len(), &|i| {
            let Part { primitive, offsets: [image, cotangent], lines: [gradient, scratch] } = &self.parts[i];
            let read = [addresses.image.offset(*image), addresses.cotangent.offset(*cotangent)];
            // SAFETY: image and cotangent are only read, and each part has its own lines of the workspace.
            unsafe { library.execute(primitive, &[read[0], read[1], line(*gradient), line(*scratch)]) }
        })?;
        threads.run_tasks(self.sums.len(), &|i| {
            for (part, reorder) in self.parts.iter().zip(&self.sums[i]) {
                // SAFETY: the parts are done and are only read; each task writes its own channels of the gradient.
                unsafe { library.execute(reorder, &[line(part.lines[0]), addresses.gradient.offset(0)]) }?;
            }
            Ok(())
        })
    }
}

impl Conv {
    /// Returns the gradient's sizes: (kh, kw, in, out).
    fn gradient(&self) -> [i64; 4] {
        [self.kernel[0], self.kernel[1], self.image[3], self.result[3]]
    }

    /// Divides the work into ranges of images and of result rows. Rows are divided only if there are fewer images than threads.
    fn partition(&self, threads: usize) -> Vec<(Range<i64>, Range<i64>)> {
        let [n, rows, columns, _] = self.result;
        let parts = ((n * rows * columns) as usize).div_ceil(PIXELS_PER_THREAD).min(threads).max(1) as i64;
        let (groups, slices) = (parts.min(n), (parts / n).clamp(1, rows));
        let range = |i: i64, parts: i64, all: i64| i * all / parts..(i + 1) * all / parts;
        let part = |i: i64| (range(i / slices, groups, n), range(i % slices, slices, rows));
        (0..groups * slices).map(part).collect()
    }

    /// Creates the primitive for some images and some rows of the result. Also returns the byte offsets of the first pixel that
    /// it reads in the image and in the cotangent.
    fn part(
        &self,
        library: &OneDnnLibrary,
        images: &Range<i64>,
        rows: &Range<i64>,
    ) -> Result<(Primitive, [usize; 2])> {
        let Conv { image: [_, height, width, channels], result: [_, all_rows, columns, out], window, .. } =
            *self;
        let first = rows.start * window.stride[0] - window.before[0];
        let last = (rows.end - 1) * window.stride[0] + (self.kernel[0] - 1) * window.dilation[0] + 1
            - window.before[0];
        let (from, to) = (first.max(0), last.min(height));
        let window = Window {
            before: [from - first, window.before[1]],
            after: [last - to, window.after[1]],
            ..window
        };
        let count = images.end - images.start;
        let pixels = |rows: i64, columns: i64, channels: i64, all_rows: i64| {
            let strides = [all_rows * columns * channels, 1, columns * channels, channels];
            library.array(self.element, [count, channels, rows, columns], Some(strides))
        };
        let primitive = library.weight_gradient(
            pixels(to - from, width, channels, height)?,
            &self.kernel_array(library, ElementType::F32, false)?,
            pixels(rows.end - rows.start, columns, out, all_rows)?,
            &self.kernel_array(library, self.element, false)?,
            &window,
        )?;
        let bytes = match self.element {
            ElementType::Bf16 => 2,
            ElementType::F32 => 4,
        };
        let before = [
            (images.start * height + from) * width * channels,
            (images.start * all_rows + rows.start) * columns * out,
        ];
        Ok((primitive, before.map(|elements| elements as usize * bytes)))
    }

    /// Describes the kernel, in HWIO order or in the layout that oneDNN prefers.
    fn kernel_array(&self, library: &OneDnnLibrary, element: ElementType, hwio: bool) -> Result<Array> {
        let [kh, kw, channels, out] = self.gradient();
        let strides = hwio.then_some([1, out, kw * channels * out, channels * out]);
        library.array(element, [out, channels, kh, kw], strides)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conv(n: i64, rows: i64) -> Conv {
        let window = Window { stride: [1, 1], dilation: [1, 1], before: [1, 1], after: [1, 1] };
        Conv {
            element: ElementType::F32,
            image: [n, rows, 32, 8],
            result: [n, rows, 32, 8],
            kernel: [3, 3],
            window,
        }
    }

    #[test]
    fn every_row_of_every_image_belongs_to_one_part() {
        for (n, rows, threads, parts) in
            [(4, 32, 2, 2), (5, 32, 3, 3), (1, 32, 3, 3), (2, 32, 7, 6), (4, 2, 9, 1)]
        {
            let partition = conv(n, rows).partition(threads);
            assert_eq!(partition.len(), parts, "{n} images of {rows} rows, {threads} threads");
            for i in 0..n * rows {
                let (image, row) = (i / rows, i % rows);
                let owners = partition.iter().filter(|(i, r)| i.contains(&image) && r.contains(&row));
                assert_eq!(owners.count(), 1, "image {image}, row {row}");
            }
        }
    }
}
