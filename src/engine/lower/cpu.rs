//! Convolutions for XLA's CPU compiler, whose matrix products are fast, and whose convolutions are so only where an
//! ordinary kernel moves over a large grid.
//!
//! A convolution of a dilated image is a convolution of the image itself for each phase of the output, with the part
//! of the kernel that meets pixels and not the zeros between them. What remains is ordinary: over a small grid, and
//! for every weight gradient, the pixels under the kernel are laid out as rows and multiplied as a matrix.

use anyhow::Result;
use xla::XlaOp;

use super::around::Then;
use super::product::{FORWARD, Forward, WeightGrad};
use super::{Lowering, element_type, i64s};
use crate::engine::ir::ops::conv::Window;
use crate::engine::program::Target;
use crate::engine::shape::Shape;

/// Places of the output's grid up to which rows and one matrix product beat the compiler's own convolution. (Measured:
/// over 4 x 4 places it reaches a twentieth of the product's speed, over 8 x 8 as much.)
const SMALL_GRID: usize = 16;

/// The same where oneDNN makes the convolutions.
const ONE_DNN_SMALL_GRID: usize = 4;

/// Channels of a result up to which its weight gradient is had from the other side, by the result's pixels.
const FEW_CHANNELS: usize = 4;

/// One dimension of one phase: outputs `phase`, `phase + dilation`, ... meet the kernel's elements `first`,
/// `first + dilation`, ... as an ordinary convolution with `padding`.
struct Phase {
    phase: usize,
    outputs: usize,
    first: usize,
    taps: usize,
    padding: (i64, i64),
}

/// The phases of one dimension of a stride-1 convolution of a dilated image.
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

/// Whether the phases cover a window: nothing but the image's dilation is unusual, and every phase has as many
/// outputs and at least one element of the kernel.
fn has_phases(window: &Window, kernel: [usize; 2], output: [usize; 2]) -> bool {
    window.stride == [1, 1]
        && window.kernel_dilation == [1, 1]
        && window.image_dilation != [1, 1]
        && (0..2).all(|d| {
            kernel[d] >= window.image_dilation[d] && output[d].is_multiple_of(window.image_dilation[d])
        })
}

fn grid(shape: &Shape) -> [usize; 2] {
    [shape.dims[1], shape.dims[2]]
}

/// Every `step`-th element from `first` of one dimension.
fn every(x: &XlaOp, dim: usize, first: usize, step: usize, count: usize) -> xla::Result<XlaOp> {
    if first == 0 && step == 1 && x.dims()?[dim] == count {
        return Ok(x.clone());
    }
    x.slice_in_dim(first as i64, (first + (count - 1) * step + 1) as i64, step as i64, dim as i64)
}

/// The pixels of a padded image under one element of the kernel, at every place of the output: (n, h', w', in).
fn pixels_under(window: &Window, padded: &XlaOp, tap: [usize; 2], output: [usize; 2]) -> xla::Result<XlaOp> {
    let mut pixels = padded.clone();
    for d in 0..2 {
        pixels = every(&pixels, d + 1, tap[d] * window.kernel_dilation[d], window.stride[d], output[d])?;
    }
    Ok(pixels)
}

