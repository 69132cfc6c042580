//! Convolutions and their weight gradients: as XLA's own operation, or as calls of oneDNN.
//!
//! Operands and results are f32 arrays here. In a bf16 computation the operands are rounded in front of the operation. The
//! accumulation and the result stay f32.

use anyhow::Result;
use xla::XlaOp;

use super::epilogue::{BIAS_ELU, Epilogue};
use super::patch::{CONVOLUTION, CUSTOM_CALL};
use super::{Lowering, dims, element_type, i64s};
use crate::engine::ir::ops::conv::Window;
use crate::engine::program::{Target, WEIGHT_GRADIENT};
use crate::engine::shape::{DType, Shape};

/// The dimension numbers of a convolution, as in XLA: for image and result those of batch, channels, rows and columns; for the
/// kernel those of input channels, output channels, rows and columns.
pub(super) struct DimensionNumbers {
    image: [i64; 4],
    kernel: [i64; 4],
    result: [i64; 4],
}

/// NHWC x HWIO → NHWC.
pub(super) const FORWARD: DimensionNumbers =
    DimensionNumbers { image: [0, 3, 1, 2], kernel: [2, 3, 0, 1], result: [0, 3, 1, 2] };

/// The weight gradient: the image's channels act as the batch, and the cotangent acts as the kernel.
const WEIGHT_GRAD: DimensionNumbers =
    DimensionNumbers { image: [3, 0, 1, 2], kernel: [0, 3, 1, 2], result: [2, 3, 0, 1] };

/// The name under which XLA's CPU library calls oneDNN's convolution.
const ONE_DNN_CONVOLUTION: &str = "__onednn$convolution";

