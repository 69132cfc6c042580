//! `vnca eval`.

use std::time::Instant;

use super::{Outcome, Source, bar, print};
use crate::data::{self, Part};
use crate::error::{Exit, WithExit};
use crate::eval::{Bound, Evaluator};
use crate::random::Key;
use crate::runtime::Device;
use crate::session::Session;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// Images: a file, a folder, or `glyphs` [default: those that the run was trained on, else glyphs]
    #[arg(long, env = "VNCA_DATA", value_name = "PATH")]
    data: Option<String>,
    /// Which part of the data
    #[arg(long, default_value = "test", value_parser = ["train", "test"])]
    split: String,
    /// Latent samples an image
    #[arg(long, default_value_t = 128, value_name = "K")]
    samples: usize,
    /// Images a device call, over all replicas; changes no result
    #[arg(long, default_value_t = 32, value_name = "N")]
    batch_size: usize,
    /// Devices that share the images; changes no result
    #[arg(long, default_value_t = 1, value_name = "R")]
    replicas: usize,
    /// Seed of the latents: image i has the i-th key of its split
    #[arg(long, default_value_t = 2, value_name = "N")]
    seed: u64,
    /// The first N images only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Device: cpu
    #[arg(long, default_value = "cpu", env = "VNCA_DEVICE")]
    device: String,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let weights = args.source.load()?;
    let spec = args.data.clone().or(weights.data.clone()).unwrap_or_else(|| data::GLYPHS.into());
    let part = if args.split == "train" { Part::Train } else { Part::Test };
    let split = data::load_split(&spec, part).exit(Exit::BadInput)?;
    let device: Device = args.device.parse().exit(Exit::Usage)?;
    let session = Session::open(&device, args.replicas, weights.model, &weights.arrays).exit(Exit::Device)?;
    let limit = args.limit.unwrap_or(usize::MAX).min(split.len());
    let began = Instant::now();
    let evaluator =
        Evaluator::new(&session.mesh, &session.model, args.batch_size, args.samples).exit(Exit::Usage)?;
    let progress = bar(limit, "images");
    let values = evaluator
        .run(&session.parameters, &split, Key::new(args.seed), limit, |n| progress.set_position(n as u64))?;
    progress.finish_and_clear();
    let bound = Bound::of(&values).exit(Exit::Usage)?;
    let seconds = began.elapsed().as_secs_f64();
    if args.json {
        let result = serde_json::json!({
            "iwelbo": bound.mean,
            "stderr": bound.stderr,
            "images": bound.images,
            "samples": args.samples,
            "seconds": seconds,
        });
        print(&result.to_string())?;
    } else {
        print(&format!(
            "log p(x) >= {:.3} ± {:.3} nats ({} images of {}, {} samples, {seconds:.1} s)",
            bound.mean, bound.stderr, bound.images, split.name, args.samples
        ))?;
    }
    Ok(None)
}
