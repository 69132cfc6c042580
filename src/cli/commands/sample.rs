//! `vnca sample`: draws pictures of samples of the prior (the report's figure 2).

use anyhow::Result;
use serde_json::json;

use super::picture::{Common, check_count, entropy, mean, values};
use super::{Outcome, Report};
use crate::engine::random::Key;
use crate::error::{Error, Tag};
use crate::model::GRID_SIDE;
use crate::study::figure::grids::Grid;
use crate::study::gallery::{self, Latent, PIXELS};

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
    let Args { common, rows, columns, bernoulli } = args;
    let count = rows.saturating_mul(*columns);
    check_count("--rows x --columns", count).tag(Error::Usage)?;
    let weights = common.weights()?;
    let session = common.session(&weights)?;
    let latents = Latent::priors(Key::new(common.seed), count, weights.model.latent);
    let logits = gallery::decode(&session, &latents)?;
    let shown = values(&logits, &latents, *bernoulli);
    let mut files = common.files("sample")?;
    files.write(".png", &Grid { side: GRID_SIDE, columns: *columns, group: 0 }.picture(&shown)?.png()?)?;
    if common.npy {
        files.write_npy(".npy", &[*rows, *columns, GRID_SIDE, GRID_SIDE], &shown)?;
    }
    let numbers = json!({
        "rows": rows,
        "columns": columns,
        "bernoulli": bernoulli,
        "mean_value": mean(shown.iter().map(|v| f64::from(*v))),
        "mean_entropy_nats": mean(logits.chunks_exact(PIXELS).map(entropy)),
    });
    Ok(files.report(common.seed, &weights, numbers))
}
