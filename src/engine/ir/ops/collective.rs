//! Operations over all replicas of an SPMD program.

use crate::engine::ir::graph::Sym;
use crate::engine::ir::op::{Op, Vjp};
use crate::engine::shape::Shape;

#[derive(Clone, Debug, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Collective {
    /// The sum of every replica's value, on every replica.
    AllReduce,
    /// Operands: an array, this replica's index (s32). Every replica's array, stacked along a new first dimension.
    /// The index serves the gradient: the device knows its own.
    AllGather { replicas: usize },
    /// Operand: an array with a row for each replica. Row s of the result is what replica s holds in this replica's row.
    AllToAll { replicas: usize },
}

impl From<Collective> for Op {
    fn from(op: Collective) -> Op {
        Op::Collective(op)
    }
}

impl Collective {
    pub fn name(&self) -> &'static str {
        self.into()
    }

    pub fn attributes(&self) -> String {
        match self {
            Collective::AllReduce => String::new(),
            Collective::AllGather { replicas } | Collective::AllToAll { replicas } => {
                format!(" replicas={replicas}")
            }
        }
    }

    pub fn infer(&self, operands: &[Shape]) -> Result<Shape, String> {
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

    /// The loss that is differentiated is the sum of the replicas' losses, as under JAX's `psum` of a loss.
    pub fn vjp<'g>(&self, at: &Vjp<'_, 'g>) -> Vec<Option<Sym<'g>>> {
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
    /// The sum of this value over all replicas.
    #[track_caller]
    pub fn all_reduce(self) -> Sym<'g> {
        self.graph.push(Collective::AllReduce.into(), &[self])
    }

    /// This value of every one of `replicas`, stacked along a new first dimension. `index` is this replica's.
    #[track_caller]
    pub fn all_gather(self, index: Sym<'g>, replicas: usize) -> Sym<'g> {
        self.graph.push(Collective::AllGather { replicas }.into(), &[self, index])
    }

    /// Gives row r of this value to replica r, and gets from each replica the row meant for this one, in their order.
    #[track_caller]
    pub fn all_to_all(self, replicas: usize) -> Sym<'g> {
        self.graph.push(Collective::AllToAll { replicas }.into(), &[self])
    }
}
