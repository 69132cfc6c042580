//! Every example builds and runs successfully. Each example checks its own result.

use std::path::PathBuf;
use std::process::Command;

const PROFILE: &[&str] = if cfg!(debug_assertions) { &[] } else { &["--release"] };

/// Examples, and whether they take the path of an output file.
const EXAMPLES: [(&str, bool); 6] = [
    ("gradient", false),
    ("own_cell", true),
    ("own_task", true),
    ("own_likelihood", true),
    ("eight_replicas", false),
    ("latents", true),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root()).args(arguments).args(PROFILE);
    command
}

#[test]
fn examples_run_and_pass_their_own_checks() {
    let built = cargo(&["build", "--quiet", "--examples"]).status().expect("cargo starts");
    assert!(built.success(), "the examples do not build");
    let folder = tempfile::tempdir().unwrap();
    for (name, writes) in EXAMPLES {
        let mut command = cargo(&["run", "--quiet", "--example", name]);
        let out = folder.path().join(name);
        if writes {
            command.arg("--").arg(&out);
        }
        let output = command.output().expect("cargo starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name} fails: {errors}");
        assert!(!output.stdout.is_empty(), "{name} prints nothing");
        assert!(!writes || out.exists(), "{name} has not written {}", out.display());
    }
}

#[test]
fn every_example_is_listed_and_short() {
    let mut names: Vec<String> = EXAMPLES.iter().map(|(name, _)| format!("{name}.rs")).collect();
    names.sort();
    let files = std::fs::read_dir(root().join("examples")).expect("the folder of examples exists");
    let mut found: Vec<String> = files.map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    assert_eq!(names, found);
    for name in names {
        let lines = std::fs::read_to_string(root().join("examples").join(&name)).unwrap().lines().count();
        assert!(lines <= 120, "{name} has {lines} lines: an example has at most 120");
    }
}
