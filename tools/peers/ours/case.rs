//! What is computed, and from what: a model's task, and the inputs that every contestant gets.

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

/// Images of the training set.
const IMAGES: usize = 2048;
/// Training steps whose images and noise are written down: more begin again with the first one's.
pub const STEPS: usize = 8;
/// Key of the noise.
const NOISE: Key = Key([0, 7]);

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Task {
    /// A gradient step: loss, gradient, clipping and Adam.
    Step,
    /// The importance-weighted bound of a batch.
    Iwelbo,
    /// The gradient of an automaton's steps alone, over a grid of any size.
    Cells,
}

#[derive(Clone, Debug, clap::Args)]
pub struct CaseArgs {
    /// baseline, doubling or nondoubling
    #[arg(default_value = "baseline")]
    pub model: Kind,
    /// Images a batch [default: 32 for the baseline, 4 for the others]
    pub batch: Option<usize>,
    #[arg(long, value_enum, default_value = "step")]
    pub task: Task,
    /// Latent size [default: the report's]
    #[arg(long)]
    pub latent: Option<usize>,
    /// NCA steps, of the doubling model after each doubling [default: 8; nondoubling 48 to train, 36 to evaluate]
    #[arg(long)]
    pub nca_steps: Option<usize>,
    /// Element type in which matrix products and convolutions take their operands
    #[arg(long, value_enum, default_value_t)]
    pub precision: Precision,
    /// Latent samples an image in evaluation
    #[arg(long, default_value_t = 8)]
    pub samples: usize,
    /// Side of the grid of the task cells
    #[arg(long, default_value_t = 32)]
    pub grid: usize,
    /// Entries of the pool that half of a nondoubling batch comes from [default: none, and all grow from latents]
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
        let usual = match (self.model, self.task) {
            // The middle of the range from which training draws it.
            (Kind::NonDoubling, Task::Step | Task::Cells) => 48,
            _ => model.nca_steps,
        };
        let nca_steps = self.nca_steps.unwrap_or(usual);
        let model = Model { nca_steps, precision: self.precision, ..model };
        model.check()?;
        let batch = self.batch.unwrap_or(if self.model == Kind::Baseline { 32 } else { 4 });
        ensure!((1..=IMAGES).contains(&batch), "BATCH {batch}: it must be from 1 to {IMAGES}");
        ensure!(self.samples > 0, "--samples is 0: a bound takes at least one");
        ensure!((1..=4096).contains(&self.grid), "--grid {}: it must be from 1 to 4096", self.grid);
        ensure!(self.task != Task::Cells || self.model != Kind::Baseline, "the baseline has no cells");
        let pool = self.pool.map(|size| {
            let (steps_min, steps_max) = (model.nca_steps, model.nca_steps + 1);
            PoolSpec { size, steps_min, steps_max, ..PoolSpec::REPORT }
        });
        ensure!(
            pool.is_none() || (self.model, self.task) == (Kind::NonDoubling, Task::Step),
            "--pool: nothing here has one"
        );
        Ok(Case { model, task: self.task, batch, samples: self.samples, grid: self.grid, pool })
    }
}

/// What every contestant gets, in one file.
pub struct Inputs {
    /// In the edges' layout and the leaves' order.
    pub weights: Vec<Array>,
    /// u8 (images, 28, 28).
    pub pixels: Array,
    /// Which images each step takes: s32 (steps, batch).
    pub order: Array,
    /// f32 (steps, batch, samples, Z): what the programs here draw from [`Case::key`].
    pub eps: Array,
}

const NAMES: [&str; 3] = ["bench.pixels", "bench.order", "bench.eps"];

impl Case {
    /// The train program: without the pool, so that a step is the same for every contestant, unless one is asked for.
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

    /// The state of the train program.
    pub fn state(&self) -> Vec<StateEntry> {
        self.with_program(|program| program.state())
    }

    /// The task's computation.
    pub fn function(&self) -> Result<Function> {
        match self.task {
            Task::Step => self.with_program(|program| program.function()),
            Task::Iwelbo => vnca::study::eval::function(&self.model.vae(), self.batch, self.samples),
            Task::Cells => self.cells(true),
        }
    }

    /// The key of the first training step, or that an evaluation's images' keys are split from.
    pub fn key(&self) -> Key {
        NOISE
    }

    /// Samples that a computation draws for an image.
    fn draws(&self) -> usize {
        if self.task == Task::Iwelbo { self.samples } else { 1 }
    }

    /// Initial values, with the last layer of an automaton's cell drawn anew: at zero its steps would do nothing.
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

    /// Multiplications and additions that the task takes at least: a gradient step without making anything twice.
    pub fn least_flops(&self) -> Result<u64> {
        match self.task {
            Task::Step => {}
            Task::Iwelbo => {
                let function = vnca::study::eval::function(&self.model.vae(), self.batch, self.samples)?;
                return Ok(Cost::from_function(&function).flops);
            }
            // The cells' own gradient is wanted too, unless there is but one step: each product has two.
            Task::Cells => return Ok(3 * Cost::from_function(&self.cells(false)?).flops),
        }
        let forward =
            Cost::from_function(&vnca::study::eval::function(&self.model.vae(), self.batch, 1)?).flops;
        // Each product has two gradients, but for the first convolution: the images need none.
        let first = 2 * self.batch as u64 * 32 * 32 * 25 * 32;
        Ok(3 * forward - first)
    }

    /// The automaton's parameters.
    pub fn cell_leaves(&self) -> Vec<Leaf> {
        self.model.vae().leaves().into_iter().filter(|leaf| leaf.name.starts_with("cell.")).collect()
    }

    /// Steps of the automaton from grids `cells`, `loss` the mean square of the last ones, and its gradients.
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
            let found = gradient(loss, &wrt).into_iter().enumerate();
            outputs.extend(found.map(|(i, s)| (format!("gradient{i}"), s)));
        }
        g.finish(&outputs, &[])
    }

    /// Inputs from a file that [`Inputs::save`] wrote.
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
        let meta = Meta { version: 1, model, step: 0, data_key: [0, 1], data_crc: 0, best: None };
        Checkpoint { meta, arrays }.save(file)
    }
}
