//! `vnca compile`: compiles programs for TPUs without having one, and estimates their memory and time.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Serialize;

use super::programs::{SizedProgram, Sizes};
use super::{Outcome, bar, print, to_stderr};
use crate::cli::environment;
use crate::cli::error::Exit;
use crate::engine::lower::{Target, lower};
use crate::engine::runtime::pjrt::{Collective, Compiler, Estimate, Usage};
use crate::engine::runtime::{Device, Plugin, Settings};
use crate::error::{Error, Tag};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Topology to compile for; may be given several times, or as `all`
    #[arg(long, default_value = "v3:2x2", value_name = "NAME")]
    topology: Vec<String>,
    #[command(flatten)]
    sizes: Sizes,
    /// The compiler: tpu, or a plugin's path; flags of the compiler (xla_...) after commas
    #[arg(long, default_value = "tpu", value_name = "PLUGIN")]
    plugin: String,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

/// A generation of TPUs. The clock is the published peak divided by the operations per cycle of the matrix units.
struct Generation {
    name: &'static str,
    /// The topology for `--topology all`. It has eight cores, or eight chips where a chip has one core. v4 uses the two cores of a
    /// chip as one.
    topology: &'static str,
    mhz: f64,
    gib_per_core: f64,
    /// Peak bf16 operations per second, in 10^12. A multiplication and an addition count as two.
    tflops_per_core: f64,
}

const GENERATIONS: [Generation; 5] = [
    Generation { name: "v2", topology: "v2:2x2", mhz: 700.0, gib_per_core: 8.0, tflops_per_core: 22.5 },
    Generation { name: "v3", topology: "v3:2x2", mhz: 940.0, gib_per_core: 16.0, tflops_per_core: 61.5 },
    Generation { name: "v4", topology: "v4:2x2x1", mhz: 1050.0, gib_per_core: 32.0, tflops_per_core: 275.0 },
    Generation { name: "v5e", topology: "v5e:2x4", mhz: 1500.0, gib_per_core: 16.0, tflops_per_core: 197.0 },
    Generation { name: "v6e", topology: "v6e:2x4", mhz: 1750.0, gib_per_core: 32.0, tflops_per_core: 918.0 },
];

fn generation(topology: &str) -> Option<&'static Generation> {
    GENERATIONS.iter().find(|g| topology.split(':').next() == Some(g.name))
}

/// The largest number of automaton steps that a training step with a pool draws, which `flops` also assumes. The mean is 47.5.
const INNER_TRIPS: f64 = 63.0;

#[derive(Serialize)]
struct Row {
    name: String,
    topology: String,
    replicas: usize,
    memory: Memory,
    /// Operations of a gradient step or an evaluation call, on one replica.
    flops: f64,
    bytes: f64,
    estimated_ms: Option<f64>,
    /// Share of the core's peak: `flops` in `estimated_ms` over the peak.
    of_peak: Option<f64>,
    collectives: BTreeMap<String, Collective>,
    compile_seconds: f64,
}

#[derive(Serialize)]
struct Memory {
    #[serde(flatten)]
    usage: Usage,
    total: i64,
    /// A core's memory in bytes, if the generation is known.
    limit: Option<i64>,
}

