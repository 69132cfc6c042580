//! The picture verbs: the files contain the model's outputs in every layout, and the reported numbers agree with them.

#[path = "common/cli.rs"]
mod cli;
#[path = "common/models.rs"]
mod models;

use std::path::Path;

use ndarray::ArrayD;
use serde_json::Value;
use vnca::cli::models::Model;
use vnca::data::{Part, load_split};
use vnca::engine::array::Array;
use vnca::engine::npy;
use vnca::model::Frame;
use vnca::study::gallery::framed;
use vnca::train::checkpoint::{Checkpoint, Meta};

const SIZE: usize = 32 * 32;
const DOUBLING: [&str; 8] =
    ["--weights", "doubling.npz", "--model", "doubling", "--latent", "16", "--nca-steps", "2"];

/// Writes the weights of a tiny model whose steps change the cells.
fn write_weights(folder: &Path, kind: &str) -> Model {
    let name = format!("tiny.{kind}");
    let (_, model) = models::models().into_iter().find(|(n, _)| *n == name).expect("the model exists");
    let inner = models::woken(&model);
    let leaves = model.vae().leaves();
    let arrays: Vec<(String, Array)> =
        leaves.iter().zip(&inner).map(|(l, a)| (l.name.clone(), l.to_checkpoint_layout(a))).collect();
    let said = serde_json::to_value(model).unwrap();
    let meta = Meta {
        version: 1,
        model: said,
        step: 0,
        data_key: [0; 2],
        data_crc: 0,
        best: None,
        unevaluated: None,
    };
    Checkpoint { meta, arrays }
        .save(&folder.join(format!("{kind}.npz")))
        .expect("the weights can be written");
    model
}

/// Runs a verb on the doubling model, which writes its files to the folder `out`. Returns its numbers.
fn show(folder: &Path, out: &str, verb: &[&str]) -> Value {
    let text = cli::succeed(folder, &[verb, &DOUBLING, &["--out", out, "--npy", "--json"]].concat());
    let numbers: Value = serde_json::from_str(&text).expect("the verb prints JSON");
    for file in numbers["files"].as_array().expect("a list of files") {
        let bytes = std::fs::read(folder.join(file.as_str().unwrap())).expect("the file exists");
        let name = file.as_str().unwrap();
        if name.ends_with(".png") {
            assert_eq!(bytes[..8], *b"\x89PNG\r\n\x1a\n", "{name}");
        } else if name.ends_with(".gif") {
            assert_eq!(bytes[..6], *b"GIF89a", "{name}");
        }
    }
    numbers
}

fn values(folder: &Path, name: &str, dims: &[usize]) -> Vec<f32> {
    let array: ArrayD<f32> = ndarray_npy::read_npy(folder.join(name)).expect("NumPy's format");
    assert_eq!(array.shape(), dims, "{name}");
    array.into_iter().collect()
}

fn assert_near(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}");
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-5, "{what}: they differ by {worst}");
}

#[test]
fn one_seed_shows_the_same_samples_in_every_verb() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_weights(folder, "doubling");
    let numbers = show(folder, "a", &["sample", "--rows", "2", "--columns", "3", "--seed", "7"]);
    assert_eq!((numbers["rows"].as_u64(), numbers["seed"].as_u64()), (Some(2), Some(7)));
    let samples = values(folder, "a/sample.npy", &[2, 3, 32, 32]);
    assert!(samples.iter().all(|p| (0.0..=1.0).contains(p)) && samples.iter().any(|p| *p != samples[0]));
    let mean = samples.iter().map(|p| f64::from(*p)).sum::<f64>() / samples.len() as f64;
    assert!((numbers["mean_value"].as_f64().unwrap() - mean).abs() < 1e-6);

    // Drawn pixels, under another name and in another layout.
    show(folder, "b/drawn.png", &["sample", "--rows", "1", "--columns", "6", "--seed", "7", "--bernoulli"]);
    let drawn = values(folder, "b/drawn.npy", &[1, 6, 32, 32]);
    assert!(drawn.iter().all(|p| *p == 0.0 || *p == 1.0));
    let difference = drawn.iter().zip(&samples).map(|(d, p)| f64::from(d - p)).sum::<f64>();
    let variance = samples.iter().map(|p| f64::from(p * (1.0 - p))).sum::<f64>();
    assert!(difference.abs() < 5.0 * variance.sqrt(), "{difference}");

    // Row 0 of an interpolation goes from sample 0 to sample 1, row 1 from 2 to 3.
    let numbers = show(folder, "a", &["interpolate", "--rows", "2", "--columns", "4", "--seed", "7"]);
    let lines = values(folder, "a/interpolate.npy", &[2, 4, 32, 32]);
    for (picture, sample) in [(0, 0), (3, 1), (4, 2), (7, 3)] {
        let of = |values: &[f32], i: usize| values[i * SIZE..(i + 1) * SIZE].to_vec();
        assert_near("an end of a line", &of(&lines, picture), &of(&samples, sample));
    }
    assert_eq!(numbers["rows"][1]["to"]["sample"].as_u64(), Some(3));
    assert_eq!(numbers["rows"][0]["changes"].as_array().unwrap().len(), 3);

    // Growth ends with the sample. It has 5 doublings with 2 steps each, and every stage is shown.
    let numbers = show(folder, "a", &["grow", "--samples", "2", "--seed", "7"]);
    let stages = values(folder, "a/grow.npy", &[15, 2, 32, 32]);
    assert_near("the last stage", &stages[14 * 2 * SIZE..], &samples[..2 * SIZE]);
    let listed = numbers["stages"].as_array().unwrap();
    let at = |i: usize| ["doubling", "step", "side"].map(|name| listed[i][name].as_u64().unwrap());
    assert_eq!((listed.len(), at(0), at(4), at(14)), (15, [1, 0, 2], [2, 1, 4], [5, 2, 32]));
    // The margin around a smaller grid is empty.
    assert!(
        stages[..SIZE]
            .iter()
            .enumerate()
            .all(|(i, p)| (*p == 0.0) != ((15..17).contains(&(i / 32)) && (15..17).contains(&(i % 32))))
    );
}

