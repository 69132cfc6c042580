//! What somebody's own task, cell or likelihood does wrong is an error that says so, before anything is compiled.

use anyhow::Result;
use vnca::chain;
use vnca::engine::array::Array;
use vnca::engine::ir::{Graph, Sym};
use vnca::engine::random::Key;
use vnca::engine::shape::{DType, Shape};
use vnca::error::{Kind, kind};
use vnca::model::encoder::ConvEncoder;
use vnca::model::likelihood::Outputs;
use vnca::model::{Bernoulli, Cell, Elbo, Grow, Likelihood, Vae};
use vnca::nn::optimiser::{Adam, Chain, ClipByGlobalNorm, Sgd};
use vnca::nn::params::{Leaf, Params, Role, init, layer};
use vnca::nn::weights;
use vnca::train::task::{Entry, Spread};
use vnca::train::{Outcome, Sizes, Step, Task, TrainProgram};

/// Builds a step's outcome from the loss of each example.
type MakeOutcome = for<'g> fn(Sym<'g>) -> Outcome<'g>;

/// A task with one linear layer, of which the tests change a part.
#[derive(Clone, Default)]
struct Linear {
    leaves: Vec<Leaf>,
    state: Vec<Entry>,
    outcome: Option<MakeOutcome>,
}

impl Task for Linear {
    fn name(&self) -> String {
        "linear".into()
    }

    fn parameters(&self) -> Vec<Leaf> {
        [layer("a", Role::LinearWeight, &[1, 4], &[0]).to_vec(), self.leaves.clone()].concat()
    }

    fn example(&self) -> Option<(&'static str, Shape)> {
        Some(("rows", Shape::f32(&[4])))
    }

    fn state(&self, _sizes: &Sizes) -> Vec<Entry> {
        self.state.clone()
    }

    fn step<'g>(&self, step: Step<'g, '_>) -> Outcome<'g> {
        let each = step.params.linear("a", step.examples.expect("rows")).square().sum(&[1]);
        match self.outcome {
            Some(outcome) => outcome(each),
            None => Outcome::new(each.mean(&[0])),
        }
    }
}

const SIZES: Sizes = Sizes { replicas: 1, batch: 2, chunk: 3, examples: 8 };

fn error_with(task: &dyn Task, optimiser: &Chain, sizes: Sizes) -> anyhow::Error {
    TrainProgram { task, optimiser, sizes }.function().expect_err("the mistake is seen")
}

fn error(task: &dyn Task) -> String {
    format!("{:#}", error_with(task, &chain![Adam::new(1e-3)], SIZES))
}

fn ema(shape: &[usize]) -> Entry {
    Entry::zeros("ema", Shape::f32(shape), Spread::Same)
}

#[test]
fn a_good_task_is_none() {
    let task = Linear { state: vec![ema(&[])], ..Linear::default() };
    for optimiser in [chain![Adam::new(1e-3)], chain![ClipByGlobalNorm(1.0), Sgd { learning_rate: 0.1 }]] {
        let program = TrainProgram { task: &task, optimiser: &optimiser, sizes: SIZES };
        assert_eq!(program.function().unwrap().name, "train_linear");
    }
}

#[test]
fn sizes_and_optimisers_are_refused_by_field() {
    let task = Linear::default();
    let adam = || chain![Adam::new(1e-3)];
    let cases: [(Chain, Sizes, &str); 5] = [
        (adam(), Sizes { replicas: 2, batch: 7, ..SIZES }, "batch 7"),
        (adam(), Sizes { chunk: 0, ..SIZES }, "chunk 0"),
        (vec![], SIZES, "optimiser has no transform"),
        (chain![Adam::new(-1.0)], SIZES, "learning_rate is -1"),
        (chain![ClipByGlobalNorm(-1.0), Adam::new(1e-3)], SIZES, "clip_norm is -1"),
    ];
    for (optimiser, sizes, part) in cases {
        let error = error_with(&task, &optimiser, sizes);
        assert_eq!(kind(&error), Kind::Usage);
        assert!(error.to_string().starts_with(part), "{error}");
    }
}

#[test]
fn names_that_two_things_have_are_refused() {
    let again = layer("a", Role::LinearWeight, &[1, 4], &[1]).to_vec();
    let error_of = |leaves: Vec<Leaf>, state: Vec<Entry>| error(&Linear { leaves, state, outcome: None });
    let twice = error_of(again, vec![]);
    assert!(twice.contains("a parameter has the name \"a.weight\""), "{twice}");
    for (name, other) in [("a.bias", "a parameter"), ("count", "the optimiser"), ("key", "every run")] {
        let taken = error_of(vec![], vec![Entry { name: name.into(), ..ema(&[]) }]);
        assert!(taken.contains(&format!("{name:?}, which {other} has too")), "{taken}");
    }
    let same_path = error_of(layer("b", Role::LinearWeight, &[1, 4], &[0]).to_vec(), vec![]);
    assert!(same_path.contains("a.weight and b.weight have the same path"), "{same_path}");
    let optimiser = chain![Adam::new(1e-3), Adam::new(1e-3)];
    let two = error_with(&Linear::default(), &optimiser, SIZES).to_string();
    assert!(two.contains("the optimiser has the name"), "{two}");
}

