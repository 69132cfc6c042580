//! Operations on whole arrays: layout, reductions and rows. Matmuls and convolutions are compared with plain loops.

use super::{APPROXIMATE, Case, case, f32s, small_integers};
use crate::engine::array::Array;
use crate::engine::ir::ops::conv::Window;
use crate::engine::ir::ops::layout::Padding;
use crate::engine::ir::ops::linalg::Dot;
use crate::engine::ir::{Graph, Sym, gradient};
use crate::engine::shape::Shape;

/// Returns an array of these sizes with the elements 0, 1, 2, ...
fn iota(dims: &[usize]) -> Array {
    let n: usize = dims.iter().product();
    f32s(dims, &(0..n).map(|i| i as f32).collect::<Vec<_>>())
}

fn index<'g>(g: &'g Graph, value: i32) -> Sym<'g> {
    g.constant(Array::scalar(value))
}

fn s32s(values: &[i32]) -> Array {
    Array::new(&[values.len()], values)
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = layouts();
    cases.extend(reductions());
    cases.extend(rows());
    cases
}

fn layouts() -> Vec<Case> {
    let x = || vec![iota(&[2, 3])];
    vec![
        case("parameter", x(), iota(&[2, 3]), |_, x| x[0]),
        case("constant", x(), f32s(&[2, 3], &[10.0, 21.0, 32.0, 13.0, 24.0, 35.0]), |g, x| {
            x[0] + g.constant(f32s(&[3], &[10.0, 20.0, 30.0]))
        }),
        case("iota", x(), f32s(&[2, 3], &[0.0, 2.0, 4.0, 3.0, 5.0, 7.0]), |g, x| {
            x[0] + g.iota(&Shape::f32(&[2, 3]), 1)
        }),
        case(
            "broadcast",
            x(),
            f32s(&[2, 2, 3], &[0., 1., 2., 0., 1., 2., 3., 4., 5., 3., 4., 5.]),
            |_, x| x[0].broadcast_in_dim(&[2, 2, 3], &[0, 2]),
        ),
        case("reshape", x(), iota(&[3, 2]), |_, x| x[0].reshape(&[3, 2])),
        case("transpose", vec![iota(&[2, 3, 4])], iota(&[2, 3, 4]).transpose(&[2, 0, 1]), |_, x| {
            x[0].transpose(&[2, 0, 1])
        }),
        case("slice", vec![iota(&[4, 5])], f32s(&[2, 2], &[6.0, 8.0, 16.0, 18.0]), |_, x| {
            x[0].slice_strided(&[1, 1], &[4, 5], &[2, 2])
        }),
        case(
            "pad",
            vec![iota(&[3]), Array::scalar(9f32)],
            f32s(&[7], &[9., 0., 9., 1., 9., 2., 9.]),
            |_, x| x[0].pad(x[1], &[Padding { low: 1, high: 1, interior: 1 }]),
        ),
        case(
            "pad that cuts",
            vec![iota(&[4]), Array::scalar(9f32)],
            f32s(&[4], &[1.0, 2.0, 3.0, 9.0]),
            |_, x| x[0].pad(x[1], &[Padding::new(-1, 1)]),
        ),
        case("concat", x(), f32s(&[2, 4], &[0.0, 1.0, 2.0, 0.0, 3.0, 4.0, 5.0, 3.0]), |_, x| {
            Sym::concat(&[x[0], x[0].slice(&[0, 0], &[2, 1])], 1)
        }),
        case("reverse", x(), f32s(&[2, 3], &[2.0, 1.0, 0.0, 5.0, 4.0, 3.0]), |_, x| x[0].reverse(&[1])),
        case(
            "double_grid",
            vec![iota(&[1, 2, 2, 1])],
            f32s(&[1, 4, 4, 1], &[0., 0., 1., 1., 0., 0., 1., 1., 2., 2., 3., 3., 2., 2., 3., 3.]),
            |_, x| x[0].double_grid(),
        ),
    ]
}