#[test]
fn damage_has_the_given_position_size_and_number() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_weights(folder, "doubling");
    let verb =
        ["recover", "--samples", "3", "--sizes", "8,4", "--at", "10,20", "--damages", "2", "--steps", "3"];
    let numbers = show(folder, "a", &verb);
    let rows = values(folder, "a/recover-8.npy", &[5, 3, 32, 32]);
    let (original, damaged) = rows[..6 * SIZE].split_at(3 * SIZE);
    for (i, (before, after)) in original.iter().zip(damaged).enumerate() {
        let (row, column) = (i % SIZE / 32, i % 32);
        let inside = (10..18).contains(&row) && (20..28).contains(&column);
        // Channel 0 of a damaged cell is a logit of 0.
        assert_eq!(*after, if inside { 0.5 } else { *before }, "row {row}, column {column}");
    }
    let again: Vec<bool> = rows[9 * SIZE..12 * SIZE].iter().map(|p| *p == 0.5).collect();
    assert!(again.iter().filter(|hit| **hit).count() >= 3 * 64, "the second damage is shown");
    // 15 stages of growth, then twice the damage and 3 steps.
    let course = values(folder, "a/recover-4-course.npy", &[15 + 2 * 4, 3, 32, 32]);
    assert_near("the original", &course[14 * 3 * SIZE..15 * 3 * SIZE], original);

    let points = numbers["points"].as_array().unwrap();
    assert_eq!(points.len(), 2 * (1 + 2 * 4));
    for (point, side) in [(&points[0], 4), (&points[9], 8)] {
        assert_eq!((point["side"].as_u64(), point["damage"].as_u64()), (Some(side), Some(0)));
        assert_eq!(point["iou"]["mean"].as_f64(), Some(1.0));
        assert!(point["log_likelihood_regained"].is_null());
    }
    // A larger square lowers the likelihood more.
    let likelihood = |i: usize| points[i]["log_likelihood"]["mean"].as_f64().unwrap();
    assert!(
        likelihood(0) > likelihood(1) && likelihood(1) > likelihood(10),
        "{} {}",
        likelihood(1),
        likelihood(10)
    );
    let table = std::fs::read_to_string(folder.join("a/recover.csv")).unwrap();
    assert_eq!(table.lines().count(), 1 + points.len());
    let line: Vec<&str> = table.lines().nth(2).unwrap().split(',').collect();
    assert_eq!(line[..3], ["4", "1", "0"]);
    assert!((line[5].parse::<f64>().unwrap() - likelihood(1)).abs() < 1e-9);
}

