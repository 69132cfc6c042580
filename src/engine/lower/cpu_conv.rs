//! Convolutions on CPUs, in forms that XLA's CPU compiler compiles well. Its matmuls are fast. Its convolutions are fast only
//! without dilation and over large grids.
//!
//! A convolution of a dilated image is split into phases: the outputs of a phase use the same taps of the kernel, those that read
//! pixels and not the zeros between them. Each phase is a convolution of the image without dilation. Over a small grid, and for
//! weight gradients, a convolution becomes a matmul of the patches under the kernel (im2col).

use anyhow::Result;
use xla::XlaOp;

use super::conv::{FORWARD, Forward, WeightGrad};
use super::epilogue::Epilogue;
use super::{Lowering, element_type, i64s};
use crate::engine::ir::ops::conv::Window;
use crate::engine::program::Target;
use crate::engine::shape::Shape;

/// The largest grid of the output, in pixels, over which im2col and a matmul are used. XLA's own convolution reaches 1/20 of the
/// matmul's speed over 4 x 4 pixels and the same speed over 8 x 8 (measured).
const SMALL_GRID: usize = 16;

/// The largest grid of the output, in pixels, over which im2col is used when oneDNN computes the convolutions.
const ONE_DNN_SMALL_GRID: usize = 4;

/// The largest number of channels for which im2col is applied to the weight gradient's operand with these channels.
const FEW_CHANNELS: usize = 4;

/// One dimension of a phase. The outputs `phase`, `phase + dilation`, ... use the taps `first`, `first + dilation`, ... of the
/// kernel. They are a convolution without dilation.
struct Phase {
    /// Index of the phase's first output.
    phase: usize,
    /// Number of outputs.
    outputs: usize,
    /// Index of the first tap.
    first: usize,
    /// Number of taps.
    taps: usize,
    /// Padding of the image.
    padding: (i64, i64),
}

/// Returns the phases of one dimension of a stride-1 convolution of a dilated image.
fn phases(window: &Window, dim: usize, image: usize, kernel: usize, output: usize) -> Vec<Phase> {
    let dilation = window.image_dilation[dim];
    let low = window.padding[dim].0;
    let phase = |phase: usize| {
        let first = (low - phase as i64).rem_euclid(dilation as i64) as usize;
        let taps = kernel.saturating_sub(first).div_ceil(dilation);
        let outputs = (output - phase).div_ceil(dilation);
        let before = (low - phase as i64 - first as i64).div_euclid(dilation as i64);
        let after = (outputs + taps) as i64 - 1 - image as i64 - before;
        Phase { phase, outputs, first, taps, padding: (before, after) }
    };
    (0..dilation).map(phase).collect()
}

/// Reports whether a convolution can be split into phases: its image is dilated, its stride and kernel dilation are 1, and all
/// phases have equally many outputs and at least one tap.
fn has_phases(window: &Window, kernel: [usize; 2], output: [usize; 2]) -> bool {
    window.stride == [1, 1]
        && window.kernel_dilation == [1, 1]
        && window.image_dilation != [1, 1]
        && (0..2).all(|d| {
            kernel[d] >= window.image_dilation[d] && output[d].is_multiple_of(window.image_dilation[d])
        })
}

/// Returns the grid's size (h, w) of an NHWC shape.
fn grid(shape: &Shape) -> [usize; 2] {
    [shape.dims[1], shape.dims[2]]
}

/// Reads every `step`-th element from `first` on along one dimension, `count` in all.
fn strided(x: &XlaOp, dim: usize, first: usize, step: usize, count: usize) -> xla::Result<XlaOp> {
    if first == 0 && step == 1 && x.dims()?[dim] == count {
        return Ok(x.clone());
    }
    x.slice_in_dim(first as i64, (first + (count - 1) * step + 1) as i64, step as i64, dim as i64)
}

/// Reads the pixels of a padded image under one tap of the kernel, for every output pixel: (n, h', w', in).
fn pixels_under_tap(
    window: &Window,
    padded: &XlaOp,
    tap: [usize; 2],
    output: [usize; 2],
) -> xla::Result<XlaOp> {
    let mut pixels = padded.clone();
    for d in 0..2 {
        pixels = strided(&pixels, d + 1, tap[d] * window.kernel_dilation[d], window.stride[d], output[d])?;
    }
    Ok(pixels)
}

