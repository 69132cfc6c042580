//! A training run: a sequence of device calls, with metrics, evaluations and checkpoints between them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::checkpoint::{Checkpoint, Meta, Store};
use super::folder::RunFolder;
use super::metrics::Line;
pub use super::options::RunOptions;
use super::order::{ChunkOrder, chunk_order};
use super::program::TrainProgram;
use super::records::{Records, shared};
use super::state::State;
use super::task::{Host, Hosted, Sizes, Task};
pub use super::watch::{End, Score, Watch};
use crate::engine::array::{Array, crc};
use crate::engine::compile::compile;
use crate::engine::ir::Function;
use crate::engine::random::Key;
use crate::engine::runtime::{Arg, Buffers, Executable, Mesh, OfAll};
use crate::engine::shape::Shape;
use crate::error::{self, Error, Tag};
use crate::nn::optimiser::{Adam, Chain};
use crate::nn::tree::Tree;

/// Target duration of a device call. Progress is shown and Ctrl-C is handled only between calls. The results do not depend on
/// how the steps are divided into calls.
const TARGET_CALL_TIME: Duration = Duration::from_millis(800);

/// Builder of a run: a task with an optimiser and options.
pub struct Trainer<'t> {
    mesh: Mesh,
    task: Box<dyn Task + 't>,
    optimiser: Chain,
    options: RunOptions,
    begun: Option<Vec<Array>>,
}

impl<'t> Trainer<'t> {
    /// Returns a trainer with Adam at a learning rate of 0.001 and the default options.
    pub fn new(mesh: &Mesh, task: impl Task + 't) -> Trainer<'t> {
        let optimiser = crate::chain![Adam::new(1e-3)];
        Trainer {
            mesh: mesh.clone(),
            task: Box::new(task),
            optimiser,
            options: RunOptions::default(),
            begun: None,
        }
    }

    /// Sets the optimiser, such as `chain![ClipByGlobalNorm(10.0), Adam::new(1e-4)]`.
    pub fn optimiser(self, optimiser: Chain) -> Self {
        Trainer { optimiser, ..self }
    }

    /// Sets all options.
    pub fn options(self, options: RunOptions) -> Self {
        Trainer { options, ..self }
    }

    /// Sets the total number of gradient steps.
    pub fn steps(mut self, steps: usize) -> Self {
        self.options.steps = steps;
        self
    }

    /// Sets the number of examples per step, over all replicas.
    pub fn batch(mut self, batch: usize) -> Self {
        self.options.batch = batch;
        self
    }

    /// Sets the parameters that a new run begins with, in the task's order and the checkpoint layout of
    /// [`params`](crate::nn::params). Without them they are drawn with [`RunOptions::seed_model`]. A resumed run does not use them.
    pub fn begin_with(self, parameters: Vec<Array>) -> Self {
        Trainer { begun: Some(parameters), ..self }
    }

    /// Begins a run in a new folder. The examples are (examples, shape...), with the shape of [`Task::example`].
    ///
    /// # Errors
    /// When the folder holds a run, the sizes are inconsistent, or a device or file fails.
    pub fn create(self, folder: impl AsRef<Path>, examples: Option<Array>) -> Result<Run<'t>> {
        let folder = self.mesh.on_first(|| {
            let folder = RunFolder::lock(folder.as_ref())?;
            ensure!(
                !folder.path().join("checkpoints").exists(),
                "{} holds a run already: resume it, choose another folder, or delete this one",
                folder.path().display()
            );
            Ok(folder)
        })?;
        self.start(folder, examples, None)
    }

