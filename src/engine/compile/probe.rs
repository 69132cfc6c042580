//! Finds out whether oneDNN can multiply operands of a precision on XLA's CPU device. Compiles and runs a small program, and
//! compares its results with those of XLA's own operations in f32.

use anyhow::{Context, Result, ensure};

use crate::engine::array::Array;
use crate::engine::ir::ops::conv::Window;
use crate::engine::ir::ops::linalg::Dot;
use crate::engine::ir::{Function, Graph};
use crate::engine::lower::lower;
use crate::engine::program::Target;
use crate::engine::runtime::Mesh;
use crate::engine::shape::{Precision, Shape};

/// Rows, columns and channels of the operands.
const SIZE: usize = 8;

/// Checks that calls of oneDNN work on operands of a precision.
///
/// # Errors
/// When they do not. The message has the reason.
pub fn one_dnn(mesh: &Mesh, precision: Precision) -> Result<()> {
    // Another library may mistake the call for one of its own. One plugin never returned from it.
    ensure!(mesh.is_linked(), "the device belongs to a plugin");
    // Without these instructions oneDNN throws an exception for bf16, which would end the process.
    ensure!(
        precision == Precision::F32 || has_instructions(),
        "the processor has no instructions for bf16 (avx512_bf16)"
    );
    let run = |precision, target| -> Result<Vec<Vec<f32>>> {
        let executable = mesh.compile(lower(&probe_program(precision, target)?, target, mesh.replicas())?)?;
        let inputs = [mesh.replicate(&numbers(3))?, mesh.replicate(&numbers(5))?];
        let results = executable.call(inputs.iter().map(Into::into).collect())?;
        results.iter().map(|r| Ok(r.get(0)?.to_vec())).collect()
    };
    let expected = run(Precision::F32, Target::Cpu)?;
    let got = run(precision, Target::OneDnn).context("calls of oneDNN fail")?;
    // The numbers and all sums are small integers, which are exact in both types.
    ensure!(expected == got, "oneDNN's results differ from those in f32");
    Ok(())
}

#[cfg(target_arch = "x86_64")]
fn has_instructions() -> bool {
    std::arch::is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_instructions() -> bool {
    false
}

fn numbers(factor: usize) -> Array {
    let values: Vec<f32> = (0..SIZE * SIZE * SIZE).map(|i| ((i * factor) % 7) as f32 - 3.0).collect();
    Array::new(&[SIZE, SIZE, SIZE], &values)
}

/// Builds the program of the probe: a convolution, its weight gradient, matmuls with each operand plain and transposed, and a
/// batched matmul; a convolution and a matmul with a bias and an ELU, positive so that the results are integers too; and a sum
/// over many rows.
fn probe_program(precision: Precision, target: Target) -> Result<Function> {
    let g = Graph::with_precision(&format!("products_{target:?}").to_lowercase(), precision);
    let [x, y] = ["x", "y"].map(|name| g.input(name, &Shape::f32(&[SIZE, SIZE, SIZE])));
    let [image, cotangent] = [x, y].map(|s| s.reshape(&[1, SIZE, SIZE, SIZE]));
    let [rows, others] = [x, y].map(|s| s.reshape(&[SIZE * SIZE, SIZE]));
    let kernel = others.slice(&[0, 0], &[9, SIZE]).reshape(&[3, 3, SIZE, 1]);
    let square = others.slice(&[0, 0], &[SIZE, SIZE]);
    let window = Window::new(1, (1, 1));
    let over =
        |lhs: usize, rhs: usize| Dot { lhs_contract: vec![lhs], rhs_contract: vec![rhs], ..Dot::default() };
    let results = [
        image.conv(kernel.broadcast_to(&[3, 3, SIZE, SIZE]), window),
        image.conv_weight_grad(cotangent, window, [3, 3]),
        rows.dot_general(square, over(1, 0)),
        rows.dot_general(square, over(1, 1)),
        rows.dot_general(others, over(0, 0)),
        x.dot_general(y, Dot { lhs_batch: vec![0], rhs_batch: vec![0], ..over(1, 1) }),
    ];
    let bias = others.slice(&[0, 0], &[1, SIZE]).reshape(&[SIZE]) + 100.0;
    let through = [results[0], results[2]].map(|y| (y + bias).elu());
    let many = rows.dot_general(others, over(1, 1)).reshape(&[8 * SIZE * SIZE, SIZE]).sum(&[0]);
    let results = results.into_iter().chain(through).chain([many]);
    let named = results.enumerate().map(|(i, s)| (i.to_string(), s));
    g.finish(&named.collect::<Vec<_>>(), &[])
}
