//! `vnca probe`.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::images::Images;
use super::{DeviceOptions, Outcome, Report, Source, bar};
use crate::cli::models::Model;
use crate::data::{Split, glyphs};
use crate::engine::npy;
use crate::engine::random::Key;
use crate::error::{Error, Tag};
use crate::files;
use crate::model::GRID_SIDE;
use crate::nn::weights::npz;
use crate::study::analysis::latents::{Encoder, Grower, prior};
use crate::study::analysis::probe::{
    BATCH, CELLS, CLASSES, Cells, Classifier, HeldOut, Probe, Score, batch_count, train,
};
use crate::study::figure::picture::{Colour, Picture};
use crate::study::figure::plots::{Frame, TAB10, heat_map};
use crate::study::session::Session;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub source: Source,
    #[command(flatten)]
    pub images: Images,
    /// Which part of the data
    #[arg(long, default_value = "test", value_parser = ["train", "test"])]
    pub part: String,
    /// Folder for the results and, during the run, for the cells' states: 4,096 · Z bytes per image
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Hold out a fifth of the images, or of all images' cells, as the report did
    #[arg(long, default_value = "images", value_parser = ["images", "cells"])]
    pub split: String,
    /// At most N images, evenly spaced
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Number of epochs of training
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub epochs: u32,
    /// Samples of the prior in the figure
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub samples: u32,
    /// Seed of the latents, of the choice of held-out images or cells, and of the samples
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub seed: u64,
    #[command(flatten)]
    pub device: DeviceOptions,
    /// Print JSON on stdout
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &Args) -> Outcome {
    report(args)?.print(args.json)
}

/// Writes the files and returns their names with the numbers that describe them.
///
/// # Errors
/// When the options, the weights, the images or the device are invalid, or a file cannot be written.
pub fn report(args: &Args) -> Result<Report> {
    let weights = args.source.load()?;
    let split = args.images.load(&args.part, weights.data.as_ref())?.spread(args.limit.unwrap_or(usize::MAX));
    let labels = args.images.labels(&split).tag(Error::Data)?;
    let check = || why_not(&weights.model, labels).map_or(Ok(()), |why| bail!("{why}"));
    check().tag(Error::Usage)?;
    let session = args.device.session(1, &weights)?;
    let (latent, epochs) = (session.model.latent, args.epochs as usize);
    let began = Instant::now();
    let grower = Grower::new(&session, BATCH)?;
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let cells = grow_cells(args, &session, &grower, &split)?;
    let [held_key, order_key, prior_key] = Key::new(args.seed).split3();
    let held_out = match args.split.as_str() {
        "cells" => HeldOut::Cells(held_key),
        _ => HeldOut::images(held_key, cells.images()),
    };
    let progress = bar(batch_count(cells.images(), &held_out, epochs), "batches");
    let probe = train(&session.mesh, &cells, labels, &held_out, epochs, order_key, |n| {
        progress.set_position(n as u64)
    })
    .tag(Error::Usage)?;
    progress.finish_and_clear();
    let classifier = Classifier::new(&session.mesh, &probe)?;
    let score = classifier.score(&cells, labels, &held_out).tag(Error::Usage)?;
    let seconds = began.elapsed().as_secs_f64();
    write(args, &probe, &score)?;
    let latents = prior(prior_key, args.samples as usize, latent);
    let figure = prior_figure(&grower, &classifier, &latents.samples, &latents.keys, latent)?;
    figure.write(&args.out.join("prior.png"))?;
    Ok(summary(args, &split, &score, seconds))
}

/// Returns the reason why a model's cells cannot be probed for these labels. `None` if they can.
pub fn why_not(model: &Model, labels: &[u8]) -> Option<String> {
    let [rows, columns] = model.frame().grid;
    if rows * columns != CELLS {
        return Some(format!("the probe needs grids of 32 x 32 cells: the model's are {rows} x {columns}"));
    }
    let most = labels.iter().max().copied().unwrap_or(0);
    (usize::from(most) >= CLASSES)
        .then(|| format!("the probe knows labels from 0 to {}, got {most}", CLASSES - 1))
}

/// Returns the final states of all images' cells, grown from samples of their latents as in the report.
fn grow_cells(args: &Args, session: &Session, grower: &Grower<'_>, split: &Split) -> Result<Cells> {
    let encoder = Encoder::new(session, BATCH)?;
    let mut cells = Cells::create(&args.out, session.model.latent)?;
    let rows: Vec<usize> = (0..split.len()).collect();
    let progress = bar(rows.len(), "images grown");
    for rows in rows.chunks(BATCH) {
        let latents = encoder.encode(split, rows, Key::new(args.seed))?;
        cells.push(&grower.grow(&latents.samples, &latents.keys)?)?;
        progress.inc(rows.len() as u64);
    }
    progress.finish_and_clear();
    Ok(cells)
}

