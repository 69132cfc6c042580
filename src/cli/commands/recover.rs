//! `vnca recover`: damages pictures, shows their recovery (the report's figure 5) and measures it.

use std::str::FromStr;

use anyhow::{Result, ensure};
use serde_json::json;

use super::grow::animate;
use super::picture::{Common, Files, Images, array_dims, check_count};
use super::{Outcome, Report, bar};
use crate::data::Split;
use crate::engine::random::Key;
use crate::error::{Error, Tag};
use crate::model;
use crate::study::figure::grids::Grid;
use crate::study::figure::plots::{Frame, Line, lines};
use crate::study::gallery::recovery::{
    Damage, Point, Recovery, RecoveryStatistics, Trajectory, check_steps, csv,
};
use crate::study::gallery::{self, Latent, Posterior};
use crate::study::session::Session;

/// Number of pictures shown, as in figure 5. Further pictures only count in the numbers.
pub const SHOWN: usize = 11;

/// First row and column of a square.
#[derive(Clone, Copy, Debug)]
pub struct Corner(usize, usize);

impl FromStr for Corner {
    type Err = String;

    fn from_str(text: &str) -> Result<Corner, String> {
        let parsed = text.split_once(',').and_then(|(y, x)| Some(Corner(y.parse().ok()?, x.parse().ok()?)));
        parsed.ok_or_else(|| "expected row,column, such as 8,8".into())
    }
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub images: Images,
    /// Grow samples of the prior, or the latents of images; the numbers then compare with these images
    #[arg(long, default_value = "samples", value_parser = ["samples", "images"])]
    pub of: String,
    /// Number of pictures; only the first 11 are shown, all count in the numbers
    #[arg(long, default_value_t = SHOWN, value_name = "N")]
    pub samples: usize,
    /// Steps after each damage [default: the value of --nca-steps]
    #[arg(long, value_name = "T")]
    pub steps: Option<usize>,
    /// Number of damages to each picture
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub damages: usize,
    /// Side of the damaged square, in cells; each of several sizes gets a picture and a curve: 4,8,16 [default: half of the grid's
    /// smaller side]
    #[arg(long, value_name = "S,...", value_delimiter = ',')]
    pub sizes: Vec<usize>,
    /// First row and column of the square, such as 8,8 [default: drawn for each picture and damage]
    #[arg(long, value_name = "ROW,COLUMN")]
    pub at: Option<Corner>,
}

pub fn run(args: &Args) -> Outcome {
    report(args)?.print(args.common.json)
}

