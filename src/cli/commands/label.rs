//! `vnca label`.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, anyhow};

use super::{DeviceOptions, Outcome, Report, bar};
use crate::data::{self, Part, labels};
use crate::engine::npy;
use crate::error::{Error, Tag};
use crate::study::analysis::originals::{Matches, likeliest};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Binarized images: a file or a folder
    #[arg(long, env = "VNCA_DATA", value_name = "PATH")]
    data: String,
    /// Which part of the folders; the training part is train followed by valid
    #[arg(long, default_value = "test", value_parser = ["train", "test"])]
    split: String,
    /// Grey originals: an IDX file, or a folder with MNIST's files
    #[arg(long, value_name = "PATH")]
    original: String,
    /// The originals' labels, IDX or .npy [default: those in the folder of originals]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Folder for labels.npy, indices.npy and margins.npy
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceOptions,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let part = if args.split == "train" { Part::Train } else { Part::Test };
    let originals = data::load_grey(&args.original, part).context("--original")?;
    let original_labels = match &args.labels {
        Some(path) => labels::read_for(path, originals.len(), &originals.name).context("--labels"),
        None => originals.labels.clone().ok_or_else(|| {
            anyhow!(
                "{}: there are no labels beside the originals: name their file with --labels",
                args.original
            )
        }),
    };
    let original_labels = original_labels.tag(Error::Data)?;
    let images = data::load_split(&args.data, part).context("--data")?;
    let mesh = args.device.open(1, 1)?;
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let began = Instant::now();
    let progress = bar(images.len(), "images");
    let matches = likeliest(&mesh, &images, &originals, |n| progress.set_position(n as u64))?;
    progress.finish_and_clear();
    let seconds = began.elapsed().as_secs_f64();
    let found: Vec<u8> = matches.indices.iter().map(|&i| original_labels[i as usize]).collect();
    report(args, &matches, &found, originals.len(), seconds)
}

/// Writes the files and prints a summary.
fn report(args: &Args, matches: &Matches, found: &[u8], originals: usize, seconds: f64) -> Outcome {
    let n = found.len();
    let hashes = serde_json::json!({
        "labels.npy": npy::save(&args.out.join("labels.npy"), &[n], found)?,
        "indices.npy": npy::save(&args.out.join("indices.npy"), &[n], &matches.indices)?,
        "margins.npy": npy::save(&args.out.join("margins.npy"), &[n], &matches.margins)?,
    });
    let classes = found.iter().max().map_or(0, |label| usize::from(*label) + 1);
    let mut counts = vec![0usize; classes.max(10)];
    found.iter().for_each(|label| counts[usize::from(*label)] += 1);
    let clear = matches.margins.iter().filter(|margin| **margin > 1.0).count() as f64 / n as f64;
    let mut used = matches.indices.clone();
    used.sort_unstable();
    used.dedup();
    if matches.impossible > 0 {
        log::warn!(
            "{} images cannot have been drawn from any original; each is matched to the original that rules out the fewest pixels",
            matches.impossible
        );
    }
    let json = serde_json::json!({
        "images": n,
        "originals": originals,
        "originals_used": used.len(),
        "seconds": seconds,
        "share_over_1_nat": clear,
        "impossible": matches.impossible,
        "class_counts": counts,
        "sha256": hashes,
    });
    let text = format!(
        "{n} images, {originals} originals ({} of them used), {seconds:.1} s\n\
         margin over 1 nat: {:.2} %\nimages a class: {counts:?}\nwritten to {}",
        used.len(),
        clear * 100.0,
        args.out.display()
    );
    Report { json, text }.print(args.json)
}
