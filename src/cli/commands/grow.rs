//! `vnca grow`: the growth of pictures, stage by stage (the report's figure 3), as a grid and as an animation.

use anyhow::Result;
use serde_json::{Value, json};

use super::picture::{Common, array_dims, check_count, mean, mean_entropy};
use super::{Outcome, Report};
use crate::cli::models::{Kind, Model};
use crate::engine::random::Key;
use crate::error::{Error, Tag};
use crate::study::figure::gifs::animation;
use crate::study::figure::grids::Grid;
use crate::study::gallery::{self, Growth, Latent};

/// Duration of a frame in the animation, in hundredths of a second.
const FRAME: u16 = 8;
/// Duration of the first and of the last frame.
const END_FRAME: u16 = 150;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    /// Number of samples of the prior; their grids are below each other
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub samples: usize,
    /// Stages per row for the non-doubling model; the doubling model has a row for each doubling
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub columns: usize,
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
    check_count("--columns", args.columns).tag(Error::Usage)?;
    let weights = common.weights()?;
    gallery::automaton(&weights.model.vae()).tag(Error::Usage)?;
    let session = common.session(&weights)?;
    let latents = Latent::priors(Key::new(common.seed), args.samples, weights.model.latent);
    let growth = gallery::grow(&session, &latents)?;
    let columns = match weights.model.kind {
        Kind::Doubling => weights.model.nca_steps + 1,
        Kind::Baseline | Kind::NonDoubling => args.columns.min(growth.stages),
    };
    let (shown, image) = (&growth.shown, session.model.frame.counted());
    let size: usize = image.iter().product();
    let mut files = common.files("grow")?;
    let (images, rows) = in_whole_rows(&growth, size, args.samples, columns);
    files.write(".png", &Grid { image, columns, group: rows }.picture(&images)?.png()?)?;
    files.write(".gif", &animate(shown, image, args.samples)?)?;
    if common.npy {
        files.write_npy(".npy", &array_dims(&[growth.stages, args.samples], image), shown)?;
    }
    let stages = shown.chunks_exact(args.samples * size).enumerate();
    let stages: Vec<Value> = stages.map(|(i, shown)| numbers(&weights.model, i, shown, size)).collect();
    Ok(files.report(common.seed, &weights, json!({ "samples": args.samples, "stages": stages })))
}

/// Orders the pictures by sample, then by stage, and fills up each sample with black to whole rows. Also returns the rows per
/// sample.
fn in_whole_rows(growth: &Growth, size: usize, samples: usize, columns: usize) -> (Vec<f32>, usize) {
    let rows = growth.stages.div_ceil(columns);
    let mut images = Vec::with_capacity(samples * rows * columns * size);
    for sample in 0..samples {
        for stage in 0..growth.stages {
            images.extend_from_slice(&growth.shown[(stage * samples + sample) * size..][..size]);
        }
        images.resize((sample + 1) * rows * columns * size, 0.0);
    }
    (images, rows)
}

/// Returns a GIF of pictures with these rows, columns and channels. Each frame shows `pictures` pictures, up to 11 in a row.
///
/// # Errors
/// When there are no pictures.
pub fn animate(shown: &[f32], image: [usize; 3], pictures: usize) -> Result<Vec<u8>> {
    let grid = Grid { image, columns: pictures.min(11), group: 0 };
    let size = pictures * image.iter().product::<usize>();
    let count = shown.len() / size;
    let frame = |(i, values): (usize, &[f32])| {
        let delay = if i == 0 || i + 1 == count { END_FRAME } else { FRAME };
        Ok((grid.picture(values)?, delay))
    };
    let frames: Vec<_> = shown.chunks_exact(size).enumerate().map(frame).collect::<Result<_>>()?;
    animation(&frames)
}

/// Describes a stage: its doubling and step, the grid's side, and means over samples.
fn numbers(model: &Model, stage: usize, shown: &[f32], size: usize) -> Value {
    let (doubling, step) = match model.kind {
        Kind::Doubling => (stage / (model.nca_steps + 1) + 1, stage % (model.nca_steps + 1)),
        Kind::Baseline | Kind::NonDoubling => (0, stage),
    };
    let ink = |picture: &[f32]| picture.iter().map(|value| f64::from(*value)).sum::<f64>();
    json!({
        "doubling": doubling,
        "step": step,
        "side": model.first_sides()[0] << doubling,
        "mean_ink": mean(shown.chunks_exact(size).map(ink)),
        "mean_entropy_nats": mean_entropy(model, shown, size),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sample_has_whole_rows() {
        const SIZE: usize = 12;
        let shown: Vec<f32> = (0..6).flat_map(|i| vec![i as f32; SIZE]).collect();
        let (images, rows) = in_whole_rows(&Growth { stages: 3, shown }, SIZE, 2, 2);
        let firsts: Vec<f32> = images.iter().step_by(SIZE).copied().collect();
        assert_eq!((rows, firsts), (2, vec![0.0, 2.0, 4.0, 0.0, 1.0, 3.0, 5.0, 0.0]));
    }
}