fn reductions() -> Vec<Case> {
    let x = || vec![iota(&[2, 3, 2])];
    let log_sum = |values: [f64; 3]| values.iter().map(|v| v.exp()).sum::<f64>().ln() as f32;
    vec![
        case("reduce_sum", x(), f32s(&[3], &[14.0, 22.0, 30.0]), |_, x| x[0].sum(&[0, 2])),
        case("reduce_max", x(), f32s(&[2], &[10.0, 11.0]), |_, x| x[0].reduce_max(&[0, 1])),
        case(
            "reduce_max of minus infinities",
            vec![f32s(&[2], &[f32::NEG_INFINITY; 2])],
            Array::scalar(f32::NEG_INFINITY),
            |_, x| x[0].reduce_max(&[0]),
        ),
        case(
            "logsumexp",
            vec![f32s(&[2, 3], &[100.0, 101.0, 99.0, -200.0, f32::NEG_INFINITY, -201.0])],
            f32s(
                &[2],
                &[100.0 + log_sum([0.0, 1.0, -1.0]), -200.0 + log_sum([0.0, f64::NEG_INFINITY, -1.0])],
            ),
            |_, x| x[0].logsumexp(1),
        )
        .with_tolerance(APPROXIMATE),
    ]
}

fn rows() -> Vec<Case> {
    let x = || iota(&[4, 2]);
    let updates = || f32s(&[3, 2], &[10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
    vec![
        case(
            "dynamic_slice",
            vec![iota(&[4, 5]), Array::scalar(1i32)],
            f32s(&[2, 2], &[7.0, 8.0, 12.0, 13.0]),
            |g, x| x[0].dynamic_slice(&[x[1], index(g, 2)], &[2, 2]),
        ),
        case(
            "dynamic_slice beyond the end",
            vec![iota(&[5]), Array::scalar(9i32)],
            f32s(&[2], &[3.0, 4.0]),
            |_, x| x[0].dynamic_slice(&[x[1]], &[2]),
        ),
        case(
            "dynamic_update_slice",
            vec![iota(&[5]), f32s(&[2], &[7.0, 8.0]), Array::scalar(2i32)],
            f32s(&[5], &[0.0, 1.0, 7.0, 8.0, 4.0]),
            |_, x| x[0].dynamic_update_slice(x[1], &[x[2]]),
        ),
        case("take", vec![x(), s32s(&[3, 0, 3])], f32s(&[3, 2], &[6.0, 7.0, 0.0, 1.0, 6.0, 7.0]), |_, x| {
            x[0].take(x[1])
        }),
        case(
            "add_rows",
            vec![x(), s32s(&[2, 0, 2]), updates()],
            f32s(&[4, 2], &[30.0, 41.0, 2.0, 3.0, 64.0, 85.0, 6.0, 7.0]),
            |_, x| x[0].add_rows(x[1], x[2]),
        ),
        case(
            "set_rows",
            vec![x(), s32s(&[3, 0, 1]), updates()],
            f32s(&[4, 2], &[30.0, 40.0, 50.0, 60.0, 4.0, 5.0, 10.0, 20.0]),
            |_, x| x[0].set_rows(x[1], x[2]),
        ),
        case(
            "sort",
            vec![Array::new(&[2, 3], &[9u32, 4, 0xFFFF_FFFF, 2, 2, 1])],
            Array::new(&[2, 3], &[4u32, 9, 0xFFFF_FFFF, 1, 2, 2]),
            |_, x| x[0].sort(),
        ),
    ]
}

const STRIDED: Window =
    Window { stride: [2, 1], padding: [(1, 2), (0, 1)], image_dilation: [1, 2], kernel_dilation: [1, 1] };

const CUTTING: Window =
    Window { stride: [1, 1], padding: [(-2, 1), (0, -3)], image_dilation: [1, 1], kernel_dilation: [1, 1] };

pub(super) fn matmul_and_convolution_cases() -> Vec<Case> {
    let mut cases = dots();
    for (name, window, image, kernel) in [
        ("conv", Window::new(1, (1, 1)), [2, 5, 6, 3], [3, 3, 3, 4]),
        ("conv with stride", Window::new(2, (2, 2)), [2, 8, 8, 3], [5, 5, 3, 4]),
        ("conv 1x1", Window::new(1, (0, 0)), [2, 4, 4, 8], [1, 1, 8, 5]),
        ("conv transposed", Window::transposed(5, 2, 2, 1), [2, 3, 3, 4], [5, 5, 4, 2]),
        ("conv of all kinds", STRIDED, [2, 5, 4, 2], [3, 2, 2, 3]),
        ("conv that cuts", CUTTING, [2, 8, 9, 3], [3, 3, 3, 4]),
        (
            "conv over dilated kernel",
            Window { kernel_dilation: [2, 3], ..Window::new(1, (0, 1)) },
            [1, 7, 7, 2],
            [2, 3, 2, 2],
        ),
    ] {
        cases.extend(convolution(name, window, image, kernel));
    }
    cases
}

fn dots() -> Vec<Case> {
    let (a, b) = (small_integers(&[6, 20], 1), small_integers(&[20, 5], 2));
    let mut product = vec![0f32; 30];
    let (left, right) = (a.to_vec::<f32>(), b.to_vec::<f32>());
    for (i, j, k) in (0..6).flat_map(|i| (0..5).flat_map(move |j| (0..20).map(move |k| (i, j, k)))) {
        product[i * 5 + j] += left[i * 20 + k] * right[k * 5 + j];
    }
    let (c, d) = (small_integers(&[3, 2, 5], 3), small_integers(&[4, 3, 5], 4));
    let (left, right) = (c.to_vec::<f32>(), d.to_vec::<f32>());
    let mut batches = vec![0f32; 3 * 2 * 4];
    for (n, i, j) in (0..3).flat_map(|n| (0..2).flat_map(move |i| (0..4).map(move |j| (n, i, j)))) {
        batches[(n * 2 + i) * 4 + j] =
            (0..5).map(|k| left[(n * 2 + i) * 5 + k] * right[(j * 3 + n) * 5 + k]).sum();
    }
    vec![
        case("dot", vec![a, b], f32s(&[6, 5], &product), |_, x| x[0].dot(x[1])),
        case("dot of batches", vec![c, d], f32s(&[3, 2, 4], &batches), |_, x| {
            let [lhs_contract, rhs_contract, lhs_batch, rhs_batch] = [vec![2], vec![2], vec![0], vec![1]];
            x[0].dot_general(x[1], Dot { lhs_contract, rhs_contract, lhs_batch, rhs_batch })
        }),
    ]
}

/// Calls `f` for each product that a convolution adds up, with the row-major indices of its image, kernel and result elements.
fn for_each_product(
    window: &Window,
    image: [usize; 4],
    kernel: [usize; 4],
    out: [usize; 2],
    mut f: impl FnMut([usize; 3]),
) {
    // Along one dimension: each triple of a result's index, a kernel's index and the index of the pixel that they use.
    let along = |d: usize| {
        let mut found = Vec::new();
        for (position, tap) in (0..out[d]).flat_map(|p| (0..kernel[d]).map(move |t| (p, t))) {
            let at =
                (position * window.stride[d] + tap * window.kernel_dilation[d]) as i64 - window.padding[d].0;
            let step = window.image_dilation[d] as i64;
            if at >= 0 && at % step == 0 && at / step < image[1 + d] as i64 {
                found.push((position, tap, (at / step) as usize));
            }
        }
        found
    };
    let ([n, h, w, channels], [_, kw, _, outs]) = (image, kernel);
    let columns = along(1);
    for (y, i, row) in along(0) {
        for &(x, j, column) in &columns {
            for (b, c, o) in
                (0..n).flat_map(|b| (0..channels).flat_map(move |c| (0..outs).map(move |o| (b, c, o))))
            {
                f([
                    ((b * h + row) * w + column) * channels + c,
                    ((i * kw + j) * channels + c) * outs + o,
                    ((b * out[0] + y) * out[1] + x) * outs + o,
                ]);
            }
        }
    }
}

/// Returns three cases: a convolution, and the gradients by kernel and by image of its inner product with a fixed array.
fn convolution(name: &str, window: Window, image: [usize; 4], kernel: [usize; 4]) -> [Case; 3] {
    let size = |d: usize| window.output_size(d, image[1 + d], kernel[d]).expect("the kernel fits");
    let grid = [size(0), size(1)];
    let out = [image[0], grid[0], grid[1], kernel[3]];
    let arrays = [small_integers(&image, 1), small_integers(&kernel, 2), small_integers(&out, 3)];
    let [x, w, ct] = [0, 1, 2].map(|i| arrays[i].to_vec::<f32>());
    let (mut y, mut dw, mut dx) = (vec![0f32; ct.len()], vec![0f32; w.len()], vec![0f32; x.len()]);
    for_each_product(&window, image, kernel, grid, |[a, b, c]| {
        y[c] += x[a] * w[b];
        dw[b] += x[a] * ct[c];
        dx[a] += w[b] * ct[c];
    });
    let [x, w, _] = &arrays;
    [
        case(name, vec![x.clone(), w.clone()], f32s(&out, &y), move |_, v| v[0].conv(v[1], window)),
        case(&format!("{name}, by its kernel"), arrays.to_vec(), f32s(&kernel, &dw), move |_, v| {
            gradient((v[0].conv(v[1], window) * v[2]).sum_all(), &[v[1]])[0]
        }),
        case(&format!("{name}, by its image"), arrays.to_vec(), f32s(&image, &dx), move |_, v| {
            gradient((v[0].conv(v[1], window) * v[2]).sum_all(), &[v[0]])[0]
        }),
    ]
}
