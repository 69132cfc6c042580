//! The report's other studies: labels of binarized images, latents, their t-SNE map, and a linear probe of cells.

pub mod latents;
pub mod neighbours;
pub mod originals;
pub mod probe;
pub mod tsne;
