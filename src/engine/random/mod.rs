//! Explicit random keys: JAX's threefry2x32 with partitionable draws, on the host and in a graph.

pub mod graph;
pub mod host;
pub mod stream;

pub use host::Key;
pub use stream::KeyRng;
