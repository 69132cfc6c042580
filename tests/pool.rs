//! The pool: the `exchange` shuffle equals the global one bit for bit and moves fewer bytes. A run with a pool resumes exactly,
//! even within a chunk, and on another number of replicas.

#[path = "common/cli.rs"]
mod cli;

use std::path::Path;

use vnca::cli::optimiser::Optimiser;
use vnca::engine::lower::{Target, lower};
use vnca::model::pool::{PoolSpec, Shuffle};
use vnca::model::{Pooled, report};
use vnca::train::{Sizes, TrainProgram};

const STEPS: usize = 9;

fn arguments<'a>(replicas: &'a str, shuffle: &'a str, out: &'a str, steps: &'a str) -> Vec<&'a str> {
    let text = "train --model nondoubling --latent 4 --data images --batch-size 16 --pool-size 64 --nca-steps-min 1 \
                --nca-steps-max 4 --nca-steps 3 --chunk 6 --eval-every 0 --checkpoint-every 4 --learning-rate 0.001";
    let mut arguments: Vec<&str> = text.split_whitespace().collect();
    arguments.extend(["--replicas", replicas, "--pool-shuffle", shuffle, "--out", out, "--steps", steps]);
    arguments
}

/// Returns the bytes of a run's last checkpoint: parameters, moments, keys, and the pool in its order.
fn last(run: &Path) -> Vec<u8> {
    std::fs::read(run.join(format!("checkpoints/step-{STEPS:08}.npz"))).expect("the last checkpoint exists")
}

fn assert_same(a: &Path, b: &Path) {
    assert_eq!(cli::metrics(a), cli::metrics(b));
    assert!(last(a) == last(b), "{} and {} end differently", a.display(), b.display());
}

#[test]
fn exchange_equals_a_global_shuffle_on_any_number_of_replicas() {
    let folder = tempfile::tempdir().unwrap();
    cli::data_folder(folder.path());
    let steps = STEPS.to_string();
    for replicas in ["1", "2", "4", "8"] {
        let runs = ["global", "exchange"].map(|shuffle| {
            let out = format!("{shuffle}-{replicas}");
            cli::succeed(folder.path(), &arguments(replicas, shuffle, &out, &steps));
            folder.path().join(out)
        });
        assert_same(&runs[0], &runs[1]);
    }

    // Stopped within a chunk and resumed.
    let whole = folder.path().join("exchange-2");
    cli::succeed(folder.path(), &arguments("2", "exchange", "parts", "5"));
    cli::succeed(folder.path(), &["train", "--resume", "--out", "parts", "--steps", &steps]);
    assert_same(&whole, &folder.path().join("parts"));

    // Resumed on another number of replicas: the same images in the same order, with other draws.
    cli::succeed(folder.path(), &arguments("2", "exchange", "moved", "5"));
    cli::succeed(
        folder.path(),
        &["train", "--resume", "--out", "moved", "--steps", &steps, "--replicas", "4"],
    );
    let (kept, moved) = (cli::metrics(&whole), cli::metrics(&folder.path().join("moved")));
    assert_eq!(kept[..5], moved[..5]);
    assert_eq!(moved.len(), STEPS);
    assert!(kept[5..].iter().zip(&moved[5..]).all(|(a, b)| a["loss"] != b["loss"]));
}

/// Returns the bytes that a replica receives from others in a step, by collective, from the text of the module.
fn received(shuffle: Shuffle, replicas: usize) -> Vec<(&'static str, usize)> {
    let pool = PoolSpec { shuffle, ..PoolSpec::REPORT };
    let task = Pooled { pool, ..Pooled::new(report::nondoubling(128, 36)) };
    let sizes = Sizes { replicas, batch: 128, chunk: 125, examples: 2000 };
    let program = TrainProgram { task: &task, optimiser: &Optimiser::REPORT.chain(1), sizes };
    let program = lower(&program.function().unwrap(), Target::Native, replicas).unwrap();
    let text = xla::HloModuleProto::parse_proto(&program.module, true).unwrap().to_string().unwrap();
    let of = |opcode: &'static str| {
        let lines = text.lines().filter(|line| line.contains(&format!(" {opcode}(")));
        (opcode, lines.map(|line| bytes(line) / replicas * (replicas - 1)).sum())
    };
    vec![of("all-gather"), of("all-to-all")]
}

/// Returns the bytes of an instruction's result: `%x = f32[2,3]{1,0} opcode(...)`.
fn bytes(line: &str) -> usize {
    let shape = line.split(" = ").nth(1).expect("an instruction has a result");
    let (dtype, rest) = shape.split_once('[').expect("of a shape");
    let dims = rest.split(']').next().expect("with sizes");
    let size = match dtype {
        "f32" | "s32" | "u32" => 4,
        "u8" => 1,
        other => panic!("{other} is not moved"),
    };
    dims.split(',').map(|d| d.parse::<usize>().expect("a size")).product::<usize>() * size
}

#[test]
fn exchange_moves_a_sixteenth_of_the_bytes_of_a_global_shuffle() {
    const ENTRY: usize = 28 * 28 + 32 * 32 * 128 * 4;
    let total = |shuffle| received(shuffle, 8).iter().map(|(_, bytes)| bytes).sum::<usize>();
    // Global: all entries of the seven others. Exchange: only entries for the next half batch.
    assert_eq!(received(Shuffle::Global, 8), [("all-gather", 7 * 128 * ENTRY), ("all-to-all", 0)]);
    assert_eq!(received(Shuffle::Exchange, 8), [("all-gather", 0), ("all-to-all", 7 * 8 * ENTRY)]);
    assert_eq!(total(Shuffle::Global), 16 * total(Shuffle::Exchange));
    assert_eq!(total(Shuffle::Replica), total(Shuffle::Global));
    assert_eq!(total(Shuffle::Local), 0);
}
