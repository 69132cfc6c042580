//! The enum of operation families. Constructors, shape rules and VJPs of a family are in its file in [`ops`](super::ops).

use super::graph::Sym;
use super::ops::collective::Collective;
use super::ops::control::Repeat;
use super::ops::conv::Conv;
use super::ops::elementwise::Elementwise;
use super::ops::index::Index;
use super::ops::layout::Layout;
use super::ops::linalg::Dot;
use super::ops::reduce::{Reduce, Reduction};
use super::ops::source::Source;
use crate::engine::shape::Shape;

/// An operation.
///
/// No match over it has a catch-all arm. A new operation therefore does not compile until every pass handles it.
#[derive(Clone, Debug)]
pub enum Op {
    /// Parameters, constants and counters.
    Source(Source),
    /// Operations on corresponding elements.
    Elementwise(Elementwise),
    /// Sums and maxima over dimensions.
    Reduce(Reduce),
    /// Matmuls.
    Dot(Dot),
    /// Two-dimensional convolutions and their weight gradients.
    Conv(Conv),
    /// Operations that move elements.
    Layout(Layout),
    /// Reads and writes at indices known only at run time, and sorting.
    Index(Index),
    /// Communication between replicas.
    Collective(Collective),
    /// The loop.
    Repeat(Box<Repeat>),
}

/// The arguments of a VJP rule: a node's operands and outputs, and the cotangents of its outputs.
pub struct Vjp<'a, 'g> {
    pub operands: &'a [Sym<'g>],
    pub outputs: &'a [Sym<'g>],
    /// A cotangent for each output; `None` where no gradient reached it.
    pub cotangents: &'a [Option<Sym<'g>>],
    /// Whether each operand depends on a value that is differentiated. Only these operands need a cotangent.
    pub wanted: &'a [bool],
    /// The node's index in its block. The loop's rule rewrites its node.
    pub node: usize,
}

impl<'g> Vjp<'_, 'g> {
    /// Returns the cotangent of an operation's only output.
    pub fn ct(&self) -> Sym<'g> {
        self.cotangents[0].expect("a VJP is called only if a cotangent arrived")
    }

    /// Returns an operation's only output.
    pub fn out(&self) -> Sym<'g> {
        self.outputs[0]
    }

    /// Calls `make[i]` for the cotangent of each operand `i` that is wanted.
    pub fn each<const N: usize>(&self, make: [&dyn Fn() -> Sym<'g>; N]) -> Vec<Option<Sym<'g>>> {
        make.iter().zip(self.wanted).map(|(f, wanted)| wanted.then(f)).collect()
    }
}

impl Op {
    /// Returns the shapes of the outputs.
    ///
    /// # Errors
    /// When the operands' shapes do not fit the operation. The error is a phrase with the reason.
    pub(super) fn infer(&self, operands: &[Shape]) -> Result<Vec<Shape>, String> {
        match self {
            Op::Source(op) => op.infer().map(one),
            Op::Elementwise(op) => op.infer(operands).map(one),
            Op::Reduce(op) => op.infer(operands).map(one),
            Op::Dot(op) => op.infer(operands).map(one),
            Op::Conv(op) => op.infer(operands).map(one),
            Op::Layout(op) => op.infer(operands).map(one),
            Op::Index(op) => op.infer(operands).map(one),
            Op::Collective(op) => op.infer(operands).map(one),
            Op::Repeat(op) => op.infer(operands),
        }
    }

    /// Adds the nodes of the operands' cotangents; `None` where an operand has no cotangent or none is wanted.
    pub(super) fn vjp<'g>(&self, at: &Vjp<'_, 'g>) -> Vec<Option<Sym<'g>>> {
        match self {
            Op::Source(_) => vec![],
            Op::Elementwise(op) => op.vjp(at),
            Op::Reduce(op) => op.vjp(at),
            Op::Dot(op) => op.vjp(at),
            Op::Conv(op) => op.vjp(at),
            Op::Layout(op) => op.vjp(at),
            Op::Index(op) => op.vjp(at),
            Op::Collective(op) => op.vjp(at),
            Op::Repeat(op) => op.vjp(at),
        }
    }

    /// Returns the operation's name in printed graphs, without its attributes.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Source(op) => op.name(),
            Op::Elementwise(op) => op.name(),
            Op::Reduce(op) => op.name(),
            Op::Dot(_) => "dot",
            Op::Conv(op) => op.name(),
            Op::Layout(op) => op.name(),
            Op::Index(op) => op.name(),
            Op::Collective(op) => op.name(),
            Op::Repeat(_) => "repeat",
        }
    }

    /// Returns the names of all operations. Tests use it to check that they cover each one.
    pub fn names() -> Vec<&'static str> {
        use strum::VariantNames;
        let families = [
            Source::VARIANTS,
            Elementwise::VARIANTS,
            Reduction::VARIANTS,
            &["dot"],
            Conv::VARIANTS,
            Layout::VARIANTS,
            Index::VARIANTS,
            Collective::VARIANTS,
            &["repeat"],
        ];
        families.concat()
    }

    /// Returns the operation's attributes in printed graphs: empty, or ` key=value ...` with a leading space.
    pub fn attributes(&self) -> String {
        match self {
            Op::Source(op) => op.attributes(),
            Op::Elementwise(_) => String::new(),
            Op::Reduce(op) => op.attributes(),
            Op::Dot(op) => op.attributes(),
            Op::Conv(op) => op.attributes(),
            Op::Layout(op) => op.attributes(),
            Op::Index(op) => op.attributes(),
            Op::Collective(op) => op.attributes(),
            Op::Repeat(op) => op.attributes(),
        }
    }
}

fn one(shape: Shape) -> Vec<Shape> {
    vec![shape]
}
