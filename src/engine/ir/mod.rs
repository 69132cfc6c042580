//! Computations as graphs: nodes in an arena, built by plain functions, rewritten by passes, lowered elsewhere.
//!
//! [`Graph`] is the arena, [`Sym`] a value in it. Shape errors are recorded in the graph with the line of model
//! code that made them and come out once, from [`Graph::finish`]. [`grad`] adds the nodes of gradients.

mod cost;
mod grad;
mod graph;
mod op;
pub mod ops;
mod text;

pub use cost::Cost;
pub use grad::{gradient, pullback};
pub use graph::{Block, Function, Graph, Input, Node, Output, Sym, Value};
pub use op::{Op, Vjp};
pub use ops::control::{Loop, RepeatOptions};