    /// Resumes the run in a folder, bit for bit as if it had not stopped, if the task, the optimiser and the options are those of
    /// the run. Only the number of steps may differ. The folder does not record them.
    ///
    /// # Errors
    /// When the folder holds no intact checkpoint of this task and these examples; also the errors of [`Trainer::create`].
    pub fn resume(self, folder: impl AsRef<Path>, examples: Option<Array>) -> Result<Run<'t>> {
        let folder = folder.as_ref();
        let found = self.mesh.on_first(|| {
            ensure!(folder.exists(), "{} does not exist", folder.display());
            let folder = RunFolder::lock(folder)?;
            let Some(checkpoint) = Store::in_run(folder.path(), self.options.keep).latest()? else {
                bail!(
                    "{} holds no checkpoint to resume from: delete it and create the run",
                    folder.path().display()
                )
            };
            Ok((folder, checkpoint))
        })?;
        let (folder, checkpoint) = found.unzip();
        self.start(folder, examples, checkpoint)
    }

    /// Compiles the train program and uploads the initial or resumed state. Writes nothing before all checks have passed.
    ///
    /// With several processes, process 0 alone has a folder and a checkpoint, and all have the examples.
    ///
    /// # Errors
    /// When sizes do not fit, the checkpoint belongs to other examples ([`Error::OtherExamples`]), the folder lacks space for
    /// the checkpoints, or a device or file fails.
    pub fn start(
        self,
        folder: Option<RunFolder>,
        examples: Option<Array>,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Run<'t>> {
        let Trainer { mesh, task, optimiser, options, begun } = self;
        check_parameters(task.as_ref(), begun.as_deref()).tag(Error::Usage)?;
        let data_crc = examples.as_ref().map_or(0, |e| crc32fast::hash(e.bytes()));
        mesh.agree("the run", &described(&options, task.as_ref(), data_crc, begun.as_deref()))?;
        let checkpoint = shared(&mesh, checkpoint)?;
        let sizes = Sizes {
            replicas: mesh.replicas(),
            batch: options.batch,
            chunk: options.chunk,
            examples: examples.as_ref().map_or(0, |e| e.dims().first().copied().unwrap_or(0)),
        };
        check_examples(task.as_ref(), examples.as_ref()).tag(Error::Usage)?;
        let program = TrainProgram { task: task.as_ref(), optimiser: &optimiser, sizes };
        let executable = compile(&mesh, &program.function()?)?;
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
                let mut state = State::fresh(&program, &mesh, seed_model, begun)?;
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
        let bytes = state.bytes(mesh.replicas());
        let records = mesh.on_first(|| {
            let folder = folder.context("a run needs a folder")?;
            Records::begin(folder, &options, meta.as_ref(), bytes)
        })?;
        let unevaluated = meta.as_ref().and_then(|m| m.unevaluated.clone());
        Ok(Run {
            records,
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
            is_best: false,
            unevaluated,
            seconds_a_step: None,
            mesh,
            task,
            optimiser,
            options,
        })
    }
}

/// Describes what has to be the same in all processes of a run.
fn described(options: &RunOptions, task: &dyn Task, data_crc: u32, begun: Option<&[Array]>) -> String {
    let RunOptions { steps, batch, chunk, seed_model, seed_data, eval_every, checkpoint_every, .. } = options;
    let begun = begun.map(|arrays| format!("with the checksum {:08x}", crc(arrays)));
    [
        format!("task {}", task.name()),
        format!("examples with the checksum {data_crc:08x}"),
        format!("initial parameters {}", begun.unwrap_or("drawn".into())),
        format!("{steps} steps of {batch} examples, chunks of {chunk}"),
        format!("seeds {seed_model} and {seed_data}"),
        format!("evaluations every {eval_every} and checkpoints every {checkpoint_every} steps"),
    ]
    .join("\n")
}

/// Checks that parameters to begin with are the task's.
fn check_parameters(task: &dyn Task, begun: Option<&[Array]>) -> Result<()> {
    let Some(arrays) = begun else { return Ok(()) };
    let leaves = task.parameters();
    ensure!(
        arrays.len() == leaves.len(),
        "the task {} has {} parameters, got {} arrays",
        task.name(),
        leaves.len(),
        arrays.len()
    );
    for (leaf, array) in leaves.iter().zip(arrays) {
        let expected = Shape::f32(&leaf.shape);
        ensure!(*array.shape() == expected, "{}: expected {expected}, got {}", leaf.name, array.shape());
    }
    Ok(())
}

/// Checks that the examples have the task's shape.
fn check_examples(task: &dyn Task, examples: Option<&Array>) -> Result<()> {
    match (task.example(), examples) {
        (None, None) => Ok(()),
        (None, Some(_)) => bail!("the task {} takes no examples", task.name()),
        (Some((name, shape)), None) => {
            bail!("the task {} needs {name} of {shape} each, got none", task.name())
        }
        (Some((name, shape)), Some(given)) => {
            let rest = given.dims().get(1..);
            ensure!(
                rest == Some(shape.dims.as_slice()) && given.shape().dtype == shape.dtype,
                "the task {} needs {name} of {shape} each, got {}",
                task.name(),
                given.shape()
            );
            Ok(())
        }
    }
}

/// A run that is ready for its next step.
pub struct Run<'t> {
    /// What process 0 writes, until the run is dropped.
    records: Option<Records>,
    /// Step of the newest checkpoint.
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
    /// The step before which the next call must end, if the task's host sets one.
    planned_until: Option<usize>,
    /// Data key of the chunk that contains the next step. `order` is this chunk's order, once it is needed.
    data_key: Key,
    order: Option<(ChunkOrder, Option<Buffers>)>,
    best: Option<f64>,
    /// Whether the state is the best one, and not saved as such yet.
    is_best: bool,
    /// The newest step's line in the metrics, while the evaluation after it is still to do.
    unevaluated: Option<Line>,
    seconds_a_step: Option<f64>,
}

