//! Building blocks of models: named parameters with initial values, layers, weight files, optimiser transforms.

pub mod optimiser;
pub mod params;
pub mod tree;
pub mod weights;
