//! Variational Neural Cellular Automata as XLA programs: build, train, evaluate and study them on TPUs, GPUs and CPUs.
//!
//! A model is a computation graph, written with plain functions; its gradient is a pass over the graph; what comes of both is
//! compiled by XLA and runs on any number of replicas. A cell, a decoder, a likelihood or a whole task of one's own goes
//! where the report's stand: the library's own models are written in the same terms.
//!
//! # A program
//!
//! An automaton of one's own as the decoder of a VAE, trained on the embedded digits:
//!
//! ```no_run
//! use vnca::chain;
//! use vnca::data::{self, Part};
//! use vnca::engine::ir::Sym;
//! use vnca::engine::ir::ops::conv::Window;
//! use vnca::engine::runtime::{Device, Mesh};
//! use vnca::model::cell::zeroed;
//! use vnca::model::encoder::ConvEncoder;
//! use vnca::model::{Bernoulli, Cell, Elbo, Grow, Vae};
//! use vnca::nn::optimiser::{Adam, ClipByGlobalNorm};
//! use vnca::nn::params::{Leaf, Params, Role, layer};
//! use vnca::train::Trainer;
//!
//! struct MyCell;
//!
//! impl Cell for MyCell {
//!     fn parameters(&self, channels: usize) -> Vec<Leaf> {
//!         let see = layer("see", Role::ConvWeight, &[64, channels, 3, 3], &[0]);
//!         let act = layer("act", Role::PointWeight, &[channels, 64, 1, 1], &[1]);
//!         [see, zeroed(act)].concat()
//!     }
//!
//!     fn update<'g>(&self, params: &Params<'g>, cells: Sym<'g>) -> Sym<'g> {
//!         params.linear("act", params.conv("see", cells, Window::new(1, (1, 1))).elu())
//!     }
//! }
//!
//! fn main() -> anyhow::Result<()> {
//!     let mesh = Mesh::open(&Device::Cpu, 1)?;
//!     let images = data::load(data::GLYPHS)?.split(Part::Train)?.to_array();
//!     let model = Vae::new("mine", 32, ConvEncoder, Grow::doubling(MyCell, 5, 4), Bernoulli);
//!     let mut run = Trainer::new(&mesh, Elbo::new(model))
//!         .optimiser(chain![ClipByGlobalNorm(10.0), Adam::new(1e-3)])
//!         .steps(2000)
//!         .create("runs/mine", Some(images))?;
//!     run.train(&mut |step: usize, loss: f32| println!("step {step}: loss {loss:.1} nats"))?;
//!     Ok(())
//! }
//! ```
//!
//! `examples/` has more: a task that is no VAE, a likelihood, replicas with a collective, latents as arrays. `tools/new-project
//! DIR` makes a crate that builds and links with this one.
//!
//! # The rooms
//!
//! Every arrow between these modules points down:
//!
//! ```text
//! cli ────────── verbs, options, exit codes, progress                        (feature `cli`)
//!  │
//! study ──────── evaluation, pictures, growth and recovery, analyses         (pictures: feature `plots`)
//!  │
//! model ──────── encoders, cells, decoders, likelihoods, bounds, the pool    data ── images in (downloads: feature `download`)
//!  │                                                                          │
//! train ──────── a task becomes a train program, a run, checkpoints, metrics ─┘
//!  │
//! nn ─────────── parameters as named trees, layers, initial values, optimiser transforms
//!  │
//! engine ─────── arrays, graphs with gradients, programs, devices, random numbers
//! ```
//!
//! # Errors
//!
//! Functions return [`anyhow::Result`]. Where a caller may want to act, an [`Error`](error::Error) is in the chain of causes, and
//! [`error::kind`] says what to do about it: another value, a file, a device, a lower learning rate.

#![warn(missing_docs)]

#[cfg(feature = "cli")]
pub mod cli;
pub mod data;
pub mod engine;
pub mod error;
pub mod files;
pub mod model;
pub mod nn;
pub mod study;
pub mod train;
