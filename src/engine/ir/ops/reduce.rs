//! Reductions, which remove the reduced dimensions.

use crate::engine::ir::graph::Sym;
use crate::engine::ir::op::{Op, Vjp};
use crate::engine::shape::Shape;

/// How a reduction combines elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantNames)]
pub enum Reduction {
    /// Their sum.
    #[strum(serialize = "reduce_sum")]
    Sum,
    /// Their maximum.
    #[strum(serialize = "reduce_max")]
    Max,
}

/// A reduction over some dimensions.
#[derive(Clone, Debug)]
pub struct Reduce {
    /// How elements are combined.
    pub reduction: Reduction,
    /// The dimensions to remove, in rising order.
    pub axes: Vec<usize>,
}

impl From<Reduce> for Op {
    fn from(op: Reduce) -> Op {
        Op::Reduce(op)
    }
}

impl Reduce {
    pub(in crate::engine::ir) fn name(&self) -> &'static str {
        self.reduction.into()
    }

    pub(in crate::engine::ir) fn attributes(&self) -> String {
        format!(" axes={:?}", self.axes)
    }

    pub(in crate::engine::ir) fn infer(&self, operands: &[Shape]) -> Result<Shape, String> {
        let x = &operands[0];
        if !self.axes.windows(2).all(|w| w[0] < w[1]) || self.axes.iter().any(|a| *a >= x.rank()) {
            return Err(format!("dimensions {:?} do not exist or are not in rising order", self.axes));
        }
        Ok(x.with_dims(&self.kept(x.rank()).iter().map(|&a| x.dims[a]).collect::<Vec<_>>()))
    }

    /// Returns the dimensions that are not reduced.
    fn kept(&self, rank: usize) -> Vec<usize> {
        (0..rank).filter(|a| !self.axes.contains(a)).collect()
    }

    pub(in crate::engine::ir) fn vjp<'g>(&self, at: &Vjp<'_, 'g>) -> Vec<Option<Sym<'g>>> {
        let x = at.operands[0];
        let dims = x.dims();
        let kept = self.kept(dims.len());
        let spread = |y: Sym<'g>| y.broadcast_in_dim(&dims, &kept);
        match self.reduction {
            Reduction::Sum => at.each([&|| spread(at.ct())]),
            // Equal maxima share the cotangent equally.
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

    /// Returns the sum over the dimensions `axes`, which are removed. `axes` are in rising order.
    #[track_caller]
    pub fn sum(self, axes: &[usize]) -> Sym<'g> {
        self.reduce(Reduction::Sum, axes)
    }

    /// Returns the maximum over the dimensions `axes`, which are removed. Equal maxima share the gradient equally.
    #[track_caller]
    pub fn reduce_max(self, axes: &[usize]) -> Sym<'g> {
        self.reduce(Reduction::Max, axes)
    }

    /// Returns the mean over the dimensions `axes`, which are removed.
    #[track_caller]
    pub fn mean(self, axes: &[usize]) -> Sym<'g> {
        let dims = self.dims();
        let count: usize = axes.iter().filter_map(|&a| dims.get(a)).product();
        self.sum(axes) * (1.0 / count as f64)
    }

    /// Returns the sum of all elements, a scalar.
    #[track_caller]
    pub fn sum_all(self) -> Sym<'g> {
        self.sum(&(0..self.rank()).collect::<Vec<_>>())
    }

    /// Returns log Σ exp(x) over the dimension `axis`, which is removed. Large values do not overflow, and −∞ is allowed.
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
