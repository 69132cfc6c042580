//! `--precision bf16`: matmuls and convolutions with rounded operands, everything else in f32. Gradients differ from f32 ones by
//! the rounding, losses stay near those in f32, and a run keeps its precision.

#[path = "common/cli.rs"]
mod cli;
mod common;

use common::models::{models, woken};
use common::{finish, mesh, run};
use vnca::cli::models::Model;
use vnca::engine::array::Array;
use vnca::engine::compile;
use vnca::engine::ir::{Function, RepeatOptions, gradient};
use vnca::engine::lower::Target;
use vnca::engine::random::Key;
use vnca::engine::shape::{DType, Precision, Shape};
use vnca::model::decoder::GrowOptions;
use vnca::model::elbo::{Loss, LossStep};
use vnca::nn::params::Params;

/// Largest relative error of rounding: half of the distance from 1 to the next number with 8 significant bits.
const ROUNDING: f64 = 1.0 / 256.0;
const BATCH: usize = 4;

/// Builds loss and gradients of a batch.
fn training(model: &Model) -> Function {
    let model = model.vae();
    let leaves = model.leaves();
    let g = model.graph("gradients");
    let values = Params::inputs(&g, &leaves, "");
    let images = model.padded(g.input("images", &Shape::new(DType::U8, &[BATCH, 28, 28])));
    let key = g.input("key", &Shape::u32(&[2]));
    let options = GrowOptions { memory: RepeatOptions::for_precision(model.precision), damage: None };
    let loss = Loss::ELBO
        .from_images(&model, &Params::new(&leaves, &values), (images, key), &options, LossStep::default())
        .loss;
    let mut outputs = vec![("loss".to_string(), loss)];
    outputs.extend(leaves.iter().zip(gradient(loss, &values)).map(|(l, s)| (l.name.clone(), s)));
    finish(&g, &outputs)
}

fn gradients(model: &Model, target: Target) -> (f64, Vec<f64>) {
    let mut inputs = woken(model);
    let pixels: Vec<u8> = Key::new(3).bernoulli(BATCH * 784, |_| 0.13).into_iter().map(u8::from).collect();
    inputs.extend([Array::new(&[BATCH, 28, 28], &pixels), Array::new(&[2], &Key::new(5).0)]);
    let results = run(&training(model), target, &[inputs]).swap_remove(0);
    let mut numbers = results.iter().flat_map(|a| a.to_vec::<f32>()).map(f64::from);
    (numbers.next().expect("a loss"), numbers.collect())
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// The relative error of a product of two rounded operands is at most twice the rounding error. Rounding errors are independent
/// and average out in sums, so that the error of the whole gradient is no larger, through any number of matmuls.
#[test]
fn gradients_differ_from_f32_by_the_rounding() {
    let mesh = mesh(1);
    for (name, model) in models().into_iter().filter(|(name, _)| name.starts_with("tiny")) {
        let bf16 = Model { precision: Precision::Bf16, ..model };
        let (loss, expected) = gradients(&model, Target::Cpu);
        let allowed = 2.0 * ROUNDING;
        // The forms for other devices, which this CPU can compile too, and the form for this CPU.
        for target in [Target::Native, Target::Gpu, compile::target(&mesh, Precision::Bf16)] {
            let (got_loss, got) = gradients(&bf16, target);
            let error = norm(expected.iter().zip(&got).map(|(e, g)| e - g)) / norm(expected.iter().copied());
            println!("{name} {target:?}: gradient {error:.5} of {allowed:.5}, loss {got_loss} and {loss}");
            assert!(error < allowed, "{name} for {target:?}: gradients differ by {error}, not {allowed}");
            assert!(
                (got_loss - loss).abs() < ROUNDING * loss,
                "{name} for {target:?}: {got_loss}, not {loss}"
            );
            // A CPU without bf16 computes in f32, except for the values that loops save.
            let rounded = target != Target::Cpu;
            assert!(!rounded || error > 0.01 * ROUNDING, "{name} for {target:?}: nothing was rounded");
        }
    }
}

/// With the same images and noise the losses of both runs fall together. Their difference is far below the total decrease.
#[test]
fn a_run_in_bf16_stays_near_the_one_in_f32_and_keeps_its_precision() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let small = "--latent 8 --batch-size 8 --learning-rate 0.0003 --eval-every 0";
    let mut curves = Vec::new();
    for precision in ["f32", "bf16"] {
        let flags = format!("train {small} --steps 100 --chunk 50 --out {precision} --precision {precision}");
        cli::succeed(folder, &flags.split(' ').collect::<Vec<_>>());
        let losses = cli::metrics(&folder.join(precision)).into_iter();
        curves.push(losses.map(|l| l["loss"].as_f64().expect("a loss")).collect::<Vec<f64>>());
    }
    let [f32, bf16] = curves.try_into().unwrap();
    let learned = mean(&f32[..10]) - mean(&f32[90..]);
    assert!(learned > 100.0, "a loss of {f32:?}");
    for (at, (a, b)) in f32.chunks(10).zip(bf16.chunks(10)).enumerate() {
        let apart = (mean(a) - mean(b)).abs();
        assert!(apart < 0.05 * learned, "steps from {}: {} and {}", 10 * at, mean(a), mean(b));
    }

    let config = std::fs::read_to_string(folder.join("bf16/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(
        (&config["model"]["precision"], &config["memory"]["save_as"]),
        (&"bf16".into(), &"bf16".into())
    );
    let resume = ["train", "--resume", "--out", "bf16", "--steps", "101"];
    let error = cli::fail(folder, &[&resume[..], &["--precision", "f32"]].concat(), 2);
    assert!(error.contains("--precision"), "{error}");

    // An evaluation uses the run's precision by default.
    let evaluated = |flags: &[&str]| -> serde_json::Value {
        let eval =
            ["eval", "--run", "bf16", "--limit", "16", "--batch-size", "16", "--samples", "2", "--json"];
        serde_json::from_str(&cli::succeed(folder, &[&eval[..], flags].concat())).expect("JSON")
    };
    let (own, other) = (evaluated(&[]), evaluated(&["--precision", "f32"]));
    assert_eq!((&own["precision"], &other["precision"]), (&"bf16".into(), &"f32".into()));
    let [own, other] = [own, other].map(|e| e["iwelbo"].as_f64().expect("a number"));
    assert!((own - other).abs() < ROUNDING * other.abs(), "{own} and {other}");
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
