//! A t-SNE map of latents: equal seeds give equal maps, accuracies are reported, and labels may come from a file.

#[path = "common/cli.rs"]
mod cli;

use serde_json::Value;
use vnca::cli::models::Kind;

#[test]
fn equal_seeds_give_equal_maps_and_accuracies_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let weights = cli::weights(folder.path(), Kind::Baseline, 8);
    let weights: Vec<&str> = weights.iter().map(String::as_str).collect();
    let options = ["--points", "150", "--perplexity", "10", "--iterations", "400", "--json"];
    let make = |more: &[&str]| {
        let out = cli::succeed(folder.path(), &[&["tsne"], &weights[..], &options, more].concat());
        serde_json::from_str::<Value>(&out).unwrap()
    };
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    let one = make(&["--out", "one"]);
    assert_eq!((one["points"].as_u64(), one["latent"].as_u64()), (Some(150), Some(8)));
    // Even an untrained encoder separates digits better than chance, which is 0.1 with a standard error of 0.025.
    for name in ["accuracy_latent", "accuracy_map"] {
        let accuracy = one[name].as_f64().unwrap();
        assert!((0.175..=1.0).contains(&accuracy), "{name}: {accuracy}");
    }
    assert!(read("one/map.png").starts_with(b"\x89PNG"));
    assert_eq!(read("one/map.npy").len(), 128 + 150 * 2 * 4);
    // The written labels can be used as a file of labels only for the same images.
    make(&["--out", "two", "--seed", "0"]);
    assert_eq!(read("one/map.npy"), read("two/map.npy"));
    make(&["--out", "three", "--seed", "1"]);
    assert_ne!(read("one/indices.npy"), read("three/indices.npy"));

    let wrong = [&["tsne"], &weights[..], &["--out", "no", "--labels", "one/labels.npy"]].concat();
    assert!(cli::fail(folder.path(), &wrong, 3).contains("--labels"));
    let few = [&["tsne"], &weights[..], &["--out", "no", "--points", "50"]].concat();
    assert!(cli::fail(folder.path(), &few, 2).contains("--perplexity"));
    cli::write_npy(&folder.path().join("bare.npy"), vnca::engine::random::Key::new(1), &[4, 784]);
    let bare = [&["tsne"], &weights[..], &["--out", "no", "--data", "bare.npy"]].concat();
    assert!(cli::fail(folder.path(), &bare, 3).contains("vnca label"));
    assert!(!folder.path().join("no").exists());
}
