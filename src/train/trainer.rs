//! A training run: device calls one after the other, and what is written between them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::checkpoint::{Checkpoint, Meta, Store};
use super::folder::RunFolder;
use super::metrics::{Line, Metrics};
use super::order::{ChunkOrder, chunk_order};
use super::program::TrainProgram;
use super::state::State;
use super::task::{Host, Hosted, Sizes, Task};
use crate::engine::array::Array;
use crate::engine::compile::compile;
use crate::engine::ir::Function;
use crate::engine::random::Key;
use crate::engine::runtime::{Arg, Buffers, Executable, Mesh};
use crate::error::{self, Error, Tag};
use crate::nn::optimiser::{Adam, Chain};
use crate::nn::tree::Tree;

/// How long a device call should take: so long does a person wait for the bar to move and for Ctrl-C to be heard.
/// Where a call is cut changes no number.
const CALL: Duration = Duration::from_millis(800);

/// How long a run is, and what it writes when.
#[derive(Clone, Debug, PartialEq)]
pub struct RunOptions {
    /// Gradient steps in all.
    pub steps: usize,
    /// Examples a step, over all replicas.
    pub batch: usize,
    /// Gradient steps that share one shuffling of keys and examples, and a device call at most.
    pub chunk: usize,
    /// Seed of the initial values.
    pub seed_model: u64,
    /// Seed of the order of examples and of what steps draw.
    pub seed_data: u64,
    /// Steps between evaluations; 0: never.
    pub eval_every: usize,
    /// Steps between checkpoints; 0: never, not even at the end.
    pub checkpoint_every: usize,
    /// Checkpoints that are kept besides the best one.
    pub keep: usize,
    /// What a checkpoint says of the model; for people, and for whoever reads weights.
    pub model: serde_json::Value,
}

impl Default for RunOptions {
    fn default() -> RunOptions {
        RunOptions {
            steps: 1000,
            batch: 32,
            chunk: 125,
            seed_model: 0,
            seed_data: 1,
            eval_every: 0,
            checkpoint_every: 1000,
            keep: 3,
            model: serde_json::Value::Null,
        }
    }
}

/// Why a run came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps were made.
    Done,
    /// It was asked to stop, and saved its state.
    Stopped,
}

/// What an evaluation during training gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Its name in metrics, such as `test/iwelbo`.
    pub name: &'static str,
    /// The greater, the better: the best checkpoint is that of the greatest.
    pub value: f64,
}

/// What goes along with a run. A closure that gets the step and the loss after each device call is one.
pub trait Watch {
    /// Hears of each device call: the steps made, and the last step's loss.
    fn steps(&mut self, step: usize, loss: f32);

    /// Evaluates the parameters, in the order of the task's, when [`RunOptions::eval_every`] says so.
    ///
    /// # Errors
    /// When a device or file fails. It ends the run, after the state is saved.
    fn evaluate(&mut self, _parameters: &[&Buffers], _step: usize) -> Result<Option<Score>> {
        Ok(None)
    }

    /// Says whether to stop after this call.
    fn stop(&self) -> bool {
        false
    }
}

impl<F: FnMut(usize, f32)> Watch for F {
    fn steps(&mut self, step: usize, loss: f32) {
        self(step, loss);
    }
}

/// A task on its way to become a run.
pub struct Trainer<'t> {
    mesh: Mesh,
    task: Box<dyn Task + 't>,
    optimiser: Chain,
    options: RunOptions,
}

impl<'t> Trainer<'t> {
    /// Returns a trainer with Adam at a learning rate of 0.001 and the default options.
    pub fn new(mesh: &Mesh, task: impl Task + 't) -> Trainer<'t> {
        let optimiser = crate::chain![Adam::new(1e-3)];
        Trainer { mesh: mesh.clone(), task: Box::new(task), optimiser, options: RunOptions::default() }
    }

    /// Sets the optimiser, such as `chain![ClipByGlobalNorm(10.0), Adam::new(1e-4)]`.
    pub fn optimiser(self, optimiser: Chain) -> Self {
        Trainer { optimiser, ..self }
    }

    /// Sets all options.
    pub fn options(self, options: RunOptions) -> Self {
        Trainer { options, ..self }
    }

    /// Sets the number of gradient steps in all.
    pub fn steps(mut self, steps: usize) -> Self {
        self.options.steps = steps;
        self
    }

    /// Sets the number of examples a step, over all replicas.
    pub fn batch(mut self, batch: usize) -> Self {
        self.options.batch = batch;
        self
    }

    /// Begins a run in a new folder. Examples are (examples, shape...), of the shape that the task says.
    ///
    /// # Errors
    /// When the folder holds a run, sizes do not fit each other, or a device or file fails.
    pub fn create(self, folder: impl AsRef<Path>, examples: Option<Array>) -> Result<Run<'t>> {
        let folder = RunFolder::lock(folder.as_ref())?;
        ensure!(
            !folder.path().join("checkpoints").exists(),
            "{} holds a run already: resume it, name another folder, or delete this one",
            folder.path().display()
        );
        self.start(folder, examples, None)
    }

