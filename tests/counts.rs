//! Counts that do not depend on the machine's speed: operations and memory of a training step, sizes of the modules, operations
//! in a compiled module, and the number of compilations.

#[path = "common/cli.rs"]
mod cli;

use std::collections::BTreeMap;

use vnca::cli::models::{Kind, Model};
use vnca::cli::optimiser::Optimiser;
use vnca::engine::ir::{Cost, Function, RepeatOptions};
use vnca::engine::lower::{Target, lower};
use vnca::model::Elbo;
use vnca::train::{Sizes, TrainProgram};

const CHUNK: usize = 5;

/// Builds the train program of a model of the report, without a pool. With `remat` 0 the loops' gradients save the marked
/// values; with 1 they recompute the whole body.
fn training(kind: Kind, batch: usize, remat: usize) -> Function {
    let model = Model::new(kind, None).expect("a model of the report");
    let memory = RepeatOptions { remat, save_as: None };
    let task = Elbo { memory, ..Elbo::new(model.vae()) };
    let sizes = Sizes { replicas: 1, batch, chunk: CHUNK, examples: 100 };
    let program = TrainProgram { task: &task, optimiser: &Optimiser::REPORT.chain(1), sizes };
    program.function().expect("the graph is well formed")
}

/// Returns the multiplications and additions of a convolution with a number of output pixels.
fn conv(batch: usize, places: usize, taps: usize, input: usize, output: usize) -> usize {
    2 * batch * places * taps * input * output
}

/// Returns those of the encoder in a training step: each layer's forward pass and two gradients. The first layer's image needs no
/// gradient.
fn encoder(n: usize, z: usize) -> usize {
    let layers = [(16, 32, 64), (8, 64, 128), (4, 128, 256), (2, 256, 512)];
    let convs: usize = layers.iter().map(|(side, i, o)| conv(n, side * side, 25, *i, *o)).sum();
    2 * conv(n, 32 * 32, 25, 1, 32) + 3 * (convs + conv(n, 1, 1, 2048, 2 * z))
}

#[test]
fn the_operations_of_a_training_step_are_those_of_its_layers() {
    let baseline = |n: usize, z: usize| {
        let layers = [(2, 512, 256), (4, 256, 128), (8, 128, 64), (16, 64, 32)];
        let convs: usize = layers.iter().map(|(side, i, o)| conv(n, side * side, 25, *i, *o)).sum();
        let last = 2 * conv(n, 28 * 28, 25, 32, 1) + conv(n, 32 * 32, 25, 1, 32);
        3 * (conv(n, 1, 1, z, 2048) + convs) + last
    };
    // The last layer of a cell is never recomputed. The others are recomputed if the gradient saves only the grid.
    let cell = |cells: usize, z: usize, layers: usize, remat: usize| {
        (3 + remat) * conv(cells, 1, layers, z, z) + 3 * conv(cells, 1, 1, z, z)
    };
    for remat in [0, 1] {
        for (kind, n, z, decoder) in [
            (Kind::Baseline, 32, 256, baseline(32, 256)),
            (Kind::Doubling, 4, 256, cell(4 * 8 * grown(), 256, 9 + 8, remat)),
            (Kind::NonDoubling, 4, 128, cell(4 * 36 * 32 * 32, 128, 9, remat)),
        ] {
            let expected = CHUNK * (encoder(n, z) + decoder);
            assert_eq!(
                Cost::from_function(&training(kind, n, remat)).flops,
                expected as u64,
                "{kind} with remat {remat}"
            );
        }
    }
}

