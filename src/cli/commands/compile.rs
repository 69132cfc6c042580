//! `vnca compile`: compiles programs for TPUs and GPUs without having one, and reports their memory and work.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::programs::{SizedProgram, Sizes};
use super::{Outcome, bar, print, to_stderr};
use crate::cli::environment;
use crate::cli::error::Exit;
use crate::engine::lower::{Target, lower};
use crate::engine::runtime::pjrt::{Collective, Compiled, Compiler, Estimate, Gpu, Kernels, Usage};
use crate::engine::runtime::{Device, Plugin, Settings};
use crate::error::{Error, Tag};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Topology to compile for: one of TPUs (v3:2x2), or a GPU (a100, h100, h200, b200) for each replica; may be given several
    /// times, or as `all` (TPUs) or `all-gpus`
    #[arg(long, default_value = "v3:2x2", value_name = "NAME")]
    topology: Vec<String>,
    #[command(flatten)]
    sizes: Sizes,
    /// The compiler: tpu, cuda, or a plugin's path; flags of the compiler (xla_...) after commas [default: that of the topology]
    #[arg(long, value_name = "PLUGIN")]
    plugin: Option<String>,
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

/// What a topology's devices are.
#[derive(Clone, Copy)]
enum Chip {
    Tpu(Option<&'static Generation>),
    Gpu(Gpu),
}

impl Chip {
    /// # Errors
    /// When the name is neither a GPU's nor of a form that libtpu may know.
    fn of(topology: &str) -> Result<Chip> {
        if let Some(gpu) = Gpu::named(topology) {
            return Ok(Chip::Gpu(gpu));
        }
        ensure!(
            topology.contains(':'),
            "there is no topology {topology:?}: those of TPUs are like {}; GPUs are {}",
            GENERATIONS.map(|g| g.topology).join(", "),
            Gpu::ALL.map(|gpu| gpu.name).join(", ")
        );
        Ok(Chip::Tpu(GENERATIONS.iter().find(|g| topology.split(':').next() == Some(g.name))))
    }

    fn plugin(self) -> Plugin {
        match self {
            Chip::Tpu(_) => Plugin::Tpu,
            Chip::Gpu(_) => Plugin::Cuda,
        }
    }

