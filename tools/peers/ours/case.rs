//! A benchmark case: a model, a task, and the inputs that every contestant gets.

use anyhow::{Context, Result, bail, ensure};
use vnca::cli::models::{Kind, Model};
use vnca::cli::optimiser::Optimiser;
use vnca::engine::array::Array;
use vnca::engine::ir::{Cost, Function, gradient};
use vnca::engine::random::Key;
use vnca::engine::shape::{Precision, Shape};
use vnca::model::grow::Grids;
use vnca::model::pool::PoolSpec;
use vnca::model::{Elbo, Pooled};
use vnca::nn::params::{Leaf, Params, arrange, init};
use vnca::train::checkpoint::{Checkpoint, Meta};
use vnca::train::order::chunk_order;
use vnca::train::program::StateEntry;
use vnca::train::{Sizes, TrainProgram};

/// Number of images in the training set.
const IMAGES: usize = 2048;
/// Number of training steps with stored images and noise. Further steps repeat them from the first.
pub const STEPS: usize = 8;
/// The key of the noise.
const NOISE: Key = Key([0, 7]);

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Task {
    /// A training step: loss, gradient, clipping and Adam.
    Step,
    /// The importance-weighted bound of a batch.
    Iwelbo,
    /// The gradient of only an automaton's steps, on a grid of any size.
    Cells,
}

#[derive(Clone, Debug, clap::Args)]
pub struct CaseArgs {
    /// baseline, doubling or nondoubling
    #[arg(default_value = "baseline")]
    pub model: Kind,
    /// Images per batch [default: 32 for the baseline, 4 for the others]
    pub batch: Option<usize>,
    #[arg(long, value_enum, default_value = "step")]
    pub task: Task,
    /// Latent size [default: the report's]
    #[arg(long)]
    pub latent: Option<usize>,
    /// NCA steps; for the doubling model, steps after each doubling [default: 8; nondoubling 48 to train, 36 to evaluate]
    #[arg(long)]
    pub nca_steps: Option<usize>,
    /// Element type of the operands of matmuls and convolutions
    #[arg(long, value_enum, default_value_t)]
    pub precision: Precision,
    /// Latent samples per image in evaluation
    #[arg(long, default_value_t = 8)]
    pub samples: usize,
    /// Side of the grid in the task cells
    #[arg(long, default_value_t = 32)]
    pub grid: usize,
    /// Entries of the pool that provides half of a nondoubling batch [default: no pool, all images grow from latents]
    #[arg(long)]
    pub pool: Option<usize>,
}

pub struct Case {
    pub model: Model,
    pub task: Task,
    pub batch: usize,
    pub samples: usize,
    pub grid: usize,
    pub pool: Option<PoolSpec>,
}

impl CaseArgs {
    pub fn case(&self) -> Result<Case> {
        let model = Model::new(self.model, self.latent)?;
        let default = match (self.model, self.task) {
            // The middle of the range from which training draws the number.
            (Kind::NonDoubling, Task::Step | Task::Cells) => 48,
            _ => model.nca_steps,
        };
        let nca_steps = self.nca_steps.unwrap_or(default);
        let model = Model { nca_steps, precision: self.precision, ..model };
        model.check()?;
        let batch = self.batch.unwrap_or(if self.model == Kind::Baseline { 32 } else { 4 });
        ensure!((1..=IMAGES).contains(&batch), "BATCH {batch}: it must be from 1 to {IMAGES}");
        ensure!(self.samples > 0, "--samples is 0: a bound needs at least one");
        ensure!((1..=4096).contains(&self.grid), "--grid {}: it must be from 1 to 4096", self.grid);
        ensure!(self.task != Task::Cells || self.model != Kind::Baseline, "the baseline has no cells");
        let pool = self.pool.map(|size| {
            let (steps_min, steps_max) = (model.nca_steps, model.nca_steps + 1);
            PoolSpec { size, steps_min, steps_max, ..PoolSpec::REPORT }
        });
        ensure!(
            pool.is_none() || (self.model, self.task) == (Kind::NonDoubling, Task::Step),
            "--pool: only a step of the nondoubling model has one"
        );
        Ok(Case { model, task: self.task, batch, samples: self.samples, grid: self.grid, pool })
    }
}

