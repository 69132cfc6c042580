//! What training can do that the report's does not: cells that step by chance, damage while a grid doubles, and the
//! importance-weighted bound.

mod common;

use common::{evaluate, fill, finish};
use vnca::array::Array;
use vnca::ir::{Graph, RepeatOptions, Sym, gradient};
use vnca::model::loss::{Course, Loss, ManySamples};
use vnca::model::params::Params;
use vnca::model::vnca::{Automaton, Damage, Grids};
use vnca::model::{Kind, Model, objective, padded};
use vnca::random::{Key, graph as draw};
use vnca::shape::{DType, Shape};

fn small(kind: Kind) -> Model {
    Model { nca_steps: 2, ..Model::new(kind, Some(6)).unwrap() }
}

/// Parameters that do something, the automaton's last layer included.
fn weights(model: &Model) -> Vec<Array> {
    let leaves = model.leaves();
    leaves.iter().enumerate().map(|(i, l)| fill(&l.inner_shape(), i as u64, (-0.1, 0.1))).collect()
}

/// The outputs of a graph over a model's parameters.
fn outputs(
    model: &Model,
    build: impl for<'g> FnOnce(&'g Graph, &Params<'g>, &[Sym<'g>]) -> Vec<Sym<'g>>,
) -> Vec<Array> {
    let leaves = model.leaves();
    let g = Graph::new("test");
    let values = Params::inputs(&g, &leaves, "");
    let made = build(&g, &Params::new(&leaves, &values), &values);
    let named: Vec<(String, Sym<'_>)> = made.iter().enumerate().map(|(i, s)| (i.to_string(), *s)).collect();
    evaluate(&finish(&g, &named), &weights(model))
}

fn keys(g: &Graph, n: usize) -> Sym<'_> {
    draw::split(draw::constant(g, Key::new(5)), n)
}

#[test]
fn cells_step_by_chance_each_for_itself_and_anew_each_step() {
    let model = Model { update_prob: 0.5, ..small(Kind::NonDoubling) };
    let results = outputs(&model, |g, params, _| {
        let automaton = Automaton::new(&model, params);
        let always = Automaton::new(&Model { update_prob: 1.0, ..model }, params);
        let start = g.constant(fill(&[2, 32, 32, 6], 3, (0.5, 1.0)));
        let first = automaton.step(Grids { cells: start, keys: keys(g, 2) });
        let second = automaton.step(Grids { cells: start, keys: first.keys });
        let all = always.step(Grids { cells: start, keys: keys(g, 2) });
        vec![start, first.cells, second.cells, all.cells]
    });
    let values: Vec<Vec<f32>> = results.iter().map(Array::to_vec::<f32>).collect();
    let stepped = |of: &[f32]| -> Vec<bool> {
        let cells = of.chunks_exact(6).zip(values[0].chunks_exact(6)).zip(values[3].chunks_exact(6));
        cells
            .map(|((cell, before), after)| {
                assert!(cell == before || cell == after, "a cell steps as a whole or not at all");
                cell != before
            })
            .collect()
    };
    let (first, second) = (stepped(&values[1]), stepped(&values[2]));
    let share = |of: &[bool]| of.iter().filter(|s| **s).count() as f64 / of.len() as f64;
    assert!((share(&first) - 0.5).abs() < 0.05, "{}", share(&first));
    // Independent of each other: of the other image, and of the other step.
    let agree =
        |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64;
    assert!((agree(&first[..1024], &first[1024..]) - 0.5).abs() < 0.06);
    assert!((agree(&first, &second) - 0.5).abs() < 0.05);
}

#[test]
fn damage_comes_at_every_doubling_in_its_turn_and_to_its_share_alone() {
    let model = Model { nca_steps: 0, ..small(Kind::Doubling) };
    let results = outputs(&model, |g, params, _| {
        let z = g.constant(fill(&[3, 6], 9, (0.5, 1.0)));
        let grown = |seed: u64| {
            let damage = Some(Damage { grids: 2, key: draw::constant(g, Key::new(seed)) });
            let course = Course { memory: RepeatOptions::default(), damage };
            Automaton::new(&model, params).on(&course).grow(z, keys(g, 3))
        };
        (0..40).map(grown).collect()
    });
    // Without steps, damage at doubling i of 5 leaves zeros in a square of side 16, wherever it is, a quarter of all.
    let mut corners = std::collections::BTreeSet::new();
    for result in &results {
        let values = result.to_vec::<f32>();
        let zeros: Vec<usize> =
            (0..3 * 1024).filter(|i| values[i * 6..(i + 1) * 6].iter().all(|v| *v == 0.0)).collect();
        assert_eq!(zeros.len(), 2 * 256, "two of three grids lose a quarter of their cells");
        assert!(zeros.iter().all(|i| *i < 2048));
        corners.insert(zeros[0] % 32);
    }
    // The first column lost is a multiple of the cells' size when they were lost: odd ones are of the last doubling.
    assert!(corners.iter().any(|c| c % 2 == 1) && corners.iter().any(|c| c % 2 == 0), "{corners:?}");
    assert!(corners.len() > 5, "{corners:?}");
}

#[test]
fn with_many_samples_the_importance_weighted_bound_is_trained_on() {
    let model = small(Kind::Doubling);
    let pixels: Vec<u8> = Key::new(200).bernoulli(2 * 784, |_| 0.13).into_iter().map(u8::from).collect();
    let results = outputs(&model, |g, params, values| {
        let images = padded(g, g.constant(Array::new(&[2, 28, 28], &pixels)));
        let key = draw::constant(g, Key::new(4));
        let loss = |samples, many, beta| {
            let loss = Loss { beta, samples, many };
            loss.of_images(&model, params, images, key, &Course::default())
        };
        let scores = objective::scores(&model, params, images, draw::split(key, 2), 5, 8);
        let importance = loss(5, ManySamples::Importance, 1.0);
        let slope = gradient(importance, values)[0].square().sum_all();
        vec![
            importance,
            -scores.iwelbo.mean(&[0]),
            loss(5, ManySamples::Report, 1.0),
            loss(5, ManySamples::Report, 0.0),
            scores.kl.mean(&[0]),
            slope,
        ]
    });
    let value: Vec<f32> = results.iter().map(|a| a.to_vec::<f32>()[0]).collect();
    let [importance, minus_iwelbo, report, without_kl, kl, slope] = value[..] else { panic!("six values") };
    assert!((importance - minus_iwelbo).abs() < 1e-4 * importance, "{importance}, evaluated {minus_iwelbo}");
    assert!((report - without_kl - kl).abs() < 1e-3, "{report} is {without_kl} and the KL {kl}");
    assert!(slope.is_finite() && slope > 0.0);
    assert_eq!(Shape::new(DType::F32, &[]), *results[0].shape());
}
