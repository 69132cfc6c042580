//! Compares training runs with those of JAX.
#![allow(dead_code)]

use std::path::Path;

use serde_json::Value;

use super::cli;

/// Returns an entry of the runs of JAX.
pub fn golden(entry: &str) -> Value {
    let path = format!("{}/tests/goldens/train.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("the golden file exists");
    serde_json::from_str::<Value>(&text).expect("it is JSON")[entry].take()
}

/// Compares losses with the relative `tolerance`, and norms and first values of parameters with the absolute `slack`.
pub fn assert_run_equals(run: &Path, golden: &Value, tolerance: f64, slack: f64) {
    let losses: Vec<f64> = cli::metrics(run).iter().map(|l| l["loss"].as_f64().expect("a loss")).collect();
    let expected: Vec<f64> =
        golden["loss"].as_array().expect("a list").iter().filter_map(Value::as_f64).collect();
    assert_eq!(losses.len(), expected.len());
    for (step, (got, expected)) in losses.iter().zip(&expected).enumerate() {
        assert!(
            (got - expected).abs() <= tolerance * expected,
            "step {}: loss {got}, expected {expected}",
            step + 1
        );
    }
    let listing = cli::succeed(run, &["inspect", "--run", ".", "--json"]);
    let listing: Value = serde_json::from_str(&listing).expect("inspect prints JSON");
    let leaves = listing["leaves"].as_array().expect("a list");
    for (leaf, expected) in leaves.iter().zip(golden["final"].as_array().expect("a list")) {
        assert_eq!(leaf["shape"], expected["shape"], "{}", leaf["name"]);
        let (l2, expected_l2) = (leaf["l2"].as_f64().unwrap(), expected["l2"].as_f64().unwrap());
        assert!(
            (l2 - expected_l2).abs() <= 1e-5 * expected_l2 + slack,
            "{}: l2 {l2}, expected {expected_l2}",
            leaf["name"]
        );
        for (got, expected) in
            leaf["first"].as_array().unwrap().iter().zip(expected["first"].as_array().unwrap())
        {
            let (got, expected) = (got.as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((got - expected).abs() <= slack, "{}: {got}, expected {expected}", leaf["name"]);
        }
    }
}
