//! Matrix products and convolutions as single operations: XLA's own, or calls of the oneDNN inside XLA's CPU library.
//!
//! Operands and results are f32 arrays here. Where the computation's products take bf16, operands are rounded in front of
//! the operation, whose result is f32 all the same.

use anyhow::Result;
use xla::{ElementType, XlaOp};

use super::around::{BIAS_ELU, Then};
use super::patch::{CONVOLUTION, CUSTOM_CALL, DOT};
use super::{Lowering, dims, element_type, i64s};
use crate::engine::ir::ops::conv::Window;
use crate::engine::ir::ops::linalg::Dot;
use crate::engine::program::{Target, WEIGHT_GRADIENT};
use crate::engine::shape::{Precision, Shape};

/// Which dimension of each array is what. Of image and result: batch, channels, rows, columns; of the kernel: channels in,
/// channels out, rows, columns.
pub(super) struct Roles {
    image: [i64; 4],
    kernel: [i64; 4],
    result: [i64; 4],
}

/// NHWC x HWIO → NHWC.
pub(super) const FORWARD: Roles = Roles { image: [0, 3, 1, 2], kernel: [2, 3, 0, 1], result: [0, 3, 1, 2] };

/// The weight gradient: channels take the place of the batch, and the cotangent that of the kernel.
const WEIGHT_GRAD: Roles = Roles { image: [3, 0, 1, 2], kernel: [0, 3, 1, 2], result: [2, 3, 0, 1] };

/// The products that oneDNN is asked for.
const MATMUL: &str = "__onednn$matmul";
const CONV: &str = "__onednn$convolution";

