//! Communication between the replicas of an SPMD program.

use crate::engine::ir::graph::Sym;
use crate::engine::ir::op::{Op, Vjp};
use crate::engine::shape::Shape;

/// An operation in which all replicas participate.
#[derive(Clone, Debug, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Collective {
    /// Sums an array over all replicas. Every replica gets the sum.
    AllReduce,
    /// Stacks the arrays of all replicas along a new first dimension. Operands: array; this replica's index, an s32 scalar,
    /// which only the gradient uses.
    AllGather {
        /// The number of replicas.
        replicas: usize,
    },
    /// Exchanges rows. Operand: an array with a row for each replica. On replica r, row s of the result is row r of replica s.
    AllToAll {
        /// The number of replicas.
        replicas: usize,
    },
}

impl From<Collective> for Op {
    fn from(op: Collective) -> Op {
        Op::Collective(op)
    }
}

impl Collective {
    pub(in crate::engine::ir) fn name(&self) -> &'static str {
        self.into()
    }

    pub(in crate::engine::ir) fn attributes(&self) -> String {
        match self {
            Collective::AllReduce => String::new(),
            Collective::AllGather { replicas } | Collective::AllToAll { replicas } => {
                format!(" replicas={replicas}")
            }
        }
    }

    pub(in crate::engine::ir) fn infer(&self, operands: &[Shape]) -> Result<Shape, String> {
        let x = &operands[0];
        match self {
            Collective::AllReduce => Ok(x.clone()),
            Collective::AllGather { replicas } => match operands.get(1) == Some(&Shape::s32(&[])) {
                true => Ok(x.with_dims(&[&[*replicas], x.dims.as_slice()].concat())),
                false => Err("needs the replica's index as an s32 scalar".into()),
            },
            Collective::AllToAll { replicas } => match x.dims.first() == Some(replicas) {
                true => Ok(x.clone()),
                false => Err(format!("needs a row for each of {replicas} replicas")),
            },
        }
    }

    /// Differentiates the sum of the replicas' losses, as JAX does for a `psum` of a loss.
    pub(in crate::engine::ir) fn vjp<'g>(&self, at: &Vjp<'_, 'g>) -> Vec<Option<Sym<'g>>> {
        match self {
            Collective::AllReduce => at.each([&|| at.ct().all_reduce()]),
            Collective::AllGather { .. } => {
                vec![at.wanted[0].then(|| at.ct().all_reduce().row(at.operands[1])), None]
            }
            Collective::AllToAll { replicas } => at.each([&|| at.ct().all_to_all(*replicas)]),
        }
    }
}

impl<'g> Sym<'g> {
    /// Returns the sum of this value over all replicas.
    #[track_caller]
    pub fn all_reduce(self) -> Sym<'g> {
        self.graph.push(Collective::AllReduce.into(), &[self])
    }

    /// Stacks this value of all replicas along a new first dimension: from (d...) to (replicas, d...).
    ///
    /// `index` is this replica's index, an s32 scalar, which the gradient needs. `replicas` must be the number of replicas
    /// for which the graph is lowered.
    #[track_caller]
    pub fn all_gather(self, index: Sym<'g>, replicas: usize) -> Sym<'g> {
        self.graph.push(Collective::AllGather { replicas }.into(), &[self, index])
    }

    /// Sends row r of this value to replica r. Row s of the result is the row that replica s sent to this one.
    ///
    /// The value has one row for each replica. `replicas` must be the number of replicas for which the graph is lowered.
    #[track_caller]
    pub fn all_to_all(self, replicas: usize) -> Sym<'g> {
        self.graph.push(Collective::AllToAll { replicas }.into(), &[self])
    }
}
