//! A run that was stopped or killed, or whose checkpoint is damaged, resumes bit for bit.

#[path = "common/cli.rs"]
mod cli;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

const STEPS: usize = 14;

fn arguments<'a>(data: &'a Path, out: &'a str, steps: &'a str) -> Vec<&'a str> {
    let data = data.to_str().unwrap();
    vec![
        "train",
        "--latent",
        "4",
        "--data",
        data,
        "--out",
        out,
        "--batch-size",
        "4",
        "--replicas",
        "2",
        "--chunk",
        "5",
        "--steps",
        steps,
        "--eval-every",
        "6",
        "--eval-samples",
        "2",
        "--checkpoint-every",
        "3",
    ]
}

fn last(run: &Path) -> Vec<u8> {
    std::fs::read(run.join(format!("checkpoints/step-{STEPS:08}.npz"))).expect("the last checkpoint exists")
}

/// Compares metrics byte for byte, and every parameter, moment and key.
fn assert_same(a: &Path, b: &Path) {
    let metrics = |run: &Path| std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics(a), metrics(b));
    assert!(last(a) == last(b), "the last checkpoints differ");
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    let steps = STEPS.to_string();
    let whole = folder.path().join("whole");
    cli::succeed(folder.path(), &arguments(&data, "whole", &steps));

    // In two parts: up to a checkpoint within a chunk, then longer.
    cli::succeed(folder.path(), &arguments(&data, "parts", "7"));
    cli::succeed(folder.path(), &["train", "--resume", "--out", "parts", "--steps", &steps]);
    assert_same(&whole, &folder.path().join("parts"));

    // Killed without warning.
    let killed = folder.path().join("killed");
    let mut child =
        cli::vnca(folder.path(), &arguments(&data, "killed", &steps)).stderr(Stdio::null()).spawn().unwrap();
    cli::wait_for_step(&mut child, &killed, 8);
    child.kill().unwrap();
    child.wait().unwrap();
    cli::succeed(folder.path(), &["train", "--resume", "--out", "killed"]);
    assert_same(&whole, &killed);

    // The newest checkpoint is truncated: the one before is used.
    std::fs::rename(folder.path().join("killed"), folder.path().join("cut")).unwrap();
    let newest = folder.path().join(format!("cut/checkpoints/step-{STEPS:08}.npz"));
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
    cli::succeed(folder.path(), &["train", "--resume", "--out", "cut"]);
    assert_same(&whole, &folder.path().join("cut"));
    // The newest checkpoint is changed in one bit.
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&newest, &bytes).unwrap();
    cli::succeed(folder.path(), &["train", "--resume", "--out", "cut"]);
    assert_same(&whole, &folder.path().join("cut"));
}

#[test]
fn signals_save_the_state_and_have_their_own_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    // Under `nohup` the test and its children ignore SIGHUP, which is signal 1.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let signals = [("INT", 130), ("TERM", 143), ("HUP", 129), ("USR1", 138)];
    for (signal, code) in signals.into_iter().filter(|(signal, _)| *signal != "HUP" || ignored & 1 == 0) {
        let run = folder.path().join(signal);
        let mut child = cli::vnca(folder.path(), &arguments(&data, signal, "100000"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        cli::wait_for_step(&mut child, &run, 2);
        // `timeout` sends a signal to the process and another to its group. They must count as one.
        for _ in 0..2 {
            cli::signal(&child, &format!("-{signal}"));
        }
        assert_eq!(child.wait().unwrap().code(), Some(code));
        let made = cli::metrics(&run).len();
        assert!(run.join(format!("checkpoints/step-{made:08}.npz")).exists(), "no checkpoint of step {made}");
    }
}

#[test]
fn a_resumed_run_refuses_other_options() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    cli::succeed(folder.path(), &arguments(&data, "run", "3"));
    let again = cli::fail(folder.path(), &arguments(&data, "run", "3"), 2);
    assert!(again.contains("--resume"), "{again}");
    let other = cli::fail(folder.path(), &["train", "--resume", "--out", "run", "--batch-size", "8"], 2);
    assert!(other.contains("--batch-size"), "{other}");
    cli::write_npy(&folder.path().join("x.npy"), vnca::engine::random::Key::new(5), &[64, 784]);
    let data = ["train", "--resume", "--out", "run", "--steps", "5", "--data", "x.npy", "--eval-every", "0"];
    let error = cli::fail(folder.path(), &data, 1);
    assert!(error.contains("--data"), "{error}");
}

