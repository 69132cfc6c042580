//! The epilogue of matmuls and convolutions, a bias and an ELU, and the gradient of a bias. oneDNN computes both.

use anyhow::Result;
use xla::{ElementType, XlaOp};

use super::conv::Forward;
use super::{Lowered, Lowering, element_type, elementwise, i64s};
use crate::engine::ir::ops::conv::Conv;
use crate::engine::ir::ops::elementwise::Elementwise;
use crate::engine::ir::ops::layout::Layout;
use crate::engine::ir::ops::reduce::{Reduce, Reduction};
use crate::engine::ir::{Block, Node, Op, Value};
use crate::engine::program::Target;
use crate::engine::shape::{DType, Precision, Shape};

/// Number of rows from which a matmul sums them faster than XLA's own loop.
const MANY_ROWS: usize = 256;

/// The field of oneDNN's configurations that adds a bias and an ELU.
pub(super) const BIAS_ELU: &str = "\"fusions\":{\"ops\":[\"BIAS\",\"ELU\"]}";

/// What a matmul or a convolution does to its result before it writes it to memory.
#[derive(Clone, Copy)]
pub(super) enum Epilogue<'a> {
    /// Nothing.
    None,
    /// Adds a bias, which has one number for each index of the last dimension, and applies ELU.
    BiasElu(&'a XlaOp),
}

impl Lowering<'_> {
    /// Lowers an ELU node over a bias and a matmul or convolution to one call of oneDNN; `None` if the node is not one or the
    /// target has no oneDNN.
    pub(super) fn fused_bias_elu(
        &self,
        block: &Block,
        node: &Node,
        values: &[Vec<Lowered>],
    ) -> Result<Option<XlaOp>> {
        if self.target != Target::OneDnn || !matches!(node.op, Op::Elementwise(Elementwise::Elu)) {
            return Ok(None);
        }
        let lowered = |v: Value| &values[v.node][v.output].op;
        let channels = |v: Value| block.shape(v).dims.last().copied();
        let before_reshapes = |mut v: Value| {
            while let Node { op: Op::Layout(Layout::Reshape { .. }), operands, .. } = &block.nodes[v.node] {
                v = operands[0];
            }
            v
        };
        let sum = before_reshapes(node.operands[0]);
        let Node { op: Op::Elementwise(Elementwise::Add), operands: terms, .. } = &block.nodes[sum.node]
        else {
            return Ok(None);
        };
        let Node { op: Op::Layout(Layout::Broadcast { dims, axes }), operands: bias, .. } =
            &block.nodes[terms[1].node]
        else {
            return Ok(None);
        };
        let linear = before_reshapes(terms[0]);
        let per_channel = *axes == [dims.len() - 1] && channels(bias[0]) == channels(linear);
        let narrow = [bias[0], linear].iter().any(|v| block.shape(*v).dtype != DType::F32);
        if !per_channel || narrow || channels(linear) != node.shapes[0].dims.last().copied() {
            return Ok(None);
        }
        let epilogue = Epilogue::BiasElu(lowered(bias[0]));
        let Node { op, operands, shapes } = &block.nodes[linear.node];
        let y = match op {
            Op::Dot(op) if shapes[0].rank() == 2 => {
                self.dot(op, lowered(operands[0]), lowered(operands[1]), &shapes[0], epilogue)?
            }
            Op::Conv(Conv::Forward(window)) => self.cpu_conv(&Forward {
                window: *window,
                image: lowered(operands[0]),
                kernel: lowered(operands[1]),
                image_shape: block.shape(operands[0]),
                kernel_shape: block.shape(operands[1]),
                result: &shapes[0],
                epilogue,
            })?,
            _ => return Ok(None),
        };
        let y = y.convert(element_type(DType::F32).primitive_type())?;
        Ok(Some(y.reshape(&i64s(&node.shapes[0].dims))?))
    }

    /// Reports whether a reduction is computed as a matmul: a sum of many rows, as the gradient of a bias is.
    ///
    /// XLA's own loop reads the rows column by column. In bf16 it would also be the only one to read the cotangents in f32, where
    /// the matmuls and convolutions read them in bf16.
    pub(super) fn sums_by_matmul(&self, op: &Reduce, shape: &Shape) -> bool {
        self.target == Target::OneDnn
            && (shape.dtype, op.reduction) == (DType::F32, Reduction::Sum)
            && shape.rank() > 1
            && op.axes.iter().copied().eq(0..shape.rank() - 1)
            && shape.count() >= MANY_ROWS * shape.dims[shape.rank() - 1]
    }

    /// Sums over all dimensions but the last, as a matmul of a row of ones with the rows.
    pub(super) fn sum_by_matmul(&self, x: &XlaOp, shape: &Shape) -> Result<XlaOp> {
        let last = shape.dims[shape.rank() - 1];
        let rows = (shape.count() / last) as i64;
        let ones = self.builder.one(ElementType::F32)?.broadcast_in_dim(&[1, rows], &[])?;
        let x = x.reshape(&[rows, last as i64])?;
        let sum = self.matmul(&ones, &x, [1, 0], &shape.with_dims(&[1, last]), Epilogue::None)?;
        Ok(sum.reshape(&[last as i64])?)
    }

    /// Applies the epilogue to the result of an operation that cannot include it.
    pub(super) fn with_epilogue(&self, x: XlaOp, epilogue: Epilogue<'_>) -> Result<XlaOp> {
        let Epilogue::BiasElu(bias) = epilogue else { return Ok(x) };
        let dims = x.dims()?.iter().map(|d| *d as i64).collect::<Vec<_>>();
        let biased = x.add_(&bias.broadcast_in_dim(&dims, &[dims.len() as i64 - 1])?)?;
        Ok(elementwise(&Elementwise::Elu, &[&biased])?)
    }

    /// Returns the element type in which oneDNN writes a result.
    ///
    /// In a bf16 computation the result of an ELU is written in bf16, because the next matmul or convolution rounds it anyway.
    pub(super) fn result_type(&self, result: &Shape, epilogue: Epilogue<'_>) -> ElementType {
        match (epilogue, self.precision) {
            (Epilogue::BiasElu(_), Precision::Bf16) => ElementType::Bf16,
            _ => element_type(result.dtype),
        }
    }
}
