//! A command uses what it was given, and trusts no name, number or place without a look at the content.

#[path = "common/cli.rs"]
mod cli;

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use serde_json::Value;
use vnca::engine::array::Array;
use vnca::engine::npy;
use vnca::engine::random::Key;
use vnca::engine::runtime::{Buffers, Device, Mesh};
use vnca::engine::shape::Shape;
use vnca::nn::params::{Leaf, Role, layer};
use vnca::train::trainer::{End, Score, Watch};
use vnca::train::{Outcome, RunOptions, Step, Task, Trainer};

/// Writes sixty images of bits that differ, as an array that has no test images of its own.
fn array_of_bits(path: &Path) {
    let bits = Key::new(3).bits32(60 * 28 * 28);
    let pixels: Vec<u8> = bits.iter().map(|bits| (bits >> 31) as u8).collect();
    npy::save(path, &[60, 28, 28], &pixels).unwrap();
}

/// Writes twenty images in colour that differ.
fn coloured(folder: &Path, side: u32) {
    fs::create_dir(folder).unwrap();
    for i in 0..20 {
        let pixels = |x, y| image::Rgb([12 * i, x as u8, y as u8]);
        image::RgbImage::from_fn(side, side, pixels).save(folder.join(format!("{i}.png"))).unwrap();
    }
}

#[test]
fn images_that_the_user_names_are_read_as_the_runs_images_are() {
    let folder = tempfile::tempdir().unwrap();
    array_of_bits(&folder.path().join("all.npy"));
    let train =
        ["train", "--latent", "4", "--batch-size", "4", "--steps", "1", "--eval-every", "0", "--out", "run"];
    cli::succeed(
        folder.path(),
        &[&train[..], &["--data", "all.npy", "--split", "0.7", "--transpose"]].concat(),
    );
    fs::copy(folder.path().join("all.npy"), folder.path().join("moved.npy")).unwrap();
    let eval = |more: &[&str]| -> Value {
        let words = [&["eval", "--run", "run", "--samples", "2", "--json"], more].concat();
        serde_json::from_str(&cli::succeed(folder.path(), &words)).unwrap()
    };
    let (own, named) = (eval(&[]), eval(&["--data", "moved.npy"]));
    // Images that are not like the model's are changed, with a word.
    let warning = |data: &str| {
        let words = ["eval", "--run", "run", "--samples", "1", "--limit", "2", "--data", data];
        let output = cli::run(folder.path(), &words);
        assert!(output.status.success(), "{output:?}");
        cli::text(&output.stderr)
    };
    assert!(!warning("moved.npy").contains("the images are"));
    coloured(&folder.path().join("same"), 28);
    coloured(&folder.path().join("other"), 40);
    let (same, other) = (warning("same"), warning("other"));
    assert!(same.contains("same: the images are made grey, because the model's are 28 x 28 grey"), "{same}");
    assert!(other.contains("other: the images are resized to 28 x 28 and made grey, because"), "{other}");
    assert!(own["images"].as_u64().unwrap() < 40, "{own}");
    assert_eq!((&own["images"], &own["iwelbo"]), (&named["images"], &named["iwelbo"]));
    // Results' files are looked at before the work, and seeds beyond the last one are not left out.
    let error = cli::fail(folder.path(), &["eval", "--run", "run", "--out", "no/such/folder.json"], 1);
    assert!(error.contains("no/such/folder.json"), "{error}");
    let last = ["eval", "--run", "run", "--seed", "18446744073709551615", "--repeat"];
    assert!(cli::fail(folder.path(), &[&last[..], &["2"]].concat(), 2).contains("--repeat"));
    cli::succeed(folder.path(), &[&last[..], &["1", "--samples", "1"]].concat());
}

#[test]
fn what_is_not_read_is_said_and_a_damaged_part_stops_a_run_before_it_starts() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    let notes = || {
        let json = cli::succeed(folder.path(), &["data", "show", data.to_str().unwrap(), "--json"]);
        serde_json::from_str::<Value>(&json).unwrap()["notes"].to_string()
    };
    assert_eq!(notes(), "[]");
    for name in ["a.png", "b.JPG", "c.txt"] {
        fs::write(data.join(name), "").unwrap();
    }
    let said = notes();
    assert!(said.contains("the folder has arrays: 2 image files beside them are not read"), "{said}");
    let test = data.join("test.npy");
    let bytes = fs::read(&test).unwrap();
    fs::write(&test, &bytes[..bytes.len() - 1]).unwrap();
    let train = cli::training(&data, "--steps 1 --eval-every 0");
    let error = cli::fail(folder.path(), &train, 3);
    assert!(error.contains("test.npy: truncated") && !folder.path().join("run").exists(), "{error}");
    fs::remove_file(&test).unwrap();
    cli::succeed(folder.path(), &train);
}

