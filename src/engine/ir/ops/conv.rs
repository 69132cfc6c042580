//! Two-dimensional convolutions (cross-correlations) of NHWC images with HWIO kernels.
//!
//! A convolution and its weight gradient are both bilinear, and the derivatives of each are convolutions and weight gradients.
//! The lowering decides for each target whether they become convolutions or matmuls.

use crate::engine::ir::graph::Sym;
use crate::engine::ir::op::{Op, Vjp};
use crate::engine::shape::Shape;

/// How a kernel moves over an image. Each array has an entry for rows and one for columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Distance between neighbouring positions of the kernel, in pixels.
    pub stride: [usize; 2],
    /// Zeros before and after the dilated image, in pixels. Negative values remove pixels.
    pub padding: [(i64, i64); 2],
    /// Distance between the pixels of the image. 2 inserts a zero between neighbours.
    pub image_dilation: [usize; 2],
    /// Distance between the taps of the kernel.
    pub kernel_dilation: [usize; 2],
}

impl Window {
    /// Creates a window without dilation, with the same stride and padding (before, after) for rows and columns.
    pub fn new(stride: usize, padding: (i64, i64)) -> Window {
        Window { stride: [stride; 2], padding: [padding; 2], image_dilation: [1; 2], kernel_dilation: [1; 2] }
    }

    /// Creates the window of a transposed convolution, with parameters as in PyTorch's `ConvTranspose2d`.
    ///
    /// It is a convolution of stride 1 over the image dilated by `stride`, padded by `kernel − 1 − padding` before and
    /// `kernel − 1 − padding + output_padding` after.
    pub fn transposed(kernel: usize, stride: usize, padding: usize, output_padding: usize) -> Window {
        let low = kernel as i64 - 1 - padding as i64;
        Window { image_dilation: [stride; 2], ..Window::new(1, (low, low + output_padding as i64)) }
    }

    /// Returns the size of the result along grid dimension `dim` (0 for rows, 1 for columns); `None` where the kernel does not
    /// fit.
    pub fn output_size(&self, dim: usize, image: usize, kernel: usize) -> Option<usize> {
        let padded = self.dilated(dim, image) + self.padding[dim].0 + self.padding[dim].1;
        let room = padded - self.reach(dim, kernel);
        (image > 0 && kernel > 0 && room >= 0).then(|| room as usize / self.stride[dim] + 1)
    }

    /// Returns the extent of the dilated image.
    fn dilated(&self, dim: usize, image: usize) -> i64 {
        (image as i64 - 1) * self.image_dilation[dim] as i64 + 1
    }

    /// Returns the extent of the dilated kernel.
    fn reach(&self, dim: usize, kernel: usize) -> i64 {
        (kernel as i64 - 1) * self.kernel_dilation[dim] as i64 + 1
    }

    /// Returns the window of the convolution that computes the image's cotangent from the result's.
    fn to_image(self, image: [usize; 2], kernel: [usize; 2], output: [usize; 2]) -> Window {
        let padding = [0, 1].map(|d| {
            let low = self.reach(d, kernel[d]) - 1 - self.padding[d].0;
            let spread = (output[d] as i64 - 1) * self.stride[d] as i64 + 1;
            (low, self.dilated(d, image[d]) + self.reach(d, kernel[d]) - 1 - spread - low)
        });
        Window {
            stride: self.image_dilation,
            padding,
            image_dilation: self.stride,
            kernel_dilation: self.kernel_dilation,
        }
    }

    /// Returns the padding with which the weight gradient is a convolution of the image with the result's cotangent. Under it
    /// the cotangent, dilated by the stride, has as many positions over the image as the kernel has taps.
    ///
    /// `image`, `kernel` and `output` are sizes (rows, columns).
    pub fn weight_padding(
        &self,
        image: [usize; 2],
        kernel: [usize; 2],
        output: [usize; 2],
    ) -> [(i64, i64); 2] {
        [0, 1].map(|d| {
            let spread = (output[d] as i64 - 1) * self.stride[d] as i64 + 1;
            let low = self.padding[d].0;
            (low, self.reach(d, kernel[d]) - 1 + spread - self.dilated(d, image[d]) - low)
        })
    }
}

/// A convolution or its weight gradient.
#[derive(Clone, Debug, strum::IntoStaticStr, strum::VariantNames)]
pub enum Conv {
    /// A convolution. Operands: image (n, h, w, in); kernel (kh, kw, in, out). Result (n, h', w', out).
    #[strum(serialize = "conv")]
    Forward(Window),
    /// The gradient of a convolution's kernel. Operands: image (n, h, w, in); the result's cotangent (n, h', w', out). Result
    /// (kh, kw, in, out).
    #[strum(serialize = "conv_weight_grad")]
    WeightGrad {
        /// The window of the convolution.
        window: Window,
        /// The kernel's size (kh, kw).
        kernel: [usize; 2],
    },
}

