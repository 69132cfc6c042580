//! Tests gradients: every operation along a random direction against central differences, and loops against their unrolled
//! form.

mod common;

use std::collections::BTreeSet;

use common::{evaluate_in, fill, targets};
use vnca::engine::array::Array;
use vnca::engine::ir::ops::conv::Window;
use vnca::engine::ir::ops::layout::Padding;
use vnca::engine::ir::ops::linalg::Dot;
use vnca::engine::ir::{Block, Function, Graph, Loop, Op, RepeatOptions, Sym, gradient};
use vnca::engine::shape::{DType, Shape};

/// A row of the table: the sizes of the inputs, the range of their random values, and a function of them.
struct Row {
    name: &'static str,
    inputs: &'static [&'static [usize]],
    range: (f32, f32),
    build: for<'g> fn(&'g Graph, &[Sym<'g>]) -> Sym<'g>,
}

fn row(
    name: &'static str,
    inputs: &'static [&'static [usize]],
    range: (f32, f32),
    build: for<'g> fn(&'g Graph, &[Sym<'g>]) -> Sym<'g>,
) -> Row {
    Row { name, inputs, range, build }
}

fn s32<'g>(g: &'g Graph, values: &[i32]) -> Sym<'g> {
    g.constant(Array::new(&[values.len()], values))
}

fn index<'g>(g: &'g Graph, value: i32) -> Sym<'g> {
    g.constant(Array::scalar(value))
}

const STRIDED: Window =
    Window { stride: [2, 1], padding: [(1, 2), (0, 1)], image_dilation: [1, 2], kernel_dilation: [1, 1] };

fn table() -> Vec<Row> {
    let any = (-2.0, 2.0);
    let positive = (0.5, 2.0);
    let mut rows = elementwise_rows(any, positive);
    rows.extend(array_rows(any));
    rows
}

fn elementwise_rows(any: (f32, f32), positive: (f32, f32)) -> Vec<Row> {
    vec![
        row("constant", &[&[3]], any, |g, x| x[0] * g.constant(Array::new(&[3], &[1f32, -2.0, 0.5]))),
        row("iota", &[&[2, 3]], any, |g, x| x[0] * g.iota(&Shape::f32(&[2, 3]), 1)),
        row("neg", &[&[4]], any, |_, x| -x[0]),
        row("abs", &[&[4]], any, |_, x| x[0].abs()),
        row("sign", &[&[4]], positive, |_, x| x[0].sign() * x[0]),
        row("exp", &[&[4]], any, |_, x| x[0].exp()),
        row("expm1", &[&[4]], any, |_, x| x[0].expm1()),
        row("log", &[&[4]], positive, |_, x| x[0].log()),
        row("log1p", &[&[4]], positive, |_, x| x[0].log1p()),
        row("sin", &[&[4]], any, |_, x| x[0].sin()),
        row("cos", &[&[4]], any, |_, x| x[0].cos()),
        row("sqrt", &[&[4]], positive, |_, x| x[0].sqrt()),
        row("tanh", &[&[4]], any, |_, x| x[0].tanh()),
        row("not", &[&[4]], any, |_, x| x[0].gt(x[0].scalar_like(0.3)).logical_not().mask(x[0])),
        row("is_finite", &[&[4]], any, |_, x| x[0].is_finite().mask(x[0] * 3.0)),
        row("convert", &[&[4]], any, |_, x| {
            x[0].square() + x[0].gt(x[0].scalar_like(0.0)).convert(DType::F32)
        }),
        row("detach", &[&[4]], any, |_, x| x[0] + x[0].detach() * 0.0),
        row("keep", &[&[4]], any, |_, x| x[0].square().keep()),
        row("recall", &[&[4]], any, |_, x| x[0].square().recall(x[0].square())),
        row("add", &[&[2, 3], &[3]], any, |_, x| x[0] + x[1]),
        row("sub", &[&[2, 1], &[2, 3]], any, |_, x| x[0] - x[1]),
        row("mul", &[&[2, 3], &[]], any, |_, x| x[0] * x[1]),
        row("div", &[&[3], &[2, 3]], positive, |_, x| x[0] / x[1]),
        row("rem", &[&[3]], any, |g, x| x[0] * (s32(g, &[7, 8, 9]) % index(g, 4)).convert(DType::F32)),
        row("max", &[&[5], &[5]], any, |_, x| x[0].max(x[1])),
        row("min", &[&[5], &[1]], any, |_, x| x[0].min(x[1])),
        row("and", &[&[5]], any, |_, x| {
            x[0].gt(x[0].scalar_like(-1.0)).and(x[0].lt(x[0].scalar_like(1.0))).mask(x[0])
        }),
        row("or", &[&[5]], any, |_, x| {
            x[0].lt(x[0].scalar_like(-1.0)).or(x[0].gt(x[0].scalar_like(1.0))).mask(x[0])
        }),
        row("xor", &[&[5]], any, |_, x| {
            x[0].lt(x[0].scalar_like(1.0)).xor(x[0].gt(x[0].scalar_like(-1.0))).mask(x[0])
        }),
        row("eq", &[&[5]], any, |_, x| x[0].eq(x[0]).mask(x[0])),
        row("ne", &[&[5]], any, |_, x| x[0].ne(x[0].scalar_like(0.0)).mask(x[0])),
        row("lt", &[&[5]], any, |_, x| x[0].lt(x[0].scalar_like(0.2)).mask(x[0])),
        row("le", &[&[5]], any, |_, x| x[0].le(x[0].scalar_like(0.2)).mask(x[0])),
        row("gt", &[&[5]], any, |_, x| x[0].gt(x[0].scalar_like(0.2)).mask(x[0])),
        row("ge", &[&[5]], any, |_, x| x[0].ge(x[0].scalar_like(0.2)).mask(x[0])),
        row("select", &[&[5], &[5]], any, |_, x| x[0].gt(x[1]).select(x[0].square(), x[1] * 3.0)),
        row("elu", &[&[6]], any, |_, x| x[0].elu()),
        row("softplus", &[&[6]], (-9.0, 9.0), |_, x| x[0].softplus()),
        row("sigmoid", &[&[6]], any, |_, x| x[0].sigmoid()),
    ]
}

