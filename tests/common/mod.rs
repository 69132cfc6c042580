//! What several test files share: making arrays, running a graph.
#![allow(dead_code)]

pub mod models;

use std::sync::OnceLock;

use rand::RngExt;
use vnca::engine::array::Array;
use vnca::engine::compile;
use vnca::engine::ir::{Function, Graph, Sym};
use vnca::engine::lower::{Target, lower};
use vnca::engine::random::Key;
use vnca::engine::runtime::{Arg, Device, Mesh};
use vnca::engine::shape::Precision;

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

/// A mesh of the CPU. All tests of a file share one client, as a process of a user's has one.
pub fn mesh(replicas: usize) -> Mesh {
    static MESH: OnceLock<Mesh> = OnceLock::new();
    let open = || Mesh::builder(&Device::Cpu).devices(MOST_REPLICAS).open(1).expect("the CPU is there");
    MESH.get_or_init(open).with_replicas(replicas).expect("it has as many devices")
}

/// The forms that users get without asking, with oneDNN where there is one, and XLA's own.
pub fn targets() -> Vec<Target> {
    let mut targets = vec![compile::target(&mesh(1), Precision::F32), Target::Cpu];
    targets.dedup();
    targets
}

/// Runs a computation on one CPU device in XLA's own forms.
pub fn evaluate(function: &Function, inputs: &[Array]) -> Vec<Array> {
    evaluate_in(Target::Cpu, function, inputs)
}

/// Runs a computation on one CPU device in the forms that are asked for.
pub fn evaluate_in(target: Target, function: &Function, inputs: &[Array]) -> Vec<Array> {
    run(function, target, &[inputs.to_vec()]).swap_remove(0)
}

/// Runs a computation on as many CPU devices as there are rows of inputs; gives each one's results.
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
