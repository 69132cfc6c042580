//! Compares the report's three train steps, with their gradients, and the signatures of their programs with the files in
//! `graphs/`. Every change of the computation shows as a difference of text. VNCA_BLESS=1 writes the files.

use std::fs;
use std::path::Path;

use vnca::cli::config::{TrainConfig, TrainOptions};
use vnca::engine::ir::Function;
use vnca::engine::lower::{Target, signature};

/// Number of replicas in the report, in which the cores of a v3-8 share each batch.
const REPLICAS: usize = 8;
/// Images of the training set, the default of `vnca export`.
const IMAGES: usize = 60_000;

fn train_step(preset: &str) -> Function {
    let named =
        TrainOptions { preset: Some(preset.into()), replicas: Some(REPLICAS), ..TrainOptions::default() };
    let options = named.over(&named.from_preset().expect("the preset is known"));
    let config = TrainConfig::resolve(&options).expect("the report's sizes fit each other");
    config.train_function(IMAGES).expect("the sizes fit each other")
}

/// Describes the first line that differs.
fn difference(kept: &str, made: &str) -> String {
    let mut pairs = kept.lines().zip(made.lines()).enumerate();
    match pairs.find(|(_, (a, b))| a != b) {
        Some((at, (a, b))) => format!("line {}:\n- {a}\n+ {b}", at + 1),
        None => format!("{} lines kept, {} lines made", kept.lines().count(), made.lines().count()),
    }
}

#[test]
fn the_reports_train_steps_are_those_in_graphs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs");
    let bless = std::env::var_os("VNCA_BLESS").is_some();
    let mut changed = Vec::new();
    for model in ["baseline", "doubling", "nondoubling"] {
        let function = train_step(&format!("report-{model}"));
        let signature = signature(&function, Target::Native, REPLICAS);
        let json = serde_json::to_string_pretty(&signature).expect("it is data") + "\n";
        for (file, made) in [("txt", function.to_string()), ("json", json)] {
            let path = folder.join(format!("{}.{file}", function.name));
            if bless {
                fs::create_dir_all(&folder).expect("a folder can be made");
                fs::write(&path, made).expect("the file can be written");
                continue;
            }
            let kept = fs::read_to_string(&path).unwrap_or_default();
            if kept != made {
                changed.push(format!("{} {}", path.display(), difference(&kept, &made)));
            }
        }
    }
    assert!(
        changed.is_empty(),
        "training computes something else than the files in graphs/; to accept the change, run VNCA_BLESS=1 cargo test --test \
         graphs:\n{}",
        changed.join("\n")
    );
}