fn array_rows(any: (f32, f32)) -> Vec<Row> {
    vec![
        row("parameter", &[&[2]], any, |_, x| x[0]),
        row("reduce_sum", &[&[2, 3, 2]], any, |_, x| x[0].square().sum(&[0, 2])),
        row("reduce_max", &[&[2, 5]], any, |_, x| x[0].reduce_max(&[1])),
        row("logsumexp", &[&[3, 4]], any, |_, x| x[0].logsumexp(1)),
        row("dot", &[&[2, 3], &[3, 4]], any, |_, x| x[0].dot(x[1])),
        row("dot of batches", &[&[3, 2, 5, 4], &[4, 6, 3, 5]], any, |_, x| {
            let [lhs_batch, rhs_batch] = [vec![0], vec![2]];
            let [lhs_contract, rhs_contract] = [vec![2, 3], vec![3, 0]];
            x[0].dot_general(x[1], Dot { lhs_contract, rhs_contract, lhs_batch, rhs_batch })
        }),
        row("conv", &[&[2, 5, 6, 3], &[3, 3, 3, 4]], any, |_, x| x[0].conv(x[1], Window::new(2, (1, 1)))),
        row("conv of all kinds", &[&[2, 5, 4, 2], &[3, 2, 2, 3]], any, |_, x| x[0].conv(x[1], STRIDED)),
        row("conv over dilated kernel", &[&[1, 7, 7, 2], &[2, 3, 2, 2]], any, |_, x| {
            x[0].conv(x[1], Window { kernel_dilation: [2, 3], ..Window::new(1, (0, 1)) })
        }),
        row("conv transposed", &[&[2, 3, 3, 4], &[5, 5, 4, 2]], any, |_, x| {
            x[0].conv(x[1], Window::transposed(5, 2, 2, 1)).expect(&[2, 6, 6, 2])
        }),
        row("conv_weight_grad", &[&[2, 5, 4, 2], &[2, 3, 7, 3]], any, |_, x| {
            x[0].conv_weight_grad(x[1], STRIDED, [3, 2])
        }),
        row("broadcast", &[&[2, 3]], any, |_, x| x[0].broadcast_in_dim(&[2, 4, 3], &[0, 2])),
        row("reshape", &[&[2, 6]], any, |_, x| x[0].reshape(&[3, 4]).square()),
        row("transpose", &[&[2, 3, 4]], any, |_, x| x[0].transpose(&[2, 0, 1]).square()),
        row("slice", &[&[7, 5]], any, |_, x| x[0].slice_strided(&[1, 0], &[6, 4], &[2, 3]).square()),
        row("pad", &[&[3, 4], &[]], any, |_, x| {
            let padding = [Padding { low: 1, high: 2, interior: 2 }, Padding::new(-1, 1)];
            x[0].pad(x[1], &padding).square()
        }),
        row("concat", &[&[2, 3], &[2, 1]], any, |_, x| Sym::concat(&[x[0], x[1], x[0]], 1).square()),
        row("reverse", &[&[2, 3]], any, |g, x| x[0].reverse(&[1]) * g.iota(&Shape::f32(&[2, 3]), 1)),
        row("dynamic_slice", &[&[4, 5]], any, |g, x| {
            x[0].dynamic_slice(&[index(g, 1), index(g, 2)], &[2, 3]).square()
        }),
        row("dynamic_update_slice", &[&[4, 5], &[2, 2]], any, |g, x| {
            x[0].dynamic_update_slice(x[1], &[index(g, 1), index(g, 3)]).square()
        }),
        row("take", &[&[4, 3]], any, |g, x| x[0].take(s32(g, &[3, 0, 3, 1, 2]).reshape(&[5])).square()),
        row("add_rows", &[&[4, 3], &[3, 3]], any, |g, x| x[0].add_rows(s32(g, &[2, 0, 2]), x[1]).square()),
        row("set_rows", &[&[4, 3], &[2, 3]], any, |g, x| x[0].set_rows(s32(g, &[3, 1]), x[1]).square()),
        row("sort", &[&[3]], any, |g, x| {
            let sorted = g.constant(Array::new(&[3], &[9u32, 4, 7])).sort();
            x[0] * sorted.convert(DType::F32)
        }),
        row("all_reduce", &[&[3]], any, |_, x| x[0].square().all_reduce()),
        row("all_gather", &[&[3]], any, |g, x| x[0].square().all_gather(index(g, 0), 1)),
        row("all_to_all", &[&[1, 3]], any, |_, x| x[0].square().all_to_all(1)),
        row("repeat", &[&[3], &[3]], (-0.9, 0.9), |g, x| {
            let out = g.repeat(4, &[x[0], x[1]], |i, c| {
                let turned = (c[0] * x[1] + c[1]).tanh() + i.convert(DType::F32) * 0.1;
                (vec![c[1], turned], vec![turned * c[0]])
            });
            out[1] + out[2].square().sum(&[0])
        }),
        row("repeat up to a number of trips", &[&[3], &[3]], (-0.9, 0.9), |g, x| {
            let trips = index(g, 3);
            g.repeat_upto(trips, 5, &[x[0]], |_, c| (vec![(c[0] * x[1]).tanh() + x[0]], vec![]))[0]
        }),
        row("repeat in repeat", &[&[3], &[3]], (-0.9, 0.9), |g, x| {
            let outer = g.repeat(2, &[x[0]], |i, c| {
                let inner =
                    g.repeat_upto(i + 1.0, 2, &[c[0]], |_, d| (vec![(d[0] * x[1] + c[0]).tanh()], vec![]));
                (vec![inner[0] + c[0] * x[1]], vec![])
            });
            outer[0]
        }),
    ]
}

