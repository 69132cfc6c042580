//! `vnca latents`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use super::images::Images;
use super::{DeviceOptions, Outcome, Report, Source, bar};
use crate::data::Split;
use crate::engine::npy;
use crate::engine::random::Key;
use crate::engine::shape::{DType, Shape};
use crate::error::valid;
use crate::nn::weights::npz;
use crate::study::analysis::latents::{Encoder, Grower};
use crate::study::session::Session;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    images: Images,
    /// Which part of the data
    #[arg(long, default_value = "test", value_parser = ["train", "test"])]
    split: String,
    /// A folder for .npy files, or an .npz file
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Also write the cells' final states: 4 · 1,024 · Z bytes per image
    #[arg(long)]
    states: bool,
    /// Grow the states from the samples or from the means
    #[arg(long, default_value = "samples", value_parser = ["samples", "means"], requires = "states")]
    states_from: String,
    /// Use only the first N images
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Images per device call; changes no result
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_size: u32,
    /// Seed of the samples: image i uses the i-th split of its key, as in `vnca eval`
    #[arg(long, default_value_t = 2, value_name = "N")]
    seed: u64,
    #[command(flatten)]
    device: DeviceOptions,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

/// The written arrays: their names, and their files.
type Files = Vec<(&'static str, PathBuf)>;

pub fn run(args: &Args) -> Outcome {
    let weights = args.source.load()?;
    let split = args.images.load(&args.split, weights.data.as_ref())?;
    let session = args.device.session(1, &weights)?;
    valid!(args.limit != Some(0), "limit", "is 0: nothing would be written");
    let count = args.limit.unwrap_or(split.len()).min(split.len());
    let began = Instant::now();
    let archive = args.out.extension().is_some_and(|e| e == "npz");
    let files = match archive {
        true => write_archive(args, &session, &split, count)?,
        false => write_arrays(args, &session, &split, count, &args.out)?,
    };
    let seconds = began.elapsed().as_secs_f64();
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    let json = serde_json::json!({
        "images": count,
        "latent": session.model.latent,
        "arrays": names,
        "out": args.out.to_string_lossy(),
        "seconds": seconds,
    });
    let text = format!("{count} images of {}: {} in {}", split.name, names.join(", "), args.out.display());
    Report { json, text }.print(args.json)
}

/// Writes the arrays of the first `count` images to an archive. All arrays grow at the same time, but an archive stores them one
/// after the other. So this function first writes files to a temporary folder beside the archive.
fn write_archive(args: &Args, session: &Session, split: &Split, count: usize) -> Result<Files> {
    let parent = args.out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let folder = tempfile::Builder::new().prefix("latents.").suffix(".part").tempdir_in(parent);
    let folder = folder.with_context(|| format!("cannot create a folder in {}", parent.display()))?;
    let files = write_arrays(args, session, split, count, folder.path())?;
    npz::pack(&args.out, &files)?;
    Ok(files)
}

/// Writes the arrays of the first `count` images to a folder.
fn write_arrays(args: &Args, session: &Session, split: &Split, count: usize, folder: &Path) -> Result<Files> {
    let (z, batch) = (session.model.latent, (args.batch_size as usize).min(count.max(1)));
    let grower = if args.states { Some(Grower::new(session, batch)?) } else { None };
    let encoder = Encoder::new(session, batch)?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let path = |name: &str| folder.join(format!("{name}.npy"));
    let create = |name: &str, dims: &[usize]| npy::Writer::create(&path(name), &Shape::new(DType::F32, dims));
    let names = ["means", "logvars", "samples"];
    let mut writers = names.map(|name| create(name, &[count, z])).into_iter().collect::<Result<Vec<_>>>()?;
    let mut states = match grower {
        Some(grower) => Some((
            grower,
            create("states", &[count, session.model.frame.grid[0], session.model.frame.grid[1], z])?,
        )),
        None => None,
    };
    let rows: Vec<usize> = (0..count).collect();
    let progress = bar(count, "images");
    for rows in rows.chunks(batch) {
        let latents = encoder.encode(split, rows, Key::new(args.seed))?;
        for (writer, values) in writers.iter_mut().zip([&latents.means, &latents.logvars, &latents.samples]) {
            writer.push(values)?;
        }
        if let Some((grower, states)) = &mut states {
            let from = if args.states_from == "means" { &latents.means } else { &latents.samples };
            states.push(&grower.grow(from, &latents.keys)?)?;
        }
        progress.inc(rows.len() as u64);
    }
    progress.finish_and_clear();
    let mut files: Files = names.map(|name| (name, path(name))).to_vec();
    for writer in writers {
        writer.finish()?;
    }
    if let Some((_, states)) = states {
        states.finish()?;
        files.push(("states", path("states")));
    }
    if let Some(labels) = &split.labels {
        npy::save(&path("labels"), &[count], &labels[..count])?;
        files.push(("labels", path("labels")));
    }
    Ok(files)
}
