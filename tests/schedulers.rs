//! The scripts for schedulers start a run of several processes, start it again when it has ended early, and it resumes.
#![cfg(unix)]

#[path = "common/cli.rs"]
mod cli;
#[path = "common/plugin.rs"]
mod plugin;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// A tiny run that takes a few seconds after its first checkpoint, so that it can be ended there.
const RUN: &str = "--model nondoubling --latent 4 --encoder-width 2 --batch-size 4 --pool-size 8 --start-side 4 \
                   --nca-steps-min 2 --nca-steps-max 3 --chunk 10 --eval-every 0 --checkpoint-every 10 --steps 300";

fn tool(folder: &Path, name: &str, arguments: &[&str]) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools").join(name);
    let mut command = cli::prepare(Command::new(script), folder, arguments);
    command.env("VNCA", env!("CARGO_BIN_EXE_vnca"));
    command
}

/// Runs a tool's dry run with a program in place of vnca.
fn with_program(folder: &Path, name: &str, program: &str) -> Output {
    let path = folder.join("program");
    fs::write(&path, format!("#!/bin/sh\n{program}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    tool(folder, name, &["--dry-run", "2", "run", "--steps", "3"]).env("VNCA", path).output().unwrap()
}

#[test]
fn runs_that_end_early_are_started_again_and_resume() {
    let Some(device) = plugin::of_processes(1) else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (name, ended) in
        [("train-slurm", "ended with code 138: requeued"), ("train-kubernetes", "pod 0 ended with code 6")]
    {
        let run = [&["--dry-run", "2", name, "--device", &device][..], &RUN.split(' ').collect::<Vec<_>>()]
            .concat();
        let output =
            tool(at, name, &run).env("VNCA_COMPILATION_CACHE", at.join("compiled")).output().unwrap();
        let text = cli::text(&output.stderr);
        assert!(output.status.success() && text.contains(ended), "{name}: {text}");
        assert_eq!(text.matches("2 replica(s) of 2 processes").count(), 2, "{name}: {text}");
    }
    // As if they had not been ended, and wherever that was.
    for file in ["metrics.jsonl", "checkpoints/step-00000300.npz"] {
        let [one, other] =
            ["train-slurm", "train-kubernetes"].map(|name| fs::read(at.join(name).join(file)).unwrap());
        assert!(one == other, "{file} differs");
    }
    assert_eq!(cli::metrics(&at.join("train-slurm")).len(), 300);
}

#[test]
fn a_job_without_progress_is_not_requeued() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let log = "echo \"$SLURM_PROCID $*\" >>log";
    let stuck = with_program(at, "train-slurm", &format!("{log}; exit $((6 * SLURM_PROCID))"));
    let text = cli::text(&stuck.stderr);
    assert!(stuck.status.code() == Some(6) && text.contains("not requeued"), "{text}");
    let mut calls: Vec<String> =
        fs::read_to_string(at.join("log")).unwrap().lines().map(String::from).collect();
    calls.sort();
    assert_eq!(calls, ["0 train --steps 3 --out run", "1 train --steps 3 --out run"]);
    // Each start saves a state, until the third succeeds.
    fs::remove_file(at.join("log")).unwrap();
    let steps = "n=$(ls run/checkpoints | wc -l); touch run/config.json run/checkpoints/step-$n.npz; [ $n -ge 2 ] || exit 6";
    let program = format!("{log}; [ $SLURM_PROCID = 1 ] || {{ mkdir -p run/checkpoints; {steps}; }}");
    let goes_on = with_program(at, "train-slurm", &program);
    assert!(goes_on.status.success(), "{}", cli::text(&goes_on.stderr));
    let calls = fs::read_to_string(at.join("log")).unwrap();
    assert_eq!(
        calls.lines().filter(|call| *call == "0 train --steps 3 --out run --resume").count(),
        2,
        "{calls}"
    );
    // An error that would come again.
    let wrong = with_program(at, "train-slurm", "exit 3");
    assert_eq!(wrong.status.code(), Some(3), "{}", cli::text(&wrong.stderr));
}

#[test]
fn a_run_that_is_not_finite_is_not_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let program = "echo $JOB_COMPLETION_INDEX >>log; exit 5";
    let ended = with_program(folder.path(), "train-kubernetes", program);
    assert_eq!(ended.status.code(), Some(5), "{}", cli::text(&ended.stderr));
    assert_eq!(fs::read_to_string(folder.path().join("log")).unwrap().lines().count(), 2);
}

#[test]
fn the_manifest_has_what_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let print = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = tool(folder.path(), "train-kubernetes", arguments)
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        (output.status.code(), cli::text(&output.stdout), cli::text(&output.stderr))
    };
    let variables =
        [("NAME", "first"), ("TPUS", "4"), ("ACCELERATOR", "tpu-v5-lite-podslice"), ("TOPOLOGY", "4x4")];
    let (code, manifest, _) = print(&["4", "runs/first", "--data", "a \"b\\c"], &variables);
    assert_eq!(code, Some(0));
    for line in [
        "  completions: 4",
        "  parallelism: 4",
        "  backoffLimit: 40",
        "      subdomain: first",
        "          value: \"first-0.first:8482\"",
        "        cloud.google.com/gke-tpu-topology: 4x4",
        "          limits: {google.com/tpu: 4, memory: 16Gi}",
        "        - \"a \\\"b\\\\c\"",
    ] {
        assert!(manifest.lines().any(|other| other == line), "{line} is not in {manifest}");
    }
    let mut after = manifest.split('@').skip(1);
    assert!(!after.any(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase())), "{manifest}");
    let plain = print(&["2", "run"], &[]).1;
    assert!(plain.contains("          limits: {memory: 16Gi}") && !plain.contains("nodeSelector"), "{plain}");
    for (pods, variable, words) in [
        ("none", None, "PODS is a number from 1, got 'none'"),
        ("2", Some(("GPUS", "0")), "GPUS is a number from 1, got '0'"),
        ("2", Some(("NAME", "My_Run")), "got 'My_Run'"),
    ] {
        let (code, _, error) = print(&[pods, "run"], variable.as_slice());
        assert!(code == Some(2) && error.contains(words), "{error}");
    }
}
