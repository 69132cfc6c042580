//! One reader under libFuzzer: the one that `VNCA_FUZZ_TARGET` names. With `VNCA_FUZZ_SEEDS`, writes the readers' seeds into
//! folders of their names in that folder, prints the names and lengths, and ends.

#![no_main]

#[path = "../../tests/fuzz/meter.rs"]
#[allow(dead_code)]
mod meter;
#[path = "../../tests/fuzz/mutate.rs"]
#[allow(dead_code)]
mod mutate;
#[path = "../../tests/fuzz/targets.rs"]
#[allow(dead_code)]
mod targets;

use std::path::Path;
use std::{env, fs, process};

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use mutate::{Random, change, changed};
use targets::{Bench, TARGETS, Target};

#[global_allocator]
static METER: meter::Meter = meter::Meter;

struct Job {
    bench: Bench,
    target: &'static Target,
    seeds: Vec<Vec<u8>>,
}

fn job() -> Job {
    let bench = Bench::new();
    if let Some(folder) = env::var_os("VNCA_FUZZ_SEEDS") {
        for target in TARGETS {
            let folder = Path::new(&folder).join(target.name);
            fs::create_dir_all(&folder).expect("a folder for seeds");
            for (i, seed) in (target.seeds)(&bench).iter().enumerate() {
                fs::write(folder.join(format!("seed-{i}")), seed).expect("a seed's file");
            }
            println!("{} {}", target.name, target.longest);
        }
        drop(bench);
        process::exit(0);
    }
    let name = env::var("VNCA_FUZZ_TARGET").unwrap_or_default();
    let target = TARGETS.iter().find(|t| t.name == name).expect("VNCA_FUZZ_TARGET names a reader");
    let seeds = (target.seeds)(&bench);
    Job { bench, target, seeds }
}

thread_local! {
    static JOB: Job = job();
}

fuzz_target!(
    init: JOB.with(|_| ()),
    |bytes: &[u8]| {
        JOB.with(|job| {
            meter::checked(bytes.len(), || (job.target.read)(&job.bench, bytes));
        });
    }
);

// libFuzzer's own changes seldom give text a number of another length, and most inputs that it keeps are refused early: every
// fourth change is one of ours, and every fourth begins with a valid input.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut random = Random(u64::from(seed));
    let bytes = match random.below(4) {
        0 => {
            let mut bytes = data[..size].to_vec();
            change(&mut random, &mut bytes, max_size);
            bytes
        }
        1 => JOB.with(|job| {
            let seed = &job.seeds[random.below(job.seeds.len())];
            changed(&mut random, seed, max_size)
        }),
        _ => return fuzzer_mutate(data, size, max_size),
    };
    data[..bytes.len()].copy_from_slice(&bytes);
    bytes.len()
});
