//! Annealed importance sampling gives log p(x), where the importance-weighted bound with a wrong encoder does not.

#[path = "common/cli.rs"]
mod cli;
mod common;

use serde_json::Value;
use vnca::cli::models::{Kind, Model};
use vnca::data::{ImageShape, Split, Values};
use vnca::engine::array::Array;
use vnca::engine::ir::{Graph, Sym};
use vnca::engine::random::{Key, graph as draw};
use vnca::engine::shape::{DType, Shape};
use vnca::model::decoder::{Canvas, GrowOptions};
use vnca::model::{Bernoulli, Decoder, Encoder, Frame, Vae};
use vnca::nn::params::{Leaf, Params, Role, layer};
use vnca::study::eval::Evaluator;
use vnca::study::eval::ais::hmc::{Points, Target};
use vnca::study::eval::ais::{Annealed, Annealer, Annealing};
use vnca::study::session::Session;

const SIDE: usize = 8;
const PIXELS: usize = SIDE * SIDE;
/// Mean and log-variance of q for every image: far from the posterior, and far too narrow.
const WRONG: [f64; 2] = [1.2, -2.5];

/// An encoder that does not look at the image.
struct Wrong;

impl Encoder for Wrong {
    fn parameters(&self, _frame: &Frame, _latent: usize) -> Vec<Leaf> {
        vec![]
    }

    fn encode<'g>(&self, _params: &Params<'g>, images: Sym<'g>) -> (Sym<'g>, Sym<'g>) {
        let all = |value| images.graph().full(&Shape::f32(&[images.dims()[0], 2]), value);
        (all(WRONG[0]), all(WRONG[1]))
    }
}

/// Logits that are linear in two latents. If `draws`, each key decides whether `SHIFT` is added to all.
struct Linear {
    draws: bool,
}

const SHIFT: f64 = 0.5;

impl Decoder for Linear {
    fn parameters(&self, latent: usize, _canvas: &Canvas) -> Vec<Leaf> {
        layer("linear", Role::LinearWeight, &[PIXELS, latent], &[0]).to_vec()
    }

    fn decode<'g>(
        &self,
        params: &Params<'g>,
        z: Sym<'g>,
        keys: Sym<'g>,
        _canvas: &Canvas,
        _options: &GrowOptions<'g>,
    ) -> Sym<'g> {
        let n = z.dims()[0];
        let mut logits = params.linear("linear", z);
        if self.draws {
            let up = draw::bernoulli(keys, &[1], z.scalar_like(0.5));
            logits = logits + up.convert(DType::F32) * SHIFT;
        }
        logits.reshape(&[n, SIDE, SIDE, 1])
    }

    fn draws(&self) -> bool {
        self.draws
    }
}

fn linear(draws: bool) -> Vae {
    Vae::new("linear", 2, Wrong, Linear { draws }, Bernoulli).with_frame(Frame::new(SIDE, SIDE, 1))
}

/// Weight (PIXELS, 2) and bias (PIXELS).
fn linear_weights() -> [Vec<f32>; 2] {
    [Key::new(1).normal(2 * PIXELS), Key::new(2).normal(PIXELS).iter().map(|b| 0.5 * b).collect()]
}

/// Images of independent bits, which few latents explain.
fn images(count: usize, key: u64) -> Split {
    let pixels = Key::new(key).bernoulli(count * PIXELS, |_| 0.4).into_iter().map(u8::from).collect();
    let shape = ImageShape { height: SIDE, width: SIDE, channels: 1 };
    Split { name: "bits".into(), shape, values: Values::Bits, pixels, labels: None, sources: vec![] }
}

/// Returns log p(x) of an image: the sum over a grid of latents, in f64. The logits are shifted by each of `shifts` with the same
/// probability.
fn quadrature(image: &[u8], shifts: &[f64]) -> f64 {
    const STEP: f64 = 0.02;
    let [weight, bias] = linear_weights().map(|v| v.into_iter().map(f64::from).collect::<Vec<_>>());
    let line: Vec<f64> = (-350..=350).map(|i| f64::from(i) * STEP).collect();
    let mut terms = Vec::new();
    for a in &line {
        for b in &line {
            for shift in shifts {
                let pixel = |(i, x): (usize, &u8)| {
                    let logit = weight[2 * i] * a + weight[2 * i + 1] * b + bias[i] + shift;
                    f64::from(*x) * logit - logit.max(0.0) - (-logit.abs()).exp().ln_1p()
                };
                let likelihood: f64 = image.iter().enumerate().map(pixel).sum();
                terms.push(likelihood - (a * a + b * b) / 2.0);
            }
        }
    }
    let most = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = terms.iter().map(|term| (term - most).exp()).sum();
    let cell = STEP * STEP / (2.0 * std::f64::consts::PI) / shifts.len() as f64;
    most + (sum * cell).ln()
}

