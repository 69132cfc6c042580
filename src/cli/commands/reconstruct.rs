//! `vnca reconstruct`: draws images above their reconstructions (the report's figure 2).

use anyhow::Result;
use serde_json::{Value, json};

use super::picture::{Common, Images, check_count, check_indices, mean, values};
use super::{Outcome, Report};
use crate::data::{IMAGE_SIDE, Split};
use crate::engine::random::Key;
use crate::error::{Error, Tag};
use crate::model::GRID_SIDE;
use crate::study::figure::grids::Grid;
use crate::study::gallery::{self, Latent, PIXELS, Posterior, framed, log_likelihood};

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
    /// Draw pixels, 0 or 1, instead of showing their probabilities
    #[arg(long)]
    pub bernoulli: bool,
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
    let logits = gallery::decode(&session, &latents)?;
    let shown = values(&logits, &latents, args.bernoulli);
    let originals: Vec<f32> = (0..split.len()).flat_map(|i| framed(split.image(i))).collect();
    let mut files = common.files("reconstruct")?;
    let columns = args.columns.min(split.len());
    let pairs = Grid { side: GRID_SIDE, columns, group: 2 };
    files.write(".png", &pairs.picture(&interleave(&originals, &shown, columns))?.png()?)?;
    if common.npy {
        files.write_npy("-originals.npy", &[split.len(), GRID_SIDE, GRID_SIDE], &originals)?;
        files.write_npy(".npy", &[split.len(), GRID_SIDE, GRID_SIDE], &shown)?;
    }
    let images = numbers(&split, &indices, &originals, &logits, &posteriors);
    let mean_of = |name: &str| mean(images.iter().filter_map(|i| i[name].as_f64()));
    let summary = json!({
        "data": split.name,
        "latents": args.latents,
        "bernoulli": args.bernoulli,
        "log_likelihood": mean_of("log_likelihood"),
        "kl": mean_of("kl"),
        "wrong_pixels": mean_of("wrong_pixels"),
        "images": images,
    });
    Ok(files.report(common.seed, &weights, summary))
}

/// Returns rows of originals, each followed by the row of its reconstructions. Black fills up the last row of originals.
fn interleave(originals: &[f32], shown: &[f32], columns: usize) -> Vec<f32> {
    let row = columns * PIXELS;
    let mut pictures = Vec::new();
    for (above, below) in originals.chunks(row).zip(shown.chunks(row)) {
        pictures.extend_from_slice(above);
        pictures.resize(pictures.len().next_multiple_of(row), 0.0);
        pictures.extend_from_slice(below);
    }
    pictures
}

/// Returns for each image: index, label, log p(x | z) and KL in nats, and the number of pixels whose likelier value is wrong.
fn numbers(
    split: &Split,
    indices: &[usize],
    originals: &[f32],
    logits: &[f32],
    posteriors: &[Posterior],
) -> Vec<Value> {
    let pictures = originals.chunks_exact(PIXELS).zip(logits.chunks_exact(PIXELS));
    let image_numbers = |(i, (image, logits)): (usize, (&[f32], &[f32]))| {
        let wrong = image.iter().zip(logits).filter(|(x, l)| (**x > 0.5) != (**l > 0.0)).count();
        json!({
            "index": indices[i],
            "label": split.labels.as_ref().map(|labels| labels[i]),
            "log_likelihood": log_likelihood(image, logits),
            "kl": posteriors[i].kl(),
            "wrong_pixels": wrong,
            "pixels": IMAGE_SIDE * IMAGE_SIDE,
        })
    };
    pictures.enumerate().map(image_numbers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconstructions_are_below_their_originals() {
        let picture = |v: f32| vec![v; PIXELS];
        let originals = [picture(0.1), picture(0.2), picture(0.3)].concat();
        let shown = [picture(0.6), picture(0.7), picture(0.8)].concat();
        let all = interleave(&originals, &shown, 2);
        let firsts: Vec<f32> = all.iter().step_by(PIXELS).copied().collect();
        assert_eq!(firsts, [0.1, 0.2, 0.6, 0.7, 0.3, 0.0, 0.8]);
    }
}
