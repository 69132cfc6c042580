//! Models of images and how they learn: encoders, cells, decoders, likelihoods, bounds and the pool.
//!
//! [`vae::Vae`] puts a model together; [`elbo::Elbo`] and [`pool::Pooled`] are the tasks of learning one. [`report`] has the
//! three models of the report, in these terms.

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
pub use likelihood::{Bernoulli, Likelihood};
pub use pool::Pooled;
pub use vae::Vae;

/// Height and width of the images that models see: 28 padded by 2 zeros on every side.
pub const GRID_SIDE: usize = 32;
/// Zeros on every side of a 28 x 28 image.
pub const MARGIN: usize = 2;
