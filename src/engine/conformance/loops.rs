//! Loops and their gradients, compared with closed forms. Random draws in a graph, compared with those of the host.

use super::{APPROXIMATE, Case, case, f32s};
use crate::engine::array::Array;
use crate::engine::ir::{Graph, Loop, RepeatOptions, Sym, gradient};
use crate::engine::random::{Key, graph as draw};
use crate::engine::shape::DType;

/// Computes x · w^trips as a loop.
fn powers<'g>(g: &'g Graph, x: &[Sym<'g>], options: RepeatOptions, trips: Option<Sym<'g>>) -> Sym<'g> {
    let spec = Loop { options, trips, max_trips: 5, init: &[x[0]] };
    g.repeat_with(spec, |_, c| (vec![(c[0] * x[1]).keep()], vec![]))[0]
}

pub(super) fn cases() -> Vec<Case> {
    let inputs = || vec![f32s(&[3], &[1.0, -2.0, 3.0]), f32s(&[3], &[2.0, 2.0, -1.0])];
    let with_trips = |trips: i32| [inputs(), vec![Array::scalar(trips)]].concat();
    let mut cases = vec![
        case("repeat", inputs(), f32s(&[3], &[32.0, -64.0, -3.0]), |g, x| {
            powers(g, x, RepeatOptions::default(), None)
        }),
        case(
            "repeat with stacks",
            inputs(),
            f32s(&[3, 3], &[1., -2., 3., 3., -3., -2., 6., -6., 5.]),
            |g, x| {
                // Stacks the carry before each trip plus the trip's index.
                g.repeat(3, &[x[0]], |i, c| (vec![c[0] * x[1]], vec![c[0] + i.convert(DType::F32)]))[1]
            },
        ),
        case("repeat that stacks its sums", inputs(), f32s(&[2, 3], &[0., 2., 4., 2., 4., 6.]), |g, x| {
            // The sum before and after each trip.
            let sums = g.repeat(3, &[g.scalar(DType::F32, 0.0)], |_, c| {
                let next = c[0] + x[0].sum(&[0]);
                (vec![next], vec![c[0], next])
            });
            Sym::concat(&[sums[1].reshape(&[1, 3]), sums[2].reshape(&[1, 3])], 0)
        }),
        case("repeat in repeat", inputs(), f32s(&[3], &[8.0, -16.0, -3.0]), |g, x| {
            // The inner loop runs one trip, then two.
            g.repeat(2, &[x[0]], |i, c| {
                (vec![g.repeat_upto(i + 1.0, 2, &[c[0]], |_, d| (vec![d[0] * x[1]], vec![]))[0]], vec![])
            })[0]
        }),
    ];
    for (trips, last) in [(0, [1.0, -2.0, 3.0]), (2, [4.0, -8.0, 3.0]), (5, [32.0, -64.0, -3.0])] {
        cases.push(case(
            &format!("repeat of {trips} trips told at run time"),
            with_trips(trips),
            f32s(&[3], &last),
            |g, x| powers(g, x, RepeatOptions::default(), Some(x[2])),
        ));
    }
    // The derivative by w is trips · x · w^(trips - 1). All carries are integers that bf16 represents exactly.
    for (remat, save_as) in [(0, None), (1, None), (2, None), (0, Some(DType::Bf16))] {
        let options = RepeatOptions { remat, save_as };
        let saved = save_as.map_or("", |_| ", saved as bf16");
        for (trips, derivative) in [(5, [80.0, -160.0, 15.0]), (3, [12.0, -24.0, 9.0])] {
            let name = format!("gradient of {trips} trips, remat {remat}{saved}");
            cases.push(case(&name, with_trips(trips), f32s(&[3], &derivative), move |g, x| {
                gradient(powers(g, x, options, Some(x[2])).sum_all(), &[x[1]])[0]
            }));
        }
    }
    cases
}

pub(super) fn draw_cases() -> Vec<Case> {
    const N: usize = 300;
    let key = Key::new(20_231);
    let inputs = || vec![Array::new(&[2], &key.0)];
    let keys: Vec<u32> = key.split(5).iter().flat_map(|k| k.0).collect();
    let order: Vec<i32> = key.permutation(N).iter().map(|i| *i as i32).collect();
    vec![
        case("bits32", inputs(), Array::new(&[N], &key.bits32(N)), |_, x| draw::bits32(x[0], &[N])),
        case("split", inputs(), Array::new(&[5, 2], &keys), |_, x| draw::split(x[0], 5)),
        case("uniform", inputs(), f32s(&[N], &key.uniform(N, -1.0, 3.0)), |_, x| {
            draw::uniform(x[0], &[N], -1.0, 3.0)
        })
        .with_tolerance(APPROXIMATE),
        case("normal", inputs(), f32s(&[N], &key.normal(N)), |_, x| draw::normal(x[0], &[N]))
            .with_tolerance(APPROXIMATE),
        case("randint", inputs(), Array::new(&[N], &key.randint(N, -3, 40)), |_, x| {
            draw::randint(x[0], &[N], -3, 40)
        }),
        case("permutation", inputs(), Array::new(&[N], &order), |_, x| draw::permutation(x[0], N)),
    ]
}
