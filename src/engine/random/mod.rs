//! Random numbers from explicit keys, equal to JAX's partitionable threefry2x32. The same draws exist on the host ([`host`])
//! and as nodes of a graph ([`graph`]).

pub mod graph;
pub mod host;
pub mod stream;

pub use host::Key;
pub use stream::KeyRng;
