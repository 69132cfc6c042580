//! Reductions over dimensions, which disappear.

use crate::engine::ir::graph::Sym;
use crate::engine::ir::op::{Op, Vjp};
use crate::engine::shape::Shape;

#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantNames)]
pub enum Reduction {
    #[strum(serialize = "reduce_sum")]
    Sum,
    #[strum(serialize = "reduce_max")]
    Max,
}

#[derive(Clone, Debug)]
pub struct Reduce {
    pub reduction: Reduction,
    pub axes: Vec<usize>,
}

impl From<Reduce> for Op {
    fn from(op: Reduce) -> Op {
        Op::Reduce(op)
    }
}

impl Reduce {
    pub fn name(&self) -> &'static str {
        self.reduction.into()
    }

    pub fn attributes(&self) -> String {
        format!(" axes={:?}", self.axes)
    }

    pub fn infer(&self, operands: &[Shape]) -> Result<Shape, String> {
        let x = &operands[0];
        if !self.axes.windows(2).all(|w| w[0] < w[1]) || self.axes.iter().any(|a| *a >= x.rank()) {
            return Err(format!("dimensions {:?} are not rising or not there", self.axes));
        }
        Ok(x.with_dims(&self.kept(x.rank()).iter().map(|&a| x.dims[a]).collect::<Vec<_>>()))
    }

    fn kept(&self, rank: usize) -> Vec<usize> {
        (0..rank).filter(|a| !self.axes.contains(a)).collect()
    }

    pub fn vjp<'g>(&self, at: &Vjp<'_, 'g>) -> Vec<Option<Sym<'g>>> {
        let x = at.operands[0];
        let dims = x.dims();
        let kept = self.kept(dims.len());
        let spread = |y: Sym<'g>| y.broadcast_in_dim(&dims, &kept);
        match self.reduction {
            Reduction::Sum => at.each([&|| spread(at.ct())]),
            // Equal maxima share the cotangent.
            Reduction::Max => at.each([&|| {
                let at_max = x.eq(spread(at.out())).convert(x.dtype());
                spread(at.ct() / at_max.sum(&self.axes)) * at_max
            }]),
        }
    }
}

impl<'g> Sym<'g> {
    #[track_caller]
    fn reduce(self, reduction: Reduction, axes: &[usize]) -> Sym<'g> {
        if axes.is_empty() {
            return self;
        }
        self.graph.push(Reduce { reduction, axes: axes.to_vec() }.into(), &[self])
    }

    #[track_caller]
    pub fn sum(self, axes: &[usize]) -> Sym<'g> {
        self.reduce(Reduction::Sum, axes)
    }

    /// Maximum over the dimensions; equal maxima share the gradient.
    #[track_caller]
    pub fn reduce_max(self, axes: &[usize]) -> Sym<'g> {
        self.reduce(Reduction::Max, axes)
    }

    #[track_caller]
    pub fn mean(self, axes: &[usize]) -> Sym<'g> {
        let dims = self.dims();
        let count: usize = axes.iter().filter_map(|&a| dims.get(a)).product();
        self.sum(axes) * (1.0 / count as f64)
    }

    /// Sum over all dimensions.
    #[track_caller]
    pub fn sum_all(self) -> Sym<'g> {
        self.sum(&(0..self.rank()).collect::<Vec<_>>())
    }

    /// log Σ exp over one dimension, safe for large values and for −∞.
    #[track_caller]
    pub fn logsumexp(self, axis: usize) -> Sym<'g> {
        let highest = self.reduce_max(&[axis]).detach();
        let safe = highest.is_finite().mask(highest);
        let mut kept = self.dims();
        if axis < kept.len() {
            kept[axis] = 1;
        }
        (self - safe.reshape(&kept)).exp().sum(&[axis]).log() + safe
    }
}