fn session(model: Vae, replicas: usize) -> Session {
    let [weight, bias] = linear_weights();
    let weights = [Array::new(&[PIXELS, 2], &weight), Array::new(&[PIXELS], &bias)];
    Session::new(&common::mesh(replicas), model, &weights).unwrap()
}

fn anneal(session: &Session, images: &Split, batch: usize, annealing: Annealing) -> Annealed {
    let annealer = Annealer::new(&session.mesh, &session.model, batch, annealing).unwrap();
    let mut finished = 0;
    let annealed =
        annealer.run(&session.parameters(), images, Key::new(4), |moves| finished = moves).unwrap();
    let all = if annealing.temperatures == 1 { 0 } else { images.len() * annealing.moves() };
    assert_eq!(finished, all);
    annealed
}

fn iwelbo(session: &Session, images: &Split, samples: usize) -> Vec<f32> {
    let evaluator = Evaluator::new(&session.mesh, &session.model, images.len(), samples).unwrap();
    evaluator.run(&session.parameters(), images, Key::new(4), 0..images.len(), |_| {}).unwrap().iwelbo
}

#[test]
fn the_estimate_is_the_integral_over_the_latents_whatever_the_encoder() {
    let images = images(5, 3);
    for (draws, shifts) in [(false, &[0.0][..]), (true, &[0.0, SHIFT])] {
        let session = session(linear(draws), 1);
        let annealing = Annealing { chains: 256, temperatures: 200, leapfrog: 5 };
        // The second call is half full.
        let annealed = anneal(&session, &images, 3, annealing);
        let bounds = iwelbo(&session, &images, 256);
        let mut gap = 0.0;
        for (i, bound) in bounds.iter().enumerate() {
            let exact = quadrature(images.image(i), shifts);
            // The variance of the mean of weights, in units of their mean.
            let effective = annealed.effective_chains[i];
            let error = (1.0 / effective - 1.0 / annealing.chains as f64).sqrt();
            let difference = annealed.log_prob[i] - exact;
            println!("{draws} {i}: {exact:.3} {difference:+.4} ± {error:.4} iwelbo {bound:.3}");
            assert!(effective > 30.0, "{effective} chains of image {i} count");
            assert!(difference.abs() < 4.0 * error, "image {i}: {difference} ± {error}");
            assert!(difference.abs() < 0.3, "image {i}: {difference}");
            gap += (exact - f64::from(*bound)) / images.len() as f64;
            // The pilot pass has found good step sizes.
            let acceptance = annealed.acceptance[i];
            assert!((acceptance - 0.65).abs() < 0.1, "image {i}: {acceptance}");
        }
        assert!(gap > 2.0, "the bounds are {gap} nats too low, so that they are no bad ones");
    }
}

#[test]
fn neither_batch_nor_replicas_change_the_estimate() {
    let images = images(5, 3);
    let annealing = Annealing { chains: 4, temperatures: 12, leapfrog: 3 };
    let one = anneal(&session(linear(true), 1), &images, 5, annealing);
    for (batch, replicas) in [(2, 1), (4, 2)] {
        let other = anneal(&session(linear(true), replicas), &images, batch, annealing);
        for (a, b) in one.log_prob.iter().zip(&other.log_prob) {
            assert!((a - b).abs() < 1e-3, "batch {batch}, {replicas} replicas: {b}, not {a}");
        }
    }
}

#[test]
fn with_one_temperature_the_estimate_is_the_bound_of_the_same_latents() {
    // Half of the cells are updated in a step, so that keys matter.
    let model = Model { nca_steps: 3, update_prob: 0.5, ..Model::new(Kind::NonDoubling, Some(4)).unwrap() };
    let weights = common::models::woken(&model);
    let leaves = model.vae().leaves();
    let weights: Vec<Array> = leaves.iter().zip(&weights).map(|(l, a)| l.to_checkpoint_layout(a)).collect();
    let session = Session::new(&common::mesh(1), model.vae(), &weights).unwrap();
    let images = vnca::data::load_split("glyphs", vnca::data::Part::Test).unwrap().spread(3);
    let annealed = anneal(&session, &images, 2, Annealing { chains: 6, temperatures: 1, leapfrog: 1 });
    assert_eq!(annealed.acceptance, [1.0; 3]);
    for (estimate, bound) in annealed.log_prob.iter().zip(iwelbo(&session, &images, 6)) {
        assert!((estimate - f64::from(bound)).abs() < 1e-4 * estimate.abs(), "{estimate}, not {bound}");
    }
}

