//! What stands around products and is computed with them: a bias and an ELU behind one, and the gradient of a bias.

use anyhow::Result;
use xla::{ElementType, XlaOp};

use super::product::Forward;
use super::{Lowering, element_type, elementwise, i64s};
use crate::engine::ir::ops::conv::Conv;
use crate::engine::ir::ops::elementwise::Elementwise;
use crate::engine::ir::ops::layout::Layout;
use crate::engine::ir::ops::reduce::{Reduce, Reduction};
use crate::engine::ir::{Block, Node, Op, Value};
use crate::engine::program::Target;
use crate::engine::shape::{DType, Precision, Shape};

/// Rows from which a sum over them is worth a call.
const MANY_ROWS: usize = 256;

/// The field of their configurations that asks for a bias and an ELU.
pub(super) const BIAS_ELU: &str = "\"fusions\":{\"ops\":[\"BIAS\",\"ELU\"]}";

/// What happens to a product's or a convolution's result before anything else sees it, which oneDNN does while it has it at
/// hand.
#[derive(Clone, Copy)]
pub(super) enum Then<'a> {
    Nothing,
    /// A bias, one number for each place of the last dimension, and ELU.
    BiasElu(&'a XlaOp),
}

impl Lowering<'_> {
    /// An ELU over a product or a convolution and its bias, as one call.
    pub(super) fn activated(
        &self,
        block: &Block,
        node: &Node,
        values: &[Vec<XlaOp>],
    ) -> Result<Option<XlaOp>> {
        if self.target != Target::OneDnn || !matches!(node.op, Op::Elementwise(Elementwise::Elu)) {
            return Ok(None);
        }
        let lowered = |v: Value| &values[v.node][v.output];
        let channels = |v: Value| block.shape(v).dims.last().copied();
        let unshaped = |mut v: Value| {
            while let Node { op: Op::Layout(Layout::Reshape { .. }), operands, .. } = &block.nodes[v.node] {
                v = operands[0];
            }
            v
        };
        let sum = unshaped(node.operands[0]);
        let Node { op: Op::Elementwise(Elementwise::Add), operands: terms, .. } = &block.nodes[sum.node]
        else {
            return Ok(None);
        };
        let Node { op: Op::Layout(Layout::Broadcast { dims, axes }), operands: bias, .. } =
            &block.nodes[terms[1].node]
        else {
            return Ok(None);
        };
        let product = unshaped(terms[0]);
        let of_channels = *axes == [dims.len() - 1] && channels(bias[0]) == channels(product);
        let narrow = [bias[0], product].iter().any(|v| block.shape(*v).dtype != DType::F32);
        if !of_channels || narrow || channels(product) != node.shapes[0].dims.last().copied() {
            return Ok(None);
        }
        let then = Then::BiasElu(lowered(bias[0]));
        let Node { op, operands, shapes } = &block.nodes[product.node];
        let y = match op {
            Op::Dot(op) if shapes[0].rank() == 2 => {
                self.dot(op, lowered(operands[0]), lowered(operands[1]), &shapes[0], then)?
            }
            Op::Conv(Conv::Forward(window)) => self.cpu_conv(&Forward {
                window: *window,
                image: lowered(operands[0]),
                kernel: lowered(operands[1]),
                image_shape: block.shape(operands[0]),
                kernel_shape: block.shape(operands[1]),
                result: &shapes[0],
                then,
            })?,
            _ => return Ok(None),
        };
        let y = y.convert(element_type(DType::F32).primitive_type())?;
        Ok(Some(y.reshape(&i64s(&node.shapes[0].dims))?))
    }

    /// Whether a sum is the gradient of a bias, over the same cotangents that products take: then it is a product too. The
    /// compiler's own loop reads them column by column, and in bf16 nobody else needs them in f32.
    pub(super) fn sums_as_product(&self, op: &Reduce, shape: &Shape) -> bool {
        self.target == Target::OneDnn
            && (shape.dtype, op.reduction) == (DType::F32, Reduction::Sum)
            && shape.rank() > 1
            && op.axes.iter().copied().eq(0..shape.rank() - 1)
            && shape.count() >= MANY_ROWS * shape.dims[shape.rank() - 1]
    }

    /// The sum over all dimensions but the last: a row of ones times the rows.
    pub(super) fn summed_over_rows(&self, x: &XlaOp, shape: &Shape) -> Result<XlaOp> {
        let last = shape.dims[shape.rank() - 1];
        let rows = (shape.count() / last) as i64;
        let ones = self.builder.one(ElementType::F32)?.broadcast_in_dim(&[1, rows], &[])?;
        let x = x.reshape(&[rows, last as i64])?;
        let sum = self.product(&ones, &x, [1, 0], &shape.with_dims(&[1, last]), Then::Nothing)?;
        Ok(sum.reshape(&[last as i64])?)
    }

    /// What is left to do to a result that is not oneDNN's.
    pub(super) fn finished(&self, x: XlaOp, then: Then<'_>) -> Result<XlaOp> {
        let Then::BiasElu(bias) = then else { return Ok(x) };
        let dims = x.dims()?.iter().map(|d| *d as i64).collect::<Vec<_>>();
        let biased = x.add_(&bias.broadcast_in_dim(&dims, &[dims.len() as i64 - 1])?)?;
        Ok(elementwise(&Elementwise::Elu, &[&biased])?)
    }

    /// The type of a result of oneDNN's. What goes through an ELU goes into products, and is rounded at once for these.
    pub(super) fn result_type(&self, result: &Shape, then: Then<'_>) -> ElementType {
        match (then, self.precision) {
            (Then::BiasElu(_), Precision::Bf16) => ElementType::Bf16,
            _ => element_type(result.dtype),
        }
    }
}
