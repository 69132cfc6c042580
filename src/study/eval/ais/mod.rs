//! Estimates log p(x) by annealed importance sampling: another estimate than the importance-weighted bound, to check it.
//!
//! A chain starts at a latent from q(z | x) and passes densities from there to p(x, z): log f_b = (1 − b) log q(z | x) + b log
//! p(x, z), with the inverse temperature b from 0 to 1. Whenever b grows, the chain's weight gets f_b(z) of the new b divided by
//! that of the old one. Then a move of Hamiltonian Monte Carlo, which leaves the new f_b as it is, brings the chain to where f_b
//! is large. The mean of the weights over the chains is an unbiased estimate of p(x), whatever q and the lengths of the moves are.
//! So its logarithm is in the mean at most log p(x), and the closer to it the more temperatures there are. With one temperature it
//! is the importance-weighted bound.
//!
//! Sources: Neal, "Annealed importance sampling" (2001); Wu, Burda, Salakhutdinov & Grosse, "On the quantitative analysis of
//! decoder-based generative models" (2017), whose chains start at the prior.
//!
//! Chains move in the coordinates (z − mean) / deviation of q(z | x). Steps of one length then fit all dimensions better.
//!
//! A pilot pass with chains of its own chooses the step sizes of each image: a chain makes its steps longer if its moves are accepted
//! too often, and shorter if too seldom. A step size that depends on the chain's own past would bias the estimate. The main pass
//! takes the pilot's step sizes as they are, so that its estimate is unbiased.
//!
//! A decoder that draws random numbers does so with one key for each chain, from the first to the last temperature. The mean over
//! the chains is then one over keys, too, as in the importance-weighted bound.

pub mod hmc;
mod program;

use anyhow::{Result, bail};

use crate::data::Split;
use crate::engine::array::Array;
use crate::engine::compile::compile;
use crate::engine::random::Key;
use crate::engine::runtime::{Arg, Buffers, Executable, Mesh};
use crate::error::valid;
use crate::model::{Frame, Vae};
use program::{MOST_LEAPFROG, MOVES, STATE};

/// The sizes of an estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Annealing {
    /// Chains of each image.
    pub chains: usize,
    /// Number of inverse temperatures after 0, the last of which is 1. A chain moves between them, one time less.
    pub temperatures: usize,
    /// Leapfrog steps of a move.
    pub leapfrog: usize,
}

impl Annealing {
    /// Checks the fields for a latent size.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::error::Error::Invalid), with the field that is out of range.
    pub fn check(&self, latent: usize) -> Result<()> {
        let Annealing { chains, temperatures, leapfrog } = *self;
        valid!((1..=65_536).contains(&chains), "chains", "{chains}: it must be from 1 to 65536");
        valid!(
            chains.saturating_mul(latent) < 1 << 30,
            "chains",
            "{chains} is too many: an image's key can draw 2^30 numbers"
        );
        valid!(
            (1..=1_000_000).contains(&temperatures),
            "temperatures",
            "{temperatures}: it must be from 1 to 1000000"
        );
        valid!(
            (1..=MOST_LEAPFROG).contains(&leapfrog),
            "leapfrog",
            "{leapfrog}: it must be from 1 to {MOST_LEAPFROG}"
        );
        Ok(())
    }

    /// Returns the number of temperatures of the pilot pass. Step sizes change slowly along the path, so that a quarter is enough.
    fn pilot(&self) -> usize {
        if self.temperatures == 1 { 1 } else { (self.temperatures / 4).max(32) }
    }

    /// Returns the number of moves of all chains of an image, in both passes.
    pub fn moves(&self) -> usize {
        self.chains * (self.pilot() - 1 + self.temperatures - 1)
    }
}

/// Returns the inverse temperatures from 0 to 1, `count` after the first: a sigmoid curve, scaled to these ends.
///
/// Steps are small at both ends. Near 0 a latent of q may be one where p(x | z) is tiny, and near 1 the density may reach further than
/// q, so that the log-weights vary most there. Source: the curve, and its steepness, are those of Wu et al. (2017).
fn temperatures(count: usize) -> Vec<f32> {
    const STEEPNESS: f64 = 4.0;
    let curve = |x: f64| 1.0 / (1.0 + (-STEEPNESS * x).exp());
    let (low, high) = (curve(-1.0), curve(1.0));
    let at = |i: usize| (curve(2.0 * i as f64 / count as f64 - 1.0) - low) / (high - low);
    (0..=count).map(|i| at(i) as f32).collect()
}

