//! Pictures.

pub mod grids;