fn write(args: &Args, probe: &Probe, score: &Score) -> Result<()> {
    let out = |name: &str| args.out.join(name);
    let weight = probe.weight.transpose(&[1, 0]);
    npz::write(&out("probe.npz"), [("weight", &weight), ("bias", &probe.bias)].into_iter())?;
    let positions = score.per_position();
    npy::save(&out("positions.npy"), &[GRID_SIDE, GRID_SIDE], &positions)?;
    let values: Vec<f64> = positions.iter().map(|v| f64::from(*v)).collect();
    let frame = Frame::new("Accuracy of the probe by a cell's position", "column", "row").square();
    let png = heat_map(&frame, &values, GRID_SIDE, None, "accuracy")?;
    files::write_bytes(&out("positions.png"), png)
}

/// Formats the test's result.
fn summary(args: &Args, split: &Split, score: &Score, seconds: f64) -> Report {
    let (accuracy, stderr) = (score.accuracy(), score.stderr());
    let interval =
        stderr.map(|stderr| [accuracy - 1.96 * stderr, accuracy + 1.96 * stderr].map(|v| v.clamp(0.0, 1.0)));
    let json = serde_json::json!({
        "accuracy": accuracy,
        "stderr": stderr,
        "interval_95": interval,
        "per_class": score.per_class(),
        "split": args.split,
        "images": split.len(),
        "images_tested": score.right.len(),
        "cells_tested": score.cells(),
        "epochs": args.epochs,
        "seconds": seconds,
    });
    let classes: Vec<String> = (score.per_class().iter().enumerate())
        .filter_map(|(class, a)| a.map(|a| format!("{class}: {:.1}", 100.0 * a)))
        .collect();
    let text = format!(
        "{:.2} % of {} cells of {} images predict the label{}\n\
         percent by class: {}\n{seconds:.1} s, written to {}",
        100.0 * accuracy,
        score.cells(),
        score.right.len(),
        interval.map_or_else(String::new, |[low, high]| format!(
            " (95 % interval over images {:.2} to {:.2} %)",
            100.0 * low,
            100.0 * high
        )),
        classes.join(", "),
        args.out.display()
    );
    Report { json, text }
}

/// Draws three rows of samples: channel 0 as probability, each cell's predicted class as a colour, and its softmax probability. The
/// last row is the legend: a digit of each class in its colour.
fn prior_figure(
    grower: &Grower<'_>,
    classifier: &Classifier,
    latents: &[f32],
    keys: &[u32],
    latent: usize,
) -> Result<Picture> {
    let mut rows: [Vec<[u8; 3]>; 3] = Default::default();
    for (z, key) in latents.chunks(BATCH * latent).zip(keys.chunks(BATCH * 2)) {
        let states = grower.grow(z, key)?;
        let prediction = classifier.predict(&states, latent)?;
        let grey = |value: f32| [(value.clamp(0.0, 1.0) * 255.0).round() as u8; 3];
        rows[0].extend(states.chunks_exact(latent).map(|cell| grey(1.0 / (1.0 + (-cell[0]).exp()))));
        rows[1].extend(prediction.classes.iter().map(|class| colour(*class as usize)));
        rows[2].extend(prediction.values.iter().map(|value| grey(*value)));
    }
    let digits = glyphs::split(crate::data::Part::Test);
    let mut legend = Vec::new();
    for class in 0..CLASSES {
        let example = digits.labels.iter().flatten().position(|l| usize::from(*l) == class).unwrap_or(0);
        let mut tile = vec![[255; 3]; CELLS];
        for (i, pixel) in digits.image(example).iter().enumerate() {
            if *pixel == 1 {
                tile[(i / 28 + 2) * GRID_SIDE + i % 28 + 2] = colour(class);
            }
        }
        legend.extend(tile);
    }
    let [first, second, third] = rows;
    Ok(tiles(&[first, second, third, legend]))
}

fn colour(class: usize) -> [u8; 3] {
    let plotters::style::RGBColor(r, g, b) = TAB10[class % TAB10.len()];
    [r, g, b]
}

/// Draws rows of coloured 32 x 32 images, enlarged three times.
fn tiles(rows: &[Vec<[u8; 3]>]) -> Picture {
    const SCALE: usize = 3;
    const GAP: usize = 4;
    let cell = GRID_SIDE * SCALE + GAP;
    let columns = rows.iter().map(|row| row.len() / CELLS).max().unwrap_or(0);
    let (width, height) = (columns * cell + GAP, rows.len() * cell + GAP);
    let mut pixels = vec![255u8; width * height * 3];
    for (y, row) in rows.iter().enumerate() {
        for (x, image) in row.chunks_exact(CELLS).enumerate() {
            let (top, left) = (GAP + y * cell, GAP + x * cell);
            for i in 0..cell - GAP {
                for j in 0..cell - GAP {
                    let at = ((top + i) * width + left + j) * 3;
                    pixels[at..at + 3].copy_from_slice(&image[i / SCALE * GRID_SIDE + j / SCALE]);
                }
            }
        }
    }
    Picture { width, height, colour: Colour::Rgb, pixels }
}
