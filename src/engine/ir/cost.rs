//! Counts operations and memory of a computation from its graph. Loop bodies count once per trip; nodes that no output
//! depends on do not count.

use super::graph::{Block, Function, Node};
use super::op::Op;
use super::ops::control::Repeat;
use super::ops::conv::{Conv, Window};
use super::ops::elementwise::Elementwise;
use crate::engine::shape::Shape;

/// Counts of work and memory that depend on the graph alone, not on a compiler or a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiplications and additions in matmuls and convolutions. A convolution's multiplications by the zeros around an
    /// image count; those by the zeros between the pixels of a dilated image do not.
    pub flops: u64,
    /// Elements that elementwise operations write and reductions read.
    pub elements: u64,
    /// Bytes of the stacks of loops, which have a row for each trip: values saved for the gradient, and values that loop
    /// bodies stack. A loop inside another reuses its stacks in every trip and counts once.
    pub stacked_bytes: u64,
}

impl Cost {
    /// Counts one call of a function. A loop whose number of trips is known only at run time counts with its maximum.
    pub fn from_function(function: &Function) -> Cost {
        block_cost(&function.block, &vec![true; function.block.results.len()])
    }

    /// Adds each count of `other`.
    fn plus(self, other: Cost) -> Cost {
        Cost {
            flops: self.flops + other.flops,
            elements: self.elements + other.elements,
            stacked_bytes: self.stacked_bytes + other.stacked_bytes,
        }
    }
}

/// Reports for each output of each node whether a wanted result depends on it.
fn used(block: &Block, wanted: &[bool]) -> Vec<Vec<bool>> {
    let mut used: Vec<Vec<bool>> = block.nodes.iter().map(|n| vec![false; n.shapes.len()]).collect();
    for (value, _) in block.results.iter().zip(wanted).filter(|(_, wanted)| **wanted) {
        used[value.node][value.output] = true;
    }
    for (at, node) in block.nodes.iter().enumerate().rev() {
        if !used[at].contains(&true) {
            continue;
        }
        let needed = match &node.op {
            Op::Repeat(repeat) => operands_needed(repeat, &used[at]),
            // The first operand serves only the gradient. Its value is not computed.
            Op::Elementwise(Elementwise::Recall) => vec![false, true],
            Op::Source(_) | Op::Elementwise(_) | Op::Reduce(_) | Op::Dot(_) | Op::Conv(_) => {
                vec![true; node.operands.len()]
            }
            Op::Layout(_) | Op::Index(_) | Op::Collective(_) => vec![true; node.operands.len()],
        };
        for (value, _) in node.operands.iter().zip(needed).filter(|(_, needed)| *needed) {
            used[value.node][value.output] = true;
        }
    }
    used
}

/// Reports which results of a loop's body are needed for the wanted outputs: their own, and every carry that one of these
/// depends on.
fn body_results_wanted(repeat: &Repeat, outputs: &[bool]) -> Vec<bool> {
    let mut wanted = outputs.to_vec();
    loop {
        let inside = used(&repeat.body, &wanted);
        let read = |carry: usize| inside[repeat.body.parameters[1 + carry]][0];
        let more: Vec<usize> = (0..repeat.carries).filter(|&i| !wanted[i] && read(i)).collect();
        if more.is_empty() {
            return wanted;
        }
        more.into_iter().for_each(|i| wanted[i] = true);
    }
}

/// Reports which operands of a loop are needed for the wanted outputs.
fn operands_needed(repeat: &Repeat, outputs: &[bool]) -> Vec<bool> {
    let wanted = body_results_wanted(repeat, outputs);
    let inside = used(&repeat.body, &wanted);
    let captures = repeat.body.parameters[1 + repeat.carries..].iter().map(|p| inside[*p][0]);
    let trips = vec![true; repeat.first_carry()];
    trips.into_iter().chain(wanted[..repeat.carries].iter().copied()).chain(captures).collect()
}

fn block_cost(block: &Block, wanted: &[bool]) -> Cost {
    let used = used(block, wanted);
    let nodes = block.nodes.iter().zip(&used).filter(|(_, used)| used.contains(&true));
    nodes.fold(Cost::default(), |sum, (node, used)| sum.plus(node_cost(block, node, used)))
}

