//! `vnca convert`.

use std::path::PathBuf;

use super::{Outcome, Report, Source};
use crate::error::{Error, Tag};
use crate::nn::weights::{FileType, write};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// Seed of the initial values that are written when --model is given without --weights
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// File to write: .npz, .safetensors or Equinox's .eqx
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    FileType::from_path(&args.out).tag(Error::Usage)?;
    let weights = args.source.load_or_init(args.seed)?;
    let leaves = weights.model.vae().leaves();
    write(&args.out, &leaves, &weights.arrays)?;
    let parameters = weights.model.vae().parameter_count();
    let json = serde_json::json!({"out": args.out.to_string_lossy(), "parameters": parameters, "leaves": leaves.len()});
    Report { json, text: args.out.display().to_string() }.print(args.json)
}
