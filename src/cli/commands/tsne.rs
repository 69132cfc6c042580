//! `vnca tsne`.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use rand::seq::index;

use super::images::Images;
use super::{DeviceOptions, Outcome, Report, Source, bar};
use crate::data::Split;
use crate::engine::npy;
use crate::engine::random::Key;
use crate::error::{Error, Tag};
use crate::files;
use crate::study::analysis::latents::Encoder;
use crate::study::analysis::neighbours::{label_accuracy, nearest};
use crate::study::analysis::tsne::{Map, Options, map};
use crate::study::figure::plots::{Frame, scatter};
use crate::study::session::Session;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub source: Source,
    #[command(flatten)]
    pub images: Images,
    /// Which part of the data
    #[arg(long, default_value = "test", value_parser = ["train", "test"])]
    pub split: String,
    /// Folder for map.png, map.npy, means.npy, labels.npy and indices.npy
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Images, drawn at random from the data without repetition
    #[arg(long, default_value_t = 5000, value_name = "N")]
    pub points: usize,
    /// Effective number of neighbours of a point
    #[arg(long, default_value_t = 30.0, value_name = "P")]
    pub perplexity: f32,
    /// Iterations of the gradient descent
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub iterations: usize,
    /// Neighbours that vote on a point's label for the accuracy
    #[arg(long, default_value_t = 10, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub neighbours: u32,
    /// Seed of the choice of images and of the first map
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    #[command(flatten)]
    pub device: DeviceOptions,
    /// Print JSON on stdout
    #[arg(long)]
    pub json: bool,
}

/// Images per call of the encoder.
const BATCH: usize = 64;

/// The file with the numbers that describe a map, and a checksum of its weights.
pub const MAP: &str = "map.json";

pub fn run(args: &Args) -> Outcome {
    report(args)?.print(args.json)
}

/// Writes the files and returns their names with the numbers that describe them.
///
/// # Errors
/// When the options, the weights, the images or the device are invalid, or a file cannot be written.
pub fn report(args: &Args) -> Result<Report> {
    let weights = args.source.load()?;
    let split = args.images.load(&args.split, weights.data.as_ref())?;
    let labels = args.images.labels(&split).tag(Error::Data)?;
    let Args { perplexity, iterations, .. } = *args;
    let options = Options { perplexity, iterations };
    let voters = args.neighbours as usize;
    let points = args.points.min(split.len());
    let neighbours = options.neighbours(points).tag(Error::Usage)?.max(voters);
    let check_points = || {
        anyhow::ensure!(points > neighbours, "--neighbours {voters}: there are only {points} points");
        Ok(())
    };
    check_points().tag(Error::Usage)?;
    let session = args.device.session(1, &weights)?;
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    files::check_writable(&args.out.join(MAP))?;
    let began = Instant::now();
    let [choice_key, map_key] = Key::new(args.seed).split2();
    let mut chosen = index::sample(&mut choice_key.rng(), split.len(), points).into_vec();
    chosen.sort_unstable();
    let means = encode(&session, &split, &chosen)?;
    let labels: Vec<u8> = chosen.iter().map(|&i| labels[i]).collect();
    let progress = bar(points, "points compared");
    let near = nearest(&means, session.model.latent, neighbours, |n| progress.inc(n as u64));
    progress.finish_and_clear();
    let progress = bar(iterations, "iterations");
    let map = map(&near, map_key, options, |n| progress.set_position(n as u64))?;
    progress.finish_and_clear();
    let in_latent = label_accuracy(&near, &labels, voters);
    let in_map = label_accuracy(&nearest(&map.coordinates, 2, voters, |_| {}), &labels, voters);
    let seconds = began.elapsed().as_secs_f64();

    let title = format!(
        "{}: {points} of {} ({voters}-NN accuracy {:.1} % in latent, {:.1} % in map)",
        session.model.name,
        split.name,
        100.0 * in_latent,
        100.0 * in_map
    );
    write(args, &title, &map, &labels, &means, &chosen)?;
    let json = serde_json::json!({
        "weights": weights.checksum(),
        "points": points,
        "latent": session.model.latent,
        "neighbours": voters,
        "accuracy_latent": in_latent,
        "accuracy_map": in_map,
        "kl_divergence": map.divergence,
        "perplexity": perplexity,
        "iterations": iterations,
        "seconds": seconds,
    });
    files::write_bytes(&args.out.join(MAP), json.to_string() + "\n")?;
    let text = format!(
        "{points} of {}: {voters} nearest neighbours predict the label of {:.2} % in latent space, of {:.2} % in the map\n\
         KL divergence {:.3} nats, {seconds:.1} s, written to {}",
        split.name,
        100.0 * in_latent,
        100.0 * in_map,
        map.divergence,
        args.out.display()
    );
    Ok(Report { json, text })
}

/// Returns the posterior means of the chosen images.
fn encode(session: &Session, split: &Split, chosen: &[usize]) -> Result<Vec<f32>> {
    let encoder = Encoder::new(session, BATCH.min(chosen.len()))?;
    let progress = bar(chosen.len(), "images");
    let mut means = Vec::with_capacity(chosen.len() * session.model.latent);
    for rows in chosen.chunks(BATCH) {
        means.extend(encoder.encode(split, rows, Key::new(0))?.means);
        progress.inc(rows.len() as u64);
    }
    progress.finish_and_clear();
    Ok(means)
}

fn write(args: &Args, title: &str, map: &Map, labels: &[u8], means: &[f32], chosen: &[usize]) -> Result<()> {
    let n = labels.len();
    let points: Vec<(f64, f64)> =
        map.coordinates.chunks_exact(2).map(|p| (f64::from(p[0]), f64::from(p[1]))).collect();
    let classes = labels.iter().max().map_or(0, |label| usize::from(*label) + 1).max(10);
    let names: Vec<String> = (0..classes).map(|class| class.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let png = scatter(&Frame::new(title, "", "").square(), &points, labels, &names)?;
    let out = |name: &str| args.out.join(name);
    files::write_bytes(&out("map.png"), png)?;
    npy::save(&out("map.npy"), &[n, 2], &map.coordinates)?;
    npy::save(&out("means.npy"), &[n, means.len() / n], means)?;
    npy::save(&out("labels.npy"), &[n], labels)?;
    let indices: Vec<i32> = chosen.iter().map(|i| *i as i32).collect();
    npy::save(&out("indices.npy"), &[n], &indices)?;
    Ok(())
}
