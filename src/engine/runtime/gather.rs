//! Gives every process the arrays of all replicas.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};

use super::collective::{self, group, tensor};
use super::{Buffer, Client, Loaded};
use crate::engine::array::Array;
use crate::engine::program::Program;
use crate::engine::shape::Shape;

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

/// Returns the program that stacks the replicas' arrays.
fn program(client: &dyn Client, shape: &Shape, replicas: usize) -> Program {
    let row = shape.with_dims(&[&[1], shape.dims.as_slice()].concat());
    let all = shape.with_dims(&[&[replicas], shape.dims.as_slice()].concat());
    let ([x, one, many], group) = ([shape, &row, &all].map(tensor), group(replicas));
    let body = format!(
        r#"    %row = "stablehlo.reshape"(%x) : ({x}) -> {one}
    %out = "stablehlo.all_gather"(%row) {{all_gather_dim = 0 : i64, replica_groups = {group}}} : ({one}) -> {many}"#
    );
    collective::program("gather", (client.target(), replicas), shape, &all, &body)
}
