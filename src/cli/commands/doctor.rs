//! `vnca doctor`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Serialize;

use super::{DeviceOptions, Outcome, print};
use crate::cli::error::{Exit, exit_code};
use crate::engine::array::Array;
use crate::engine::compile::{compile, forms};
use crate::engine::ir::Graph;
use crate::engine::runtime::pjrt::{self, Lock};
use crate::engine::runtime::{Device, Mesh, Plugin};
use crate::engine::shape::{Precision, Shape};
use crate::error::{Kind, kind};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    device: DeviceOptions,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    /// Whether the requested device needs it.
    needed: bool,
    found: String,
    /// How to fix it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<&'static str>,
}

impl Check {
    fn new(name: &'static str, needed: bool, result: Result<String>, mend: &'static str) -> Check {
        match result {
            Ok(found) => Check { name, ok: true, needed, found, mend: None },
            Err(error) => Check { name, ok: false, needed, found: format!("{error:#}"), mend: Some(mend) },
        }
    }
}

/// Memory for training the report's baseline, with room for other programs.
const NEEDED_GIB: f64 = 2.0;

pub fn run(args: &Args) -> Outcome {
    let device = args.device.get()?;
    let mut checks = tpu_checks(&device);
    checks.extend(cuda_checks(&device));
    // Open the device after these checks, because opening takes the lock that they inspect.
    let mesh = Mesh::builder(&device).devices(2).open(1);
    checks.extend(general_checks(&device, &mesh));
    let ok = checks.iter().all(|c| c.ok || !c.needed);
    if args.json {
        print(&serde_json::json!({"ok": ok, "device": args.device.device, "checks": checks}).to_string())?;
    } else {
        for check in &checks {
            let verdict = match (check.ok, check.needed) {
                (true, _) => "ok",
                (false, true) => "BAD",
                (false, false) => "--",
            };
            print(&format!("{verdict:4} {:11} {}", check.name, check.found))?;
            if let Some(mend) = check.mend {
                print(&format!("     {:11} mend it with: {mend}", ""))?;
            }
        }
    }
    Ok(if ok { None } else { Some(mesh.err().map_or(Exit::Device, |error| exit_code(&error))) })
}

/// Checks what every run needs, and the requested device.
fn general_checks(device: &Device, mesh: &Result<Mesh>) -> Vec<Check> {
    const SETUP: &str = "tools/setup, then cargo build --release";
    let on_cpu = *device == Device::Cpu;
    let mend = match (mesh, device) {
        (Err(error), _) if kind(error) == Kind::Usage => "what the message says, in the environment",
        (_, Device::Cpu) => SETUP,
        (_, Device::Plugin { .. }) => "what the message says, and the checks above; docs/devices.md has more",
    };
    // Each check needs its own copy of the error, and errors cannot be cloned.
    let mesh = || mesh.as_ref().map_err(|error| anyhow!("{error:#}"));
    vec![
        Check::new("library", on_cpu, library(), SETUP),
        Check::new("device", true, mesh().map(Mesh::describe), mend),
        Check::new(
            "computing",
            cfg!(feature = "xla"),
            mesh().and_then(compute),
            "vnca conformance reports more (without the XLA library, with --programs)",
        ),
        Check::new("products", false, matmuls(mesh()), "see the check of the device"),
        Check::new("memory", true, memory(), "close other programs, or use a smaller --batch-size"),
        Check::new("disk", true, disk(), "run in a folder that you can write to, or name one with --out"),
    ]
}

/// Returns the file of the XLA library that this process has loaded.
fn library() -> Result<String> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let path = maps
        .lines()
        .filter_map(|l| l.split_whitespace().nth(5))
        .find(|p| ["libtensorflow_cc", "libxla_extension"].iter().any(|name| p.contains(name)));
    path.map(str::to_string).context("no XLA library is loaded in this process")
}

/// Compiles and runs a program with a collective on two replicas, or on one if there is only one device.
fn compute(mesh: &Mesh) -> Result<String> {
    let g = Graph::new("doctor");
    let x = g.input("x", &Shape::f32(&[2]));
    let function = g.finish(&[("y".into(), (x * 2.0).all_reduce())], &[])?;
    let replicas = mesh.devices().min(2);
    let mesh = mesh.with_replicas(replicas)?;
    let executable = compile(&mesh, &function)?;
    let parts = [Array::new(&[2], &[1f32, 2.0]), Array::new(&[2], &[10f32, 20.0])];
    let x = mesh.shard(&parts[..replicas])?;
    let y = executable.call(vec![(&x).into()])?[0].get(replicas - 1)?.to_vec::<f32>();
    let expected = if replicas == 2 { [22.0, 44.0] } else { [2.0, 4.0] };
    ensure!(y == expected, "{replicas} replicas gave {y:?}, not {expected:?}");
    Ok(format!("a program over {replicas} replica(s) compiles and computes the right result"))
}