impl Lowering<'_> {
    /// Lowers a weight gradient to one operation: for [`Target::OneDnn`] a custom call that the runtime provides, otherwise a
    /// convolution.
    pub(super) fn weight_grad(&self, grad: &WeightGrad<'_>) -> Result<XlaOp> {
        let (swapped, shape) = grad.as_convolution();
        if self.target != Target::OneDnn || grad.window.image_dilation != [1, 1] {
            return self.convolution(&swapped, &WEIGHT_GRAD, grad.image, grad.result, &shape, Epilogue::None);
        }
        let (image, window) = self.without_negative_padding(&grad.window, &FORWARD, grad.image)?;
        let operands = [self.to_precision(&image)?, self.to_precision(grad.result)?];
        let numbers = [window.stride, window.kernel_dilation].map(|v| v.map(|v| v as i64));
        let padding = [window.padding.map(|p| p.0), window.padding.map(|p| p.1)];
        let numbers = numbers.iter().chain(&padding).flatten().map(i64::to_string).collect::<Vec<_>>();
        let mut fields = format!(
            "custom_call_target: '{WEIGHT_GRADIENT}' custom_call_api_version: API_VERSION_TYPED_FFI \
             backend_config: '{{window = array<i64: {}>}}' constrain_layout: true",
            numbers.join(", ")
        );
        // The runtime's function expects row-major arrays.
        for operand in &operands {
            let shape = operand.array_shape()?;
            let ty = format!("{:?}", shape.primitive_type()).to_uppercase();
            fields += &format!(" operand_shapes_with_layout {{ element_type: {ty}");
            shape
                .dims()
                .iter()
                .for_each(|d| fields += &format!(" dimensions: {d} is_dynamic_dimension: false"));
            fields += " layout { minor_to_major: 3 minor_to_major: 2 minor_to_major: 1 minor_to_major: 0 } }";
        }
        self.placeholder(CUSTOM_CALL, &operands, element_type(shape.dtype), &dims(&shape), &fields)
    }

    /// Removes the pixels that negative padding would remove, and returns the image and the window with the rest of the padding.
    ///
    /// oneDNN refuses negative padding. XLA's CPU compiler computes wrong numbers for it if the other side of the dimension has
    /// positive padding.
    fn without_negative_padding(
        &self,
        given: &Window,
        numbers: &DimensionNumbers,
        image: &XlaOp,
    ) -> Result<(XlaOp, Window)> {
        let mut removed = [(0, 0, 0); 4];
        let mut window = *given;
        for d in 0..2 {
            let (low, high) = given.padding[d];
            removed[numbers.image[2 + d] as usize] = (low.min(0), high.min(0), 0);
            window.padding[d] = (low.max(0), high.max(0));
        }
        // In a dilated image, padding of -1 may remove a zero between pixels and not a pixel.
        if removed == [(0, 0, 0); 4] || window.image_dilation != [1, 1] {
            return Ok((image.clone(), *given));
        }
        let image = self.rounded(image)?;
        Ok((image.pad(&self.builder.zero(image.ty()?.element_type()?)?, &removed)?, window))
    }

    /// Lowers a convolution to one operation.
    pub(super) fn convolution(
        &self,
        window: &Window,
        numbers: &DimensionNumbers,
        image: &XlaOp,
        kernel: &XlaOp,
        result: &Shape,
        epilogue: Epilogue<'_>,
    ) -> Result<XlaOp> {
        let (image, window) = self.without_negative_padding(window, numbers, image)?;
        let one_dnn = self.target == Target::OneDnn && window.image_dilation == [1, 1];
        if !one_dnn && !self.has_bf16_operands() {
            return self.with_epilogue(native(&window, numbers, &image, kernel)?, epilogue);
        }
        let mut operands = vec![self.to_precision(&image)?, self.to_precision(kernel)?];
        if self.is_narrow() {
            // cuDNN has no convolution of bf16 operands with an f32 result. XLA would convert the operands back to f32.
            let y = native(&window, numbers, &operands[0], &operands[1])?;
            return self.with_epilogue(self.converted(&y, DType::Bf16, result.dtype)?, epilogue);
        }
        if !one_dnn {
            let fields = convolution_fields(&window, numbers, kernel)?;
            return self.placeholder(
                CONVOLUTION,
                &operands,
                element_type(result.dtype),
                &dims(result),
                &fields,
            );
        }
        if let Epilogue::BiasElu(bias) = epilogue {
            operands.push(bias.clone());
        }
        let config = one_dnn_config(&window, numbers, epilogue);
        let ty = self.result_type(result, epilogue);
        Ok(self.builder.custom_call(ONE_DNN_CONVOLUTION, &operands, ty, &dims(result), config.as_bytes())?)
    }
}

/// A convolution with its epilogue.
#[derive(Clone, Copy)]
pub(super) struct Forward<'a> {
    pub window: Window,
    pub image: &'a XlaOp,
    pub kernel: &'a XlaOp,
    pub image_shape: &'a Shape,
    pub kernel_shape: &'a Shape,
    pub result: &'a Shape,
    pub epilogue: Epilogue<'a>,
}

/// A convolution's weight gradient.
#[derive(Clone, Copy)]
pub(super) struct WeightGrad<'a> {
    /// The window of the convolution.
    pub window: Window,
    /// The kernel's size (kh, kw).
    pub kernel: [usize; 2],
    pub image: &'a XlaOp,
    /// The cotangent of the convolution's result.
    pub result: &'a XlaOp,
    pub image_shape: &'a Shape,
    pub result_shape: &'a Shape,
}

impl WeightGrad<'_> {
    /// Returns the window and the result's shape with which the weight gradient is a convolution of the image with the cotangent.
    pub(super) fn as_convolution(&self) -> (Window, Shape) {
        let WeightGrad { window, kernel, image_shape: image, result_shape: result, .. } = self;
        let grid = |s: &Shape| [s.dims[1], s.dims[2]];
        let swapped = Window {
            stride: window.kernel_dilation,
            padding: window.weight_padding(grid(image), *kernel, grid(result)),
            image_dilation: window.image_dilation,
            kernel_dilation: window.stride,
        };
        (swapped, image.with_dims(&[kernel[0], kernel[1], image.dims[3], result.dims[3]]))
    }
}

