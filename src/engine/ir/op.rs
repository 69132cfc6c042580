//! One enum of operation families. A family's file has its constructors, shape rules and VJPs side by side.

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

/// An operation. Matches over it have no catch-all arm, so that a new one does not compile until every pass knows it.
#[derive(Clone, Debug)]
pub enum Op {
    Source(Source),
    Elementwise(Elementwise),
    Reduce(Reduce),
    Dot(Dot),
    Conv(Conv),
    Layout(Layout),
    Index(Index),
    Collective(Collective),
    Repeat(Box<Repeat>),
}

/// What a VJP rule sees: a node's operands, outputs and the cotangents that arrived at the outputs.
pub struct Vjp<'a, 'g> {
    pub operands: &'a [Sym<'g>],
    pub outputs: &'a [Sym<'g>],
    pub cotangents: &'a [Option<Sym<'g>>],
    /// Which operands lead to something that is differentiated: the others' cotangents need not be made.
    pub wanted: &'a [bool],
    /// Where the node stands in its block, for the rule that has to rewrite it.
    pub node: usize,
}

impl<'g> Vjp<'_, 'g> {
    /// The cotangent of the one output of an ordinary operation.
    pub fn ct(&self) -> Sym<'g> {
        self.cotangents[0].expect("a VJP is asked for only where a cotangent arrived")
    }

    pub fn out(&self) -> Sym<'g> {
        self.outputs[0]
    }

    /// The cotangent of operand `i`, made only if wanted.
    pub fn each<const N: usize>(&self, make: [&dyn Fn() -> Sym<'g>; N]) -> Vec<Option<Sym<'g>>> {
        make.iter().zip(self.wanted).map(|(f, wanted)| wanted.then(f)).collect()
    }
}

impl Op {
    /// Shapes of the outputs.
    ///
    /// # Errors
    /// What is wrong with the operands' shapes.
    pub fn infer(&self, operands: &[Shape]) -> Result<Vec<Shape>, String> {
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

    /// Cotangents of the operands; `None` where there is none, or none is wanted.
    pub fn vjp<'g>(&self, at: &Vjp<'_, 'g>) -> Vec<Option<Sym<'g>>> {
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

    /// The operation's name in printed graphs, without its attributes.
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

    /// Every operation's name, for tests that must leave none out.
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

    /// The operation's attributes in printed graphs: empty, or ` key=value ...`.
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
