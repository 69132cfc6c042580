//! `vnca train --from`: a new run begins with the weights of another run, of a file, or with those that come with the program.

#[path = "common/cli.rs"]
mod cli;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use vnca::train::checkpoint::Checkpoint;

/// A step at a rate that changes no weight.
const STILL: &str =
    "--steps 1 --learning-rate 1e-30 --batch-size 8 --checkpoint-every 1 --eval-every 0 --data images";

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(String::from).collect()
}

fn train(folder: &Path, more: &str) -> String {
    cli::succeed(folder, &words(&format!("train {more}")))
}

fn refused(folder: &Path, more: &str, code: i32) -> String {
    cli::fail(folder, &words(&format!("train {more}")), code)
}

/// Returns the weights of a run's step.
fn weights(run: &Path, step: usize) -> BTreeMap<String, Vec<f32>> {
    let found = Checkpoint::load(&run.join(format!("checkpoints/step-{step:08}.npz"))).expect("it is intact");
    let weights = found.arrays.into_iter().filter(|(name, _)| {
        !name.starts_with("adam.") && (name.ends_with("weight") || name.ends_with("bias"))
    });
    weights.map(|(name, array)| (name, array.to_vec::<f32>())).collect()
}

fn config(run: &Path) -> Value {
    serde_json::from_slice(&fs::read(run.join("config.json")).unwrap()).unwrap()
}

#[test]
fn a_run_begins_with_the_weights_that_it_names_and_has_their_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    cli::data_folder(path);
    let small = "--model doubling --latent 8 --doublings 1 --nca-steps 2 --encoder-width 2";
    train(
        path,
        &format!(
            "{small} --steps 3 --learning-rate 0.01 --batch-size 8 --eval-every 0 --data images --out a"
        ),
    );
    let (a, b, c) = (path.join("a"), path.join("b"), path.join("c"));

    // Another seed changes nothing: nothing is drawn.
    train(path, &format!("--from a {STILL} --seed-model 5 --out b"));
    assert_eq!(weights(&b, 1), weights(&a, 3));
    let begun = config(&b);
    assert_eq!(begun["model"], config(&a)["model"]);
    assert_eq!(begun["from"], fs::canonicalize(&a).unwrap().to_str().unwrap());
    assert!(begun["from_crc"].as_str().is_some_and(|crc| crc.len() == 8), "{begun}");

    // A checkpoint says its model too; another kind of file has the model of the options.
    train(path, &format!("--from a/checkpoints/step-00000003.npz {STILL} --out c"));
    assert_eq!(weights(&c, 1), weights(&a, 3));
    cli::succeed(path, &words("convert --run a --out a.safetensors"));
    train(path, &format!("--from a.safetensors {small} {STILL} --out d"));
    assert_eq!(weights(&path.join("d"), 1), weights(&a, 3));

    let larger = small.replace("--latent 8", "--latent 9");
    // What does not fit is named, before anything is written.
    let error = refused(path, &format!("--from a.safetensors {larger} {STILL} --out e"), 3);
    assert!(
        error.contains("--from ") && error.contains("a.safetensors: cannot use") && error.contains("f32[9"),
        "{error}"
    );
    let error = refused(path, &format!("--from a --latent 9 {STILL} --out e"), 2);
    assert!(
        error.contains("--latent is 9, and the weights of ") && error.contains("of a model with 8"),
        "{error}"
    );
    let error = refused(path, &format!("--from nowhere {STILL} --out e"), 2);
    assert!(error.contains("--from nowhere") && error.contains("doubling, nondoubling"), "{error}");
    assert!(!path.join("e").exists());

    // A resumed run needs them no more, unless it has no checkpoint.
    fs::rename(&a, path.join("away")).unwrap();
    cli::succeed(path, &words("train --resume --out b --steps 2"));
    fs::remove_dir_all(b.join("checkpoints")).unwrap();
    let error = refused(path, "--resume --out b --steps 2", 2);
    assert!(error.contains("--from") && error.contains("there is no such run"), "{error}");
    fs::rename(path.join("c"), &a).unwrap();
    let changed = Checkpoint::load(&a.join("checkpoints/step-00000001.npz")).map(|mut checkpoint| {
        let first = checkpoint.arrays.iter_mut().find(|(name, _)| name == "cell.conv0.weight").unwrap();
        first.1 = vnca::engine::array::Array::zeros(first.1.shape());
        checkpoint
    });
    changed.unwrap().save(&a.join("checkpoints/step-00000001.npz")).unwrap();
    let error = refused(path, "--resume --out b --steps 2", 1);
    assert!(error.contains("had other weights when the run began"), "{error}");
}

#[test]
fn the_average_of_a_run_is_what_another_begins_with_and_a_loss_continues() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    cli::data_folder(path);
    train(
        path,
        "--latent 4 --encoder-width 2 --steps 30 --learning-rate 0.003 --batch-size 8 --ema 0.9 --eval-every 0 --data images --out a",
    );
    train(path, &format!("--from a {STILL} --out b"));
    let (of_a, of_b) = (weights(&path.join("a"), 30), weights(&path.join("b"), 1));
    for (name, values) in of_b {
        assert_eq!(values, of_a[&format!("ema.{name}")], "{name}");
        assert_ne!(values, of_a[&name], "{name}");
    }
    // Thirty steps have lowered the loss by far more than its noise.
    let loss = |run: &str| cli::metrics(&path.join(run))[0]["loss"].as_f64().unwrap();
    assert!(loss("b") < loss("a") - 50.0, "{} {}", loss("b"), loss("a"));
}