/// Returns the sum of a result weighted elementwise with fixed numbers, so that no direction is special.
fn weighted<'g>(g: &'g Graph, y: Sym<'g>) -> Sym<'g> {
    let shape = y.shape();
    let weights = fill(&shape.dims, 77, (0.2, 1.0));
    (y * g.constant(weights)).sum_all()
}

fn names_in(block: &Block, into: &mut BTreeSet<&'static str>) {
    for node in &block.nodes {
        into.insert(node.op.name());
        if let Op::Repeat(repeat) = &node.op {
            names_in(&repeat.body, into);
        }
    }
}

/// Builds one computation of a row's value and of the product of its gradient with a direction.
fn build(row: &Row, differentiate: bool) -> Function {
    let g = Graph::new("row");
    let x: Vec<Sym<'_>> =
        row.inputs.iter().enumerate().map(|(i, d)| g.input(&format!("x{i}"), &Shape::f32(d))).collect();
    let value = weighted(&g, (row.build)(&g, &x));
    let mut outputs = vec![("value".to_string(), value)];
    if differentiate {
        outputs.extend(gradient(value, &x).into_iter().enumerate().map(|(i, s)| (format!("d{i}"), s)));
    }
    common::finish(&g, &outputs)
}

#[test]
fn every_operation_has_a_row() {
    let mut seen = BTreeSet::new();
    for row in table() {
        names_in(&build(&row, false).block, &mut seen);
    }
    let missing: Vec<&str> = Op::names().into_iter().filter(|n| !seen.contains(n)).collect();
    assert!(missing.is_empty(), "operations without a row in the gradient table: {missing:?}");
}