/// Returns every file of a folder with its bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => drop(found.insert(path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    found
}

#[test]
fn a_refused_resume_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    let run = folder.path().join("run");
    cli::succeed(folder.path(), &arguments(&data, "run", "3"));
    // Lines beyond the checkpoint, which a resume would remove.
    let metrics = run.join("metrics.jsonl");
    let lines = std::fs::read_to_string(&metrics).unwrap();
    std::fs::write(&metrics, format!("{lines}{{\"step\":4}}\n")).unwrap();
    // Data sets with other training images, and with other test images only.
    let other = |name: &str, train: u64, test: u64| {
        let folder = folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        cli::write_npy(&folder.join("train.npy"), vnca::engine::random::Key::new(train), &[64, 784]);
        cli::write_npy(&folder.join("test.npy"), vnca::engine::random::Key::new(test), &[21, 784]);
    };
    other("train", 5, 901);
    other("test", 900, 5);
    other("same", 900, 901);
    let before = files(&run);
    let refused = |more: &[&str], code: i32, word: &str| {
        let resume = ["train", "--resume", "--out", "run", "--steps", "4"];
        let error = cli::fail(folder.path(), &[&resume[..], more].concat(), code);
        assert!(error.contains(word), "{more:?}: {error}");
        assert!(files(&run) == before, "{more:?} has changed the run's folder");
    };
    refused(&["--data", "train"], 1, "training images");
    refused(&["--data", "test"], 1, "test images");
    refused(&["--steps", "2"], 2, "--steps");
    refused(&["--device", "./no-plugin.so"], 4, "no-plugin.so");
    // The same images in another folder are accepted.
    cli::succeed(folder.path(), &["train", "--resume", "--out", "run", "--steps", "4", "--data", "same"]);
    let config = std::fs::read_to_string(run.join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["data"].as_str(), folder.path().canonicalize().unwrap().join("same").to_str());
    assert_eq!(config["steps"], 4);
}

#[test]
fn a_resume_that_skips_a_damaged_checkpoint_keeps_its_later_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    cli::succeed(folder.path(), &arguments(&data, "whole", "14"));
    cli::succeed(folder.path(), &[&arguments(&data, "run", "12")[..], &["--keep", "9"]].concat());
    let checkpoints = folder.path().join("run/checkpoints");
    let _ = std::fs::remove_file(checkpoints.join("best.npz"));
    for step in [9, 12] {
        let path = checkpoints.join(format!("step-{step:08}.npz"));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    }
    // An evaluation also uses the newest intact checkpoint, and names the skipped ones.
    let output = cli::run(folder.path(), &["eval", "--run", "run", "--samples", "2", "--limit", "2"]);
    let error = cli::text(&output.stderr);
    assert!(output.status.success() && error.contains("step-00000009.npz"), "{error}");

    let resume = ["train", "--resume", "--out", "run", "--keep", "1", "--eval-every", "0", "--steps"];
    let output = cli::run(folder.path(), &[&resume[..], &["7"]].concat());
    let error = cli::text(&output.stderr);
    assert!(output.status.success() && error.contains("step-00000012.npz.aside"), "{error}");
    let mut left: Vec<_> = std::fs::read_dir(&checkpoints)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["step-00000007.npz", "step-00000009.npz.aside", "step-00000012.npz.aside"]);
    cli::succeed(folder.path(), &[&resume[..], &["14"]].concat());
    let loss = |run: &str| -> Vec<f64> {
        cli::metrics(&folder.path().join(run)).iter().map(|l| l["loss"].as_f64().unwrap()).collect()
    };
    assert_eq!(loss("run"), loss("whole"));
}

#[test]
fn an_older_run_without_checksums_of_images_can_be_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    let steps = STEPS.to_string();
    cli::succeed(folder.path(), &arguments(&data, "whole", &steps));
    cli::succeed(folder.path(), &arguments(Path::new("images"), "old", "7"));
    older(&folder.path().join("old"));
    cli::succeed(folder.path(), &["train", "--resume", "--out", "old", "--steps", &steps]);
    assert_same(&folder.path().join("whole"), &folder.path().join("old"));
}

/// Converts a configuration to its older form, with a relative path and without checksums.
fn older(run: &Path) {
    let path = run.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["data"] = "images".into();
    config.as_object_mut().unwrap().remove("data_crc").expect("a run has its images' checksums");
    std::fs::write(&path, config.to_string()).unwrap();
}
