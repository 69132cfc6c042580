//! The IWELBO of a test set depends neither on the batch nor on the number of replicas.

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
    // No batch size below divides the 21 images, except 21.
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
    // Another seed gives another estimate of the same bound. A limit selects the first images.
    let seed = evaluate(folder.path(), &["--seed", "9"])["iwelbo"].as_f64().unwrap();
    assert!(seed != one["iwelbo"].as_f64().unwrap());
    assert_eq!(evaluate(folder.path(), &["--limit", "3"])["images"].as_u64(), Some(3));
}

#[test]
fn a_run_finds_its_images_from_any_folder_and_refuses_others() {
    let folder = tempfile::tempdir().unwrap();
    let [own, other] = ["own", "other"].map(|name| folder.path().join(name));
    for (folder, test) in [(&own, 901), (&other, 5)] {
        std::fs::create_dir_all(folder).unwrap();
        cli::data_folder(folder);
        cli::write_npy(&folder.join("images/test.npy"), vnca::engine::random::Key::new(test), &[21, 784]);
    }
    cli::succeed(&own, &cli::training("images".as_ref(), "--steps 1 --eval-every 0"));
    let arguments = ["eval", "--run", "../own/run", "--samples", "2", "--json"];
    let iwelbo = |more: &[&str]| {
        let text = cli::succeed(&other, &[&arguments[..], more].concat());
        serde_json::from_str::<Value>(&text).unwrap()["iwelbo"].as_f64().unwrap()
    };
    let its_own = iwelbo(&[]);
    assert_eq!(iwelbo(&["--data", "../own/images"]), its_own);
    assert_ne!(iwelbo(&["--data", "images"]), its_own);

    // The run's folder of images now has other test images.
    let refused = |arguments: &[&str], words: &[&str]| {
        let error = cli::fail(&other, arguments, 3);
        for word in [words, &["own/run", "--data PATH"]].concat() {
            assert!(error.contains(word), "{arguments:?} does not name {word}: {error}");
        }
    };
    let [test, kept] = ["images/test.npy", "images/kept"].map(|name| own.join(name));
    std::fs::rename(&test, &kept).unwrap();
    std::fs::copy(other.join("images/test.npy"), &test).unwrap();
    let words = ["own/images", "not the test images"];
    refused(&arguments, &words);
    refused(&[&arguments[..], &["--gap"]].concat(), &words);
    refused(&["reconstruct", "--run", "../own/run"], &words);
    refused(&["latents", "--run", "../own/run", "--out", "latents"], &words);
    refused(&["figures", "--run", "../own/run", "--out", "report"], &words);
    iwelbo(&["--split", "train", "--limit", "2"]);
    iwelbo(&["--data", "../own/images"]);
    std::fs::rename(&kept, &test).unwrap();

    // An older run has a relative path and only the checksum of its training images.
    let path = own.join("run/config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["data"] = "images".into();
    config.as_object_mut().unwrap().remove("data_crc").unwrap();
    std::fs::write(&path, config.to_string()).unwrap();
    let at_home = cli::succeed(&own, &["eval", "--run", "run", "--samples", "2", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&at_home).unwrap()["iwelbo"].as_f64(), Some(its_own));
    cli::write_npy(&other.join("images/train.npy"), vnca::engine::random::Key::new(6), &[64, 784]);
    refused(&arguments, &["images: these are not the test images"]);
    refused(&[&arguments[..], &["--split", "train"]].concat(), &["not the train images"]);
    std::fs::remove_dir_all(other.join("images")).unwrap();
    refused(&arguments, &["images"]);
}

#[test]
fn a_damaged_best_checkpoint_gives_a_warning_and_the_newest_intact_one_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    cli::succeed(folder.path(), &cli::training(&data, "--steps 2 --eval-every 0"));
    let before = evaluate(folder.path(), &[]);
    let best = folder.path().join("run/checkpoints/best.npz");
    std::fs::write(&best, b"PK\x03\x04 no zip").unwrap();
    let output = cli::run(folder.path(), &["eval", "--run", "run", "--samples", "6", "--json"]);
    let error = cli::text(&output.stderr);
    assert!(output.status.success() && error.contains("best.npz"), "{error}");
    let after: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(after["iwelbo"], before["iwelbo"]);
}

#[test]
fn the_merged_first_layers_of_the_baseline_give_the_same_images() {
    let model = Model::new(Kind::Baseline, Some(5)).unwrap().vae();
    let leaves = model.leaves();
    let g = Graph::new("composed");
    let params = Params::new(&leaves, &Params::inputs(&g, &leaves, ""));
    let z = g.input("z", &vnca::engine::shape::Shape::f32(&[3, 5]));
    let keys = g.input("keys", &vnca::engine::shape::Shape::u32(&[3, 2]));
    let decoded = |latents| model.decode(&model.prepared(&params, latents), z, keys).sigmoid();
    let function = common::finish(&g, &[("few".into(), decoded(9)), ("many".into(), decoded(10))]);

    let mut inputs: Vec<_> =
        (0..).zip(&leaves).map(|(i, l)| common::fill(&l.device_shape(), i, (-0.2, 0.2))).collect();
    inputs.push(common::fill(&[3, 5], 100, (-2.0, 2.0)));
    inputs.push(vnca::engine::array::Array::new(&[3, 2], &[0u32; 6]));
    let [few, many] = [0, 1].map(|i| common::evaluate(&function, &inputs)[i].to_vec::<f32>());
    assert!(few.iter().any(|p| (0.1..0.4).contains(p)) && few.iter().any(|p| (0.6..0.9).contains(p)));
    let differing = few.iter().zip(&many).filter(|(a, b)| a != b).count();
    assert!(differing > 0, "both programs compute the layers in the same way");
    let most = few.iter().zip(&many).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(most < 1e-4, "probabilities differ by {most}");
}
