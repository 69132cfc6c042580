//! Variational Neural Cellular Automata as XLA programs: build, train, evaluate and study them on TPUs, GPUs and CPUs.
//!
//! Plain functions build a model as a computation graph. A pass over the graph adds its gradient. XLA compiles both, and the
//! program runs on any number of replicas. Your own cell, decoder, likelihood or task can replace those of the report: the
//! library's models use the same public traits.
//!
//! # A program
//!
//! A VAE whose decoder is an automaton with a new cell, trained on the embedded digits:
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
//!     let model = Vae::new("mine", 32, ConvEncoder::default(), Grow::doubling(MyCell, 5, 4), Bernoulli);
//!     let mut run = Trainer::new(&mesh, Elbo::new(model))
//!         .optimiser(chain![ClipByGlobalNorm(10.0), Adam::new(1e-3)])
//!         .steps(2000)
//!         .create("runs/mine", Some(images))?;
//!     run.train(&mut |step: usize, loss: f32| println!("step {step}: loss {loss:.1} nats"))?;
//!     Ok(())
//! }
//! ```
//!
//! `examples/` has more programs: a task that is not a VAE, a likelihood, replicas with a collective, latents as arrays.
//! `tools/new-project DIR` creates a crate that builds and links with this one.
//!
//! # Modules
//!
//! A module uses only the modules below it:
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
//! nn ─────────── parameters as named trees, layers, initial values, optimiser transforms   hosts ── processes (feature `hosts`)
//!  │                                                                                        │
//! engine ─────── arrays, graphs with gradients, programs, devices, random numbers ───────────┘
//! ```
//!
//! # Errors
//!
//! Functions return [`anyhow::Result`]. If a caller may want to act on an error, its chain of causes contains an
//! [`Error`](error::Error). [`error::kind`] returns what the caller can change: a value, a file, a device, the learning rate.

#![warn(missing_docs)]

#[cfg(feature = "cli")]
pub mod cli;
pub mod data;
pub mod engine;
pub mod error;
pub mod files;
#[cfg(feature = "hosts")]
pub mod hosts;
pub mod model;
pub mod nn;
pub mod study;
pub mod train;
