//! Training with exported programs gives the same results, and programs that compute something else are refused.

#[path = "common/cli.rs"]
mod cli;

/// The non-doubling model needs one more program, which fills its pool. Its collectives can also be exported as text.
#[test]
fn all_programs_of_a_training_are_exported() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = ["--model", "nondoubling", "--latent", "4", "--replicas", "2", "--batch-size", "8"];
    let listed = cli::succeed(
        folder.path(),
        &[&["export", "--json", "--samples", "2", "--text"], &sizes[..]].concat(),
    );
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let names: Vec<&str> =
        listed["programs"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    for name in ["train_nondoubling", "pool", "eval_nondoubling_k2", "decode_nondoubling"] {
        assert!(names.contains(&name), "{name} is missing: {names:?}");
        assert!(folder.path().join(format!("programs/{name}.stablehlo.mlir")).is_file(), "{name} as text");
    }
    let text = folder.path().join("programs/train_nondoubling.stablehlo.mlir");
    let text = std::fs::read_to_string(text).unwrap();
    assert!(text.contains("stablehlo.all_to_all") && text.contains("stablehlo.all_reduce"));
}

#[test]
fn training_from_exported_programs() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    let sizes =
        ["--model", "baseline", "--latent", "8", "--replicas", "1", "--batch-size", "8", "--chunk", "4"];
    // Options that have no flag in `vnca export`.
    std::fs::write(folder.path().join("more.toml"), "beta = 0.7\ntrain-samples = 2\n").unwrap();
    let export = "export --images 64 --target cpu --out programs --text --config more.toml";
    let export: Vec<&str> = export.split(' ').collect();
    let listed = cli::succeed(folder.path(), &[&export[..], &sizes[..]].concat());
    assert!(listed.contains("train_baseline") && listed.contains("decode_baseline"), "{listed}");
    let text = std::fs::read_to_string(folder.path().join("programs/train_baseline.stablehlo.mlir")).unwrap();
    assert!(text.contains("stablehlo.while"));

    let data = data.to_str().unwrap();
    let train = |more: &[&str]| {
        let fixed = ["train", "--config", "more.toml", "--data", data, "--steps", "3", "--eval-every", "2"];
        [&fixed[..], &sizes[..], more].concat().into_iter().map(str::to_string).collect::<Vec<_>>()
    };
    let call = |arguments: Vec<String>| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        cli::run(folder.path(), &arguments)
    };
    assert!(call(train(&["--out", "made"])).status.success());
    assert!(call(train(&["--out", "exported", "--programs", "programs"])).status.success());
    let losses = |run: &str| -> Vec<f64> {
        cli::metrics(&folder.path().join(run)).iter().map(|l| l["loss"].as_f64().unwrap()).collect()
    };
    let (made, exported) = (losses("made"), losses("exported"));
    assert_eq!(made.len(), exported.len());
    for (made, exported) in made.iter().zip(&exported) {
        // Programs that are lowered at start may use oneDNN's matmuls, which sum in another order.
        assert!((made - exported).abs() < 1e-5 * made.abs(), "{made} and {exported}");
    }

    // The program of the picture verbs is exported too, for the number of samples in the report's figures.
    let sample = ["sample", "--run", "exported", "--programs", "programs", "--out", "sample.png"];
    cli::succeed(folder.path(), &sample);
    assert!(folder.path().join("sample.png").is_file());

    for (more, part) in [
        (["--beta", "0.5"], "computes something else"),
        (["--eval-samples", "3"], "export it with vnca export"),
    ] {
        let output = call(train(&[&["--out", more[1], "--programs", "programs"], &more[..]].concat()));
        let error = cli::text(&output.stderr);
        assert_eq!(output.status.success(), part.is_empty(), "{more:?}: {error}");
        assert!(error.contains(part), "{error}");
    }
    let missing = call(train(&["--out", "missing", "--programs", "nowhere"]));
    assert!(cli::text(&missing.stderr).contains("export it with vnca export"));
}
