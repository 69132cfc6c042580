//! The program learns a user's own pictures: it trains on a folder of image files, resumes bit for bit, evaluates in nats and in bits
//! per dimension, and draws the bits of grey levels anew.

#[path = "common/cli.rs"]
mod cli;

use std::path::Path;

use serde_json::Value;
use vnca::engine::random::Key;

/// Writes RGBA pictures in two folders: filled circles before a transparent background.
fn write_pictures(folder: &Path, count: usize) {
    for i in 0..count {
        let class = folder.join(["one", "two"][i % 2]);
        std::fs::create_dir_all(&class).unwrap();
        let colour = [(40 * i % 256) as u8, (90 * i % 256) as u8, 200];
        let picture = image::RgbaImage::from_fn(16, 20, |x, y| {
            let (dx, dy) = (i64::from(x) - 7 - i as i64 % 3, i64::from(y) - 9);
            let opacity = if dx * dx + dy * dy < 30 + 5 * (i as i64 % 4) { 255 } else { 0 };
            image::Rgba([colour[0], colour[1], colour[2], opacity])
        });
        picture.save(class.join(format!("{i:03}.png"))).unwrap();
    }
}

fn train(more: &str) -> Vec<String> {
    let words = "train --batch-size 4 --checkpoint-every 2 --eval-every 0 --encoder-width 4";
    words.split_whitespace().chain(more.split_whitespace()).map(String::from).collect()
}

fn stderr(folder: &Path, arguments: &[String]) -> String {
    let output = cli::run(folder, arguments);
    let text = cli::text(&output.stderr);
    assert!(output.status.success(), "{text}");
    text
}

fn checkpoint(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("checkpoints/step-00000004.npz")).unwrap()
}

#[test]
fn a_folder_of_pictures_trains_resumes_and_is_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_pictures(&at("pictures"), 40);
    for model in [
        "baseline",
        "doubling --nca-steps 1",
        "nondoubling --nca-steps 2 --nca-steps-min 1 --nca-steps-max 3 --pool-size 8",
    ] {
        let options = format!(
            "--data pictures --split 0.7 --model {model} --latent 24 --likelihood logistic-mixture --components 2"
        );
        let said = stderr(folder.path(), &train(&format!("{options} --steps 4 --out whole")));
        assert!(said.contains("20 x 16 RGBA") && said.contains("logistic-mixture, 2 components"), "{said}");
        stderr(folder.path(), &train(&format!("{options} --steps 2 --out parts")));
        cli::succeed(folder.path(), &["train", "--resume", "--out", "parts", "--steps", "4"]);
        assert!(checkpoint(&at("whole")) == checkpoint(&at("parts")), "{model}: the checkpoints differ");

        let eval = ["eval", "--run", "whole", "--samples", "2", "--json"];
        let result: Value = serde_json::from_str(&cli::succeed(folder.path(), &eval)).unwrap();
        let (nats, bits) = (result["iwelbo"].as_f64().unwrap(), result["bits_per_dim"].as_f64().unwrap());
        assert!((bits + nats / std::f64::consts::LN_2 / (20.0 * 16.0 * 4.0)).abs() < 1e-9, "{nats}, {bits}");
        assert!((0.5..20.0).contains(&bits), "{bits}");
        // Other images are converted to the model's.
        let other = [&eval[..], &["--data", "glyphs", "--limit", "5"]].concat();
        cli::succeed(folder.path(), &other);
        for run in ["whole", "parts"] {
            std::fs::remove_dir_all(at(run)).unwrap();
        }
    }
    // The decoded images are kept beside the runs.
    assert!(std::fs::read_dir(at(".images")).unwrap().count() > 0);
}

#[test]
fn a_runs_pictures_are_known_by_their_content() {
    let folder = tempfile::tempdir().unwrap();
    write_pictures(&folder.path().join("pictures"), 24);
    let options = "--data pictures --split 0.7 --latent 12 --likelihood logistic --steps 1 --out run";
    stderr(folder.path(), &train(options));
    let eval = ["eval", "--run", "run", "--samples", "1", "--split", "train", "--limit", "2"];
    cli::succeed(folder.path(), &eval);
    write_pictures(&folder.path().join("pictures"), 60);
    assert!(cli::fail(folder.path(), &eval, 3).contains("not the train images"));
    assert!(
        cli::fail(folder.path(), &["train", "--resume", "--out", "run", "--steps", "2"], 1)
            .contains("training images")
    );
}

#[test]
fn a_likelihood_that_does_not_fit_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    write_pictures(&folder.path().join("pictures"), 12);
    let refused =
        |more: &str| cli::fail(folder.path(), &train(&format!("--data pictures --out run {more}")), 2);
    assert!(refused("--likelihood bernoulli").contains("--likelihood"));
    assert!(refused("--model doubling --latent 8 --likelihood logistic").contains("--latent 8: at least 12"));
    assert!(refused("--likelihood logistic --components 3").contains("--components"));
    assert!(refused("--image-size 4").contains("--image-size"));
    assert!(refused("--split 1.5").contains("--split"));
    assert!(!folder.path().join("run").exists());
}

#[test]
fn bits_of_grey_levels_are_drawn_anew_in_training_and_once_for_evaluation() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let levels: Vec<u8> = Key::new(7).bits32(40 * 784).into_iter().map(|bits| (bits >> 24) as u8).collect();
    let array = ndarray::Array3::from_shape_vec((40, 28, 28), levels).unwrap();
    ndarray_npy::write_npy(at("grey.npy"), &array).unwrap();
    let losses = |likelihood: &str, model: &str, run: &str| {
        let options = format!(
            "--data grey.npy --split 0.6 --model {model} --latent 4 --likelihood {likelihood} --steps 4"
        );
        stderr(folder.path(), &train(&format!("{options} --out {run}")));
        let lines = cli::metrics(&at(run));
        lines
            .iter()
            .map(|line| line["train/loss"].as_f64().or(line["loss"].as_f64()).unwrap())
            .collect::<Vec<f64>>()
    };
    let (fixed, drawn) =
        (losses("bernoulli", "baseline", "fixed"), losses("dynamic-bernoulli", "baseline", "drawn"));
    assert_ne!(fixed, drawn);
    assert_eq!(drawn, losses("dynamic-bernoulli", "baseline", "again"));
    let pool = "nondoubling --nca-steps 2 --nca-steps-min 1 --nca-steps-max 3 --pool-size 8";
    assert!(losses("dynamic-bernoulli", pool, "pool").iter().all(|loss| loss.is_finite() && *loss < 1000.0));

    let eval = |run: &str| cli::succeed(folder.path(), &["eval", "--run", run, "--samples", "2", "--json"]);
    let numbers = |run: &str| serde_json::from_str::<Value>(&eval(run)).unwrap()["iwelbo"].as_f64().unwrap();
    assert_eq!(numbers("drawn"), numbers("drawn"));
    assert!(numbers("drawn") < 0.0);
}