    /// Goes on with the run in a folder, bit for bit as if it had not stopped. Takes the same task, optimiser and options, but for
    /// the number of steps: the folder does not record them.
    ///
    /// # Errors
    /// When the folder holds no whole checkpoint of this task and these examples, or as [`Trainer::create`].
    pub fn resume(self, folder: impl AsRef<Path>, examples: Option<Array>) -> Result<Run<'t>> {
        let folder = folder.as_ref();
        ensure!(folder.exists(), "{} does not exist", folder.display());
        let folder = RunFolder::lock(folder)?;
        let Some(checkpoint) = Store::in_run(folder.path(), self.options.keep).latest()? else {
            bail!(
                "{} holds no checkpoint to go on from: delete it and create the run",
                folder.path().display()
            )
        };
        self.start(folder, examples, Some(checkpoint))
    }

    /// Compiles the train program and puts the initial or resumed state on the devices. Writes nothing before everything is
    /// accepted.
    ///
    /// # Errors
    /// When sizes do not fit, the checkpoint is not of this run ([`Error::OtherExamples`]), the folder has no room for the
    /// checkpoints, or a device or file fails.
    pub fn start(
        self,
        folder: RunFolder,
        examples: Option<Array>,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Run<'t>> {
        let Trainer { mesh, task, optimiser, options } = self;
        let sizes = Sizes {
            replicas: mesh.replicas(),
            batch: options.batch,
            chunk: options.chunk,
            examples: examples.as_ref().map_or(0, |e| e.dims().first().copied().unwrap_or(0)),
        };
        check_examples(task.as_ref(), examples.as_ref()).tag(Error::Usage)?;
        let program = TrainProgram { task: task.as_ref(), optimiser: &optimiser, sizes };
        let executable = compile(&mesh, &program.function()?)?;
        let data_crc = examples.as_ref().map_or(0, |e| crc32fast::hash(e.bytes()));
        let (seed_model, seed_data) = (Key::new(options.seed_model), Key::new(options.seed_data));
        let mut host = task.host(&mesh, &sizes)?;
        let (state, meta) = match checkpoint {
            Some(Checkpoint { meta, arrays }) => {
                if meta.data_crc != data_crc {
                    return Err(Error::OtherExamples { part: "training" }.into());
                }
                let arrays = arrays.into_iter().collect();
                let state = State::restored(&program, &mesh, arrays, meta.step, seed_data, host.as_mut())?;
                (state, Some(meta))
            }
            None => {
                let mut state = State::fresh(&program, &mesh, seed_model)?;
                let (state_mut, examples) = (&mut state, examples.as_ref());
                host.begin(
                    &mut Hosted { mesh: &mesh, sizes: &sizes, state: state_mut, examples },
                    seed_data,
                )?;
                (state, None)
            }
        };
        let on_device = examples.as_ref().map(|e| mesh.replicate(e)).transpose()?;
        let step = meta.as_ref().map_or(0, |m| m.step);
        let mut store = Store::in_run(folder.path(), options.keep);
        let saves = options.steps.saturating_sub(step).div_ceil(options.checkpoint_every.max(1));
        if options.checkpoint_every > 0 {
            store.check_room(state.bytes(mesh.replicas()), saves)?;
        }
        // Until here nothing was written.
        let metrics = Metrics::open(folder.path(), step)?;
        store.begin(meta.as_ref().map(|m| m.step))?;
        Ok(Run {
            _folder: folder,
            saved: meta.as_ref().map(|m| m.step),
            sizes,
            executable,
            state,
            host,
            on_device,
            examples,
            data_crc,
            step,
            planned_until: None,
            data_key: meta.as_ref().map_or(seed_data, |m| Key(m.data_key)),
            order: None,
            best: meta.and_then(|m| m.best),
            metrics,
            store,
            seconds_a_step: None,
            mesh,
            task,
            optimiser,
            options,
        })
    }
}

/// Checks that the examples are of the task's shape.
fn check_examples(task: &dyn Task, examples: Option<&Array>) -> Result<()> {
    match (task.example(), examples) {
        (None, None) => Ok(()),
        (None, Some(_)) => bail!("the task {} takes no examples", task.name()),
        (Some((name, shape)), None) => {
            bail!("the task {} takes {name} of {shape} each, got none", task.name())
        }
        (Some((name, shape)), Some(given)) => {
            let rest = given.dims().get(1..);
            ensure!(
                rest == Some(shape.dims.as_slice()) && given.shape().dtype == shape.dtype,
                "the task {} takes {name} of {shape} each, got {}",
                task.name(),
                given.shape()
            );
            Ok(())
        }
    }
}