impl From<Conv> for Op {
    fn from(op: Conv) -> Op {
        Op::Conv(op)
    }
}

/// Returns the two sizes from index `first`.
fn grid(dims: &[usize], first: usize) -> [usize; 2] {
    [dims[first], dims[first + 1]]
}

impl Conv {
    pub(in crate::engine::ir) fn name(&self) -> &'static str {
        self.into()
    }

    pub(in crate::engine::ir) fn attributes(&self) -> String {
        let (Conv::Forward(w) | Conv::WeightGrad { window: w, .. }) = self;
        let mut text = format!(" stride={:?} padding={:?}", w.stride, w.padding);
        if w.image_dilation != [1, 1] {
            text += &format!(" image_dilation={:?}", w.image_dilation);
        }
        if w.kernel_dilation != [1, 1] {
            text += &format!(" kernel_dilation={:?}", w.kernel_dilation);
        }
        text
    }

    pub(in crate::engine::ir) fn infer(&self, operands: &[Shape]) -> Result<Shape, String> {
        let (x, y) = (&operands[0], &operands[1]);
        if x.rank() != 4 || y.rank() != 4 || x.dtype != y.dtype || !x.dtype.is_float() {
            return Err("needs two four-dimensional arrays of floating-point numbers".into());
        }
        let outputs = |window: &Window, kernel: [usize; 2]| {
            let image = grid(&x.dims, 1);
            let size = |d: usize| window.output_size(d, image[d], kernel[d]).ok_or("the kernel does not fit");
            Ok::<_, String>([size(0)?, size(1)?])
        };
        match self {
            Conv::Forward(_) if x.dims[3] != y.dims[2] => {
                Err(format!("the kernel takes {} channels, the image has {}", y.dims[2], x.dims[3]))
            }
            Conv::Forward(window) => {
                let [h, w] = outputs(window, grid(&y.dims, 0))?;
                Ok(x.with_dims(&[x.dims[0], h, w, y.dims[3]]))
            }
            Conv::WeightGrad { window, kernel } => {
                let expected = outputs(window, *kernel)?;
                if expected != grid(&y.dims, 1) || x.dims[0] != y.dims[0] {
                    return Err(format!("a kernel of size {kernel:?} gives a result of size {expected:?}"));
                }
                Ok(x.with_dims(&[kernel[0], kernel[1], x.dims[3], y.dims[3]]))
            }
        }
    }

    pub(in crate::engine::ir) fn vjp<'g>(&self, at: &Vjp<'_, 'g>) -> Vec<Option<Sym<'g>>> {
        let (x, y, ct) = (at.operands[0], at.operands[1], at.ct());
        match self {
            Conv::Forward(window) => at.each([&|| image_grad(*window, x, y, ct), &|| {
                x.conv_weight_grad(ct, *window, grid(&y.dims(), 0))
            }]),
            Conv::WeightGrad { window, .. } => {
                at.each([&|| image_grad(*window, x, ct, y), &|| x.conv(ct, *window)])
            }
        }
    }
}

/// Computes the cotangent of a convolution's image from the cotangent `result` of its result.
fn image_grad<'g>(window: Window, image: Sym<'g>, kernel: Sym<'g>, result: Sym<'g>) -> Sym<'g> {
    let back = window.to_image(grid(&image.dims(), 1), grid(&kernel.dims(), 0), grid(&result.dims(), 1));
    result.conv(kernel.reverse(&[0, 1]).transpose(&[0, 1, 3, 2]), back)
}

impl<'g> Sym<'g> {
    /// Convolves an image (n, h, w, in) with a kernel (kh, kw, in, out); the result is (n, h', w', out).
    ///
    /// As in neural networks, this is a cross-correlation: the kernel is not flipped.
    #[track_caller]
    pub fn conv(self, kernel: Sym<'g>, window: Window) -> Sym<'g> {
        self.graph.push(Conv::Forward(window).into(), &[self, kernel])
    }

    /// Computes the gradient (kh, kw, in, out) of the kernel of [`Sym::conv`], where `self` is the image (n, h, w, in), `result`
    /// the cotangent (n, h', w', out) of the result, and `kernel` the size (kh, kw).
    #[track_caller]
    pub fn conv_weight_grad(self, result: Sym<'g>, window: Window, kernel: [usize; 2]) -> Sym<'g> {
        self.graph.push(Conv::WeightGrad { window, kernel }.into(), &[self, result])
    }
}
