//! Features of training beyond the report's: random updates of cells, damage while a grid doubles, the importance-weighted
//! bound, automata that start from a few cells, and other updates and clipping.

#[path = "common/cli.rs"]
mod cli;
mod common;

use common::{evaluate, fill, finish};
use tempfile::TempDir;
use vnca::cli::models::{Kind, Model};
use vnca::engine::array::Array;
use vnca::engine::ir::{Graph, RepeatOptions, Sym, gradient};
use vnca::engine::random::{Key, graph as draw};
use vnca::engine::shape::{DType, Shape};
use vnca::model::Frame;
use vnca::model::decoder::GrowOptions;
use vnca::model::elbo::{Loss, LossStep, ManySamples};
use vnca::model::grow::{Damage, Grids};
use vnca::model::objective;
use vnca::nn::optimiser::{Adam, ClipEach, Context, Fall, FallShape, Schedule, Transform, Updates};
use vnca::nn::params::Params;
use vnca::nn::params::{Leaf, Role};
use vnca::nn::tree::Tree;

fn small(kind: Kind) -> Model {
    Model { nca_steps: 2, ..Model::new(kind, Some(6)).unwrap() }
}

/// Returns random parameters that are not zero even in the automaton's last layer.
fn weights(model: &Model) -> Vec<Array> {
    let leaves = model.vae().leaves();
    leaves.iter().enumerate().map(|(i, l)| fill(&l.device_shape(), i as u64, (-0.1, 0.1))).collect()
}

/// Evaluates a graph over a model's parameters.
fn outputs(
    model: &Model,
    build: impl for<'g> FnOnce(&'g Graph, &Params<'g>, &[Sym<'g>]) -> Vec<Sym<'g>>,
) -> Vec<Array> {
    let leaves = model.vae().leaves();
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
fn cells_are_updated_at_random_independently_of_each_other() {
    let model = Model { update_prob: 0.5, ..small(Kind::NonDoubling) };
    let results = outputs(&model, |g, params, _| {
        let [vae, certain] = [model, Model { update_prob: 1.0, ..model }].map(|m| m.vae());
        let automaton = vae.automaton().unwrap().automaton(params);
        let always = certain.automaton().unwrap().automaton(params);
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
                assert!(cell == before || cell == after, "a cell is updated in all channels or in none");
                cell != before
            })
            .collect()
    };
    let (first, second) = (stepped(&values[1]), stepped(&values[2]));
    let share = |of: &[bool]| of.iter().filter(|s| **s).count() as f64 / of.len() as f64;
    assert!((share(&first) - 0.5).abs() < 0.05, "{}", share(&first));
    // The draws are independent between images and between steps.
    let agree =
        |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64;
    assert!((agree(&first[..1024], &first[1024..]) - 0.5).abs() < 0.06);
    assert!((agree(&first, &second) - 0.5).abs() < 0.05);
}

#[test]
fn damage_affects_its_share_of_grids_at_every_doubling() {
    let model = Model { nca_steps: 0, ..small(Kind::Doubling) };
    let results = outputs(&model, |g, params, _| {
        let z = g.constant(fill(&[3, 6], 9, (0.5, 1.0)));
        let grown = |seed: u64| {
            let damage = Some(Damage { grids: 2, key: draw::constant(g, Key::new(seed)) });
            let options = GrowOptions { memory: RepeatOptions::default(), damage };
            model.vae().automaton().unwrap().grow(params, &Frame::REPORT, z, keys(g, 3), &options)
        };
        (0..40).map(grown).collect()
    });
    // Without steps, damage at any of the 5 doublings leaves a square of zeros of side 16, a quarter of the grid.
    let mut corners = std::collections::BTreeSet::new();
    for result in &results {
        let values = result.to_vec::<f32>();
        let zeros: Vec<usize> =
            (0..3 * 1024).filter(|i| values[i * 6..(i + 1) * 6].iter().all(|v| *v == 0.0)).collect();
        assert_eq!(zeros.len(), 2 * 256, "two of three grids lose a quarter of their cells");
        assert!(zeros.iter().all(|i| *i < 2048));
        corners.insert(zeros[0] % 32);
    }
    // The first damaged column is a multiple of the cells' size at the time of damage. Odd columns come from the last doubling.
    assert!(corners.iter().any(|c| c % 2 == 1) && corners.iter().any(|c| c % 2 == 0), "{corners:?}");
    assert!(corners.len() > 5, "{corners:?}");
}