impl Lowering<'_> {
    /// The operand as the products of this computation take it.
    fn narrowed(&self, x: &XlaOp) -> Result<XlaOp> {
        match self.precision {
            Precision::F32 => Ok(x.clone()),
            Precision::Bf16 if x.ty()? == ElementType::U16.primitive_type() => {
                self.bitcast(x, ElementType::Bf16)
            }
            Precision::Bf16 => Ok(x.convert(ElementType::Bf16.primitive_type())?),
        }
    }

    /// Whether a product is made of rounded operands by XLA itself, which the builder cannot say.
    fn is_mixed(&self) -> bool {
        self.target == Target::Native && self.precision == Precision::Bf16
    }

    pub(super) fn dot(
        &self,
        op: &Dot,
        lhs: &XlaOp,
        rhs: &XlaOp,
        result: &Shape,
        then: Then<'_>,
    ) -> Result<XlaOp> {
        let batch: Vec<usize> = (0..op.lhs_batch.len()).collect();
        let matrices = [lhs, rhs].iter().all(|x| x.rank().is_ok_and(|rank| rank == batch.len() + 2));
        if matrices
            && op.lhs_contract.len() == 1
            && [&op.lhs_batch, &op.rhs_batch].iter().all(|b| **b == batch)
        {
            let contract = [op.lhs_contract[0], op.rhs_contract[0]].map(|d| d - batch.len());
            return self.product(lhs, rhs, contract, result, then);
        }
        self.finished(self.general_product(op, lhs, rhs, result)?, then)
    }

    /// The product of two matrices, over a dimension of each, or of as many as the dimensions before their last two say.
    pub(super) fn product(
        &self,
        lhs: &XlaOp,
        rhs: &XlaOp,
        contract: [usize; 2],
        result: &Shape,
        then: Then<'_>,
    ) -> Result<XlaOp> {
        if self.target != Target::OneDnn {
            let batch: Vec<usize> = (0..result.dims.len() - 2).collect();
            let [lhs_contract, rhs_contract] = contract.map(|d| vec![batch.len() + d]);
            let dot = Dot { lhs_contract, rhs_contract, lhs_batch: batch.clone(), rhs_batch: batch };
            return self.general_product(&dot, lhs, rhs, result);
        }
        let mut fields = Vec::new();
        if contract[0] == 0 {
            fields.push("\"transpose_a\":true");
        }
        if contract[1] == 1 {
            fields.push("\"transpose_b\":true");
        }
        let mut operands = vec![self.narrowed(lhs)?, self.narrowed(rhs)?];
        if let Then::BiasElu(bias) = then {
            // As a row of the result, where a convolution takes it as it is.
            operands.push(bias.reshape(&[&[1], i64s(&result.dims[1..]).as_slice()].concat())?);
            fields.push(BIAS_ELU);
        }
        let config = format!("{{\"onednn_matmul_config\":{{{}}}}}", fields.join(","));
        let ty = self.result_type(result, then);
        Ok(self.builder.custom_call(MATMUL, &operands, ty, &dims(result), config.as_bytes())?)
    }

    fn general_product(&self, op: &Dot, lhs: &XlaOp, rhs: &XlaOp, result: &Shape) -> Result<XlaOp> {
        let Dot { lhs_contract, rhs_contract, lhs_batch, rhs_batch } = op;
        if !self.is_mixed() {
            let [a, b, c, d] = [lhs_contract, rhs_contract, lhs_batch, rhs_batch].map(|v| i64s(v));
            return Ok(lhs.dot_general(rhs, &a, &b, &c, &d)?);
        }
        let mut fields = "dot_dimension_numbers {".to_string();
        for (name, numbers) in [
            ("lhs_contracting_dimensions", lhs_contract),
            ("rhs_contracting_dimensions", rhs_contract),
            ("lhs_batch_dimensions", lhs_batch),
            ("rhs_batch_dimensions", rhs_batch),
        ] {
            numbers.iter().for_each(|n| fields += &format!(" {name}: {n}"));
        }
        let operands = [self.narrowed(lhs)?, self.narrowed(rhs)?];
        let ty = element_type(result.dtype);
        self.own_call(DOT, &operands, ty, &dims(result), &(fields + " }"))
    }

    /// The weight gradient as one operation: a call of the runtime's own on CPUs with oneDNN, or a convolution of operands in
    /// their natural layout.
    pub(super) fn weight_grad(&self, of: &WeightGrad<'_>) -> Result<XlaOp> {
        let (turned, shape) = of.as_convolution();
        if self.target != Target::OneDnn || of.window.image_dilation != [1, 1] {
            return self.convolution(&turned, &WEIGHT_GRAD, of.image, of.result, &shape, Then::Nothing);
        }
        let (image, window) = self.uncut(&of.window, &FORWARD, of.image)?;
        let operands = [self.narrowed(&image)?, self.narrowed(of.result)?];
        let numbers = [window.stride, window.kernel_dilation].map(|v| v.map(|v| v as i64));
        let padding = [window.padding.map(|p| p.0), window.padding.map(|p| p.1)];
        let numbers = numbers.iter().chain(&padding).flatten().map(i64::to_string).collect::<Vec<_>>();
        let mut fields = format!(
            "custom_call_target: '{WEIGHT_GRADIENT}' custom_call_api_version: API_VERSION_TYPED_FFI \
             backend_config: '{{window = array<i64: {}>}}' constrain_layout: true",
            numbers.join(", ")
        );
        // The runtime takes arrays in their natural layout.
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
        self.own_call(CUSTOM_CALL, &operands, element_type(shape.dtype), &dims(&shape), &fields)
    }

    /// A convolution's image and window such that no padding is negative: oneDNN does not take it, and XLA's CPU compiler makes
    /// wrong numbers of it where the other side of the same dimension is padded.
    fn uncut(&self, of: &Window, roles: &Roles, image: &XlaOp) -> Result<(XlaOp, Window)> {
        let mut edges = [(0, 0, 0); 4];
        let mut window = *of;
        for d in 0..2 {
            let (low, high) = of.padding[d];
            edges[roles.image[2 + d] as usize] = (low.min(0), high.min(0), 0);
            window.padding[d] = (low.max(0), high.max(0));
        }
        // Of an image with zeros between its pixels, cutting is not taking pixels away.
        if edges == [(0, 0, 0); 4] || window.image_dilation != [1, 1] {
            return Ok((image.clone(), *of));
        }
        let image = self.rounded(image)?;
        Ok((image.pad(&self.builder.zero(image.ty()?.element_type()?)?, &edges)?, window))
    }

    /// A convolution as one operation.
    pub(super) fn convolution(
        &self,
        window: &Window,
        roles: &Roles,
        image: &XlaOp,
        kernel: &XlaOp,
        result: &Shape,
        then: Then<'_>,
    ) -> Result<XlaOp> {
        let (image, window) = self.uncut(window, roles, image)?;
        let one_dnn = self.target == Target::OneDnn && window.image_dilation == [1, 1];
        if !one_dnn && !self.is_mixed() {
            return self.finished(native(&window, roles, &image, kernel)?, then);
        }
        let mut operands = vec![self.narrowed(&image)?, self.narrowed(kernel)?];
        if !one_dnn {
            let fields = convolution_fields(&window, roles, kernel)?;
            return self.own_call(CONVOLUTION, &operands, element_type(result.dtype), &dims(result), &fields);
        }
        if let Then::BiasElu(bias) = then {
            operands.push(bias.clone());
        }
        let config = one_dnn_config(&window, roles, then);
        let ty = self.result_type(result, then);
        Ok(self.builder.custom_call(CONV, &operands, ty, &dims(result), config.as_bytes())?)
    }
}