/// The estimates of some images, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Annealed {
    /// The estimate of log p(x), in nats.
    pub log_prob: Vec<f64>,
    /// The mean probability of acceptance of a move. 1 if there are no moves.
    pub acceptance: Vec<f64>,
    /// The effective number of chains, from 1 to all: the squared sum of the weights over the sum of their squares.
    pub effective_chains: Vec<f64>,
}

/// A compiled program that anneals chains.
pub struct Annealer {
    executable: Executable,
    mesh: Mesh,
    annealing: Annealing,
    /// Images per call, over all replicas.
    batch: usize,
    frame: Frame,
    latent: usize,
}

/// The chains of a batch of images, at the beginning of a pass.
struct Start {
    /// Pixels, keys of decoding and keys of moves.
    fixed: [Array; 3],
    /// The first points, (n, Z).
    points: Array,
}

/// The temperatures of a pass, and the step sizes.
struct Plan<'a> {
    /// The inverse temperatures, from 0 to the last one that the chains move at.
    path: &'a [f32],
    /// The logarithm of the first step size.
    first_log_step: f32,
    /// Whether a chain adapts its step size to its moves.
    adapts: bool,
    /// Log-steps of each chain's moves, which are added to the own one: (n, moves).
    log_steps: Option<Vec<f32>>,
}

/// The chains at the end of a pass.
struct End {
    /// Sums of the log-weights, (n).
    log_weights: Vec<f32>,
    /// Log-ratios at the last points, (n).
    log_ratios: Vec<f32>,
    /// Probabilities of acceptance, (n, moves).
    acceptance: Vec<f32>,
    /// Log-steps after each move, (n, moves).
    log_steps: Vec<f32>,
}

impl Annealer {
    /// Compiles the program for `batch` images per call, over all replicas.
    ///
    /// # Errors
    /// When the number of replicas does not divide the batch, or a size is out of range.
    pub fn new(mesh: &Mesh, model: &Vae, batch: usize, annealing: Annealing) -> Result<Annealer> {
        annealing.check(model.latent)?;
        let replicas = mesh.replicas();
        valid!(
            batch > 0 && batch.is_multiple_of(replicas),
            "batch",
            "{batch} is not divided evenly by {replicas} replicas"
        );
        valid!(
            batch.saturating_mul(annealing.chains) <= MOST_CHAINS,
            "batch",
            "{batch} with {} chains each is too many: a call moves at most {MOST_CHAINS} chains",
            annealing.chains
        );
        let chains = batch / replicas * annealing.chains;
        let executable = compile(mesh, &program::function(model, chains)?)?;
        let (mesh, frame, latent) = (mesh.clone(), model.frame, model.latent);
        Ok(Annealer { executable, mesh, annealing, batch, frame, latent })
    }

    /// Estimates log p(x) of all images.
    ///
    /// Image i uses the i-th split of `key`, whatever the batch and the number of replicas. Its chains start at the latents that the
    /// bound of an [`Evaluator`](super::Evaluator) would take first. `done` is called with the number of finished moves, of
    /// [`Annealing::moves`] for each image.
    ///
    /// # Errors
    /// When an estimate is not finite; the error names the image. When the device fails, or `parameters` are not the model's.
    pub fn run(
        &self,
        parameters: &[&Buffers],
        split: &Split,
        key: Key,
        mut done: impl FnMut(usize),
    ) -> Result<Annealed> {
        let mut annealed = Annealed::default();
        let mut moves = 0;
        for from in (0..split.len()).step_by(self.batch) {
            let images = self.batch.min(split.len() - from);
            // The last image fills up the last batch. The results of its copies are not read.
            let rows: Vec<usize> = (0..self.batch).map(|i| from + i.min(images - 1)).collect();
            let keys: Vec<Key> = rows.iter().map(|i| key.split_at(*i as u64)).collect();
            let pixels: Vec<&[u8]> = rows.iter().map(|i| split.image(*i)).collect();
            let end = self.passes(parameters, (&pixels, &keys), from, &mut |n| {
                moves += n * images * self.annealing.chains;
                done(moves);
            })?;
            for i in 0..images {
                let (log_prob, effective) = self.estimate(&end, i);
                if !log_prob.is_finite() {
                    bail!("image {} has an estimate of log p(x) of {log_prob}", from + i);
                }
                annealed.log_prob.push(log_prob);
                annealed.effective_chains.push(effective);
                annealed.acceptance.push(self.acceptance(&end, i));
            }
        }
        Ok(annealed)
    }