#[test]
fn training_with_many_samples_uses_the_importance_weighted_bound() {
    let model = small(Kind::Doubling);
    let pixels: Vec<u8> = Key::new(200).bernoulli(2 * 784, |_| 0.13).into_iter().map(u8::from).collect();
    let results = outputs(&model, |g, params, values| {
        let vae = model.vae();
        let images = vae.padded(g.constant(Array::new(&[2, 28, 28], &pixels)));
        let key = draw::constant(g, Key::new(4));
        let loss = |samples, many, beta| {
            let loss = Loss { beta, samples, many, ..Loss::ELBO };
            let (drawn, options) = ((images, key), GrowOptions::default());
            loss.from_images(&vae, params, drawn, &options, LossStep::default()).loss
        };
        let scores = objective::scores(&vae, params, images, draw::split(key, 2), 5, 8);
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

#[test]
fn a_grid_starts_as_the_latent_in_the_middle_and_zeros_elsewhere() {
    let z = fill(&[2, 6], 9, (0.5, 1.0));
    for side in [1, 2, 5, 32] {
        let model = Model { start_side: side, ..small(Kind::NonDoubling) };
        let vae = model.vae();
        let grow = vae.automaton().unwrap();
        let cells = outputs(&model, |g, _, _| vec![grow.start(&vae.frame, g.constant(z.clone()))]).remove(0);

        assert_eq!(cells.dims(), [2, 32, 32, 6]);
        let (cells, z, first) = (cells.to_vec::<f32>(), z.to_vec::<f32>(), (32 - side) / 2);
        for (at, cell) in cells.chunks_exact(6).enumerate() {
            let (image, row, column) = (at / 1024, at / 32 % 32, at % 32);
            let inside = [row, column].iter().all(|i| (first..first + side).contains(i));
            let expected = if inside { &z[image * 6..][..6] } else { &[0.0; 6] };
            assert_eq!(cell, expected, "side {side}, row {row}, column {column}");
        }
    }
}

/// A cell whose last layer is zero leaves its grid as it is: logits are the latent's first number everywhere, and 0 in the damaged
/// quarter. Of black images without a KL term, the loss is then a known sum.
#[test]
fn recovery_steps_score_the_grown_grids_and_the_damaged_ones() {
    let place = TempDir::new().unwrap();
    ndarray_npy::write_npy(place.path().join("black.npy"), &ndarray::Array3::<u8>::zeros((16, 28, 28)))
        .unwrap();
    let loss = |steps: &str| {
        let words = "train --model nondoubling --data black.npy --latent 6 --batch-size 8 --pool-size 16 --steps 1 --beta 0 \
                     --damage 0 --nca-steps-min 1 --nca-steps-max 2 --nca-steps 1 --checkpoint-every 0 --encoder-width 2";
        let arguments: Vec<&str> =
            words.split_whitespace().chain(["--recovery-steps", steps, "--out", steps]).collect();
        cli::succeed(place.path(), &arguments);
        cli::metrics(&place.path().join(steps))[0]["loss"].as_f64().unwrap()
    };
    let [whole, both] = ["0", "3"].map(loss);
    let softplus = whole / 1024.0;
    let expected = 896.0 * softplus + 128.0 * 2f64.ln();
    assert!(
        (both - expected).abs() < 1e-5 * expected && (both - whole).abs() > 1.0,
        "{both}, {expected}, {whole}"
    );
}

/// Returns a parameter of a given shape.
fn leaf(name: &str, shape: &[usize]) -> Leaf {
    Leaf { name: name.into(), shape: shape.to_vec(), role: Role::LinearWeight, limit: 0.0, path: vec![] }
}

/// Returns the values that Adam adds to a parameter at update `count`, with a gradient of zero and `moments` after this update.
fn update(adam: &Adam, count: i32, moments: [&Array; 2]) -> Vec<f32> {
    let g = Graph::new("updates");
    let leaves = [leaf("w", moments[0].dims())];
    let before = |m: &Array, decay: f64| g.constant(m.clone()) / decay;
    let names = ["adam.m.w", "adam.v.w", "count"].map(String::from);
    let count = g.scalar(DType::S32, f64::from(count - 1));
    let values = [before(moments[0], adam.b1), before(moments[1], adam.b2), count];
    let state: Tree<Sym<'_>> = names.into_iter().zip(values).collect();
    let nothing = Updates::new(vec![g.full(moments[0].shape(), 0.0)]);
    let context = Context { leaves: &leaves, params: &[], healthy: count.eq(count) };
    let (updates, _) = adam.apply(&context, nothing, &state);
    evaluate(&finish(&g, &[("update".into(), updates.values()[0])]), &[])[0].to_vec()
}

/// Multiplies the transpose of a square matrix by another matrix.
fn transposed_times(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    (0..n * n).map(|at| (0..n).map(|k| a[k * n + at / n] * b[k * n + at % n]).sum()).collect()
}

#[test]
fn muon_uses_the_orthogonal_matrix_nearest_to_the_momentum() {
    const N: usize = 6;
    let momentum = fill(&[N, N], 11, (-1.0, 1.0));
    let muon = Adam { muon: |_| true, ..Adam::new(0.01) };
    let taken = update(&muon, 1, [&momentum, &momentum]);
    // The orthogonal factor of the polar decomposition, computed with the cubic iteration, which converges.
    let values: Vec<f64> = momentum.to_vec::<f32>().into_iter().map(f64::from).collect();
    let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let mut polar: Vec<f64> = values.iter().map(|v| v / norm).collect();
    for _ in 0..200 {
        let gram = transposed_times(&polar, &polar, N);
        let cubed = |at: usize| (0..N).map(|k| polar[at / N * N + k] * gram[k * N + at % N]).sum::<f64>();
        polar = (0..N * N).map(|at| 1.5 * polar[at] - 0.5 * cubed(at)).collect();
    }
    let scale = -0.01 * 0.2 * (N as f64).sqrt();
    let taken_f64: Vec<f64> = taken.iter().map(|u| f64::from(*u) / scale).collect();
    // The product with Muon's matrix is symmetric, with eigenvalues near 1.
    let between = transposed_times(&polar, &taken_f64, N);
    for at in 0..N * N {
        let mirrored = between[at % N * N + at / N];
        assert!((between[at] - mirrored).abs() < 1e-3, "{} and {mirrored}", between[at]);
    }
    for seed in 0..20 {
        let v: Vec<f64> = fill(&[N], seed, (-1.0, 1.0)).to_vec::<f32>().into_iter().map(f64::from).collect();
        let stretched: f64 = (0..N * N).map(|at| v[at / N] * between[at] * v[at % N]).sum();
        let ratio = stretched / v.iter().map(|v| v * v).sum::<f64>();
        assert!((0.6..1.3).contains(&ratio), "{ratio}");
    }
    // The scale of the momentum has no effect, and zeros stay zeros.
    let larger = Array::new(&[N, N], &momentum.to_vec::<f32>().iter().map(|v| v * 1e3).collect::<Vec<f32>>());
    let of_larger = update(&muon, 1, [&larger, &momentum]);
    assert!(taken.iter().zip(&of_larger).all(|(a, b)| (a - b).abs() < 1e-6));
    let zeros = Array::new(&[N, N], &[0f32; N * N]);
    assert_eq!(update(&muon, 1, [&zeros, &zeros]), [0.0; N * N]);
}

#[test]
fn the_learning_rate_follows_its_schedule() {
    let linear = [(1, 0.25 * 0.95), (2, 0.5 * 0.9), (4, 0.8), (7, 0.65), (10, 0.5), (20, 0.5)];
    // With cos(18°), cos(36°), cos(72°) and cos(126°) from a table.
    let cosine = [
        (1, 0.25 * (0.75 + 0.25 * 0.951_057)),
        (2, 0.5 * (0.75 + 0.25 * 0.809_017)),
        (4, 0.75 + 0.25 * 0.309_017),
        (7, 0.75 - 0.25 * 0.587_785),
        (10, 0.5),
        (20, 0.5),
    ];
    for (shape, expected) in [(FallShape::Linear, linear), (FallShape::Cosine, cosine)] {
        let fall = Some(Fall { shape, end_factor: 0.5, steps: 10 });
        let schedule = Schedule { learning_rate: 0.01, warmup: 4, fall };
        let adam = Adam { schedule, ..Adam::new(0.01) };
        for (count, expected) in expected {
            // The moments after `count` gradients of 1, for which Adam's update is the learning rate.
            let moment = |decay: f64| Array::new(&[1], &[(1.0 - decay.powi(count)) as f32]);
            let moved = update(&adam, count, [&moment(adam.b1), &moment(adam.b2)])[0];
            assert!((f64::from(moved) / -0.01 - expected).abs() < 1e-4, "{shape:?}, step {count}: {moved}");
        }
    }
}

#[test]
fn each_gradient_is_clipped_by_its_own_norm() {
    let g = Graph::new("clip");
    let gradients = [[3f32, 4.0], [0.3, 0.4], [0.0, 0.0]].map(|v| g.constant(Array::new(&[2], &v)));
    let zero = g.scalar(DType::S32, 0.0);
    let context = Context { leaves: &[], params: &[], healthy: zero.eq(zero) };
    let (updates, _) = ClipEach(1.0).apply(&context, Updates::new(gradients.to_vec()), &Tree::default());
    let clipped: Vec<_> = updates.values().iter().enumerate().map(|(i, u)| (i.to_string(), *u)).collect();
    let values = evaluate(&finish(&g, &clipped), &[]);
    for (value, expected) in values.iter().zip([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]) {
        let value = value.to_vec::<f32>();
        assert!(value.iter().zip(expected).all(|(v, e)| (v - e).abs() < 1e-5), "{value:?} {expected:?}");
    }
}
