//! A new likelihood: grey pixels of 256 levels with a discretised logistic distribution, which has two parameters per pixel
//! (Salimans, Karpathy, Chen, Kingma, "PixelCNN++", 2017). The grey images are the embedded digits, blurred.
//!
//! `cargo run --release --example own_likelihood`

use std::path::PathBuf;

use anyhow::Result;
use vnca::chain;
use vnca::data::{self, Part};
use vnca::engine::array::Array;
use vnca::engine::ir::Sym;
use vnca::engine::random::graph as draw;
use vnca::engine::runtime::{Device, Mesh};
use vnca::engine::shape::DType;
use vnca::model::baseline::ConvDecoder;
use vnca::model::encoder::ConvEncoder;
use vnca::model::likelihood::{Likelihood, Outputs};
use vnca::model::{Elbo, GRID_SIDE, Vae};
use vnca::nn::optimiser::{Adam, ClipByGlobalNorm};
use vnca::train::{RunOptions, Trainer};

/// Channel 0 is the mean of a pixel from 0 to 1. Channel 1 is the logarithm of its scale plus 2.
struct DiscretisedLogistic;

impl DiscretisedLogistic {
    /// Returns mean and scale, (n, h, w, 1) each.
    fn parts<'g>(outputs: Sym<'g>) -> (Sym<'g>, Sym<'g>) {
        let log_scale = (outputs.slice_axis(3, 1, 2) - 2.0).max(outputs.scalar_like(-6.0));
        (outputs.slice_axis(3, 0, 1), log_scale.exp())
    }
}

// ANCHOR: likelihood
impl Likelihood for DiscretisedLogistic {
    fn outputs(&self) -> Outputs {
        Outputs { channels: 2, outside: 0.0 }
    }

    fn observe<'g>(&self, pixels: Sym<'g>) -> Sym<'g> {
        pixels.convert(DType::F32) / 255.0
    }

    fn log_prob<'g>(&self, images: Sym<'g>, outputs: Sym<'g>) -> Sym<'g> {
        let (mean, scale) = Self::parts(outputs);
        let cdf = |x: Sym<'g>| ((x - mean) / scale).sigmoid();
        let half = 0.5 / 255.0;
        // The outermost levels include all values beyond them.
        let above =
            images.gt(images.scalar_like(1.0 - half)).select(images.scalar_like(1.0), cdf(images + half));
        let below = images.lt(images.scalar_like(half)).select(images.scalar_like(0.0), cdf(images - half));
        (above - below).max(images.scalar_like(1e-12)).log().sum(&[1, 2, 3])
    }

    fn mean<'g>(&self, outputs: Sym<'g>) -> Sym<'g> {
        Self::parts(outputs).0
    }

    fn draw<'g>(&self, outputs: Sym<'g>, keys: Sym<'g>) -> Sym<'g> {
        let (mean, scale) = Self::parts(outputs);
        let u = draw::uniform(keys, &mean.dims()[1..], 1e-5, 1.0 - 1e-5);
        let drawn = mean + scale * (u.log() - (-u + 1.0).log());
        drawn.max(drawn.scalar_like(0.0)).min(drawn.scalar_like(1.0))
    }
}
// ANCHOR_END: likelihood

/// Converts binary images to grey ones (n, 28, 28): each pixel becomes the mean of its 3 x 3 neighbourhood.
fn blurred(pixels: &[u8], count: usize) -> Array {
    let grey = |i: usize| {
        let (image, y, x) = (i / 784 * 784, i / 28 % 28, i % 28);
        let near = |at: usize| at.saturating_sub(1)..(at + 2).min(28);
        let sum: u32 =
            near(y).flat_map(|y| near(x).map(move |x| u32::from(pixels[image + y * 28 + x]))).sum();
        (sum * 255 / 9) as u8
    };
    Array::new(&[count, 28, 28], &(0..count * 784).map(grey).collect::<Vec<u8>>())
}

fn main() -> Result<()> {
    let folder =
        std::env::args().nth(1).map_or_else(|| std::env::temp_dir().join("own_likelihood"), PathBuf::from);
    let _ = std::fs::remove_dir_all(&folder);
    let digits = data::load(data::GLYPHS)?;
    let images = blurred(&digits.split(Part::Train)?.pixels, 2048);

    let model = Vae::new("grey", 8, ConvEncoder::default(), ConvDecoder, DiscretisedLogistic);
    let mesh = Mesh::open(&Device::Cpu, 1)?;
    let mut losses = Vec::new();
    let mut run = Trainer::new(&mesh, Elbo::new(model))
        .optimiser(chain![ClipByGlobalNorm(100.0), Adam::new(1e-3)])
        .options(RunOptions { steps: 60, batch: 8, checkpoint_every: 0, ..RunOptions::default() })
        .create(&folder, Some(images))?;
    run.train(&mut |step: usize, loss: f32| {
        // The likelihood counts the border too.
        let pixels = (GRID_SIDE * GRID_SIDE) as f32;
        println!("step {step:2}: loss {:.3} bits per pixel", loss / pixels / std::f32::consts::LN_2);
        losses.push(loss);
    })?;
    anyhow::ensure!(losses[losses.len() - 1] < 0.8 * losses[0], "the loss has not fallen: {losses:?}");
    Ok(())
}
