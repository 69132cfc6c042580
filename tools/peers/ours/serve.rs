//! The contestants' common language: a line of JSON says that one is ready, and one answers every line on stdin.
//!
//! `run N` makes N steps, `peak` measures the machine's matrix products; the end of stdin ends the process.

use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use vnca::engine::runtime::Mesh;

use crate::case::Case;
use crate::{Contestant, peak};

pub fn serve(mesh: &Mesh, case: &Case, mut contestant: Contestant) -> Result<()> {
    let compile_memory = memory("VmHWM:")?;
    forget_most_memory();
    say(&json!({
        "ready": true,
        "compile_seconds": contestant.compile_seconds,
        "compile_memory": compile_memory,
        "rest_memory": memory("VmRSS:")?,
        "module_bytes": contestant.module_bytes,
        "least_flops": case.least_flops()?,
        "flops": contestant.cost.flops,
        "stacked_bytes": contestant.cost.stacked_bytes,
        "parameters": case.model.vae().parameter_count(),
        "versions": { "vnca": env!("CARGO_PKG_VERSION"), "device": mesh.describe() },
    }))?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["run", count] => {
                let count = count.parse().with_context(|| format!("run {count}"))?;
                let began = Instant::now();
                let values = contestant.run(mesh, count)?;
                let seconds = began.elapsed().as_secs_f64();
                say(&json!({ "seconds": seconds, "values": values, "memory": most_memory(mesh)? }))?;
            }
            ["peak"] => say(&json!({ "gflops": peak(mesh)? }))?,
            _ => bail!("no command {line:?}: there are run N and peak"),
        }
    }
    Ok(())
}

/// The most bytes in use so far: of the device's memory where its runtime tells it, else of the process's.
fn most_memory(mesh: &Mesh) -> Result<u64> {
    match mesh.memory(0).and_then(|memory| memory.peak) {
        Some(peak) => Ok(peak),
        None => memory("VmHWM:"),
    }
}

fn say(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

/// Bytes of this process in memory: now (`VmRSS:`), or the most since it was asked to forget them (`VmHWM:`).
fn memory(field: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix(field)).context("a field of /proc/self/status")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

/// Where the system does not allow it, the memory of compiling stays in the figure.
fn forget_most_memory() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
