//! `--valid`: the last training images are held out of training, and choose the best checkpoint.

#[path = "common/cli.rs"]
mod cli;

use std::path::Path;

use serde_json::Value;

const OPTIONS: &str = "--model doubling --doublings 1 --nca-steps 1 --encoder-width 2 --steps 6 --eval-every 3 --eval-samples 2";

/// Writes the first `n` images of a file of 64 as another file.
fn first(data: &Path, n: usize, out: &Path) {
    let all: ndarray::ArrayD<u8> = ndarray_npy::read_npy(data.join("train.npy")).unwrap();
    let part = all.slice_axis(ndarray::Axis(0), (..n).into()).to_owned();
    std::fs::create_dir_all(out).unwrap();
    ndarray_npy::write_npy(out.join("train.npy"), &part).unwrap();
    let rest = all.slice_axis(ndarray::Axis(0), (n..).into()).to_owned();
    ndarray_npy::write_npy(out.join("test.npy"), &rest).unwrap();
}

fn scores(run: &Path, name: &str) -> Vec<f64> {
    cli::metrics(run).iter().filter_map(|line| line[name].as_f64()).collect()
}

#[test]
fn validation_images_are_the_last_training_images_and_are_not_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    let train = |data: &Path, more: &str| {
        cli::succeed(folder.path(), &cli::training(data, &format!("{OPTIONS} {more}")));
    };
    train(&data, "--valid 24");
    let run = folder.path().join("run");
    let config = std::fs::read_to_string(run.join("config.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&config).unwrap()["valid"], 24);
    let held_out = scores(&run, "valid_iwelbo");
    assert!(held_out.len() == 2 && scores(&run, "test_iwelbo").is_empty());
    let evaluated = |more: &[&str]| -> Value {
        let all = [&["eval", "--run", "run", "--samples", "2", "--json"], more].concat();
        serde_json::from_str(&cli::succeed(folder.path(), &all)).unwrap()
    };
    let iwelbo = |of: &Value| of["iwelbo"].as_f64().unwrap();
    let best = held_out.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let of_valid = evaluated(&["--split", "valid"]);
    assert_eq!(of_valid["images"], 24);
    assert!((iwelbo(&of_valid) - best).abs() < 1e-4, "{of_valid}, {held_out:?}");
    // Without an option, test images; the training images are the other 40.
    assert_eq!(evaluated(&[])["images"], 21);
    assert_eq!(evaluated(&["--split", "train"])["images"], 40);
    // The same images in another place are divided as the run's; others are not.
    assert_eq!(evaluated(&["--split", "train", "--data", "images"])["images"], 40);
    std::fs::rename(&data, folder.path().join("moved")).unwrap();
    assert_eq!(iwelbo(&evaluated(&["--split", "valid", "--data", "moved"])), iwelbo(&of_valid));
    std::fs::rename(folder.path().join("moved"), &data).unwrap();

    // A data set whose training images are those 40, and whose test images are those 24, gives the same run.
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    std::fs::rename(&run, folder.path().join("held-out")).unwrap();
    first(&data, 40, &folder.path().join("forty"));
    train(&folder.path().join("forty"), "");
    let other = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.replace("valid_iwelbo", "test_iwelbo"), other);
    let error = cli::fail(folder.path(), &["eval", "--run", "run", "--split", "valid"], 2);
    assert!(error.contains("--valid N"), "{error}");
}

#[test]
fn a_resumed_run_keeps_its_validation_images() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    let all = cli::fail(folder.path(), &cli::training(&data, &format!("{OPTIONS} --valid 64")), 2);
    assert!(all.contains("--valid is 64"), "{all}");
    let few =
        cli::fail(folder.path(), &cli::training(&data, &format!("{OPTIONS} --valid 8 --eval-images 9")), 2);
    assert!(few.contains("8 validation images"), "{few}");
    cli::succeed(folder.path(), &cli::training(&data, &format!("{OPTIONS} --valid 24")));
    let resume = ["train", "--resume", "--out", "run", "--steps", "9"];
    let error = cli::fail(folder.path(), &[&resume[..], &["--valid", "20"]].concat(), 2);
    assert!(error.contains("--valid differs"), "{error}");
    cli::succeed(folder.path(), &resume);
    assert_eq!(scores(&folder.path().join("run"), "valid_iwelbo").len(), 3);
}
