//! Models of images of any size and number of channels: the three models agree in all forms of their programs and with finite
//! differences, cells around an image have no effect, and damage reaches every part of a grid that is not square.

mod common;

use common::{evaluate, evaluate_in, fill, finish, targets};
use vnca::cli::models::{Kind, Likelihood, Model};
use vnca::data::ImageShape;
use vnca::engine::array::Array;
use vnca::engine::ir::{Graph, Sym, gradient};
use vnca::engine::random::{Key, graph as draw};
use vnca::engine::shape::{DType, Shape};
use vnca::model::Frame;
use vnca::model::decoder::GrowOptions;
use vnca::model::elbo::{Loss, LossStep};
use vnca::model::grow::damage;
use vnca::nn::params::Params;

/// Images of these sizes, with the grid of the doubling model.
const IMAGES: [(ImageShape, [usize; 2]); 3] = [
    (ImageShape { height: 12, width: 20, channels: 4 }, [16, 24]),
    (ImageShape { height: 34, width: 9, channels: 3 }, [40, 16]),
    (ImageShape { height: 8, width: 8, channels: 1 }, [8, 8]),
];

fn model(kind: Kind, image: ImageShape) -> Model {
    let small = Model { encoder_width: 3, components: 2, ..Model::new(kind, Some(26)).unwrap() };
    let model = small.for_images(image, Likelihood::LogisticMixture);
    let model = if kind == Kind::Baseline { model } else { Model { nca_steps: 2, ..model } };
    let model = if kind == Kind::Doubling { Model { doublings: 3, ..model } } else { model };
    model.check().unwrap();
    model
}

/// Returns random parameters that are not zero even in the automaton's last layer.
fn weights(model: &Model, seed: u64) -> Vec<Array> {
    let leaves = model.vae().leaves();
    leaves.iter().enumerate().map(|(i, l)| fill(&l.device_shape(), seed + i as u64, (-0.1, 0.1))).collect()
}

/// Returns the loss of two images, and its slope along a direction in the space of parameters, divided by the sum of all sizes.
fn loss_and_slope(model: &Model, step: f32, target: vnca::engine::program::Target) -> [f64; 2] {
    let vae = model.vae();
    let leaves = vae.leaves();
    let pixels: Vec<u8> =
        Key::new(3).bits32(2 * model.image.values()).into_iter().map(|b| (b >> 24) as u8).collect();
    let direction = weights(model, 1000);
    let g = Graph::new("loss");
    let values = Params::inputs(&g, &leaves, "");
    let params = Params::new(&leaves, &values);
    let images = vae.padded(g.constant(Array::new(&vae.frame.pixels(2).dims, &pixels)));
    let key = draw::constant(&g, Key::new(4));
    let loss = Loss::ELBO
        .from_images(&vae, &params, (images, key), &GrowOptions::default(), LossStep::default())
        .loss;
    let slopes: Vec<Sym<'_>> = gradient(loss, &values)
        .into_iter()
        .zip(&direction)
        .map(|(gradient, direction)| (gradient * g.constant(direction.clone())).sum_all())
        .collect();
    let slope = slopes.into_iter().reduce(|a, b| a + b).unwrap();
    let function = finish(&g, &[("loss".into(), loss), ("slope".into(), slope)]);
    let moved: Vec<Array> = weights(model, 0)
        .iter()
        .zip(&direction)
        .map(|(w, d)| {
            let sum = w
                .to_vec::<f32>()
                .iter()
                .zip(d.to_vec::<f32>())
                .map(|(w, d)| w + step * d)
                .collect::<Vec<f32>>();
            Array::new(w.dims(), &sum)
        })
        .collect();
    let results = evaluate_in(target, &function, &moved);
    [0, 1].map(|i| f64::from(results[i].to_vec::<f32>()[0]))
}

#[test]
fn losses_and_gradients_agree_in_all_forms_and_with_finite_differences() {
    for kind in Kind::ALL {
        // Each model with two of the sizes: all pairs take long.
        for (image, _) in IMAGES.into_iter().cycle().skip(kind as usize).take(2) {
            let model = model(kind, image);
            let results: Vec<[f64; 2]> =
                targets().into_iter().map(|target| loss_and_slope(&model, 0.0, target)).collect();
            let [loss, slope] = results[0];
            assert!(
                loss > 0.0 && loss.is_finite() && slope.abs() > 1e-3,
                "{kind} {image}: {loss}, slope {slope}"
            );
            for other in &results {
                assert!((other[0] - loss).abs() < 1e-4 * loss, "{kind} {image}: {results:?}");
                assert!(
                    (other[1] - slope).abs() < 1e-3 * slope.abs().max(0.01 * loss),
                    "{kind} {image}: {results:?}"
                );
            }
            let target = targets().pop().unwrap();
            let step = 0.01;
            let [above, below] = [step, -step].map(|step| loss_and_slope(&model, step, target)[0]);
            let measured = (above - below) / (2.0 * f64::from(step));
            let tolerance = 0.02 * slope.abs() + 1e-5 * loss / f64::from(step);
            assert!((measured - slope).abs() < tolerance, "{kind} {image}: {slope}, measured {measured}");
        }
    }
}

