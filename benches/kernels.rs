//! Benchmarks the kernels that take most of a training step: `cargo bench --bench kernels [-- FILTER]`.
//!
//! Throughput is in floating-point operations, so `Gelem/s` means GFLOP/s. Multiplications with the zeros of a dilated image do not
//! count. Criterion stores the last results under `target/criterion` and reports changes. To compare with an older state, use
//! `-- --save-baseline NAME` and `-- --baseline NAME`.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vnca::cli::models::{Kind, Model};
use vnca::cli::optimiser::Optimiser;
use vnca::engine::array::Array;
use vnca::engine::compile::check_one_dnn;
use vnca::engine::ir::ops::conv::Window;
use vnca::engine::ir::{Cost, Function, Graph, Sym, gradient, pullback};
use vnca::engine::lower::{Target, lower};
use vnca::engine::random::Key;
use vnca::engine::runtime::{Arg, Buffers, Cache, Device, Mesh};
use vnca::engine::shape::{DType, Precision, Shape};
use vnca::model::grow::Grids;
use vnca::nn::optimiser::{Context, Updates};
use vnca::nn::params::Params;
use vnca::nn::tree::Tree;

/// Times a computation over random inputs. Its throughput is in floating-point operations, or in elements if it has none.
fn time(
    criterion: &mut Criterion,
    group: &str,
    id: BenchmarkId,
    target: Target,
    build: impl Fn() -> Function,
) {
    let mut group = criterion.benchmark_group(group);
    let function = build();
    let cost = Cost::from_function(&function);
    group.throughput(Throughput::Elements(if cost.flops > 0 { cost.flops } else { cost.elements }));
    // The closure runs only if the filter selects the benchmark.
    group.bench_function(id, |bencher| {
        let mesh = Mesh::builder(&Device::Cpu).cache(Cache::Off).open(1).expect("the CPU opens");
        let program = lower(&function, target, 1).expect("lowers");
        let executable = mesh.compile(program).expect("compiles");
        let inputs: Vec<Buffers> =
            function.inputs.iter().map(|i| mesh.replicate(&random(&i.shape)).expect("uploads")).collect();
        bencher.iter(|| {
            let results = executable.call(inputs.iter().map(Arg::from).collect()).expect("runs");
            // The last result is one number. Reading it waits for the whole computation.
            results.last().expect("a result").get(0).expect("downloads")
        });
    });
    group.finish();
}

fn random(shape: &Shape) -> Array {
    match shape.dtype {
        DType::F32 => Array::new(&shape.dims, &Key::new(1).uniform(shape.count(), -0.1, 0.1)),
        _ => Array::zeros(shape),
    }
}

/// Finishes a graph and adds a last result: one element of the first result.
fn finish<'g>(g: &'g Graph, results: &[Sym<'g>]) -> Function {
    let first = results[0];
    let corner = first.slice(&vec![0; first.rank()], &vec![1; first.rank()]);
    let named = results.iter().chain([&corner]).enumerate().map(|(i, r)| (i.to_string(), *r));
    g.finish(&named.collect::<Vec<_>>(), &[]).expect("the graph is well formed")
}

/// Returns the forms to compare: XLA's native form, the CPU's, and those of oneDNN that this CPU supports.
fn forms() -> Vec<(&'static str, Target, Precision)> {
    let mut forms = vec![("native", Target::Native, Precision::F32), ("cpu", Target::Cpu, Precision::F32)];
    let mesh = Mesh::builder(&Device::Cpu).cache(Cache::Off).open(1).expect("the CPU opens");
    for (name, precision) in [("oneDNN", Precision::F32), ("bf16", Precision::Bf16)] {
        if check_one_dnn(&mesh, precision).is_ok() {
            forms.push((name, Target::OneDnn, precision));
        }
    }
    forms
}

/// Benchmarks every convolution of the baseline and its two gradients, in all forms.
fn convolutions(criterion: &mut Criterion) {
    const BATCH: usize = 32;
    let encoder = [(32, 1, 32, 1), (32, 32, 64, 2), (16, 64, 128, 2), (8, 128, 256, 2), (4, 256, 512, 2)]
        .map(|(side, input, output, stride)| {
            (side, side / stride, input, output, Window::new(stride, (2, 2)))
        });
    let decoder = [(2, 512, 256), (4, 256, 128), (8, 128, 64), (16, 64, 32)]
        .map(|(side, input, output)| (side, 2 * side, input, output, Window::transposed(5, 2, 2, 1)));
    let last = (32, 28, 32, 1, Window::transposed(5, 1, 4, 0));
    for (side, out_side, input, output, window) in encoder.into_iter().chain(decoder).chain([last]) {
        let image = Shape::f32(&[BATCH, side, side, input]);
        let kernel = Shape::f32(&[5, 5, input, output]);
        let result = Shape::f32(&[BATCH, out_side, out_side, output]);
        let layer = format!("{side}x{side}x{input} to {out_side}x{out_side}x{output}");
        for (form, target, precision) in forms() {
            let id = BenchmarkId::new(form, &layer);
            time(criterion, "forward", id.clone(), target, || {
                let g = Graph::with_precision("forward", precision);
                finish(&g, &[g.input("x", &image).conv(g.input("w", &kernel), window)])
            });
            time(criterion, "image gradient", id.clone(), target, || {
                let g = Graph::with_precision("image_gradient", precision);
                let x = g.full(&image, 0.0);
                let (w, y) = (g.input("w", &kernel), g.input("y", &result));
                finish(&g, &pullback(&[(x.conv(w, window), y)], &[x]))
            });
            time(criterion, "weight gradient", id, target, || {
                let g = Graph::with_precision("weight_gradient", precision);
                finish(&g, &[g.input("x", &image).conv_weight_grad(g.input("y", &result), window, [5, 5])])
            });
        }
    }
}

