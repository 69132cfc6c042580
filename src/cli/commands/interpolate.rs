//! `vnca interpolate`: pictures on straight lines between latents (the report's figure 4a).

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::images::add_labels;
use super::picture::{Common, Images, array_dims, check_count, check_indices, mean};
use super::{Outcome, Report, Weights};
use crate::data::Split;
use crate::engine::random::Key;
use crate::error::{Error, Tag};
use crate::study::figure::grids::Grid;
use crate::study::gallery::{self, Latent};
use crate::study::session::Session;

/// Selects an image by its index, or any image with a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageSelector {
    Index(usize),
    Label(u8),
}

impl FromStr for ImageSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<ImageSelector, String> {
        let parsed = match text.strip_prefix("label:") {
            Some(label) => label.parse().map(ImageSelector::Label).ok(),
            None => text.parse().map(ImageSelector::Index).ok(),
        };
        parsed.ok_or_else(|| "expected an image's index, such as 17, or a label, such as label:3".into())
    }
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub images: Images,
    /// Rows, each between its own two latents [default: 4, or as many as --from and --to name indices]
    #[arg(long, value_name = "N")]
    pub rows: Option<usize>,
    /// Pictures per row, including the two ends
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub columns: usize,
    /// Begin at images, by index or label: 17, or 17,4, or label:3 [default: samples of the prior]
    #[arg(long, value_name = "IMAGE,...", value_delimiter = ',', requires = "to")]
    pub from: Vec<ImageSelector>,
    /// End at images, given as in --from
    #[arg(long, value_name = "IMAGE,...", value_delimiter = ',', requires = "from")]
    pub to: Vec<ImageSelector>,
    /// The images' labels, IDX or .npy, as `vnca label` writes them [default: those that come with the data]
    #[arg(long, value_name = "FILE", requires = "from")]
    pub labels: Option<PathBuf>,
    /// Draw pixels from their distributions, instead of showing their means
    #[arg(long, alias = "bernoulli")]
    pub draw: bool,
}

/// A row of the picture: the latents at its two ends, and descriptions of these.
struct Row {
    ends: [Latent; 2],
    descriptions: [Value; 2],
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
    let has_labels = args.from.iter().chain(&args.to).any(|w| matches!(w, ImageSelector::Label(_)));
    let named = if has_labels { 0 } else { args.from.len().max(args.to.len()) };
    let rows = args.rows.unwrap_or(if named == 0 { 4 } else { named });
    check_count("--rows x --columns", rows.saturating_mul(args.columns)).tag(Error::Usage)?;
    if args.columns < 2 {
        return Err(anyhow!("--columns {}: a line has two ends at least", args.columns)).tag(Error::Usage);
    }
    let weights = common.weights()?;
    // Report errors in the images before compiling, which takes long.
    let images = match args.from.is_empty() {
        true => None,
        false => Some(ends(args, &weights, rows)?),
    };
    let session = common.session(&weights)?;
    let rows = match images {
        None => prior_rows(common.seed, rows, weights.model.latent),
        Some((split, indices)) => image_rows(common.seed, &session, &split, &indices)?,
    };
    let latents: Vec<Latent> = rows.iter().flat_map(|row| line(&row.ends, args.columns)).collect();
    let decoded = gallery::decode(&session, &latents)?;
    let shown = if args.draw { &decoded.drawn } else { &decoded.means };
    let image = session.model.frame.counted();
    let mut files = common.files("interpolate")?;
    let grid = Grid { image, columns: args.columns, group: 0 };
    files.write(".png", &grid.picture(shown)?.png()?)?;
    if common.npy {
        files.write_npy(".npy", &array_dims(&[rows.len(), args.columns], image), shown)?;
    }
    let size: usize = image.iter().product();
    let pictures = decoded.means.chunks_exact(args.columns * size);
    let row_numbers = rows.iter().zip(pictures).map(|(row, pictures)| numbers(row, pictures, size));
    let numbers =
        json!({ "columns": args.columns, "draw": args.draw, "rows": row_numbers.collect::<Vec<_>>() });
    Ok(files.report(common.seed, &weights, numbers))
}

/// Returns evenly spaced latents from one end to the other.
fn line(ends: &[Latent; 2], count: usize) -> Vec<Latent> {
    let [a, b] = ends;
    let at = |i: usize| {
        let t = i as f32 / (count - 1) as f32;
        let z = a.z.iter().zip(&b.z).map(|(a, b)| a * (1.0 - t) + b * t).collect();
        Latent { z, key: a.key.split_at(i as u64) }
    };
    (0..count).map(at).collect()
}

