//! Draws pictures: grids of images, animations, plots, and HTML pages with them.

pub mod gifs;
pub mod grids;
pub mod page;
pub mod picture;
pub mod planes;
pub mod plots;
