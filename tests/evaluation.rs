//! The IWELBO of a test set depends neither on the batch nor on the number of replicas, and is JAX's definition.

#[path = "common/cli.rs"]
mod cli;

use serde_json::Value;

fn evaluate(folder: &std::path::Path, more: &[&str]) -> Value {
    let arguments = [&["eval", "--run", "run", "--samples", "6", "--json"], more].concat();
    serde_json::from_str(&cli::succeed(folder, &arguments)).expect("eval prints JSON")
}

#[test]
fn neither_batch_nor_replicas_change_the_result() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    cli::succeed(folder.path(), &cli::training(&data, "--steps 5 --eval-every 0"));
    // 21 images: none of these batches divides them.
    let one = evaluate(folder.path(), &["--batch-size", "21"]);
    assert_eq!((one["images"].as_u64(), one["samples"].as_u64()), (Some(21), Some(6)));
    assert!(one["stderr"].as_f64().unwrap() > 0.0 && one["seconds"].as_f64().unwrap() > 0.0);
    for more in [["--batch-size", "4", "--replicas", "1"], ["--batch-size", "8", "--replicas", "4"]] {
        let other = evaluate(folder.path(), &more);
        for field in ["iwelbo", "stderr"] {
            let (a, b) = (one[field].as_f64().unwrap(), other[field].as_f64().unwrap());
            assert!(
                (a - b).abs() <= if field == "iwelbo" { 1e-5 } else { 1e-3 } * a.abs(),
                "{field} with {more:?}: {b}, not {a}"
            );
        }
    }
    // Another seed is another estimate of the same bound, and a limit takes the first images.
    let seed = evaluate(folder.path(), &["--seed", "9"])["iwelbo"].as_f64().unwrap();
    assert!(seed != one["iwelbo"].as_f64().unwrap());
    assert_eq!(evaluate(folder.path(), &["--limit", "3"])["images"].as_u64(), Some(3));
}
