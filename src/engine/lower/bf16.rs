//! bf16 arrays on CPUs, stored as 16-bit integers; and what is bf16 on GPUs besides the operands of matmuls.
//!
//! XLA's CPU compiler does not support bf16. It converts whole arrays to f32 and back around every operation. A loop that writes
//! one row of a bf16 stack in each trip would thus take time quadratic in the number of trips. Integers are not converted.
//! Therefore operations that move elements take the integers, and operations that compute take and return f32.

use anyhow::Result;
use xla::{ElementType, XlaOp};

use super::patch::BITCAST;
use super::{Lowering, element_type, elementwise};
use crate::engine::ir::Op;
use crate::engine::ir::ops::collective::Collective;
use crate::engine::ir::ops::elementwise::Elementwise as E;
use crate::engine::ir::ops::index::Index;
use crate::engine::program::Target;
use crate::engine::shape::{DType, Precision, Shape};

impl Lowering<'_> {
    /// Returns the element type that arrays of type `dtype` have in this module.
    pub(super) fn element_type(&self, dtype: DType) -> ElementType {
        match (self.target, dtype) {
            (Target::Cpu | Target::OneDnn, DType::Bf16) => ElementType::U16,
            _ => element_type(dtype),
        }
    }

    /// Reinterprets the bits as another type of the same size.
    pub(super) fn bitcast(&self, x: &XlaOp, ty: ElementType) -> Result<XlaOp> {
        if x.ty()? == ty.primitive_type() {
            return Ok(x.clone());
        }
        let dims: Vec<i64> = x.dims()?.iter().map(|d| *d as i64).collect();
        self.placeholder(BITCAST, std::slice::from_ref(x), ty, &dims, "")
    }

    /// Converts an array to another element type.
    pub(super) fn converted(&self, x: &XlaOp, from: DType, to: DType) -> Result<XlaOp> {
        let x = if from == DType::Bf16 { self.bitcast(x, ElementType::Bf16)? } else { x.clone() };
        let converted = x.convert(element_type(to).primitive_type())?;
        self.bitcast(&converted, self.element_type(to))
    }

    /// Rounds an f32 array to the computation's precision, before its elements are moved or copied for a matmul.
    pub(super) fn rounded(&self, x: &XlaOp) -> Result<XlaOp> {
        match (self.target, self.precision) {
            (Target::OneDnn, Precision::Bf16) if x.ty()? == ElementType::F32.primitive_type() => {
                self.converted(x, DType::F32, DType::Bf16)
            }
            _ => Ok(x.clone()),
        }
    }

    /// Reports whether results are bf16 too where they are large: in bf16 computations on GPUs, whose time is that of the bytes.
    ///
    /// These are the results of convolutions and most matmuls, and the values that a loop keeps for its gradient. Elementwise
    /// operations compute in f32, and the compiler fuses the conversions into them.
    pub(super) fn is_narrow(&self) -> bool {
        (self.target, self.precision) == (Target::Gpu, Precision::Bf16)
    }

    /// Rounds an array to bf16.
    pub(super) fn narrowed(&self, x: &XlaOp) -> Result<XlaOp> {
        let narrow = x.convert(ElementType::Bf16.primitive_type())?;
        Ok(narrow.convert(x.ty()?)?)
    }

    /// Lowers an operation on corresponding elements of a computation that [`Lowering::is_narrow`].
    pub(super) fn narrow_elementwise(&self, op: &E, x: &[&XlaOp]) -> Result<XlaOp> {
        match op {
            E::Keep if x[0].ty()? == ElementType::F32.primitive_type() => self.narrowed(x[0]),
            // exp(x) − 1 has an absolute error of 6e-8 near 0. That is less than the rounding of results of usual size, and it
            // is twice as fast as expm1.
            E::Elu => {
                let zero = x[0].zeros_like()?;
                let negative = x[0]
                    .min(&zero)?
                    .exp()?
                    .sub_(&self.builder.one(ElementType::F32)?.convert(x[0].ty()?)?)?;
                Ok(x[0].gt(&zero)?.select(x[0], &negative)?)
            }
            _ => Ok(elementwise(op, x)?),
        }
    }

    /// Reports whether bf16 operands of an operation must be converted to f32, and its f32 result back.
    pub(super) fn needs_f32(&self, op: &Op, operands: &[&Shape]) -> bool {
        let narrow = operands.iter().any(|shape| shape.dtype == DType::Bf16);
        narrow && self.target.is_cpu() && changes_values(op)
    }
}

/// Reports whether an operation computes new values. Other operations only move elements.
fn changes_values(op: &Op) -> bool {
    match op {
        Op::Elementwise(E::Convert(_) | E::Detach | E::Keep | E::Recall | E::Select) => false,
        Op::Index(Index::AddRows | Index::Sort) => true,
        Op::Collective(Collective::AllGather { .. } | Collective::AllToAll { .. }) => false,
        Op::Source(_) | Op::Layout(_) | Op::Index(_) | Op::Repeat(_) => false,
        Op::Elementwise(_) | Op::Reduce(_) | Op::Dot(_) | Op::Conv(_) | Op::Collective(_) => true,
    }
}
