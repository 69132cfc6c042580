//! The three models of the report, with its sizes.
//!
//! ```
//! let model = vnca::model::report::doubling(256, 5, 8);
//! let grow = model.automaton()?;
//! assert_eq!(grow.first_sides(&model.frame), [1, 1]);
//! assert!(vnca::model::report::baseline(256).automaton().is_err());
//! # Ok::<(), anyhow::Error>(())
//! ```

use super::baseline::ConvDecoder;
use super::cell::{ResidualCell, ShallowCell};
use super::encoder::ConvEncoder;
use super::grow::Grow;
use super::likelihood::Bernoulli;
use super::vae::Vae;

/// Returns the convolutional VAE. The report uses a latent size of 256.
pub fn baseline(latent: usize) -> Vae {
    Vae::new("baseline", latent, ConvEncoder::default(), ConvDecoder, Bernoulli)
}

/// Returns the model whose grid doubles. The report uses a latent size of 256, 5 doublings and 8 steps after each.
pub fn doubling(latent: usize, doublings: usize, steps: usize) -> Vae {
    let grow = Grow::doubling(ResidualCell { blocks: 4 }, doublings, steps);
    Vae::new("doubling", latent, ConvEncoder::default(), grow, Bernoulli)
}

/// Returns the model with a grid of constant size. The report uses a latent size of 128, and 36 steps in evaluation.
pub fn nondoubling(latent: usize, steps: usize) -> Vae {
    Vae::new("nondoubling", latent, ConvEncoder::default(), Grow::new(ShallowCell, steps), Bernoulli)
}