/// Writes the files and returns their names with the numbers that describe them.
///
/// # Errors
/// When the options, the weights, the images or the device are invalid, or a file cannot be written.
pub fn report(args: &Args) -> Result<Report> {
    let common = &args.common;
    check_count("--samples", args.samples).tag(Error::Usage)?;
    let weights = common.weights()?;
    gallery::automaton(&weights.model.vae()).tag(Error::Usage)?;
    let damages = damages(args, &weights.model.frame()).tag(Error::Usage)?;
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
            (mean_latents(&gallery::encode(&session, &split)?, key), Some(split))
        }
    };
    let dims = session.model.frame.counted();
    let shown = latents.len().min(SHOWN);
    let mut figures = vec![Figure { dims, ..Figure::default() }; damages.len()];
    let mut statistics: Vec<RecoveryStatistics> =
        damages.iter().map(|d| RecoveryStatistics::new(*d, steps)).collect();
    // Before the work, so that a folder that cannot be written to costs none.
    let mut files = common.files("recover")?;
    run_all(&session, &latents, images.as_ref(), &damages, steps, |d, i, trajectory| {
        statistics[d].add(trajectory);
        if i < shown {
            figures[d].add(trajectory, damages[d].count, steps);
        }
    })?;
    let mut points = Vec::new();
    for statistics in &statistics {
        points.extend(statistics.points()?);
    }
    for (figure, damage) in figures.iter().zip(&damages) {
        let size = if damages.len() == 1 { String::new() } else { format!("-{}", damage.side) };
        figure.write(&mut files, &size, damage.count, common.npy)?;
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

/// Returns the damages that the options describe, one for each size.
fn damages(args: &Args, frame: &model::Frame) -> Result<Vec<Damage>> {
    let mut sizes = args.sizes.clone();
    if sizes.is_empty() {
        sizes.push(frame.grid[0].min(frame.grid[1]) / 2);
    }
    let asked = sizes.len();
    sizes.sort_unstable();
    sizes.dedup();
    ensure!(sizes.len() == asked, "--sizes names a size twice");
    let at = args.at.map(|p| (p.0, p.1));
    let damages: Vec<Damage> =
        sizes.into_iter().map(|side| Damage { side, at, count: args.damages }).collect();
    damages.iter().try_for_each(|damage| damage.check(frame))?;
    Ok(damages)
}

/// Returns the posterior means as latents. Latent i has the i-th split of the key.
fn mean_latents(posteriors: &[Posterior], key: Key) -> Vec<Latent> {
    posteriors.iter().zip(key.split(posteriors.len())).map(|(p, key)| p.mean_latent(key)).collect()
}

/// Runs every damage on every latent and shows a progress bar.
fn run_all(
    session: &Session,
    latents: &[Latent],
    images: Option<&Split>,
    damages: &[Damage],
    steps: usize,
    mut each: impl FnMut(usize, usize, &Trajectory<'_>),
) -> Result<()> {
    let recovery = Recovery::new(session, latents.len(), steps)?;
    let progress = bar(latents.len() * damages.len(), "recoveries");
    recovery.run(latents, images, damages, |d, i, trajectory| {
        each(d, i, trajectory);
        progress.inc(1);
        Ok(())
    })?;
    progress.finish_and_clear();
    Ok(())
}

/// The pictures of one size of damage.
#[derive(Clone, Default)]
struct Figure {
    /// Rows, columns and channels of a picture.
    dims: [usize; 3],
    samples: usize,
    /// The rows of figure 5, each with one picture per sample.
    rows: Vec<Vec<f32>>,
    /// The frames of the animation, each with one picture per sample.
    frames: Vec<Vec<f32>>,
}

impl Figure {
    fn add(&mut self, trajectory: &Trajectory<'_>, damages: usize, steps: usize) {
        let ends = (0..damages).flat_map(|d| [trajectory.after(d, 0), trajectory.after(d, steps)]);
        let rows: Vec<&[f32]> = [trajectory.original()].into_iter().chain(ends).collect();
        let frames = trajectory.all();
        for (list, pictures) in [(&mut self.rows, rows), (&mut self.frames, frames)] {
            list.resize_with(pictures.len(), Vec::new);
            for (row, picture) in list.iter_mut().zip(pictures) {
                row.extend_from_slice(picture);
            }
        }
        self.samples += 1;
    }

    /// Writes the rows (original, then damaged and recovered for each damage) as a picture, and all frames as an animation.
    fn write(&self, files: &mut Files, size: &str, damages: usize, npy: bool) -> Result<()> {
        let grid = Grid { image: self.dims, columns: self.samples, group: 0 };
        files.write(&format!("{size}.png"), &grid.picture(&self.rows.concat())?.png()?)?;
        files.write(&format!("{size}.gif"), &animate(&self.frames.concat(), self.dims, self.samples)?)?;
        if npy {
            let rows = array_dims(&[1 + 2 * damages, self.samples], self.dims);
            files.write_npy(&format!("{size}.npy"), &rows, &self.rows.concat())?;
            let frames = array_dims(&[self.frames.len(), self.samples], self.dims);
            files.write_npy(&format!("{size}-course.npy"), &frames, &self.frames.concat())?;
        }
        Ok(())
    }
}

/// Writes the table of points, and for each measure a plot over the steps with a line for each size of damage.
fn write_numbers(files: &mut Files, points: &[Point], damages: &[Damage], steps: usize) -> Result<()> {
    files.write(".csv", csv(points).as_bytes())?;
    for (ending, title, unit) in [
        ("-iou.png", "Recovery: overlap with the undamaged image", "IoU"),
        ("-log-likelihood.png", "Recovery: log-likelihood of the undamaged image", "nats"),
    ] {
        let line = |damage: &Damage| {
            let value = |p: &Point| if unit == "IoU" { p.iou } else { p.log_likelihood };
            let own_points = || points.iter().filter(|p| p.side == damage.side);
            // The original and the damaged picture have the same x, which makes the drop a vertical line.
            let x = |p: &Point| (p.damage.saturating_sub(1) * steps + p.step) as f64;
            Line {
                name: format!("{0} x {0}", damage.side),
                points: own_points().map(|p| (x(p), value(p).mean)).collect(),
                band: own_points()
                    .map(|p| (value(p).mean, value(p).stderr.unwrap_or(0.0)))
                    .map(|(mean, stderr)| (mean - stderr, mean + stderr))
                    .collect(),
            }
        };
        let all: Vec<Line> = damages.iter().map(line).collect();
        let frame = Frame::new(title, "steps since the first damage", unit);
        let frame = if unit == "IoU" { frame.with_y_range(-0.02, 1.02) } else { frame };
        files.write(ending, &lines(&frame, &all)?)?;
    }
    Ok(())
}
