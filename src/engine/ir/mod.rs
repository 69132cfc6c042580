//! Computation graphs: built by plain functions, differentiated by [`gradient`], printed as text, lowered elsewhere.
//!
//! A [`Graph`] holds the nodes; a [`Sym`] is a value in it. Operations on values add nodes. Operations with wrong shapes do
//! not return errors: the graph records the first one with its line of model code, and [`Graph::finish`] returns it.
//!
//! ```
//! use vnca::engine::ir::{Graph, gradient};
//! use vnca::engine::shape::Shape;
//!
//! let graph = Graph::new("example");
//! let x = graph.input("x", &Shape::f32(&[3]));
//! let loss = x.exp().sum_all();
//! let dx = gradient(loss, &[x])[0];
//! let function = graph.finish(&[("loss".into(), loss), ("dx".into(), dx)], &[])?;
//! assert_eq!(
//!     function.to_string(),
//!     "\
//! function example {
//!   %0 = f32[3] parameter(x)
//!   %1 = f32[3] exp(%0)
//!   %2 = f32[] reduce_sum(%1) axes=[0]
//!   %3 = f32[] constant() value=1.0
//!   %4 = f32[3] broadcast(%3) axes=[]
//!   %5 = f32[3] mul(%4, %1)
//!   output loss = %2
//!   output dx = %5
//! }
//! "
//! );
//!
//! let wrong = Graph::new("wrong");
//! let (a, b) = (wrong.input("a", &Shape::f32(&[2])), wrong.input("b", &Shape::f32(&[3])));
//! let error = wrong.finish(&[("sum".into(), a + b)], &[]).unwrap_err().to_string();
//! assert!(error.contains("add(f32[2], f32[3]): sizes do not broadcast"), "{error}");
//! # anyhow::Ok(())
//! ```

mod cost;
mod grad;
mod graph;
mod op;
pub mod ops;
mod text;

pub use cost::Cost;
pub use grad::{gradient, pullback};
pub use graph::{Block, Function, Graph, Input, Node, Output, Sym, Value};
pub use op::Op;
pub use ops::control::{Loop, RepeatOptions};
