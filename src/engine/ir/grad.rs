//! Reverse-mode differentiation as a pass: it walks a block's nodes backwards and adds those of the gradient.
//!
//! It knows no operation: each brings its own rule ([`Op::vjp`](super::Op::vjp)). Here stand only the order, the
//! adding up of cotangents and the check of their shapes.

use std::collections::HashMap;

use super::graph::{Sym, Value};
use super::op::Vjp;
use crate::engine::shape::DType;

/// The gradient of a scalar with respect to each of `wrt`: zeros where it does not depend on one.
#[track_caller]
pub fn gradient<'g>(loss: Sym<'g>, wrt: &[Sym<'g>]) -> Vec<Sym<'g>> {
    if loss.rank() != 0 || loss.dtype() != DType::F32 {
        loss.graph()
            .fail(&format!("the gradient of {} was asked for: only an f32 scalar has one", loss.shape()));
    }
    pullback(&[(loss, loss.like(1.0))], wrt)
}

/// Σ cotangent · ∂output/∂wrt over the given (output, cotangent) pairs, for each of `wrt`.
#[track_caller]
pub fn pullback<'g>(outputs: &[(Sym<'g>, Sym<'g>)], wrt: &[Sym<'g>]) -> Vec<Sym<'g>> {
    let cotangents = pullback_with(outputs, wrt);
    cotangents
        .into_iter()
        .zip(wrt)
        .map(|(ct, s)| ct.unwrap_or_else(|| s.graph().full(&s.shape(), 0.0)))
        .collect()
}

/// [`pullback`] with `None` where nothing arrives.
pub(super) fn pullback_with<'g>(outputs: &[(Sym<'g>, Sym<'g>)], wrt: &[Sym<'g>]) -> Vec<Option<Sym<'g>>> {
    let Some(graph) = outputs.first().map(|(s, _)| s.graph()) else {
        return vec![None; wrt.len()];
    };
    let targets: Vec<Value> = wrt.iter().map(|s| graph.resolve(*s)).collect();
    let mut arrived: HashMap<Value, Sym<'g>> = HashMap::new();
    let mut last = 0;
    for (output, cotangent) in outputs {
        let value = graph.resolve(*output);
        last = last.max(value.node + 1);
        accumulate(&mut arrived, value, graph.sym(graph.resolve(*cotangent)));
    }
    let leads = leads_to(graph, &targets, last);
    let saved = graph.saved();
    for at in (0..last).rev() {
        if !leads[at] {
            continue;
        }
        let node = {
            let inner = graph.inner.borrow();
            inner.frames.last().expect("a graph has a top frame").block.nodes[at].clone()
        };
        let value = |output| Value { node: at, output };
        let cotangents: Vec<Option<Sym<'g>>> =
            (0..node.shapes.len()).map(|i| arrived.get(&value(i)).copied()).collect();
        if cotangents.iter().all(Option::is_none) {
            continue;
        }
        let operands: Vec<Sym<'g>> = node.operands.iter().map(|v| graph.sym(*v)).collect();
        // A rule that goes by its operation's result takes what was saved of it, where it was.
        let result = |i| graph.sym(saved.get(&value(i)).copied().unwrap_or(value(i)));
        let outputs: Vec<Sym<'g>> = (0..node.shapes.len()).map(result).collect();
        let wanted: Vec<bool> = node.operands.iter().map(|v| leads[v.node] || targets.contains(v)).collect();
        let vjp = Vjp {
            operands: &operands,
            outputs: &outputs,
            cotangents: &cotangents,
            wanted: &wanted,
            node: at,
        };
        for (i, ct) in node.op.vjp(&vjp).into_iter().enumerate() {
            let Some(ct) = ct else { continue };
            if ct.shape() != operands[i].shape() {
                let (name, expected) = (node.op.name(), operands[i].shape());
                graph.fail(&format!("{name} gave its operand {i}, {expected}, a cotangent {}", ct.shape()));
                continue;
            }
            accumulate(&mut arrived, node.operands[i], ct);
        }
    }
    targets.iter().map(|v| arrived.get(v).copied()).collect()
}

fn accumulate<'g>(arrived: &mut HashMap<Value, Sym<'g>>, value: Value, cotangent: Sym<'g>) {
    let sum = match arrived.get(&value) {
        Some(before) => *before + cotangent,
        None => cotangent,
    };
    arrived.insert(value, sum);
}

/// For each of the first `last` nodes of the innermost block: does it depend, through floating-point values, on a target?
fn leads_to(graph: &super::Graph, targets: &[Value], last: usize) -> Vec<bool> {
    let inner = graph.inner.borrow();
    let nodes = &inner.frames.last().expect("a graph has a top frame").block.nodes;
    let mut leads = vec![false; nodes.len()];
    for at in 0..last {
        leads[at] = nodes[at].shapes.iter().any(|s| s.dtype.is_float())
            && nodes[at].operands.iter().any(|v| {
                let float = nodes[v.node].shapes[v.output].dtype.is_float();
                float && (leads[v.node] || targets.contains(v))
            });
    }
    leads
}
