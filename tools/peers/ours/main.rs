//! Our contestant in the benchmarks: a gradient step or an evaluation. It prints a report, or serves `tools/bench`.
//!
//! `cargo run --release --example bench_step -- [MODEL] [BATCH]` prints the time of a step, the time of compiling, and the share of
//! the machine's peak in f32 matmuls, which it measures in the same run.

mod case;
mod serve;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use case::{Case, CaseArgs, Inputs, STEPS, Task};
use clap::Parser;
use vnca::engine::array::Array;
use vnca::engine::compile;
use vnca::engine::ir::{Cost, Function, Graph};
#[cfg(feature = "xla")]
use vnca::engine::program::Target;
use vnca::engine::random::Key;
use vnca::engine::runtime::{Arg, Buffers, Device, Executable, Mesh};
use vnca::engine::shape::{DType, Shape};
use vnca::model::exchange::{Plan, Sizes};

#[derive(Parser)]
#[command(about = "Time a gradient step or an evaluation")]
struct Args {
    #[command(flatten)]
    case: CaseArgs,
    /// Write the inputs of all contestants to this file and exit
    #[arg(long)]
    export: Option<PathBuf>,
    /// Read the inputs from this file, then run the commands on stdin
    #[arg(long)]
    serve: Option<PathBuf>,
    /// Device: cpu, tpu, cuda or the path of a PJRT plugin, with its options after commas
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Load programs from a folder that --export-programs wrote instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Write the programs for TPUs and GPUs to a folder and exit
    #[cfg(feature = "xla")]
    #[arg(long, value_name = "DIR")]
    export_programs: Option<PathBuf>,
    /// What the programs of --export-programs are for
    #[cfg(feature = "xla")]
    #[arg(long, value_enum, default_value = "native", requires = "export_programs")]
    target: Target,
}

fn main() -> Result<()> {
    vnca::cli::huge_pages::restart_with_huge_pages();
    vnca::engine::xla_log::hide_messages();
    let args = Args::parse();
    let case = args.case.case()?;
    if let Some(file) = args.export {
        return case.inputs().save(case.model, &file);
    }
    #[cfg(feature = "xla")]
    if let Some(folder) = args.export_programs {
        for function in [case.function()?, matmul(SIZES[0])?, matmul(SIZES[1])?] {
            vnca::engine::lower::lower(&function, args.target, 1)?.save(&folder)?;
        }
        return Ok(());
    }
    let mesh = Mesh::builder(&args.device).programs(args.programs.as_deref()).open(1)?;
    if let Some(file) = args.serve {
        let contestant = Contestant::new(&mesh, &case, case.load(&file)?)?;
        return serve::serve(&mesh, &case, contestant);
    }
    let mut contestant = Contestant::new(&mesh, &case, case.inputs())?;
    report(&mesh, &case, &mut contestant)
}

/// A compiled task with its arguments on the device.
pub struct Contestant {
    executable: Executable,
    /// Buffers that a training step takes and returns. In the other tasks, the parameters.
    state: Vec<Buffers>,
    /// The other arguments, the same in every call.
    fixed: Vec<Buffers>,
    task: Task,
    /// Index of the next step in the order of the images.
    next_step: usize,
    compile_seconds: f64,
    module_bytes: usize,
    /// The cost of one step or evaluation, including recomputation for the gradient.
    cost: Cost,
}

impl Contestant {
    fn new(mesh: &Mesh, case: &Case, inputs: Inputs) -> Result<Contestant> {
        let function = case.function()?;
        let most = if case.task == Task::Step { STEPS as u64 } else { 1 };
        let all = Cost::from_function(&function);
        let cost = Cost { flops: all.flops / most, elements: all.elements / most, ..all };
        let began = Instant::now();
        let executable = compile::compile(mesh, &function)?;
        let compile_seconds = began.elapsed().as_secs_f64();
        let module_bytes = executable.program().module.len();
        let (state, fixed) = arguments(mesh, case, inputs)?;
        let task = case.task;
        Ok(Contestant { executable, state, fixed, task, next_step: 0, compile_seconds, module_bytes, cost })
    }

