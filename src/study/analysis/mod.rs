//! What the report studies beside the bound: labels of binarized images, latents, their map, and a probe of cells.

pub mod latents;
pub mod neighbours;
pub mod originals;
pub mod probe;
pub mod tsne;
