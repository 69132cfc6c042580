//! The contract of the command line: sources of options, errors and exit codes, output for scripts.

#[path = "common/cli.rs"]
mod cli;

use serde_json::Value;

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = "latent = 4\nbatch-size = 4\nsteps = 9\nchunk = 3\neval-every = 0\n";
    std::fs::write(folder.path().join("run.toml"), config).unwrap();
    let arguments = ["train", "--config", "run.toml", "--out", "run", "--steps", "1"];
    let output =
        cli::vnca(folder.path(), &arguments).env("VNCA_CHUNK", "2").env("VNCA_STEPS", "7").output().unwrap();
    assert!(output.status.success(), "{}", cli::text(&output.stderr));
    let resolved = std::fs::read(folder.path().join("run/config.json")).unwrap();
    let resolved: Value = serde_json::from_slice(&resolved).unwrap();
    assert_eq!((resolved["steps"].as_u64(), resolved["chunk"].as_u64()), (Some(1), Some(2)));
    assert_eq!((resolved["batch_size"].as_u64(), resolved["data"].as_str()), (Some(4), Some("glyphs")));
}

#[test]
fn errors_name_the_wrong_value_and_have_their_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("bad.toml"), "stepz = 3\n").unwrap();
    std::fs::write(folder.path().join("weights.npz"), b"PK\x03\x04 no zip").unwrap();
    std::fs::write(folder.path().join("empty.npy"), b"").unwrap();
    let cases: [(&[&str], i32, &str); 16] = [
        (&["train", "--model", "nondoubling", "--pool-size", "30"], 2, "--pool-size"),
        (&["train", "--nca-steps", "3"], 2, "--nca-steps"),
        (&["train", "--config", "bad.toml"], 2, "stepz"),
        (&["train", "--config", "none.toml"], 2, "none.toml"),
        (&["train", "--stepz", "3"], 2, "--steps"),
        (&["train", "--model", "other"], 2, "other"),
        (&["train", "--latent", "0"], 2, "--latent"),
        (&["train", "--batch-size", "9", "--replicas", "2"], 2, "--batch-size"),
        (&["train", "--batch-size", "1000000"], 2, "--batch-size"),
        (&["train", "--learning-rate", "-1"], 2, "--learning-rate"),
        (&["train", "--data", "nothing-here"], 3, "nothing-here"),
        (&["train", "--data", "empty.npy"], 3, "empty.npy"),
        (&["train", "--device", "abacus"], 2, "abacus"),
        (&["train", "--resume", "--out", "no-run"], 3, "no-run"),
        (&["eval", "--weights", "weights.npz", "--model", "baseline"], 3, "weights.npz"),
        (&["inspect", "--run", "no-run"], 3, "no-run"),
    ];
    for (arguments, code, word) in cases {
        let error = cli::fail(folder.path(), arguments, code);
        assert!(error.contains(word), "vnca {arguments:?} does not name {word}: {error}");
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "failed commands left files behind: {left:?}");
}

#[test]
fn the_error_for_a_wrong_environment_variable_names_it() {
    let folder = tempfile::tempdir().unwrap();
    for (flags, names_it) in [(&[][..], true), (&["--steps", "xyz"], false), (&["--steps=xyz"], false)] {
        let run = cli::vnca(folder.path(), &[&["train"], flags].concat()).env("VNCA_STEPS", "abc").output();
        let run = run.unwrap();
        let error = cli::text(&run.stderr);
        assert_eq!(run.status.code(), Some(2), "{error}");
        assert!(error.contains("--steps"), "{error}");
        assert_eq!(error.contains("VNCA_STEPS"), names_it, "{flags:?}: {error}");
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused_from_every_source() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("nan.toml"), "beta = nan\n").unwrap();
    std::fs::write(folder.path().join("inf.toml"), "learning-rate = inf\n").unwrap();
    let doubling = ["--model", "doubling"];
    let cases: [(&[&str], &str); 8] = [
        (&["--beta", "nan"], "--beta"),
        (&["--learning-rate", "inf"], "--learning-rate"),
        (&["--clip-norm", "nan"], "--clip-norm"),
        (&["--damage", "nan"], "--damage"),
        (&["--update-prob", "nan"], "--update-prob"),
        (&["--end-factor", "nan"], "--end-factor"),
        (&["--config", "nan.toml"], "--beta"),
        (&["--config", "inf.toml"], "--learning-rate"),
    ];
    for (options, flag) in cases {
        let error =
            cli::fail(folder.path(), &[&["train", "--steps", "1"], &doubling[..], options].concat(), 2);
        assert!(error.contains(flag), "{options:?}: {error}");
    }
    let output =
        cli::vnca(folder.path(), &["train", "--steps", "1"]).env("VNCA_BETA", "nan").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(cli::text(&output.stderr).contains("--beta"));
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn an_infinite_limit_clips_nothing_even_after_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    let text = "latent = 4\nbatch-size = 4\neval-every = 0\nclip-norm = inf\n";
    std::fs::write(folder.path().join("inf.toml"), text).unwrap();
    let train = |out: &str, steps: &str, more: &[&str]| {
        let first = ["train", "--config", "inf.toml", "--out", out, "--steps", steps];
        cli::succeed(folder.path(), &[&first[..], more].concat());
        std::fs::read_to_string(folder.path().join(out).join("metrics.jsonl")).unwrap()
    };
    let unclipped = train("inf", "2", &[]);
    assert_eq!(train("large", "2", &["--clip-norm", "1e30"]), unclipped);
    assert_ne!(train("ten", "2", &["--clip-norm", "10"]), unclipped);
    let whole = train("whole", "3", &[]);
    assert_eq!(train("inf", "3", &["--resume"]), whole);
}