/// Adds XLA's own convolution, without conversions.
fn native(window: &Window, numbers: &DimensionNumbers, image: &XlaOp, kernel: &XlaOp) -> xla::Result<XlaOp> {
    let Window { stride, padding, image_dilation, kernel_dilation } = window;
    let [stride, image_dilation, kernel_dilation] =
        [stride, image_dilation, kernel_dilation].map(|v| i64s(v));
    let DimensionNumbers { image: i, kernel: k, result: r } = numbers;
    image.conv_general_dilated(
        kernel,
        &stride,
        padding,
        &image_dilation,
        &kernel_dilation,
        i[0],
        i[1],
        &i[2..],
        r[0],
        r[1],
        &r[2..],
        k[0],
        k[1],
        &k[2..],
        1,
        1,
        false,
    )
}

/// Writes the fields of an HLO convolution in the text format of protocol buffers.
fn convolution_fields(window: &Window, numbers: &DimensionNumbers, kernel: &XlaOp) -> xla::Result<String> {
    let sizes = kernel.dims()?;
    let mut fields = "window {".to_string();
    for d in 0..2 {
        let (low, high) = window.padding[d];
        fields += &format!(
            " dimensions {{ size: {} stride: {} padding_low: {low} padding_high: {high} window_dilation: {} base_dilation: {} }}",
            sizes[numbers.kernel[2 + d] as usize],
            window.stride[d],
            window.kernel_dilation[d],
            window.image_dilation[d],
        );
    }
    fields += " } convolution_dimension_numbers {";
    for (array, names, numbers) in [
        ("input", ["batch", "feature"], &numbers.image),
        ("kernel", ["input_feature", "output_feature"], &numbers.kernel),
        ("output", ["batch", "feature"], &numbers.result),
    ] {
        for (name, dim) in names.iter().zip(numbers) {
            fields += &format!(" {array}_{name}_dimension: {dim}");
        }
        numbers[2..].iter().for_each(|dim| fields += &format!(" {array}_spatial_dimensions: {dim}"));
    }
    Ok(fields + " } feature_group_count: 1 batch_group_count: 1")
}

/// Writes the backend configuration of a call of oneDNN's convolution: `OneDnnConvolutionConfig` in XLA's `onednn_config.proto`.
fn one_dnn_config(window: &Window, numbers: &DimensionNumbers, epilogue: Epilogue<'_>) -> String {
    let DimensionNumbers { image, kernel, result } = numbers;
    let pair = |[a, b]: [i64; 2]| format!("[\"{a}\",\"{b}\"]");
    let data = |r: &[i64; 4]| {
        let spatial = pair([r[2], r[3]]);
        format!(
            "{{\"data\":{{\"batch_dim\":\"{}\",\"feature_dim\":\"{}\",\"spatial_dims\":{spatial}}}}}",
            r[0], r[1]
        )
    };
    let filter = format!(
        "{{\"filter\":{{\"input_feature_dim\":\"{}\",\"output_feature_dim\":\"{}\",\"spatial_dims\":{}}}}}",
        kernel[0],
        kernel[1],
        pair([kernel[2], kernel[3]])
    );
    let window_config = format!(
        "{{\"pad_left\":{},\"pad_right\":{},\"strides\":{},\"window_dilations\":{}}}",
        pair(window.padding.map(|p| p.0)),
        pair(window.padding.map(|p| p.1)),
        pair(window.stride.map(|s| s as i64)),
        pair(window.kernel_dilation.map(|s| s as i64)),
    );
    format!(
        "{{\"onednn_conv_config\":{{\"dims\":\"4\",\"input\":{},\"kernel\":{filter},\"output\":{},\"window\":{window_config},\
         \"feature_groups\":\"1\"{}}}}}",
        data(image),
        data(result),
        if matches!(epilogue, Epilogue::BiasElu(_)) { format!(",{BIAS_ELU}") } else { String::new() }
    )
}