    /// Runs `count` steps, or `count` evaluations of the same batch. Returns each loss, or minus each bound.
    fn run(&mut self, mesh: &Mesh, count: usize) -> Result<Vec<f32>> {
        match self.task {
            Task::Step => self.train(mesh, count),
            Task::Iwelbo => (0..count).map(|_| Ok(-self.first_result()?)).collect(),
            Task::Cells => (0..count).map(|_| self.first_result()).collect(),
        }
    }

    fn train(&mut self, mesh: &Mesh, count: usize) -> Result<Vec<f32>> {
        let mut losses = Vec::new();
        while losses.len() < count {
            if self.next_step == STEPS {
                self.next_step = 0;
            }
            let trips = (count - losses.len()).min(STEPS - self.next_step);
            let start = mesh.replicate(&Array::scalar(self.next_step as i32))?;
            let number = mesh.replicate(&Array::scalar(trips as i32))?;
            let mut arguments: Vec<Arg<'_>> = self.state.drain(..).map(Arg::from).collect();
            arguments.extend(self.fixed.iter().map(Arg::from));
            arguments.extend([Arg::from(start), Arg::from(number)]);
            let mut results = self.executable.call(arguments)?;
            results.pop();
            let rows = results.pop().context("a step gives its loss")?.get(0)?.to_vec::<f32>();
            self.state = results;
            self.next_step += trips;
            losses.extend(&rows[..trips]);
        }
        Ok(losses)
    }

    /// Returns the mean of the first result, which holds a batch's bounds or a loss.
    fn first_result(&self) -> Result<f32> {
        let arguments = self.state.iter().chain(&self.fixed).map(Arg::from).collect();
        let values = self.executable.call(arguments)?[0].get(0)?.to_vec::<f32>();
        Ok(values.iter().sum::<f32>() / values.len() as f32)
    }
}

/// Copies a task's arguments to the device. Returns the training state (in the other tasks the parameters), and the other
/// arguments.
fn arguments(mesh: &Mesh, case: &Case, inputs: Inputs) -> Result<(Vec<Buffers>, Vec<Buffers>)> {
    let put = |arrays: &[Array]| arrays.iter().map(|a| mesh.replicate(a)).collect::<Result<Vec<_>>>();
    let leaves = case.model.vae().leaves();
    let mut parameters: Vec<Array> =
        leaves.iter().zip(&inputs.weights).map(|(l, a)| l.to_device_layout(a)).collect();
    let keys: Vec<u32> = case.key().split(case.batch).iter().flat_map(|k| k.0).collect();
    let keys = Array::new(&[case.batch, 2], &keys);
    Ok(match case.task {
        Task::Step => {
            let mut fixed = vec![inputs.pixels, inputs.order];
            fixed.extend(pool_feed(case));
            (training_state(mesh, case, put(&parameters)?)?, put(&fixed)?)
        }
        Task::Iwelbo => {
            let rows = inputs.order.to_vec::<i32>();
            let pixels = inputs.pixels.to_vec::<u8>();
            let image = |i: &i32| pixels[*i as usize * 784..][..784].to_vec();
            let images: Vec<u8> = rows[..case.batch].iter().flat_map(image).collect();
            (put(&parameters)?, put(&[Array::new(&[case.batch, 28, 28], &images), keys])?)
        }
        Task::Cells => {
            let cells = parameters.split_off(leaves.len() - case.cell_leaves().len());
            let grid = [case.batch, case.grid, case.grid, case.model.latent];
            let values = Key::new(2).normal(grid.iter().product());
            (put(&cells)?, put(&[Array::new(&grid, &values), keys])?)
        }
    })
}

/// Returns the host's inputs for a step with a pool: the replica's index, and the positions from which entries are read and to
/// which they are written. Repeating the first step's positions moves as many entries as continuing would.
fn pool_feed(case: &Case) -> Vec<Array> {
    let Some(pool) = case.pool else { return vec![] };
    let sizes = Sizes { replicas: 1, share: pool.size, rows: pool.rows(1), batch: case.batch };
    let plan = Plan::new(sizes, &sizes.initial_locations(), case.key(), STEPS);
    let planned = plan.arrays(0, STEPS).map(|mut replicas| replicas.swap_remove(0));
    [Array::scalar(0i32)].into_iter().chain(planned).collect()
}

