//! The program that anneals chains: many moves per device call, with the chains' state on the device from call to call.

use anyhow::Result;

use super::hmc::{Points, Target};
use crate::engine::ir::{Function, Graph, RepeatOptions, Sym};
use crate::engine::random::graph as draw;
use crate::engine::shape::{DType, Shape};
use crate::model::Vae;
use crate::model::decoder::GrowOptions;
use crate::model::objective::sample;
use crate::nn::params::Params;

/// Moves in a device call, at most.
pub const MOVES: usize = 10;
/// Leapfrog steps of a move, at most.
pub const MOST_LEAPFROG: usize = 10_000;
/// The rate of accepted moves that the pilot pass aims at. Source: Neal, "MCMC using Hamiltonian dynamics" (2011), section 4.4.
pub const ACCEPTANCE: f64 = 0.65;

/// Names of the state's arrays, which are inputs and outputs: points (n, Z) in units of the posterior's deviations from its mean;
/// the log-ratio there (n) and its gradient (n, Z); the sum of the log-weights (n); the logarithm of the step size (n).
pub const STATE: [&str; 5] = ["points", "log_ratio", "slope", "log_weights", "log_step"];

/// Builds the program for `n` chains of one replica.
///
/// Inputs after the parameters and what stays the same for all calls: `images` u8 (n, h, w) or (n, h, w, channels), `keys` (n, 2)
/// of random draws while decoding, `move_keys` (n, 2). Then the [`STATE`]. Then what a call does: `first` (u32), the number of
/// moves before it; `moves` (s32), up to [`MOVES`]; `leapfrog` (s32), the steps of a move, up to [`MOST_LEAPFROG`]; `path` (MOVES + 1), the inverse
/// temperatures before and after each move; `gains` (MOVES), which say how much a move changes the log-step; `log_steps`
/// (n, MOVES), which are added to it.
///
/// Outputs: the new state; of each move the probabilities of acceptance and the log-steps after it, (n, MOVES) both.
///
/// # Errors
/// When the graph is ill-formed, which is a bug.
pub fn function(model: &Vae, n: usize) -> Result<Function> {
    model.function("ais", |g, params| build(model, n, g, params))
}

fn build<'g>(model: &Vae, n: usize, g: &'g Graph, params: &Params<'g>) -> Vec<(String, Sym<'g>)> {
    let z = model.latent;
    let images = model.padded(g.input("images", &model.frame.pixels(n)));
    let keys = g.input("keys", &Shape::u32(&[n, 2]));
    let move_keys = g.input("move_keys", &Shape::u32(&[n, 2]));
    let shapes: [&[usize]; 5] = [&[n, z], &[n], &[n, z], &[n], &[n]];
    let state: Vec<Sym<'g>> =
        STATE.iter().zip(shapes).map(|(name, dims)| g.input(name, &Shape::f32(dims))).collect();
    let first = g.input("first", &Shape::u32(&[]));
    let [moves, leapfrog] = ["moves", "leapfrog"].map(|name| g.input(name, &Shape::s32(&[])));
    let path = g.input("path", &Shape::f32(&[MOVES + 1]));
    let gains = g.input("gains", &Shape::f32(&[MOVES]));
    let log_steps = g.input("log_steps", &Shape::f32(&[n, MOVES])).transpose(&[1, 0]);

    let (mean, logvar) = model.encode(params, images);
    let params = model.prepared(params, n * MOVES);
    // Only the grids of an automaton's steps are saved: a call has many chains.
    let memory = RepeatOptions { remat: 1, ..RepeatOptions::for_precision(model.precision) };
    let options = GrowOptions { memory, damage: None };
    let log_ratio = |points: Sym<'g>| {
        let latents = sample(mean, logvar, points);
        let outputs = model.decode_with(&params, latents, keys, &options);
        // log p(z) − log q(z | x): the normalising constants cancel.
        let prior = (logvar + points.square() - latents.square()).sum(&[1]) * 0.5;
        model.log_prob(images, outputs) + prior
    };
    let results = g.repeat_upto(moves, MOVES, &state, |i, carry| {
        let points = Points { at: carry[0], log_ratio: carry[1], slope: carry[2] };
        let [before, b] = [i, i + 1.0].map(|at| path.row(at));
        let log_weights = carry[3] + points.log_ratio * (b - before);
        let target = Target { log_ratio: &log_ratio, b, leapfrog, most: MOST_LEAPFROG };
        let keys = draw::split_from(move_keys, first + i.convert(DType::U32), 1).reshape(&[n, 2]);
        let (points, acceptance) = target.hmc(points, keys, (carry[4] + log_steps.row(i)).exp());
        let log_step = carry[4] + (acceptance - ACCEPTANCE) * gains.row(i);
        let next = vec![points.at, points.log_ratio, points.slope, log_weights, log_step];
        (next, vec![acceptance, log_step])
    });
    let outputs = STATE.iter().map(|name| format!("next_{name}")).zip(results[..5].iter().copied());
    let stacks = ["acceptance", "log_steps_after"].map(String::from).into_iter();
    outputs.chain(stacks.zip(results[5..].iter().map(|stack| stack.transpose(&[1, 0])))).collect()
}
