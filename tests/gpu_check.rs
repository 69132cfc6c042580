//! `tools/gpu-check` without a GPU: its error messages, and a dry run of all parts with tiny sizes on a CPU plugin.

#[path = "common/plugin.rs"]
mod plugin;

use std::path::Path;
use std::process::{Command, Output};

const BINARY: &str = env!("CARGO_BIN_EXE_vnca");

fn gpu_check(arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/gpu-check");
    Command::new(script).args(arguments).output().expect("python3 exists, because the set-up needs it")
}

fn refused(arguments: &[&str], code: i32, part: &str) {
    let output = gpu_check(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    assert!(error.contains(part) && !error.contains("Traceback"), "{arguments:?}: {error}");
}

#[test]
fn what_cannot_be_checked_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    if !Path::new("/dev/nvidia0").exists() {
        refused(&[], 4, "this machine has no NVIDIA GPU");
        refused(&["--device", "cuda"], 4, "--dry-run goes through everything without one");
    }
    refused(&["--models", "tripling"], 2, "no model 'tripling'");
    refused(&["--parts", "steps,speed"], 2, "no part 'speed'");
    refused(&["--vnca", BINARY], 2, "--vnca and --bench-step go together");
    let empty = folder.path().to_str().unwrap();
    refused(&["--dry-run", "--device", "a.so", "--from", empty], 2, "was not made by tools/gpu-check --pack");
    std::fs::write(folder.path().join("packed.json"), r#"{"dry_run": false, "models": []}"#).unwrap();
    refused(&["--dry-run", "--device", "a.so", "--from", empty], 2, "was packed without --dry-run");
}

#[test]
fn a_dry_run_covers_all_parts() {
    let Some(device) = plugin::device() else { return };
    let bench_step = Path::new(BINARY).with_file_name("examples/bench_step");
    if !bench_step.exists() {
        eprintln!(
            "left out: {} is not built; cargo build --release --example bench_step",
            bench_step.display()
        );
        return;
    }
    let bench_step = bench_step.to_str().unwrap();
    let binaries = ["--vnca", BINARY, "--bench-step", bench_step];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gpu.json");
    let rest =
        ["--dry-run", "--device", &device, "--models", "nondoubling", "--no-jax", "--no-torch", "--json"];
    let rest = [&rest[..], &["--out", file.to_str().unwrap()]].concat();
    let output = gpu_check(&[&binaries[..], &rest[..]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(told, kept);
    assert_eq!((&told["done"], &told["errors"]), (&true.into(), &serde_json::json!([])));
    assert_eq!(told["conformance"]["failed"], 0);
    assert!(told["conformance"]["passed"].as_u64().unwrap() > 100);
    let (step, training) = (&told["models"]["nondoubling"], &told["training"]["nondoubling"]);
    for figure in [
        &step["peak_gflops"],
        &step["ours"]["ms"],
        &training["f32"]["ms_per_step"],
        &training["f32"]["report_minutes"],
    ] {
        assert!(figure.as_f64().is_some_and(|v| v > 0.0), "{told}");
    }
}
