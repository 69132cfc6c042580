//! `vnca recover`: pictures are damaged and recover (the report's figure 5), and how well they do, as numbers.

use std::str::FromStr;

use anyhow::{Result, ensure};
use serde_json::json;

use super::grow::film;
use super::picture::{Common, Files, Images, check_count};
use super::{Outcome, Report, bar};
use crate::engine::random::Key;
use crate::error::{Error, Tag};
use crate::model::SIDE;
use crate::study::figure::grids::Grid;
use crate::study::figure::plots::{Frame, Line, lines};
use crate::study::gallery::recovery::{
    Course, Damage, Meter, Point, Recovery, check_steps, csv, most_likely,
};
use crate::study::gallery::{self, Encoded, Latent, framed, probabilities};
use crate::study::session::Session;

/// Pictures of figure 5: the others are counted in the numbers only.
pub const SHOWN: usize = 11;

/// First row and column of a square.
#[derive(Clone, Copy, Debug)]
pub struct Place(usize, usize);

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        let parsed = text.split_once(',').and_then(|(y, x)| Some(Place(y.parse().ok()?, x.parse().ok()?)));
        parsed.ok_or_else(|| "expected row,column, such as 8,8".into())
    }
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub images: Images,
    /// What grows: samples of the prior, or the latents of images, which are then what the numbers compare with
    #[arg(long, default_value = "samples", value_parser = ["samples", "images"])]
    pub of: String,
    /// Pictures; the first 11 are shown, all are counted
    #[arg(long, default_value_t = SHOWN, value_name = "N")]
    pub samples: usize,
    /// Steps after each damage [default: as many as --nca-steps]
    #[arg(long, value_name = "T")]
    pub steps: Option<usize>,
    /// How often each picture is damaged
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub damages: usize,
    /// Side of the damaged square, in cells; several give a picture and a curve each: 4,8,16
    #[arg(long, default_values_t = [SIDE / 2], value_name = "S,...", value_delimiter = ',')]
    pub sizes: Vec<usize>,
    /// First row and column of the square, such as 8,8 [default: drawn for each picture and damage]
    #[arg(long, value_name = "ROW,COLUMN")]
    pub at: Option<Place>,
}

pub fn run(args: &Args) -> Outcome {
    report(args)?.print(args.common.json)
}

/// Makes the files, and says what they are and show.
///
/// # Errors
/// When the options, the weights, the images or the device are wrong, or a file cannot be written.
pub fn report(args: &Args) -> Result<Report> {
    let common = &args.common;
    let damages = damages(args).tag(Error::Usage)?;
    let weights = common.weights()?;
    gallery::automaton(&weights.model.vae()).tag(Error::Usage)?;
    let steps = args.steps.unwrap_or(weights.model.nca_steps);
    check_steps(steps).tag(Error::Usage)?;
    let split = match args.of.as_str() {
        "images" => Some(args.images.load(&weights)?),
        _ => None,
    };
    let session = common.session(&weights)?;
    let key = Key::new(common.seed);
    let (latents, images) = match split {
        None => (Latent::priors(key, args.samples, weights.model.latent), None),
        Some(split) => {
            let split = split.spread(args.samples);
            (middles(&gallery::encode(&session, &split)?, key), Some(split))
        }
    };
    let image = |i: usize, course: &Course<'_>| match &images {
        Some(split) => framed(split.image(i)),
        None => most_likely(course.original()),
    };
    let shown = latents.len().min(SHOWN);
    let mut sheets = vec![Sheet::default(); damages.len()];
    let mut meters: Vec<Meter> = damages.iter().map(|d| Meter::new(*d, steps)).collect();
    run_all(&session, &latents, &damages, steps, |d, i, course| {
        meters[d].add(&image(i, course), course);
        if i < shown {
            sheets[d].add(course, damages[d].count, steps);
        }
    })?;
    let mut points = Vec::new();
    for meter in &meters {
        points.extend(meter.points()?);
    }
    let mut files = common.files("recover")?;
    for (sheet, damage) in sheets.iter().zip(&damages) {
        let size = if damages.len() == 1 { String::new() } else { format!("-{}", damage.side) };
        sheet.write(&mut files, &size, damage.count, common.npy)?;
    }
    write_numbers(&mut files, &points, &damages, steps)?;
    let numbers = json!({
        "of": args.of,
        "samples": latents.len(),
        "steps": steps,
        "damages": args.damages,
        "at": args.at.map(|p| [p.0, p.1]),
        "points": points,
    });
    Ok(files.report(common.seed, &weights, numbers))
}

