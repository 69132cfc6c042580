//! Losses beyond the report's: the doubly reparameterised gradient of the importance-weighted bound, free bits, and the warm-up of
//! the KL's weight.

#[path = "common/cli.rs"]
mod cli;
mod common;

use common::{fill, finish, mesh};
use vnca::engine::array::Array;
use vnca::engine::ir::{Function, Graph, Sym, gradient};
use vnca::engine::lower::{Target, lower};
use vnca::engine::random::{Key, graph as draw};
use vnca::engine::shape::Shape;
use vnca::model::Bernoulli;
use vnca::model::Vae;
use vnca::model::decoder::{Canvas, Decoder, GrowOptions};
use vnca::model::elbo::{IwGradient, Latents, Loss, LossStep};
use vnca::model::encoder::ConvEncoder;
use vnca::model::objective;
use vnca::nn::params::{Leaf, Params, Role, layer, scoped};

const IMAGES: usize = 2;
const SAMPLES: usize = 4;
const LATENT: usize = 6;

/// Logits that are linear in the latent, and so close to each other that an image's importance weights are.
struct LinearDecoder;

impl Decoder for LinearDecoder {
    fn parameters(&self, latent: usize, canvas: &Canvas) -> Vec<Leaf> {
        let cells = canvas.frame.grid.iter().product();
        scoped("decoder", &[], layer("linear", Role::LinearWeight, &[cells, latent], &[0]).to_vec())
    }

    fn decode<'g>(
        &self,
        params: &Params<'g>,
        z: Sym<'g>,
        _keys: Sym<'g>,
        canvas: &Canvas,
        _options: &GrowOptions<'g>,
    ) -> Sym<'g> {
        let [rows, columns] = canvas.frame.grid;
        params.scope("decoder").linear("linear", z).reshape(&[z.dims()[0], rows, columns, 1])
    }
}

fn model() -> Vae {
    Vae::new("linear", LATENT, ConvEncoder { width: 2 }, LinearDecoder, Bernoulli)
}

/// Returns random parameters.
fn weights() -> Vec<Array> {
    let leaves = model().leaves();
    leaves.iter().enumerate().map(|(i, l)| fill(&l.device_shape(), i as u64, (-0.1, 0.1))).collect()
}

