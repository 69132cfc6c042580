//! Likelihoods of 256 levels and of bits drawn in each step: against formulas in f64, PixelCNN++'s numbers, and their own
//! draws.

mod common;

use common::{evaluate, fill, finish};
use rand::RngExt;
use vnca::engine::array::Array;
use vnca::engine::ir::{Graph, Sym, gradient};
use vnca::engine::random::Key;
use vnca::engine::shape::{DType, Shape};
use vnca::error::{Kind, kind};
use vnca::model::{Bernoulli, DynamicBernoulli, Likelihood, LogisticMixture};

const LEVELS: usize = 256;
const GREY: LogisticMixture = LogisticMixture { components: 2, channels: 1 };
const COLOUR: LogisticMixture = LogisticMixture { components: 3, channels: 3 };
const WITH_OPACITY: LogisticMixture = LogisticMixture { components: 2, channels: 4 };
const ALL: [LogisticMixture; 3] = [GREY, COLOUR, WITH_OPACITY];

fn width(mixture: LogisticMixture) -> usize {
    mixture.outputs().channels
}

/// A component's parameters for one pixel, in f64.
struct Component {
    logit: f64,
    means: Vec<f64>,
    log_scales: Vec<f64>,
    /// Green from red, blue from red, blue from green.
    coefficients: [f64; 3],
}

impl Component {
    /// Reads a pixel's outputs.
    fn all(mixture: LogisticMixture, outputs: &[f64]) -> Vec<Component> {
        let (k, c) = (mixture.components, mixture.channels);
        let at = |group: usize, j: usize| outputs[group * k + j];
        (0..k)
            .map(|j| Component {
                logit: at(0, j),
                means: (0..c).map(|i| at(1 + i, j)).collect(),
                log_scales: (0..c).map(|i| at(1 + c + i, j)).collect(),
                coefficients: std::array::from_fn(|i| if c < 3 { 0.0 } else { at(1 + 2 * c + i, j).tanh() }),
            })
            .collect()
    }

