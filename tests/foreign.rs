//! Another crate builds, links, runs and tests with this library, without environment variables.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command without the variables for building that a developer's shell or this test's cargo has set.
fn run(folder: &Path, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.current_dir(folder).args(arguments);
    for (name, _) in std::env::vars() {
        let of_build = ["XLA_", "LIBCLANG", "CLANG_", "LD_LIBRARY", "VNCA_", "RUSTFLAGS"];
        if of_build.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    // Both builds share only the target folder, so that dependencies are compiled once.
    command.env("CARGO_TARGET_DIR", root().join("target"));
    let output = command.output().expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} in {}: {errors}", folder.display());
    output
}

#[test]
fn a_new_project_runs_the_example_of_a_new_cell() {
    let folder = tempfile::tempdir().unwrap();
    let project = folder.path().join("my-automaton");
    let tool = root().join("tools/new-project");
    run(folder.path(), tool, &[project.to_str().unwrap()]);

    // First the project as it was created.
    let made = run(&project, env!("CARGO"), &["run", "--release", "--quiet"]);
    assert!(String::from_utf8_lossy(&made.stdout).contains("cores"), "{made:?}");

    // Then with the automaton of the documentation and a test.
    let example = fs::read_to_string(root().join("examples/own_cell.rs")).unwrap();
    let test = "\n#[test]\nfn the_device_is_there() {\n    Mesh::open(&Device::Cpu, 1).unwrap();\n}\n";
    fs::write(project.join("src/main.rs"), example + test).unwrap();
    let out = folder.path().join("run");
    let ran = run(&project, env!("CARGO"), &["run", "--release", "--quiet", "--", out.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(text.contains("loss") && out.join("checkpoints/step-00000060.npz").exists(), "{text}");
    let tested = run(&project, env!("CARGO"), &["test", "--release", "--quiet"]);
    assert!(String::from_utf8_lossy(&tested.stdout).contains("1 passed"), "{tested:?}");
}