impl Run<'_> {
    /// Returns the number of gradient steps done.
    pub fn step(&self) -> usize {
        self.step
    }

    /// Returns the devices.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Returns the measured seconds per gradient step, after the first call.
    pub fn seconds_a_step(&self) -> Option<f64> {
        self.seconds_a_step
    }

    /// Returns the computation of the train program.
    ///
    /// # Errors
    /// Never, because the program was built before.
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
            Ok((leaf.name.clone(), leaf.to_checkpoint_layout(&buffers.replicated()?)))
        };
        leaves.iter().zip(&self.state.parameters()).map(host).collect()
    }

    /// Copies an entry of the task's state to the host: one array per replica, or one array if all replicas hold the same.
    ///
    /// # Errors
    /// When no entry has the name, or a device fails.
    pub fn state(&self, name: &str) -> Result<Vec<Array>> {
        self.state.get(name)
    }

    /// Runs all remaining steps.
    ///
    /// If an error ends the run, saves the state first. After a failed device call the state is lost, and the newest checkpoint
    /// remains. It also remains after an error of one of several processes that the others have not had.
    ///
    /// # Errors
    /// [`Error::NotFinite`]; or when a device, a file or an evaluation fails.
    pub fn train(&mut self, watch: &mut impl Watch) -> Result<End> {
        self.make_steps(watch).map_err(|error| match error::find(&error) {
            // Its message already reports what was saved.
            Some(Error::NotFinite { .. }) => error,
            // To save takes all processes.
            _ if !self.mesh.is_local() && !error.is::<OfAll>() => error,
            _ => self.save_after(error),
        })
    }

    /// Lets process 0 write to the run's folder.
    fn record<T: Serialize + DeserializeOwned>(
        &mut self,
        write: impl FnOnce(&mut Records) -> Result<T>,
    ) -> Result<T> {
        let Run { mesh, records, .. } = self;
        mesh.lead(|| write(records.as_mut().context("process 0 has the run's folder")?))
    }

    /// Saves the state after an error, if the devices still hold it. Adds the outcome to the error.
    fn save_after(&mut self, error: anyhow::Error) -> anyhow::Error {
        let step = self.step;
        let tried = if self.state.is_complete() { self.save_if_new() } else { Ok(()) };
        match (self.saved == Some(step), tried) {
            (true, _) => error.context(format!("training stopped after step {step}; its state is saved")),
            (false, Err(second)) => error
                .context(format!("training stopped after step {step}; saving its state failed ({second:#})")),
            (false, Ok(())) => error,
        }
    }

    fn make_steps(&mut self, watch: &mut impl Watch) -> Result<End> {
        if let Some(line) = self.unevaluated.clone()
            && let Some(end) = self.finish(line, true, watch)?
        {
            return Ok(end);
        }
        while self.step < self.options.steps {
            self.prepare()?;
            // It depends on the time that calls take, which every process measures for itself.
            let trips = self.mesh.lead(|| Ok(self.next_trips()))?;
            let (losses, norms, healthy) = self.call(trips)?;
            if !healthy {
                return Err(self.not_finite(&losses, &norms).into());
            }
            let line = |i: usize| Line::new(self.step + i + 1, losses[i], norms[i], None);
            let mut lines: Vec<Line> = (0..trips).map(line).collect();
            self.advance(trips);
            let last = lines.pop().context("a device call made no steps")?;
            self.record(|records| records.write(&lines))?;
            let every = self.options.eval_every;
            let due = every > 0 && self.step.is_multiple_of(every);
            if let Some(end) = self.finish(last, due, watch)? {
                return Ok(end);
            }
        }
        Ok(End::Done)
    }

    /// Ends a device call, whose last step has this line in the metrics: evaluates if this is due, writes the line, and saves
    /// what is due. Returns why the run ends, if it does.
    fn finish(&mut self, line: Line, due: bool, watch: &mut impl Watch) -> Result<Option<End>> {
        let score = if due {
            // If the evaluation fails, the state that is saved next says that it is still to do.
            self.unevaluated = Some(line.clone());
            match watch.evaluate(&self.state.evaluated(), self.step) {
                Err(error) if watch.stop() => {
                    log::info!("the evaluation after step {} is still to do: {error:#}", self.step);
                    self.save_if_new()?;
                    return Ok(Some(End::Stopped));
                }
                score => score?,
            }
        } else {
            None
        };
        let scored = line.scored(score.as_ref().map(|s| (s.name, s.value)));
        self.record(|records| {
            records.metrics.write(&scored)?;
            records.metrics.flush()
        })?;
        self.unevaluated = None;
        watch.steps(self.step, line.loss);
        // No score compares as better than NaN, and JSON has no infinity.
        let finite = score.map(|s| s.value).filter(|value| value.is_finite());
        if let Some(value) = finite.filter(|value| self.best.is_none_or(|best| *value > best)) {
            self.best = Some(value);
            self.is_best = true;
        }
        let stop = self.mesh.lead(|| Ok(watch.stop()))?;
        let end = self.step >= self.options.steps;
        if self.options.checkpoint_every > 0
            && (stop || self.is_best || end || self.step.is_multiple_of(self.options.checkpoint_every))
        {
            self.save()?;
        }
        Ok((stop && !end).then_some(End::Stopped))
    }

    /// Returns the number of steps of the next call. The call ends where something is due, and takes about [`TARGET_CALL_TIME`].
    fn next_trips(&self) -> usize {
        let until = |every: usize| match every {
            0 => usize::MAX,
            every => every - self.step % every,
        };
        let by_time = match self.seconds_a_step {
            Some(seconds) => (TARGET_CALL_TIME.as_secs_f64() / seconds.max(1e-9)).ceil() as usize,
            None => 1,
        };
        [
            self.options.steps - self.step,
            until(self.options.chunk),
            until(self.options.eval_every),
            until(self.options.checkpoint_every),
            self.planned_until.map_or(usize::MAX, |end| end - self.step),
            by_time.max(1),
        ]
        .into_iter()
        .min()
        .unwrap_or(1)
    }

    /// Uploads the inputs of the next step: the chunk's order of examples, each replica's key at the beginning of a chunk, and
    /// the inputs from the task's host.
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

    /// Runs steps on the devices. Returns the losses, the gradient norms, and whether all values were finite.
    fn call(&mut self, trips: usize) -> Result<(Vec<f32>, Vec<f32>, bool)> {
        let (_, order) = self.order.as_ref().context("the chunk has no order")?;
        let start = self.mesh.replicate(&Array::scalar((self.step % self.sizes.chunk) as i32))?;
        let count = self.mesh.replicate(&Array::scalar(trips as i32))?;
        let mut arguments: Vec<Arg<'_>> = self.state.take_all().into_iter().map(Arg::from).collect();
        arguments.extend(self.on_device.iter().chain(order).map(Arg::from));
        arguments.extend(self.host.inputs().into_iter().map(Arg::from));
        arguments.extend([Arg::from(start), Arg::from(count)]);
        let began = Instant::now();
        let mut results = self.executable.call(arguments)?;
        let mut row = || -> Result<Vec<f32>> {
            let buffers = results.pop().context("the train program returned no losses or norms")?;
            let mut values = buffers.replicated()?.to_vec::<f32>();
            values.truncate(trips);
            Ok(values)
        };
        let norms = row()?;
        let losses = row()?;
        // The moving average corrects the time of the first call, which includes warming up.
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

    /// Saves the state before the first step that was not finite. Returns the error that names this step.
    fn not_finite(&mut self, losses: &[f32], norms: &[f32]) -> Error {
        let bad = losses.iter().zip(norms).position(|(l, n)| !l.is_finite() || !n.is_finite()).unwrap_or(0);
        let saved = (|| -> Result<&str> {
            let line = |i: usize| Line::new(self.step + i + 1, losses[i], norms[i], None);
            let lines: Vec<Line> = (0..bad).map(line).collect();
            self.advance(bad);
            self.record(|records| {
                records.write(&lines)?;
                records.metrics.flush()
            })?;
            if self.options.checkpoint_every == 0 {
                return Ok("nothing was saved, because checkpoints are off");
            }
            self.save()?;
            Ok("the state before it is saved")
        })();
        let saved =
            saved.map_or_else(|e| format!("and saving the state before it failed: {e:#}"), str::to_string);
        Error::NotFinite { step: self.step + 1, loss: losses[bad], grad_norm: norms[bad], saved }
    }

    /// Saves the state, unless checkpoints are off or its step is saved already.
    fn save_if_new(&mut self) -> Result<()> {
        let is_new = self.options.checkpoint_every > 0 && self.saved != Some(self.step);
        if is_new { self.save() } else { Ok(()) }
    }

    fn save(&mut self) -> Result<()> {
        // The lines up to the checkpoint must be on disk before it: a resumed run keeps only those up to its step. If they cannot
        // be written, the state is saved nevertheless: it is worth more.
        let logged = self.record(|records| records.metrics.sync());
        let arrays = self.state.arrays(self.host.as_ref(), self.step)?;
        let meta = Meta {
            version: 1,
            model: self.options.model.clone(),
            step: self.step,
            data_key: self.data_key.0,
            data_crc: self.data_crc,
            best: self.best,
            unevaluated: self.unevaluated.clone(),
        };
        let checkpoint = Checkpoint { meta, arrays: arrays.into_iter().collect() };
        let best = self.is_best;
        self.record(|records| records.save(&checkpoint, best))?;
        self.is_best = false;
        self.saved = Some(self.step);
        logged
    }
}
