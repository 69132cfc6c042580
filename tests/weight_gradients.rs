//! On CPUs weight gradients of convolutions call a separate library and are divided among threads. For every window, size and
//! precision they equal the results of XLA's own convolutions.

mod common;

use common::{fill, finish, mesh, run};
use vnca::engine::array::Array;
use vnca::engine::compile;
use vnca::engine::ir::ops::conv::Window;
use vnca::engine::ir::{Function, Graph};
use vnca::engine::lower::Target;
use vnca::engine::shape::{Precision, Shape};

struct Case {
    window: Window,
    image: [usize; 4],
    result: [usize; 4],
    kernel: [usize; 2],
}

/// More and fewer images than threads, numbers of channels that fill no block of the library, and all kinds of windows.
fn cases() -> Vec<Case> {
    let case = |window: Window, image: [usize; 4], kernel: [usize; 2], out: usize| {
        let [h, w] = [0, 1].map(|d| window.output_size(d, image[d + 1], kernel[d]).expect("the kernel fits"));
        Case { window, image, result: [image[0], h, w, out], kernel }
    };
    let same = Window::new(1, (1, 1));
    let apart = Window { kernel_dilation: [2, 3], ..Window::new(1, (2, 3)) };
    let cut = Window { padding: [(-2, 1), (0, -3)], ..same };
    vec![
        case(same, [4, 16, 16, 32], [3, 3], 32),
        case(same, [1, 32, 32, 3], [3, 3], 70),
        case(same, [5, 16, 24, 17], [3, 3], 130),
        case(same, [3, 8, 8, 64], [1, 1], 16),
        case(Window::new(2, (2, 2)), [32, 16, 16, 8], [5, 5], 24),
        case(Window::new(2, (2, 2)), [1, 33, 31, 8], [5, 5], 24),
        case(apart, [2, 20, 20, 16], [3, 2], 16),
        case(cut, [2, 20, 20, 16], [3, 3], 16),
        case(Window::transposed(5, 2, 2, 1), [8, 8, 8, 24], [5, 5], 16),
        // Most rows of the first and the last thread lie in the padding.
        case(Window::new(1, (4, 4)), [1, 32, 32, 8], [9, 9], 8),
    ]
}

fn gradient(case: &Case, precision: Precision) -> Function {
    let g = Graph::with_precision("weight_gradient", precision);
    let (x, y) = (g.input("x", &Shape::f32(&case.image)), g.input("y", &Shape::f32(&case.result)));
    finish(&g, &[("gradient".to_string(), x.conv_weight_grad(y, case.window, case.kernel))])
}

/// Returns small integers, whose sums are exact in both precisions.
fn numbers(dims: &[usize], seed: u64) -> Array {
    let values = fill(dims, seed, (-3.0, 3.0)).to_vec::<f32>();
    Array::new(dims, &values.into_iter().map(f32::round).collect::<Vec<f32>>())
}

#[test]
fn weight_gradients_equal_those_of_xlas_convolutions() {
    let mesh = mesh(1);
    for precision in [Precision::F32, Precision::Bf16] {
        let target = compile::target(&mesh, precision);
        if target == Target::Cpu {
            println!("{precision:?}: the library is not available on this CPU");
            continue;
        }
        for case in cases() {
            // Two replicas at once, which share the threads.
            let inputs = [1, 3].map(|seed| vec![numbers(&case.image, seed), numbers(&case.result, seed + 1)]);
            let of = |target, precision| run(&gradient(&case, precision), target, &inputs);
            let expected = of(Target::Native, Precision::F32);
            let got = of(target, precision);
            assert!(expected[0][0].to_vec::<f32>().iter().any(|v| *v != 0.0));
            for (expected, got) in expected.iter().flatten().zip(got.iter().flatten()) {
                let differ = expected
                    .to_vec::<f32>()
                    .iter()
                    .zip(got.to_vec::<f32>())
                    .filter(|(e, g)| **e != *g)
                    .count();
                let Case { window, image, result, kernel } = &case;
                assert_eq!(
                    differ, 0,
                    "{precision:?}, {window:?} over {image:?} to {result:?}, kernel {kernel:?}"
                );
            }
        }
    }
}
