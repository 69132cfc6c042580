//! `vnca reconstruct`: draws images above their reconstructions (the report's figure 2).

use anyhow::Result;
use serde_json::{Value, json};

use super::picture::{Common, Images, array_dims, check_count, check_indices, mean};
use super::{Outcome, Report};
use crate::cli::models::Model;
use crate::data::Split;
use crate::engine::random::Key;
use crate::error::{Error, Tag};
use crate::study::figure::grids::Grid;
use crate::study::gallery::{self, Decoded, Latent, Posterior, brightness, framed};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub images: Images,
    /// Rows of images, each with its reconstructions below
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub rows: usize,
    /// Images per row
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub columns: usize,
    /// Which images, counted from 0, such as 7,1,33 [default: evenly spaced ones]
    #[arg(long, value_name = "I,...", value_delimiter = ',', conflicts_with = "rows")]
    pub indices: Vec<usize>,
    /// Latent of an image: the mean of its distribution, or a sample of it
    #[arg(long, default_value = "mean", value_parser = ["mean", "sample"])]
    pub latents: String,
    /// Draw pixels from their distributions, instead of showing their means
    #[arg(long, alias = "bernoulli")]
    pub draw: bool,
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
    let count = match args.indices.len() {
        0 => args.rows.saturating_mul(args.columns),
        n => n,
    };
    check_count("--rows x --columns, or --indices", count.min(args.columns.saturating_mul(count)))
        .tag(Error::Usage)?;
    let weights = common.weights()?;
    let all = args.images.load(&weights)?;
    let indices = match args.indices.len() {
        0 => all.spread_indices(count),
        _ => args.indices.clone(),
    };
    check_indices("--indices", &indices, &all).tag(Error::Usage)?;
    let split = all.chosen(&indices);
    let session = common.session(&weights)?;
    let posteriors = gallery::encode(&session, &split)?;
    let keys = Key::new(common.seed).split(split.len());
    let latent = |(posterior, key): (&Posterior, Key)| match args.latents.as_str() {
        "mean" => posterior.mean_latent(key),
        _ => posterior.draw(key),
    };
    let latents: Vec<Latent> = posteriors.iter().zip(keys).map(latent).collect();
    let decoded = gallery::reconstruct(&session, &latents, &split)?;
    let shown = if args.draw { &decoded.drawn } else { &decoded.means };
    let (model, image) = (&session.model, session.model.frame.counted());
    let original = |i: usize| brightness(model, &framed(&model.frame, split.image(i)));
    let originals: Vec<f32> = (0..split.len()).flat_map(original).collect();
    let mut files = common.files("reconstruct")?;
    let columns = args.columns.min(split.len());
    let pairs = Grid { image, columns, group: 2 };
    files.write(
        ".png",
        &pairs.picture(&interleave(&originals, shown, columns * image.iter().product::<usize>()))?.png()?,
    )?;
    if common.npy {
        let dims = array_dims(&[split.len()], image);
        files.write_npy("-originals.npy", &dims, &originals)?;
        files.write_npy(".npy", &dims, shown)?;
    }
    let images = numbers(&weights.model, &split, &indices, &originals, &decoded, &posteriors);
    let mean_of = |name: &str| mean(images.iter().filter_map(|i| i[name].as_f64()));
    let mut summary = json!({
        "data": split.name,
        "latents": args.latents,
        "draw": args.draw,
        "log_likelihood": mean_of("log_likelihood"),
        "kl": mean_of("kl"),
        "images": images,
    });
    let error = error_name(&weights.model);
    summary[error] = json!(mean_of(error));
    Ok(files.report(common.seed, &weights, summary))
}

/// Returns rows of originals, of `row` values each, each followed by the row of its reconstructions. Black fills up the last row of
/// originals.
fn interleave(originals: &[f32], shown: &[f32], row: usize) -> Vec<f32> {
    let mut pictures = Vec::new();
    for (above, below) in originals.chunks(row).zip(shown.chunks(row)) {
        pictures.extend_from_slice(above);
        pictures.resize(pictures.len().next_multiple_of(row), 0.0);
        pictures.extend_from_slice(below);
    }
    pictures
}

/// Returns the name of the measure of wrong pixels: their number for bits, the mean error in levels for others.
fn error_name(model: &Model) -> &'static str {
    if model.likelihood.of_bits() { "wrong_pixels" } else { "mean_error_levels" }
}

/// Returns for each image: index, label, log p(x | z) and KL in nats, and the number of pixels whose likelier value is wrong; for
/// pixels of levels, the mean size of the error.
fn numbers(
    model: &Model,
    split: &Split,
    indices: &[usize],
    originals: &[f32],
    decoded: &Decoded,
    posteriors: &[Posterior],
) -> Vec<Value> {
    let size = originals.len() / split.len();
    let pictures = originals.chunks_exact(size).zip(decoded.means.chunks_exact(size));
    let image_numbers = |(i, (image, means)): (usize, (&[f32], &[f32]))| {
        let pairs = || image.iter().zip(means);
        let error = match model.likelihood.of_bits() {
            true => json!(pairs().filter(|(x, m)| (**x > 0.5) != (**m > 0.5)).count()),
            false => json!(mean(pairs().map(|(x, m)| 255.0 * f64::from((x - m).abs())))),
        };
        let mut numbers = json!({
            "index": indices[i],
            "label": split.labels.as_ref().map(|labels| labels[i]),
            "log_likelihood": decoded.log_likelihoods[i],
            "kl": posteriors[i].kl(),
            "pixels": model.image.height * model.image.width,
        });
        numbers[error_name(model)] = error;
        numbers
    };
    pictures.enumerate().map(image_numbers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconstructions_are_below_their_originals() {
        const SIZE: usize = 12;
        let picture = |v: f32| vec![v; SIZE];
        let originals = [picture(0.1), picture(0.2), picture(0.3)].concat();
        let shown = [picture(0.6), picture(0.7), picture(0.8)].concat();
        let all = interleave(&originals, &shown, 2 * SIZE);
        let firsts: Vec<f32> = all.iter().step_by(SIZE).copied().collect();
        assert_eq!(firsts, [0.1, 0.2, 0.6, 0.7, 0.3, 0.0, 0.8]);
    }
}
