//! The stages of decoding equal JAX's: final logits, growth, damage and recovery.

mod common;

use std::path::PathBuf;

use common::models::{models, woken};
use common::{evaluate, evaluate_in, finish, targets};
use vnca::cli::models::{Kind, Model};
use vnca::engine::array::Array;
use vnca::engine::ir::{Graph, Sym};
use vnca::engine::random::{Key, graph as draw};
use vnca::engine::shape::{DType, Shape};
use vnca::model::GRID_SIDE;
use vnca::model::grow::{Grids, damage, damage_at, first_channels};
use vnca::nn::params::Params;
use vnca::nn::weights::npz::read as read_npz;

/// Returns JAX's arrays of a model, without the model in their names.
fn goldens(model: &str) -> Vec<(String, Array)> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/forward.npz");
    let arrays = read_npz(&path).expect("the golden file can be read").into_iter();
    let of_model = |(name, array): (String, Array)| Some((name.strip_prefix(model)?[1..].to_string(), array));
    arrays.filter_map(of_model).collect()
}

/// Builds the output `name` of a model for one latent: logits, or probabilities if these are compared.
fn output<'g>(name: &str, model: &Model, params: &Params<'g>, g: &'g Graph) -> Sym<'g> {
    let key = |seed: u64| draw::constant(g, Key::new(seed));
    let prior = |seed: u64| draw::normal(key(seed), &[model.latent]).reshape(&[1, model.latent]);
    // Every step updates every cell, so that these keys are unused.
    let unused = key(0).reshape(&[1, 2]);
    let vae = model.vae();
    match name {
        "decoder" => vae.decode(params, prior(300), unused),
        "growth_stages" => {
            let grow = vae.automaton().expect("it grows");
            let (_, all) = {
                let show = |cells| first_channels(cells, 1);
                grow.stages(params, &vae.frame, prior(600), unused, show, f64::NEG_INFINITY)
            };
            let d = all.dims();
            all.slice_strided(&[0; 5], &d, &[5, 1, 1, 1, 1])
        }
        "nca_stages_T12_damage5" => {
            let grow = vae.automaton().expect("it grows");
            let automaton = grow.automaton(params);
            let seed = Grids { cells: grow.start(&vae.frame, prior(700)), keys: unused };
            let (grown, before) = automaton.watched(seed, 6, |cells| vec![first_channels(cells, 1)]);
            let [_, sub] = draw::split_each(key(700));
            let damaged = damage(grown.cells, sub.reshape(&[1, 2]), 16);
            let shown = first_channels(damaged, 1).reshape(&[1, 1, GRID_SIDE, GRID_SIDE, 1]);
            let damaged = Grids { cells: damaged, ..grown };
            let (_, after) = automaton.watched(damaged, 6, |cells| vec![first_channels(cells, 1)]);
            Sym::concat(&[before[0].slice_axis(0, 0, 5), shown, after[0]], 0)
        }
        "damage" => {
            let ones = g.full(&Shape::f32(&[1, GRID_SIDE, GRID_SIDE, 2]), 1.0);
            damage(ones, key(800).reshape(&[1, 2]), 16).transpose(&[0, 3, 1, 2])
        }
        other => panic!("no comparison for {other}"),
    }
}

#[test]
fn decoders_growth_and_damage_equal_jax() {
    for (target, (name, model)) in
        targets().into_iter().flat_map(|t| models().into_iter().map(move |m| (t, m)))
    {
        let expected = goldens(&name);
        let count = match model.kind {
            Kind::Baseline => 1,
            Kind::Doubling => 2,
            Kind::NonDoubling => 3,
        };
        assert_eq!(expected.len(), count, "{name}");
        let leaves = model.vae().leaves();
        let g = Graph::new("stages");
        let params = Params::new(&leaves, &Params::inputs(&g, &leaves, ""));
        let outputs: Vec<_> =
            expected.iter().map(|(what, _)| (what.clone(), output(what, &model, &params, &g))).collect();
        let results = evaluate_in(target, &finish(&g, &outputs), &woken(&model));
        for ((what, expected), got) in expected.iter().zip(&results) {
            let (expected, got) = (expected.to_vec::<f32>(), got.to_vec::<f32>());
            assert_eq!(expected.len(), got.len(), "{name} {what}");
            for (i, (e, g)) in expected.into_iter().zip(got).enumerate() {
                let near = match what.as_str() {
                    "damage" => e == g,
                    "decoder" => e == g || (e - g).abs() <= 1e-4 * e.abs().max(0.1),
                    _ => (e - 1.0 / (1.0 + (-g).exp())).abs() <= 2e-5,
                };
                assert!(near, "{name} ({target:?}) {what}[{i}]: expected {e}, got {g}");
            }
        }
    }
}

/// One program damages squares of any size at any position.
#[test]
fn a_square_of_the_given_size_is_damaged_at_the_given_corner() {
    let g = Graph::new("damage");
    let corners = g.input("corners", &Shape::s32(&[2, 2]));
    let side = g.input("side", &Shape::new(DType::S32, &[]));
    let ones = g.full(&Shape::f32(&[2, 8, 8, 3]), 1.0);
    let function = finish(&g, &[("damaged".into(), damage_at(ones, corners, side))]);
    let inputs = [Array::new(&[2, 2], &[1, 4, 6, 0]), Array::scalar(3i32)];
    let got = evaluate(&function, &inputs)[0].to_vec::<f32>();
    for (i, value) in got.into_iter().enumerate() {
        let (image, row, column) = (i / 192, i / 24 % 8, i / 3 % 8);
        let (top, left) = [(1, 4), (6, 0)][image];
        let inside = (top..top + 3).contains(&row) && (left..left + 3).contains(&column);
        assert_eq!(value, f32::from(u8::from(!inside)), "image {image}, row {row}, column {column}");
    }
}
