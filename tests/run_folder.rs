//! A run's folder has one owner, and errors do not lose the run's state.

#[path = "common/cli.rs"]
mod cli;

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

/// Returns the arguments of a training with small steps in the folder `out`.
fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let small =
        "train --model doubling --nca-steps 1 --batch-size 2 --latent 8 --eval-images 2 --eval-samples 1";
    let words: Vec<&str> = small.split(' ').chain(["--out", out]).collect();
    [&words[..], more].concat()
}

fn checkpoints(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_second_process_is_refused_and_the_lock_of_a_dead_one_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let long = train("run", &["--steps", "100000", "--eval-every", "0", "--checkpoint-every", "5"]);
    let mut first = cli::vnca(folder.path(), &long).stderr(Stdio::null()).spawn().unwrap();
    cli::wait_for_step(&mut first, &run, 6);
    // Pause the first process, so that it cannot end before the second one starts.
    cli::signal(&first, "-STOP");
    let before = fs::read(run.join("config.json")).unwrap();
    let resume = ["train", "--resume", "--out", "run", "--steps", "100"];
    let error = cli::fail(folder.path(), &resume, 1);
    assert!(error.contains(&format!("process {}", first.id())) && error.contains("in use"), "{error}");
    let error = cli::fail(folder.path(), &train("run", &["--steps", "1"]), 2);
    assert!(error.contains("holds a run already"), "{error}");
    assert_eq!(fs::read(run.join("config.json")).unwrap(), before);
    cli::signal(&first, "-KILL");
    first.wait().unwrap();
    assert!(run.join("run.lock").exists());
    let steps = (cli::metrics(&run).len() + 1).to_string();
    cli::succeed(folder.path(), &["train", "--resume", "--out", "run", "--steps", &steps]);
    assert_eq!(cli::metrics(&run).len().to_string(), steps);
    assert!(!run.join("run.lock").exists());
}

#[test]
fn runs_that_start_at_the_same_time_get_separate_folders() {
    let folder = tempfile::tempdir().unwrap();
    let words = train("", &["--steps", "1", "--eval-every", "0"]);
    let words: Vec<&str> = words.into_iter().filter(|word| !["--out", ""].contains(word)).collect();
    let both = [(); 2].map(|()| {
        cli::vnca(folder.path(), &words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    });
    let mut names = both.map(|run| cli::text(&run.wait_with_output().unwrap().stdout));
    names.sort();
    assert_eq!(names.map(|name| name.trim().to_string()), ["runs/doubling-1", "runs/doubling-2"]);
}

#[test]
fn a_failed_evaluation_ends_the_run_after_saving_its_state() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    fs::create_dir(&run).unwrap();
    // A file with the name of the pictures' folder is found before the first step.
    fs::write(run.join("pictures"), "").unwrap();
    let error = cli::fail(folder.path(), &train("run", &["--steps", "4", "--eval-every", "3"]), 1);
    assert!(error.contains("cannot write run/pictures/"), "{error}");
    assert!(!run.join("metrics.jsonl").exists() && !run.join("config.json").exists());
    fs::remove_file(run.join("pictures")).unwrap();
    // A folder with the name of a picture makes the evaluation fail.
    let picture = run.join("pictures/samples-00000003.png");
    fs::create_dir_all(&picture).unwrap();
    let error = cli::fail(folder.path(), &train("run", &["--steps", "4", "--eval-every", "3"]), 1);
    assert!(error.contains("after step 3") && error.contains("pictures"), "{error}");
    assert_eq!(checkpoints(&run), ["step-00000003.npz"]);
    assert_eq!(cli::metrics(&run).len(), 2);
    fs::remove_dir(&picture).unwrap();
    // The resumed run begins with this evaluation.
    cli::succeed(folder.path(), &["train", "--resume", "--out", "run"]);
    let lines = cli::metrics(&run);
    assert_eq!(lines.len(), 4);
    assert!(lines[2]["test_iwelbo"].is_number() && picture.is_file());
}

#[test]
fn a_missing_or_truncated_log_does_not_stop_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let four = train("run", &["--steps", "4", "--eval-every", "0", "--checkpoint-every", "2"]);
    cli::succeed(folder.path(), &four);
    let log = fs::read(run.join("metrics.jsonl")).unwrap();
    fs::write(run.join("metrics.jsonl"), &log[..log.len() - 5]).unwrap();
    let resume = |steps: &str| {
        let output = cli::run(folder.path(), &["train", "--resume", "--out", "run", "--steps", steps]);
        let error = cli::text(&output.stderr);
        assert!(output.status.success(), "{error}");
        error
    };
    let warning = resume("5");
    assert!(warning.contains("metrics.jsonl lacks 1 of the steps"), "{warning}");
    let steps: Vec<u64> = cli::metrics(&run).iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3, 5]);
    fs::remove_file(run.join("metrics.jsonl")).unwrap();
    assert!(resume("6").contains("lacks 5"));
    // Without any checkpoint the run starts again with a warning.
    let all = checkpoints(&run);
    all.iter().for_each(|name| fs::remove_file(run.join("checkpoints").join(name)).unwrap());
    let warning = resume("6");
    assert!(warning.contains("no checkpoint") && warning.contains("metrics.jsonl.aside"), "{warning}");
    assert_eq!(cli::metrics(&run).len(), 6);
}

#[test]
fn training_continues_when_its_messages_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let two = train("run", &["--steps", "2", "--eval-every", "1"]);
    let status = cli::vnca(folder.path(), &two).stderr(full()).stdout(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(cli::metrics(&folder.path().join("run")).len(), 2);
    let status = cli::vnca(folder.path(), &["eval", "--run", "none"]).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(3));
}

#[test]
fn the_needs_of_a_run_are_checked_before_its_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let too_many = ["train", "--out", "run", "--steps", "1", "--eval-images", "3000"];
    let error = cli::fail(folder.path(), &too_many, 2);
    assert!(error.contains("--eval-images") && error.contains("2000 test images"), "{error}");
    let sizes = "export --model doubling --batch-size 2 --latent 8 --samples 2 --images 10000 --target cpu --out programs";
    fs::write(folder.path().join("small.toml"), "nca-steps = 1\neval-samples = 2\n").unwrap();
    let words: Vec<&str> = sizes.split(' ').chain(["--config", "small.toml"]).collect();
    cli::succeed(folder.path(), &words);
    // The programs of training fit. That of evaluation is for another number of samples.
    let words = train("run", &["--steps", "1", "--eval-every", "1", "--programs", "programs"]);
    let error = cli::fail(folder.path(), &words, 3);
    assert!(error.contains("eval_doubling"), "{error}");
    assert!(!folder.path().join("run").exists(), "the failed run left its folder behind");
}