fn damages(args: &Args) -> Result<Vec<Damage>> {
    check_count("--samples", args.samples)?;
    let mut sizes = args.sizes.clone();
    sizes.sort_unstable();
    sizes.dedup();
    ensure!(sizes.len() == args.sizes.len(), "--sizes names a size twice");
    let at = args.at.map(|p| (p.0, p.1));
    let damages: Vec<Damage> =
        sizes.into_iter().map(|side| Damage { side, at, count: args.damages }).collect();
    damages.iter().try_for_each(Damage::check)?;
    Ok(damages)
}

/// Means of the images' distributions, with the keys of the split.
fn middles(encoded: &[Encoded], key: Key) -> Vec<Latent> {
    encoded.iter().zip(key.split(encoded.len())).map(|(e, key)| e.middle(key)).collect()
}

/// Runs every damage on every latent behind a bar.
fn run_all(
    session: &Session,
    latents: &[Latent],
    damages: &[Damage],
    steps: usize,
    mut each: impl FnMut(usize, usize, &Course<'_>),
) -> Result<()> {
    let recovery = Recovery::new(session, latents.len(), steps)?;
    let progress = bar(latents.len() * damages.len(), "courses");
    recovery.run(latents, damages, |d, i, course| {
        each(d, i, course);
        progress.inc(1);
        Ok(())
    })?;
    progress.finish_and_clear();
    Ok(())
}

/// The pictures of one size of damage: rows of figure 5, and moments of the whole course, both by sample.
#[derive(Clone, Default)]
struct Sheet {
    samples: usize,
    rows: Vec<Vec<f32>>,
    moments: Vec<Vec<f32>>,
}

impl Sheet {
    fn add(&mut self, course: &Course<'_>, damages: usize, steps: usize) {
        let ends = (0..damages).flat_map(|d| [course.after(d, 0), course.after(d, steps)]);
        let rows: Vec<&[f32]> = [course.original()].into_iter().chain(ends).collect();
        let moments = course.all();
        for (list, pictures) in [(&mut self.rows, rows), (&mut self.moments, moments)] {
            list.resize_with(pictures.len(), Vec::new);
            for (row, logits) in list.iter_mut().zip(pictures) {
                row.extend(probabilities(logits));
            }
        }
        self.samples += 1;
    }

    /// Original, damaged, recovered (and damaged and recovered again) below each other; the course as an animation.
    fn write(&self, files: &mut Files, size: &str, damages: usize, npy: bool) -> Result<()> {
        let grid = Grid { side: SIDE, columns: self.samples, group: 0 };
        files.write(&format!("{size}.png"), &grid.picture(&self.rows.concat())?.png()?)?;
        files.write(&format!("{size}.gif"), &film(&self.moments.concat(), self.samples)?)?;
        if npy {
            let rows = [1 + 2 * damages, self.samples, SIDE, SIDE];
            files.write_npy(&format!("{size}.npy"), &rows, &self.rows.concat())?;
            let moments = [self.moments.len(), self.samples, SIDE, SIDE];
            files.write_npy(&format!("{size}-course.npy"), &moments, &self.moments.concat())?;
        }
        Ok(())
    }
}

/// The table, and a plot of each number over the steps, a line for each size of damage.
fn write_numbers(files: &mut Files, points: &[Point], damages: &[Damage], steps: usize) -> Result<()> {
    files.write(".csv", csv(points).as_bytes())?;
    for (ending, title, unit) in [
        ("-iou.png", "Recovery: overlap with the undamaged image", "IoU"),
        ("-log-likelihood.png", "Recovery: log-likelihood of the undamaged image", "nats"),
    ] {
        let line = |damage: &Damage| {
            let value = |p: &Point| if unit == "IoU" { p.iou } else { p.log_likelihood };
            let mine = || points.iter().filter(|p| p.side == damage.side);
            // The original and the damaged picture stand at the same place: the fall is a vertical line.
            let x = |p: &Point| (p.damage.saturating_sub(1) * steps + p.step) as f64;
            Line {
                name: format!("{0} x {0}", damage.side),
                points: mine().map(|p| (x(p), value(p).mean)).collect(),
                band: mine()
                    .map(|p| (value(p).mean - value(p).stderr, value(p).mean + value(p).stderr))
                    .collect(),
            }
        };
        let all: Vec<Line> = damages.iter().map(line).collect();
        let frame = Frame::new(title, "steps since the first damage", unit);
        let frame = if unit == "IoU" { frame.y_from(-0.02, 1.02) } else { frame };
        files.write(ending, &lines(&frame, &all)?)?;
    }
    Ok(())
}
