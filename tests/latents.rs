//! Exported latents and states do not depend on the batch, and are those of the bound.

#[path = "common/cli.rs"]
mod cli;

use std::path::Path;

use serde_json::Value;
use vnca::cli::models::Kind;
use vnca::engine::array::Array;
use vnca::engine::random::Key;
use vnca::nn::weights::npz::read as read_npz;

fn archive(path: &Path) -> Vec<(String, Array)> {
    let mut arrays = read_npz(path).unwrap();
    arrays.sort_by(|a, b| a.0.cmp(&b.0));
    arrays
}

#[test]
fn arrays_do_not_depend_on_the_batch_and_states_grow_from_samples_or_means() {
    let folder = tempfile::tempdir().unwrap();
    let weights = cli::weights(folder.path(), Kind::Doubling, 4);
    let write = |out: &str, more: &[&str]| {
        let weights: Vec<&str> = weights.iter().map(String::as_str).collect();
        let arguments = ["latents", "--nca-steps", "1", "--limit", "5", "--json", "--out", out];
        let line = cli::succeed(folder.path(), &[&arguments, &weights[..], more].concat());
        serde_json::from_str::<Value>(&line).unwrap()
    };
    let report = write("whole.npz", &["--states"]);
    assert_eq!((report["images"].as_u64(), report["latent"].as_u64()), (Some(5), Some(4)));
    assert_eq!(report["arrays"], serde_json::json!(["means", "logvars", "samples", "states", "labels"]));
    let whole = archive(&folder.path().join("whole.npz"));
    let names: Vec<&str> = whole.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["labels", "logvars", "means", "samples", "states"]);
    let [labels, logvars, means, samples, states] = [0, 1, 2, 3, 4].map(|i| &whole[i].1);
    assert_eq!((labels.dims(), means.dims()), ([5].as_slice(), [5, 4].as_slice()));
    assert_eq!(states.dims(), [5, 32, 32, 4]);
    // A sample is mean + exp(logvar / 2) · eps, with the image's own key for eps.
    let (means, logvars) = (means.to_vec::<f32>(), logvars.to_vec::<f32>());
    for (i, sample) in samples.to_vec::<f32>().into_iter().enumerate() {
        let eps = Key::new(2).split_at(i as u64 / 4).normal(4)[i % 4];
        let expected = means[i] + (logvars[i] / 2.0).exp() * eps;
        assert!((sample - expected).abs() < 1e-5, "{sample}, not {expected}");
    }

    write("parts", &["--states", "--states-from", "means", "--batch-size", "2"]);
    let read = |name: &str| {
        let bytes = std::fs::read(folder.path().join("parts").join(name)).unwrap();
        bytemuck::pod_collect_to_vec::<u8, f32>(&bytes[128..])
    };
    let read_means = read("means.npy");
    for (a, b) in read_means.iter().zip(&means) {
        assert!((a - b).abs() < 1e-5, "{a}, not {b}");
    }
    // An untrained automaton changes nothing: each cell is its image's latent.
    let from_means = read("states.npy");
    for (i, cell) in from_means.chunks_exact(4).enumerate() {
        let mean = &read_means[i / 1024 * 4..][..4];
        assert_eq!(cell, mean, "cell {i}");
    }
    assert_ne!(from_means, states.to_vec::<f32>());
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "more than weights.npz, whole.npz and parts: {left:?}");
}

#[test]
fn a_model_without_cells_has_no_states() {
    let folder = tempfile::tempdir().unwrap();
    let weights = cli::weights(folder.path(), Kind::Baseline, 4);
    let weights: Vec<&str> = weights.iter().map(String::as_str).collect();
    let arguments = [&["latents", "--states", "--out", "arrays.npz"], &weights[..]].concat();
    let error = cli::fail(folder.path(), &arguments, 2);
    assert!(error.contains("no cells"), "{error}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["weights.npz"]);
}
