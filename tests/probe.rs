//! A linear probe of single cells: better than chance, equal for equal seeds, and refused for models without cells.

#[path = "common/cli.rs"]
mod cli;

use serde_json::Value;
use vnca::cli::models::Kind;
use vnca::nn::weights::npz::read as read_npz;

#[test]
fn a_probe_predicts_labels_from_cells_of_unseen_images() {
    let folder = tempfile::tempdir().unwrap();
    let weights = cli::weights(folder.path(), Kind::Doubling, 16);
    let weights: Vec<&str> = weights.iter().map(String::as_str).collect();
    let probe = |more: &[&str]| {
        let options = ["--nca-steps", "1", "--limit", "80", "--samples", "3", "--json"];
        let out = cli::succeed(folder.path(), &[&["probe"], &weights[..], &options, more].concat());
        serde_json::from_str::<Value>(&out).unwrap()
    };
    let images = probe(&["--out", "images", "--epochs", "20"]);
    let count = |name: &str| images[name].as_u64();
    assert_eq!((count("images_tested"), count("cells_tested")), (Some(16), Some(16 * 1024)));
    let accuracy = images["accuracy"].as_f64().unwrap();
    let interval: Vec<f64> = serde_json::from_value(images["interval_95"].clone()).unwrap();
    assert!(interval[0] <= accuracy && accuracy <= interval[1]);
    // In the report's split the probe was trained on other cells of the same images.
    let cells = probe(&["--out", "cells", "--epochs", "20", "--split", "cells"]);
    let leaked = cells["accuracy"].as_f64().unwrap();
    assert_eq!(cells["images_tested"].as_u64(), Some(80));
    assert!(leaked > 0.3 && leaked > accuracy, "{leaked} of cells, {accuracy} of images");

    let arrays = read_npz(&folder.path().join("images/probe.npz")).unwrap();
    let dims: Vec<(&str, &[usize])> = arrays.iter().map(|(name, a)| (name.as_str(), a.dims())).collect();
    assert_eq!(dims, [("weight", [10, 16].as_slice()), ("bias", [10].as_slice())]);
    for name in ["positions.png", "prior.png"] {
        assert!(std::fs::read(folder.path().join("images").join(name)).unwrap().starts_with(b"\x89PNG"));
    }
    assert_eq!(std::fs::read_dir(folder.path().join("images")).unwrap().count(), 4);
}

#[test]
fn the_baseline_has_no_cells_to_probe() {
    let folder = tempfile::tempdir().unwrap();
    let weights = cli::weights(folder.path(), Kind::Baseline, 4);
    let weights: Vec<&str> = weights.iter().map(String::as_str).collect();
    let error = cli::fail(folder.path(), &[&["probe", "--out", "no"], &weights[..]].concat(), 2);
    assert!(error.contains("no cells"), "{error}");
    assert!(!folder.path().join("no").exists());
}
