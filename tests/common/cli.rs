//! Runs the built binary as a user does.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use vnca::cli::models::{Kind, Model};
use vnca::engine::random::Key;
use vnca::nn::params::init;

const BINARY: &str = env!("CARGO_BIN_EXE_vnca");

/// Returns a command that runs the binary in a folder.
pub fn vnca(folder: &Path, arguments: &[impl AsRef<OsStr>]) -> Command {
    prepare(Command::new(BINARY), folder, arguments)
}

/// Runs the binary to its end. Kills it after ten minutes, so that a test whose command wrongly starts to train ends.
pub fn run(folder: &Path, arguments: &[impl AsRef<OsStr> + Debug]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["600", BINARY]);
    prepare(command, folder, arguments).output().expect("the binary starts")
}

/// Gives a command its folder and arguments, and the environment of a test.
pub fn prepare(mut command: Command, folder: &Path, arguments: &[impl AsRef<OsStr>]) -> Command {
    command.current_dir(folder).args(arguments);
    // A developer's variables must not change a test.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("VNCA_") || name == "RUST_LOG") {
        command.env_remove(name);
    }
    // Neither must programs that an earlier test compiled.
    command.env("VNCA_COMPILATION_CACHE", "off");
    command
}

/// Returns arguments that train a small baseline into the folder `run`, with the options in `more`.
pub fn training(data: &Path, more: &str) -> Vec<String> {
    let words = ["train", "--out", "run", "--latent", "8", "--batch-size", "8", "--data"].map(String::from);
    let data = data.to_str().expect("the path is text").to_string();
    words.into_iter().chain([data]).chain(more.split_whitespace().map(String::from)).collect()
}

/// Runs the binary, expects success and returns stdout.
pub fn succeed(folder: &Path, arguments: &[impl AsRef<OsStr> + Debug]) -> String {
    let output = run(folder, arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "vnca {arguments:?}: {:?}\n{err}", output.status);
    out
}

/// Runs the binary, expects an exit code and returns stderr.
pub fn fail(folder: &Path, arguments: &[impl AsRef<OsStr> + Debug], code: i32) -> String {
    let output = run(folder, arguments);
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "vnca {arguments:?}: {err}");
    assert!(!err.contains("panicked"), "vnca {arguments:?} panicked: {err}");
    err
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Writes a .npy file of the given sizes with independent random pixels.
pub fn write_npy(path: &Path, key: Key, dims: &[usize]) {
    let pixels = key.bernoulli(dims.iter().product(), |_| 0.13).into_iter().map(u8::from).collect();
    let images = ndarray::ArrayD::from_shape_vec(dims, pixels).expect("as many as the sizes say");
    ndarray_npy::write_npy(path, &images).expect("the file can be written");
}

/// Creates a folder with a small training and test set.
pub fn data_folder(root: &Path) -> PathBuf {
    let folder = root.join("images");
    std::fs::create_dir_all(&folder).expect("the folder can be created");
    write_npy(&folder.join("train.npy"), Key::new(900), &[64, 28, 28]);
    write_npy(&folder.join("test.npy"), Key::new(901), &[21, 784]);
    folder
}

/// Writes the initial values of a small model to `weights.npz` and returns the flags that name them.
pub fn weights(folder: &Path, kind: Kind, latent: usize) -> Vec<String> {
    let model = Model::new(kind, Some(latent)).expect("the size is in range");
    let leaves = model.vae().leaves();
    vnca::nn::weights::write(&folder.join("weights.npz"), &leaves, &init(&leaves, Key::new(0)))
        .expect("the file can be written");
    let latent = latent.to_string();
    ["--weights", "weights.npz", "--model", kind.name(), "--latent", &latent].map(String::from).to_vec()
}

/// Reads the lines of a run's metrics.
pub fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("the run has metrics");
    text.lines().map(|l| serde_json::from_str(l).expect("a line is JSON")).collect()
}

/// Waits until a training has written the metrics of a step.
pub fn wait_for_step(child: &mut Child, run: &Path, step: usize) {
    let began = Instant::now();
    let path = run.join("metrics.jsonl");
    while std::fs::read_to_string(&path).map_or(0, |text| text.lines().count()) < step {
        assert!(child.try_wait().unwrap().is_none(), "the run ended early");
        assert!(began.elapsed() < Duration::from_secs(120), "the run does not reach step {step}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal, such as `-TERM`, to a process.
pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}
