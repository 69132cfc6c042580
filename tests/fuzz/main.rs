//! Readers of foreign bytes, given damaged ones: none panics, takes long, or takes more memory than a file's size explains.
//!
//! This is the short part of the fuzzing, without coverage, with the same inputs every time. `tools/fuzz` is the long one.
//! `VNCA_FUZZ_INPUTS` gives each reader another number of inputs, `VNCA_FUZZ_SEED` other ones.

mod meter;
mod mutate;
mod targets;

use std::panic::{self, AssertUnwindSafe};
use std::{env, fs};

use mutate::{Random, changed};
use targets::{Bench, TARGETS, Target};

#[global_allocator]
static METER: meter::Meter = meter::Meter;

/// A number from the environment.
fn asked(name: &str, default: u64) -> u64 {
    env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// What a reader does wrong with an input, and the bytes of memory that it takes if nothing.
fn outcome(bench: &Bench, target: &Target, input: &[u8]) -> Result<usize, String> {
    let read = || meter::checked(input.len(), || (target.read)(bench, input));
    panic::catch_unwind(AssertUnwindSafe(read)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
    })
}

/// A shorter input with which the reader still does wrong.
fn shortened(bench: &Bench, target: &Target, mut input: Vec<u8>) -> Vec<u8> {
    let mut size = input.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < input.len() {
            let mut fewer = input.clone();
            fewer.drain(at..(at + size).min(input.len()));
            match outcome(bench, target, &fewer) {
                Err(_) => input = fewer,
                Ok(_) => at += size,
            }
        }
        size /= 2;
    }
    input
}

/// One test, so that no other allocates in the meantime.
#[test]
fn damaged_bytes_are_refused_or_read() {
    let inputs = asked("VNCA_FUZZ_INPUTS", 10_000);
    let seed = asked("VNCA_FUZZ_SEED", 1);
    let bench = Bench::new();
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let mut wrong = Vec::new();
    let mut table = String::from("reader, inputs, most bytes of memory\n");
    for (i, target) in TARGETS.iter().enumerate() {
        let seeds = (target.seeds)(&bench);
        let mut random = Random(seed ^ (i as u64) << 32);
        let mut most = 0;
        for n in 0..inputs {
            let from = &seeds[n as usize % seeds.len()];
            // The seeds themselves come first.
            let input = if n < seeds.len() as u64 {
                from.clone()
            } else {
                changed(&mut random, from, target.longest)
            };
            match outcome(&bench, target, &input) {
                Ok(bytes) => most = most.max(bytes),
                Err(_) => {
                    let input = shortened(&bench, target, input);
                    let message = outcome(&bench, target, &input).err().unwrap_or_default();
                    wrong.push(format!("{}: {message}: b\"{}\"", target.name, input.escape_ascii()));
                    break;
                }
            }
        }
        table += &format!("{}, {inputs}, {most}\n", target.name);
    }
    panic::set_hook(hook);
    println!("{table}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    large_files_take_memory_in_proportion(&bench);
}

/// The limit of memory means something for large files only: of each kind of weights, one of 32 MB; one whose parts are used
/// many times; and JSON.
fn large_files_take_memory_in_proportion(bench: &Bench) {
    let mut wrong = Vec::new();
    for (name, bytes) in targets::weights::large() {
        let path = bench.file(name, &bytes);
        let length = bytes.len();
        drop(bytes);
        let mut refused = String::new();
        let peak = meter::peak_of(|| refused = targets::weights::read_large(&path));
        let refused: String = refused.chars().take(100).collect();
        println!(
            "{name}: {length} bytes, {:.2} times as much memory: {refused}",
            peak as f64 / length as f64
        );
        if peak > 4 * length + (16 << 20) {
            wrong.push(format!("{name}: {length} bytes took {peak} bytes of memory"));
        }
        fs::remove_file(path).expect("the file is there");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