#[test]
fn gradients_agree_with_central_differences() {
    for (target, row) in
        targets().into_iter().flat_map(|target| table().into_iter().map(move |row| (target, row)))
    {
        let inputs: Vec<Array> =
            row.inputs.iter().enumerate().map(|(i, d)| fill(d, i as u64, row.range)).collect();
        let direction: Vec<Array> =
            row.inputs.iter().enumerate().map(|(i, d)| fill(d, 100 + i as u64, (-1.0, 1.0))).collect();
        let results = evaluate_in(target, &build(&row, true), &inputs);
        let along: f64 = (results[1..].iter().zip(&direction))
            .map(|(g, d)| dot(&g.to_vec::<f32>(), &d.to_vec::<f32>()))
            .sum();
        let value = build(&row, false);
        let step = 2e-3f32;
        let shifted = |sign: f32| {
            let moved: Vec<Array> = (inputs.iter().zip(&direction))
                .map(|(x, d)| {
                    let sum: Vec<f32> = x
                        .to_vec::<f32>()
                        .iter()
                        .zip(d.to_vec::<f32>())
                        .map(|(x, d)| x + sign * step * d)
                        .collect();
                    Array::new(x.dims(), &sum)
                })
                .collect();
            f64::from(evaluate_in(target, &value, &moved)[0].to_vec::<f32>()[0])
        };
        let expected = (shifted(1.0) - shifted(-1.0)) / (2.0 * f64::from(step));
        let close = (along - expected).abs() <= 4e-3 * expected.abs().max(1.0);
        assert!(
            close,
            "{} ({target:?}): gradient along the direction {along}, central difference {expected}",
            row.name
        );
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Builds seven steps of a small recurrence with captured weights: unrolled, or as a loop whose number of trips is fixed or an
/// input.
fn recurrence(form: Option<(RepeatOptions, bool)>) -> Function {
    let g = Graph::new("recurrence");
    let x = g.input("x", &Shape::f32(&[4, 3]));
    let w = g.input("w", &Shape::f32(&[3, 3]));
    let trips = g.input("trips", &Shape::s32(&[]));
    fn cell<'g>(c: Sym<'g>, w: Sym<'g>) -> (Sym<'g>, Sym<'g>) {
        let inner = c.dot(w).keep();
        (c + inner.elu() * 0.3, inner.square().sum(&[1]))
    }
    let mut told = Vec::new();
    let y = match form {
        Some((options, dynamic)) => {
            let (trips, most) = if dynamic { (Some(trips), 9) } else { (None, 7) };
            let how = Loop { options, trips, max_trips: most, init: &[x] };
            let results = g.repeat_with(how, |_, c| {
                let (next, tell) = cell(c[0], w);
                (vec![next], vec![tell])
            });
            told.extend((0..7).map(|i| results[1].row(index(&g, i))));
            results[0]
        }
        None => (0..7).fold(x, |c, _| {
            let (next, tell) = cell(c, w);
            told.push(tell);
            next
        }),
    };
    let told =
        told.iter().enumerate().fold(x.scalar_like(0.0), |sum, (i, t)| sum + t.sum_all() * (i as f64 + 1.0));
    let loss = weighted(&g, y.square()) + told;
    let grads = gradient(loss, &[x, w]);
    common::finish(&g, &[("loss".into(), loss), ("dx".into(), grads[0]), ("dw".into(), grads[1])])
}

#[test]
fn loops_agree_with_their_unrolled_form() {
    let inputs = [fill(&[4, 3], 5, (-1.0, 1.0)), fill(&[3, 3], 6, (-1.0, 1.0)), Array::scalar(7i32)];
    let forms = [0, 1, 2, 3, 7, 20].into_iter().flat_map(|k| [(k, false), (k, true)]);
    for (target, (remat, dynamic)) in
        targets().into_iter().flat_map(|t| forms.clone().map(move |form| (t, form)))
    {
        let unrolled = evaluate_in(target, &recurrence(None), &inputs);
        for (save_as, tolerance) in [(None, 1e-6), (Some(DType::Bf16), 2e-2)] {
            let options = RepeatOptions { remat, save_as };
            let looped = evaluate_in(target, &recurrence(Some((options, dynamic))), &inputs);
            for (a, b) in looped.iter().zip(&unrolled) {
                let (a, b) = (a.to_vec::<f32>(), b.to_vec::<f32>());
                let size = b.iter().fold(0f32, |m, v| m.max(v.abs()));
                let error = a.iter().zip(&b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(error <= tolerance * size, "{target:?}, {options:?}: off by {error} of {size}");
            }
        }
    }
}

/// Returns the shapes of the stacks of a block's loops.
fn stacks(block: &Block) -> Vec<String> {
    let repeats = block.nodes.iter().filter_map(|node| match &node.op {
        Op::Repeat(repeat) => Some((repeat.as_ref(), &node.shapes)),
        _ => None,
    });
    let own = |(repeat, shapes): (&vnca::engine::ir::ops::control::Repeat, &Vec<Shape>)| {
        let mut own: Vec<String> = shapes[repeat.carries..].iter().map(Shape::to_string).collect();
        own.extend(stacks(&repeat.body));
        own
    };
    repeats.flat_map(own).collect()
}

#[test]
fn loops_save_the_requested_values() {
    let saved = |remat, save_as| stacks(&recurrence(Some((RepeatOptions { remat, save_as }, false))).block);
    // Stacked values of the body, carries, and the marked value if it is saved.
    assert_eq!(saved(0, None), ["f32[7,4]", "f32[7,4,3]", "f32[7,4,3]"]);
    assert_eq!(saved(1, None), ["f32[7,4]", "f32[7,4,3]"]);
    assert_eq!(saved(0, Some(DType::Bf16)), ["f32[7,4]", "bf16[7,4,3]", "bf16[7,4,3]"]);
    // Segments of 3 trips: the carries of each segment in the forward loop, then those of one segment's trips at a time.
    let segments = saved(3, None);
    assert!(segments.contains(&"f32[3,4,3]".to_string()), "{segments:?}");
    assert!(segments.iter().all(|s| !s.starts_with("f32[7")), "{segments:?}");
}

#[test]
fn build_errors_name_the_operation_and_the_line() {
    let g = Graph::new("wrong");
    let x = g.input("x", &Shape::f32(&[2, 3]));
    let y = g.input("y", &Shape::f32(&[2, 3]));
    let z = x.dot(y);
    let error = g.finish(&[("z".into(), z)], &[]).unwrap_err().to_string();
    assert!(error.contains("dot(f32[2,3], f32[2,3])") && error.contains("gradients.rs"), "{error}");
}
