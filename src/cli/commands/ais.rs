//! `vnca ais`: checks the IWELBO by another estimate of log p(x).

use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::json;

use super::images::Evaluated;
use super::{DeviceOptions, Outcome, Report, Source, Weights, bar};
use crate::data::Split;
use crate::engine::random::Key;
use crate::error::{Error, Tag};
use crate::study::eval::ais::{Annealed, Annealer, Annealing};
use crate::study::eval::{Bound, Evaluator};

/// Images by default.
const IMAGES: usize = 100;
/// Images of a device call of the IWELBO, as in `vnca eval`. It changes no result.
const EVALUATED_AT_ONCE: usize = 32;
/// A difference of fewer standard errors may be noise.
const NOISE: f64 = 3.0;

#[derive(Debug, clap::Args)]
#[command(mut_arg("spread", |arg| arg.help("Evaluate only N images, evenly spaced [default: 100, without --limit]")))]
pub struct Args {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    images: Evaluated,
    /// Chains of each image
    #[arg(long, default_value_t = 16, value_name = "N")]
    chains: usize,
    /// Inverse temperatures from q(z | x) to p(x, z); a chain makes a move at each but the last
    #[arg(long, default_value_t = 500, value_name = "N")]
    temperatures: usize,
    /// Leapfrog steps of a move, each with a gradient of the decoder
    #[arg(long, default_value_t = 10, value_name = "N")]
    leapfrog: usize,
    /// Latent samples per image of the IWELBO
    #[arg(long, default_value_t = 128, value_name = "K")]
    samples: usize,
    /// Images per device call, over all replicas: a call moves their chains together
    #[arg(long, default_value_t = 10, value_name = "N")]
    batch_size: usize,
    /// Devices that share the images
    #[arg(long, default_value_t = 1, value_name = "R")]
    replicas: usize,
    /// Seed of chains and latents: image i uses the i-th split of its key, as in `vnca eval`
    #[arg(long, default_value_t = 2, value_name = "N")]
    seed: u64,
    #[command(flatten)]
    device: DeviceOptions,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    report(args)?.print(args.json)
}

fn report(args: &Args) -> Result<Report> {
    let Args { chains, temperatures, leapfrog, .. } = *args;
    let annealing = Annealing { chains, temperatures, leapfrog };
    let weights = args.source.load()?;
    annealing.check(weights.model.latent)?;
    let split = images(args, &weights)?;
    let device = args.device.without_programs();
    let session = device.session(args.replicas, &weights)?;
    let (mesh, model, replicas) = (&session.mesh, &session.model, session.mesh.replicas());
    let evaluated = batch(EVALUATED_AT_ONCE.next_multiple_of(replicas), replicas, split.len());
    let evaluator = Evaluator::new(mesh, model, evaluated, args.samples).tag(Error::Usage)?;
    let annealer = Annealer::new(mesh, model, batch(args.batch_size, replicas, split.len()), annealing);
    let annealer = annealer.tag(Error::Usage)?;

    let (parameters, key) = (session.parameters(), Key::new(args.seed));
    let progress = bar(split.len(), "images");
    let done = |n: usize| progress.set_position(n as u64);
    let iwelbo = evaluator.run(&parameters, &split, key, 0..split.len(), done)?.iwelbo;
    progress.finish_and_clear();
    let began = Instant::now();
    let progress = bar(split.len() * annealing.moves(), "moves");
    let annealed = annealer.run(&parameters, &split, key, |n| progress.set_position(n as u64))?;
    progress.finish_and_clear();
    summarise(args, &weights, &split, (&annealed, &iwelbo), began.elapsed().as_secs_f64())
}

/// Reads the images, by default some evenly spaced ones.
fn images(args: &Args, weights: &Weights) -> Result<Split> {
    let mut chosen = args.images.clone();
    if chosen.limit.is_none() {
        chosen.spread = chosen.spread.or(Some(IMAGES));
    }
    let split = chosen.load(chosen.source(weights.data.as_ref()))?;
    let some = || {
        ensure!(!split.is_empty(), "there are no images to evaluate on");
        Ok(())
    };
    some().tag(Error::Usage)?;
    Ok(split)
}

/// Returns the number of images of a device call: as many as asked for, but not many more than there are.
fn batch(asked: usize, replicas: usize, images: usize) -> usize {
    asked.min(images.next_multiple_of(replicas.max(1)))
}

/// Compares the estimates with the IWELBO of the same images.
fn summarise(
    args: &Args,
    weights: &Weights,
    split: &Split,
    (annealed, iwelbo): (&Annealed, &[f32]),
    seconds: f64,
) -> Result<Report> {
    let Args { chains, temperatures, leapfrog, samples, seed, .. } = *args;
    let log_prob = Bound::from_values(&annealed.log_prob)?;
    let bound = Bound::from_values(iwelbo)?;
    let pairs = annealed.log_prob.iter().zip(iwelbo);
    let differences: Vec<f64> = pairs.map(|(ais, iwelbo)| ais - f64::from(*iwelbo)).collect();
    let difference = Bound::from_values(&differences)?;
    let acceptance = Bound::from_values(&annealed.acceptance)?.mean;
    let effective = Bound::from_values(&annealed.effective_chains)?.mean;
    let suspect = difference.stderr.is_some_and(|error| difference.mean < -NOISE * error);
    let json = json!({
        "model": weights.model.kind.name(),
        "precision": weights.model.precision,
        "data": split.name,
        "images": log_prob.images,
        "ais": log_prob.mean,
        "ais_stderr": log_prob.stderr,
        "iwelbo": bound.mean,
        "iwelbo_stderr": bound.stderr,
        "difference": difference.mean,
        "difference_stderr": difference.stderr,
        "suspect": suspect,
        "acceptance": acceptance,
        "effective_chains": effective,
        "chains": chains,
        "temperatures": temperatures,
        "leapfrog": leapfrog,
        "samples": samples,
        "seed": seed,
        "seconds": seconds,
    });
    let images = log_prob.images;
    let mut lines = vec![
        format!(
            "log p(x) about {} nats by annealed importance sampling ({images} images of {}, {seconds:.1} s)",
            log_prob.text(3),
            split.name
        ),
        format!("IWELBO {} nats ({samples} samples)", bound.text(3)),
        format!("difference {} nats", difference.text(3)),
        format!(
            "{chains} chains, {effective:.1} of them effective; {temperatures} temperatures; {:.0} % of the moves accepted",
            100.0 * acceptance
        ),
    ];
    if suspect {
        lines.push(format!(
            "The IWELBO is higher by more than {NOISE} standard errors. If it still is with more --temperatures, it is too high"
        ));
    }
    Ok(Report { json, text: lines.join("\n") })
}
