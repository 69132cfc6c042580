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
pub mod frame;
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
pub use frame::Frame;
pub use grow::Grow;
pub use likelihood::{Bernoulli, DynamicBernoulli, Likelihood, LogisticMixture};
pub use pool::Pooled;
pub use vae::Vae;

/// Height and width of the grids of the report's models: images of 28 x 28, padded with 2 zeros on every side.
pub const GRID_SIDE: usize = 32;
