//! The operations, a family a file: constructors, shape rules and VJPs.

pub mod collective;
pub mod control;
pub mod conv;
pub mod elementwise;
pub mod index;
pub mod layout;
pub mod linalg;
pub mod reduce;
pub mod source;
