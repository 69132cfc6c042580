//! Models of images and their training tasks: encoders, cells, decoders, likelihoods, bounds and the pool.
//!
//! [`vae::Vae`] combines the parts of a model. [`elbo::Elbo`] and [`pool::Pooled`] are tasks that train a model. [`report`]
//! contains the three models of the report.

pub mod baseline;
pub mod cell;
pub mod decoder;
pub mod elbo;
pub mod encoder;
pub mod exchange;
pub mod grow;
pub mod likelihood;
pub mod objective;
pub mod pool;
mod pool_host;
pub mod report;
pub mod vae;

pub use cell::Cell;
pub use decoder::Decoder;
pub use elbo::Elbo;
pub use encoder::Encoder;
pub use grow::Grow;
pub use likelihood::{Bernoulli, DynamicBernoulli, Likelihood, LogisticMixture};
pub use pool::Pooled;
pub use vae::Vae;

/// Height and width of the images that models take: 28, padded with 2 zeros on every side.
pub const GRID_SIDE: usize = 32;
/// Zeros on every side of a 28 x 28 image.
pub const MARGIN: usize = 2;
