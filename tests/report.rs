//! `vnca figures` writes one self-contained page with all sections from runs.

#[path = "common/cli.rs"]
mod cli;

use std::path::Path;

use serde_json::Value;

/// Trains a tiny model for a few steps.
fn train(folder: &Path, kind: &str, more: &[&str]) {
    let common =
        ["train", "--model", kind, "--latent", "8", "--steps", "4", "--chunk", "2", "--batch-size", "4"];
    let eval = ["--eval-every", "2", "--eval-samples", "2", "--eval-images", "8", "--out", kind, "--data"];
    let data = folder.join("images");
    cli::succeed(folder, &[&common[..], &eval, &[data.to_str().unwrap()], more].concat());
}

#[test]
fn one_page_contains_all_figures_of_runs() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    cli::data_folder(folder);
    train(folder, "baseline", &[]);
    train(folder, "doubling", &["--nca-steps", "2"]);
    let runs = ["figures", "--run", "doubling", "--run", "baseline"];
    let sizes = ["--samples", "2", "--limit", "8", "--out", "a report", "--json"];
    let text = cli::succeed(folder, &[&runs[..], &sizes].concat());
    let made: Value = serde_json::from_str(&text).expect("one JSON object and nothing else");
    let html = std::fs::read_to_string(folder.join("a report/report.html")).unwrap();

    for section in [
        "results",
        "curves",
        "reconstructions",
        "growth",
        "interpolation",
        "tsne",
        "damage",
        "probe",
        "planes",
    ] {
        assert!(html.contains(&format!("<h2 id=\"{section}\">")), "{section}");
        assert!(html.contains(&format!("href=\"#{section}\"")), "{section}");
    }
    // The page loads no other resources and runs no scripts.
    let lower = html.to_lowercase();
    for outside in ["<script", "<link", "<iframe", "http://", "https://", "url(", "@import", "javascript:"] {
        assert!(!lower.contains(outside), "the page has {outside}");
    }
    let pictures = html.matches("<img ").count();
    assert_eq!(pictures, html.matches("src=\"data:image/").count());
    // Four pictures of each model, seven more of the model with cells, and two plots of training.
    assert_eq!(pictures, 2 * 4 + 7 + 2);

    // The bound in the table equals the result of the command below it.
    let iwelbo = made["models"]["doubling"]["eval"]["iwelbo"].as_f64().unwrap();
    assert!(html.contains(&format!("{iwelbo:.2}").replace('-', "\u{2212}")), "{iwelbo}");
    let again =
        cli::succeed(folder, &["eval", "--run", "doubling", "--samples", "2", "--spread", "8", "--json"]);
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["iwelbo"].as_f64(), Some(iwelbo));
    for published in ["\u{2212}84.64", "\u{2212}84.15", "\u{2212}84.23", "10,282,497", "6,585,088"] {
        assert!(html.contains(published), "{published}");
    }
    assert!(html.contains("No map of the latents: ") && html.contains("Name a file with --labels"));
    assert!(html.contains("No growth: the baseline&#39;s decoder has no cells."));
    let commands = html.replace("<span>", "").replace("</span>", "");
    assert!(commands.contains("<code>vnca grow --run doubling --out &#39;a report/doubling&#39;</code>"));
    for file in made["files"].as_array().unwrap() {
        assert!(folder.join(file.as_str().unwrap()).is_file(), "{file}");
    }
    assert!(made["models"]["baseline"]["grow"].is_null());

    let error = cli::fail(folder, &["figures", "--run", "baseline", "--run", "baseline", "--out", "b"], 2);
    assert!(error.contains("both of the baseline model"), "{error}");
    assert!(!folder.join("b").exists(), "nothing is written");
}
