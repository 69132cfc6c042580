//! What several test files share: making arrays, running a graph.
#![allow(dead_code)]

pub mod models;

use rand::RngExt;
use vnca::engine::array::Array;
use vnca::engine::ir::{Function, Graph, Sym};
use vnca::engine::lower::{Target, lower};
use vnca::engine::random::Key;
use vnca::engine::runtime::{Arg, Device, Mesh};

/// Replicas that a test takes at most, all tests of a file in one process.
const MOST_REPLICAS: usize = 8;

/// Numbers in a range that look random and are the same everywhere.
pub fn fill(dims: &[usize], seed: u64, (low, high): (f32, f32)) -> Array {
    let mut rng = Key::new(seed).rng();
    let data: Vec<f32> = (0..dims.iter().product()).map(|_| rng.random_range(low..high)).collect();
    Array::new(dims, &data)
}

pub fn finish(graph: &Graph, outputs: &[(String, Sym<'_>)]) -> Function {
    graph.finish(outputs, &[]).expect("the graph is well formed")
}

/// Runs a computation on one CPU device.
pub fn evaluate(function: &Function, inputs: &[Array]) -> Vec<Array> {
    run(function, Target::Cpu, &[inputs.to_vec()]).swap_remove(0)
}

/// Runs a computation on as many CPU devices as there are rows of inputs; gives each one's results.
pub fn run(function: &Function, target: Target, inputs: &[Vec<Array>]) -> Vec<Vec<Array>> {
    Mesh::reserve(MOST_REPLICAS);
    let mesh = Mesh::open(&Device::Cpu, inputs.len()).expect("the CPU is there");
    let program = lower(function, target, inputs.len()).expect("lowers");
    let executable = mesh.compile(program).expect("compiles");
    let arguments: Vec<Arg<'_>> = (0..function.inputs.len())
        .map(|i| {
            let parts: Vec<Array> = inputs.iter().map(|row| row[i].clone()).collect();
            mesh.shard(&parts).expect("uploads").into()
        })
        .collect();
    let results = executable.call(arguments).expect("runs");
    (0..inputs.len()).map(|r| results.iter().map(|b| b.get(r).expect("downloads")).collect()).collect()
}
