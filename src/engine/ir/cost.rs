//! What a computation costs on any machine: counted from its graph, loops times their trips, without what no result needs.

use super::graph::{Block, Function, Node};
use super::op::Op;
use super::ops::control::Repeat;
use super::ops::conv::{Conv, Window};
use super::ops::elementwise::Elementwise;
use crate::engine::shape::Shape;

/// Counts that depend on the graph alone, and neither on a compiler nor on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiplications and additions of matrix products and convolutions. A convolution's products with the zeros around
    /// an image count, those with the zeros between the pixels of a dilated one do not.
    pub flops: u64,
    /// Elements that elementwise operations make and reductions read.
    pub elements: u64,
    /// Bytes that loops hold in stacks, a row a trip: what their gradients keep, and what their bodies give. A loop inside
    /// another fills the same stacks in every trip, and counts once.
    pub stacked_bytes: u64,
}

impl Cost {
    /// Of one call. A loop whose trips are known only at run time counts with the most that it can make.
    pub fn of(function: &Function) -> Cost {
        block_cost(&function.block, &vec![true; function.block.results.len()])
    }

    fn plus(self, other: Cost) -> Cost {
        Cost {
            flops: self.flops + other.flops,
            elements: self.elements + other.elements,
            stacked_bytes: self.stacked_bytes + other.stacked_bytes,
        }
    }
}

/// Which outputs of each node lead to a wanted result.
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
            // The first operand leads gradients on, and is not computed.
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

/// The results of a loop's body that the wanted outputs take: theirs, and every carry that one of them depends on.
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
    let products: usize = (0..2).map(|d| products(window, d, kernel.dims[d], output.dims[1 + d])).product();
    2 * image.dims[0] * image.dims[3] * output.dims[3] * products
}

/// Pairs of a place of the result and an element of the kernel that meet a pixel or a zero around the image, along one
/// dimension of the grid.
fn products(window: &Window, dim: usize, kernel: usize, output: usize) -> usize {
    let meets = |place: usize, tap: usize| {
        let at = (place * window.stride[dim] + tap * window.kernel_dilation[dim]) as i64;
        (at - window.padding[dim].0).rem_euclid(window.image_dilation[dim] as i64) == 0
    };
    (0..output).map(|place| (0..kernel).filter(|tap| meets(place, *tap)).count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ir::{Graph, gradient};

    #[test]
    fn loops_count_times_their_trips_and_only_what_a_result_needs() {
        let g = Graph::new("cost");
        let x = g.input("x", &Shape::f32(&[2, 3]));
        let w = g.input("w", &Shape::f32(&[3, 3]));
        let looped = g.repeat(5, &[x, x], |_, c| {
            let unused = c[1].dot(w);
            (vec![c[0].dot(w), unused], vec![c[0].exp()])
        });
        let product = 2 * 2 * 3 * 3;
        let first = g.finish(&[("y".into(), looped[0])], &[]).unwrap();
        assert_eq!(Cost::of(&first), Cost { flops: 5 * product, elements: 0, stacked_bytes: 0 });
        let stacked = g.finish(&[("y".into(), looped[2])], &[]).unwrap();
        assert_eq!(Cost::of(&stacked), Cost { flops: 5 * product, elements: 30, stacked_bytes: 120 });
    }

    #[test]
    fn the_gradient_of_a_loop_makes_its_body_again() {
        let g = Graph::new("cost");
        let x = g.input("x", &Shape::f32(&[2, 3]));
        let w = g.input("w", &Shape::f32(&[3, 3]));
        let looped = g.repeat(5, &[x], |_, c| (vec![c[0].dot(w).exp().dot(w)], vec![]));
        let grad = gradient(looped[0].sum_all(), &[w])[0];
        let function = g.finish(&[("dw".into(), grad)], &[]).unwrap();
        // Forward 2 products, again the first (the second's value serves nothing), backwards 4.
        assert_eq!(Cost::of(&function).flops, 5 * (2 + 1 + 4) * 36);
    }

    #[test]
    fn zeros_between_pixels_do_not_count() {
        let transposed = Window::transposed(5, 2, 2, 1);
        assert_eq!(products(&transposed, 0, 5, 16), 8 * 5);
        assert_eq!(products(&Window::new(2, (2, 2)), 0, 5, 8), 8 * 5);
    }
}
