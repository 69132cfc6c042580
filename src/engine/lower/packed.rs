//! bf16 arrays on CPUs: their bits as 16-bit integers.
//!
//! XLA's CPU compiler has no bf16 of its own and converts the arrays around every operation to f32 and back, whole: a loop
//! that writes a row of a stack in each trip takes time in the square of its trips. Integers it leaves alone. So arrays of
//! bf16 that are only moved are integers, and what computes with them takes f32 and gives it.

use anyhow::Result;
use xla::{ElementType, XlaOp};

use super::patch::BITCAST;
use super::{Lowering, element_type};
use crate::engine::ir::Op;
use crate::engine::ir::ops::collective::Collective;
use crate::engine::ir::ops::elementwise::Elementwise as E;
use crate::engine::ir::ops::index::Index;
use crate::engine::program::Target;
use crate::engine::shape::{DType, Precision, Shape};

impl Lowering<'_> {
    /// The type of an array in this module.
    pub(super) fn element_type(&self, dtype: DType) -> ElementType {
        match (self.target, dtype) {
            (Target::Cpu | Target::OneDnn, DType::Bf16) => ElementType::U16,
            _ => element_type(dtype),
        }
    }

    /// The same bits as another type of that size.
    pub(super) fn bitcast(&self, x: &XlaOp, ty: ElementType) -> Result<XlaOp> {
        if x.ty()? == ty.primitive_type() {
            return Ok(x.clone());
        }
        let dims: Vec<i64> = x.dims()?.iter().map(|d| *d as i64).collect();
        self.own_call(BITCAST, std::slice::from_ref(x), ty, &dims, "")
    }

    /// An array converted to another type.
    pub(super) fn converted(&self, x: &XlaOp, from: DType, to: DType) -> Result<XlaOp> {
        let x = if from == DType::Bf16 { self.bitcast(x, ElementType::Bf16)? } else { x.clone() };
        let converted = x.convert(element_type(to).primitive_type())?;
        self.bitcast(&converted, self.element_type(to))
    }

    /// An f32 array as the products of this computation take it, to be moved about before them.
    pub(super) fn rounded(&self, x: &XlaOp) -> Result<XlaOp> {
        match (self.target, self.precision) {
            (Target::OneDnn, Precision::Bf16) if x.ty()? == ElementType::F32.primitive_type() => {
                self.converted(x, DType::F32, DType::Bf16)
            }
            _ => Ok(x.clone()),
        }
    }

    /// Whether an operation must be given f32 in the place of bf16, and computes f32.
    pub(super) fn widens(&self, op: &Op, operands: &[&Shape]) -> bool {
        let narrow = operands.iter().any(|shape| shape.dtype == DType::Bf16);
        narrow && self.target != Target::Native && computes(op)
    }
}

/// Whether an operation does more than move its operands' elements.
fn computes(op: &Op) -> bool {
    match op {
        Op::Elementwise(E::Convert(_) | E::Detach | E::Keep | E::Recall | E::Select) => false,
        Op::Index(Index::AddRows | Index::Sort) => true,
        Op::Collective(Collective::AllGather { .. } | Collective::AllToAll { .. }) => false,
        Op::Source(_) | Op::Layout(_) | Op::Index(_) | Op::Repeat(_) => false,
        Op::Elementwise(_) | Op::Reduce(_) | Op::Dot(_) | Op::Conv(_) | Op::Collective(_) => true,
    }
}