/// Returns the initial training state for these parameters.
fn training_state(mesh: &Mesh, case: &Case, weights: Vec<Buffers>) -> Result<Vec<Buffers>> {
    let count = weights.len();
    let mut state = weights;
    for entry in &case.state()[count..] {
        let array = match (entry.name.as_str(), entry.shape.dtype) {
            ("key", _) => Array::new(&[2], &case.key().0),
            (_, DType::Pred) => Array::boolean(true),
            _ => Array::zeros(&entry.shape),
        };
        state.push(mesh.replicate(&array)?);
    }
    Ok(state)
}

/// Sizes of the square matrices for measuring the peak: on CPUs, and on faster devices.
const SIZES: [usize; 2] = [2048, 8192];

/// Builds a program that multiplies two matrices into the first one's memory. It also returns one element of the product.
fn matmul(size: usize) -> Result<Function> {
    let g = Graph::new(&format!("product_{size}"));
    let [a, b] = ["a", "b"].map(|name| g.input(name, &Shape::f32(&[size, size])));
    let product = a.dot(b);
    let outputs = [("product".into(), product), ("corner".into(), product.slice(&[0, 0], &[1, 1]))];
    g.finish(&outputs, &[("product".into(), "a".into())])
}

/// Returns the peak in GFLOP/s of large f32 matmuls in the device's default precision: the best of several runs of at least 0.1 s.
pub fn peak(mesh: &Mesh) -> Result<f64> {
    let size = SIZES[usize::from(!mesh.target().is_cpu())];
    let executable = compile::compile(mesh, &matmul(size)?)?;
    // With this scale, repeated multiplication keeps the elements' magnitude.
    let numbers = Key::new(1).normal(2048 * 2048);
    let values: Vec<f32> =
        numbers.iter().cycle().take(size * size).map(|v| v / (size as f32).sqrt()).collect();
    let matrix = Array::new(&[size, size], &values);
    let b = mesh.replicate(&matrix)?;
    let seconds = |count: usize| {
        let mut x = mesh.replicate(&matrix)?;
        x.get(0)?;
        let began = Instant::now();
        for left in (0..count).rev() {
            let mut results = executable.call(vec![x.into(), (&b).into()])?;
            if left == 0 {
                results[1].get(0)?;
            }
            x = results.swap_remove(0);
        }
        Ok::<_, anyhow::Error>(began.elapsed().as_secs_f64())
    };
    let (mut count, mut best) = (1, f64::MAX);
    while seconds(count)? < 0.1 {
        count *= 2;
    }
    for _ in 0..4 {
        best = best.min(seconds(count)? / count as f64);
    }
    Ok(2.0 * (size as f64).powi(3) / best * 1e-9)
}

/// Measures and prints a report.
fn report(mesh: &Mesh, case: &Case, contestant: &mut Contestant) -> Result<()> {
    const CALLS: usize = 5;
    let peak = peak(mesh)?;
    println!("matmul             {peak:8.0} GFLOP/s");
    println!("module             {:8} bytes", contestant.module_bytes);
    println!("compile            {:8.1} s", contestant.compile_seconds);
    let steps = if case.batch >= 32 && case.task == Task::Step { STEPS } else { 1 };
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let began = Instant::now();
        contestant.run(mesh, steps)?;
        times.push(began.elapsed().as_secs_f64() / steps as f64);
    }
    times.sort_by(f64::total_cmp);
    let median = times[CALLS / 2];
    println!("step               {:8.1} ms (fastest {:.1})", median * 1e3, times[0] * 1e3);
    let share = |flops: u64| 100.0 * flops as f64 * 1e-9 / median / peak;
    println!("share of the peak  {:8.0} %", share(case.least_flops()?));
    println!("  including recomputation {:.0} %", share(contestant.cost.flops));
    Ok(())
}
