//! `vnca doctor`.

use anyhow::Result;
use serde::Serialize;

use super::{Outcome, print};
use crate::array::Array;
use crate::build::{bf16_products, compile};
use crate::error::Exit;
use crate::ir::Graph;
use crate::runtime::{Device, Mesh};
use crate::shape::Shape;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    found: String,
    /// The command that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<&'static str>,
}

/// Memory that the report's baseline takes in training, with room for the rest of the machine.
const WANTED_GIB: f64 = 2.0;

pub fn run(args: &Args) -> Outcome {
    let checks = [library(), device(), computing(), products(), memory(), disk()];
    let ok = checks.iter().all(|c| c.ok);
    if args.json {
        print(&serde_json::json!({"ok": ok, "checks": checks}).to_string())?;
    } else {
        for check in &checks {
            print(&format!("{:4} {:9} {}", if check.ok { "ok" } else { "BAD" }, check.name, check.found))?;
            if let Some(mend) = check.mend {
                print(&format!("     {:9} mend it with: {mend}", ""))?;
            }
        }
    }
    Ok(if ok { None } else { Some(Exit::Device) })
}

fn check(name: &'static str, result: Result<String>, mend: &'static str) -> Check {
    match result {
        Ok(found) => Check { name, ok: true, found, mend: None },
        Err(error) => Check { name, ok: false, found: format!("{error:#}"), mend: Some(mend) },
    }
}

/// The shared objects of XLA that this process has mapped.
fn library() -> Check {
    let found = (|| {
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let path = maps
            .lines()
            .filter_map(|l| l.split_whitespace().nth(5))
            .find(|p| ["libtensorflow_cc", "libxla_extension"].iter().any(|name| p.contains(name)));
        path.map(str::to_string).ok_or_else(|| anyhow::anyhow!("no XLA library is loaded in this process"))
    })();
    check("library", found, "tools/setup, then cargo build --release")
}

fn device() -> Check {
    let found = Mesh::open(&Device::Cpu, 1).map(|mesh| mesh.describe());
    check("device", found, "tools/setup, then cargo build --release")
}

/// Two replicas compute and add up: the compiler and the collectives work.
fn computing() -> Check {
    let found = (|| {
        let g = Graph::new("doctor");
        let x = g.input("x", &Shape::f32(&[2]));
        let function = g.finish(&[("y".into(), (x * 2.0).all_reduce())], &[])?;
        let mesh = Mesh::open(&Device::Cpu, 2)?;
        let executable = compile(&mesh, &function)?;
        let x = mesh.shard(&[Array::new(&[2], &[1f32, 2.0]), Array::new(&[2], &[10f32, 20.0])])?;
        let y = executable.call(vec![(&x).into()])?[0].get(1)?.to_vec::<f32>();
        anyhow::ensure!(y == [22.0, 44.0], "2 replicas gave {y:?}, not [22, 44]");
        Ok("a program over 2 replicas compiles and gives what it should".to_string())
    })();
    check("computing", found, "tools/setup, then cargo build --release")
}

/// No fault where there are none: they are wanted by `--precision bf16` alone, which then computes in f32.
fn products() -> Check {
    let tried = Mesh::open(&Device::Cpu, 1).and_then(|mesh| bf16_products(&mesh));
    let found = tried.map_or_else(|why| format!("no products: {why:#}"), |()| "products by oneDNN".into());
    check("bf16", Ok(found), "")
}

fn memory() -> Check {
    let found = (|| {
        let text = std::fs::read_to_string("/proc/meminfo")?;
        let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
        let kib: f64 = line
            .and_then(|l| l.split_whitespace().next()?.parse().ok())
            .ok_or_else(|| anyhow::anyhow!("/proc/meminfo has no MemAvailable"))?;
        let gib = kib / (1024.0 * 1024.0);
        anyhow::ensure!(gib >= WANTED_GIB, "{gib:.1} GiB free, training the baseline takes {WANTED_GIB}");
        Ok(format!("{gib:.1} GiB free"))
    })();
    check("memory", found, "close other programs, or take a smaller --batch-size")
}

/// A file can be written and flushed here, as a run does.
fn disk() -> Check {
    let found = (|| {
        let file = std::path::Path::new(".vnca-doctor");
        std::fs::write(file, b"ok")?;
        std::fs::remove_file(file)?;
        Ok(format!("{} can be written to", std::env::current_dir()?.display()))
    })();
    check("disk", found, "run in a folder of yours, or name one with --out")
}