#[test]
fn images_stand_above_their_reconstructions() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_weights(folder, "doubling");
    let numbers = show(folder, "a", &["reconstruct", "--indices", "7,1999,7", "--columns", "2"]);
    let test = load_split("glyphs", Part::Test).unwrap();
    let originals = values(folder, "a/reconstruct-originals.npy", &[3, 32, 32]);
    assert_eq!(
        originals[SIZE..2 * SIZE],
        framed(&Frame::REPORT, test.image(1999)).iter().map(|p| f32::from(*p)).collect::<Vec<f32>>()
    );
    let pictures = values(folder, "a/reconstruct.npy", &[3, 32, 32]);
    assert_eq!(pictures[..SIZE], pictures[2 * SIZE..]);
    let image = &numbers["images"][1];
    assert_eq!(image["label"].as_u64(), Some(u64::from(test.labels.as_ref().unwrap()[1999])));
    let pixels = originals[SIZE..2 * SIZE].iter().zip(&pictures[SIZE..2 * SIZE]);
    let likelihood: f64 =
        pixels.map(|(x, p)| f64::from(if *x == 1.0 { p.ln() } else { (1.0 - p).ln() })).sum();
    let reported = image["log_likelihood"].as_f64().unwrap();
    assert!(
        (reported - likelihood).abs() < 1e-3 * likelihood.abs(),
        "{reported}, from the picture {likelihood}"
    );

    // An interpolation between images begins with the first image's reconstruction.
    let verb = ["interpolate", "--from", "7,label:4", "--to", "1999", "--rows", "2", "--columns", "3"];
    let numbers = show(folder, "a", &verb);
    let lines = values(folder, "a/interpolate.npy", &[2, 3, 32, 32]);
    assert_near("the first end", &lines[..SIZE], &pictures[..SIZE]);
    assert_near("the other end", &lines[2 * SIZE..3 * SIZE], &pictures[SIZE..2 * SIZE]);
    assert_eq!(numbers["rows"][1]["from"]["label"].as_u64(), Some(4));

    // Labels from a file replace those of the data.
    let mut labels = vec![0u8; test.len()];
    labels[1234] = 9;
    npy::save(&folder.join("labels.npy"), &[labels.len()], &labels).unwrap();
    let verb = ["interpolate", "--from", "label:9", "--to", "7", "--rows", "1", "--labels", "labels.npy"];
    let numbers = show(folder, "b", &verb);
    assert_eq!(numbers["rows"][0]["from"]["index"].as_u64(), Some(1234));
}

#[test]
fn the_nondoubling_model_shows_its_start_and_every_step() {
    let folder = tempfile::tempdir().unwrap();
    write_weights(folder.path(), "nondoubling");
    let verb = ["grow", "--weights", "nondoubling.npz", "--model", "nondoubling", "--latent", "16"];
    let more = ["--nca-steps", "4", "--columns", "3", "--npy"];
    let out = cli::succeed(folder.path(), &[&verb[..], &more].concat());
    assert_eq!(out.lines().collect::<Vec<_>>(), ["figures/grow.png", "figures/grow.gif", "figures/grow.npy"]);
    let stages = values(folder.path(), "figures/grow.npy", &[5, 1, 32, 32]);
    // At the start all cells are equal. After a step the border differs from the middle.
    assert!(stages[..SIZE].iter().all(|p| *p == stages[0]));
    assert!(stages[SIZE..2 * SIZE].iter().any(|p| *p != stages[SIZE]));
}

#[test]
fn what_cannot_be_shown_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_weights(folder, "doubling");
    write_weights(folder, "baseline");
    let baseline = ["--weights", "baseline.npz", "--model", "baseline", "--latent", "16"];
    let error = cli::fail(folder, &[&["grow"], &baseline[..]].concat(), 2);
    assert!(error.contains("baseline has no automaton"), "{error}");
    for (verb, named) in [
        (&["sample", "--rows", "0"][..], "--rows"),
        (&["sample", "--rows", "18446744073709551615"], "--rows"),
        (&["reconstruct", "--indices", "2000"], "--indices 2000"),
        (&["reconstruct", "--columns", "0"], "--columns"),
        (&["interpolate", "--columns", "1"], "--columns"),
        (&["interpolate", "--from", "label:12", "--to", "3"], "label:12"),
        (&["interpolate", "--from", "three", "--to", "3"], "--from"),
        (&["recover", "--sizes", "33"], "--sizes 33"),
        (&["recover", "--sizes", "16", "--at", "20,0"], "--at 20,0"),
        (&["recover", "--damages", "0"], "--damages 0"),
        (&["recover", "--steps", "0"], "--steps 0"),
        (&["grow", "--doublings", "0"], "--doublings 0"),
    ] {
        let error = cli::fail(folder, &[verb, &DOUBLING].concat(), 2);
        assert!(error.contains(named), "{verb:?}: {error}");
    }
    assert!(!folder.join("figures").exists(), "nothing is written");
}
