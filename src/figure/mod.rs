//! Pictures: images in grids, animations, plots.

pub mod gifs;
pub mod grids;
pub mod picture;
pub mod plots;
