//! Gives every process the arrays of all replicas.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};

use super::{Buffer, Client, Loaded};
use crate::engine::array::Array;
use crate::engine::program::{Format, InputSpec, OutputSpec, Program, Signature};
use crate::engine::shape::{DType, Shape};

/// Compiled programs by their devices and the shape of an array.
type Programs = HashMap<(Arc<[usize]>, Shape), Arc<dyn Loaded>>;

/// The programs that gather arrays, each compiled once.
#[derive(Default)]
pub(super) struct Gathering(Mutex<Programs>);

impl Gathering {
    /// Returns the arrays of all replicas of `devices`, of which `parts` are those of this process.
    pub fn all(
        &self,
        client: &dyn Client,
        devices: &Arc<[usize]>,
        shape: &Shape,
        parts: &[Box<dyn Buffer>],
    ) -> Result<Vec<Array>> {
        let replicas = devices.len();
        if shape.bytes() == 0 {
            return Ok(vec![Array::zeros(shape); replicas]);
        }
        let program = program(client, shape, replicas);
        // The other processes compile too: two threads that compiled the same program would leave one without a partner.
        let loaded = {
            let mut programs = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let key = (devices.clone(), shape.clone());
            match programs.get(&key) {
                Some(loaded) => loaded.clone(),
                None => {
                    let compiled: Arc<dyn Loaded> = client
                        .compile(&program, devices)
                        .context("compiling the gathering of arrays")?
                        .into();
                    programs.entry(key).or_insert(compiled).clone()
                }
            }
        };
        let arguments: Vec<Vec<&dyn Buffer>> = parts.iter().map(|part| vec![part.as_ref()]).collect();
        let results = loaded.execute(&arguments).context("gathering the arrays of all processes")?;
        let first = results.first().and_then(|row| row.first()).context("the gathering gave no result")?;
        let gathered = first.get(&program.signature.outputs[0].shape)?;
        gathered
            .bytes()
            .chunks_exact(shape.bytes())
            .map(|bytes| Array::from_bytes(shape.clone(), bytes.to_vec()))
            .collect()
    }
}

/// Returns the program that stacks the replicas' arrays. It is text, so that it needs no XLA library.
fn program(client: &dyn Client, shape: &Shape, replicas: usize) -> Program {
    let row = shape.with_dims(&[&[1], shape.dims.as_slice()].concat());
    let all = shape.with_dims(&[&[replicas], shape.dims.as_slice()].concat());
    let [x, one, many] = [shape, &row, &all].map(tensor);
    let group: Vec<String> = (0..replicas).map(|replica| replica.to_string()).collect();
    let groups = format!("dense<[[{}]]> : tensor<1x{replicas}xi64>", group.join(", "));
    let text = format!(
        r#"module @gather attributes {{mhlo.num_partitions = 1 : i32, mhlo.num_replicas = {replicas} : i32}} {{
  func.func public @main(%x: {x}) -> {many} {{
    %row = "stablehlo.reshape"(%x) : ({x}) -> {one}
    %all = "stablehlo.all_gather"(%row) {{all_gather_dim = 0 : i64, replica_groups = {groups}}} : ({one}) -> {many}
    return %all : {many}
  }}
}}
"#
    );
    let signature = Signature {
        name: "gather".into(),
        format: Format::StableHlo,
        target: client.target(),
        replicas,
        graph: shape.to_string(),
        inputs: vec![InputSpec { name: "x".into(), shape: shape.clone(), donated: false }],
        outputs: vec![OutputSpec { name: "all".into(), shape: all }],
    };
    Program { signature, module: text.into_bytes() }
}

/// Returns a shape as a type of StableHLO.
fn tensor(shape: &Shape) -> String {
    let element = match shape.dtype {
        DType::Pred => "i1",
        DType::U8 => "ui8",
        DType::S32 => "i32",
        DType::U32 => "ui32",
        DType::U64 => "ui64",
        DType::Bf16 => "bf16",
        DType::F32 => "f32",
    };
    let sizes: String = shape.dims.iter().map(|size| format!("{size}x")).collect();
    format!("tensor<{sizes}{element}>")
}
