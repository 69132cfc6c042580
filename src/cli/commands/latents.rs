//! `vnca latents`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use super::images::Images;
use super::{DeviceOptions, Outcome, Report, Source, bar};
use crate::cli::hosts::{HostOptions, lines};
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
    /// Images per device call, over all replicas; changes no result
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_size: u32,
    /// Seed of the samples: image i uses the i-th split of its key, as in `vnca eval`
    #[arg(long, default_value_t = 2, value_name = "N")]
    seed: u64,
    /// Devices that share the images, those of all processes [default: 1, or all devices of several processes]
    #[arg(long, value_name = "R")]
    replicas: Option<usize>,
    #[command(flatten)]
    device: DeviceOptions,
    #[command(flatten)]
    hosts: HostOptions,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

/// The written arrays: their names, and their files.
type Files = Vec<(&'static str, PathBuf)>;

pub fn run(args: &Args) -> Outcome {
    args.hosts.run(Some(&args.device.device), |hosts| write(args, &args.device.together(hosts)))
}

fn write(args: &Args, device: &DeviceOptions) -> Outcome {
    let weights = args.source.load()?;
    let split = args.images.load(&args.split, weights.data.as_ref())?;
    let session = device.session(args.replicas, &weights)?;
    let shown = json!({
        "weights": weights.checksum(),
        "images": crc32fast::hash(&split.pixels),
        "limit": args.limit,
        "batch_size": args.batch_size,
        "states": args.states,
        "states_from": args.states_from,
        "seed": args.seed,
    });
    session.mesh.agree("the latents", &lines(&shown)?)?;
    valid!(args.limit != Some(0), "limit", "is 0: nothing would be written");
    let count = args.limit.unwrap_or(split.len()).min(split.len());
    let began = Instant::now();
    let archive = args.out.extension().is_some_and(|e| e == "npz");
    let files = match (device.is_first(), archive) {
        (true, true) => write_archive(args, &session, &split, count)?,
        (true, false) => write_arrays(args, &session, &split, count, Some(&args.out))?,
        (false, _) => write_arrays(args, &session, &split, count, None)?,
    };
    let seconds = began.elapsed().as_secs_f64();
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    let json = json!({
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
    let files = write_arrays(args, session, split, count, Some(folder.path()))?;
    npz::pack(&args.out, &files)?;
    Ok(files)
}

/// Writes the arrays of the first `count` images to a folder. Without one, only takes part in the calls of process 0.
fn write_arrays(
    args: &Args,
    session: &Session,
    split: &Split,
    count: usize,
    folder: Option<&Path>,
) -> Result<Files> {
    let (z, [rows, columns]) = (session.model.latent, session.model.frame.grid);
    let batch = (args.batch_size as usize).min(count.next_multiple_of(session.mesh.replicas()).max(1));
    let grower = if args.states { Some(Grower::new(session, batch)?) } else { None };
    let encoder = Encoder::new(session, batch)?;
    let mut files: Files = Vec::new();
    let mut create = |name: &'static str, dims: &[usize]| {
        let Some(folder) = folder else { return Ok(None) };
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join(format!("{name}.npy"));
        files.push((name, path.clone()));
        npy::Writer::create(&path, &Shape::new(DType::F32, dims)).map(Some)
    };
    let mut writers = Vec::new();
    for name in ["means", "logvars", "samples"] {
        writers.extend(create(name, &[count, z])?);
    }
    let mut states = if args.states { create("states", &[count, rows, columns, z])? } else { None };
    let progress = bar(count, "images");
    for rows in (0..count).collect::<Vec<_>>().chunks(batch) {
        let latents = encoder.encode(split, rows, Key::new(args.seed))?;
        for (writer, values) in writers.iter_mut().zip([&latents.means, &latents.logvars, &latents.samples]) {
            writer.push(values)?;
        }
        if let Some(grower) = &grower {
            let from = if args.states_from == "means" { &latents.means } else { &latents.samples };
            let grown = grower.grow(from, &latents.keys)?;
            states.as_mut().map_or(Ok(()), |states| states.push(&grown))?;
        }
        progress.inc(rows.len() as u64);
    }
    progress.finish_and_clear();
    for writer in writers.into_iter().chain(states) {
        writer.finish()?;
    }
    if let (Some(folder), Some(labels)) = (folder, &split.labels) {
        let path = folder.join("labels.npy");
        npy::save(&path, &[count], &labels[..count])?;
        files.push(("labels", path));
    }
    Ok(files)
}
