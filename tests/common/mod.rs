//! Helpers of several test files: creating arrays and running graphs.
#![allow(dead_code)]

pub mod models;

use std::sync::OnceLock;

use rand::RngExt;
use vnca::engine::array::Array;
use vnca::engine::compile;
use vnca::engine::ir::{Function, Graph, Sym};
use vnca::engine::lower::{Target, lower};
use vnca::engine::random::Key;
use vnca::engine::runtime::{Arg, Cache, Device, Mesh};
use vnca::engine::shape::Precision;

/// The largest number of replicas in a test. All tests of a file run in one process.
const MOST_REPLICAS: usize = 8;

/// Returns pseudo-random numbers in a range, the same on every machine.
pub fn fill(dims: &[usize], seed: u64, (low, high): (f32, f32)) -> Array {
    let mut rng = Key::new(seed).rng();
    let data: Vec<f32> = (0..dims.iter().product()).map(|_| rng.random_range(low..high)).collect();
    Array::new(dims, &data)
}

pub fn finish(graph: &Graph, outputs: &[(String, Sym<'_>)]) -> Function {
    graph.finish(outputs, &[]).expect("the graph is well formed")
}

/// Returns a mesh of the CPU without a cache of compiled programs. All tests of a file share one client, because a user's process has one client too.
pub fn mesh(replicas: usize) -> Mesh {
    static MESH: OnceLock<Mesh> = OnceLock::new();
    let builder = Mesh::builder(&Device::Cpu).devices(MOST_REPLICAS).cache(Cache::Off);
    MESH.get_or_init(|| builder.open(1).expect("the CPU opens"))
        .with_replicas(replicas)
        .expect("the client has enough devices")
}

/// Returns the default forms, which use oneDNN if it is available, and XLA's own.
pub fn targets() -> Vec<Target> {
    let mut targets = vec![compile::target(&mesh(1), Precision::F32), Target::Cpu];
    targets.dedup();
    targets
}

/// Runs a computation on one CPU device in XLA's own forms.
pub fn evaluate(function: &Function, inputs: &[Array]) -> Vec<Array> {
    evaluate_in(Target::Cpu, function, inputs)
}

/// Runs a computation on one CPU device in the given forms.
pub fn evaluate_in(target: Target, function: &Function, inputs: &[Array]) -> Vec<Array> {
    run(function, target, &[inputs.to_vec()]).swap_remove(0)
}

/// Runs a computation on one CPU device for each row of inputs and returns each device's results.
pub fn run(function: &Function, target: Target, inputs: &[Vec<Array>]) -> Vec<Vec<Array>> {
    let mesh = mesh(inputs.len());
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