/// The inputs that every contestant gets, in one file.
pub struct Inputs {
    /// In the checkpoint layout, in the order of the model's leaves.
    pub weights: Vec<Array>,
    /// Training images, u8 (images, 28, 28).
    pub pixels: Array,
    /// The indices of each step's images, s32 (steps, batch).
    pub order: Array,
    /// The noise that our programs draw with [`Case::key`], f32 (steps, batch, samples, Z).
    pub eps: Array,
}

/// The names of the arrays in the file besides the weights.
const NAMES: [&str; 3] = ["bench.pixels", "bench.order", "bench.eps"];

impl Case {
    /// Calls `f` with the train program. It has no pool unless requested, because the other contestants have none.
    fn with_program<R>(&self, f: impl FnOnce(&TrainProgram<'_>) -> R) -> R {
        let sizes = Sizes { replicas: 1, batch: self.batch, chunk: STEPS, examples: IMAGES };
        let optimiser = Optimiser::REPORT.chain(STEPS);
        let model = self.model.vae();
        match self.pool {
            Some(pool) => {
                let task = Pooled { pool, ..Pooled::new(model) };
                f(&TrainProgram { task: &task, optimiser: &optimiser, sizes })
            }
            None => f(&TrainProgram { task: &Elbo::new(model), optimiser: &optimiser, sizes }),
        }
    }

    /// Returns the entries of the train program's state.
    pub fn state(&self) -> Vec<StateEntry> {
        self.with_program(|program| program.state())
    }

    /// Builds the task's program.
    pub fn function(&self) -> Result<Function> {
        match self.task {
            Task::Step => self.with_program(|program| program.function()),
            Task::Iwelbo => vnca::study::eval::function(&self.model.vae(), self.batch, self.samples),
            Task::Cells => self.cells(true),
        }
    }

    /// Returns the key of the first training step. In an evaluation, its splits are the images' keys.
    pub fn key(&self) -> Key {
        NOISE
    }

    /// Returns the number of samples that the task draws for each image.
    fn draws(&self) -> usize {
        if self.task == Task::Iwelbo { self.samples } else { 1 }
    }

    /// Returns the inputs. The weights are initial values, but the last layer of an automaton's cell is random: at zero its steps
    /// would change nothing.
    pub fn inputs(&self) -> Inputs {
        let leaves = self.model.vae().leaves();
        let mut weights = init(&leaves, Key::new(0));
        for (i, (leaf, array)) in leaves.iter().zip(&mut weights).enumerate() {
            if leaf.name.starts_with("cell.conv1.") {
                let scale = 0.1 / self.model.latent as f32;
                let values = Key::new(100 + i as u64).normal(array.shape().count());
                *array = Array::new(&leaf.shape, &values.iter().map(|v| scale * v).collect::<Vec<f32>>());
            }
        }
        let pixels: Vec<u8> =
            Key::new(3).bernoulli(IMAGES * 784, |_| 0.13).into_iter().map(u8::from).collect();
        let order = chunk_order(Key::new(1), IMAGES, self.batch, STEPS).images;
        let eps_dims = [STEPS, self.batch, self.draws(), self.model.latent];
        Inputs {
            weights,
            pixels: Array::new(&[IMAGES, 28, 28], &pixels),
            order: Array::new(&[STEPS, self.batch], &order),
            eps: Array::new(&eps_dims, &self.eps()),
        }
    }

    /// Returns the noise as the programs draw it.
    fn eps(&self) -> Vec<f32> {
        let mut key = self.key();
        let mut eps = Vec::new();
        for _ in 0..STEPS {
            let keys = match self.task {
                Task::Step | Task::Cells => {
                    let [next, sub] = key.split2();
                    key = next;
                    sub.split(self.batch)
                }
                Task::Iwelbo => key.split(self.batch),
            };
            eps.extend(keys.iter().flat_map(|k| k.normal(self.draws() * self.model.latent)));
        }
        eps
    }

    /// Returns the least number of floating-point operations for the task: those of a step that recomputes nothing.
    pub fn least_flops(&self) -> Result<u64> {
        match self.task {
            Task::Step => {}
            Task::Iwelbo => {
                let function = vnca::study::eval::function(&self.model.vae(), self.batch, self.samples)?;
                return Ok(Cost::from_function(&function).flops);
            }
            // Each matmul or convolution has two gradients, by weights and by cells.
            Task::Cells => return Ok(3 * Cost::from_function(&self.cells(false)?).flops),
        }
        let forward =
            Cost::from_function(&vnca::study::eval::function(&self.model.vae(), self.batch, 1)?).flops;
        // Each matmul or convolution has two gradients, except that the first convolution needs none by the images.
        let first = 2 * self.batch as u64 * 32 * 32 * 25 * 32;
        Ok(3 * forward - first)
    }

    /// Returns the automaton's parameters.
    pub fn cell_leaves(&self) -> Vec<Leaf> {
        self.model.vae().leaves().into_iter().filter(|leaf| leaf.name.starts_with("cell.")).collect()
    }

    /// Builds the program of the automaton's steps. Its loss is the mean square of the final cells. If requested, it also returns
    /// the gradients by parameters and initial cells.
    pub fn cells(&self, gradients: bool) -> Result<Function> {
        let leaves = self.cell_leaves();
        let model = self.model.vae();
        let g = model.graph("cells");
        let values = Params::inputs(&g, &leaves, "");
        let grid = [self.batch, self.grid, self.grid, self.model.latent];
        let cells = g.input("cells", &Shape::f32(&grid));
        let keys = g.input("keys", &Shape::u32(&[self.batch, 2]));
        let automaton = model.automaton()?.automaton(&Params::new(&leaves, &values));
        let last = automaton.steps(Grids { cells, keys }, self.model.nca_steps).cells;
        let loss = last.square().mean(&[0, 1, 2, 3]);
        let mut outputs = vec![("loss".to_string(), loss)];
        if gradients {
            let wrt = [values.as_slice(), &[cells]].concat();
            let gradients = gradient(loss, &wrt).into_iter().enumerate();
            outputs.extend(gradients.map(|(i, s)| (format!("gradient{i}"), s)));
        }
        g.finish(&outputs, &[])
    }

    /// Reads the inputs from a file that [`Inputs::save`] wrote.
    pub fn load(&self, file: &std::path::Path) -> Result<Inputs> {
        let Checkpoint { meta, mut arrays } = Checkpoint::load(file)?;
        let model: Model = serde_json::from_value(meta.model)?;
        ensure!(
            Model { precision: self.model.precision, ..model } == self.model,
            "{} is for another model: {model:?}",
            file.display()
        );
        let mut others = Vec::new();
        for name in NAMES {
            let Some(at) = arrays.iter().position(|(n, _)| n == name) else {
                bail!("{} has no {name}", file.display())
            };
            others.push(arrays.swap_remove(at).1);
        }
        let weights = arrange(&self.model.vae().leaves(), arrays)?;
        let [pixels, order, eps] = others.try_into().ok().context("three arrays")?;
        ensure!(order.dims() == [STEPS, self.batch], "{} is for batches of another size", file.display());
        Ok(Inputs { weights, pixels, order, eps })
    }
}

impl Inputs {
    pub fn save(self, model: Model, file: &std::path::Path) -> Result<()> {
        let names = model.vae().leaves().into_iter().map(|leaf| leaf.name);
        let mut arrays: Vec<(String, Array)> = names.zip(self.weights).collect();
        arrays.extend(NAMES.map(String::from).into_iter().zip([self.pixels, self.order, self.eps]));
        let model = serde_json::to_value(model)?;
        let meta =
            Meta { version: 1, model, step: 0, data_key: [0, 1], data_crc: 0, best: None, unevaluated: None };
        Checkpoint { meta, arrays }.save(file)
    }
}