#[test]
fn an_outcome_that_does_not_fit_names_the_task_and_the_part() {
    let cases: [(MakeOutcome, &str); 4] = [
        (|each| Outcome::new(each), "task linear: the loss is f32[2], not an f32 scalar"),
        (
            |each| Outcome::new(each.mean(&[0])).with("ema", each),
            "task linear: the state \"ema\" is f32[], the step returned f32[2]",
        ),
        (
            |each| Outcome::new(each.mean(&[0])).with("emma", each.mean(&[0])),
            "task linear: the step returned the state \"emma\"; there are [\"ema\"]",
        ),
        (
            |each| {
                let loss = each.mean(&[0]);
                Outcome::new(loss).with("ema", loss).with("ema", loss)
            },
            "task linear: the step returned the state \"ema\" twice",
        ),
    ];
    for (outcome, expected) in cases {
        let task = Linear { state: vec![ema(&[])], outcome: Some(outcome), ..Linear::default() };
        let found = error(&task);
        assert!(found.contains(expected), "{found}");
    }
}

/// A cell that returns one channel too many.
struct Wide;

impl Cell for Wide {
    fn parameters(&self, channels: usize) -> Vec<Leaf> {
        layer("act", Role::PointWeight, &[channels + 1, channels, 1, 1], &[0]).to_vec()
    }

    fn update<'g>(&self, params: &Params<'g>, cells: Sym<'g>) -> Sym<'g> {
        params.linear("act", cells)
    }
}

/// A likelihood that forgets to sum over the pixels.
struct PerPixel;

impl Likelihood for PerPixel {
    fn outputs(&self) -> Outputs {
        Outputs { channels: 1, outside: 0.0 }
    }

    fn log_prob<'g>(&self, images: Sym<'g>, outputs: Sym<'g>) -> Sym<'g> {
        -(images - outputs).square()
    }

    fn mean<'g>(&self, outputs: Sym<'g>) -> Sym<'g> {
        outputs
    }

    fn draw<'g>(&self, outputs: Sym<'g>, _keys: Sym<'g>) -> Sym<'g> {
        outputs
    }
}

#[test]
fn a_cell_or_likelihood_of_other_sizes_is_named() {
    let sizes = Sizes { examples: 100, ..SIZES };
    let wide = Elbo::new(Vae::new("mine", 8, ConvEncoder::default(), Grow::doubling(Wide, 5, 1), Bernoulli));
    let error = format!("{:#}", error_with(&wide, &chain![Adam::new(1e-3)], sizes));
    assert!(error.contains("Cell::update returned f32[2,2,2,9], and the grids are f32[2,2,2,8]"), "{error}");
    let narrow = Vae::new("mine", 8, ConvEncoder::default(), vnca::model::baseline::ConvDecoder, PerPixel);
    let error = format!("{:#}", error_with(&Elbo::new(narrow), &chain![Adam::new(1e-3)], sizes));
    assert!(error.contains("Likelihood::log_prob returned f32[2,32,32,1], not f32[2]"), "{error}");
}

#[test]
fn a_number_that_the_type_cannot_hold_and_a_foreign_value_are_build_errors() {
    let finish = |build: for<'g> fn(Sym<'g>) -> Sym<'g>| -> Result<()> {
        let g = Graph::new("g");
        let x = g.input("x", &Shape::new(DType::U8, &[3]));
        g.finish(&[("y".into(), build(x))], &[]).map(drop)
    };
    for build in
        [|x| x * 0.5, |x| 1.5 - x, |x| x + 300.0, |x| x - -1.0] as [for<'g> fn(Sym<'g>) -> Sym<'g>; 4]
    {
        let error = finish(build).unwrap_err().to_string();
        assert!(error.contains("is no number of type u8") && error.contains("mistakes.rs"), "{error}");
    }
    finish(|x| 255.0 - x).unwrap();
    let (g, other) = (Graph::new("g"), Graph::new("other"));
    let [x, y] = [&g, &other].map(|g| g.input("x", &Shape::f32(&[2])));
    let error = g.finish(&[("sum".into(), x + y)], &[]).unwrap_err().to_string();
    assert!(error.contains("different graphs"), "{error}");
    let error = other.finish(&[("x".into(), x)], &[]).unwrap_err().to_string();
    assert!(error.contains("output x is of another graph"), "{error}");
}

#[test]
fn weights_of_an_own_model_come_back_and_others_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.npz");
    let mut leaves = layer("hidden", Role::LinearWeight, &[3, 4], &[0]).to_vec();
    leaves.push(Leaf {
        name: "seed".into(),
        shape: vec![2, 3, 4],
        role: Role::Plain,
        limit: 1.0,
        path: vec![7],
    });
    let values = init(&leaves, Key::new(1));
    assert!(leaves[2].to_device_layout(&values[2]) == values[2]);
    let meta = Array::new(&[2], b"{}");
    // A checkpoint has more than the parameters.
    let named = leaves.iter().map(|leaf| leaf.name.as_str()).zip(&values);
    let count = Array::scalar(3i32);
    weights::npz::write(&path, named.chain([("meta", &meta), ("count", &count)])).unwrap();
    assert!(weights::read(&path, &leaves).unwrap() == values);
    assert!(weights::write(&path, &leaves, &[]).is_err());
    assert!(
        weights::write(&path, &leaves, &[values[1].clone(), values[0].clone(), values[2].clone()]).is_err()
    );
}
