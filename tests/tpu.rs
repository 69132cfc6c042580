//! Compiles for a TPU without one, if its compiler is installed.

#[path = "common/cli.rs"]
mod cli;

use vnca::engine::runtime::Plugin;

#[test]
fn training_and_evaluation_compile_for_a_tpu() {
    if let Err(error) = Plugin::Tpu.find() {
        eprintln!("skipped: {error:#}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let sizes = "compile --topology v3:2x2 --model doubling --latent 8 --batch-size 8 --chunk 2 --samples 2 --eval-batch-size 8 --replicas 8";
    let arguments: Vec<&str> = sizes.split(' ').chain(["--json"]).collect();
    let told: serde_json::Value =
        serde_json::from_str(&cli::succeed(folder.path(), &arguments)).expect("it is JSON");
    let programs = told["programs"].as_array().unwrap();
    let names: Vec<&str> = programs.iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["train_doubling", "eval_doubling_k2"]);
    for program in programs {
        let number = |field: &str| program.pointer(field).and_then(serde_json::Value::as_f64).unwrap();
        for field in ["/flops", "/bytes", "/estimated_ms", "/memory/arguments", "/memory/code"] {
            assert!(number(field) > 0.0, "{field}: {program}");
        }
        assert!(number("/memory/total") < number("/memory/limit"), "{program}");
        assert_eq!(number("/replicas"), 8.0);
    }
    let [train, eval] = [&programs[0], &programs[1]];
    assert!(train["collectives"]["all-reduce"]["count"].as_f64().unwrap() >= 1.0, "{train}");
    assert!(train["memory"]["donated"].as_f64().unwrap() > 0.0, "{train}");
    assert_eq!(eval["collectives"], serde_json::json!({}));

    let wrong = [&arguments[..2], &["v3:9"], &arguments[3..]].concat();
    let error = cli::fail(folder.path(), &wrong, 1);
    assert!(error.contains("has no topology \"v3:9\"; examples are v2:2x2, v3:2x2"), "{error}");
}
