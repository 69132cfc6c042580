//! Collectives. Each replica contributes different numbers.

use super::{Case, Group, f32s};
use crate::engine::array::Array;
use crate::engine::ir::{Graph, Sym, gradient};

/// Returns the inputs of all replicas. Those of replica r are (r, 10 r), its index, and the number 100 r + s for each replica s.
fn inputs(replicas: usize) -> Vec<Vec<Array>> {
    let inputs_of = |r: usize| {
        let to_each: Vec<f32> = (0..replicas).map(|s| (100 * r + s) as f32).collect();
        vec![f32s(&[2], &[r as f32, 10.0 * r as f32]), Array::scalar(r as i32), f32s(&[replicas], &to_each)]
    };
    (0..replicas).map(inputs_of).collect()
}

pub(super) fn group(replicas: usize) -> Group {
    let case = |name: &str, expected: &dyn Fn(usize) -> Array, build: super::Build| Case {
        name: name.into(),
        inputs: inputs(replicas),
        expected: (0..replicas).map(expected).collect(),
        tolerance: 0.0,
        build,
    };
    let n = replicas as f32;
    let total = n * (n - 1.0) / 2.0;
    let all: Vec<f32> = (0..replicas).flat_map(|r| [r as f32, 10.0 * r as f32]).collect();
    let received = |r: usize| (0..replicas).map(|s| (100 * s + r) as f32).collect::<Vec<_>>();
    // The first trip gives every replica the sum over replicas plus half of it. Each further trip multiplies by n + n / 2.
    let looped = total * 1.5 * (1.5 * n) * (1.5 * n);
    let cases = vec![
        case("all_reduce", &|_| f32s(&[2], &[total, 10.0 * total]), Box::new(|_, x| x[0].all_reduce())),
        case(
            "all_gather",
            &|_| f32s(&[replicas, 2], &all),
            Box::new(move |_, x| x[0].all_gather(x[1], replicas)),
        ),
        case(
            "all_to_all",
            &|r| f32s(&[replicas], &received(r)),
            Box::new(move |_, x| x[2].all_to_all(replicas)),
        ),
        case(
            "collectives in a loop",
            &|_| f32s(&[2], &[looped, 10.0 * looped]),
            Box::new(move |g, x| in_a_loop(g, x, replicas)),
        ),
        // The loss is Σ over replicas of (Σ over replicas of x)². Its derivative by each x is 2 n times the inner sum.
        case(
            "gradient through all_reduce",
            &|_| f32s(&[2], &[2.0 * n * total, 20.0 * n * total]),
            Box::new(|_, x| gradient(x[0].all_reduce().square().sum_all(), &[x[0]])[0]),
        ),
    ];
    Group { name: format!("collectives_r{replicas}"), replicas, cases }
}

fn in_a_loop<'g>(g: &'g Graph, x: &[Sym<'g>], replicas: usize) -> Sym<'g> {
    g.repeat(3, &[x[0]], |_, c| {
        let all = c[0].all_gather(x[1], replicas);
        (vec![all.sum(&[0]) + c[0].all_reduce() * 0.5], vec![])
    })[0]
}
