//! Convolutions for XLA's CPU compiler, whose matrix products are fast and whose transposed convolutions are not.

use anyhow::Result;
use xla::XlaOp;

use super::{Lowering, dims, native_conv};
use crate::ir::ops::conv::Window;
use crate::shape::Shape;

impl Lowering<'_> {
    pub(super) fn cpu_conv(
        &self,
        window: Window,
        image: &XlaOp,
        kernel: &XlaOp,
        _image_shape: &Shape,
        _kernel_shape: &Shape,
        _result: &Shape,
    ) -> Result<XlaOp> {
        native_conv(&window, image, kernel)
    }

    /// One matrix product for each place of the kernel: the image's pixels under that place, transposed, by the
    /// cotangent's.
    pub(super) fn cpu_weight_grad(
        &self,
        window: Window,
        kernel: [usize; 2],
        image: &XlaOp,
        result: &XlaOp,
        image_shape: &Shape,
        result_shape: &Shape,
    ) -> Result<XlaOp> {
        let zero = self.builder.zero(super::element_type(image_shape.dtype))?;
        let edge = |d: usize| {
            let (low, high) = window.padding[d];
            (low, high, window.image_dilation[d] as i64 - 1)
        };
        let padded = image.pad(&zero, &[(0, 0, 0), edge(0), edge(1), (0, 0, 0)])?;
        let [n, h, w, o] = result_shape.dims[..] else { anyhow::bail!("{result_shape} is no NHWC array") };
        let channels = image_shape.dims[3];
        let rows = (n * h * w) as i64;
        let cotangent = result.reshape(&[rows, o as i64])?;
        let mut places = Vec::new();
        for i in 0..kernel[0] {
            for j in 0..kernel[1] {
                let mut under = padded.clone();
                for (d, at, size) in [(0, i, h), (1, j, w)] {
                    let start = (at * window.kernel_dilation[d]) as i64;
                    let stride = window.stride[d] as i64;
                    under = under.slice_in_dim(start, start + (size as i64 - 1) * stride + 1, stride, d as i64 + 1)?;
                }
                let under = under.reshape(&[rows, channels as i64])?;
                places.push(under.dot_general(&cotangent, &[0], &[0], &[], &[])?.reshape(&[1, channels as i64, o as i64])?);
            }
        }
        let kernel_dims = dims(&image_shape.with_dims(&[kernel[0], kernel[1], channels, o]));
        let (first, rest) = places.split_first().ok_or_else(|| anyhow::anyhow!("an empty kernel"))?;
        Ok(first.concat_in_dim(rest, 0)?.reshape(&kernel_dims)?)
    }
}