    /// Anneals the chains of a batch of images with their keys: the pilot pass, and with its step sizes the main pass.
    fn passes(
        &self,
        parameters: &[&Buffers],
        (pixels, keys): (&[&[u8]], &[Key]),
        from: usize,
        done: &mut impl FnMut(usize),
    ) -> Result<End> {
        let Annealing { temperatures: count, .. } = self.annealing;
        let mut log_steps = None;
        if count > 1 {
            let path = temperatures(self.annealing.pilot());
            let first_log_step = -0.25 * (self.latent as f32).ln();
            let path = &path[..path.len() - 1];
            let plan = Plan { path, first_log_step, adapts: true, log_steps: None };
            let keys: Vec<Key> = keys.iter().map(|key| self.child(*key, 2)).collect();
            let end = self.anneal(parameters, self.start(pixels, &keys), &plan, from, done)?;
            log_steps = Some(self.chosen_steps(&end.log_steps));
        }
        let path = &temperatures(count)[..count];
        let plan = Plan { path, first_log_step: 0.0, adapts: false, log_steps };
        self.anneal(parameters, self.start(pixels, keys), &plan, from, done)
    }

    /// Returns the estimate of log p(x) for the `i`-th image of a batch, and the effective number of its chains.
    fn estimate(&self, end: &End, i: usize) -> (f64, f64) {
        let Annealing { chains, temperatures: count, .. } = self.annealing;
        // The weights lack the way from the last temperature of the moves to 1.
        let last = f64::from(1.0 - temperatures(count)[count - 1]);
        let own = i * chains..(i + 1) * chains;
        let pairs = end.log_weights[own.clone()].iter().zip(&end.log_ratios[own]);
        log_mean(&pairs.map(|(w, r)| f64::from(*w) + last * f64::from(*r)).collect::<Vec<_>>())
    }

    /// Returns the mean probability of acceptance of the moves of the `i`-th image of a batch.
    fn acceptance(&self, end: &End, i: usize) -> f64 {
        let moves = self.annealing.chains * (self.annealing.temperatures - 1);
        let own = &end.acceptance[i * moves..(i + 1) * moves];
        if own.is_empty() { 1.0 } else { own.iter().map(|p| f64::from(*p)).sum::<f64>() / moves as f64 }
    }

    /// Returns a child of an image's key beyond those that draw its latents. Child 0 is for draws while decoding, as in
    /// [`objective::noise`](crate::model::objective::noise), child 1 for the moves, child 2 for the pilot pass.
    fn child(&self, key: Key, i: usize) -> Key {
        key.split_at((self.annealing.chains * self.latent + i) as u64)
    }

    /// Returns the chains of a batch of images with these keys.
    fn start(&self, pixels: &[&[u8]], keys: &[Key]) -> Start {
        let Annealing { chains, .. } = self.annealing;
        let n = self.batch * chains;
        let bytes: Vec<u8> = pixels.iter().flat_map(|image| image.repeat(chains)).collect();
        let points: Vec<f32> = keys.iter().flat_map(|key| key.normal(chains * self.latent)).collect();
        let by_chain = |child: usize| -> Array {
            let of_image = |key: &Key| self.child(*key, child).split(chains);
            Array::new(&[n, 2], &keys.iter().flat_map(of_image).flat_map(|key| key.0).collect::<Vec<u32>>())
        };
        let images = Array::new(&self.frame.pixels(n).dims, &bytes);
        Start { fixed: [images, by_chain(0), by_chain(1)], points: Array::new(&[n, self.latent], &points) }
    }

