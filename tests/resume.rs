//! A run that was stopped, killed or cut goes on as if it had not been: bit for bit.

#[path = "common/cli.rs"]
mod cli;

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

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
    std::fs::read(run.join(format!("checkpoints/step-{STEPS:08}.npz"))).expect("the last checkpoint is there")
}

/// Metrics byte for byte, and every parameter, moment and key.
fn assert_same(a: &Path, b: &Path) {
    let metrics = |run: &Path| std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics(a), metrics(b));
    assert!(last(a) == last(b), "the last checkpoints differ");
}

fn wait_for_step(child: &mut Child, run: &Path, step: usize) {
    let began = Instant::now();
    let path = run.join("metrics.jsonl");
    while std::fs::read_to_string(&path).map_or(0, |t| t.lines().count()) < step {
        assert!(child.try_wait().unwrap().is_none(), "the run ended early");
        assert!(began.elapsed() < Duration::from_secs(120), "the run does not come to step {step}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    let steps = STEPS.to_string();
    let whole = folder.path().join("whole");
    cli::succeed(folder.path(), &arguments(&data, "whole", &steps));

    // In parts: up to a checkpoint inside a chunk, then longer.
    cli::succeed(folder.path(), &arguments(&data, "parts", "7"));
    cli::succeed(folder.path(), &["train", "--resume", "--out", "parts", "--steps", &steps]);
    assert_same(&whole, &folder.path().join("parts"));

    // Killed without warning.
    let killed = folder.path().join("killed");
    let mut child =
        cli::vnca(folder.path(), &arguments(&data, "killed", &steps)).stderr(Stdio::null()).spawn().unwrap();
    wait_for_step(&mut child, &killed, 8);
    child.kill().unwrap();
    child.wait().unwrap();
    cli::succeed(folder.path(), &["train", "--resume", "--out", "killed"]);
    assert_same(&whole, &killed);

    // The newest checkpoint cut short: the one before serves.
    std::fs::rename(folder.path().join("killed"), folder.path().join("cut")).unwrap();
    let newest = folder.path().join(format!("cut/checkpoints/step-{STEPS:08}.npz"));
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
    cli::succeed(folder.path(), &["train", "--resume", "--out", "cut"]);
    assert_same(&whole, &folder.path().join("cut"));
    // Or changed in one bit.
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
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let run = folder.path().join(signal);
        let mut child = cli::vnca(folder.path(), &arguments(&data, signal, "100000"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for_step(&mut child, &run, 2);
        // `timeout` sends one to the process and one to its group: that is no second Ctrl-C.
        for _ in 0..2 {
            let kill = std::process::Command::new("kill")
                .args([format!("-{signal}"), child.id().to_string()])
                .status();
            assert!(kill.unwrap().success());
        }
        assert_eq!(child.wait().unwrap().code(), Some(code));
        let made = cli::metrics(&run).len();
        assert!(run.join(format!("checkpoints/step-{made:08}.npz")).exists(), "no checkpoint of step {made}");
    }
}

#[test]
fn a_resumed_run_refuses_to_be_another_one() {
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
