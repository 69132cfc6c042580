//! Eight replicas and a collective: each replica has four numbers, and an all-gather sends all of them to every replica. On a
//! CPU the replicas are virtual devices that share the cores. On a TPU or several GPUs they are real devices.
//!
//! `cargo run --release --example eight_replicas`

use anyhow::Result;
use vnca::engine::array::Array;
use vnca::engine::compile::compile;
use vnca::engine::ir::Graph;
use vnca::engine::runtime::{Device, Mesh};
use vnca::engine::shape::Shape;

const REPLICAS: usize = 8;

fn main() -> Result<()> {
    let device: Device = std::env::args().nth(1).as_deref().unwrap_or("cpu").parse()?;

    // ANCHOR: gather
    // The program of every replica. No operation returns a replica's index, so that it is an input.
    let g = Graph::new("gather");
    let index = g.input("index", &Shape::s32(&[]));
    let mine = g.input("mine", &Shape::f32(&[4]));
    let all = mine.all_gather(index, REPLICAS);
    let outputs = [("all", all), ("sum", mine.all_reduce())];
    let function = g.finish(&outputs.map(|(name, value)| (name.to_string(), value)), &[])?;

    let mesh = Mesh::open(&device, REPLICAS)?;
    println!("{}", mesh.describe());
    let executable = compile(&mesh, &function)?;
    let indices: Vec<Array> = (0..REPLICAS).map(|r| Array::scalar(r as i32)).collect();
    let parts: Vec<Array> = (0..REPLICAS).map(|r| Array::new(&[4], &[r as f32; 4])).collect();
    let results = executable.call(vec![mesh.shard(&indices)?.into(), mesh.shard(&parts)?.into()])?;
    // ANCHOR_END: gather

    for (replica, (all, sum)) in results[0].all()?.iter().zip(results[1].all()?).enumerate() {
        let (rows, sum) = (all.to_vec::<f32>(), sum.to_vec::<f32>());
        println!("replica {replica}: {} {:?}, sum {sum:?}", all.shape(), &rows[..8]);
        let expected: Vec<f32> = (0..REPLICAS).flat_map(|r| [r as f32; 4]).collect();
        anyhow::ensure!(rows == expected && sum == [28.0; 4], "replica {replica} has other numbers");
    }
    Ok(())
}
