//! The pictures that a training run writes: samples of the prior, and test images above their reconstructions.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::data::Split;
use crate::engine::array::Array;
use crate::engine::compile::compile;
use crate::engine::ir::{Function, Sym};
use crate::engine::random::{Key, graph as draw};
use crate::engine::runtime::{Arg, Buffers, Executable, Mesh};
use crate::engine::shape::{DType, Shape};
use crate::model::{GRID_SIDE, Vae};
use crate::nn::params::Params;
use crate::study::figure::grids;

/// Images per row.
const COLUMNS: usize = 8;
/// Number of samples: 4 rows of 8, as in the report's figure 2.
const SAMPLES: usize = 4 * COLUMNS;
/// Number of reconstructed images: 2 rows, each below its originals.
const RECONSTRUCTED: usize = 2 * COLUMNS;

/// Builds the program that decodes the pictures.
///
/// Inputs: the parameters, images u8 (16, 28, 28) and keys u32 (32, 2). Output: the pixels' probabilities for 32 samples of the
/// prior, then for 16 reconstructions from the posterior means.
///
/// # Errors
/// When the graph is ill-formed, which is a bug.
pub fn function(model: &Vae) -> Result<Function> {
    let leaves = model.leaves();
    let g = model.graph(&format!("pictures_{}", model.name));
    let values = Params::inputs(&g, &leaves, "");
    let images = g.input("images", &Shape::new(DType::U8, &[RECONSTRUCTED, 28, 28]));
    let keys = g.input("keys", &Shape::u32(&[SAMPLES, 2]));
    let params = Params::new(&leaves, &values);
    let prior = draw::normal(keys, &[model.latent]);
    let (mean, _) = model.encode(&params, model.padded(images));
    let latents = Sym::concat(&[prior, mean], 0);
    // Drawing the prior's samples uses the first Z numbers of each key. This takes the next one.
    let step_keys = draw::split_at(keys, model.latent);
    let step_keys = Sym::concat(&[step_keys, step_keys.slice_axis(0, 0, RECONSTRUCTED)], 0);
    let decoded = model.likelihood.mean(model.decode(&params, latents, step_keys));
    g.finish(&[("probabilities".into(), decoded)], &[])
}

/// The compiled program with its images and key.
pub struct Pictures {
    executable: Executable,
    mesh: Mesh,
    images: Vec<u8>,
    key: Key,
}

impl Pictures {
    /// Compiles the program for evenly spaced images of `split`. Prior sample i uses the i-th split of `key`.
    ///
    /// # Errors
    /// When the program does not compile.
    pub fn new(mesh: &Mesh, model: &Vae, split: &Split, key: Key) -> Result<Pictures> {
        let shown = split.spread(RECONSTRUCTED);
        let images = (0..RECONSTRUCTED).flat_map(|i| shown.image(i % shown.len())).copied().collect();
        Ok(Pictures { executable: compile(mesh, &function(model)?)?, mesh: mesh.clone(), images, key })
    }

    /// Writes `samples-STEP.png` and `reconstructions-STEP.png` into the folder.
    ///
    /// # Errors
    /// When the device fails or a file cannot be written.
    pub fn write(&self, parameters: &[&Buffers], folder: &Path, step: usize) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let keys: Vec<u32> = self.key.split(SAMPLES).into_iter().flat_map(|k| k.0).collect();
        let mut arguments: Vec<Arg<'_>> = parameters.iter().map(|b| Arg::from(*b)).collect();
        arguments.push(self.mesh.replicate(&Array::new(&[RECONSTRUCTED, 28, 28], &self.images))?.into());
        arguments.push(self.mesh.replicate(&Array::new(&[SAMPLES, 2], &keys))?.into());
        let probabilities = self.executable.call(arguments)?[0].get(0)?.to_vec::<f32>();
        let (samples, decoded) = probabilities.split_at(SAMPLES * GRID_SIDE * GRID_SIDE);
        grids::write(&folder.join(format!("samples-{step:08}.png")), samples, GRID_SIDE, COLUMNS)?;
        let mut rows = Vec::new();
        for row in 0..RECONSTRUCTED / COLUMNS {
            for i in row * COLUMNS..(row + 1) * COLUMNS {
                rows.extend(padded(&self.images[i * 784..(i + 1) * 784]));
            }
            rows.extend_from_slice(
                &decoded[row * COLUMNS * GRID_SIDE * GRID_SIDE..(row + 1) * COLUMNS * GRID_SIDE * GRID_SIDE],
            );
        }
        grids::write(&folder.join(format!("reconstructions-{step:08}.png")), &rows, GRID_SIDE, COLUMNS)
    }
}

/// Pads a 28 x 28 image with zeros to 32 x 32.
fn padded(pixels: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; GRID_SIDE * GRID_SIDE];
    for y in 0..28 {
        for x in 0..28 {
            out[(y + 2) * GRID_SIDE + x + 2] = f32::from(pixels[y * 28 + x]);
        }
    }
    out
}