/// A run, ready to make its next step.
pub struct Run<'t> {
    /// Locked as long as the run is there.
    _folder: RunFolder,
    /// The step of the newest checkpoint.
    saved: Option<usize>,
    task: Box<dyn Task + 't>,
    optimiser: Chain,
    options: RunOptions,
    sizes: Sizes,
    mesh: Mesh,
    executable: Executable,
    state: State,
    host: Box<dyn Host>,
    examples: Option<Array>,
    on_device: Option<Buffers>,
    data_crc: u32,
    step: usize,
    /// The step that the next call must end before, if the task's host says so.
    planned_until: Option<usize>,
    /// The data key of the chunk that the next step belongs to, and that chunk's order once it is needed.
    data_key: Key,
    order: Option<(ChunkOrder, Option<Buffers>)>,
    best: Option<f64>,
    metrics: Metrics,
    store: Store,
    seconds_a_step: Option<f64>,
}

impl Run<'_> {
    /// Returns the number of gradient steps made.
    pub fn step(&self) -> usize {
        self.step
    }

    /// Returns the devices.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Returns the measured seconds of a gradient step, once there was more than one call.
    pub fn seconds_a_step(&self) -> Option<f64> {
        self.seconds_a_step
    }

    /// Returns the computation of the train program.
    ///
    /// # Errors
    /// None: it was built before.
    pub fn function(&self) -> Result<Function> {
        TrainProgram { task: self.task.as_ref(), optimiser: &self.optimiser, sizes: self.sizes }.function()
    }

    /// Copies the parameters to the host, by name, in the checkpoint layout.
    ///
    /// # Errors
    /// When a device fails.
    pub fn parameters(&self) -> Result<Tree<Array>> {
        let leaves = self.task.parameters();
        let host = |(leaf, buffers): (&crate::nn::params::Leaf, &&Buffers)| {
            Ok((leaf.name.clone(), leaf.to_checkpoint_layout(&buffers.get(0)?)))
        };
        leaves.iter().zip(&self.state.parameters()).map(host).collect()
    }

    /// Copies an entry of the task's state to the host: one array a replica, or one where all hold the same.
    ///
    /// # Errors
    /// When there is no such entry, or a device fails.
    pub fn state(&self, name: &str) -> Result<Vec<Array>> {
        self.state.get(name)
    }

    /// Makes all steps that are left.
    ///
    /// Saves the state also when an error ends the run, unless the device call itself failed: then the newest checkpoint is
    /// what is left.
    ///
    /// # Errors
    /// [`Error::NotFinite`]; a device, a file or an evaluation that fails.
    pub fn train(&mut self, watch: &mut impl Watch) -> Result<End> {
        self.make_steps(watch).map_err(|error| match error::find(&error) {
            // Its own message says what was saved.
            Some(Error::NotFinite { .. }) => error,
            _ => self.saved_after(error),
        })
    }

    /// Saves the state after an error, if the devices still have it, and says so.
    fn saved_after(&mut self, error: anyhow::Error) -> anyhow::Error {
        let step = self.step;
        if self.options.checkpoint_every == 0 || !self.state.is_complete() || self.saved == Some(step) {
            return error;
        }
        match self.save(false) {
            Ok(()) => error.context(format!("training stopped after step {step}, whose state is saved")),
            Err(second) => error
                .context(format!("training stopped after step {step}; saving its state failed ({second:#})")),
        }
    }

    fn make_steps(&mut self, watch: &mut impl Watch) -> Result<End> {
        while self.step < self.options.steps {
            self.prepare()?;
            let trips = self.next_trips();
            let (losses, norms, healthy) = self.call(trips)?;
            if !healthy {
                return Err(self.not_finite(&losses, &norms).into());
            }
            let last = self.step + trips;
            self.advance(trips);
            let every = self.options.eval_every;
            let due = every > 0 && last.is_multiple_of(every);
            let evaluated = if due { watch.evaluate(&self.state.parameters(), last) } else { Ok(None) };
            let score = evaluated.as_ref().ok().and_then(|score| score.clone());
            for (i, (loss, norm)) in losses.iter().zip(&norms).enumerate() {
                let step = last - trips + i + 1;
                let score = score.as_ref().filter(|_| step == last);
                self.metrics.write(&Line::new(step, *loss, *norm, score.map(|s| (s.name, s.value))))?;
            }
            self.metrics.flush()?;
            // Not before the lines are written: the state that is saved after an error has them.
            evaluated?;
            watch.steps(self.step, losses.last().copied().unwrap_or(f32::NAN));
            let better = score.is_some_and(|s| {
                // Nothing is better than NaN, and a checkpoint's JSON has no infinity.
                let better = s.value.is_finite() && self.best.is_none_or(|best| s.value > best);
                if better {
                    self.best = Some(s.value);
                }
                better
            });
            let stop = watch.stop();
            let end = self.step >= self.options.steps;
            if self.options.checkpoint_every > 0
                && (stop || better || end || self.step.is_multiple_of(self.options.checkpoint_every))
            {
                self.save(better)?;
            }
            if stop && !end {
                return Ok(End::Stopped);
            }
        }
        Ok(End::Done)
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
        [
            self.options.steps - self.step,
            until(self.options.chunk),
            until(self.options.eval_every),
            until(self.options.checkpoint_every),
            self.planned_until.map_or(usize::MAX, |end| end - self.step),
            patience.max(1),
        ]
        .into_iter()
        .min()
        .unwrap_or(1)
    }

    /// Sees to it that the devices have what the next step takes: the chunk's order of examples, at its beginning each
    /// replica's key, and what the task's host feeds.
    fn prepare(&mut self) -> Result<()> {
        let Sizes { batch, chunk, examples, .. } = self.sizes;
        let entering = self.order.is_none();
        if entering {
            let order = chunk_order(self.data_key, examples, batch, chunk);
            let each = self.sizes.each();
            let parts = order.images.chunks_exact(chunk * each);
            let parts: Vec<Array> = parts.map(|part| Array::new(&[chunk, each], part)).collect();
            let shared = self.on_device.is_some().then(|| self.mesh.shard(&parts)).transpose()?;
            self.order = Some((order, shared));
        }
        let mut hosted = Hosted {
            mesh: &self.mesh,
            sizes: &self.sizes,
            state: &mut self.state,
            examples: self.examples.as_ref(),
        };
        if entering && self.step.is_multiple_of(chunk) {
            let (seed, at) = (Key::new(self.options.seed_data), self.step / chunk);
            hosted.state.enter_chunk(&self.mesh, &self.sizes, seed, at)?;
            self.host.enter_chunk(&mut hosted, seed.split_at(at as u64))?;
        }
        self.planned_until = self.host.prepare(&mut hosted, self.step)?;
        Ok(())
    }

    /// Runs steps on the devices; gives the losses, the norms, and whether all were finite.
    fn call(&mut self, trips: usize) -> Result<(Vec<f32>, Vec<f32>, bool)> {
        let (_, order) = self.order.as_ref().context("a chunk was entered")?;
        let start = self.mesh.replicate(&Array::scalar((self.step % self.sizes.chunk) as i32))?;
        let count = self.mesh.replicate(&Array::scalar(trips as i32))?;
        let mut arguments: Vec<Arg<'_>> = self.state.take_all().into_iter().map(Arg::from).collect();
        arguments.extend(self.on_device.iter().chain(order).map(Arg::from));
        arguments.extend(self.host.inputs().into_iter().map(Arg::from));
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
        self.state.put_all(results);
        Ok((losses, norms, self.state.healthy()?))
    }

    fn advance(&mut self, steps: usize) {
        self.step += steps;
        if self.step.is_multiple_of(self.sizes.chunk)
            && let Some((order, _)) = self.order.take()
        {
            self.data_key = order.next;
        }
    }

    /// Saves the state before the first step that was not finite, and says which.
    fn not_finite(&mut self, losses: &[f32], norms: &[f32]) -> Error {
        let bad = losses.iter().zip(norms).position(|(l, n)| !l.is_finite() || !n.is_finite()).unwrap_or(0);
        let saved = (|| -> Result<&str> {
            for (i, (loss, norm)) in losses.iter().zip(norms).take(bad).enumerate() {
                self.metrics.write(&Line::new(self.step + i + 1, *loss, *norm, None))?;
            }
            self.advance(bad);
            self.metrics.flush()?;
            if self.options.checkpoint_every == 0 {
                return Ok("nothing was saved, as no checkpoints were asked for");
            }
            self.save(false)?;
            Ok("the state before it is saved")
        })();
        let saved =
            saved.map_or_else(|e| format!("and saving the state before it failed: {e:#}"), str::to_string);
        Error::NotFinite { step: self.step + 1, loss: losses[bad], grad_norm: norms[bad], saved }
    }

    fn save(&mut self, best: bool) -> Result<()> {
        // Lines must not be younger than the checkpoint: a resumed run cuts them at its step.
        self.metrics.sync()?;
        let arrays = self.state.arrays(self.host.as_ref(), self.step)?;
        let meta = Meta {
            version: 1,
            model: self.options.model.clone(),
            step: self.step,
            data_key: self.data_key.0,
            data_crc: self.data_crc,
            best: self.best,
        };
        self.store.save(&Checkpoint { meta, arrays: arrays.into_iter().collect() }, best)?;
        self.saved = Some(self.step);
        Ok(())
    }
}
