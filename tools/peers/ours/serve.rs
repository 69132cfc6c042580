//! The contestants' protocol. A contestant prints a line of JSON when it is ready, and one for each command on stdin.
//!
//! `run N` runs N steps. `peak` measures the machine's peak in matmuls. The end of stdin ends the process.

use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use vnca::engine::runtime::Mesh;

use crate::case::Case;
use crate::{Contestant, peak};

/// Runs the commands on stdin.
///
/// # Errors
/// When a command is unknown or the device fails.
pub fn serve(mesh: &Mesh, case: &Case, mut contestant: Contestant) -> Result<()> {
    let compile_memory = memory("VmHWM:")?;
    reset_peak_memory();
    write_line(&json!({
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
                write_line(&json!({ "seconds": seconds, "values": values, "memory": peak_memory(mesh)? }))?;
            }
            ["peak"] => write_line(&json!({ "gflops": peak(mesh)? }))?,
            _ => bail!("unknown command {line:?}: the commands are run N and peak"),
        }
    }
    Ok(())
}

/// Returns the peak memory use in bytes: that of the device if its runtime reports it, else that of the process.
fn peak_memory(mesh: &Mesh) -> Result<u64> {
    match mesh.memory(0).and_then(|memory| memory.peak) {
        Some(peak) => Ok(peak),
        None => memory("VmHWM:"),
    }
}

/// Writes a line of JSON to stdout.
fn write_line(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

/// Returns the resident memory of this process in bytes: the current size (`VmRSS:`), or the peak since the last reset (`VmHWM:`).
fn memory(field: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix(field)).context("a field of /proc/self/status")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

/// Resets the process's peak memory. If the system does not allow it, the peak includes the memory of compiling.
fn reset_peak_memory() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