impl Lowering<'_> {
    fn small_grid(&self) -> usize {
        match self.target {
            Target::OneDnn => ONE_DNN_SMALL_GRID,
            Target::Cpu | Target::Native | Target::Gpu => SMALL_GRID,
        }
    }

    /// Lowers a convolution by phases, as a matmul or as one operation.
    pub(super) fn cpu_conv(&self, conv: &Forward<'_>) -> Result<XlaOp> {
        let Forward { window, image, kernel, image_shape, kernel_shape, result, epilogue } = *conv;
        let taps = [kernel_shape.dims[0], kernel_shape.dims[1]];
        if has_phases(&window, taps, grid(result)) {
            return self.conv_by_phases(conv);
        }
        let [h, w] = grid(result);
        if window.image_dilation != [1, 1] || h * w > self.small_grid() {
            return self.convolution(&window, &FORWARD, image, kernel, result, epilogue);
        }
        let rows = self.im2col(&window, taps, image, image_shape, [h, w])?;
        let (depth, out) = (taps[0] * taps[1] * image_shape.dims[3], result.dims[3]);
        let matrix = kernel.reshape(&[depth as i64, out as i64])?;
        let shape = result.with_dims(&[result.count() / out, out]);
        let y = self.matmul(&rows, &matrix, [1, 0], &shape, epilogue)?;
        Ok(y.reshape(&i64s(&result.dims))?)
    }

    /// Convolves each phase and interleaves the outputs.
    fn conv_by_phases(&self, conv: &Forward<'_>) -> Result<XlaOp> {
        let Forward { window, kernel, image_shape, kernel_shape, result, .. } = *conv;
        let [n, channels, out] = [image_shape.dims[0], image_shape.dims[3], result.dims[3]];
        let by_dim =
            [0, 1].map(|d| phases(&window, d, grid(image_shape)[d], kernel_shape.dims[d], grid(result)[d]));
        let mut lines = Vec::new();
        for i in &by_dim[0] {
            let mut line = Vec::new();
            for j in &by_dim[1] {
                let mut part = kernel.clone();
                for (d, p) in [i, j].into_iter().enumerate() {
                    part = strided(&part, d, p.first, window.image_dilation[d], p.taps)?;
                }
                let padding = [i.padding, j.padding];
                let y = self.cpu_conv(&Forward {
                    window: Window { image_dilation: [1, 1], padding, ..window },
                    kernel: &part,
                    kernel_shape: &image_shape.with_dims(&[i.taps, j.taps, channels, out]),
                    result: &result.with_dims(&[n, i.outputs, j.outputs, out]),
                    ..*conv
                })?;
                line.push(y.reshape(&i64s(&[n, i.outputs, 1, j.outputs, 1, out]))?);
            }
            lines.push(line[0].concat_in_dim(&line[1..], 4)?);
        }
        Ok(lines[0].concat_in_dim(&lines[1..], 2)?.reshape(&i64s(&result.dims))?)
    }

    /// Copies the patch of pixels under the kernel for every output pixel into a row: (n h' w', kh kw in).
    fn im2col(
        &self,
        window: &Window,
        taps: [usize; 2],
        image: &XlaOp,
        shape: &Shape,
        output: [usize; 2],
    ) -> Result<XlaOp> {
        let padded = self.padded(window, image)?;
        let (n, channels) = (shape.dims[0], shape.dims[3]);
        let mut under = Vec::new();
        for i in 0..taps[0] {
            for j in 0..taps[1] {
                under.push(pixels_under_tap(window, &padded, [i, j], output)?);
            }
        }
        let rows = [n * output[0] * output[1], taps[0] * taps[1] * channels];
        Ok(under[0].concat_in_dim(&under[1..], 3)?.reshape(&i64s(&rows))?)
    }

    /// Pads an image, rounded to the computation's precision.
    fn padded(&self, window: &Window, image: &XlaOp) -> Result<XlaOp> {
        // The patches copy pixels several times. Rounding comes first, so that each pixel is rounded once.
        let image = self.rounded(image)?;
        let zero = self.builder.zero(image.ty()?.element_type()?)?;
        let padding = [0, 1].map(|d| (window.padding[d].0, window.padding[d].1, 0));
        Ok(image.pad(&zero, &[(0, 0, 0), padding[0], padding[1], (0, 0, 0)])?)
    }

    /// Lowers a weight gradient by phases, as a matmul or as one operation.
    pub(super) fn cpu_weight_grad(&self, grad: &WeightGrad<'_>) -> Result<XlaOp> {
        let WeightGrad { window, kernel, image, result, image_shape, result_shape } = *grad;
        if has_phases(&window, kernel, grid(result_shape)) {
            return self.weight_grad_by_phases(grad);
        }
        if window.image_dilation != [1, 1] {
            return self.weight_grad(grad);
        }
        let [n, h, w, out] = [0, 1, 2, 3].map(|d| result_shape.dims[d]);
        let channels = image_shape.dims[3];
        if self.target == Target::OneDnn && h * w > ONE_DNN_SMALL_GRID {
            return self.weight_grad(grad);
        }
        if out <= FEW_CHANNELS && window.stride == [1, 1] && window.kernel_dilation == [1, 1] {
            return self.weight_grad_by_result(grad);
        }
        let dims = i64s(&[kernel[0], kernel[1], channels, out]);
        let cotangent = result.reshape(&i64s(&[n * h * w, out]))?;
        if h * w <= SMALL_GRID || channels <= FEW_CHANNELS {
            let rows = self.im2col(&window, kernel, image, image_shape, [h, w])?;
            let shape = result_shape.with_dims(&[kernel[0] * kernel[1] * channels, out]);
            return Ok(self.matmul(&rows, &cotangent, [0, 0], &shape, Epilogue::None)?.reshape(&dims)?);
        }
        let (swapped, shape) = grad.as_convolution();
        let images = image.transpose(&[3, 1, 2, 0])?;
        let kernels = result.transpose(&[1, 2, 0, 3])?;
        let shape = shape.with_dims(&[channels, kernel[0], kernel[1], out]);
        Ok(self
            .convolution(&swapped, &FORWARD, &images, &kernels, &shape, Epilogue::None)?
            .transpose(&[1, 2, 0, 3])?)
    }

    /// Computes a weight gradient with the roles of image and cotangent exchanged, for a result of few channels: a matmul of the
    /// image's pixels with patches of the cotangent. This gives the kernel's gradient with its taps in reverse order.
    fn weight_grad_by_result(&self, grad: &WeightGrad<'_>) -> Result<XlaOp> {
        let WeightGrad { window, kernel, image, result, image_shape, result_shape } = *grad;
        let padding = [0, 1].map(|d| {
            let low = kernel[d] as i64 - 1 - window.padding[d].0;
            (low, grid(image_shape)[d] as i64 + kernel[d] as i64 - 1 - grid(result_shape)[d] as i64 - low)
        });
        let exchanged = Window { padding, ..window };
        let rows = self.im2col(&exchanged, kernel, result, result_shape, grid(image_shape))?;
        let [n, h, w, channels] = [0, 1, 2, 3].map(|d| image_shape.dims[d]);
        let pixels = image.reshape(&i64s(&[n * h * w, channels]))?;
        let shape = result_shape.with_dims(&[channels, kernel[0] * kernel[1] * result_shape.dims[3]]);
        let reversed = self.matmul(&pixels, &rows, [0, 0], &shape, Epilogue::None)?;
        let reversed = reversed.reshape(&i64s(&[channels, kernel[0], kernel[1], result_shape.dims[3]]))?;
        Ok(reversed.transpose(&[1, 2, 0, 3])?.rev(&[0, 1])?)
    }

    /// Computes the gradient of each phase's taps and interleaves them.
    fn weight_grad_by_phases(&self, grad: &WeightGrad<'_>) -> Result<XlaOp> {
        let WeightGrad { window, kernel, result, image_shape, result_shape, .. } = *grad;
        let [n, channels, out] = [image_shape.dims[0], image_shape.dims[3], result_shape.dims[3]];
        let by_dim =
            [0, 1].map(|d| phases(&window, d, grid(image_shape)[d], kernel[d], grid(result_shape)[d]));
        let zero = self.builder.zero(element_type(result_shape.dtype))?;
        let mut whole: Option<XlaOp> = None;
        for i in &by_dim[0] {
            for j in &by_dim[1] {
                let mut part = result.clone();
                for (d, p) in [i, j].into_iter().enumerate() {
                    part = strided(&part, d + 1, p.phase, window.image_dilation[d], p.outputs)?;
                }
                let padding = [i.padding, j.padding];
                let undilated = Window { image_dilation: [1, 1], padding, ..window };
                let shape = result_shape.with_dims(&[n, i.outputs, j.outputs, out]);
                let phase = WeightGrad {
                    window: undilated,
                    kernel: [i.taps, j.taps],
                    result: &part,
                    result_shape: &shape,
                    ..*grad
                };
                let taps = self.cpu_weight_grad(&phase)?;
                let spread = |d: usize, p: &Phase| {
                    let step = window.image_dilation[d];
                    let covered = p.first + (p.taps - 1) * step + 1;
                    (p.first as i64, (kernel[d] - covered) as i64, step as i64 - 1)
                };
                let placed = taps.pad(&zero, &[spread(0, i), spread(1, j), (0, 0, 0), (0, 0, 0)])?;
                whole = Some(match whole {
                    Some(sum) => sum.add_(&placed)?,
                    None => placed,
                });
            }
        }
        let shape = image_shape.with_dims(&[kernel[0], kernel[1], channels, out]);
        whole.map_or_else(|| self.zeros(&shape), Ok)
    }
}
