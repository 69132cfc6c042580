//! Studies of a trained model: evaluations, pictures, analyses.

pub mod analysis;
pub mod eval;
#[cfg(feature = "plots")]
pub mod figure;
pub mod gallery;
#[cfg(feature = "plots")]
pub mod page;
#[cfg(feature = "plots")]
pub mod pictures;
pub mod session;
#[cfg(feature = "plots")]
pub mod validation;