    /// Moves chains along a path. `from` is the index of the first image. `done` is called with the number of moves that each chain
    /// has made since the last time.
    fn anneal(
        &self,
        parameters: &[&Buffers],
        start: Start,
        plan: &Plan<'_>,
        from: usize,
        done: &mut impl FnMut(usize),
    ) -> Result<End> {
        let (n, moves) = (start.points.dims()[0], plan.path.len() - 1);
        let fixed = start.fixed.iter().map(|array| self.shard(array)).collect::<Result<Vec<_>>>()?;
        let zeros = Array::new(&[n], &vec![0f32; n]);
        let slope = Array::new(start.points.dims(), &vec![0f32; n * self.latent]);
        let log_step = Array::new(&[n], &vec![plan.first_log_step; n]);
        let state = [&start.points, &zeros, &slope, &zeros, &log_step];
        let mut state = state.into_iter().map(|array| self.shard(array)).collect::<Result<Vec<_>>>()?;
        let (mut acceptance, mut log_steps) = (Vec::new(), Vec::new());
        let mut made = 0;
        // Before the moves of the path comes one at b = 0 in a step of length 0. It stays where it is, and evaluates the density there.
        let mut first = true;
        while first || made < moves {
            let count = if first { 1 } else { MOVES.min(moves - made) };
            let inputs = self.inputs(plan, (!first).then_some(made), count, n);
            let mut arguments: Vec<Arg<'_>> = parameters.iter().map(|b| Arg::from(*b)).collect();
            arguments.extend(fixed.iter().map(Arg::from));
            arguments.extend(state.drain(..).map(Arg::from));
            let [same @ .., log_steps_before] = &inputs;
            for input in same {
                arguments.push(self.mesh.replicate(input)?.into());
            }
            arguments.push(self.shard(log_steps_before)?.into());
            state = self.executable.call(arguments)?;
            let stacks = state.split_off(STATE.len());
            let [probabilities, steps] = [self.rows(&stacks[0])?, self.rows(&stacks[1])?];
            if first {
                let refused = probabilities.chunks(MOVES).position(|row| row[0] < 0.5);
                if let Some(chain) = refused {
                    let image = from + chain / self.annealing.chains;
                    bail!(
                        "image {image}: log p(x | z) or its gradient is not finite at a latent of q(z | x)"
                    );
                }
                first = false;
                continue;
            }
            acceptance.push((count, probabilities));
            log_steps.push((count, steps));
            made += count;
            done(count);
        }
        Ok(End {
            log_weights: self.rows(&state[3])?,
            log_ratios: self.rows(&state[1])?,
            acceptance: joined(&acceptance, n),
            log_steps: joined(&log_steps, n),
        })
    }

    /// Returns a call's inputs after the state, for `count` moves after `made` ones; `None`: for the first evaluation.
    fn inputs(&self, plan: &Plan<'_>, made: Option<usize>, count: usize, n: usize) -> [Array; 6] {
        let moves = plan.path.len() - 1;
        let (mut path, mut gains) = ([0f32; MOVES + 1], [0f32; MOVES]);
        let mut log_steps = vec![f32::NEG_INFINITY; n * MOVES];
        if let Some(made) = made {
            path[..=count].copy_from_slice(&plan.path[made..=made + count]);
            for (i, gain) in gains[..count].iter_mut().enumerate().filter(|_| plan.adapts) {
                *gain = (1.0 / (made + i + 2) as f32).max(LEAST_GAIN);
            }
            for (chain, row) in log_steps.chunks_mut(MOVES).enumerate() {
                let own = plan.log_steps.as_ref().map(|all| &all[chain * moves + made..][..count]);
                match own {
                    Some(own) => row[..count].copy_from_slice(own),
                    None => row[..count].fill(0.0),
                }
            }
        }
        let leapfrog = if made.is_some() { self.annealing.leapfrog } else { 1 };
        [
            // The first evaluation draws nothing that matters.
            Array::scalar(made.unwrap_or(0) as u32),
            Array::scalar(count as i32),
            Array::scalar(leapfrog as i32),
            Array::new(&[MOVES + 1], &path),
            Array::new(&[MOVES], &gains),
            Array::new(&[n, MOVES], &log_steps),
        ]
    }

