//! A training run of the smallest models, for `tools/soak`: as many device calls in a second as possible, with evaluations, pictures
//! and checkpoints between them.
//!
//! `cargo bench --bench soak -- MODEL DEVICE CALLS EVAL_EVERY CHECKPOINT_EVERY LEAK FOLDER`. MODEL is `tiny`, an automaton that
//! doubles its grid, or `tiny-pool`, one with a pool. With LEAK above 0 each call leaks so many bytes, and every 1000th call a file
//! handle. Without these arguments the program makes a few calls of both models.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use vnca::chain;
use vnca::data::{self, Part};
use vnca::engine::ir::Sym;
use vnca::engine::ir::ops::conv::Window;
use vnca::engine::random::Key;
use vnca::engine::runtime::{Buffers, Device, Mesh};
use vnca::model::cell::ShallowCell;
use vnca::model::pool::PoolSpec;
use vnca::model::{Bernoulli, Elbo, Encoder, Frame, Grow, Pooled, Vae};
use vnca::nn::optimiser::{Adam, ClipByGlobalNorm};
use vnca::nn::params::{Leaf, Params, Role, layer};
use vnca::study::validation::Validation;
use vnca::train::task::Task;
use vnca::train::trainer::Score;
use vnca::train::{RunOptions, Trainer, Watch};

const LATENT: usize = 2;
/// Channels and side of the encoder's grid.
const CHANNELS: usize = 2;
const SIDE: usize = 4;
/// Training images. The host draws an order of all of them for each call.
const IMAGES: usize = 32;

/// A convolution to a small grid, and a linear layer.
struct TinyEncoder;

impl Encoder for TinyEncoder {
    fn parameters(&self, _frame: &Frame, latent: usize) -> Vec<Leaf> {
        let conv = layer("conv", Role::ConvWeight, &[CHANNELS, 1, 8, 8], &[0]);
        let linear = layer("linear", Role::LinearWeight, &[2 * latent, SIDE * SIDE * CHANNELS], &[1]);
        [conv, linear].concat()
    }

    fn encode<'g>(&self, params: &Params<'g>, images: Sym<'g>) -> (Sym<'g>, Sym<'g>) {
        let n = images.dims()[0];
        let h = params.conv("conv", images, Window::new(8, (0, 0))).elu();
        let out = params.linear("linear", h.reshape(&[n, SIDE * SIDE * CHANNELS]));
        let latent = out.dims()[1] / 2;
        (out.slice_axis(1, 0, latent), out.slice_axis(1, latent, 2 * latent))
    }
}

/// Evaluates with the validation of `vnca train`.
struct Evaluated {
    validation: Validation,
    /// Bytes that each call leaks, on purpose.
    leak: usize,
}

impl Watch for Evaluated {
    fn steps(&mut self, step: usize, _loss: f32) {
        if self.leak > 0 {
            // The compiler removes an allocation that nothing sees.
            std::mem::forget(std::hint::black_box(vec![1u8; self.leak]));
            if step.is_multiple_of(1000) {
                std::mem::forget(File::open("/dev/null"));
            }
        }
    }

    fn evaluate(&mut self, parameters: &[&Buffers], step: usize) -> Result<Option<Score>> {
        let value = self.validation.run(parameters, step, || false)?.context("the evaluation ends")?.mean;
        Ok(Some(Score { name: "test/iwelbo", value }))
    }
}

/// Trains with one device call for each gradient step.
fn soak(
    name: &str,
    device: &str,
    [steps, eval_every, checkpoint_every, leak]: [usize; 4],
    folder: &Path,
) -> Result<()> {
    let grow = match name {
        "tiny" => Grow::doubling(ShallowCell, 5, 1),
        "tiny-pool" => Grow::new(ShallowCell, 1),
        other => bail!("there is no model {other}: there are tiny and tiny-pool"),
    };
    let model = Vae::new(name, LATENT, TinyEncoder, grow, Bernoulli);
    let task: Box<dyn Task> = match name {
        "tiny" => Box::new(Elbo::new(model.clone())),
        _ => Box::new(Pooled {
            pool: PoolSpec { size: 8, steps_min: 1, steps_max: 3, ..PoolSpec::REPORT },
            ..Pooled::new(model.clone())
        }),
    };
    let mesh = Mesh::open(&device.parse::<Device>()?, 1)?;
    let digits = data::load(data::GLYPHS)?;
    let images = digits.split(Part::Train)?.spread(IMAGES).to_array();
    let test = digits.split(Part::Test)?.spread(2);
    let keys = [2, 3].map(Key::new);
    let validation = Validation::new(&mesh, &model, test, 1, keys, folder.join("pictures"))?;
    let mut watch = Evaluated { validation, leak };
    let options =
        RunOptions { steps, batch: 2, chunk: 1, eval_every, checkpoint_every, ..RunOptions::default() };
    let optimiser = chain![ClipByGlobalNorm(10.0), Adam::new(1e-4)];
    Trainer::new(&mesh, task)
        .optimiser(optimiser)
        .options(options)
        .create(folder, Some(images))?
        .train(&mut watch)?;
    Ok(())
}

fn main() -> Result<()> {
    // `cargo bench` adds a flag.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [model, device, numbers @ .., folder] = words.as_slice() else {
        let folder = tempfile::tempdir()?;
        for model in ["tiny", "tiny-pool"] {
            soak(model, "cpu", [20, 10, 10, 0], &folder.path().join(model))?;
        }
        println!("20 calls of tiny and tiny-pool each; tools/soak makes more, and measures memory");
        return Ok(());
    };
    let numbers = numbers.iter().map(|text| text.parse().with_context(|| text.clone()));
    let numbers = numbers.collect::<Result<Vec<usize>>>()?;
    let numbers =
        <[usize; 4]>::try_from(numbers).ok().context("needed: CALLS EVAL_EVERY CHECKPOINT_EVERY LEAK")?;
    soak(model, device, numbers, Path::new(folder))
}