/// Benchmarks the steps of automata at several grid sizes, and the gradients of these steps.
fn cells(criterion: &mut Criterion) {
    const STEPS: usize = 4;
    let grids = [(Kind::Doubling, 4), (Kind::Doubling, 32), (Kind::NonDoubling, 32)];
    let forms = forms();
    let forms = forms.iter().filter(|(_, target, _)| *target != Target::Native);
    let cases = grids.into_iter().flat_map(|grid| forms.clone().map(move |form| (grid, *form)));
    for ((kind, side), (form, target, precision)) in cases {
        let model = Model { precision, ..Model::new(kind, None).expect("a model of the report") }.vae();
        let grow = model.automaton().expect("the model has an automaton");
        let build = |with_gradient: bool| {
            let leaves: Vec<_> = model.leaves().into_iter().filter(|l| l.name.starts_with("cell.")).collect();
            let g = model.graph("cells");
            let values = Params::inputs(&g, &leaves, "");
            let automaton = grow.automaton(&Params::new(&leaves, &values));
            let cells = g.input("cells", &Shape::f32(&[4, side, side, model.latent]));
            let keys = g.input("keys", &Shape::u32(&[4, 2]));
            let grown = automaton.steps(Grids { cells, keys }, STEPS).cells;
            let wrt = [&[cells], values.as_slice()].concat();
            match with_gradient {
                true => finish(&g, &gradient(grown.square().sum_all(), &wrt)),
                false => finish(&g, &[grown]),
            }
        };
        let grid = format!("{kind} {side}x{side} {form}");
        for (name, with_gradient) in [("steps", false), ("gradient of steps", true)] {
            let id = BenchmarkId::new(name, &grid);
            time(criterion, "automaton", id, target, || build(with_gradient));
        }
    }
}

/// Benchmarks two other parts of a training step of the baseline: the encoder's gradient, and the optimiser's update.
fn pieces(criterion: &mut Criterion) {
    let model = Model::new(Kind::Baseline, None).expect("a model of the report").vae();
    time(criterion, "pieces", BenchmarkId::from_parameter("encoder's gradient"), Target::Cpu, || {
        let leaves: Vec<_> = model.leaves().into_iter().filter(|l| l.name.starts_with("encoder.")).collect();
        let g = Graph::new("encoder");
        let values = Params::inputs(&g, &leaves, "");
        let images = g.input("images", &Shape::f32(&[32, 32, 32, 1]));
        let (mean, logvar) = model.encode(&Params::new(&leaves, &values), images);
        finish(&g, &gradient(mean.square().sum_all() + logvar.square().sum_all(), &values))
    });
    time(criterion, "pieces", BenchmarkId::from_parameter("clipping and Adam"), Target::Cpu, || {
        let leaves = model.leaves();
        let g = Graph::new("adam");
        let [values, gradients] = ["value.", "gradient."].map(|prefix| Params::inputs(&g, &leaves, prefix));
        let inputs = ["adam.m.", "adam.v."].into_iter().flat_map(|prefix| {
            let names = leaves.iter().map(move |l| format!("{prefix}{}", l.name));
            names.zip(Params::inputs(&g, &leaves, prefix))
        });
        let mut state: Tree<Sym<'_>> = inputs.collect();
        let count = g.input("count", &Shape::s32(&[]));
        state.set("count", count);
        let context = Context { leaves: &leaves, params: &[], healthy: count.eq(count) };
        let (mut updates, mut results) = (Updates::new(gradients), Vec::new());
        for transform in Optimiser::REPORT.chain(1) {
            let next;
            (updates, next) = transform.apply(&context, updates, &state);
            results.extend(next.into_iter().map(|(_, value)| value));
        }
        results.extend(values.iter().zip(updates.values()).map(|(v, u)| *v + *u));
        finish(&g, &results)
    });
}

fn settings() -> Criterion {
    vnca::engine::xla_log::hide_messages();
    // Kernels take milliseconds. Criterion's smallest number of samples is enough, with one second for each kernel.
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = kernels; config = settings(); targets = convolutions, cells, pieces }
criterion_main!(kernels);
