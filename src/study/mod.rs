//! What one does with a trained model: evaluations, pictures, analyses.

pub mod analysis;
pub mod eval;
pub mod figure;
pub mod gallery;
pub mod pictures;
pub mod session;
pub mod validation;
