//! The part of the interactive page that runs as WebAssembly: convolutions, and random draws equal to those of the program.
//!
//! `tools/page/build` compiles this file to `src/study/page/kernel.wasm`. The page calls its functions with numbers of buffers.

#[allow(dead_code)]
#[path = "../../src/engine/random/host.rs"]
mod host;

use std::cell::RefCell;
use std::mem;

use host::Key;

/// Output channels that one pass over the inputs computes. The page's weights are stored in blocks of this size.
const BLOCK: usize = 8;
/// Pixels that one pass over the weights computes.
const PIXELS: usize = 4;

#[derive(Default)]
struct Memory {
    buffers: Vec<Vec<f32>>,
    /// The dilated and padded input of the current convolution.
    padded: Vec<f32>,
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// Allocates a buffer of zeros and returns its number.
#[unsafe(no_mangle)]
pub extern "C" fn buffer(length: usize) -> usize {
    MEMORY.with_borrow_mut(|memory| {
        memory.buffers.push(vec![0.0; length]);
        memory.buffers.len() - 1
    })
}

/// Returns the address of a buffer.
#[unsafe(no_mangle)]
pub extern "C" fn address(buffer: usize) -> *const f32 {
    MEMORY.with_borrow(|memory| memory.buffers[buffer].as_ptr())
}

/// Derives the `i`-th key of a split, as its two words.
#[unsafe(no_mangle)]
pub extern "C" fn split(high: u32, low: u32, i: u32) -> u64 {
    let Key([a, b]) = Key([high, low]).split_at(u64::from(i));
    u64::from(a) << 32 | u64::from(b)
}

/// Fills the first `count` elements of a buffer with standard normal numbers.
#[unsafe(no_mangle)]
pub extern "C" fn normal(high: u32, low: u32, count: usize, to: usize) {
    let drawn = Key([high, low]).normal(count);
    MEMORY.with_borrow_mut(|memory| memory.buffers[to][..count].copy_from_slice(&drawn));
}

/// Fills the first `count` elements of a buffer with 1, with the given probability, or 0.
#[unsafe(no_mangle)]
pub extern "C" fn bernoulli(high: u32, low: u32, count: usize, probability: f32, to: usize) {
    let drawn = Key([high, low]).bernoulli(count, |_| probability);
    MEMORY.with_borrow_mut(|memory| {
        for (out, on) in memory.buffers[to].iter_mut().zip(drawn) {
            *out = f32::from(u8::from(on));
        }
    });
}

/// A convolution of one image, (height, width, channels). The input is dilated and padded by `low` pixels before, and by as many
/// as the output needs after.
#[derive(Clone, Copy)]
struct Geometry {
    input: [usize; 3],
    output: [usize; 3],
    kernel: usize,
    stride: usize,
    dilation: usize,
    low: usize,
}

impl Geometry {
    /// Returns the height and width of the dilated and padded input.
    fn padded(&self) -> [usize; 2] {
        [0, 1].map(|axis| (self.output[axis] - 1) * self.stride + self.kernel)
    }

    /// Reports whether the input is used as it is.
    fn direct(&self) -> bool {
        let [height, width, _] = self.input;
        self.dilation == 1 && self.low == 0 && self.padded() == [height, width]
    }

    fn pad(&self, source: &[f32], padded: &mut Vec<f32>) {
        let [height, width, channels] = self.input;
        let [padded_height, padded_width] = self.padded();
        padded.clear();
        padded.resize(padded_height * padded_width * channels, 0.0);
        for y in 0..height {
            for x in 0..width {
                let (row, column) = (y * self.dilation + self.low, x * self.dilation + self.low);
                if row < padded_height && column < padded_width {
                    let to = (row * padded_width + column) * channels;
                    let from = (y * width + x) * channels;
                    padded[to..to + channels].copy_from_slice(&source[from..from + channels]);
                }
            }
        }
    }
}

/// What happens with the sums of a convolution.
#[derive(Clone, Copy)]
struct Finish<'a> {
    elu: bool,
    /// Adds the result to the output instead of replacing it.
    add: bool,
    /// Factor of each pixel.
    mask: Option<&'a [f32]>,
}