    fn target(self) -> Target {
        match self {
            Chip::Tpu(_) => Target::Native,
            Chip::Gpu(_) => Target::Gpu,
        }
    }
}

#[derive(Serialize)]
struct Row {
    name: String,
    topology: String,
    replicas: usize,
    /// Hosts whose devices the replicas are.
    hosts: usize,
    memory: Memory,
    /// Operations of a gradient step or an evaluation call, on one replica.
    flops: f64,
    bytes: f64,
    /// Time by a TPU compiler's cycle counts.
    estimated_ms: Option<f64>,
    /// Share of the core's peak: `flops` in `estimated_ms` over the peak.
    of_peak: Option<f64>,
    /// Time that a GPU's memory takes to move `bytes`.
    memory_ms: Option<f64>,
    /// Launches, convolutions and matmuls on a GPU.
    kernels: Option<Kernels>,
    collectives: BTreeMap<String, Collective>,
    /// Bytes that each host has to send to others for all collectives, at least.
    between_hosts: f64,
    compile_seconds: f64,
}

#[derive(Serialize)]
struct Memory {
    #[serde(flatten)]
    usage: Usage,
    total: i64,
    /// The memory of a core or GPU in bytes, if it is known.
    limit: Option<i64>,
}

pub fn run(args: &Args) -> Outcome {
    environment::set_defaults(&environment::WITHOUT_TPU);
    let topologies = topologies(&args.topology);
    let chips: Vec<Chip> = topologies.iter().map(|t| Chip::of(t)).collect::<Result<_>>().tag(Error::Usage)?;
    let (plugin, flags) = match args.plugin.as_deref().map(str::parse).transpose().tag(Error::Usage)? {
        Some(Device::Plugin { plugin, settings }) => (Some(plugin), settings),
        Some(Device::Cpu) | None => (None, Settings::new()),
    };
    let plugin = |chip: &Chip| plugin.clone().unwrap_or(chip.plugin());
    // Before any program is built: a missing plugin is an error at once.
    let mut compilers = Vec::new();
    for chip in &chips {
        once(&mut compilers, plugin(chip), Compiler::load)?;
    }
    let functions = args.sizes.train_and_eval().tag(Error::Usage)?;
    let progress = bar(functions.len() * topologies.len(), "programs");
    let (mut rows, mut failed) = (Vec::new(), false);
    for made in &functions {
        let mut programs = Vec::new();
        for (topology, chip) in topologies.iter().zip(&chips) {
            let what = format!("{} for {topology}", made.function.name);
            progress.set_message(what.clone());
            let lower = |target: &Target| lower(&made.function, *target, made.replicas);
            let program = once(&mut programs, chip.target(), lower)?;
            let compiler = once(&mut compilers, plugin(chip), Compiler::load)?;
            let began = Instant::now();
            let compiled = compiler.compile(topology, program, &flags);
            let seconds = began.elapsed().as_secs_f64();
            match compiled.and_then(|compiled| row(made, topology, *chip, compiled, seconds)).context(what) {
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
        false => print(&tables(&rows))?,
    }
    Ok(failed.then_some(Exit::Failure))
}

/// Returns the value for a key, and makes it the first time.
fn once<K: PartialEq, V>(made: &mut Vec<(K, V)>, key: K, make: impl FnOnce(&K) -> Result<V>) -> Result<&V> {
    let at = match made.iter().position(|(k, _)| *k == key) {
        Some(at) => at,
        None => {
            let value = make(&key)?;
            made.push((key, value));
            made.len() - 1
        }
    };
    Ok(&made[at].1)
}

/// Replaces `all` by the topologies of all generations of TPUs, and `all-gpus` by all GPUs.
fn topologies(requested: &[String]) -> Vec<String> {
    let expand = |name: &String| match name.as_str() {
        "all" => GENERATIONS.iter().map(|g| g.topology.to_string()).collect(),
        "all-gpus" => Gpu::ALL.iter().map(|gpu| gpu.name.to_string()).collect(),
        _ => vec![name.clone()],
    };
    requested.iter().flat_map(expand).collect()
}

fn row(made: &SizedProgram, topology: &str, chip: Chip, compiled: Compiled, seconds: f64) -> Result<Row> {
    let Estimate { cycles, bytes, collectives, kernels } = compiled.estimate(made.trips)?;
    let (limit, estimated_ms, of_peak, memory_ms) = match chip {
        Chip::Tpu(generation) => {
            let ms = generation.filter(|_| cycles > 0.0).map(|g| cycles / g.mhz / 1e3);
            let limit = generation.map(|g| (g.gib_per_core * f64::from(1 << 30)) as i64);
            let of_peak = |(ms, g): (f64, &Generation)| made.flops / (ms * 1e-3 * g.tflops_per_core * 1e12);
            (limit, ms, ms.zip(generation).map(of_peak), None)
        }
        Chip::Gpu(gpu) => (Some(gpu.memory), None, None, Some(1e3 * bytes / gpu.bandwidth as f64)),
    };
    let (replicas, hosts) = (made.replicas, compiled.hosts);
    let sent = collectives.iter().map(|(name, each)| each.between_hosts(name, replicas, hosts));
    Ok(Row {
        // A sum of nothing is -0.
        between_hosts: sent.sum::<f64>() + 0.0,
        name: made.function.name.clone(),
        topology: topology.to_string(),
        replicas,
        hosts,
        memory: Memory { usage: compiled.usage, total: compiled.usage.total(), limit },
        flops: made.flops,
        bytes,
        estimated_ms,
        of_peak,
        memory_ms,
        kernels: matches!(chip, Chip::Gpu(_)).then_some(kernels),
        collectives,
        compile_seconds: seconds,
    })
}

/// Returns a table of the rows for TPUs and one of those for GPUs, each if there are any.
fn tables(rows: &[Row]) -> String {
    let (gpus, tpus): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|r| r.kernels.is_some());
    let mut lines = Vec::new();
    if !tpus.is_empty() {
        lines.extend(table(&tpus, "topology", "  est. ms  peak  collectives", tpu_columns));
        lines.push(
            "Memory of one replica; work of one gradient step or one evaluation call. est. ms: from the compiler's own \
             cycle counts, each loop multiplied by its trips."
                .into(),
        );
    }
    if !gpus.is_empty() {
        let titles = " mem. ms  launches  compile s  convolutions; matmuls; collectives";
        lines.extend(table(&gpus, "GPU", titles, gpu_columns));
        lines.push(
            "Memory of one replica; work of one gradient step or one evaluation call. mem. ms: time in which the memory \
             moves these bytes. launches: kernels, library calls and copies, each loop multiplied by its trips. \
             Convolutions and matmuls by element type."
                .into(),
        );
    }
    let over = rows.iter().filter(|r| r.memory.limit.is_some_and(|limit| r.memory.total > limit));
    lines.extend(over.map(|r| match r.kernels {
        Some(_) => format!("{} does not fit a {}", r.name, r.topology),
        None => format!("{} does not fit a core of {}", r.name, r.topology),
    }));
    lines.join("\n")
}

/// Returns lines with the columns that all devices have, each followed by the device's own.
fn table(rows: &[&Row], device: &str, titles: &str, columns: fn(&Row) -> String) -> Vec<String> {
    let mib = |bytes: i64| bytes as f64 / f64::from(1 << 20);
    let width = rows.iter().map(|r| r.name.len()).max().unwrap_or(0).max("program".len());
    let mut lines = vec![format!(
        "{:width$}  {device:9} {:>4}  {:>9} {:>9} {:>9} {:>6} {:>9}  {:>8} {:>8} {titles}",
        "program", "R", "arguments", "temporary", "donated", "code", "total MiB", "Gflop", "MB"
    )];
    for r in rows {
        let Usage { arguments, temporaries, donated, code, .. } = r.memory.usage;
        lines.push(format!(
            "{:width$}  {:9} {:>4}  {:>9.1} {:>9.1} {:>9.1} {:>6.1} {:>9.1}  {:>8.2} {:>8.0} {}",
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
            columns(r)
        ));
    }
    lines
}

fn tpu_columns(r: &Row) -> String {
    format!(
        "{:>9} {:>5}  {}",
        r.estimated_ms.map_or("-".into(), |ms| format!("{ms:.2}")),
        r.of_peak.map_or("-".into(), |p| format!("{:.0}%", 100.0 * p)),
        collectives(r)
    )
}

fn gpu_columns(r: &Row) -> String {
    let Kernels { launches, convolutions, matmuls } = r.kernels.clone().unwrap_or_default();
    let by_type = |counts: BTreeMap<String, f64>| match counts.is_empty() {
        true => "none".to_string(),
        false => counts.iter().map(|(name, n)| format!("{n} {name}")).collect::<Vec<_>>().join(", "),
    };
    let counts = [by_type(convolutions), by_type(matmuls), collectives(r)];
    let counts: Vec<String> = counts.into_iter().filter(|text| !text.is_empty()).collect();
    format!(
        "{:>8.2} {launches:>9.0} {:>10.1}  {}",
        r.memory_ms.unwrap_or_default(),
        r.compile_seconds,
        counts.join("; ")
    )
}

fn collectives(r: &Row) -> String {
    let each = r.collectives.iter();
    let each = each.map(|(name, c)| format!("{} {name} {:.1} MB", c.count, c.bytes / 1e6));
    let mut text = each.collect::<Vec<_>>().join(", ");
    if r.hosts > 1 && !text.is_empty() {
        text += &format!("; {} hosts, each sends {:.1} MB", r.hosts, r.between_hosts / 1e6);
    }
    text
}