fn node_cost(block: &Block, node: &Node, used: &[bool]) -> Cost {
    let operand = |i: usize| block.shape(node.operands[i]);
    let result = &node.shapes[0];
    let flops = |flops: usize| Cost { flops: flops as u64, ..Cost::default() };
    let elements = |elements: usize| Cost { elements: elements as u64, ..Cost::default() };
    match &node.op {
        Op::Source(_) | Op::Layout(_) | Op::Index(_) | Op::Collective(_) => Cost::default(),
        Op::Elementwise(Elementwise::Keep | Elementwise::Recall | Elementwise::Detach) => Cost::default(),
        Op::Elementwise(_) => elements(result.count()),
        Op::Reduce(_) => elements(operand(0).count()),
        Op::Dot(dot) => {
            let depth: usize = dot.lhs_contract.iter().map(|a| operand(0).dims[*a]).product();
            flops(2 * result.count() * depth)
        }
        Op::Conv(conv) => flops(conv_flops(conv, operand(0), operand(1), result)),
        Op::Repeat(repeat) => {
            let body = block_cost(&repeat.body, &body_results_wanted(repeat, used));
            let stacks = node.shapes.iter().zip(used).skip(repeat.carries).filter(|(_, used)| **used);
            let own: u64 = stacks.map(|(shape, _)| shape.bytes() as u64).sum();
            let trips = repeat.max_trips as u64;
            Cost {
                flops: trips * body.flops,
                elements: trips * body.elements,
                stacked_bytes: own + body.stacked_bytes,
            }
        }
    }
}

fn conv_flops(conv: &Conv, image: &Shape, other: &Shape, result: &Shape) -> usize {
    let (window, kernel, output) = match conv {
        Conv::Forward(window) => (window, other, result),
        Conv::WeightGrad { window, .. } => (window, result, other),
    };
    let pairs: usize = (0..2).map(|d| tap_pairs(window, d, kernel.dims[d], output.dims[1 + d])).product();
    2 * image.dims[0] * image.dims[3] * output.dims[3] * pairs
}

/// Counts the pairs of an output pixel and a kernel tap that read a pixel or the padding, along one dimension of the grid.
/// Pairs that read a zero between the pixels of a dilated image do not count.
fn tap_pairs(window: &Window, dim: usize, kernel: usize, output: usize) -> usize {
    let reads = |pixel: usize, tap: usize| {
        let at = (pixel * window.stride[dim] + tap * window.kernel_dilation[dim]) as i64;
        (at - window.padding[dim].0).rem_euclid(window.image_dilation[dim] as i64) == 0
    };
    (0..output).map(|pixel| (0..kernel).filter(|tap| reads(pixel, *tap)).count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ir::{Graph, gradient};

    #[test]
    fn loop_bodies_count_once_per_trip_without_unused_nodes() {
        let g = Graph::new("cost");
        let x = g.input("x", &Shape::f32(&[2, 3]));
        let w = g.input("w", &Shape::f32(&[3, 3]));
        let looped = g.repeat(5, &[x, x], |_, c| {
            let unused = c[1].dot(w);
            (vec![c[0].dot(w), unused], vec![c[0].exp()])
        });
        let matmul = 2 * 2 * 3 * 3;
        let first = g.finish(&[("y".into(), looped[0])], &[]).unwrap();
        assert_eq!(Cost::from_function(&first), Cost { flops: 5 * matmul, elements: 0, stacked_bytes: 0 });
        let stacked = g.finish(&[("y".into(), looped[2])], &[]).unwrap();
        assert_eq!(
            Cost::from_function(&stacked),
            Cost { flops: 5 * matmul, elements: 30, stacked_bytes: 120 }
        );
    }

    #[test]
    fn the_gradient_of_a_loop_recomputes_its_body() {
        let g = Graph::new("cost");
        let x = g.input("x", &Shape::f32(&[2, 3]));
        let w = g.input("w", &Shape::f32(&[3, 3]));
        let looped = g.repeat(5, &[x], |_, c| (vec![c[0].dot(w).exp().dot(w)], vec![]));
        let grad = gradient(looped[0].sum_all(), &[w])[0];
        let function = g.finish(&[("dw".into(), grad)], &[]).unwrap();
        // 2 matmuls forward, 4 backward, and the first of the forward pass again. The second's value is not needed.
        assert_eq!(Cost::from_function(&function).flops, 5 * (2 + 1 + 4) * 36);
    }

    #[test]
    fn zeros_between_pixels_do_not_count() {
        let transposed = Window::transposed(5, 2, 2, 1);
        assert_eq!(tap_pairs(&transposed, 0, 5, 16), 8 * 5);
        assert_eq!(tap_pairs(&Window::new(2, (2, 2)), 0, 5, 8), 8 * 5);
    }
}