    /// Returns the mean of a channel, given the levels of the channels before it.
    fn mean(&self, channel: usize, levels: &[u8]) -> f64 {
        let value = |i: usize| f64::from(levels[i]) / 127.5 - 1.0;
        let [green_red, blue_red, blue_green] = self.coefficients;
        self.means[channel]
            + match channel {
                1 => green_red * value(0),
                2 => blue_red * value(0) + blue_green * value(1),
                _ => 0.0,
            }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn log_sum_exp(values: &[f64]) -> f64 {
    let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    highest + values.iter().map(|v| (v - highest).exp()).sum::<f64>().ln()
}

/// The log-probability of a level, given mean and log-scale.
type LogLevel = fn(u8, f64, f64) -> f64;

/// The difference of two sigmoids, on the side on which both are small.
fn exact(level: u8, mean: f64, log_scale: f64) -> f64 {
    let rate = (-log_scale).exp();
    let centred = f64::from(level) / 127.5 - 1.0 - mean;
    let (upper, lower) = (rate * (centred + 1.0 / 255.0), rate * (centred - 1.0 / 255.0));
    match level {
        0 => -softplus(-upper),
        255 => -softplus(lower),
        _ if centred > 0.0 => (sigmoid(-lower) - sigmoid(-upper)).ln(),
        _ => (sigmoid(upper) - sigmoid(lower)).ln(),
    }
}

/// The formula of PixelCNN++'s code with its thresholds.
fn of_the_papers_code(level: u8, mean: f64, log_scale: f64) -> f64 {
    let (x, rate) = (f64::from(level) / 127.5 - 1.0, (-log_scale.max(-7.0)).exp());
    let centred = x - mean;
    let (plus, minus) = (rate * (centred + 1.0 / 255.0), rate * (centred - 1.0 / 255.0));
    let delta = sigmoid(plus) - sigmoid(minus);
    if x < -0.999 {
        plus - softplus(plus)
    } else if x > 0.999 {
        -softplus(minus)
    } else if delta > 1e-5 {
        delta.max(1e-12).ln()
    } else {
        rate * centred - log_scale - 2.0 * softplus(rate * centred) - 127.5f64.ln()
    }
}

/// Returns the log-probability of a pixel.
fn expected(mixture: LogisticMixture, levels: &[u8], outputs: &[f64], log_level: LogLevel) -> f64 {
    let components = Component::all(mixture, outputs);
    let weights: Vec<f64> = components.iter().map(|c| c.logit).collect();
    let counts = |i: usize| i == 3 || levels.get(3) != Some(&0);
    let joint: Vec<f64> = (components.iter().zip(&weights))
        .map(|(c, w)| {
            let channels = (0..mixture.channels).filter(|i| counts(*i));
            w + channels.map(|i| log_level(levels[i], c.mean(i, levels), c.log_scales[i])).sum::<f64>()
        })
        .collect();
    log_sum_exp(&joint) - log_sum_exp(&weights)
}

/// Runs a function of images (n, h, w, c) from u8 levels and of outputs.
fn run(
    mixture: LogisticMixture,
    [n, h, w]: [usize; 3],
    levels: &[u8],
    outputs: &[f32],
    build: impl for<'g> Fn(Sym<'g>, Sym<'g>) -> Vec<Sym<'g>>,
) -> Vec<Array> {
    let g = Graph::new("likelihood");
    let pixels = g.input("pixels", &Shape::new(DType::U8, &[n, h, w, mixture.channels]));
    let dims = [n, h, w, width(mixture)];
    let made = build(mixture.observe(pixels), g.input("outputs", &Shape::f32(&dims)));
    let named: Vec<(String, Sym<'_>)> = made.iter().enumerate().map(|(i, s)| (i.to_string(), *s)).collect();
    let levels = Array::new(&[n, h, w, mixture.channels], levels);
    evaluate(&finish(&g, &named), &[levels, Array::new(&dims, outputs)])
}

/// Returns the log-probability of each pixel.
fn log_probs(mixture: LogisticMixture, levels: &[u8], outputs: &[f32]) -> Vec<f64> {
    let n = levels.len() / mixture.channels;
    let results = run(mixture, [n, 1, 1], levels, outputs, |x, o| vec![mixture.log_prob(x, o)]);
    results[0].to_vec::<f32>().into_iter().map(f64::from).collect()
}

/// Returns random pixels, a quarter of whose levels are 0 and a quarter 255, and outputs.
fn random(mixture: LogisticMixture, n: usize, seed: u64) -> (Vec<u8>, Vec<f32>) {
    let mut rng = Key::new(seed).rng();
    let (k, c) = (mixture.components, mixture.channels);
    let levels = (0..n * c)
        .map(|_| match rng.random_range(0..4) {
            0 => 0,
            1 => 255,
            _ => rng.random_range(0..=255),
        })
        .collect();
    let ranges = (0..width(mixture)).map(|i| match i / k {
        0 => (-4.0, 4.0),
        group if group <= c => (-1.5, 1.5),
        group if group <= 2 * c => (-5.0, 3.0),
        _ => (-2.0, 2.0),
    });
    let ranges: Vec<(f32, f32)> = ranges.collect();
    let outputs = (0..n).flat_map(|_| ranges.iter().map(|r| rng.random_range(r.0..r.1)).collect::<Vec<_>>());
    (levels, outputs.collect())
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

#[test]
fn log_probabilities_are_exact_up_to_rounding() {
    for mixture in ALL {
        let n = 4000;
        let (levels, outputs) = random(mixture, n, 3);
        let got = log_probs(mixture, &levels, &outputs);
        let (mut most, mut relative, mut of_code) = (0f64, 0f64, 0f64);
        let pixels = levels.chunks(mixture.channels).zip(outputs.chunks(width(mixture)));
        for (got, (levels, outputs)) in got.iter().zip(pixels) {
            let expected = [exact, of_the_papers_code].map(|f| expected(mixture, levels, &wide(outputs), f));
            let error = (got - expected[0]).abs();
            most = most.max(error);
            relative = relative.max(error / expected[0].abs().max(1.0));
            // The code's approximation is worst at the smallest scale.
            of_code = of_code.max((got - expected[1]).abs() / mixture.channels as f64);
        }
        println!(
            "{mixture:?}: error {most:.1e}, relative {relative:.1e}; from the paper's code {of_code:.1e}"
        );
        assert!(relative < 1e-5, "{mixture:?}: {relative}");
        let rate = 5f64.exp() * 2.0 / 255.0;
        let approximation = ((rate / 2.0).sinh() / (rate / 2.0)).ln();
        assert!(of_code < approximation + 1e-4, "{mixture:?}: {of_code}, not {approximation}");
    }
}

#[test]
fn log_probabilities_are_those_of_pixelcnn() {
    let path = format!("{}/tests/goldens/logistic_mixture.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("the golden file is there");
    let groups: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    for group in groups.as_array().unwrap() {
        let number = |name: &str| group[name].as_u64().unwrap() as usize;
        let mixture = LogisticMixture { components: number("components"), channels: number("channels") };
        let pixels = group["pixels"].as_array().unwrap();
        let list = |pixel: &serde_json::Value, name: &str| -> Vec<f64> {
            pixel[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
        };
        let levels: Vec<u8> =
            pixels.iter().flat_map(|p| list(p, "levels")).map(|level| level as u8).collect();
        let outputs: Vec<f32> = pixels.iter().flat_map(|p| list(p, "outputs")).map(|v| v as f32).collect();
        for (pixel, got) in pixels.iter().zip(log_probs(mixture, &levels, &outputs)) {
            let expected = pixel["log_prob"].as_f64().unwrap();
            // What the approximation differs by for each channel at a log-scale of -5.
            let rough = pixel["approximate"].as_bool().unwrap();
            let tolerance = if rough { 0.06 * mixture.channels as f64 } else { 2e-5 };
            assert!((got - expected).abs() < tolerance, "{mixture:?}: {got}, not {expected}: {pixel}");
        }
    }
}

#[test]
fn an_image_has_the_sum_of_its_pixels() {
    for mixture in ALL {
        let (levels, outputs) = random(mixture, 12, 4);
        let each = log_probs(mixture, &levels, &outputs);
        let images = run(mixture, [2, 2, 3], &levels, &outputs, |x, o| vec![mixture.log_prob(x, o)]);
        for (image, pixels) in images[0].to_vec::<f32>().iter().zip(each.chunks(6)) {
            let sum: f64 = pixels.iter().sum();
            assert!((f64::from(*image) - sum).abs() < 1e-5 * sum.abs());
        }
    }
}

/// Returns the outputs of a pixel whose components are equal, apart from one channel's means and log-scales. Each other channel
/// has a certain level: the lowest one of colours, and the highest one of opacity.
fn certain_but(mixture: LogisticMixture, channel: usize, means: &[f32], log_scales: &[f32]) -> Vec<f32> {
    let (k, c) = (mixture.components, mixture.channels);
    let mut outputs: Vec<f32> = (0..k).map(|j| j as f32 * 0.7).collect();
    for i in 0..c {
        let certain = if i == 3 { 900.0 } else { -900.0 };
        outputs.extend((0..k).map(|j| if i == channel { means[j % means.len()] } else { certain }));
    }
    for i in 0..c {
        outputs.extend((0..k).map(|j| if i == channel { log_scales[j % log_scales.len()] } else { -7.0 }));
    }
    outputs.resize(width(mixture), 0.4);
    outputs
}

#[test]
fn probabilities_of_all_levels_add_up_to_one() {
    let means = [-1e30, -1.5, -1.0, -0.9997, -0.5, -1.0 / 255.0, 0.0, 0.3003, 0.999, 1.0, 2.0, 1e30];
    let log_scales = [-1e30, -7.0, -6.5, -5.0, -3.0, -1.0, 0.0, 2.0, 7.0, 1e30];
    for mixture in ALL {
        for channel in 0..mixture.channels {
            let (mut levels, mut outputs) = (Vec::new(), Vec::new());
            for mean in means {
                for log_scale in log_scales {
                    let parameters =
                        certain_but(mixture, channel, &[mean, 0.1], &[log_scale, log_scale, -4.0]);
                    for level in 0..=255u8 {
                        levels.extend((0..mixture.channels).map(|i| match i {
                            _ if i == channel => level,
                            3 => 255,
                            _ => 0,
                        }));
                        outputs.extend_from_slice(&parameters);
                    }
                }
            }
            let all = log_probs(mixture, &levels, &outputs);
            let off = all.chunks(LEVELS).map(|p| (p.iter().map(|p| p.exp()).sum::<f64>() - 1.0).abs());
            let most = off.fold(0.0, f64::max);
            println!("{mixture:?}, channel {channel}: {most:.1e}");
            assert!(most < 1e-5, "{mixture:?}, channel {channel}: {most}");
        }
    }
}

#[test]
fn probabilities_of_opacity_and_red_add_up_to_one() {
    let k = WITH_OPACITY.components;
    for (red, opacity) in [([0.2f32, -0.6], [-0.9f32, 0.5]), ([-1.0, 0.9], [-1.1, -1.3])] {
        let mut parameters = certain_but(WITH_OPACITY, 0, &red, &[-2.0, -4.0]);
        parameters[4 * k..5 * k].copy_from_slice(&opacity);
        parameters[8 * k..9 * k].copy_from_slice(&[-1.5, -1.0]);
        let pairs = (0..=255u8).flat_map(|a| (0..=255u8).map(move |r| (a, r)));
        // An opacity of 0 comes with one colour only.
        let pairs: Vec<(u8, u8)> = pairs.filter(|(a, r)| *a > 0 || *r == 0).collect();
        let levels: Vec<u8> = pairs.iter().flat_map(|(a, r)| [*r, 0, 0, *a]).collect();
        let probabilities = log_probs(WITH_OPACITY, &levels, &parameters.repeat(pairs.len()));
        let sum: f64 = probabilities.iter().map(|p| p.exp()).sum();
        println!(
            "sum over opacity and red: 1 + {:.1e}, without opacity {:.3}",
            sum - 1.0,
            probabilities[0].exp()
        );
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    for mixture in ALL {
        // Pixels of random outputs, and pixels near the middle of outputs of zero, where a sigmoid of 0 occurs.
        let (mut levels, mut outputs) = random(mixture, 60, 5);
        levels.extend([127, 128].repeat(2 * mixture.channels));
        outputs.resize(64 * width(mixture), 0.0);
        let results = run(mixture, [64, 1, 1], &levels, &outputs, |x, o| {
            gradient(mixture.log_prob(x, o).sum_all(), &[o])
        });
        let direction = wide(&fill(&[outputs.len()], 6, (-1.0, 1.0)).to_vec::<f32>());
        let step = 1e-6;
        let along = wide(&results[0].to_vec::<f32>());
        let (c, width) = (mixture.channels, width(mixture));
        for (i, levels) in levels.chunks(c).enumerate() {
            let range = i * width..(i + 1) * width;
            let got: f64 = range.clone().map(|j| along[j] * direction[j]).sum();
            let at = |by: f64| {
                let moved: Vec<f64> =
                    range.clone().map(|j| f64::from(outputs[j]) + by * direction[j]).collect();
                expected(mixture, levels, &moved, exact)
            };
            let expected = (at(step) - at(-step)) / (2.0 * step);
            let close = (got - expected).abs() < 1e-4 * expected.abs().max(1.0);
            assert!(close, "{mixture:?}, pixel {i}: gradient {got}, central difference {expected}");
        }
    }
}

/// Returns images of extreme outputs, all of which bf16 can hold.
fn extremes(mixture: LogisticMixture, n: usize) -> (Vec<u8>, Vec<f32>) {
    let greatest = f32::from_bits(0x7F7F_0000);
    let values = [0.0, 1.0, -1.0, 88.0, -88.0, 1e4, -1e4, 1e30, -1e30, greatest, -greatest];
    let values = values.map(|v: f32| f32::from_bits(v.to_bits() & 0xFFFF_0000));
    let mut rng = Key::new(7).rng();
    let outputs = (0..n * width(mixture)).map(|_| values[rng.random_range(0..values.len())]).collect();
    (random(mixture, n, 8).0, outputs)
}

#[test]
fn extreme_outputs_give_finite_numbers() {
    for mixture in ALL {
        let n = 3000;
        let (levels, outputs) = extremes(mixture, n);
        let c = mixture.channels;
        for dtype in [DType::F32, DType::Bf16] {
            let g = Graph::new("extremes");
            let pixels = g.input("pixels", &Shape::new(DType::U8, &[n, 1, 1, c]));
            let given = g.input("outputs", &Shape::new(dtype, &[n, 1, 1, width(mixture)]));
            let keys = g.input("keys", &Shape::u32(&[n, 2]));
            let log_prob = mixture.log_prob(mixture.observe(pixels), given);
            let slope = gradient(log_prob.sum_all(), &[given])[0].convert(DType::F32);
            let made =
                [log_prob, slope, mixture.mean(given), mixture.draw(given, keys), mixture.observe(pixels)];
            let named: Vec<(String, Sym<'_>)> =
                made.iter().enumerate().map(|(i, s)| (i.to_string(), *s)).collect();
            let array = Array::new(&[n, 1, 1, width(mixture)], &outputs);
            let array = match dtype {
                DType::Bf16 => {
                    let halves = outputs.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_ne_bytes());
                    Array::from_bytes(array.shape().with_dtype(dtype), halves.collect()).unwrap()
                }
                _ => array,
            };
            let words: Vec<u32> = (0..2 * n as u32).collect();
            let inputs = [Array::new(&[n, 1, 1, c], &levels), array, Array::new(&[n, 2], &words)];
            let results: Vec<Vec<f32>> =
                evaluate(&finish(&g, &named), &inputs).iter().map(Array::to_vec::<f32>).collect();
            for (name, values) in ["log p", "gradient", "mean", "draw"].iter().zip(&results) {
                assert!(values.iter().all(|v| v.is_finite()), "{mixture:?} {dtype}: {name}");
            }
            assert!(results[0].iter().all(|p| *p <= 1e-5));
            assert!(results[1].iter().any(|v| *v != 0.0));
            for values in &results[2..4] {
                assert!(values.iter().all(|v| (-1.0..=1.0).contains(v)));
                let below = |pixel: &[f32]| pixel.iter().all(|v| *v <= pixel[3]);
                assert!(c < 4 || values.chunks(4).all(below), "colours are at most the opacity");
            }
            // Draws are values of levels.
            for value in &results[3] {
                let level = (value + 1.0) * 127.5;
                assert!((level - level.round()).abs() < 1e-4, "{value} is no level");
            }
        }
    }
}

/// Returns the levels of many draws from the same outputs, and the mean of each channel.
fn draws(mixture: LogisticMixture, outputs: &[f32], side: usize) -> (Vec<u8>, Vec<f32>) {
    let g = Graph::new("draws");
    let given = g.input("outputs", &Shape::f32(&[1, 1, 1, width(mixture)]));
    let key = g.input("keys", &Shape::u32(&[1, 2]));
    let drawn = mixture.draw(given.broadcast_to(&[1, side, side, width(mixture)]), key);
    let named = [("draws".to_string(), mixture.shown(drawn)), ("mean".into(), mixture.mean(given))];
    let inputs = [Array::new(&[1, 1, 1, width(mixture)], outputs), Array::new(&[1, 2], &Key::new(9).0)];
    let results = evaluate(&finish(&g, &named), &inputs);
    let levels = results[0].to_vec::<f32>().iter().map(|v| (v * 255.0).round() as u8).collect();
    (levels, results[1].to_vec())
}

/// Returns how many standard deviations the chi-square statistic of counts is above its mean, if all are equally probable.
fn excess(counts: &[usize]) -> f64 {
    let expected = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    let statistic: f64 = counts.iter().map(|c| (*c as f64 - expected).powi(2) / expected).sum();
    let freedom = counts.len() as f64 - 1.0;
    (statistic - freedom) / (2.0 * freedom).sqrt()
}

/// Each channel is mapped by the cumulative distribution given the channels drawn before it, which makes it uniform.
#[test]
fn draws_have_the_distribution() {
    let scales = |count: usize, of: [f32; 2]| (0..count).map(move |i| of[i % 2]);
    let cases = [
        (GREY, vec![0.3, -0.4, -0.7, 0.5]),
        (COLOUR, vec![0.3, -0.4, 0.1, -0.7, 0.5, 0.0, 0.2, -0.3, 0.6, 0.9, -0.2, 0.1]),
        (WITH_OPACITY, vec![0.3, -0.4, -0.5, 0.1, 0.2, -0.3, -0.1, 0.3, -0.3, 0.6]),
    ];
    for (mixture, mut outputs) in cases {
        let (k, c) = (mixture.components, mixture.channels);
        outputs.extend(scales(k * c, [-2.0, -1.2]));
        outputs.extend(scales(width(mixture) - outputs.len(), [0.8, -0.6]));
        let components = Component::all(mixture, &wide(&outputs));
        let (levels, _) = draws(mixture, &outputs, 200);
        let mut rng = Key::new(10).rng();
        let order: &[usize] = if c == 4 { &[3, 0, 1, 2] } else { &[0, 1, 2][..c] };
        const BINS: usize = 40;
        let mut counts = vec![[0; BINS]; c];
        for pixel in levels.chunks(c) {
            let mut weights: Vec<f64> = components.iter().map(|c| c.logit.exp()).collect();
            for &i in order {
                let most = if c == 4 && i < 3 { pixel[3] } else { 255 };
                assert!(pixel[i] <= most, "colours are at most the opacity");
                // The cumulative probability up to a border, given the component.
                let up_to = |c: &Component, border: f64| {
                    sigmoid((border / 127.5 - 1.0 - c.mean(i, pixel)) * (-c.log_scales[i]).exp())
                };
                let level = f64::from(pixel[i]);
                let below = |c: &Component| if pixel[i] == 0 { 0.0 } else { up_to(c, level - 0.5) };
                let up_to = |c: &Component| if pixel[i] == most { 1.0 } else { up_to(c, level + 0.5) };
                let total: f64 = weights.iter().sum();
                let mixed = |f: &dyn Fn(&Component) -> f64| {
                    components.iter().zip(&weights).map(|(c, w)| w * f(c)).sum::<f64>() / total
                };
                let (low, high) = (mixed(&below), mixed(&up_to));
                let uniform = low + (high - low) * rng.random_range(0.0..1.0);
                counts[i][((uniform * BINS as f64) as usize).min(BINS - 1)] += 1;
                for (c, w) in components.iter().zip(&mut weights) {
                    *w *= up_to(c) - below(c);
                }
            }
        }
        for (i, counts) in counts.iter().enumerate() {
            println!("{mixture:?}, channel {i}: {:.2} standard deviations", excess(counts));
            assert!(excess(counts) < 4.0, "{mixture:?}, channel {i}: {counts:?}");
        }
    }
}

#[test]
fn the_mean_is_that_of_many_draws() {
    let cases = [
        (GREY, vec![0.5, 0.0, -0.2, 0.3]),
        (COLOUR, vec![0.3, -0.4, 0.1, -0.7, 0.5, 0.0, 0.2, -0.3, 0.6, 0.9, -0.2, 1.5]),
        (WITH_OPACITY, vec![0.3, -0.4, -0.5, 0.1, 0.2, 0.7, -0.1, 0.3, 0.6, -2.0]),
    ];
    for (mixture, mut outputs) in cases {
        outputs.extend(vec![-6.0; mixture.components * mixture.channels]);
        outputs.extend((outputs.len()..width(mixture)).map(|i| if i % 2 == 0 { 0.8 } else { -0.6 }));
        let (levels, mean) = draws(mixture, &outputs, 256);
        for (i, mean) in mean.iter().enumerate() {
            let drawn = levels.iter().skip(i).step_by(mixture.channels);
            let average = drawn.map(|l| f64::from(*l)).sum::<f64>() / 65_536.0 / 127.5 - 1.0;
            // Half of a level, and four standard errors.
            assert!((average - f64::from(*mean)).abs() < 0.016, "{mixture:?}, {i}: {average}, not {mean}");
        }
    }
}

#[test]
fn draws_of_images_differ_and_depend_on_their_keys_alone() {
    let width = width(COLOUR);
    let draw = |keys: &[[u32; 2]]| {
        let g = Graph::new("draw");
        let keys = g.constant(Array::new(&[keys.len(), 2], keys.as_flattened()));
        let outputs = g.constant(fill(&[1, 4, 4, width], 11, (-1.0, 1.0)));
        let drawn = COLOUR.draw(outputs.broadcast_to(&[keys.dims()[0], 4, 4, width]), keys);
        evaluate(&finish(&g, &[("draw".into(), drawn)]), &[])[0].to_vec::<f32>()
    };
    let both = draw(&[[1, 2], [3, 4]]);
    assert_eq!(both[48..], draw(&[[3, 4]]));
    assert_ne!(both[..48], both[48..]);
}

#[test]
fn observed_levels_are_shown_as_shares_of_255() {
    let levels: Vec<u8> = (0..=255).collect();
    let outputs = vec![0.0; LEVELS * width(GREY)];
    let shown = run(GREY, [1, 16, 16], &levels, &outputs, |x, _| vec![GREY.shown(x), x]);
    let (shares, values) = (shown[0].to_vec::<f32>(), shown[1].to_vec::<f32>());
    for (level, share) in shares.iter().enumerate() {
        assert!((share - level as f32 / 255.0).abs() < 1e-6);
    }
    assert_eq!((values[0], values[255]), (-1.0, 1.0));
}

#[test]
fn fields_out_of_range_and_other_sizes_are_errors() {
    for (components, channels, field) in [
        (0, 1, "components"),
        (101, 3, "components"),
        (usize::MAX, 4, "components"),
        (1, 2, "channels"),
        (5, 0, "channels"),
    ] {
        let mixture = LogisticMixture { components, channels };
        let error = mixture.check().unwrap_err();
        assert!(kind(&error) == Kind::Usage && error.to_string().starts_with(field), "{error}");
    }
    for mixture in ALL {
        mixture.check().unwrap();
    }
    let error = |mixture: LogisticMixture, image: &[usize], outputs: &[usize]| {
        let g = Graph::new("wrong");
        let (x, o) = (g.input("x", &Shape::f32(image)), g.input("o", &Shape::f32(outputs)));
        let keys = g.input("keys", &Shape::u32(&[2, 2]));
        let made = [mixture.log_prob(x, o), mixture.mean(o), mixture.draw(o, keys)];
        g.finish(&made.map(|s| (format!("{s:?}"), s)), &[]).unwrap_err().to_string()
    };
    let wrong = LogisticMixture { components: 0, channels: 3 };
    assert!(error(wrong, &[2, 4, 4, 3], &[2, 4, 4, 0]).contains("components 0: it must be from 1 to 100"));
    let text = error(COLOUR, &[2, 4, 4, 3], &[2, 4, 4, 29]);
    assert!(text.contains("needs outputs (n, h, w, 30), got f32[2,4,4,29]"), "{text}");
    assert!(error(COLOUR, &[2, 4, 4, 3], &[30]).contains("got f32[30]"));
    let text = error(COLOUR, &[2, 4, 4, 1], &[2, 4, 4, 30]);
    assert!(text.contains("expected sizes [2, 4, 4, 3], got f32[2,4,4,1]"), "{text}");
}

#[test]
fn bits_are_drawn_from_grey_levels_by_each_images_key() {
    let (n, side) = (3, 64);
    let dims = [n, side, side];
    let levels: Vec<u8> = (0..n * side * side).map(|i| [0, 255, 51, 204][i / 16 % 4]).collect();
    let bits = |first: u32| {
        let g = Graph::new("bits");
        let pixels = g.constant(Array::new(&dims, &levels));
        let keys: Vec<u32> = (0..2 * n as u32).map(|i| first + i).collect();
        let drawn_keys = g.constant(Array::new(&[n, 2], &keys));
        let drawn = DynamicBernoulli.training_pixels(pixels, &|| drawn_keys);
        let result = evaluate(&finish(&g, &[("bits".into(), drawn)]), &[]).swap_remove(0);
        assert_eq!(result.shape(), &Shape::new(DType::U8, &dims));
        result.to_vec::<u8>()
    };
    let first = bits(0);
    assert_eq!(first, bits(0));
    assert_ne!(first, bits(100));
    for (level, expected) in [(0, 0.0), (255, 1.0), (51, 0.2), (204, 0.8)] {
        let of_level: Vec<u8> =
            first.iter().zip(&levels).filter(|(_, l)| **l == level).map(|(b, _)| *b).collect();
        let share = of_level.iter().map(|b| f64::from(*b)).sum::<f64>() / of_level.len() as f64;
        let error = 4.0 * (expected * (1.0 - expected) / of_level.len() as f64).sqrt();
        assert!((share - expected).abs() <= error, "level {level}: {share}");
    }
    // Images of equal levels have other bits, and an image's bits are those of its key.
    let image = side * side;
    assert_ne!(first[..image], first[image..2 * image]);
    assert_eq!(first[image..2 * image], bits(2)[..image]);
}

#[test]
fn bits_are_evaluated_as_bernoullis() {
    let g = Graph::new("delegates");
    let logits = g.constant(fill(&[2, 4, 4, 1], 12, (-3.0, 3.0)));
    let keys = g.constant(Array::new(&[2, 2], &[1u32, 2, 3, 4]));
    let both: [&dyn Likelihood; 2] = [&Bernoulli, &DynamicBernoulli];
    let made = both.map(|l| {
        let drawn = l.draw(logits, keys);
        [
            l.log_prob(drawn, logits),
            l.mean(logits),
            drawn,
            l.shown(drawn),
            l.observe(drawn.convert(DType::U8)),
        ]
    });
    let named: Vec<(String, Sym<'_>)> =
        made.iter().flatten().enumerate().map(|(i, s)| (i.to_string(), *s)).collect();
    let results = evaluate(&finish(&g, &named), &[]);
    assert_eq!(results[..5], results[5..]);
    assert_eq!(results[2], results[3]);
}