/// Builds a computation over the model's parameters, a batch of images and its key.
fn function(
    build: impl for<'g> FnOnce(&Params<'g>, &[Sym<'g>], Sym<'g>, Sym<'g>) -> Vec<Sym<'g>>,
) -> Function {
    let (vae, g) = (model(), Graph::new("loss"));
    let values = Params::inputs(&g, &vae.leaves(), "");
    let key = g.input("key", &Shape::u32(&[2]));
    let pixels: Vec<u8> = Key::new(200).bernoulli(IMAGES * 784, |_| 0.13).into_iter().map(u8::from).collect();
    let images = vae.padded(g.constant(Array::new(&[IMAGES, 28, 28], &pixels)));
    let made = build(&Params::new(&vae.leaves(), &values), &values, images, key);
    let named: Vec<(String, Sym<'_>)> = made.iter().enumerate().map(|(i, s)| (i.to_string(), *s)).collect();
    finish(&g, &named)
}

/// Returns a function that runs a computation with parameters and a key, compiled once.
fn runner(function: &Function) -> impl Fn(&[Array], u64) -> Vec<Vec<f64>> + use<> {
    let mesh = mesh(1);
    let executable = mesh.compile(lower(function, Target::Cpu, 1).expect("lowers")).expect("compiles");
    move |params, seed| {
        let key = Array::new(&[2], &Key::new(seed).0);
        let inputs = params.iter().chain([&key]).map(|a| mesh.replicate(a).expect("uploads").into());
        let results = executable.call(inputs.collect::<Vec<_>>()).expect("runs");
        let values = |b: &vnca::engine::runtime::Buffers| b.get(0).expect("downloads").to_vec::<f32>();
        results.iter().map(|b| values(b).into_iter().map(f64::from).collect()).collect()
    }
}

fn loss(iw_gradient: IwGradient, beta: f64) -> Loss {
    Loss { samples: SAMPLES, iw_gradient, beta, ..Loss::ELBO }
}

/// Builds the gradients of all parameters.
fn gradients(of: Loss) -> Function {
    function(|params, values, images, key| {
        let options = GrowOptions::default();
        let outcome = of.from_images(&model(), params, (images, key), &options, LossStep::default());
        outcome.gradient.unwrap_or_else(|| gradient(outcome.loss, values))
    })
}

/// Returns a random direction in the space of the parameters, and its part for the encoder's.
fn direction() -> Vec<(bool, Vec<f32>)> {
    let leaves = model().leaves();
    let part = |(i, leaf): (usize, &Leaf)| {
        let values = fill(&leaf.device_shape(), 1000 + i as u64, (-1.0, 1.0)).to_vec();
        (leaf.name.starts_with("encoder."), values)
    };
    leaves.iter().enumerate().map(part).collect()
}

/// Returns the derivative along [`direction`] of the encoder's parameters, or of the decoder's.
fn slope(gradients: &[Vec<f64>], encoder: bool) -> f64 {
    let parts = gradients.iter().zip(direction()).filter(|(_, (of_encoder, _))| *of_encoder == encoder);
    parts.flat_map(|(g, (_, d))| g.iter().zip(d).map(|(g, d)| g * f64::from(d)).collect::<Vec<_>>()).sum()
}

/// Log-likelihoods, latents, and mean and log-variance of the posterior.
fn terms() -> Function {
    function(|params, _, images, key| {
        let vae = model();
        let (eps, keys) = objective::noise(draw::split(key, IMAGES), SAMPLES, LATENT);
        let latents = Latents::from_images(&vae, params, images, eps);
        let rows = IMAGES * SAMPLES;
        let keys = draw::split(keys, SAMPLES).reshape(&[rows, 2]);
        let outputs = vae.decode(params, latents.z.reshape(&[rows, LATENT]), keys);
        let d = images.dims();
        let tiled = images.broadcast_in_dim(&[d[0], SAMPLES, d[1], d[2], d[3]], &[0, 2, 3, 4]);
        let tiled = tiled.reshape(&[rows, d[1], d[2], d[3]]);
        vec![vae.log_prob(tiled, outputs), latents.z, latents.mean, latents.logvar]
    })
}

/// The logarithms of the importance weights as functions of the latents alone: the posterior is that of `fixed`.
fn log_weights(terms: &[Vec<f64>], fixed: &[Vec<f64>], beta: f64) -> Vec<f64> {
    let of_sample = |row: usize| {
        let density = |j: usize| {
            let (z, at) = (terms[1][row * LATENT + j], row / SAMPLES * LATENT + j);
            let (mean, logvar) = (fixed[2][at], fixed[3][at]);
            (logvar + (z - mean).powi(2) * (-logvar).exp() - z * z) / 2.0
        };
        terms[0][row] + beta * (0..LATENT).map(density).sum::<f64>()
    };
    (0..IMAGES * SAMPLES).map(of_sample).collect()
}

fn normalised(log_weights: &[f64]) -> Vec<f64> {
    let of_image = |image: &[f64]| {
        let highest = image.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shares: Vec<f64> = image.iter().map(|w| (w - highest).exp()).collect();
        let sum: f64 = shares.iter().sum();
        shares.into_iter().map(|s| s / sum).collect::<Vec<_>>()
    };
    log_weights.chunks_exact(SAMPLES).flat_map(of_image).collect()
}

/// The doubly reparameterised gradient of the encoder is that of Σ w (1 − b (1 − w)) log v, with weights w and a posterior in v that
/// do not move with the parameters. Central differences of this sum, in f64 on the host, do not use the program's gradients.
#[test]
fn the_doubly_reparameterised_gradient_equals_differences_of_its_surrogate() {
    let evaluate = runner(&terms());
    for beta in [1.0, 0.4] {
        let weights_of = weights();
        let fixed = evaluate(&weights_of, 7);
        let shares = normalised(&log_weights(&fixed, &fixed, beta));
        assert!(shares.iter().any(|w| (0.02..0.98).contains(w)), "the weights are all 0 or 1: {shares:?}");
        let surrogate = |step: f32| -> f64 {
            let moved = |(array, (encoder, d)): (&Array, (bool, Vec<f32>))| {
                let moved = array.to_vec::<f32>().into_iter().zip(d);
                let values = moved.map(|(v, d)| if encoder { v + step * d } else { v });
                Array::new(array.dims(), &values.collect::<Vec<f32>>())
            };
            let params: Vec<Array> = weights_of.iter().zip(direction()).map(moved).collect();
            let log_weights = log_weights(&evaluate(&params, 7), &fixed, beta);
            let term = |(w, v): (&f64, f64)| w * (1.0 - beta * (1.0 - w)) * v;
            -shares.iter().zip(log_weights).map(term).sum::<f64>() / IMAGES as f64
        };
        let h = 4e-3;
        let expected = (surrogate(h) - surrogate(-h)) / (2.0 * f64::from(h));
        let got = runner(&gradients(loss(IwGradient::Dreg, beta)))(&weights_of, 7);
        let plain = runner(&gradients(loss(IwGradient::Plain, beta)))(&weights_of, 7);
        let encoder = slope(&got, true);
        assert!((encoder - expected).abs() < 0.01 * expected.abs(), "beta {beta}: {encoder}, {expected}");
        assert!((encoder - slope(&plain, true)).abs() > 0.05 * encoder.abs(), "it is not the plain one");
        // The decoder's gradient is the bound's derivative.
        let (decoder, of_bound) = (slope(&got, false), slope(&plain, false));
        assert!((decoder - of_bound).abs() < 1e-4 * of_bound.abs(), "beta {beta}: {decoder}, {of_bound}");
    }
}

/// Both estimators have the derivative of the expected bound as their mean. The doubly reparameterised one has less noise.
#[test]
fn both_estimators_have_the_same_mean_and_dreg_has_less_noise() {
    let weights = weights();
    for beta in [1.0, 0.5] {
        let [plain, dreg] = [IwGradient::Plain, IwGradient::Dreg].map(|g| runner(&gradients(loss(g, beta))));
        let slopes: Vec<[f64; 2]> = (0..1200)
            .map(|seed| [&plain(&weights, seed), &dreg(&weights, seed)].map(|of| slope(of, true)))
            .collect();
        let n = slopes.len() as f64;
        let moments = |of: &dyn Fn(&[f64; 2]) -> f64| {
            let mean = slopes.iter().map(of).sum::<f64>() / n;
            (mean, slopes.iter().map(|s| (of(s) - mean).powi(2)).sum::<f64>() / (n - 1.0))
        };
        let (difference, variance) = moments(&|s| s[1] - s[0]);
        let (mean, noise_of_dreg) = moments(&|s| s[1]);
        let (_, noise_of_plain) = moments(&|s| s[0]);
        let error = (variance / n).sqrt();
        assert!(difference.abs() < 4.0 * error, "beta {beta}: {difference} with a standard error of {error}");
        // The comparison would see a fifth of the gradient.
        assert!(
            error < 0.05 * mean.abs(),
            "beta {beta}: the error {error} is too large for a mean of {mean}"
        );
        assert!(noise_of_dreg < noise_of_plain, "beta {beta}: {noise_of_dreg}, {noise_of_plain}");
    }
}

#[test]
fn free_bits_hold_the_batch_mean_of_each_dimension_over_all_replicas() {
    const N: usize = 4;
    const LEAST: f64 = 0.3;
    let build = |n: usize, replicas: usize| {
        let g = Graph::new("free_bits");
        let [mean, logvar] = ["mean", "logvar"].map(|name| g.input(name, &Shape::f32(&[n, LATENT])));
        let kl = objective::kl_with_free_bits(mean, logvar, LEAST, replicas).mean(&[0]);
        let slopes = gradient(kl, &[mean]);
        finish(&g, &[("kl".into(), kl), ("slopes".into(), slopes[0])])
    };
    // Columns with small and with large distances from the prior.
    let wide = |j: usize| if j.is_multiple_of(2) { 0.4f32 } else { 2.0 };
    let scaled = |seed: u64| -> Vec<f32> {
        let values = fill(&[N, LATENT], seed, (-1.0, 1.0)).to_vec::<f32>();
        values.iter().enumerate().map(|(i, v)| v * wide(i % LATENT)).collect()
    };
    let (mean, logvar) = (scaled(1), scaled(2));
    let of_dimension = |j: usize| {
        let at = |i: usize| (f64::from(mean[i * LATENT + j]), f64::from(logvar[i * LATENT + j]));
        (0..N).map(at).map(|(m, v)| (m * m + v.exp() - v - 1.0) / 2.0).sum::<f64>() / N as f64
    };
    let expected: f64 = (0..LATENT).map(|j| of_dimension(j).max(LEAST)).sum();
    let free: Vec<usize> = (0..LATENT).filter(|j| of_dimension(*j) < LEAST).collect();
    assert!(!free.is_empty() && free.len() < LATENT, "some dimensions count and some do not: {free:?}");

    for replicas in [1, 2] {
        let each = N / replicas;
        let rows: Vec<Vec<Array>> = (0..replicas)
            .map(|r| {
                let part = r * each * LATENT..(r + 1) * each * LATENT;
                [&mean, &logvar].map(|all| Array::new(&[each, LATENT], &all[part.clone()])).to_vec()
            })
            .collect();
        let results = common::run(&build(each, replicas), Target::Cpu, &rows);
        let kl = results.iter().map(|r| f64::from(r[0].to_vec::<f32>()[0])).sum::<f64>() / replicas as f64;
        assert!((kl - expected).abs() < 1e-5 * expected, "{replicas} replicas: {kl}, expected {expected}");
        for (row, slopes) in results.iter().enumerate() {
            for (i, slope) in slopes[1].to_vec::<f32>().into_iter().enumerate() {
                let counts = !free.contains(&(i % LATENT));
                let whole = if counts { mean[row * each * LATENT + i] / each as f32 } else { 0.0 };
                assert!((slope - whole).abs() < 1e-6, "{replicas} replicas, {i}: {slope}, expected {whole}");
            }
        }
    }
}

/// With a learning rate that changes nothing, equal keys give the terms of the loss by themselves.
#[test]
fn the_weight_of_the_kl_rises_over_its_steps_also_after_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    let small = "--encoder-width 2 --nca-steps 1 --learning-rate 1e-30 --eval-every 0 --checkpoint-every 2";
    let pooled = "--model nondoubling --pool-size 16 --nca-steps-min 1 --nca-steps-max 3";
    for model in [
        "--model doubling --doublings 1",
        pooled,
        "--model doubling --doublings 1 --train-samples 3 --iw-gradient dreg",
    ] {
        let run = folder.path().join("run");
        let losses = |more: &str, stop: bool| -> Vec<f64> {
            let first = if stop { "2" } else { "6" };
            let options = format!("{model} {small} --steps {first} {more}");
            cli::succeed(folder.path(), &cli::training(&data, &options));
            if stop {
                cli::succeed(folder.path(), &["train", "--resume", "--out", "run", "--steps", "6"]);
            }
            let found = cli::metrics(&run).iter().map(|line| line["loss"].as_f64().unwrap()).collect();
            std::fs::remove_dir_all(&run).unwrap();
            found
        };
        let (without, with) = (losses("--beta 0", false), losses("--beta 2", false));
        let rising = losses("--beta 2 --kl-warmup 4", true);
        for (step, ((without, with), rising)) in without.iter().zip(with).zip(rising).enumerate() {
            let share = ((step + 1) as f64 / 4.0).min(1.0);
            let many = model.contains("train-samples");
            let expected = without + share * (with - without);
            // The importance-weighted bound is not linear in the weight, but equal at its ends.
            let close = (rising - expected).abs() < 2e-6 * expected.abs();
            assert!(close || many && share < 1.0, "{model}, step {}: {rising}, {expected}", step + 1);
            assert!(!many || share == 1.0 || (rising - with).abs() > 1e-3, "{model}: {rising}, {with}");
        }
    }
}

#[test]
fn options_that_do_not_fit_each_other_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    for (options, flag) in [
        ("--iw-gradient dreg", "--iw-gradient dreg"),
        ("--iw-gradient dreg --train-samples 2 --many-samples report", "--iw-gradient dreg"),
        ("--free-bits 0.1 --train-samples 2", "--free-bits is 0.1"),
        ("--free-bits -1", "--free-bits is -1"),
        ("--free-bits nan", "--free-bits is NaN"),
    ] {
        let error = cli::fail(folder.path(), &cli::training(&data, &format!("--steps 1 {options}")), 2);
        assert!(error.contains(flag), "{options}: {error}");
    }
}