impl Lowering<'_> {
    fn small_grid(&self) -> usize {
        match self.target {
            Target::OneDnn => ONE_DNN_SMALL_GRID,
            Target::Cpu | Target::Native => SMALL_GRID,
        }
    }

    pub(super) fn cpu_conv(&self, of: &Forward<'_>) -> Result<XlaOp> {
        let Forward { window, image, kernel, image_shape, kernel_shape, result, then } = *of;
        let taps = [kernel_shape.dims[0], kernel_shape.dims[1]];
        if has_phases(&window, taps, grid(result)) {
            return self.conv_by_phases(of);
        }
        let [h, w] = grid(result);
        if window.image_dilation != [1, 1] || h * w > self.small_grid() {
            return self.convolution(&window, &FORWARD, image, kernel, result, then);
        }
        let rows = self.rows_under(&window, taps, image, image_shape, [h, w])?;
        let (depth, out) = (taps[0] * taps[1] * image_shape.dims[3], result.dims[3]);
        let matrix = kernel.reshape(&[depth as i64, out as i64])?;
        let shape = result.with_dims(&[result.count() / out, out]);
        let product = self.product(&rows, &matrix, [1, 0], &shape, then)?;
        Ok(product.reshape(&i64s(&result.dims))?)
    }

    /// The output of each phase, put between the others'.
    fn conv_by_phases(&self, of: &Forward<'_>) -> Result<XlaOp> {
        let Forward { window, kernel, image_shape, kernel_shape, result, .. } = *of;
        let [n, channels, out] = [image_shape.dims[0], image_shape.dims[3], result.dims[3]];
        let by_dim =
            [0, 1].map(|d| phases(&window, d, grid(image_shape)[d], kernel_shape.dims[d], grid(result)[d]));
        let mut lines = Vec::new();
        for i in &by_dim[0] {
            let mut line = Vec::new();
            for j in &by_dim[1] {
                let mut part = kernel.clone();
                for (d, p) in [i, j].into_iter().enumerate() {
                    part = every(&part, d, p.first, window.image_dilation[d], p.taps)?;
                }
                let padding = [i.padding, j.padding];
                let y = self.cpu_conv(&Forward {
                    window: Window { image_dilation: [1, 1], padding, ..window },
                    kernel: &part,
                    kernel_shape: &image_shape.with_dims(&[i.taps, j.taps, channels, out]),
                    result: &result.with_dims(&[n, i.outputs, j.outputs, out]),
                    ..*of
                })?;
                line.push(y.reshape(&i64s(&[n, i.outputs, 1, j.outputs, 1, out]))?);
            }
            lines.push(line[0].concat_in_dim(&line[1..], 4)?);
        }
        Ok(lines[0].concat_in_dim(&lines[1..], 2)?.reshape(&i64s(&result.dims))?)
    }

    /// The pixels under the kernel at every place of the output: (n h' w', kh kw in).
    fn rows_under(
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
                under.push(pixels_under(window, &padded, [i, j], output)?);
            }
        }
        let rows = [n * output[0] * output[1], taps[0] * taps[1] * channels];
        Ok(under[0].concat_in_dim(&under[1..], 3)?.reshape(&i64s(&rows))?)
    }

    fn padded(&self, window: &Window, image: &XlaOp) -> Result<XlaOp> {
        // Pixels that are laid out several times are rounded once.
        let image = self.rounded(image)?;
        let zero = self.builder.zero(image.ty()?.element_type()?)?;
        let edges = [0, 1].map(|d| (window.padding[d].0, window.padding[d].1, 0));
        Ok(image.pad(&zero, &[(0, 0, 0), edges[0], edges[1], (0, 0, 0)])?)
    }

    pub(super) fn cpu_weight_grad(&self, of: &WeightGrad<'_>) -> Result<XlaOp> {
        let WeightGrad { window, kernel, image, result, image_shape, result_shape } = *of;
        if has_phases(&window, kernel, grid(result_shape)) {
            return self.weight_grad_by_phases(of);
        }
        if window.image_dilation != [1, 1] {
            return self.weight_grad(of);
        }
        let [n, h, w, out] = [0, 1, 2, 3].map(|d| result_shape.dims[d]);
        let channels = image_shape.dims[3];
        if self.target == Target::OneDnn && h * w > ONE_DNN_SMALL_GRID {
            return self.weight_grad(of);
        }
        if out <= FEW_CHANNELS && window.stride == [1, 1] && window.kernel_dilation == [1, 1] {
            return self.weight_grad_by_result(of);
        }
        let dims = i64s(&[kernel[0], kernel[1], channels, out]);
        let cotangent = result.reshape(&i64s(&[n * h * w, out]))?;
        if h * w <= SMALL_GRID || channels <= FEW_CHANNELS {
            let rows = self.rows_under(&window, kernel, image, image_shape, [h, w])?;
            let shape = result_shape.with_dims(&[kernel[0] * kernel[1] * channels, out]);
            return Ok(self.product(&rows, &cotangent, [0, 0], &shape, Then::Nothing)?.reshape(&dims)?);
        }
        let (turned, shape) = of.as_convolution();
        let images = image.transpose(&[3, 1, 2, 0])?;
        let kernels = result.transpose(&[1, 2, 0, 3])?;
        let shape = shape.with_dims(&[channels, kernel[0], kernel[1], out]);
        Ok(self
            .convolution(&turned, &FORWARD, &images, &kernels, &shape, Then::Nothing)?
            .transpose(&[1, 2, 0, 3])?)
    }

    /// The weight gradient with the parts of image and result exchanged, for a result of few channels: its pixels
    /// around every pixel of the image, the kernel turned round.
    fn weight_grad_by_result(&self, of: &WeightGrad<'_>) -> Result<XlaOp> {
        let WeightGrad { window, kernel, image, result, image_shape, result_shape } = *of;
        let padding = [0, 1].map(|d| {
            let low = kernel[d] as i64 - 1 - window.padding[d].0;
            (low, grid(image_shape)[d] as i64 + kernel[d] as i64 - 1 - grid(result_shape)[d] as i64 - low)
        });
        let around = Window { padding, ..window };
        let rows = self.rows_under(&around, kernel, result, result_shape, grid(image_shape))?;
        let [n, h, w, channels] = [0, 1, 2, 3].map(|d| image_shape.dims[d]);
        let pixels = image.reshape(&i64s(&[n * h * w, channels]))?;
        let shape = result_shape.with_dims(&[channels, kernel[0] * kernel[1] * result_shape.dims[3]]);
        let product = self.product(&pixels, &rows, [0, 0], &shape, Then::Nothing)?;
        let turned = product.reshape(&i64s(&[channels, kernel[0], kernel[1], result_shape.dims[3]]))?;
        Ok(turned.transpose(&[1, 2, 0, 3])?.rev(&[0, 1])?)
    }

    /// Each phase gives the gradient of its part of the kernel; the parts are put between each other.
    fn weight_grad_by_phases(&self, of: &WeightGrad<'_>) -> Result<XlaOp> {
        let WeightGrad { window, kernel, result, image_shape, result_shape, .. } = *of;
        let [n, channels, out] = [image_shape.dims[0], image_shape.dims[3], result_shape.dims[3]];
        let by_dim =
            [0, 1].map(|d| phases(&window, d, grid(image_shape)[d], kernel[d], grid(result_shape)[d]));
        let zero = self.builder.zero(element_type(result_shape.dtype))?;
        let mut whole: Option<XlaOp> = None;
        for i in &by_dim[0] {
            for j in &by_dim[1] {
                let mut part = result.clone();
                for (d, p) in [i, j].into_iter().enumerate() {
                    part = every(&part, d + 1, p.phase, window.image_dilation[d], p.outputs)?;
                }
                let padding = [i.padding, j.padding];
                let ordinary = Window { image_dilation: [1, 1], padding, ..window };
                let shape = result_shape.with_dims(&[n, i.outputs, j.outputs, out]);
                let of = WeightGrad {
                    window: ordinary,
                    kernel: [i.taps, j.taps],
                    result: &part,
                    result_shape: &shape,
                    ..*of
                };
                let grad = self.cpu_weight_grad(&of)?;
                let spread = |d: usize, p: &Phase| {
                    let step = window.image_dilation[d];
                    let covered = p.first + (p.taps - 1) * step + 1;
                    (p.first as i64, (kernel[d] - covered) as i64, step as i64 - 1)
                };
                let placed = grad.pad(&zero, &[spread(0, i), spread(1, j), (0, 0, 0), (0, 0, 0)])?;
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
