//! A merged sharded evaluation equals the unsharded one bit for bit. Errors name shards that do not belong together.

#[path = "common/cli.rs"]
mod cli;

use std::path::Path;

use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("a line of JSON")
}

fn trained(folder: &Path) {
    let data = cli::data_folder(folder);
    let data = data.to_str().unwrap();
    let train = "train --latent 8 --out run --batch-size 8 --steps 5 --eval-every 0 --data";
    cli::succeed(folder, &[&train.split(' ').collect::<Vec<_>>()[..], &[data]].concat());
}

const EVAL: &str = "eval --run run --samples 6 --batch-size 4 --repeat 2 --json";

fn shard(folder: &Path, shard: &str, out: &str) -> Value {
    let arguments: Vec<&str> = EVAL.split(' ').chain(["--shard", shard, "--out", out]).collect();
    json(&cli::succeed(folder, &arguments))
}

#[test]
fn shards_merge_to_the_whole_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    trained(at);
    let mut whole = json(&cli::succeed(at, &EVAL.split(' ').collect::<Vec<_>>()));
    // 21 images in 6 batches: shards of 2 batches, the last one with an uneven batch.
    let images: Vec<u64> = (0..3)
        .map(|i| {
            let line = shard(at, &format!("{i}/3"), &format!("part-{i}.json"));
            line["images"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(images, [8, 8, 5]);
    let merged = cli::succeed(at, &["eval", "merge", "part-2.json", "part-0.json", "part-1.json", "--json"]);
    let mut merged = json(&merged);
    for result in [&mut whole, &mut merged] {
        assert!(result["seconds"].take().as_f64().unwrap() > 0.0);
    }
    assert_eq!(whole, merged);
    let number = |name: &str| whole[name].as_f64().unwrap_or_else(|| panic!("{name} is not a number"));
    // Identities between the results.
    assert!((number("elbo") - (number("reconstruction") - number("kl"))).abs() < 1e-9);
    assert!(number("iwelbo") > number("elbo"));
    let by_seed: Vec<f64> =
        whole["iwelbo_by_seed"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    assert_eq!(whole["seeds"], serde_json::json!([2, 3]));
    assert!((number("iwelbo") - (by_seed[0] + by_seed[1]) / 2.0).abs() < 1e-9);
    assert!((number("stderr_over_seeds") - (by_seed[0] - by_seed[1]).abs() / 2.0).abs() < 1e-9);
    assert!(whole["active_units"].as_u64().unwrap() <= 8);

    refused(at);
    schedulers(at, &merged);
}

/// Dry runs of the scripts for schedulers give the same results.
fn schedulers(at: &Path, whole: &Value) {
    for tool in ["eval-slurm", "eval-kubernetes"] {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools").join(tool);
        let arguments: Vec<&str> = EVAL.split(' ').skip(1).filter(|a| *a != "--json").collect();
        let output = std::process::Command::new(script)
            .current_dir(at)
            .env("VNCA", env!("CARGO_BIN_EXE_vnca"))
            .args(["--dry-run", "2", tool])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{tool}: {}", cli::text(&output.stderr));
        let mut result = json(&cli::text(&output.stdout));
        result["seconds"].take();
        assert_eq!(result, *whole, "{tool}");
        assert!(at.join(tool).join("shard-1.json").exists(), "{tool} wrote no second shard");
    }
}

/// Sets of files that are not one evaluation, and the words that the error must contain.
fn refused(at: &Path) {
    shard(at, "0/2", "other-split.json");
    std::fs::write(at.join("cut.json"), &std::fs::read(at.join("part-1.json")).unwrap()[..300]).unwrap();
    let text = std::fs::read_to_string(at.join("part-1.json")).unwrap();
    // As an older version wrote it, without a checksum, which would find the changes first.
    let end = text.rfind(",\"crc\":").expect("a checksum comes last");
    let text = format!("{}}}", &text[..end]);
    std::fs::write(at.join("other-samples.json"), text.replace("\"samples\":6", "\"samples\":5")).unwrap();
    std::fs::write(at.join("short.json"), text.replace("\"kl\":[", "\"kl\":[1.0,")).unwrap();
    let cases: [(&[&str], &[&str]); 7] = [
        (&["part-0.json", "part-2.json"], &["missing", "1/3"]),
        (&["part-0.json", "part-1.json", "part-2.json", "part-1.json"], &["part-1.json", "both shard 1"]),
        (
            &["part-0.json", "part-1.json", "other-samples.json"],
            &["part-0.json", "other-samples.json", "samples 6 and 5"],
        ),
        (&["part-0.json", "other-split.json"], &["part-0.json is of 3 shards", "other-split.json of 2"]),
        (&["part-0.json", "cut.json"], &["cut.json"]),
        (&["part-0.json", "short.json"], &["short.json", "9 images, expected 8"]),
        (&["part-0.json", "nowhere.json"], &["nowhere.json"]),
    ];
    for (files, words) in cases {
        let error = cli::fail(at, &[&["eval", "merge"], files].concat(), 3);
        for word in words {
            assert!(error.contains(word), "{files:?}: {word} is not in: {error}");
        }
    }
    let usage: [(&[&str], &str); 4] = [
        (&["--shard", "3/3", "--out", "x.json"], "counted from 0"),
        (&["--shard", "0/3"], "--out"),
        (&["--gap", "--split", "train"], "--gap"),
        (&["--repeat", "0"], "--repeat"),
    ];
    for (more, word) in usage {
        let error = cli::fail(at, &[&["eval", "--run", "run"], more].concat(), 2);
        assert!(error.contains(word), "{more:?}: {word} is not in: {error}");
    }
}

#[test]
fn the_gap_uses_the_same_number_of_training_images() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    trained(at);
    let arguments = ["eval", "--run", "run", "--samples", "3", "--limit", "10", "--gap", "--json"];
    let result = json(&cli::succeed(at, &arguments));
    let gap = &result["gap"];
    assert_eq!(gap["train_images"], 10);
    let difference = gap["train_iwelbo"].as_f64().unwrap() - result["iwelbo"].as_f64().unwrap();
    assert_eq!(gap["gap"].as_f64().unwrap(), difference);
    let one_part = cli::fail(at, &["eval", "--run", "run", "--gap", "--data", "images/test.npy"], 2);
    assert!(one_part.contains("images/test.npy") && one_part.contains("one part"), "{one_part}");
}
