//! `--ema`: a run keeps the average of its weights for evaluation, and trains on with the weights themselves.

#[path = "common/cli.rs"]
mod cli;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use vnca::train::checkpoint::Checkpoint;

const DECAY: f64 = 0.8;
const STEPS: usize = 9;
const OPTIONS: &str = "--model doubling --doublings 1 --nca-steps 1 --encoder-width 2 --replicas 2 --chunk 5 --checkpoint-every 1 --keep 20 --eval-every 4 --eval-samples 2";

/// Returns the arrays of a step's checkpoint by name.
fn arrays(run: &Path, step: usize) -> BTreeMap<String, Vec<f64>> {
    let found = Checkpoint::load(&run.join(format!("checkpoints/step-{step:08}.npz"))).expect("it is intact");
    let floats =
        found.arrays.into_iter().filter(|(name, _)| name.ends_with("weight") || name.ends_with("bias"));
    floats.map(|(name, array)| (name, array.to_vec::<f32>().into_iter().map(f64::from).collect())).collect()
}

#[test]
fn the_average_is_that_of_all_updates_and_is_what_is_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    let train = |more: &str| cli::succeed(folder.path(), &cli::training(&data, &format!("{OPTIONS} {more}")));
    let run = folder.path().join("run");
    train("--ema 0.8 --steps 9");

    // In f64, from the weights of every step: those of step i have the share 0.8^(t − i) of all shares.
    let mut sums: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut shares = 0.0;
    for step in 1..=STEPS {
        let found = arrays(&run, step);
        shares = shares * DECAY + 1.0;
        let raw = found.iter().filter(|(name, _)| !name.starts_with("ema.") && !name.starts_with("adam."));
        for (name, values) in raw {
            let sum = sums.entry(name.clone()).or_insert_with(|| vec![0.0; values.len()]);
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum = *sum * DECAY + value);
            let averages = &found[&format!("ema.{name}")];
            let furthest = sum.iter().zip(averages).map(|(s, a)| (s / shares - a).abs()).fold(0.0, f64::max);
            assert!(furthest < 1e-6, "step {step}, {name}: {furthest}");
        }
        assert!(!sums.is_empty());
    }

    // The evaluation in training and that of the run are of the averages, and not of the weights.
    let scores: Vec<f64> =
        cli::metrics(&run).iter().filter_map(|line| line["test_iwelbo"].as_f64()).collect();
    let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let evaluated = |of: &[&str]| -> f64 {
        let text = cli::succeed(
            folder.path(),
            &[&["eval", "--samples", "2", "--json", "--data", "images"], of].concat(),
        );
        serde_json::from_str::<Value>(&text).unwrap()["iwelbo"].as_f64().unwrap()
    };
    assert!((evaluated(&["--run", "run"]) - best).abs() < 1e-4, "{scores:?}");
    assert!((evaluated(&["--weights", "run/checkpoints/best.npz"]) - best).abs() < 1e-4);
    let mut raw = Checkpoint::load(&run.join("checkpoints/best.npz")).unwrap();
    raw.arrays.retain(|(name, _)| !name.starts_with("ema."));
    raw.save(&folder.path().join("raw.npz")).unwrap();
    assert!((evaluated(&["--weights", "raw.npz"]) - best).abs() > 1e-3);

    // A run that was stopped equals this one bit for bit, and one without an average has the same losses.
    let last = |run: &Path| std::fs::read(run.join("checkpoints/step-00000009.npz")).unwrap();
    let whole = (last(&run), std::fs::read_to_string(run.join("metrics.jsonl")).unwrap());
    let losses = |run: &Path| -> Vec<f64> {
        cli::metrics(run).iter().map(|line| line["loss"].as_f64().unwrap()).collect()
    };
    let averaged = losses(&run);
    std::fs::rename(&run, folder.path().join("whole")).unwrap();
    train("--ema 0.8 --steps 4");
    cli::succeed(folder.path(), &["train", "--resume", "--out", "run", "--steps", "9"]);
    assert!(whole == (last(&run), std::fs::read_to_string(run.join("metrics.jsonl")).unwrap()));
    std::fs::rename(&run, folder.path().join("parts")).unwrap();
    train("--steps 9");
    for (plain, averaged) in losses(&run).iter().zip(averaged) {
        assert!((plain - averaged).abs() < 1e-4 * plain, "{plain} {averaged}");
    }
}

#[test]
fn a_decay_out_of_range_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    for decay in ["0", "1", "-0.5", "nan"] {
        let error = cli::fail(folder.path(), &cli::training(&data, &format!("--steps 1 --ema {decay}")), 2);
        assert!(error.contains("--ema is "), "{decay}: {error}");
    }
}
