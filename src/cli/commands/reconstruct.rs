//! `vnca reconstruct`: images above what the model makes of their latents (the report's figure 2).

use anyhow::Result;
use serde_json::{Value, json};

use super::picture::{Common, Images, check_count, check_indices, mean, values};
use super::{Outcome, Report};
use crate::data::{SIDE as CUT, Split};
use crate::engine::random::Key;
use crate::error::{Error, Tag};
use crate::model::SIDE;
use crate::study::figure::grids::Grid;
use crate::study::gallery::{self, Encoded, Latent, PIXELS, framed, log_likelihood};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub images: Images,
    /// Rows of images, each with its reconstructions below
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub rows: usize,
    /// Images a row
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

/// Makes the files, and says what they are and show.
///
/// # Errors
/// When the options, the weights, the images or the device are wrong, or a file cannot be written.
pub fn report(args: &Args) -> Result<Report> {
    let common = &args.common;
    let wanted = match args.indices.len() {
        0 => args.rows.saturating_mul(args.columns),
        n => n,
    };
    check_count("--rows x --columns, or --indices", wanted.min(args.columns.saturating_mul(wanted)))
        .tag(Error::Usage)?;
    let weights = common.weights()?;
    let all = args.images.load(&weights)?;
    let indices = match args.indices.len() {
        0 => all.spread_indices(wanted),
        _ => args.indices.clone(),
    };
    check_indices("--indices", &indices, &all).tag(Error::Usage)?;
    let split = all.chosen(&indices);
    let session = common.session(&weights)?;
    let encoded = gallery::encode(&session, &split)?;
    let keys = Key::new(common.seed).split(split.len());
    let latent = |(e, key): (&Encoded, Key)| if args.latents == "mean" { e.middle(key) } else { e.draw(key) };
    let latents: Vec<Latent> = encoded.iter().zip(keys).map(latent).collect();
    let logits = gallery::decode(&session, &latents)?;
    let shown = values(&logits, &latents, args.bernoulli);
    let originals: Vec<f32> = (0..split.len()).flat_map(|i| framed(split.image(i))).collect();
    let mut files = common.files("reconstruct")?;
    let columns = args.columns.min(split.len());
    let pairs = Grid { side: SIDE, columns, group: 2 };
    files.write(".png", &pairs.picture(&interleaved(&originals, &shown, columns))?.png()?)?;
    if common.npy {
        files.write_npy("-originals.npy", &[split.len(), SIDE, SIDE], &originals)?;
        files.write_npy(".npy", &[split.len(), SIDE, SIDE], &shown)?;
    }
    let each = numbers(&split, &indices, &originals, &logits, &encoded);
    let mean_of = |name: &str| mean(each.iter().filter_map(|i| i[name].as_f64()));
    let summary = json!({
        "data": split.name,
        "latents": args.latents,
        "bernoulli": args.bernoulli,
        "log_likelihood": mean_of("log_likelihood"),
        "kl": mean_of("kl"),
        "wrong_pixels": mean_of("wrong_pixels"),
        "images": each,
    });
    Ok(files.report(common.seed, &weights, summary))
}

/// Rows of originals, each followed by the row of its reconstructions. The last row of originals is filled up with black.
fn interleaved(originals: &[f32], shown: &[f32], columns: usize) -> Vec<f32> {
    let row = columns * PIXELS;
    let mut pictures = Vec::new();
    for (above, below) in originals.chunks(row).zip(shown.chunks(row)) {
        pictures.extend_from_slice(above);
        pictures.resize(pictures.len().next_multiple_of(row), 0.0);
        pictures.extend_from_slice(below);
    }
    pictures
}

/// For each image: index, label, log p(x | z) and KL in nats, and the pixels whose likelier value is the wrong one.
fn numbers(
    split: &Split,
    indices: &[usize],
    originals: &[f32],
    logits: &[f32],
    encoded: &[Encoded],
) -> Vec<Value> {
    let pictures = originals.chunks_exact(PIXELS).zip(logits.chunks_exact(PIXELS));
    let of = |(i, (image, logits)): (usize, (&[f32], &[f32]))| {
        let wrong = image.iter().zip(logits).filter(|(x, l)| (**x > 0.5) != (**l > 0.0)).count();
        json!({
            "index": indices[i],
            "label": split.labels.as_ref().map(|labels| labels[i]),
            "log_likelihood": log_likelihood(image, logits),
            "kl": encoded[i].kl(),
            "wrong_pixels": wrong,
            "pixels": CUT * CUT,
        })
    };
    pictures.enumerate().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconstructions_stand_below_their_originals() {
        let picture = |v: f32| vec![v; PIXELS];
        let originals = [picture(0.1), picture(0.2), picture(0.3)].concat();
        let shown = [picture(0.6), picture(0.7), picture(0.8)].concat();
        let all = interleaved(&originals, &shown, 2);
        let firsts: Vec<f32> = all.iter().step_by(PIXELS).copied().collect();
        assert_eq!(firsts, [0.1, 0.2, 0.6, 0.7, 0.3, 0.0, 0.8]);
    }
}
