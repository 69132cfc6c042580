//! The IWELBO of a test set depends neither on the batch nor on the number of replicas, and is JAX's definition.

#[path = "common/cli.rs"]
mod cli;
mod common;

use serde_json::Value;
use vnca::cli::models::{Kind, Model};
use vnca::engine::ir::Graph;
use vnca::nn::params::Params;

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

#[test]
fn the_composed_first_layers_of_the_baseline_decode_the_same() {
    let model = Model::new(Kind::Baseline, Some(5)).unwrap().vae();
    let leaves = model.leaves();
    let g = Graph::new("composed");
    let params = Params::new(&leaves, &Params::inputs(&g, &leaves, ""));
    let z = g.input("z", &vnca::engine::shape::Shape::f32(&[3, 5]));
    let keys = g.input("keys", &vnca::engine::shape::Shape::u32(&[3, 2]));
    let decoded = |latents| model.decode(&model.prepared(&params, latents), z, keys).sigmoid();
    let function = common::finish(&g, &[("few".into(), decoded(9)), ("many".into(), decoded(10))]);

    let mut inputs: Vec<_> =
        (0..).zip(&leaves).map(|(i, l)| common::fill(&l.inner_shape(), i, (-0.2, 0.2))).collect();
    inputs.push(common::fill(&[3, 5], 100, (-2.0, 2.0)));
    inputs.push(vnca::engine::array::Array::new(&[3, 2], &[0u32; 6]));
    let [few, many] = [0, 1].map(|i| common::evaluate(&function, &inputs)[i].to_vec::<f32>());
    assert!(few.iter().any(|p| (0.1..0.4).contains(p)) && few.iter().any(|p| (0.6..0.9).contains(p)));
    let differing = few.iter().zip(&many).filter(|(a, b)| a != b).count();
    assert!(differing > 0, "both are computed in the same way");
    let most = few.iter().zip(&many).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(most < 1e-4, "probabilities differ by {most}");
}
