//! `vnca sample`: draws pictures of samples of the prior (the report's figure 2).

use anyhow::Result;
use serde_json::json;

use super::picture::{Common, array_dims, check_count, mean, mean_entropy};
use super::{Outcome, Report};
use crate::engine::random::Key;
use crate::error::{Error, Tag};
use crate::study::figure::grids::Grid;
use crate::study::gallery::{self, Latent};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    /// Rows of pictures
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub rows: usize,
    /// Pictures per row
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub columns: usize,
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
    let Args { common, rows, columns, draw } = args;
    let count = rows.saturating_mul(*columns);
    check_count("--rows x --columns", count).tag(Error::Usage)?;
    let weights = common.weights()?;
    let session = common.session(&weights)?;
    let latents = Latent::priors(Key::new(common.seed), count, weights.model.latent);
    let decoded = gallery::decode(&session, &latents)?;
    let shown = if *draw { &decoded.drawn } else { &decoded.means };
    let image = session.model.frame.counted();
    let mut files = common.files("sample")?;
    files.write(".png", &Grid { image, columns: *columns, group: 0 }.picture(shown)?.png()?)?;
    if common.npy {
        files.write_npy(".npy", &array_dims(&[*rows, *columns], image), shown)?;
    }
    let numbers = json!({
        "rows": rows,
        "columns": columns,
        "draw": draw,
        "mean_value": mean(shown.iter().map(|v| f64::from(*v))),
        "mean_entropy_nats": mean_entropy(&weights.model, &decoded.means, image.iter().product()),
    });
    Ok(files.report(common.seed, &weights, numbers))
}
