//! `vnca train` runs the same training steps as JAX for every form of the data, and stops before an invalid update.

#[path = "common/cli.rs"]
mod cli;
#[path = "common/goldens.rs"]
mod goldens;

use goldens::{assert_run_equals, golden};
use vnca::engine::random::Key;

#[test]
fn sixteen_steps_on_two_replicas_equal_jax_in_both_clip_orders() {
    let folder = tempfile::tempdir().unwrap();
    cli::write_npy(&folder.path().join("x.npy"), Key::new(900), &[256, 1, 28, 28]);
    cli::write_npy(&folder.path().join("flat.npy"), Key::new(900), &[256, 784]);
    let baseline = ["--model", "baseline"].as_slice();
    let doubling = ["--model", "doubling", "--nca-steps", "2"].as_slice();
    let pooled = |shuffle| {
        let steps = ["--nca-steps", "6", "--nca-steps-min", "4", "--nca-steps-max", "8"].as_slice();
        [&["--model", "nondoubling", "--pool-size", "64", "--pool-shuffle", shuffle], steps].concat()
    };
    for (i, (model, data, order, norm, entry)) in [
        (baseline, "x.npy", "after", "0.05", "baseline.adam_then_clip"),
        (baseline, "flat.npy", "before", "50", "baseline.clip_then_adam"),
        (doubling, "x.npy", "after", "0.05", "doubling.adam_then_clip"),
        (doubling, "x.npy", "before", "50", "doubling.clip_then_adam"),
        (&pooled("global"), "x.npy", "after", "0.05", "nondoubling.global.adam_then_clip"),
        (&pooled("global"), "x.npy", "before", "50", "nondoubling.global.clip_then_adam"),
        (&pooled("replica"), "x.npy", "before", "50", "nondoubling.replica.clip_then_adam"),
        (&pooled("local"), "x.npy", "before", "50", "nondoubling.local.clip_then_adam"),
        (&pooled("exchange"), "x.npy", "before", "50", "nondoubling.global.clip_then_adam"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = i.to_string();
        let arguments = [
            "train",
            "--latent",
            "16",
            "--data",
            data,
            "--out",
            &out,
            "--replicas",
            "2",
            "--batch-size",
            "16",
            "--chunk",
            "16",
            "--steps",
            "16",
            "--clip-order",
            order,
            "--clip-norm",
            norm,
        ];
        let printed = cli::succeed(folder.path(), &[&arguments, model].concat());
        assert_eq!(printed.trim(), out);
        // Adam's updates from gradients near zero depend on the order of sums, and NCA steps amplify the difference.
        let pooled = entry.starts_with("nondoubling");
        let (tolerance, slack) = if pooled { (1e-3, 5e-4) } else { (1e-4, 2e-6) };
        assert_run_equals(&folder.path().join(out), &golden(entry), tolerance, slack);
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_before_the_update() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    let arguments =
        cli::training(&data, "--steps 40 --learning-rate 3 --eval-every 0 --checkpoint-every 1000");
    let error = cli::fail(folder.path(), &arguments, 5);
    let lines = cli::metrics(&folder.path().join("run"));
    let failed = lines.len() + 1;
    assert!(error.contains(&format!("step {failed}:")) && error.contains("--learning-rate"), "{error}");
    assert!(lines.iter().all(|l| l["loss"].is_number() && l["grad_norm"].is_number()));
    // The saved state is that before this step, and is finite.
    let name = format!("run/checkpoints/step-{:08}.npz", failed - 1);
    let listing = cli::succeed(
        folder.path(),
        &["inspect", "--weights", &name, "--model", "baseline", "--latent", "8", "--json"],
    );
    let listing: serde_json::Value = serde_json::from_str(&listing).unwrap();
    assert!(
        listing["leaves"].as_array().unwrap().iter().all(|l| l["l2"].as_f64().is_some_and(f64::is_finite))
    );
}

#[test]
fn pictures_and_events_are_written_when_an_evaluation_is_due() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    let arguments = cli::training(&data, "--steps 4 --eval-every 2 --eval-samples 2");
    cli::succeed(folder.path(), &arguments);
    let run = folder.path().join("run");
    let due: Vec<bool> = cli::metrics(&run).iter().map(|l| l["test_iwelbo"].is_number()).collect();
    assert_eq!(due, [false, true, false, true]);
    for name in ["samples-00000002.png", "reconstructions-00000004.png"] {
        let bytes = std::fs::read(run.join("pictures").join(name)).expect("the picture exists");
        assert_eq!(bytes[..8], *b"\x89PNG\r\n\x1a\n", "{name}");
    }
    assert!(run.join("checkpoints/best.npz").exists());
    let events = std::fs::read_dir(run.join("tensorboard")).unwrap().next().unwrap().unwrap();
    let bytes = std::fs::read(events.path()).unwrap();
    assert!(bytes.windows(12).any(|w| w == b"test/iwelbo\x15"));
}