/// Computes the rows `from..to` of a convolution's output. Weights are (blocks of 8 outputs, kernel, kernel, inputs, 8).
fn convolve(
    geometry: &Geometry,
    input: &[f32],
    weights: &[f32],
    bias: &[f32],
    finish: Finish<'_>,
    output: &mut [f32],
    rows: std::ops::Range<usize>,
) {
    let Geometry { kernel, stride, .. } = *geometry;
    let (channels, [_, width, outputs]) = (geometry.input[2], geometry.output);
    let input_width = geometry.padded()[1];
    let taps = kernel * kernel;
    for y in rows {
        for block in 0..outputs / BLOCK {
            let start: [f32; BLOCK] = std::array::from_fn(|o| bias[block * BLOCK + o]);
            for x in (0..width).step_by(PIXELS) {
                let mut sums = [start; PIXELS];
                for tap in 0..taps {
                    let from = (block * taps + tap) * channels * BLOCK;
                    let (weights, _) = weights[from..from + channels * BLOCK].as_chunks::<BLOCK>();
                    let [a, b, c, d]: [&[f32]; PIXELS] = std::array::from_fn(|p| {
                        // The last pixels are computed several times if the width is no multiple.
                        let column = (x + p).min(width - 1) * stride + tap % kernel;
                        let at = ((y * stride + tap / kernel) * input_width + column) * channels;
                        &input[at..at + channels]
                    });
                    for ((((w, a), b), c), d) in weights.iter().zip(a).zip(b).zip(c).zip(d) {
                        for o in 0..BLOCK {
                            sums[0][o] += a * w[o];
                            sums[1][o] += b * w[o];
                            sums[2][o] += c * w[o];
                            sums[3][o] += d * w[o];
                        }
                    }
                }
                for (p, sums) in sums.iter().enumerate().take(width - x) {
                    let pixel = y * width + x + p;
                    let out = &mut output[pixel * outputs + block * BLOCK..][..BLOCK];
                    let factor = finish.mask.map_or(1.0, |mask| mask[pixel]);
                    for (out, sum) in out.iter_mut().zip(sums) {
                        let value = if finish.elu { elu(*sum) } else { *sum };
                        *out = if finish.add { *out + factor * value } else { value };
                    }
                }
            }
        }
    }
}

/// Returns x if x > 0, else eˣ − 1, to within 3e-7. Unlike the library's function it has a vector form.
#[inline(always)]
fn elu(x: f32) -> f32 {
    let t = x.clamp(-87.0, 0.0) * std::f32::consts::LOG2_E;
    let whole = (t + 0.5).floor();
    let part = (t - whole) * std::f32::consts::LN_2;
    // The Taylor series of e^part, for |part| up to ln 2 / 2.
    let series = [5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0f32];
    let power = 1.0 + series.into_iter().fold(0.0, |sum, factorial| (sum + 1.0 / factorial) * part);
    let scale = f32::from_bits(((whole as i32 + 127) as u32) << 23);
    if x > 0.0 { x } else { power * scale - 1.0 }
}

/// Computes the rows `first..last` of a convolution. `flags`: 1 for ELU, 2 to add to the output. `mask` is a buffer with a factor
/// for each pixel of what is added, or -1.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)]
pub extern "C" fn conv(
    from: usize,
    to: usize,
    weights: usize,
    weight_at: usize,
    bias_at: usize,
    input_height: usize,
    input_width: usize,
    input_channels: usize,
    output_height: usize,
    output_width: usize,
    output_channels: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    low: usize,
    flags: u32,
    mask: i32,
    first: usize,
    last: usize,
) {
    let geometry = Geometry {
        input: [input_height, input_width, input_channels],
        output: [output_height, output_width, output_channels],
        kernel,
        stride,
        dilation,
        low,
    };
    MEMORY.with_borrow_mut(|memory| {
        let mut output = mem::take(&mut memory.buffers[to]);
        let mut padded = mem::take(&mut memory.padded);
        let source = &memory.buffers[from];
        let input = if geometry.direct() {
            source
        } else {
            if first == 0 {
                geometry.pad(source, &mut padded);
            }
            &padded
        };
        let mask = usize::try_from(mask).ok().map(|mask| memory.buffers[mask].as_slice());
        let finish = Finish { elu: flags & 1 != 0, add: flags & 2 != 0, mask };
        let all = &memory.buffers[weights];
        convolve(&geometry, input, &all[weight_at..], &all[bias_at..], finish, &mut output, first..last);
        memory.padded = padded;
        memory.buffers[to] = output;
    });
}