/// Reports which library computes matmuls, convolutions and weight gradients. A missing oneDNN is not an error: f32 is slower then,
/// and `--precision bf16` computes in f32.
fn matmuls(mesh: Result<&Mesh>) -> Result<String> {
    let mesh = mesh?;
    if *mesh.device() != Device::Cpu {
        return Ok("by the device's compiler".into());
    }
    let [f32, bf16] = [Precision::F32, Precision::Bf16].map(|precision| forms(mesh, precision).one_dnn_error);
    Ok(match (f32, bf16) {
        (None, None) => "f32 and bf16 by oneDNN".into(),
        (None, Some(why)) => format!("f32 by oneDNN; no bf16: {why}"),
        (Some(why), _) => format!("f32 by XLA itself, no bf16: {why}"),
    })
}

fn memory() -> Result<String> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib: f64 = line
        .and_then(|l| l.split_whitespace().next()?.parse().ok())
        .context("/proc/meminfo has no MemAvailable")?;
    let gib = kib / (1024.0 * 1024.0);
    ensure!(gib >= NEEDED_GIB, "{gib:.1} GiB free, training the baseline needs {NEEDED_GIB}");
    Ok(format!("{gib:.1} GiB free"))
}

/// Writes and flushes a file in the current folder, as a run does.
fn disk() -> Result<String> {
    let mut file = tempfile::tempfile_in(".")?;
    file.write_all(b"ok")?;
    file.sync_all()?;
    Ok(format!("{} can be written to", std::env::current_dir()?.display()))
}

fn uses(device: &Device, plugin: &Plugin) -> bool {
    matches!(device, Device::Plugin { plugin: used, .. } if used == plugin)
}

/// Describes a plugin without opening a device: its file, and the versions of its package and of the C API.
fn describe_plugin(plugin: &Plugin, packages: &[&str]) -> Result<String> {
    let file = plugin.find()?;
    let package = packages.iter().find_map(|name| pjrt::package(&file, name));
    Ok(format!("{}{}", package.map(|p| p + ", ").unwrap_or_default(), pjrt::inspect(plugin)?))
}

fn list_files(files: &[PathBuf], missing: &str) -> Result<String> {
    ensure!(!files.is_empty(), "{missing}");
    let names: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
    Ok(format!("{} device file(s): {}", files.len(), names.join(" ")))
}

fn tpu_checks(device: &Device) -> Vec<Check> {
    let needed = uses(device, &Plugin::Tpu);
    let no_files = "this machine has no TPU: there is neither /dev/accel0 nor /dev/vfio/0";
    vec![
        Check::new(
            "tpu library",
            needed,
            describe_plugin(&Plugin::Tpu, &["libtpu"]),
            "pip install -U libtpu, or tools/setup --tpu",
        ),
        Check::new(
            "tpu files",
            needed,
            list_files(&pjrt::tpu_files(), no_files),
            "run on a TPU VM; in a container, pass the devices on: docker run --privileged",
        ),
        Check::new(
            "tpu lock",
            needed,
            tpu_lock(Path::new(pjrt::TPU_LOCK)),
            "end the process that holds it; where none does: sudo rm /tmp/libtpu_lockfile",
        ),
    ]
}

fn tpu_lock(path: &Path) -> Result<String> {
    match pjrt::Lock::read(path) {
        Lock::Absent => Ok(format!("free: there is no {}", path.display())),
        // The last process to use the TPU leaves the file behind, and another user may not be able to open it.
        Lock::Stale => match std::fs::OpenOptions::new().write(true).open(path) {
            Ok(_) => Ok(format!("free: no process holds {}", path.display())),
            Err(error) => bail!("{} was left by another user's process ({error})", path.display()),
        },
        Lock::Held(pid) => {
            let name = pjrt::process_name(pid).unwrap_or("of another container or user".into());
            bail!("{} is held by process {pid} ({name})", path.display())
        }
    }
}

fn cuda_checks(device: &Device) -> Vec<Check> {
    let needed = uses(device, &Plugin::Cuda);
    let driver = pjrt::nvidia_driver().map(|version| format!("version {version}"));
    vec![
        Check::new(
            "cuda plugin",
            needed,
            describe_plugin(&Plugin::Cuda, &["jax_cuda13_pjrt", "jax_cuda12_pjrt"]),
            "pip install \"jax[cuda13]\"; for vnca compile alone, tools/setup --cuda",
        ),
        Check::new(
            "cuda files",
            needed,
            list_files(&pjrt::gpu_files(), "this machine has no NVIDIA GPU: there is no /dev/nvidia0"),
            "run on a machine with one; in a container: docker run --gpus all",
        ),
        Check::new(
            "cuda driver",
            needed,
            driver.context("there is no /proc/driver/nvidia/version"),
            "install an NVIDIA driver that is new enough for the plugin's CUDA version: nvidia-smi shows the one it supports",
        ),
    ]
}