/// A convolution, and what is done to its result.
#[derive(Clone, Copy)]
pub(super) struct Forward<'a> {
    pub window: Window,
    pub image: &'a XlaOp,
    pub kernel: &'a XlaOp,
    pub image_shape: &'a Shape,
    pub kernel_shape: &'a Shape,
    pub result: &'a Shape,
    pub then: Then<'a>,
}

/// A convolution's weight gradient: the window and the kernel's size of the convolution, its image, and the cotangent of its
/// result.
#[derive(Clone, Copy)]
pub(super) struct WeightGrad<'a> {
    pub window: Window,
    pub kernel: [usize; 2],
    pub image: &'a XlaOp,
    pub result: &'a XlaOp,
    pub image_shape: &'a Shape,
    pub result_shape: &'a Shape,
}

impl WeightGrad<'_> {
    /// The window and the shape of the result with which it is a convolution of the image with the cotangent.
    pub(super) fn as_convolution(&self) -> (Window, Shape) {
        let WeightGrad { window, kernel, image_shape: image, result_shape: result, .. } = self;
        let grid = |s: &Shape| [s.dims[1], s.dims[2]];
        let turned = Window {
            stride: window.kernel_dilation,
            padding: window.weight_padding(grid(image), *kernel, grid(result)),
            image_dilation: window.image_dilation,
            kernel_dilation: window.stride,
        };
        (turned, image.with_dims(&[kernel[0], kernel[1], image.dims[3], result.dims[3]]))
    }
}

/// As XLA's own operation over operands as they are.
fn native(window: &Window, roles: &Roles, image: &XlaOp, kernel: &XlaOp) -> xla::Result<XlaOp> {
    let Window { stride, padding, image_dilation, kernel_dilation } = window;
    let [stride, image_dilation, kernel_dilation] =
        [stride, image_dilation, kernel_dilation].map(|v| i64s(v));
    let Roles { image: i, kernel: k, result: r } = roles;
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

/// The fields of an HLO convolution, in the text form of protocol buffers.
fn convolution_fields(window: &Window, roles: &Roles, kernel: &XlaOp) -> xla::Result<String> {
    let sizes = kernel.dims()?;
    let mut fields = "window {".to_string();
    for d in 0..2 {
        let (low, high) = window.padding[d];
        fields += &format!(
            " dimensions {{ size: {} stride: {} padding_low: {low} padding_high: {high} window_dilation: {} base_dilation: {} }}",
            sizes[roles.kernel[2 + d] as usize],
            window.stride[d],
            window.kernel_dilation[d],
            window.image_dilation[d],
        );
    }
    fields += " } convolution_dimension_numbers {";
    for (array, names, roles) in [
        ("input", ["batch", "feature"], &roles.image),
        ("kernel", ["input_feature", "output_feature"], &roles.kernel),
        ("output", ["batch", "feature"], &roles.result),
    ] {
        for (name, dim) in names.iter().zip(roles) {
            fields += &format!(" {array}_{name}_dimension: {dim}");
        }
        roles[2..].iter().for_each(|dim| fields += &format!(" {array}_spatial_dimensions: {dim}"));
    }
    Ok(fields + " } feature_group_count: 1 batch_group_count: 1")
}

/// The backend configuration of a call of oneDNN's convolution: `OneDnnConvolutionConfig` in XLA's onednn_config.proto.
fn one_dnn_config(window: &Window, roles: &Roles, then: Then<'_>) -> String {
    let Roles { image, kernel, result } = roles;
    let pair = |[a, b]: [i64; 2]| format!("[\"{a}\",\"{b}\"]");
    let data = |r: &[i64; 4]| {
        let places = pair([r[2], r[3]]);
        format!(
            "{{\"data\":{{\"batch_dim\":\"{}\",\"feature_dim\":\"{}\",\"spatial_dims\":{places}}}}}",
            r[0], r[1]
        )
    };
    let filter = format!(
        "{{\"filter\":{{\"input_feature_dim\":\"{}\",\"output_feature_dim\":\"{}\",\"spatial_dims\":{}}}}}",
        kernel[0],
        kernel[1],
        pair([kernel[2], kernel[3]])
    );
    let moves = format!(
        "{{\"pad_left\":{},\"pad_right\":{},\"strides\":{},\"window_dilations\":{}}}",
        pair(window.padding.map(|p| p.0)),
        pair(window.padding.map(|p| p.1)),
        pair(window.stride.map(|s| s as i64)),
        pair(window.kernel_dilation.map(|s| s as i64)),
    );
    format!(
        "{{\"onednn_conv_config\":{{\"dims\":\"4\",\"input\":{},\"kernel\":{filter},\"output\":{},\"window\":{moves},\
         \"feature_groups\":\"1\"{}}}}}",
        data(image),
        data(result),
        if matches!(then, Then::BiasElu(_)) { format!(",{BIAS_ELU}") } else { String::new() }
    )
}
