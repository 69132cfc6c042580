//! Sends bytes from process 0 to all processes, through the devices: they may be too many for the store.

use anyhow::{Context, Result};

use super::collective::{self, group, tensor};
use super::{Arg, Mesh};
use crate::engine::array::Array;
use crate::engine::program::Program;
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
        let part = |replica| match replica {
            0 => Array::new(&[WORDS], &words),
            _ => Array::zeros(&Shape::u32(&[WORDS])),
        };
        let parts: Vec<Array> = mesh.own_replicas().map(part).collect();
        let results = executable.call(vec![Arg::from(&mesh.shard_own(&parts)?)])?;
        let sums = results.first().context("the sending gave no result")?.replicated()?;
        all.extend(sums.to_vec::<u32>().into_iter().flat_map(u32::to_le_bytes));
    }
    all.truncate(length);
    Ok(all)
}

/// Returns the program that adds the replicas' words.
fn program(mesh: &Mesh) -> Program {
    let shape = Shape::u32(&[WORDS]);
    let (words, word, group) = (tensor(&shape), tensor(&Shape::u32(&[])), group(mesh.replicas()));
    let body = format!(
        r#"    %out = "stablehlo.all_reduce"(%x) ({{
    ^bb0(%a: {word}, %b: {word}):
      %c = "stablehlo.add"(%a, %b) : ({word}, {word}) -> {word}
      "stablehlo.return"(%c) : ({word}) -> ()
    }}) {{replica_groups = {group}}} : ({words}) -> {words}"#
    );
    collective::program("share", (mesh.target(), mesh.replicas()), &shape, &shape, &body)
}