/// The log-ratio of a normal density with the means 1, -0.5 and 0 and unit variance.
fn shifted<'g>(at: Sym<'g>) -> Sym<'g> {
    let means = at.graph().constant(Array::new(&[3], &[1f32, -0.5, 0.0]));
    (at * means).sum(&[1])
}

fn target<'g>(g: &'g Graph, log_ratio: &'g dyn Fn(Sym<'g>) -> Sym<'g>, leapfrog: usize) -> Target<'g, 'g> {
    let leapfrog_steps = g.scalar(DType::S32, leapfrog as f64);
    Target { log_ratio, b: g.scalar(DType::F32, 1.0), leapfrog: leapfrog_steps, most: leapfrog }
}

#[test]
fn the_way_back_leads_to_the_start() {
    fn quartic(at: Sym<'_>) -> Sym<'_> {
        -(at.square() * at.square()).sum(&[1]) * 0.1
    }
    let g = Graph::new("back");
    let [at, momenta] = ["at", "momenta"].map(|name| g.input(name, &Shape::f32(&[5, 3])));
    let target = target(&g, &quartic, 20);
    let steps = g.full(&Shape::f32(&[5]), 0.1);
    let (end, last) = target.leapfrog(target.evaluate(at), momenta, steps);
    let (back, _) = target.leapfrog(end, -last, steps);
    let function = common::finish(&g, &[("end".into(), end.at), ("back".into(), back.at)]);
    let [start, momenta] = [5, 6].map(|seed| Array::new(&[5, 3], &Key::new(seed).normal(15)));
    let results = common::evaluate(&function, &[start.clone(), momenta]);
    let distance = |array: &Array| {
        let pairs = array.to_vec::<f32>().into_iter().zip(start.to_vec::<f32>());
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    assert!(distance(&results[0]) > 1.0 && distance(&results[1]) < 1e-4, "{}", distance(&results[1]));
}

#[test]
fn a_move_leaves_the_density_as_it_is() {
    const CHAINS: usize = 40_000;
    let g = Graph::new("moves");
    let at = g.input("at", &Shape::f32(&[CHAINS, 3]));
    let keys = g.input("keys", &Shape::u32(&[CHAINS, 2]));
    let target = target(&g, &shifted, 2);
    let start = target.evaluate(at);
    // The steps are so long that without a test of acceptance the points would spread.
    let steps = g.full(&Shape::f32(&[CHAINS]), 1.3);
    let moved = g.repeat(5, &[start.at, start.log_ratio, start.slope], |i, carry| {
        let points = Points { at: carry[0], log_ratio: carry[1], slope: carry[2] };
        let keys = draw::split_from(keys, i.convert(DType::U32), 1).reshape(&[CHAINS, 2]);
        let (points, acceptance) = target.hmc(points, keys, steps);
        (vec![points.at, points.log_ratio, points.slope], vec![acceptance.mean(&[0])])
    });
    let outputs = [("at".into(), moved[0]), ("acceptance".into(), moved[3])];
    let function = common::finish(&g, &outputs);
    let means = [1f32, -0.5, 0.0];
    let first: Vec<f32> =
        Key::new(7).normal(3 * CHAINS).iter().enumerate().map(|(i, x)| x + means[i % 3]).collect();
    let keys: Vec<u32> = Key::new(8).split(CHAINS).iter().flat_map(|key| key.0).collect();
    let inputs = [Array::new(&[CHAINS, 3], &first), Array::new(&[CHAINS, 2], &keys)];
    let results = common::evaluate(&function, &inputs);
    let (points, acceptance) = (results[0].to_vec::<f32>(), results[1].to_vec::<f32>());
    assert!(acceptance.iter().all(|p| (0.3..0.95).contains(p)), "{acceptance:?}");
    for (d, expected) in means.iter().enumerate() {
        let values = || points.iter().skip(d).step_by(3).map(|x| f64::from(*x));
        let mean = values().sum::<f64>() / CHAINS as f64;
        let moment = |power| values().map(|x| (x - mean).powi(power)).sum::<f64>() / CHAINS as f64;
        let [variance, fourth] = [2, 4].map(moment);
        // Four standard errors of 40,000 independent draws.
        assert!((mean - f64::from(*expected)).abs() < 0.02, "dimension {d}: a mean of {mean}");
        assert!((variance - 1.0).abs() < 0.03, "dimension {d}: a variance of {variance}");
        assert!((fourth - 3.0).abs() < 0.2, "dimension {d}: a fourth moment of {fourth}");
    }
    let moves = first.iter().zip(&points).filter(|(a, b)| a != b).count();
    assert!(moves > 2 * CHAINS, "{moves} coordinates have moved");
}

#[test]
fn the_verb_compares_with_the_iwelbo_of_the_same_images() {
    let folder = tempfile::tempdir().unwrap();
    let run = |words: &str| cli::succeed(folder.path(), &words.split(' ').collect::<Vec<_>>());
    run("train --out run --data glyphs --latent 4 --batch-size 8 --steps 20 --eval-every 0");
    let small = "--chains 3 --temperatures 8 --leapfrog 2 --samples 5 --seed 6";
    let json = |words: &str| -> Value { serde_json::from_str(&run(words)).expect("JSON") };
    let result = json(&format!("ais --run run --spread 4 {small} --json"));
    let number = |name: &str| result[name].as_f64().unwrap_or_else(|| panic!("{name}: {result}"));
    let bound = json("eval --run run --spread 4 --samples 5 --seed 6 --json");
    assert_eq!(result["data"], bound["data"]);
    assert!((number("iwelbo") - bound["iwelbo"].as_f64().unwrap()).abs() < 1e-3, "{result} {bound}");
    assert!((number("iwelbo_stderr") - bound["stderr"].as_f64().unwrap()).abs() < 1e-3);
    assert!((number("difference") - (number("ais") - number("iwelbo"))).abs() < 1e-6);
    assert!(number("difference").abs() < 10.0 && number("difference_stderr") > 0.0, "{result}");
    assert!((1.0..=3.0).contains(&number("effective_chains")) && number("acceptance") > 0.3, "{result}");
    for (name, value) in [("images", 4), ("chains", 3), ("temperatures", 8), ("leapfrog", 2), ("samples", 5)]
    {
        assert_eq!(result[name], value, "{name}");
    }
    assert_eq!(result["suspect"], number("difference") < -3.0 * number("difference_stderr"));

    // The first image alone has no standard error.
    let text = run(&format!("ais --run run --limit 1 {small}"));
    for words in ["log p(x) about -", "(1 images of ", "IWELBO -", "(5 samples)", "difference ", "3 chains"] {
        assert!(text.contains(words) && !text.contains('±'), "{words}: {text}");
    }
    // The images of validation, and of training.
    let train = json(&format!("ais --run run --split train --limit 2 {small} --json"));
    assert_ne!(train["iwelbo"], result["iwelbo"]);
}

#[test]
fn the_verb_takes_automata_and_other_likelihoods() {
    let folder = tempfile::tempdir().unwrap();
    let small = "--chains 2 --temperatures 4 --leapfrog 1 --samples 2 --limit 2 --json";
    for (kind, more) in [
        (Kind::NonDoubling, "--nca-steps 2 --precision bf16"),
        (Kind::Doubling, "--nca-steps 1 --update-prob 0.5 --replicas 2 --batch-size 2"),
    ] {
        let weights = cli::weights(folder.path(), kind, 4).join(" ");
        let words = format!("ais {weights} {small} {more}");
        let text = cli::succeed(folder.path(), &words.split(' ').collect::<Vec<_>>());
        let result: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(result["model"], kind.name());
        assert!(result["ais"].as_f64().unwrap() < -100.0, "{result}");
    }
    // Weights of a mixture of logistic distributions.
    let train = "train --out run --data glyphs --model baseline --likelihood logistic-mixture --components 1 --latent 4 \
                 --batch-size 4 --steps 1 --eval-every 0";
    cli::succeed(folder.path(), &train.split_whitespace().collect::<Vec<_>>());
    let words = format!("ais --run run {small}");
    let text = cli::succeed(folder.path(), &words.split(' ').collect::<Vec<_>>());
    assert!(serde_json::from_str::<Value>(&text).unwrap()["ais"].is_number(), "{text}");
}

#[test]
fn bad_options_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let weights = cli::weights(folder.path(), Kind::Baseline, 4).join(" ");
    for (options, words) in [
        ("--chains 0", &["--chains 0", "from 1"][..]),
        ("--chains 65537", &["--chains 65537"]),
        ("--temperatures 0", &["--temperatures 0", "from 1"]),
        ("--leapfrog 0", &["--leapfrog 0", "from 1"]),
        ("--samples 0", &["--samples 0"]),
        ("--batch-size 0", &["--batch-size 0"]),
        ("--batch-size 32 --chains 65536", &["--batch-size 32", "65536 chains"]),
        ("--batch-size 3 --replicas 2", &["--batch-size 3", "2 replicas"]),
        ("--limit 0", &["there are no images"]),
        ("--limit 3 --spread 3", &["--limit", "--spread"]),
        ("--split valid", &["validation"]),
        ("--programs folder", &["--programs"]),
    ] {
        let arguments = format!("ais {weights} {options}");
        let error = cli::fail(folder.path(), &arguments.split(' ').collect::<Vec<_>>(), 2);
        for word in words {
            assert!(error.contains(word), "{options}: {error}");
        }
    }
    let error = cli::fail(folder.path(), &["ais"], 1);
    assert!(error.contains("--run"), "{error}");
}