#[test]
fn an_evaluation_encodes_once_and_merges_the_baselines_first_layers() {
    let (n, z, samples) = (2, 256, 256);
    let model = Model::new(Kind::Baseline, None).unwrap();
    let layers = |first: &[(usize, usize, usize)], n| -> usize {
        first.iter().map(|(side, i, o)| conv(n, side * side, 25, *i, *o)).sum()
    };
    let encoder = layers(&[(32, 1, 32), (16, 32, 64), (8, 64, 128), (4, 128, 256), (2, 256, 512)], n)
        + conv(n, 1, 1, 2048, 2 * z);
    let composing = layers(&[(2, 512, 256)], z + 1);
    let decoder =
        conv(n, 1, 1, z, 16 * 256) + layers(&[(4, 256, 128), (8, 128, 64), (16, 64, 32), (28, 32, 1)], n);
    let function = vnca::study::eval::function(&model.vae(), n, samples).expect("the graph is well formed");
    assert_eq!(Cost::from_function(&function).flops, (encoder + composing + samples * decoder) as u64);
}

/// Returns the number of cells in the doubling model's grids, summed over their sizes.
fn grown() -> usize {
    [2, 4, 8, 16, 32].iter().map(|side| side * side).sum()
}

#[test]
fn the_gradient_saves_the_grid_of_every_step_and_the_marked_values() {
    let metrics = 2 * 4 * CHUNK;
    for (kind, n, grids, marked) in [
        (Kind::Baseline, 32, 0, 0),
        // Marked values: one after the first layer, two in each of four blocks.
        (Kind::Doubling, 4, 4 * 8 * grown() * 256 * 4, 1 + 2 * 4),
        (Kind::NonDoubling, 4, 4 * 36 * 32 * 32 * 128 * 4, 1),
    ] {
        for (remat, kept) in [(0, grids * (1 + marked)), (1, grids)] {
            let stacked = Cost::from_function(&training(kind, n, remat)).stacked_bytes;
            assert_eq!(stacked, (kept + metrics) as u64, "{kind} with remat {remat}");
        }
    }
}

/// Counts each operation in a module's text.
fn operations(text: &str) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        // `name = f32[2,3]{1,0} dot(...)`, or `name = (f32[2], s32[]) while(...)`.
        let Some((_, value)) = line.split_once(" = ") else { continue };
        let called = value.match_indices('(').filter_map(|(at, _)| {
            let word = value[..at].rsplit(' ').next()?;
            let lower = |c: char| c.is_ascii_lowercase() || c == '-';
            (!word.is_empty() && word.chars().all(lower)).then_some(word)
        });
        if let Some(operation) = called.take(1).next() {
            *counts.entry(operation).or_default() += 1;
        }
    }
    counts
}

/// Accelerators get a loop over gradient steps, in which the automaton's loops are written out.
#[test]
fn a_module_for_accelerators_has_one_loop() {
    // Convolutions and matmuls of the encoder: forward pass and two gradients, without that of the first layer's image.
    let (encoder_convs, encoder_dots) = (14, 3);
    // The doubling model's gradients of the weights: one for all steps on grids of up to 8 x 8 cells, then one a step.
    let (doubling, weights) = (5 * 8, 3 + 2 * 8);
    for (kind, convs, dots, bytes) in [
        (Kind::Baseline, 15, 3, 400_000),
        // A cell: forward pass and the gradient of its grid in every step, and the gradients of the weights.
        (Kind::Doubling, 2 * doubling + weights, (2 * doubling + weights) * 9, 3_000_000),
        (Kind::NonDoubling, 3 * 36, 3 * 36, 1_500_000),
    ] {
        let function = training(kind, 4, 0);
        for target in [Target::Native, Target::Gpu] {
            let module = lower(&function, target, 1).expect("lowers").module;
            assert!(module.len() < bytes, "{kind} for {target:?}: {} bytes", module.len());
            let module = xla::HloModuleProto::parse_proto(&module, true).expect("it is a module");
            let text = module.to_string().expect("it has a text");
            let counts = operations(&text);
            let count = |name: &str| counts.get(name).copied().unwrap_or(0);
            assert_eq!(count("while"), 1, "{kind} for {target:?}");
            if target == Target::Native {
                assert_eq!(count("convolution"), encoder_convs + convs, "{kind}");
                assert_eq!(count("dot"), encoder_dots + dots, "{kind}");
            }
        }
    }
}

