//! Every convolution of the baseline and its two gradients, in the native form and in the CPU's, as GFLOP/s:
//! `cargo run --release --example bench_conv`. Products with the zeros of a dilated image are not counted.

use std::time::Instant;

use anyhow::Result;
use vnca::array::Array;
use vnca::ir::ops::conv::Window;
use vnca::ir::{Graph, Sym, pullback};
use vnca::lower::{Target, lower};
use vnca::random::Key;
use vnca::runtime::{Arg, Device, Mesh};
use vnca::shape::Shape;

const BATCH: usize = 32;

type Build = for<'g> fn(&[Sym<'g>], Window) -> Sym<'g>;

fn main() -> Result<()> {
    vnca::quiet::hush();
    println!("{:32} {:>10} {:>10}", "GFLOP/s", "native", "cpu form");
    for (side, input, output, stride) in
        [(32, 1, 32, 1), (32, 32, 64, 2), (16, 64, 128, 2), (8, 128, 256, 2), (4, 256, 512, 2)]
    {
        let places = (side / stride) * (side / stride);
        layer("encoder", [side, side / stride, input, output], places, Window::new(stride, (2, 2)))?;
    }
    for (side, input, output) in [(2, 512, 256), (4, 256, 128), (8, 128, 64), (16, 64, 32)] {
        layer("decoder", [side, 2 * side, input, output], side * side, Window::transposed(5, 2, 2, 1))?;
    }
    layer("decoder", [32, 28, 32, 1], 28 * 28, Window::transposed(5, 1, 4, 0))
}

/// A layer's forward pass, image gradient and weight gradient, each of `places` · 25 · in · out products an image.
fn layer(
    name: &str,
    [side, out_side, input, output]: [usize; 4],
    places: usize,
    window: Window,
) -> Result<()> {
    let products = (BATCH * places * 25 * input * output) as f64;
    let image = [BATCH, side, side, input];
    let result = [BATCH, out_side, out_side, output];
    let kernel = [5, 5, input, output];
    let parts: [(&str, Vec<[usize; 4]>, Build); 3] = [
        ("forward", vec![image, kernel], |x, w| x[0].conv(x[1], w)),
        ("image gradient", vec![image, kernel, result], |x, w| {
            pullback(&[(x[0].conv(x[1], w), x[2])], &[x[0]])[0]
        }),
        ("weight gradient", vec![image, result], |x, w| x[0].conv_weight_grad(x[1], w, [5, 5])),
    ];
    for (part, inputs, build) in parts {
        let rates: Result<Vec<f64>> = [Target::Native, Target::Cpu]
            .iter()
            .map(|t| rate(*t, &inputs, window, build, products))
            .collect();
        let rates = rates?;
        let label = format!("{name} {side:2} {input:3}->{output:3} {part}");
        println!("{label:38} {:>6.1} {:>8.1}", rates[0], rates[1]);
    }
    Ok(())
}

fn rate(target: Target, inputs: &[[usize; 4]], window: Window, build: Build, products: f64) -> Result<f64> {
    let g = Graph::new("bench");
    let x: Vec<Sym<'_>> =
        inputs.iter().enumerate().map(|(i, d)| g.input(&format!("x{i}"), &Shape::f32(d))).collect();
    let function = g.finish(&[("y".into(), build(&x, window))], &[])?;
    let mesh = Mesh::open(&Device::Cpu, 1)?;
    let executable = mesh.compile(lower(&function, target, 1)?)?;
    let mut buffers = Vec::new();
    for dims in inputs {
        let values = Key::new(1).uniform(dims.iter().product(), -1.0, 1.0);
        buffers.push(mesh.replicate(&Array::new(dims, &values))?);
    }
    let mut best = f64::MAX;
    for _ in 0..4 {
        let began = Instant::now();
        executable.call(buffers.iter().map(Arg::from).collect())?[0].get(0)?;
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok(2.0 * products / best * 1e-9)
}
