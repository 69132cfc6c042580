//! Binarized images get the labels of the originals that they were drawn from.

#[path = "common/cli.rs"]
mod cli;

use std::path::Path;

use serde_json::Value;
use vnca::data::{ImageShape, PIXELS, Split, Values};
use vnca::engine::random::Key;
use vnca::engine::runtime::{Cache, Device, Mesh};
use vnca::study::analysis::originals::likeliest;

/// Returns grey images with pixels that are 0, 255 and between.
fn grey(n: usize) -> Vec<u8> {
    let draw = Key::new(5).randint(n * PIXELS, -128, 384);
    draw.into_iter().map(|p| p.clamp(0, 255) as u8).collect()
}

fn write_idx(path: &Path, sizes: &[u32], bytes: &[u8]) {
    let mut file = vec![0, 0, 8, sizes.len() as u8];
    file.extend(sizes.iter().flat_map(|n| n.to_be_bytes()));
    file.extend(bytes);
    std::fs::write(path, file).unwrap();
}

#[test]
fn labels_indices_and_margins_are_written_for_images_drawn_from_known_originals() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("grey")).unwrap();
    let labels: Vec<u8> = (0..30).map(|i| (i * 7 % 10) as u8).collect();
    write_idx(&at("grey/t10k-images-idx3-ubyte"), &[30, 28, 28], &grey(30));
    write_idx(&at("grey/t10k-labels-idx1-ubyte"), &[30], &labels);
    // Reading grey images as data binarizes them.
    let images = "grey/t10k-images-idx3-ubyte";
    let out = cli::succeed(
        folder.path(),
        &["label", "--data", images, "--original", "grey", "--out", "found", "--json"],
    );
    let result: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((result["images"].as_u64(), result["share_over_1_nat"].as_f64()), (Some(30), Some(1.0)));
    assert_eq!(result["class_counts"], serde_json::json!([3, 3, 3, 3, 3, 3, 3, 3, 3, 3]));
    assert!(result["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(vnca::data::labels::read(&at("found/labels.npy")).unwrap(), labels);
    let values = |name: &str| std::fs::read(at(name)).unwrap().split_off(128);
    let indices: Vec<i32> = bytemuck::pod_collect_to_vec(&values("found/indices.npy"));
    assert_eq!(indices, (0..30).collect::<Vec<i32>>());
    assert_eq!(result["sha256"]["labels.npy"].as_str().map(str::len), Some(64));

    // A single file of originals has no labels.
    let alone = ["label", "--data", images, "--original", images, "--out", "again", "--json"];
    assert!(cli::fail(folder.path(), &alone, 3).contains("--labels"));
    assert!(!at("again").exists());
    let named = [&alone[..], &["--labels", "found/labels.npy"]].concat();
    let again: Value = serde_json::from_str(&cli::succeed(folder.path(), &named)).unwrap();
    assert_eq!(again["sha256"], result["sha256"]);
    write_idx(&at("few"), &[3], &labels[..3]);
    let few = [&alone[..], &["--labels", "few"]].concat();
    assert!(cli::fail(folder.path(), &few, 3).contains("expected 30 labels"));
}

fn split(pixels: Vec<u8>) -> Split {
    Split {
        name: "images".into(),
        shape: ImageShape::MNIST,
        values: Values::Bits,
        pixels,
        labels: None,
        sources: vec![],
    }
}

fn originals(pixels: Vec<u8>) -> Split {
    Split { name: "originals".into(), values: Values::Levels, ..split(pixels) }
}

#[test]
fn impossible_originals_and_equal_originals() {
    let mesh = Mesh::builder(&Device::Cpu).cache(Cache::Off).open(1).unwrap();
    // All pixels are 128 except the first: 0 in A, 255 in B, 64 in C and D.
    let original = |first: u8| {
        let mut pixels = vec![128; PIXELS];
        pixels[0] = first;
        pixels
    };
    let image = |first: u8| {
        let mut pixels = vec![0; PIXELS];
        pixels[0] = first;
        pixels
    };
    let images = split([image(0), image(1)].concat());
    let all = originals([original(0), original(255), original(64), original(64)].concat());
    let found = likeliest(&mesh, &images, &all, |_| {}).unwrap();
    // An original with a certain pixel is the most likely one if the pixel agrees, and impossible if it differs.
    assert_eq!((found.indices.as_slice(), found.impossible), ([0, 1].as_slice(), 0));
    let expected = [(255.0f32 / 191.0).ln(), (255.0f32 / 64.0).ln()];
    for (margin, expected) in found.margins.iter().zip(expected) {
        assert!((margin - expected).abs() < 1e-6, "{margin}, not {expected}");
    }
    // Equal originals: the first one is chosen. If all others are impossible, the margin is infinite.
    let found = likeliest(&mesh, &images, &originals([original(64), original(64)].concat()), |_| {}).unwrap();
    assert_eq!((found.indices, found.margins), (vec![0, 0], vec![0.0, 0.0]));
    let found =
        likeliest(&mesh, &images, &originals([original(255), original(64)].concat()), |_| {}).unwrap();
    assert_eq!((found.indices[0], found.margins[0]), (1, f32::INFINITY));
    // If all are impossible, the one with the fewest impossible pixels is chosen, with a margin of 0.
    let mut worse = original(255);
    worse[1] = 255;
    let found = likeliest(&mesh, &images, &originals([worse, original(255)].concat()), |_| {}).unwrap();
    assert_eq!((found.indices[0], found.margins[0], found.impossible), (1, 0.0, 1));
}