#[test]
fn weights_of_another_model_are_listed_by_name_with_both_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let train =
        ["train", "--latent", "4", "--out", "run", "--batch-size", "4", "--steps", "1", "--eval-every", "0"];
    cli::succeed(folder.path(), &train);
    cli::succeed(folder.path(), &["convert", "--run", "run", "--out", "weights.npz"]);
    let inspect = |weights: &str, code| {
        cli::fail(
            folder.path(),
            &["inspect", "--weights", weights, "--model", "doubling", "--latent", "8"],
            code,
        )
    };
    let error = inspect("weights.npz", 3);
    for word in [
        "missing cell.conv0.weight",
        "not of this model: decoder.linear.weight",
        "encoder.linear.bias",
        "[16]",
    ] {
        assert!(error.contains(word), "{word} is not in: {error}");
    }
    let chosen = cli::succeed(
        folder.path(),
        &["inspect", "--weights", "weights.npz", "--model", "baseline", "--latent", "4", "--json"],
    );
    let run = cli::succeed(folder.path(), &["inspect", "--run", "run", "--json"]);
    assert_eq!(chosen, run);
    // A checkpoint says which model it is of.
    let checkpoint = "run/checkpoints/step-00000001.npz";
    assert_eq!(cli::succeed(folder.path(), &["inspect", "--weights", checkpoint, "--json"]), run);
    let error = inspect(checkpoint, 2);
    assert!(error.contains("--model is doubling") && error.contains("baseline"), "{error}");
}

#[test]
fn inspect_lists_the_initial_values_of_a_seed() {
    let folder = tempfile::tempdir().unwrap();
    let out = cli::succeed(folder.path(), &["inspect", "--model", "nondoubling", "--seed", "0", "--json"]);
    let listing: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(listing["parameters"], 5_042_432);
    assert_eq!(listing["leaves"][0]["name"], "encoder.conv0.weight");
    assert_eq!(listing["leaves"][0]["first"][0].as_f64().map(|v| v as f32), Some(-0.171_301_71));
}

#[test]
fn the_doctor_passes_here_and_shows_no_messages_of_xla() {
    let folder = tempfile::tempdir().unwrap();
    let output = cli::run(folder.path(), &["doctor", "--json"]);
    assert!(output.status.success(), "{}", cli::text(&output.stdout));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], true);
    assert_eq!(cli::text(&output.stderr), "");
    // Problems of a TPU or GPU are reported with advice, but are no failure unless the device was chosen.
    let checks = report["checks"].as_array().unwrap();
    for name in ["tpu library", "tpu files", "tpu lock", "cuda plugin", "cuda files", "cuda driver", "device"]
    {
        let check = checks.iter().find(|check| check["name"] == name).expect(name);
        assert_eq!(check["needed"], name == "device", "{check}");
        assert_eq!(check["ok"] == true, check["mend"].is_null(), "{check}");
    }
}

#[test]
fn the_doctor_reports_what_a_device_lacks() {
    let folder = tempfile::tempdir().unwrap();
    for (device, file) in [("tpu", "/dev/accel0"), ("cuda", "/dev/nvidia0")] {
        if std::path::Path::new(file).exists() {
            continue;
        }
        let output = cli::run(folder.path(), &["doctor", "--device", device]);
        let table = cli::text(&output.stdout);
        assert_eq!(output.status.code(), Some(4), "{table}");
        assert!(
            table.contains(&format!("BAD  {device} files")) && table.contains("mend it with: "),
            "{table}"
        );
    }
}

#[test]
fn verbs_that_run_no_programs_refuse_the_flag_for_them() {
    let folder = tempfile::tempdir().unwrap();
    for verb in
        ["inspect --model baseline", "export", "data verify x", "convert --model baseline --out x.npz"]
    {
        let arguments: Vec<&str> = verb.split(' ').chain(["--programs", "folder"]).collect();
        let error = cli::fail(folder.path(), &arguments, 2);
        assert!(error.contains("--programs"), "{error}");
    }
    let mut run = cli::vnca(folder.path(), &["inspect", "--model", "baseline"]);
    assert!(run.env("VNCA_PROGRAMS", "folder").output().unwrap().status.success());
}
