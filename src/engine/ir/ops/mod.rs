//! The operations. Each file has one family: its constructors (methods of [`Sym`](super::Sym) or [`Graph`](super::Graph)), shape
//! rules and VJPs.

pub mod collective;
pub mod control;
pub mod conv;
pub mod elementwise;
pub mod index;
pub mod layout;
pub mod linalg;
pub mod reduce;
pub mod source;