    /// Returns the log-steps of the main pass (n, moves) from those of the pilot's chains (n, pilot moves). All chains of an image get
    /// the mean over them at the same point of the path.
    fn chosen_steps(&self, pilot: &[f32]) -> Vec<f32> {
        let Annealing { chains, temperatures, .. } = self.annealing;
        let pilots = self.annealing.pilot();
        let mut chosen = Vec::with_capacity(self.batch * chains * (temperatures - 1));
        for of_image in pilot.chunks(chains * (pilots - 1)) {
            let mean = |k: usize| {
                let sum: f32 = of_image.chunks(pilots - 1).map(|chain| chain[k]).sum();
                sum / chains as f32
            };
            let means: Vec<f32> = (0..pilots - 1).map(mean).collect();
            let at = |k: usize| {
                // The k-th temperature is the one after move k − 1.
                let place = k as f32 / temperatures as f32 * pilots as f32 - 1.0;
                let place = place.clamp(0.0, (pilots - 2) as f32);
                let (low, share) = (place.floor() as usize, place.fract());
                let high = (low + 1).min(pilots - 2);
                means[low] + (means[high] - means[low]) * share
            };
            let row: Vec<f32> = (1..temperatures).map(at).collect();
            (0..chains).for_each(|_| chosen.extend(&row));
        }
        chosen
    }

    /// Gives each replica its part of the rows.
    fn shard(&self, array: &Array) -> Result<Buffers> {
        self.mesh.shard(&array.split_rows(self.mesh.replicas())?)
    }

    /// Returns the values of all replicas.
    fn rows(&self, buffers: &Buffers) -> Result<Vec<f32>> {
        Ok(buffers.all()?.iter().flat_map(Array::to_vec::<f32>).collect())
    }
}

/// Chains of a call, at most.
const MOST_CHAINS: usize = 1 << 20;
/// A chain's step size changes by at least this much with a move, for each difference of 1 between its acceptance and the aim. The
/// first moves change it more.
const LEAST_GAIN: f32 = 0.1;

/// Joins the moves of calls, each (n, MOVES) with a number of moves that were made: (n, moves).
fn joined(calls: &[(usize, Vec<f32>)], n: usize) -> Vec<f32> {
    let row = |chain: usize| calls.iter().flat_map(move |(count, all)| &all[chain * MOVES..][..*count]);
    (0..n).flat_map(row).copied().collect()
}

/// Returns the logarithm of the mean weight, and the effective number of weights.
fn log_mean(log_weights: &[f64]) -> (f64, f64) {
    let most = log_weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = log_weights.iter().map(|w| (w - most).exp()).collect();
    let (sum, squares) = (weights.iter().sum::<f64>(), weights.iter().map(|w| w * w).sum::<f64>());
    (most + (sum / weights.len() as f64).ln(), sum * sum / squares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperatures_rise_from_0_to_1_slowly_at_the_ends() {
        assert_eq!(temperatures(1), [0.0, 1.0]);
        let b = temperatures(100);
        assert_eq!((b[0], b[50], b[100]), (0.0, 0.5, 1.0));
        assert!(b.windows(2).all(|pair| pair[0] < pair[1]));
        let step = |i: usize| b[i + 1] - b[i];
        assert!((step(0) - step(99)).abs() < 1e-6 && 10.0 * step(0) < step(50), "{} {}", step(0), step(50));
    }

    #[test]
    fn the_mean_of_weights_that_no_float_holds() {
        let (mean, effective) = log_mean(&[-2000.0, -2000.0 + 3f64.ln()]);
        assert!((mean - (2f64.ln() - 2000.0)).abs() < 1e-9 && (effective - 1.6).abs() < 1e-9);
        assert!(!log_mean(&[f64::NAN, 0.0]).0.is_finite());
    }
}
