//! `vnca planes`: draws the channels of grown grids of cells as stacked planes (the report's figure 7a).

use anyhow::Result;
use serde_json::json;

use super::picture::{Common, check_count};
use super::{Outcome, Report};
use crate::engine::random::Key;
use crate::error::{Error, Tag};
use crate::study::analysis::latents::Grower;
use crate::study::figure::planes::stacks;
use crate::study::gallery::{self, Latent};

/// The largest number of latents per device call.
const MAX_BATCH: usize = 8;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    /// Samples of the prior, their stacks side by side
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub samples: usize,
    /// Number of channels; the first is the picture and lies on top [default: 7, or all if there are fewer]
    #[arg(long, value_name = "N")]
    pub channels: Option<usize>,
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
    let z = weights.model.latent;
    gallery::automaton(&weights.model.vae()).tag(Error::Usage)?;
    let channels = args.channels.unwrap_or(z.min(7));
    let check_channels = || {
        anyhow::ensure!((1..=z).contains(&channels), "--channels {channels}: the cells have 1 to {z}");
        check_count("--samples x --channels", args.samples * channels)
    };
    check_channels().tag(Error::Usage)?;
    let session = common.session(&weights)?;
    let latents = Latent::priors(Key::new(common.seed), args.samples, z);
    let batch = args.samples.min(MAX_BATCH);
    let grower = Grower::new(&session, batch)?;
    let grid = session.model.frame.grid;
    let cells: usize = grid.iter().product();
    // Cells come with their channels adjacent, (samples, rows, columns, channels). Planes are (samples, channels, rows, columns).
    let mut values = Vec::with_capacity(args.samples * channels * cells);
    for part in latents.chunks(batch) {
        let starts: Vec<f32> = part.iter().flat_map(|l| l.z.iter().copied()).collect();
        let keys: Vec<u32> = part.iter().flat_map(|l| l.steps_key().0).collect();
        let states = grower.grow(&starts, &keys)?;
        for grid in states.chunks_exact(cells * z) {
            values.extend((0..channels).flat_map(|c| grid.iter().skip(c).step_by(z)));
        }
    }
    let mut files = common.files("planes")?;
    files.write(".png", &stacks(&values, grid, channels)?.png()?)?;
    if common.npy {
        files.write_npy(".npy", &[args.samples, channels, grid[0], grid[1]], &values)?;
    }
    let range = |c: usize| {
        let planes = values.chunks_exact(cells).skip(c).step_by(channels).flatten();
        let (low, high) = planes.fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
        json!([low, high])
    };
    let ranges: Vec<_> = (0..channels).map(range).collect();
    let numbers = json!({ "samples": args.samples, "channels": channels, "ranges": ranges });
    Ok(files.report(common.seed, &weights, numbers))
}