/// Returns rows of which row i goes from sample 2i of the prior to sample 2i + 1.
fn prior_rows(seed: u64, rows: usize, size: usize) -> Vec<Row> {
    let samples = Latent::priors(Key::new(seed), 2 * rows, size);
    let row = |(i, pair): (usize, &[Latent])| Row {
        ends: [pair[0].clone(), pair[1].clone()],
        descriptions: [json!({ "sample": 2 * i }), json!({ "sample": 2 * i + 1 })],
    };
    samples.chunks_exact(2).enumerate().map(row).collect()
}

/// Returns the images, and the indices of the images at each row's ends.
fn ends(args: &Args, weights: &Weights, rows: usize) -> Result<(Split, Vec<[usize; 2]>)> {
    let split = add_labels(args.images.load(weights)?, args.labels.as_deref())?;
    // Each end draws its own order of images, so that a row between equal labels connects two different images.
    let [from, to] = Key::new(args.common.seed).split2();
    let from = resolve("--from", &args.from, &split, from, rows).tag(Error::Usage)?;
    let to = resolve("--to", &args.to, &split, to, rows).tag(Error::Usage)?;
    Ok((split, from.into_iter().zip(to).map(|(a, b)| [a, b]).collect()))
}

/// Selects an image for each row. The rows cycle through the list. The images with a label come in an order drawn with the key.
fn resolve(flag: &str, list: &[ImageSelector], split: &Split, key: Key, rows: usize) -> Result<Vec<usize>> {
    let order = key.permutation(split.len());
    let image = |row: usize| match list[row % list.len()] {
        ImageSelector::Index(i) => {
            check_indices(flag, &[i], split)?;
            Ok(i)
        }
        ImageSelector::Label(label) => {
            let labels = split.labels.as_ref().with_context(|| {
                format!(
                    "{flag} label:{label}: {} has no labels; name a file with --labels, or indices",
                    split.name
                )
            })?;
            let matching: Vec<usize> =
                order.iter().map(|i| *i as usize).filter(|i| labels[*i] == label).collect();
            ensure!(!matching.is_empty(), "{flag} label:{label}: {} has no such image", split.name);
            Ok(matching[row % matching.len()])
        }
    };
    (0..rows).map(image).collect()
}

fn image_rows(seed: u64, session: &Session, split: &Split, ends: &[[usize; 2]]) -> Result<Vec<Row>> {
    let posteriors = gallery::encode(session, &split.chosen(ends.as_flattened()))?;
    let keys = Key::new(seed).split(posteriors.len());
    let describe = |i: usize| json!({ "index": i, "label": split.labels.as_ref().map(|labels| labels[i]) });
    let row = |(r, pair): (usize, &[usize; 2])| {
        let latent = |end: usize| posteriors[2 * r + end].mean_latent(keys[2 * r + end]);
        Row { ends: [latent(0), latent(1)], descriptions: pair.map(describe) }
    };
    Ok(ends.iter().enumerate().map(row).collect())
}

/// Returns the distance of the ends in latent space, and the mean change of a pixel from each picture to the next.
fn numbers(row: &Row, pictures: &[f32], size: usize) -> Value {
    let [a, b] = &row.ends;
    let distance = a.z.iter().zip(&b.z).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
    let pictures: Vec<&[f32]> = pictures.chunks_exact(size).collect();
    let change = |w: &[&[f32]]| mean(w[0].iter().zip(w[1]).map(|(a, b)| f64::from((a - b).abs())));
    let changes: Vec<f64> = pictures.windows(2).map(change).collect();
    json!({ "from": row.descriptions[0], "to": row.descriptions[1], "distance": distance, "changes": changes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_from_end_to_end() {
        let ends = [0.0f32, 3.0].map(|v| Latent { z: vec![v, -v], key: Key::new(1) });
        let zs: Vec<Vec<f32>> = line(&ends, 4).into_iter().map(|l| l.z).collect();
        assert_eq!(zs, [[0.0, 0.0], [1.0, -1.0], [2.0, -2.0], [3.0, -3.0]]);
    }

    #[test]
    fn images_are_named_by_index_or_label() {
        assert_eq!("17".parse(), Ok(ImageSelector::Index(17)));
        assert_eq!("label:3".parse(), Ok(ImageSelector::Label(3)));
        assert!("three".parse::<ImageSelector>().is_err() && "label:x".parse::<ImageSelector>().is_err());
        let split = crate::data::load_split("glyphs", crate::data::Part::Test).unwrap();
        let list = [ImageSelector::Label(3), ImageSelector::Index(5)];
        let found = resolve("--from", &list, &split, Key::new(1), 4).unwrap();
        let labels = split.labels.as_ref().unwrap();
        assert_eq!((labels[found[0]], found[1], labels[found[2]], found[3]), (3, 5, 3, 5));
        assert_ne!(found[0], found[2]);
        assert!(resolve("--from", &[ImageSelector::Index(2000)], &split, Key::new(1), 1).is_err());
        let unlabelled = Split { labels: None, ..split };
        assert!(resolve("--to", &list, &unlabelled, Key::new(1), 1).is_err());
    }
}
