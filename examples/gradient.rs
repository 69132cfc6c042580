//! A graph, its gradient, and a program that fits a line to points by gradient descent.
//!
//! `cargo run --release --example gradient`

use anyhow::Result;
use vnca::engine::array::Array;
use vnca::engine::compile::compile;
use vnca::engine::ir::{Graph, gradient};
use vnca::engine::runtime::{Device, Mesh};
use vnca::engine::shape::Shape;

const POINTS: usize = 64;

fn main() -> Result<()> {
    // ANCHOR: step
    // One step: maps slope and offset to their new values and the loss.
    let g = Graph::new("line");
    let slope = g.input("slope", &Shape::f32(&[]));
    let offset = g.input("offset", &Shape::f32(&[]));
    let (x, y) = (g.input("x", &Shape::f32(&[POINTS])), g.input("y", &Shape::f32(&[POINTS])));
    let predicted = x * slope.broadcast_to(&[POINTS]) + offset.broadcast_to(&[POINTS]);
    let loss = (predicted - y).square().mean(&[0]);
    let moved: Vec<_> = gradient(loss, &[slope, offset])
        .into_iter()
        .zip([slope, offset])
        .map(|(gradient, value)| value - gradient * 0.1)
        .collect();
    let outputs = [("slope", moved[0]), ("offset", moved[1]), ("loss", loss)];
    let step = g.finish(&outputs.map(|(name, value)| (name.to_string(), value)), &[])?;
    // ANCHOR_END: step
    println!("{step}");

    // ANCHOR: run
    // Points of y = 2 x − 1, on the device.
    let mesh = Mesh::open(&Device::Cpu, 1)?;
    let executable = compile(&mesh, &step)?;
    let xs: Vec<f32> = (0..POINTS).map(|i| i as f32 / POINTS as f32 * 4.0 - 2.0).collect();
    let ys: Vec<f32> = xs.iter().map(|x| 2.0 * x - 1.0).collect();
    let x = mesh.replicate(&Array::new(&[POINTS], &xs))?;
    let y = mesh.replicate(&Array::new(&[POINTS], &ys))?;

    let mut state = [mesh.replicate(&Array::scalar(0f32))?, mesh.replicate(&Array::scalar(0f32))?];
    for i in 0..100 {
        let [slope, offset] = state;
        let mut results = executable.call(vec![slope.into(), offset.into(), (&x).into(), (&y).into()])?;
        let loss = results.remove(2).get(0)?.to_vec::<f32>()[0];
        if i % 20 == 0 {
            println!("step {i:3}: loss {loss:.6}");
        }
        state = results.try_into().ok().expect("slope and offset remain");
    }
    // ANCHOR_END: run
    let [slope, offset] = [state[0].get(0)?.to_vec::<f32>()[0], state[1].get(0)?.to_vec::<f32>()[0]];
    println!("y = {slope:.3} x + {offset:.3}");
    anyhow::ensure!((slope - 2.0).abs() < 1e-3 && (offset + 1.0).abs() < 1e-3, "the line was not found");
    Ok(())
}
