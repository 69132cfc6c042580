//! `vnca export`.

use std::path::PathBuf;

use anyhow::Result;

use super::programs::Sizes;
use super::{Outcome, print};
use crate::engine::conformance;
use crate::engine::ir::Function;
use crate::engine::lower::{lower, stablehlo};
use crate::engine::program::Target;
use crate::error::{Error, Tag};
use crate::files;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    sizes: Sizes,
    /// Folder for the programs
    #[arg(long, default_value = "programs", value_name = "DIR")]
    out: PathBuf,
    /// Forms of matmuls and convolutions to write them in
    #[arg(long, default_value = "native", value_enum)]
    target: Target,
    /// Write the modules as StableHLO text too, for people and other tools
    #[arg(long)]
    text: bool,
    /// Write the programs of `vnca conformance` instead of a model's
    #[arg(long)]
    conformance: bool,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let mut written = Vec::new();
    for (function, replicas) in functions(args)? {
        let program = lower(&function, args.target, replicas)?;
        program.save(&args.out)?;
        if args.text {
            write_text(args, &program.signature.name, &program.module)?;
        }
        let (name, inputs) = (&program.signature.name, program.signature.inputs.len());
        let outputs = program.signature.outputs.len();
        let bytes = program.module.len();
        if !args.json {
            print(&format!("{name:24} {inputs:4} inputs {outputs:4} outputs {bytes:9} bytes"))?;
        }
        written.push(serde_json::json!({"name": name, "inputs": inputs, "outputs": outputs, "bytes": bytes}));
    }
    if args.json {
        print(&serde_json::json!({"folder": args.out.to_string_lossy(), "programs": written}).to_string())?;
    }
    Ok(None)
}

/// Returns the graphs to export, each with its number of replicas.
fn functions(args: &Args) -> Result<Vec<(Function, usize)>> {
    if args.conformance {
        return conformance::functions();
    }
    let made = args.sizes.all().tag(Error::Usage)?;
    Ok(made.into_iter().map(|made| (made.function, made.replicas)).collect())
}

fn write_text(args: &Args, name: &str, module: &[u8]) -> Result<()> {
    let path = args.out.join(format!("{name}.stablehlo.mlir"));
    files::write_bytes(&path, stablehlo(module)?)
}