#[test]
fn a_part_of_an_evaluation_whose_numbers_were_changed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    cli::succeed(folder.path(), &cli::training(&data, "--steps 1 --eval-every 0"));
    let eval = ["eval", "--run", "run", "--samples", "1", "--limit", "2", "--out", "part.json"];
    cli::succeed(folder.path(), &eval);
    cli::succeed(folder.path(), &["eval", "merge", "part.json"]);
    let path = folder.path().join("part.json");
    let text = fs::read_to_string(&path).unwrap();
    let at = text.find("\"iwelbo\":[-").expect("a score") + "\"iwelbo\":[-".len();
    fs::write(&path, format!("{}9{}", &text[..at], &text[at..])).unwrap();
    let error = cli::fail(folder.path(), &["eval", "merge", "part.json"], 3);
    assert!(error.contains("part.json is damaged") && error.contains("checksum"), "{error}");
}

#[test]
fn neither_a_picture_nor_a_run_becomes_one_of_the_images() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    fs::create_dir(&images).unwrap();
    cli::succeed(folder.path(), &["data", "show", "glyphs", "--out", "sheet.png"]);
    for i in 0..4 {
        fs::copy(folder.path().join("sheet.png"), images.join(format!("{i}.png"))).unwrap();
    }
    assert!(cli::fail(&images, &["data", "show", "."], 2).contains("--out"));
    let train = "train --data . --image-size 16 --model doubling --latent 4 --steps 1";
    let words: Vec<&str> = train.split(' ').collect();
    assert!(cli::fail(&images, &words, 2).contains("lies among the images"));
    assert_eq!(fs::read_dir(&images).unwrap().count(), 4);
}

/// A linear layer that learns to give zeros.
struct Linear;

impl Task for Linear {
    fn name(&self) -> String {
        "linear".into()
    }

    fn parameters(&self) -> Vec<Leaf> {
        layer("a", Role::LinearWeight, &[1, 4], &[0]).to_vec()
    }

    fn example(&self) -> Option<(&'static str, Shape)> {
        Some(("rows", Shape::f32(&[4])))
    }

    fn step<'g>(&self, step: Step<'g, '_>) -> Outcome<'g> {
        let each = step.params.linear("a", step.examples.expect("rows")).square().sum(&[1]);
        Outcome::new(each.mean(&[0]))
    }
}

/// Evaluates every second step, and is asked to stop in the middle of the evaluation after step 4.
struct Interrupted {
    interrupts: bool,
    stopped: bool,
}

impl Watch for Interrupted {
    fn steps(&mut self, _step: usize, _loss: f32) {}

    fn evaluate(&mut self, parameters: &[&Buffers], step: usize) -> Result<Option<Score>> {
        self.stopped = self.interrupts && step == 4;
        if self.stopped {
            bail!("there is no time for it");
        }
        let sum: f32 = parameters[0].get(0)?.to_vec::<f32>().iter().sum();
        Ok(Some(Score { name: "test/sum", value: f64::from(sum) }))
    }

    fn stop(&self) -> bool {
        self.stopped
    }
}

#[test]
fn a_run_that_stops_during_an_evaluation_repeats_it_when_it_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let mesh = Mesh::open(&Device::Cpu, 1).unwrap();
    let rows: Vec<f32> = (0..32).map(|i| i as f32 / 16.0 - 1.0).collect();
    let rows = Array::new(&[8, 4], &rows);
    let options = RunOptions {
        steps: 7,
        batch: 2,
        chunk: 3,
        eval_every: 2,
        checkpoint_every: 100,
        ..RunOptions::default()
    };
    let trainer = || Trainer::new(&mesh, Linear).options(options.clone());
    let (whole, run) = (folder.path().join("whole"), folder.path().join("run"));
    let alone = &mut Interrupted { interrupts: false, stopped: false };
    assert_eq!(trainer().create(&whole, Some(rows.clone())).unwrap().train(alone).unwrap(), End::Done);
    let asked = &mut Interrupted { interrupts: true, stopped: false };
    assert_eq!(trainer().create(&run, Some(rows.clone())).unwrap().train(asked).unwrap(), End::Stopped);
    assert_eq!(cli::metrics(&run).len(), 3);
    assert!(run.join("checkpoints/step-00000004.npz").exists());
    assert_eq!(trainer().resume(&run, Some(rows)).unwrap().train(alone).unwrap(), End::Done);
    for file in ["metrics.jsonl", "checkpoints/step-00000007.npz", "checkpoints/best.npz"] {
        let read = |folder: &Path| fs::read(folder.join(file)).unwrap();
        assert!(read(&whole) == read(&run), "{file} differs");
    }
}
