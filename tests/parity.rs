//! Equal seeds give the same numbers as JAX: draws, initial values, forward passes, losses and gradients of all three models.
//!
//! `goldens/` contains the results of JAX 0.10.2 on a CPU for seed 0.

mod common;

use common::models::{models, woken};
use common::{evaluate, evaluate_in, finish, targets};
use serde_json::Value;
use vnca::cli::models::{Kind, Model};
use vnca::engine::array::Array;
use vnca::engine::ir::{Graph, gradient};
use vnca::engine::random::{Key, graph as draw};
use vnca::engine::shape::{DType, Shape};
use vnca::model::decoder::GrowOptions;
use vnca::model::elbo::{Loss, LossStep};
use vnca::model::objective;
use vnca::nn::params::{Params, init};

fn golden(name: &str) -> Value {
    let path = format!("{}/tests/goldens/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).expect("the golden file is there"))
        .expect("it is JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

fn close(got: f64, expected: f64, relative: f64, scale: f64) -> bool {
    (got - expected).abs() <= relative * expected.abs().max(scale)
}

fn assert_all_close(what: &str, got: &[f64], expected: &[f64], relative: f64, scale: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!(close(*g, *e, relative, scale), "{what}[{i}]: expected {e}, got {g}");
    }
}

fn f64s(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

#[test]
fn draws_in_a_graph_equal_jax() {
    let rng = golden("rng");
    let g = Graph::new("draws");
    let key = g.input("key", &Shape::u32(&[2]));
    let outputs = [
        ("split_3", draw::split(key, 3)),
        ("bits_3x5", draw::bits32(key, &[3, 5])),
        ("uniform_8", draw::uniform(key, &[8], 0.0, 1.0)),
        ("uniform_pm_8", draw::uniform(key, &[8], -0.2, 0.2)),
        ("normal_2x3", draw::normal(key, &[2, 3])),
        ("randint_32_64", draw::randint(key, &[16], 32, 64)),
        ("randint_0_5", draw::randint(key, &[16], 0, 5)),
        ("randint_damage", draw::randint(key, &[2], 0, 16)),
        ("bernoulli_013_32", draw::bernoulli(key, &[32], g.scalar(DType::F32, 0.13)).convert(DType::S32)),
        ("permutation_16", draw::permutation(key, 16)),
        ("permutation_1024_first16", draw::permutation(key, 1024).slice_axis(0, 0, 16)),
        ("permutation_60000_first16", draw::permutation(key, 60_000).slice_axis(0, 0, 16)),
    ];
    let outputs = outputs.map(|(name, sym)| (name.to_string(), sym));
    let results = evaluate(&finish(&g, &outputs), &[Array::new(&[2], &Key::new(0).0)]);
    for ((name, _), got) in outputs.iter().zip(&results) {
        let expected = numbers(&rng[name.as_str()]);
        match got.shape().dtype {
            DType::U32 => assert_eq!(
                got.to_vec::<u32>(),
                expected.iter().map(|v| *v as u32).collect::<Vec<_>>(),
                "{name}"
            ),
            DType::S32 => assert_eq!(
                got.to_vec::<i32>(),
                expected.iter().map(|v| *v as i32).collect::<Vec<_>>(),
                "{name}"
            ),
            _ if name.starts_with("normal") => {
                assert_all_close(name, &f64s(&got.to_vec::<f32>()), &expected, 1e-6, 0.0);
            }
            _ => assert_eq!(f64s(&got.to_vec::<f32>()), expected, "{name}"),
        }
    }
}

#[test]
fn batched_keys_draw_the_same_numbers_as_single_keys() {
    let g = Graph::new("batched");
    let keys = draw::split(draw::constant(&g, Key::new(9)), 3);
    let draws = draw::normal(keys, &[2, 4]);
    let got = evaluate(&finish(&g, &[("draws".into(), draws)]), &[])[0].to_vec::<f32>();
    for (i, key) in Key::new(9).split(3).into_iter().enumerate() {
        assert_all_close("normal", &f64s(&got[8 * i..8 * i + 8]), &f64s(&key.normal(8)), 1e-6, 1e-3);
    }
}

#[test]
fn initial_values_equal_jax() {
    let golden = golden("init");
    for kind in Kind::ALL {
        let model = Model::new(kind, None).expect("a model of the report").vae();
        let leaves = model.leaves();
        let expected = &golden[kind.name()];
        assert_eq!(model.parameter_count() as u64, expected["parameters"].as_u64().expect("a count"));
        let host = init(&leaves, Key::new(0));
        let g = Graph::new("init");
        let key = g.input("key", &Shape::u32(&[2]));
        let outputs: Vec<_> = leaves.iter().map(|leaf| (leaf.name.clone(), leaf.init_in(key))).collect();
        let device = evaluate(&finish(&g, &outputs), &[Array::new(&[2], &Key::new(0).0)]);
        let rows = expected["leaves"].as_array().expect("a list");
        assert_eq!(rows.len(), leaves.len());
        for (((leaf, row), host), device) in leaves.iter().zip(rows).zip(&host).zip(&device) {
            assert_eq!(
                leaf.to_checkpoint_layout(device),
                *host,
                "{} on the device and on the host",
                leaf.name
            );
            assert_eq!(f64s_usize(&leaf.shape), numbers(&row["shape"]), "{}", leaf.name);
            let values = f64s(&host.to_vec::<f32>());
            let first = numbers(&row["first"]);
            assert_eq!(values[..first.len()], first, "{}", leaf.name);
            let sum: f64 = values.iter().sum();
            let l2 = values.iter().map(|v| v * v).sum::<f64>().sqrt();
            assert!(close(sum, row["sum"].as_f64().unwrap(), 1e-9, 1e-3), "{} sum {sum}", leaf.name);
            assert!(close(l2, row["l2"].as_f64().unwrap(), 1e-9, 0.0), "{} l2 {l2}", leaf.name);
        }
    }
}

fn f64s_usize(values: &[usize]) -> Vec<f64> {
    values.iter().map(|v| *v as f64).collect()
}

/// Returns two images of independent random pixels.
fn images() -> Array {
    let pixels: Vec<u8> = Key::new(200).bernoulli(2 * 784, |_| 0.13).into_iter().map(u8::from).collect();
    Array::new(&[2, 28, 28], &pixels)
}

#[test]
fn forward_passes_and_gradients_equal_jax() {
    let golden = golden("forward");
    for (target, (name, model)) in
        targets().into_iter().flat_map(|t| models().into_iter().map(move |m| (t, m)))
    {
        let expected = &golden[&name];
        let vae = model.vae();
        let leaves = vae.leaves();
        let g = Graph::new("forward");
        let values = Params::inputs(&g, &leaves, "");
        let pixels = g.input("images", &Shape::new(DType::U8, &[2, 28, 28]));
        let params = Params::new(&leaves, &values);
        let x = vae.padded(pixels);
        let (mean, logvar) = vae.encode(&params, x);
        let key = |seed| draw::constant(&g, Key::new(seed));
        let loss = Loss::ELBO
            .from_images(&vae, &params, (x, key(400)), &GrowOptions::default(), LossStep::default())
            .loss;
        let iwelbo = objective::scores(&vae, &params, x, draw::split(key(500), 2), 8, 8).iwelbo;
        let mut outputs = vec![
            ("mean".to_string(), mean),
            ("logvar".to_string(), logvar),
            ("loss".to_string(), loss),
            ("iwelbo".to_string(), iwelbo),
        ];
        outputs.extend(gradient(loss, &values).into_iter().zip(&leaves).map(|(s, l)| (l.name.clone(), s)));
        let mut inputs = woken(&model);
        inputs.push(images());
        let results = evaluate_in(target, &finish(&g, &outputs), &inputs);
        let name = format!("{name} ({target:?})");
        let floats = |i: usize| f64s(&results[i].to_vec::<f32>());
        assert_all_close(&format!("{name} mean"), &floats(0)[..8], &numbers(&expected["mean"]), 1e-4, 1e-2);
        assert_all_close(
            &format!("{name} logvar"),
            &floats(1)[..8],
            &numbers(&expected["logvar"]),
            1e-4,
            1e-2,
        );
        let iwae = -floats(3).iter().sum::<f64>() / 2.0;
        assert_all_close(
            &format!("{name} iwae"),
            &[iwae],
            &[expected["iwae_loss_K8"].as_f64().unwrap()],
            1e-4,
            0.0,
        );
        assert_all_close(
            &format!("{name} loss"),
            &floats(2),
            &[expected["loss"].as_f64().unwrap()],
            1e-4,
            0.0,
        );
        for ((leaf, row), result) in
            leaves.iter().zip(expected["grads"].as_array().unwrap()).zip(&results[4..])
        {
            let gradient = f64s(&leaf.to_checkpoint_layout(result).to_vec::<f32>());
            let l2 = gradient.iter().map(|v| v * v).sum::<f64>().sqrt();
            let expected_l2 = row["l2"].as_f64().unwrap();
            assert!(
                close(l2, expected_l2, 2e-4, 1e-6),
                "{name} {}: l2 {l2}, expected {expected_l2}",
                leaf.name
            );
            let first = numbers(&row["first"]);
            let size = expected_l2 / (gradient.len() as f64).sqrt();
            assert_all_close(&format!("{name} {}", leaf.name), &gradient[..first.len()], &first, 1e-3, size);
        }
    }
}
