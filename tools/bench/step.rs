//! Milliseconds of a gradient step, and of compiling it: `cargo run --release --example bench_step -- [MODEL] [BATCH]`.
//!
//! Prints the machine's f32 matrix-product peak, measured in the same run, so that a figure can be held against it.

use std::time::Instant;

use anyhow::{Context, Result};
use vnca::array::Array;
use vnca::ir::Graph;
use vnca::lower::lower;
use vnca::model::params::init;
use vnca::model::{Kind, Model};
use vnca::random::Key;
use vnca::runtime::{Arg, Buffers, Device, Mesh};
use vnca::shape::{DType, Shape};
use vnca::train::optimiser::Optimiser;
use vnca::train::order::chunk_order;
use vnca::train::step::StepSpec;

const IMAGES: usize = 1000;
const CALLS: usize = 5;

fn main() -> Result<()> {
    vnca::quiet::hush();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let kind: Kind = arguments.first().map_or("baseline", String::as_str).parse()?;
    let batch: usize = arguments.get(1).map_or("32", String::as_str).parse().context("BATCH")?;
    let steps = if kind == Kind::Baseline { 10 } else { 2 };
    let mesh = Mesh::open(&Device::Cpu, 1)?;
    println!("matrix product     {:8.0} GFLOP/s", peak(&mesh)?);

    let model = Model::new(kind, None)?;
    let spec = StepSpec {
        model,
        optimiser: Optimiser::REPORT,
        replicas: 1,
        batch,
        chunk: steps,
        images: IMAGES,
        beta: 1.0,
    };
    let program = lower(&spec.function()?, mesh.target(), 1)?;
    println!("module             {:8} bytes", program.module.len());
    let began = Instant::now();
    let executable = mesh.compile(program)?;
    println!("compile            {:8.1} s", began.elapsed().as_secs_f64());

    let leaves = model.leaves();
    let mut state: Vec<Buffers> = Vec::new();
    for (leaf, values) in leaves.iter().zip(init(&leaves, Key::new(0))) {
        state.push(mesh.replicate(&leaf.to_inner(&values))?);
    }
    for entry in &spec.state()[leaves.len()..] {
        let pred = entry.shape.dtype == DType::Pred;
        state.push(mesh.replicate(&if pred { Array::truth(true) } else { Array::zeros(&entry.shape) })?);
    }
    let pixels: Vec<u8> = Key::new(3).bernoulli(IMAGES * 784, |_| 0.13).into_iter().map(u8::from).collect();
    let images = mesh.replicate(&Array::new(&[IMAGES, 28, 28], &pixels))?;
    let order = chunk_order(Key::new(1), IMAGES, batch, steps).images;
    let order = mesh.replicate(&Array::new(&[steps, batch], &order))?;
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let start = mesh.replicate(&Array::scalar(0i32))?;
        let trips = mesh.replicate(&Array::scalar(steps as i32))?;
        let mut arguments: Vec<Arg<'_>> = state.drain(..).map(Arg::from).collect();
        arguments.extend([Arg::from(&images), Arg::from(&order), Arg::from(start), Arg::from(trips)]);
        let began = Instant::now();
        state = executable.call(arguments)?;
        let norm = state.pop().context("the norms are the last result")?;
        norm.get(0)?;
        state.pop();
        times.push(began.elapsed().as_secs_f64() * 1e3 / steps as f64);
    }
    times.sort_by(f64::total_cmp);
    println!("step               {:8.1} ms (fastest {:.1})", times[CALLS / 2], times[0]);
    Ok(())
}

/// The best of a few large products.
fn peak(mesh: &Mesh) -> Result<f64> {
    const SIZE: usize = 2048;
    let g = Graph::new("product");
    let [a, b] = ["a", "b"].map(|name| g.input(name, &Shape::f32(&[SIZE, SIZE])));
    let corner = a.dot(b).slice(&[0, 0], &[1, 1]);
    let executable = mesh.compile(lower(&g.finish(&[("c".into(), corner)], &[])?, mesh.target(), 1)?)?;
    let x = mesh.replicate(&Array::new(&[SIZE, SIZE], &Key::new(1).normal(SIZE * SIZE)))?;
    let mut best = f64::MAX;
    for _ in 0..5 {
        let began = Instant::now();
        executable.call(vec![(&x).into(), (&x).into()])?[0].get(0)?;
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok(2.0 * (SIZE as f64).powi(3) / best * 1e-9)
}