/// CPUs get two loops for each of the automaton's: the steps, and their gradient.
#[test]
fn a_module_for_cpus_has_the_graphs_loops() {
    for (kind, loops, bytes) in
        [(Kind::Baseline, 0, 400_000), (Kind::Doubling, 5, 700_000), (Kind::NonDoubling, 1, 300_000)]
    {
        let module = lower(&training(kind, 4, 0), Target::Cpu, 1).expect("lowers").module;
        assert!(module.len() < bytes, "{kind}: {} bytes", module.len());
        let module = xla::HloModuleProto::parse_proto(&module, true).expect("it is a module");
        let counts = operations(&module.to_string().expect("it has a text")).get("while").copied();
        assert_eq!(counts, Some(1 + 2 * loops), "{kind}");
    }
}

/// Reads name and optimised text of the programs that a process compiled from XLA's dump.
fn compiled(dump: &std::path::Path) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(dump).expect("XLA wrote its dump");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let finished = paths.filter(|p| p.to_string_lossy().ends_with("cpu_after_optimizations.txt"));
    let named = finished.map(|path| {
        let file = path.file_name().expect("a file").to_string_lossy().into_owned();
        // `module_0001.train_nondoubling.120.cpu_after_optimizations.txt`
        let name = file.split('.').nth(1).expect("a name").to_string();
        (name, std::fs::read_to_string(&path).expect("it can be read"))
    });
    named.collect()
}

#[test]
fn a_run_compiles_each_program_once_and_the_compiler_adds_no_loops() {
    let folder = tempfile::tempdir().unwrap();
    let data = cli::data_folder(folder.path());
    // The number of NCA steps differs from step to step.
    let arguments = "train --model nondoubling --latent 8 --nca-steps 2 --nca-steps-min 2 --nca-steps-max 6 --pool-size 8 \
        --batch-size 4 --out run --steps 7 --chunk 3 --eval-every 3 --eval-samples 2 --checkpoint-every 0 --data";
    let mut arguments: Vec<&str> = arguments.split_whitespace().collect();
    arguments.push(data.to_str().unwrap());
    let dump = folder.path().join("dump");
    let flags = format!("--xla_dump_to={} --xla_dump_hlo_as_text", dump.display());
    let output = cli::vnca(folder.path(), &arguments).env("XLA_FLAGS", flags).output().unwrap();
    assert!(output.status.success(), "{}", cli::text(&output.stderr));
    assert_eq!(cli::metrics(&folder.path().join("run")).len(), 7);

    let programs = compiled(&dump);
    let mut names: Vec<&str> = programs.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all, "a program was compiled twice: {names:?}");
    assert!(names.contains(&"train_nondoubling") && names.contains(&"eval_nondoubling_k2"), "{names:?}");

    let (_, text) = programs.iter().find(|(name, _)| name == "train_nondoubling").unwrap();
    let counts = operations(text);
    let count = |name: &str| counts.get(name).copied().unwrap_or(0);
    // The least number of steps and the others are two loops, with two of their gradients.
    assert_eq!(count("while"), 1 + 4, "{counts:?}");
    // The encoder's five layers, and in both loops the cell's first one. An ELU is neither a separate loop nor recomputed.
    assert_eq!(text.matches("\"ELU\"").count(), 5 + 2, "calls of oneDNN with a bias and an ELU");
    // Limits: the counts when this test was written, plus a fifth for other processors. Examine a change that exceeds them.
    for (name, most) in [("fusion", 260), ("copy", 45), ("transpose", 27), ("concatenate", 28)] {
        assert!(count(name) <= most, "{} {name}: {counts:?}", count(name));
    }
}

#[test]
fn operations_are_counted_by_name() {
    let text = "a.1 = f32[2]{0} add(f32[2] x, f32[2] y)\n  ROOT w = (f32[2]{0}, s32[]) while((f32[2]) t), condition=c\n}";
    assert_eq!(operations(text), BTreeMap::from([("add", 1), ("while", 1)]));
}
