//! `vnca reproduce`: goes on where it was stopped, repeats nothing, and writes the table of the models or of the changes to one.

#[path = "common/cli.rs"]
mod cli;

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

/// A baseline of the embedded digits.
const SMALL: &str = "reproduce baseline --data glyphs --size small --samples 2 --images 20 --out r";

fn words(more: &str) -> Vec<&str> {
    SMALL.split_whitespace().chain(more.split_whitespace()).collect()
}

/// Runs the command and returns its JSON, and the command lines that it ran.
fn reproduce(folder: &Path, more: &str) -> (Value, Vec<String>) {
    let output = cli::run(folder, &[&words(more)[..], &["--json"]].concat());
    let said = cli::text(&output.stderr);
    assert!(output.status.success(), "{more}: {said}");
    let ran = said.lines().filter(|line| line.starts_with("vnca ")).map(String::from).collect();
    (serde_json::from_slice(&output.stdout).unwrap(), ran)
}

/// Reports how many of the command lines are of a verb.
fn count(ran: &[String], verb: &str) -> usize {
    ran.iter().filter(|line| line.starts_with(&format!("vnca {verb}"))).count()
}

#[test]
fn a_stopped_reproduction_goes_on_and_repeats_no_finished_part() {
    let folder = tempfile::tempdir().unwrap();
    let table = || std::fs::read_to_string(folder.path().join("r/table.md")).unwrap();
    // Stopped while the first run trains.
    let run = folder.path().join("r/baseline/seed-0");
    let mut child = cli::vnca(folder.path(), &words("--steps 60 --seeds 1"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    cli::wait_for_step(&mut child, &run, 3);
    cli::signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let stopped = cli::metrics(&run).len();
    assert!(stopped < 60 && !folder.path().join("r/table.md").exists());

    let (first, ran) = reproduce(folder.path(), "--steps 60 --seeds 1");
    assert_eq!(
        (count(&ran, "train --resume"), count(&ran, "eval"), count(&ran, "figures")),
        (1, 1, 1),
        "{ran:?}"
    );
    let row = &first["rows"][0];
    assert_eq!((row["model"].as_str(), row["steps"].as_u64()), (Some("baseline"), Some(60)));
    let bound = row["iwelbo"]["mean"].as_f64().unwrap();
    assert!(bound < 0.0 && row["iwelbo"]["stderr"].is_null() && row["published"] == -84.64);
    assert_eq!(cli::metrics(&run).len(), 60);
    let text = table();
    for part in [
        "60 of 100000",
        "Z 32, batch 16, bf16",
        "\u{2212}84.64",
        "smaller than the report's",
        "glyphs test, 20 images",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let page = std::fs::read_to_string(folder.path().join("r/figures/report.html")).unwrap();
    assert!(page.contains("<span>--spread</span> <span>20</span>"));

    // What is finished is not repeated; another seed is only added.
    let (again, ran) = reproduce(folder.path(), "--steps 60 --seeds 1");
    assert!(ran.is_empty() && again == first && table() == text, "{ran:?}");
    let (both, ran) = reproduce(folder.path(), "--steps 60 --seeds 2");
    assert_eq!((count(&ran, "train"), count(&ran, "eval"), count(&ran, "figures")), (1, 1, 0), "{ran:?}");
    assert_eq!(both["rows"][0]["runs"][0], first["rows"][0]["runs"][0]);
    assert!(both["rows"][0]["iwelbo"]["stderr"].as_f64().unwrap() > 0.0);

    for other in ["--steps 61 --seeds 2", "--steps 60 --seeds 2 --recipe best"] {
        let error = cli::fail(folder.path(), &words(other), 2);
        assert!(error.contains("--out r has runs of other options"), "{error}");
    }
}

#[test]
fn the_table_of_ingredients_has_the_effect_of_each_change_on_validation_images() {
    let folder = tempfile::tempdir().unwrap();
    let options = "--ingredients --only ema,ema+iw-4-end --steps 30 --seeds 2 --valid 500";
    // Two runs at a time, each in a process of its own.
    let (found, ran) = reproduce(folder.path(), &format!("{options} --jobs 2"));
    // A change at the end has a run before it.
    assert_eq!((count(&ran, "train"), count(&ran, "eval"), count(&ran, "figures")), (8, 6, 0), "{ran:?}");
    assert!(ran.iter().filter(|line| line.contains("vnca eval")).all(|line| line.contains("--split valid")));
    assert!(ran.iter().filter(|line| line.contains("vnca train")).all(|line| line.contains("--valid 500")));
    let rows = found["rows"].as_array().unwrap();
    assert_eq!((rows.len(), rows[0]["change"].as_str()), (3, Some("base")));
    let effect = |row: &Value| row["effect"]["mean"].as_f64().unwrap();
    assert!(effect(&rows[0]) == 0.0 && effect(&rows[1]) >= effect(&rows[2]));
    let of = |change: &str| rows.iter().find(|row| row["change"] == change).unwrap();
    let bound = |change: &str| of(change)["iwelbo"]["mean"].as_f64().unwrap();
    for change in ["ema", "ema+iw-4-end"] {
        let difference = bound(change) - bound("base");
        assert!((effect(of(change)) - difference).abs() < 1e-9 && difference != 0.0, "{change}");
        assert!(of(change)["effect"]["stderr"].as_f64().unwrap() > 0.0);
    }
    let text = std::fs::read_to_string(folder.path().join("r/table.md")).unwrap();
    assert!(text.contains("| baseline | ema | average of the weights is evaluated |"), "{text}");

    let combined = folder.path().join("r/baseline/ema+iw-4-end");
    let config = |run: &str| -> Value {
        serde_json::from_slice(&std::fs::read(combined.join(run).join("config.json")).unwrap()).unwrap()
    };
    let (first, last) = (config("seed-0.first"), config("seed-0"));
    assert_eq!((&first["steps"], &first["loss"]["samples"]), (&24.into(), &1.into()));
    assert_eq!((&last["steps"], &last["loss"]["samples"]), (&6.into(), &4.into()));
    assert!(last["from"].as_str().unwrap().ends_with("seed-0.first"));
    assert_eq!(first["optimiser"]["ema"], last["optimiser"]["ema"]);

    // What is finished is not repeated.
    let (_, ran) = reproduce(folder.path(), &format!("{options} --jobs 3"));
    assert!(ran.is_empty(), "{ran:?}");
}

#[test]
fn options_that_cannot_be_are_refused_before_anything_is_trained() {
    let folder = tempfile::tempdir().unwrap();
    for (more, expected) in [
        ("--ingredients --only emma", "--only emma: the ingredients are base, fall"),
        ("--ingredients --valid 0", "--valid is 0"),
        ("--budget 2d", "such as 2h"),
        ("--budget 2h --steps 5", "--steps"),
        ("--only ema", "--ingredients"),
        ("--ingredients --only rate-half+rate-double", "rate-double cannot be combined"),
        ("--ingredients --recipe best", "--recipe"),
        ("--jobs 2 --device cuda", "--jobs is 2: several processes cannot share cuda"),
    ] {
        let error = cli::fail(folder.path(), &words(more), 2);
        assert!(error.contains(expected), "{more}: {error}");
    }
    assert!(!folder.path().join("r").exists());
    // The speed is measured first.
    let error = cli::fail(folder.path(), &words("--budget 1s"), 2);
    assert!(error.contains("--budget leaves 0 s for a run"), "{error}");
    assert!(
        !folder.path().join("r/plan.json").exists() && !folder.path().join("r/.speed-of-baseline-0").exists()
    );
}
