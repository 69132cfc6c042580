//! Files of parameters.

use std::path::Path;

use vnca::engine::array::Array;
use vnca::nn::params::{Leaf, Role, layer};
use vnca::nn::weights::{self, npz, safetensors};
use vnca::study::eval::part;

use super::Bench;
use super::records::{archive, npy_file, npy_of};

pub fn leaves() -> Vec<Leaf> {
    let see = layer("encoder.see", Role::ConvWeight, &[2, 1, 1, 2], &[0]);
    let act = layer("decoder.act", Role::LinearWeight, &[2, 3], &[1]);
    [see, act].concat()
}

pub fn values() -> Vec<(Leaf, Array)> {
    let filled = |leaf: Leaf| {
        let count = leaf.shape.iter().product();
        let array = Array::new(&leaf.shape, &vec![1.5f32; count]);
        (leaf, array)
    };
    leaves().into_iter().map(filled).collect()
}

pub fn weights_file(bench: &Bench, name: &str) -> Vec<u8> {
    let (leaves, arrays): (Vec<Leaf>, Vec<Array>) = values().into_iter().unzip();
    bench.written(name, |path| weights::write(path, &leaves, &arrays))
}

pub fn npz_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let empty = bench.written("none.npz", |path| npz::write(path, std::iter::empty()));
    vec![weights_file(bench, "seed.npz"), empty]
}

pub fn read_weights(bench: &Bench, name: &str, bytes: &[u8]) {
    let leaves = leaves();
    if let Ok(arrays) = weights::read(&bench.file(name, bytes), &leaves) {
        for (leaf, array) in leaves.iter().zip(&arrays) {
            assert_eq!(array.dims(), leaf.shape);
            let _ = leaf.to_device_layout(array);
        }
    }
}

pub fn read_npz(bench: &Bench, bytes: &[u8]) {
    read_weights(bench, "weights.npz", bytes);
}

pub fn read_npz_entry(bench: &Bench, bytes: &[u8]) {
    let path = bench.file("entry.npz", &archive("encoder.see.bias.npy", bytes));
    if let Ok(arrays) = npz::read(&path) {
        let _ = weights::from_checkpoint(&path, &leaves()[1..2], arrays);
    }
}

pub fn safetensors_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let header = br#"{"encoder.see.bias":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"x":{"dtype":"BF16","shape":[],"data_offsets":[4,6]},"y":{"dtype":"F64","shape":[1,1],"data_offsets":[6,14]}}"#;
    let other = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &[60; 14]].concat();
    vec![weights_file(bench, "seed.safetensors"), other]
}

pub fn read_safetensors(bench: &Bench, bytes: &[u8]) {
    if let Ok(arrays) = safetensors::read(bytes) {
        let elements: usize = arrays.iter().map(|(_, a)| a.shape().count()).sum();
        assert!(elements <= bytes.len());
    }
    read_weights(bench, "weights.safetensors", bytes);
}

pub fn eqx_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let plain = weights_file(bench, "seed.eqx");
    let settings = [b"{\"latent\": 8}\n".as_slice(), &plain].concat();
    let scalar = npy_of(1, "{'descr': '<i8', 'fortran_order': False, 'shape': (), }\n", &[7; 8]);
    vec![[scalar, plain.clone()].concat(), settings, plain]
}

pub fn read_eqx(bench: &Bench, bytes: &[u8]) {
    read_weights(bench, "weights.eqx", bytes);
}

/// An archive whose directory has many names for one and the same entry.
pub fn repeated_archive(bytes: &[u8], names: u16) -> Vec<u8> {
    let one = archive("00000.npy", bytes);
    let end = one.len() - 22;
    let directory = u32::from_le_bytes(one[end + 16..end + 20].try_into().expect("four bytes")) as usize;
    let mut all = one[..directory].to_vec();
    for i in 0..names {
        let mut record = one[directory..end].to_vec();
        record[46..51].copy_from_slice(format!("{i:05}").as_bytes());
        all.extend(record);
    }
    let mut last = one[end..].to_vec();
    last[8..10].copy_from_slice(&names.to_le_bytes());
    last[10..12].copy_from_slice(&names.to_le_bytes());
    last[12..16].copy_from_slice(&((all.len() - directory) as u32).to_le_bytes());
    [all, last].concat()
}

/// Names and bytes of large files.
pub fn large() -> Vec<(&'static str, Vec<u8>)> {
    const COUNT: usize = 1 << 24;
    let record = |order: &str| {
        let header = format!("{{'descr': '<f2', 'fortran_order': {order}, 'shape': (4, {}), }}\n", COUNT / 4);
        npy_of(1, &header, &vec![60; 2 * COUNT])
    };
    let tensor = || {
        let header =
            format!(r#"{{"x":{{"dtype":"F16","shape":[{COUNT}],"data_offsets":[0,{}]}}}}"#, 2 * COUNT);
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![60; 2 * COUNT]].concat()
    };
    // A list of numbers where a model's description stands.
    let tree = "0,".repeat(1 << 22);
    let part = format!(
        r#"{{"version":1,"task":{{"model":[{tree}0],"weights":"","data":"","pixels":"","images":0,"samples":1,"seeds":[],
        "batch_size":1,"replicas":1}},"shard":{{"index":0,"of":2}},"seconds":0,"draws":[],"kl":[],"spread":{{"images":0,
        "sums":[],"squares":[]}}}}"#
    );
    vec![
        ("tree.json", part.into_bytes()),
        ("large.eqx", record("False")),
        ("fortran.eqx", record("True")),
        ("large.npz", archive("x.npy", &record("False"))),
        ("large.safetensors", tensor()),
        ("repeated.npz", repeated_archive(&npy_file(&Array::new(&[1 << 18], &vec![0f32; 1 << 18])), 200)),
    ]
}

/// Reads a large file: weights, which are no model's, or a part of an evaluation, whose other part is missing. Returns why it
/// is refused.
pub fn read_large(path: &Path) -> String {
    if path.extension().is_some_and(|e| e == "json") {
        return format!("{:#}", part::merge(&[path.to_owned()]).expect_err("a part of an evaluation"));
    }
    format!("{:#}", weights::read(path, &leaves()).expect_err("weights of no model"))
}
