//! The pictures that a training run writes: samples of the prior, and test images above their reconstructions.

use std::path::Path;

use anyhow::Result;

use crate::data::Split;
use crate::engine::array::Array;
use crate::engine::compile::compile;
use crate::engine::ir::{Function, Sym};
use crate::engine::random::{Key, graph as draw};
use crate::engine::runtime::{Arg, Buffers, Executable, Mesh};
use crate::engine::shape::Shape;
use crate::files;
use crate::model::Vae;
use crate::nn::params::Params;
use crate::study::figure::grids;
use crate::study::gallery::{brightness, framed};

/// Images per row.
const COLUMNS: usize = 8;
/// Number of samples: 4 rows of 8, as in the report's figure 2.
const SAMPLES: usize = 4 * COLUMNS;
/// Number of reconstructed images: 2 rows, each below its originals.
const RECONSTRUCTED: usize = 2 * COLUMNS;

/// Builds the program that decodes the pictures.
///
/// Inputs: the parameters, 16 images and keys u32 (32, 2). Output: the means of the pixels, as brightness, for 32 samples of the prior,
/// then for 16 reconstructions from the posterior means.
///
/// # Errors
/// When the graph is ill-formed, which is a bug.
pub fn function(model: &Vae) -> Result<Function> {
    let leaves = model.leaves();
    let g = model.graph(&format!("pictures_{}", model.name));
    let values = Params::inputs(&g, &leaves, "");
    let images = g.input("images", &model.frame.pixels(RECONSTRUCTED));
    let keys = g.input("keys", &Shape::u32(&[SAMPLES, 2]));
    let params = Params::new(&leaves, &values);
    let prior = draw::normal(keys, &[model.latent]);
    let (mean, _) = model.encode(&params, model.padded(images));
    let latents = Sym::concat(&[prior, mean], 0);
    // Drawing the prior's samples uses the first Z numbers of each key. This takes the next one.
    let step_keys = draw::split_at(keys, model.latent);
    let step_keys = Sym::concat(&[step_keys, step_keys.slice_axis(0, 0, RECONSTRUCTED)], 0);
    let decoded = model.means(model.decode(&params, latents, step_keys));
    g.finish(&[("probabilities".into(), decoded)], &[])
}

/// The compiled program with its images and key.
pub struct Pictures {
    executable: Executable,
    mesh: Mesh,
    /// The images as the program takes them.
    images: Array,
    /// The images as they are shown.
    shown: Vec<Vec<f32>>,
    /// Rows, columns and channels of a picture.
    dims: [usize; 3],
    key: Key,
}

impl Pictures {
    /// Compiles the program for evenly spaced images of `split`. Prior sample i uses the i-th split of `key`.
    ///
    /// # Errors
    /// When the program does not compile.
    pub fn new(mesh: &Mesh, model: &Vae, split: &Split, key: Key) -> Result<Pictures> {
        let shown = split.spread(RECONSTRUCTED);
        let image = |i: usize| shown.image(i % shown.len());
        let pixels: Vec<u8> = (0..RECONSTRUCTED).flat_map(image).copied().collect();
        let images = Array::new(&model.frame.pixels(RECONSTRUCTED).dims, &pixels);
        let shown = (0..RECONSTRUCTED).map(|i| brightness(model, &framed(&model.frame, image(i)))).collect();
        let (executable, dims) = (compile(mesh, &function(model)?)?, model.frame.counted());
        Ok(Pictures { executable, mesh: mesh.clone(), images, shown, dims, key })
    }

    /// Lets process 0 write `samples-STEP.png` and `reconstructions-STEP.png` into the folder.
    ///
    /// # Errors
    /// When the device fails or a file cannot be written.
    pub fn write(&self, parameters: &[&Buffers], folder: &Path, step: usize) -> Result<()> {
        let keys: Vec<u32> = self.key.split(SAMPLES).into_iter().flat_map(|k| k.0).collect();
        let mut arguments: Vec<Arg<'_>> = parameters.iter().map(|b| Arg::from(*b)).collect();
        arguments.push(self.mesh.replicate(&self.images)?.into());
        arguments.push(self.mesh.replicate(&Array::new(&[SAMPLES, 2], &keys))?.into());
        let means = self.executable.call(arguments)?[0].replicated()?.to_vec::<f32>();
        let size: usize = self.dims.iter().product();
        let (samples, decoded) = means.split_at(SAMPLES * size);
        let mut rows = Vec::new();
        for (originals, decoded) in self.shown.chunks(COLUMNS).zip(decoded.chunks(COLUMNS * size)) {
            rows.extend(originals.concat());
            rows.extend_from_slice(decoded);
        }
        self.mesh.lead(|| {
            files::create_within(folder)?;
            grids::write(&folder.join(format!("samples-{step:08}.png")), samples, self.dims, COLUMNS)?;
            grids::write(&folder.join(format!("reconstructions-{step:08}.png")), &rows, self.dims, COLUMNS)
        })
    }
}
