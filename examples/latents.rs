//! Reads weights and writes latents: the means of q(z | x) for the embedded test digits, as a `.npy` file.
//!
//! `cargo run --release --example latents -- OUT.npy [WEIGHTS [LATENT]]`. WEIGHTS is a file of the report's doubling model, of
//! any type that `vnca convert` writes. Without it the weights are initial values.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vnca::data::{self, Part};
use vnca::engine::array::Array;
use vnca::engine::npy;
use vnca::engine::random::Key;
use vnca::engine::runtime::{Device, Mesh};
use vnca::model::report;
use vnca::nn::params::init;
use vnca::nn::weights;
use vnca::study::gallery::encode;
use vnca::study::session::Session;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let out = arguments.next().map_or_else(|| std::env::temp_dir().join("latents.npy"), PathBuf::from);
    let file = arguments.next();
    let latent = arguments.next().map_or(Ok(256), |text| text.parse()).context("LATENT")?;

    // ANCHOR: latents
    let model = report::doubling(latent, 5, 8);
    let leaves = model.leaves();
    let values = match &file {
        Some(file) => weights::read(Path::new(file), &leaves)?,
        None => init(&leaves, Key::new(0)),
    };
    let mesh = Mesh::open(&Device::Cpu, 1)?;
    let session = Session::new(&mesh, model, &values)?;
    let digits = data::load(data::GLYPHS)?;
    let images = digits.split(Part::Test)?.spread(64);
    let means: Vec<f32> = encode(&session, &images)?.into_iter().flat_map(|e| e.mean).collect();
    let means = Array::new(&[images.len(), latent], &means);
    npy::save(&out, means.dims(), &means.to_vec::<f32>())?;
    // ANCHOR_END: latents
    println!("{}: {} of {} images", out.display(), means.shape(), images.len());
    Ok(())
}
