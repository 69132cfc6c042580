//! A training run: device calls one after the other, and what is written between them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::checkpoint::{Checkpoint, Meta, Store};
use super::metrics::{Line, Metrics};
use super::order::{ChunkOrder, chunk_order};
use super::pictures::Pictures;
use super::pool_run::PoolRun;
use super::state::State;
use super::step::StepSpec;
use crate::array::Array;
use crate::build::compile;
use crate::config::TrainConfig;
use crate::data::Split;
use crate::data::identity::DataCrc;
use crate::error::{Exit, coded};
use crate::eval::Evaluator;
use crate::random::Key;
use crate::runtime::{Arg, Buffers, Executable, Mesh};

/// How long a device call should take: so long does a person wait for the bar to move and for Ctrl-C to be heard.
/// Where a call is cut changes no number.
const CALL: Duration = Duration::from_millis(800);

/// Why a run came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps were made.
    Done,
    /// It was asked to stop, and saved its state.
    Stopped,
}

/// What a run tells while it goes.
pub trait Watch {
    /// After each device call.
    fn steps(&mut self, step: usize, loss: f32);
    /// A line of text for people.
    fn say(&mut self, text: &str);
    /// Whether to stop after this call.
    fn stop(&self) -> bool;
}

/// A run, ready to make its next step.
pub struct Run {
    config: TrainConfig,
    folder: PathBuf,
    spec: StepSpec,
    mesh: Mesh,
    executable: Executable,
    state: State,
    pool: Option<PoolRun>,
    images: Buffers,
    data_crc: u32,
    test: Option<Split>,
    step: usize,
    /// The data key of the chunk that the next step belongs to, and that chunk's order once it is needed.
    data_key: Key,
    order: Option<(ChunkOrder, Buffers)>,
    best: Option<f64>,
    metrics: Metrics,
    store: Store,
    evaluator: Option<Evaluator>,
    pictures: Option<Pictures>,
    seconds_a_step: Option<f64>,
}

