//! Reverse-mode differentiation: walks the nodes of a block backwards and adds the nodes of the gradient.
//!
//! Each operation has its own rule, `Op::vjp`. This pass only orders the rules, sums cotangents and checks their shapes.

use std::collections::HashMap;

use super::graph::{Sym, Value};
use super::op::Vjp;
use crate::engine::shape::DType;

/// Adds the gradient of an f32 scalar with respect to each value of `wrt`, in their shapes.
///
/// The gradient is zero where the scalar does not depend on a value. A `loss` of another shape or type is a build error, which
/// [`Graph::finish`](super::Graph::finish) returns.
#[track_caller]
pub fn gradient<'g>(loss: Sym<'g>, wrt: &[Sym<'g>]) -> Vec<Sym<'g>> {
    if loss.rank() != 0 || loss.dtype() != DType::F32 {
        loss.graph()
            .fail(&format!("cannot differentiate {}: only an f32 scalar has a gradient", loss.shape()));
    }
    pullback(&[(loss, loss.scalar_like(1.0))], wrt)
}

/// Adds the vector-Jacobian product with respect to each value of `wrt`: Σ cotangent · ∂output/∂wrt over the pairs (output,
/// cotangent) of `outputs`.
///
/// A cotangent has the shape of its output, and a result that of its value in `wrt`.
#[track_caller]
pub fn pullback<'g>(outputs: &[(Sym<'g>, Sym<'g>)], wrt: &[Sym<'g>]) -> Vec<Sym<'g>> {
    let cotangents = pullback_with(outputs, wrt);
    cotangents
        .into_iter()
        .zip(wrt)
        .map(|(ct, s)| ct.unwrap_or_else(|| s.graph().full(&s.shape(), 0.0)))
        .collect()
}

/// Adds the same nodes as [`pullback`], with `None` instead of zeros for values that no cotangent reaches.
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
    let depends = depends_on(graph, &targets, last);
    let recalled = graph.recalled();
    for at in (0..last).rev() {
        if !depends[at] {
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
        // A rule that uses its operation's result gets the saved copy, if one exists.
        let result = |i| graph.sym(recalled.get(&value(i)).copied().unwrap_or(value(i)));
        let outputs: Vec<Sym<'g>> = (0..node.shapes.len()).map(result).collect();
        let wanted: Vec<bool> =
            node.operands.iter().map(|v| depends[v.node] || targets.contains(v)).collect();
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
                graph.fail(&format!(
                    "the VJP of {name} returned for operand {i} of shape {expected} the cotangent {}",
                    ct.shape()
                ));
                continue;
            }
            accumulate(&mut arrived, node.operands[i], ct);
        }
    }
    targets.iter().map(|v| arrived.get(v).copied()).collect()
}

/// Adds a cotangent to the sum of a value's earlier cotangents.
fn accumulate<'g>(arrived: &mut HashMap<Value, Sym<'g>>, value: Value, cotangent: Sym<'g>) {
    let sum = match arrived.get(&value) {
        Some(before) => *before + cotangent,
        None => cotangent,
    };
    arrived.insert(value, sum);
}

/// Reports for each of the first `last` nodes of the innermost block whether it depends on a target through floating-point
/// values.
fn depends_on(graph: &super::Graph, targets: &[Value], last: usize) -> Vec<bool> {
    let inner = graph.inner.borrow();
    let nodes = &inner.frames.last().expect("a graph has a top frame").block.nodes;
    let mut depends = vec![false; nodes.len()];
    for at in 0..last {
        depends[at] = nodes[at].shapes.iter().any(|s| s.dtype.is_float())
            && nodes[at].operands.iter().any(|v| {
                let float = nodes[v.node].shapes[v.output].dtype.is_float();
                float && (depends[v.node] || targets.contains(v))
            });
    }
    depends
}
