//! Matmuls over any dimensions.

use crate::engine::ir::graph::Sym;
use crate::engine::ir::op::{Op, Vjp};
use crate::engine::shape::Shape;

/// A batched matmul: the sum of products over the contracted dimensions, as XLA's `DotGeneral`.
///
/// The dimensions of the result are the batch dimensions, then the remaining ones of the left operand, then those of the right
/// one.
#[derive(Clone, Debug, Default)]
pub struct Dot {
    /// Dimensions of the left operand to sum over.
    pub lhs_contract: Vec<usize>,
    /// Their partners in the right operand.
    pub rhs_contract: Vec<usize>,
    /// Batch dimensions of the left operand.
    pub lhs_batch: Vec<usize>,
    /// Their partners in the right operand.
    pub rhs_batch: Vec<usize>,
}

impl From<Dot> for Op {
    fn from(op: Dot) -> Op {
        Op::Dot(op)
    }
}

/// Returns the dimensions that are neither batch nor contracted.
fn rest(rank: usize, batch: &[usize], contract: &[usize]) -> Vec<usize> {
    (0..rank).filter(|a| !batch.contains(a) && !contract.contains(a)).collect()
}

impl Dot {
    pub(in crate::engine::ir) fn attributes(&self) -> String {
        let Dot { lhs_contract, rhs_contract, lhs_batch, rhs_batch } = self;
        let batch = match lhs_batch.is_empty() {
            true => String::new(),
            false => format!(" batch={lhs_batch:?}x{rhs_batch:?}"),
        };
        format!(" contract={lhs_contract:?}x{rhs_contract:?}{batch}")
    }

    pub(in crate::engine::ir) fn infer(&self, operands: &[Shape]) -> Result<Shape, String> {
        let (x, w) = (&operands[0], &operands[1]);
        if x.dtype != w.dtype || !x.dtype.is_float() {
            return Err("needs floating-point numbers of one type".into());
        }
        let pairs = |a: &[usize], b: &[usize]| {
            a.len() == b.len()
                && a.iter().zip(b).all(|(&i, &j)| x.dims.get(i).is_some_and(|m| w.dims.get(j) == Some(m)))
        };
        if !pairs(&self.lhs_contract, &self.rhs_contract) || !pairs(&self.lhs_batch, &self.rhs_batch) {
            return Err(format!("sizes do not match:{}", self.attributes()));
        }
        let mut dims: Vec<usize> = self.lhs_batch.iter().map(|&a| x.dims[a]).collect();
        dims.extend(rest(x.rank(), &self.lhs_batch, &self.lhs_contract).iter().map(|&a| x.dims[a]));
        dims.extend(rest(w.rank(), &self.rhs_batch, &self.rhs_contract).iter().map(|&a| w.dims[a]));
        Ok(x.with_dims(&dims))
    }

    pub(in crate::engine::ir) fn vjp<'g>(&self, at: &Vjp<'_, 'g>) -> Vec<Option<Sym<'g>>> {
        let (x, w, ct) = (at.operands[0], at.operands[1], at.ct());
        let batch = self.lhs_batch.len();
        let lhs_rest = rest(x.rank(), &self.lhs_batch, &self.lhs_contract);
        let rhs_rest = rest(w.rank(), &self.rhs_batch, &self.rhs_contract);
        let all_batch: Vec<usize> = (0..batch).collect();
        let in_ct = |from: usize, n: usize| (from..from + n).collect::<Vec<_>>();
        let dx = || {
            let dot = Dot {
                lhs_contract: in_ct(batch + lhs_rest.len(), rhs_rest.len()),
                rhs_contract: rhs_rest.clone(),
                lhs_batch: all_batch.clone(),
                rhs_batch: self.rhs_batch.clone(),
            };
            // Dimensions of the matmul below: batch, the left operand's rest, and its contracted dimensions in the order of the
            // right operand.
            let order = sorted_by_partner(&self.rhs_contract, &self.lhs_contract);
            let at_dims = [self.lhs_batch.clone(), lhs_rest.clone(), order].concat();
            ct.dot_general(w, dot).transpose(&inverse(&at_dims))
        };
        let dw = || {
            let dot = Dot {
                lhs_contract: lhs_rest.clone(),
                rhs_contract: in_ct(batch, lhs_rest.len()),
                lhs_batch: self.lhs_batch.clone(),
                rhs_batch: all_batch.clone(),
            };
            let order = sorted_by_partner(&self.lhs_contract, &self.rhs_contract);
            let at_dims = [self.rhs_batch.clone(), order, rhs_rest.clone()].concat();
            x.dot_general(ct, dot).transpose(&inverse(&at_dims))
        };
        at.each([&dx, &dw])
    }
}

/// Sorts the dimensions `own` by their partners: the order in which a matmul leaves the partner's dimensions.
fn sorted_by_partner(partner: &[usize], own: &[usize]) -> Vec<usize> {
    let mut pairs: Vec<(usize, usize)> = partner.iter().copied().zip(own.iter().copied()).collect();
    pairs.sort_unstable();
    pairs.into_iter().map(|(_, own)| own).collect()
}

/// Returns the inverse of a permutation.
fn inverse(permutation: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; permutation.len()];
    for (i, &p) in permutation.iter().enumerate() {
        inverse[p] = i;
    }
    inverse
}

impl<'g> Sym<'g> {
    /// Multiplies and sums over the dimensions that `dot` names.
    #[track_caller]
    pub fn dot_general(self, rhs: Sym<'g>, dot: Dot) -> Sym<'g> {
        self.graph.push(dot.into(), &[self, rhs])
    }

    /// Contracts the last dimension of `self` with the first of `rhs`: (..., k) times (k, m...) gives (..., m...).
    #[track_caller]
    pub fn dot(self, rhs: Sym<'g>) -> Sym<'g> {
        let last = self.rank().saturating_sub(1);
        self.dot_general(rhs, Dot { lhs_contract: vec![last], rhs_contract: vec![0], ..Dot::default() })
    }
}
