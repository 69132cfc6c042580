//! `vnca export`.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::programs::Sizes;
use super::{Outcome, print};
use crate::error::{Exit, WithExit};
use crate::lower::{lower, stablehlo};
use crate::program::Target;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    sizes: Sizes,
    /// Folder for the programs
    #[arg(long, default_value = "programs", value_name = "DIR")]
    out: PathBuf,
    /// Forms to write them in: native for TPUs and GPUs, cpu for XLA's CPU compiler
    #[arg(long, default_value = "native", value_parser = ["native", "cpu"])]
    target: String,
    /// Write the modules as StableHLO text too, for people and other tools
    #[arg(long)]
    text: bool,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let target = if args.target == "cpu" { Target::Cpu } else { Target::Native };
    let mut written = Vec::new();
    for made in args.sizes.all().exit(Exit::Usage)? {
        let program = lower(&made.function, target, args.sizes.replicas)?;
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
        print(&serde_json::json!({"folder": args.out, "programs": written}).to_string())?;
    }
    Ok(None)
}

fn write_text(args: &Args, name: &str, module: &[u8]) -> Result<()> {
    let path = args.out.join(format!("{name}.stablehlo.mlir"));
    std::fs::write(&path, stablehlo(module)?).with_context(|| format!("cannot write {}", path.display()))
}
