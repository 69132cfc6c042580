//! Matmuls: as XLA's own operation, or as calls of the oneDNN inside XLA's CPU library.
//!
//! Operands and results are f32 arrays here. In a bf16 computation the operands are rounded in front of the operation. The
//! accumulation and the result stay f32.

use anyhow::Result;
use xla::{ElementType, XlaOp};

use super::epilogue::{BIAS_ELU, Epilogue};
use super::patch::DOT;
use super::{Lowering, dims, element_type, i64s};
use crate::engine::ir::ops::linalg::Dot;
use crate::engine::program::Target;
use crate::engine::shape::{DType, Precision, Shape};

/// The name under which XLA's CPU library calls oneDNN's matmul.
const ONE_DNN_MATMUL: &str = "__onednn$matmul";

impl Lowering<'_> {
    /// Converts an operand to the element type of the computation's matmuls and convolutions.
    pub(super) fn to_precision(&self, x: &XlaOp) -> Result<XlaOp> {
        match self.precision {
            Precision::F32 => Ok(x.clone()),
            Precision::Bf16 if x.ty()? == ElementType::U16.primitive_type() => {
                self.bitcast(x, ElementType::Bf16)
            }
            Precision::Bf16 => Ok(x.convert(ElementType::Bf16.primitive_type())?),
        }
    }

    /// Reports whether XLA's own operations take bf16 operands and return f32 results. The builder lacks this form, which
    /// therefore needs a placeholder.
    pub(super) fn has_bf16_operands(&self) -> bool {
        !self.target.is_cpu() && self.precision == Precision::Bf16
    }

    /// Reports whether a matmul of a bf16 computation writes its result in bf16.
    ///
    /// On GPUs it does if the result is about as large as the operands: then the bytes count. A small result of large operands,
    /// such as a weight gradient, is a long sum, which stays f32.
    fn narrows_result(&self, operands: &[XlaOp; 2], result: &Shape) -> Result<bool> {
        if !self.is_narrow() {
            return Ok(false);
        }
        let sizes =
            operands.iter().map(|x| Ok(x.dims()?.iter().product::<usize>())).collect::<Result<Vec<_>>>()?;
        Ok(2 * result.count() >= sizes.into_iter().max().unwrap_or_default())
    }

    /// Lowers a matmul over any dimensions.
    pub(super) fn dot(
        &self,
        op: &Dot,
        lhs: &XlaOp,
        rhs: &XlaOp,
        result: &Shape,
        epilogue: Epilogue<'_>,
    ) -> Result<XlaOp> {
        let batch: Vec<usize> = (0..op.lhs_batch.len()).collect();
        let matrices = [lhs, rhs].iter().all(|x| x.rank().is_ok_and(|rank| rank == batch.len() + 2));
        if matrices
            && op.lhs_contract.len() == 1
            && [&op.lhs_batch, &op.rhs_batch].iter().all(|b| **b == batch)
        {
            let contract = [op.lhs_contract[0], op.rhs_contract[0]].map(|d| d - batch.len());
            return self.matmul(lhs, rhs, contract, result, epilogue);
        }
        self.with_epilogue(self.dot_general(op, lhs, rhs, result)?, epilogue)
    }

    /// Multiplies matrices, or batches of them, and sums over dimension `contract[0]` of the left and `contract[1]` of the right
    /// matrix. All dimensions before the last two are batch dimensions.
    pub(super) fn matmul(
        &self,
        lhs: &XlaOp,
        rhs: &XlaOp,
        contract: [usize; 2],
        result: &Shape,
        epilogue: Epilogue<'_>,
    ) -> Result<XlaOp> {
        if self.target != Target::OneDnn {
            let batch: Vec<usize> = (0..result.dims.len() - 2).collect();
            let [lhs_contract, rhs_contract] = contract.map(|d| vec![batch.len() + d]);
            let dot = Dot { lhs_contract, rhs_contract, lhs_batch: batch.clone(), rhs_batch: batch };
            return self.dot_general(&dot, lhs, rhs, result);
        }
        let mut fields = Vec::new();
        if contract[0] == 0 {
            fields.push("\"transpose_a\":true");
        }
        if contract[1] == 1 {
            fields.push("\"transpose_b\":true");
        }
        let mut operands = vec![self.to_precision(lhs)?, self.to_precision(rhs)?];
        if let Epilogue::BiasElu(bias) = epilogue {
            // oneDNN's matmul takes the bias as a row of the result. Its convolution takes it as it is.
            operands.push(bias.reshape(&[&[1], i64s(&result.dims[1..]).as_slice()].concat())?);
            fields.push(BIAS_ELU);
        }
        let config = format!("{{\"onednn_matmul_config\":{{{}}}}}", fields.join(","));
        let ty = self.result_type(result, epilogue);
        Ok(self.builder.custom_call(ONE_DNN_MATMUL, &operands, ty, &dims(result), config.as_bytes())?)
    }

    /// Lowers a matmul to XLA's own operation.
    fn dot_general(&self, op: &Dot, lhs: &XlaOp, rhs: &XlaOp, result: &Shape) -> Result<XlaOp> {
        let Dot { lhs_contract, rhs_contract, lhs_batch, rhs_batch } = op;
        if !self.has_bf16_operands() {
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
        let operands = [self.to_precision(lhs)?, self.to_precision(rhs)?];
        if self.narrows_result(&operands, result)? {
            let [a, b, c, d] = [lhs_contract, rhs_contract, lhs_batch, rhs_batch].map(|v| i64s(v));
            let [lhs, rhs] = &operands;
            return self.converted(&lhs.dot_general(rhs, &a, &b, &c, &d)?, DType::Bf16, result.dtype);
        }
        let ty = element_type(result.dtype);
        self.placeholder(DOT, &operands, ty, &dims(result), &(fields + " }"))
    }
}
