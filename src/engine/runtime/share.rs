//! Sends bytes from process 0 to all processes, through the devices: they may be too many for the store.

use anyhow::{Context, Result};

use super::{Arg, Mesh};
use crate::engine::array::Array;
use crate::engine::program::{Format, InputSpec, OutputSpec, Program, Signature};
use crate::engine::shape::Shape;

/// Words of four bytes per call.
const WORDS: usize = 1 << 20;

/// Returns the `length` bytes that process 0 has, on all processes.
pub(super) fn share(mesh: &Mesh, own: Option<&[u8]>, length: usize) -> Result<Vec<u8>> {
    let executable = mesh.compile(program(mesh)).context("compiling the sending of bytes")?;
    let mut all = Vec::with_capacity(length.next_multiple_of(4 * WORDS));
    while all.len() < length {
        let mut words = vec![0u32; WORDS];
        if let Some(own) = own {
            for (word, bytes) in words.iter_mut().zip(own[all.len()..].chunks(4)) {
                let mut four = [0; 4];
                four[..bytes.len()].copy_from_slice(bytes);
                *word = u32::from_le_bytes(four);
            }
        }
        // The sum over the replicas: all others have zeros.
        let zeros = Array::zeros(&Shape::u32(&[WORDS]));
        let words = Array::new(&[WORDS], &words);
        let first = |replica: usize| if replica == 0 { &words } else { &zeros };
        let parts: Vec<Array> = mesh.own_replicas().map(|replica| first(replica).clone()).collect();
        let results = executable.call(vec![Arg::from(&mesh.shard_own(&parts)?)])?;
        let sums = results.first().context("the sending gave no result")?.replicated()?;
        all.extend(sums.to_vec::<u32>().into_iter().flat_map(u32::to_le_bytes));
    }
    all.truncate(length);
    Ok(all)
}

/// Returns the program that adds the replicas' words. It is text, so that it needs no XLA library.
fn program(mesh: &Mesh) -> Program {
    let replicas = mesh.replicas();
    let group: Vec<String> = (0..replicas).map(|replica| replica.to_string()).collect();
    let groups = format!("dense<[[{}]]> : tensor<1x{replicas}xi64>", group.join(", "));
    let (words, word) = (format!("tensor<{WORDS}xui32>"), "tensor<ui32>");
    let text = format!(
        r#"module @share attributes {{mhlo.num_partitions = 1 : i32, mhlo.num_replicas = {replicas} : i32}} {{
  func.func public @main(%x: {words}) -> {words} {{
    %sum = "stablehlo.all_reduce"(%x) ({{
    ^bb0(%a: {word}, %b: {word}):
      %c = "stablehlo.add"(%a, %b) : ({word}, {word}) -> {word}
      "stablehlo.return"(%c) : ({word}) -> ()
    }}) {{replica_groups = {groups}}} : ({words}) -> {words}
    return %sum : {words}
  }}
}}
"#
    );
    let shape = Shape::u32(&[WORDS]);
    let signature = Signature {
        name: "share".into(),
        format: Format::StableHlo,
        target: mesh.target(),
        replicas,
        graph: shape.to_string(),
        inputs: vec![InputSpec { name: "x".into(), shape: shape.clone(), donated: false }],
        outputs: vec![OutputSpec { name: "sum".into(), shape }],
    };
    Program { signature, module: text.into_bytes() }
}
