//! `vnca run-exported`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{DeviceOptions, Outcome, Report, to_stderr};
use crate::engine::array::Array;
use crate::engine::program::{Program, Signature};
use crate::engine::runtime::{Arg, Buffers};
use crate::error::{Error, Tag};
use crate::nn::weights::npz;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder that `vnca export` wrote
    folder: PathBuf,
    /// Name of the program, as the export lists it
    name: String,
    /// Inputs by name, the same on every replica; missing ones are zeros
    #[arg(long, value_name = "FILE.npz")]
    inputs: Option<PathBuf>,
    /// Where to write the first replica's outputs by name
    #[arg(long, value_name = "FILE.npz")]
    out: Option<PathBuf>,
    /// Number of calls; the time of the fastest is reported
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    calls: u32,
    #[command(flatten)]
    device: DeviceOptions,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let program = Program::load(&args.folder, &args.name)?;
    let signature = program.signature.clone();
    let values = inputs(&signature, args).tag(Error::Data)?;
    let mesh = args.device.open(1, signature.replicas)?;
    to_stderr(&format!("device  {}, {} replica(s)", mesh.describe(), mesh.replicas()));
    let began = Instant::now();
    let executable = mesh.compile(program)?;
    let compiling = began.elapsed().as_secs_f64();
    let (mut fastest, mut results) = (f64::INFINITY, Vec::new());
    for _ in 0..args.calls {
        let arguments: Result<Vec<Arg<'_>>> = values.iter().map(|a| Ok(mesh.replicate(a)?.into())).collect();
        let arguments = arguments?;
        let began = Instant::now();
        let buffers = executable.call(arguments)?;
        results = buffers.iter().map(|b: &Buffers| b.get(0)).collect::<Result<Vec<Array>>>()?;
        fastest = fastest.min(began.elapsed().as_secs_f64());
    }
    if let Some(path) = &args.out {
        let names = signature.outputs.iter().map(|o| o.name.as_str());
        npz::write(path, names.zip(&results))?;
    }
    let json = serde_json::json!({"name": args.name, "compile_seconds": compiling, "seconds": fastest,
        "memory": mesh.memory(0)});
    let text = format!("{}: compiled in {compiling:.1} s, a call takes {:.2} ms", args.name, fastest * 1e3);
    Report { json, text }.print(args.json)
}

/// Returns an array for each input of the program.
fn inputs(signature: &Signature, args: &Args) -> Result<Vec<Array>> {
    let mut named = match &args.inputs {
        Some(path) => npz::read(path).with_context(|| format!("cannot use {}", path.display()))?,
        None => Vec::new(),
    };
    let mut take = |name: &str| named.iter().position(|(n, _)| n == name).map(|i| named.swap_remove(i).1);
    let values = signature.inputs.iter().map(|input| {
        let value = take(&input.name).unwrap_or_else(|| Array::zeros(&input.shape));
        let (expected, got) = (&input.shape, value.shape());
        ensure!(
            expected == got,
            "input {} of {}: expected {expected}, got {got}",
            input.name,
            signature.name
        );
        Ok(value)
    });
    let values = values.collect::<Result<Vec<Array>>>()?;
    let unknown: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
    ensure!(unknown.is_empty(), "{} has no input {}", signature.name, unknown.join(", "));
    Ok(values)
}