#[test]
fn grids_reach_what_the_doublings_need() {
    for (image, grid) in IMAGES {
        assert_eq!(model(Kind::Doubling, image).frame().grid, grid, "{image}");
        assert_eq!(model(Kind::NonDoubling, image).frame().grid, [image.height, image.width]);
        let baseline = model(Kind::Baseline, image).frame().grid;
        assert!(
            baseline[0] >= image.height && baseline.iter().all(|side| side.is_multiple_of(16)),
            "{baseline:?}"
        );
    }
    let default = |side: usize, kind| {
        let image = ImageShape { height: side, width: side, channels: 1 };
        Model::new(kind, None).unwrap().for_images(image, Likelihood::Logistic)
    };
    let first = |side| default(side, Kind::Doubling).first_sides();
    assert_eq!([8, 28, 64, 256].map(first), [[1, 1], [1, 1], [2, 2], [8, 8]]);
    assert_eq!(default(256, Kind::NonDoubling).start_side, 256);
    let report = Model::report(Kind::Doubling);
    assert_eq!(report.for_images(report.image, Likelihood::Bernoulli), report);
    assert_eq!(report.frame(), Frame::REPORT);
}

#[test]
fn models_that_do_not_fit_their_images_are_refused() {
    let report = Model::report(Kind::Doubling);
    let of = |height, width, channels, likelihood| {
        report.for_images(ImageShape { height, width, channels }, likelihood).check().unwrap_err().to_string()
    };
    assert!(of(7, 64, 3, Likelihood::Logistic).contains("8 to 256"));
    assert!(of(64, 257, 3, Likelihood::Logistic).contains("8 to 256"));
    assert!(of(64, 64, 2, Likelihood::Logistic).contains("RGB"));
    assert!(of(64, 64, 3, Likelihood::Bernoulli).contains("levels"));
    let wide = Model { components: 25, ..report.for_images(IMAGES[0].0, Likelihood::LogisticMixture) };
    assert!(wide.check().unwrap_err().to_string().contains("at least 300"), "{}", wide.check().unwrap_err());
    let deep = Model { doublings: 60, ..report };
    assert!(deep.check().unwrap_err().to_string().contains("at most 5"));
    let components = Model { components: 3, ..report };
    assert!(components.check().unwrap_err().to_string().contains("logistic-mixture"));
}

#[test]
fn cells_around_an_image_have_no_effect() {
    let scores = |frame: Frame, likelihood: Likelihood| {
        let model = Model { components: 2, ..Model::new(Kind::NonDoubling, Some(26)).unwrap() };
        let image = ImageShape { height: frame.height, width: frame.width, channels: frame.channels };
        let vae = model.for_images(image, likelihood).vae().with_frame(frame);
        let g = Graph::new("margin");
        let images = vae.padded(g.full(&frame.pixels(1), 1.0));
        let channels = vae.likelihood.outputs().channels;
        let dims = [1, frame.grid[0], frame.grid[1], channels];
        let inside =
            frame.pad(g.full(&Shape::new(DType::F32, &frame.pixels(1).dims), 1.0)).slice_axis(3, 0, 1);
        let inside = inside.gt(inside.scalar_like(0.5));
        let shared = g.constant(fill(&dims, 1, (-1.0, 1.0)));
        let named: Vec<(String, Sym<'_>)> = [2, 3]
            .map(|seed| {
                let other = g.constant(fill(&dims, seed, (-1.0, 1.0)));
                let shown = inside.convert(DType::F32);
                let mixed = shared * shown + other * (-shown + 1.0);
                (seed.to_string(), vae.log_prob(images, mixed))
            })
            .to_vec();
        evaluate(&finish(&g, &named), &[]).iter().map(|a| a.to_vec::<f32>()[0]).collect::<Vec<f32>>()
    };
    for (image, grid) in IMAGES {
        let frame = Frame { grid, ..Frame::new(image.height, image.width, image.channels) };
        let values = scores(frame, Likelihood::LogisticMixture);
        assert_eq!(values[0], values[1], "{image}");
    }
    // The report scores its margin.
    let values = scores(Frame::REPORT, Likelihood::Bernoulli);
    assert_ne!(values[0], values[1]);
}

#[test]
fn damage_reaches_every_part_of_a_grid_that_is_not_square() {
    let (rows, columns, side, n) = (24, 10, 5, 200);
    let g = Graph::new("damage");
    let ones = g.full(&Shape::f32(&[n, rows, columns, 1]), 1.0);
    let hurt = damage(ones, draw::split(draw::constant(&g, Key::new(9)), n), side);
    let cells = evaluate(&finish(&g, &[("hurt".into(), hurt)]), &[]).remove(0).to_vec::<f32>();
    let mut corners = std::collections::BTreeSet::new();
    for grid in cells.chunks_exact(rows * columns) {
        assert_eq!(grid.iter().filter(|cell| **cell == 0.0).count(), side * side);
        let first = grid.iter().position(|cell| *cell == 0.0).unwrap();
        corners.insert((first / columns, first % columns));
    }
    // As in the report's code, the last row and the last column of corners are not drawn.
    let most = |pick: fn(&(usize, usize)) -> usize| corners.iter().map(pick).max().unwrap();
    assert_eq!((most(|c| c.0), most(|c| c.1)), (rows - side - 1, columns - side - 1));
}
