//! Compiles for a GPU without one, if XLA's compiler for GPUs is installed. Training in bf16 stays in bf16, and launches few
//! kernels.

#[path = "common/cli.rs"]
mod cli;

use serde_json::Value;
use vnca::engine::runtime::Plugin;

/// Returns the reports of the programs that `vnca compile` compiles, or `None` without a compiler.
fn compile(arguments: &str) -> Option<Vec<Value>> {
    if let Err(error) = Plugin::Cuda.find() {
        eprintln!("skipped: {error:#}");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let arguments: Vec<&str> = ["compile", "--json"].into_iter().chain(arguments.split(' ')).collect();
    let report: Value = serde_json::from_str(&cli::succeed(folder.path(), &arguments)).expect("it is JSON");
    Some(report["programs"].as_array().unwrap().clone())
}

fn number(program: &Value, field: &str) -> f64 {
    program.pointer(field).and_then(Value::as_f64).unwrap_or_else(|| panic!("{field}: {program}"))
}

/// The limits are about 5 % above what was counted when they were written: 235, 2235 and 1054.
#[test]
fn training_in_bf16_has_no_convolution_in_f32_and_launches_few_kernels() {
    let sizes = "--topology h100 --train-only --replicas 1 --precision bf16";
    let Some(programs) = compile(sizes) else { return };
    let limits = [("train_baseline", 190.0), ("train_doubling", 2_320.0), ("train_nondoubling", 1_070.0)];
    let names: Vec<&str> = programs.iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, limits.map(|(name, _)| name));
    for (program, (_, most)) in programs.iter().zip(limits) {
        let launches = number(program, "/kernels/launches");
        assert!(launches <= most, "{launches} launches, at most {most}: {program}");
        let convolutions = program["kernels"]["convolutions"].as_object().unwrap();
        let types: Vec<&String> = convolutions.keys().collect();
        assert_eq!(types, ["bf16"], "{program}");
        assert!(number(program, "/kernels/matmuls/bf16") > 0.0, "{program}");
    }
}

#[test]
fn a_report_has_memory_bytes_and_counts_by_type() {
    let sizes = "--topology a100 --topology b200 --model baseline --latent 8 --batch-size 8 --chunk 2 --samples 2 \
                 --eval-batch-size 8 --replicas 1";
    let Some(programs) = compile(sizes) else { return };
    let names: Vec<&str> = programs.iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["train_baseline", "train_baseline", "eval_baseline_k2", "eval_baseline_k2"]);
    for program in &programs {
        for field in ["/flops", "/bytes", "/memory_ms", "/memory/arguments", "/kernels/launches"] {
            assert!(number(program, field) > 0.0, "{field}: {program}");
        }
        assert!(number(program, "/memory/total") < number(program, "/memory/limit"), "{program}");
        assert!(number(program, "/kernels/convolutions/f32") > 0.0, "{program}");
        assert_eq!(program["estimated_ms"], Value::Null);
    }
}

#[test]
fn an_unknown_topology_is_refused_with_those_of_both_kinds() {
    let folder = tempfile::tempdir().unwrap();
    let error = cli::fail(folder.path(), &["compile", "--topology", "h1000"], 2);
    let expected = "there is no topology \"h1000\": those of TPUs are like v2:2x2, v3:2x2, v4:2x2x1, v5e:2x4, v6e:2x4; GPUs \
                    are a100, h100, h200, b200";
    assert!(error.contains(expected), "{error}");
}
