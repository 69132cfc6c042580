//! Pictures: images in grids, animations, plots.

pub mod gifs;
pub mod grids;
pub mod page;
pub mod picture;
pub mod planes;
pub mod plots;