pub fn run(args: &Args) -> Outcome {
    environment::set_defaults(&environment::WITHOUT_TPU);
    let (plugin, flags) = match args.plugin.parse().tag(Error::Usage)? {
        Device::Plugin { plugin, settings } => (plugin, settings),
        Device::Cpu => (Plugin::Tpu, Settings::new()),
    };
    let compiler = Compiler::load(&plugin)?;
    let functions = args.sizes.train_and_eval().tag(Error::Usage)?;
    let topologies = topologies(&args.topology);
    let progress = bar(functions.len() * topologies.len(), "programs");
    let (mut rows, mut failed) = (Vec::new(), false);
    for made in &functions {
        let program = lower(&made.function, Target::Native, made.replicas)?;
        for topology in &topologies {
            progress.set_message(format!("{} for {topology}", made.function.name));
            let began = std::time::Instant::now();
            let result = compiler.compile(topology, &program, &flags).and_then(|compiled| {
                let seconds = began.elapsed().as_secs_f64();
                let estimate = compiled.estimate(INNER_TRIPS)?;
                Ok(row(made, topology, compiled.usage, estimate, seconds))
            });
            match result.with_context(|| format!("{} for {topology}", made.function.name)) {
                Ok(row) => rows.push(row),
                Err(error) => {
                    progress.suspend(|| to_stderr(&format!("error: {error:#}")));
                    failed = true;
                }
            }
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    match args.json {
        true => print(&serde_json::json!({ "programs": rows }).to_string())?,
        false if rows.is_empty() => {}
        false => print(&table(&rows))?,
    }
    Ok(failed.then_some(Exit::Failure))
}

/// Replaces `all` by the topologies of all generations.
fn topologies(requested: &[String]) -> Vec<String> {
    match requested.iter().any(|t| t == "all") {
        true => GENERATIONS.iter().map(|g| g.topology.to_string()).collect(),
        false => requested.to_vec(),
    }
}

fn row(made: &SizedProgram, topology: &str, usage: Usage, estimate: Estimate, compile_seconds: f64) -> Row {
    let generation = generation(topology);
    let flops = made.flops();
    let estimated_ms = generation.filter(|_| estimate.cycles > 0.0).map(|g| estimate.cycles / g.mhz / 1e3);
    Row {
        name: made.function.name.clone(),
        topology: topology.to_string(),
        replicas: made.replicas,
        memory: Memory {
            usage,
            total: usage.total(),
            limit: generation.map(|g| (g.gib_per_core * f64::from(1 << 30)) as i64),
        },
        flops,
        bytes: estimate.bytes,
        estimated_ms,
        of_peak: estimated_ms.zip(generation).map(|(ms, g)| flops / (ms * 1e-3 * g.tflops_per_core * 1e12)),
        collectives: estimate.collectives,
        compile_seconds,
    }
}

fn table(rows: &[Row]) -> String {
    let mib = |bytes: i64| bytes as f64 / f64::from(1 << 20);
    let width = rows.iter().map(|r| r.name.len()).max().unwrap_or(0).max("program".len());
    let mut lines = vec![format!(
        "{:width$}  {:9} {:>4}  {:>9} {:>9} {:>9} {:>6} {:>9}  {:>8} {:>8} {:>9} {:>5}  collectives",
        "program",
        "topology",
        "R",
        "arguments",
        "temporary",
        "donated",
        "code",
        "total MiB",
        "Gflop",
        "MB",
        "est. ms",
        "peak"
    )];
    for r in rows {
        let Usage { arguments, temporaries, donated, code, .. } = r.memory.usage;
        let collectives: Vec<String> = r
            .collectives
            .iter()
            .map(|(name, c)| format!("{} {name} {:.1} MB", c.count, c.bytes / 1e6))
            .collect();
        lines.push(format!(
            "{:width$}  {:9} {:>4}  {:>9.1} {:>9.1} {:>9.1} {:>6.1} {:>9.1}  {:>8.2} {:>8.0} {:>9} {:>5}  {}",
            r.name,
            r.topology,
            r.replicas,
            mib(arguments),
            mib(temporaries),
            mib(donated),
            mib(code),
            mib(r.memory.total),
            r.flops / 1e9,
            r.bytes / 1e6,
            r.estimated_ms.map_or("-".into(), |ms| format!("{ms:.2}")),
            r.of_peak.map_or("-".into(), |p| format!("{:.0}%", 100.0 * p)),
            collectives.join(", ")
        ));
    }
    let over = rows.iter().filter(|r| r.memory.limit.is_some_and(|limit| r.memory.total > limit));
    lines.extend(over.map(|r| format!("{} does not fit a core of {}", r.name, r.topology)));
    lines.push(
        "Memory of one replica; work of one gradient step or one evaluation call. est. ms: from the compiler's own cycle \
         counts, each loop multiplied by its trips."
            .into(),
    );
    lines.join("\n")
}