impl Run {
    /// Compiles the train program and puts the initial or resumed state on the devices. Once nothing is left that could refuse
    /// the run, makes its folder ready: until then nothing in it changes.
    ///
    /// # Errors
    /// When sizes do not fit, the device cannot be had, or the checkpoint or the images are not of this run.
    pub fn start(
        mut config: TrainConfig,
        folder: &Path,
        train: &Split,
        test: Option<Split>,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Run> {
        let spec = config.step_spec(train.len()).map_err(|e| coded(Exit::Usage, e))?;
        let open = || Mesh::open(&config.device()?, config.replicas);
        let mesh = open().map_err(|e| coded(Exit::Device, e))?;
        let executable = compile(&mesh, &spec.function()?)?;
        let data_crc = DataCrc::of(train, test.as_ref());
        let step = checkpoint.as_ref().map_or(0, |c| c.meta.step);
        let meta = checkpoint.as_ref().map(|c| c.meta.clone());
        // What a resumed run knows of its images: the checkpoint, and but for older runs the configuration.
        let trained = meta.as_ref().map(|m| DataCrc { train: m.data_crc, test: None });
        let mut known = [trained, config.data_crc].into_iter().flatten();
        let crc = known.try_fold(data_crc, |now, known| known.going_on(&now));
        config.data_crc = Some(crc.with_context(|| config.data.clone())?);
        let (seed_model, seed_data) = (Key::new(config.seed_model), Key::new(config.seed_data));
        let mut pool = match &spec.pool {
            Some(pool) => Some(PoolRun::new(&spec, pool, &mesh)?),
            None => None,
        };
        let state = match checkpoint {
            Some(checkpoint) => State::restored(&spec, &mesh, checkpoint, seed_data, pool.as_mut())?,
            None => {
                let mut state = State::fresh(&spec, &mesh, seed_model)?;
                if let Some(pool) = &pool {
                    pool.seed(&mesh, &mut state, train, seed_data)?;
                }
                state
            }
        };
        let images = mesh.replicate(&Array::new(&[train.len(), 28, 28], &train.pixels))?;
        let data_key = meta.as_ref().map_or(Key::new(config.seed_data), |m| Key(m.data_key));
        let best = meta.as_ref().and_then(|m| m.best_iwelbo);
        // Only the metrics can refuse the run now, and they do before they change a line. The configuration comes last: it
        // holds for a run that has gone on with it.
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let metrics = Metrics::open(folder, step)?;
        let mut store = Store::of(folder, config.keep);
        store.begin(meta.map(|m| m.step))?;
        config.save(folder)?;
        Ok(Run {
            spec,
            executable,
            state,
            pool,
            images,
            data_crc: data_crc.train,
            test: test.map(|t| t.spread(config.eval_images)),
            step,
            data_key,
            order: None,
            best,
            metrics,
            store,
            evaluator: None,
            pictures: None,
            seconds_a_step: None,
            folder: folder.to_path_buf(),
            mesh,
            config,
        })
    }

    pub fn step(&self) -> usize {
        self.step
    }

    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Measured seconds of a gradient step, once there was more than one call.
    pub fn seconds_a_step(&self) -> Option<f64> {
        self.seconds_a_step
    }

    /// Makes all steps that are left.
    ///
    /// # Errors
    /// A loss or gradient that is not finite, with the state before it saved; a device or file that fails.
    pub fn go(&mut self, watch: &mut impl Watch) -> Result<End> {
        while self.step < self.config.steps {
            self.prepare()?;
            let trips = self.next_trips();
            let (losses, norms, healthy) = self.call(trips)?;
            if !healthy {
                return Err(self.not_finite(&losses, &norms));
            }
            let last = self.step + trips;
            self.advance(trips);
            let every = self.eval_every();
            let bound = if every > 0 && last.is_multiple_of(every) { self.evaluate(watch)? } else { None };
            for (i, (loss, norm)) in losses.iter().zip(&norms).enumerate() {
                let step = last - trips + i + 1;
                let test_iwelbo = bound.filter(|_| step == last);
                self.metrics.write(&Line { step, loss: *loss, grad_norm: *norm, test_iwelbo })?;
            }
            self.metrics.flush()?;
            watch.steps(self.step, losses.last().copied().unwrap_or(f32::NAN));
            // Nothing is better than NaN, and a checkpoint's JSON has no infinity.
            let better = bound.is_some_and(|b| b.is_finite() && self.best.is_none_or(|best| b > best));
            if better {
                self.best = bound;
            }
            let stop = watch.stop();
            let end = self.step >= self.config.steps;
            if self.config.checkpoint_every > 0
                && (stop || better || end || self.step.is_multiple_of(self.config.checkpoint_every))
            {
                self.save(better)?;
            }
            if stop && !end {
                return Ok(End::Stopped);
            }
        }
        Ok(End::Done)
    }

    /// Steps between evaluations: as asked, else 1000 where there are test images.
    fn eval_every(&self) -> usize {
        match (self.config.eval_every, &self.test) {
            (Some(n), _) => n,
            (None, Some(_)) => 1000,
            (None, None) => 0,
        }
    }

    /// How many steps the next call makes: up to where something is due, and no longer than a person waits.
    fn next_trips(&self) -> usize {
        let until = |every: usize| match every {
            0 => usize::MAX,
            every => every - self.step % every,
        };
        let patience = match self.seconds_a_step {
            Some(seconds) => (CALL.as_secs_f64() / seconds.max(1e-9)).ceil() as usize,
            None => 1,
        };
        let planned = self.pool.as_ref().and_then(PoolRun::planned_until);
        [
            self.config.steps - self.step,
            until(self.config.chunk),
            until(self.eval_every()),
            until(self.config.checkpoint_every),
            planned.map_or(usize::MAX, |end| end - self.step),
            patience.max(1),
        ]
        .into_iter()
        .min()
        .unwrap_or(1)
    }

    /// Sees to it that the devices have what the next step takes: the chunk's order of images, at its beginning each
    /// replica's key, and the pool's plan.
    fn prepare(&mut self) -> Result<()> {
        let StepSpec { batch, chunk, images, .. } = self.spec;
        if self.order.is_none() {
            let order = chunk_order(self.data_key, images, batch, chunk);
            let each = self.spec.each();
            let parts = order.images.chunks_exact(chunk * each);
            let parts: Vec<Array> = parts.map(|part| Array::new(&[chunk, each], part)).collect();
            self.order = Some((order, self.mesh.shard(&parts)?));
            if self.step.is_multiple_of(chunk) {
                let seed = Key::new(self.config.seed_data);
                self.state.enter_chunk(&self.mesh, seed, self.step / chunk)?;
            }
        }
        match &mut self.pool {
            Some(pool) => pool.prepare(&self.mesh, &mut self.state, self.step),
            None => Ok(()),
        }
    }

    /// Runs steps on the devices; gives the losses, the norms, and whether all were finite.
    fn call(&mut self, trips: usize) -> Result<(Vec<f32>, Vec<f32>, bool)> {
        let (_, order) = self.order.as_ref().context("a chunk was entered")?;
        let start = self.mesh.replicate(&Array::scalar((self.step % self.config.chunk) as i32))?;
        let count = self.mesh.replicate(&Array::scalar(trips as i32))?;
        let mut arguments: Vec<Arg<'_>> = self.state.buffers.drain(..).map(Arg::from).collect();
        arguments.extend([Arg::from(&self.images), Arg::from(order)]);
        arguments.extend(self.pool.iter().flat_map(PoolRun::inputs).map(Arg::from));
        arguments.extend([Arg::from(start), Arg::from(count)]);
        let began = Instant::now();
        let mut results = self.executable.call(arguments)?;
        let mut row = || -> Result<Vec<f32>> {
            let buffers = results.pop().context("the train program gives its losses and norms")?;
            let mut values = buffers.get(0)?.to_vec::<f32>();
            values.truncate(trips);
            Ok(values)
        };
        let norms = row()?;
        let losses = row()?;
        // The first call of a process also warms up: its time says little.
        let seconds = began.elapsed().as_secs_f64() / trips as f64;
        self.seconds_a_step = Some(self.seconds_a_step.map_or(seconds, |s| 0.5 * s + 0.5 * seconds));
        self.state.buffers = results;
        Ok((losses, norms, self.state.healthy()?))
    }

    fn advance(&mut self, steps: usize) {
        self.step += steps;
        if self.step.is_multiple_of(self.config.chunk)
            && let Some((order, _)) = self.order.take()
        {
            self.data_key = order.next;
        }
    }

    /// Saves the state before the first step that was not finite, and says which.
    fn not_finite(&mut self, losses: &[f32], norms: &[f32]) -> anyhow::Error {
        let bad = losses.iter().zip(norms).position(|(l, n)| !l.is_finite() || !n.is_finite()).unwrap_or(0);
        let saved = (|| -> Result<&str> {
            for (i, (loss, norm)) in losses.iter().zip(norms).take(bad).enumerate() {
                let step = self.step + i + 1;
                self.metrics.write(&Line { step, loss: *loss, grad_norm: *norm, test_iwelbo: None })?;
            }
            self.advance(bad);
            self.metrics.flush()?;
            if self.config.checkpoint_every == 0 {
                return Ok("nothing was saved, as --checkpoint-every 0 asks");
            }
            self.save(false)?;
            Ok("the state before it is saved")
        })();
        let step = self.step + 1;
        let saved =
            saved.map_or_else(|e| format!("and saving the state before it failed: {e:#}"), str::to_string);
        let error = anyhow!(
            "step {step}: loss {}, gradient norm {}: not finite, so training stopped before the update; {saved}. Try a \
             lower --learning-rate or --clip-norm",
            losses[bad],
            norms[bad]
        );
        coded(Exit::NotFinite, error)
    }

    /// The test IWELBO, and the pictures.
    fn evaluate(&mut self, watch: &mut impl Watch) -> Result<Option<f64>> {
        let parameters = self.state.parameters();
        let Some(test) = &self.test else { return Ok(None) };
        let limit = test.len();
        if self.evaluator.is_none() {
            let replicas = self.mesh.replicas();
            let batch = 32usize.next_multiple_of(replicas);
            self.evaluator =
                Some(Evaluator::new(&self.mesh, &self.config.model, batch, self.config.eval_samples)?);
            let key = Key::new(self.config.seed_logging);
            self.pictures = Some(Pictures::new(&self.mesh, &self.config.model, test, key)?);
        }
        let evaluator = self.evaluator.as_ref().context("the evaluation was compiled")?;
        let scores = evaluator.run(parameters, test, Key::new(self.config.seed_test), 0..limit, |_| {})?;
        let bound = scores.bound()?;
        if let Some(pictures) = &self.pictures {
            pictures.write(parameters, &self.folder.join("pictures"), self.step)?;
        }
        let (step, samples) = (self.step, self.config.eval_samples);
        watch.say(&format!(
            "step {step}: test IWELBO {:.2} ± {:.2} nats ({limit} images, {samples} samples)",
            bound.mean, bound.stderr
        ));
        Ok(Some(bound.mean))
    }

    fn save(&mut self, best: bool) -> Result<()> {
        // Lines must not be younger than the checkpoint: a resumed run cuts them at its step.
        self.metrics.sync()?;
        let arrays = self.state.arrays(self.pool.as_ref().map(|pool| (pool, self.step)))?;
        let meta = Meta {
            version: 1,
            model: self.config.model,
            step: self.step,
            data_key: self.data_key.0,
            data_crc: self.data_crc,
            best_iwelbo: self.best,
        };
        self.store.save(&Checkpoint { meta, arrays }, best)
    }
}
