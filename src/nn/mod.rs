//! What models are made of: named parameters with their initial values, layers, weights in files, optimiser transforms.

pub mod optimiser;
pub mod params;
pub mod tree;
pub mod weights;
