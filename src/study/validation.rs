//! Validation during training: the IWELBO of the test images, and pictures of samples and reconstructions.

use std::path::PathBuf;

use anyhow::Result;

use super::eval::{Bound, Evaluator};
use super::pictures::Pictures;
use crate::data::Split;
use crate::engine::random::Key;
use crate::engine::runtime::{Buffers, Mesh};
use crate::model::Vae;

/// Images per evaluation call, over all replicas.
const BATCH: usize = 32;

/// The compiled programs of a validation.
pub struct Validation {
    mesh: Mesh,
    evaluator: Evaluator,
    /// Images per call.
    batch: usize,
    pictures: Pictures,
    test: Split,
    key: Key,
    folder: PathBuf,
}

impl Validation {
    /// Compiles the programs, with `samples` latent samples per image. The first key draws these samples, the second one the
    /// latents of the pictures, which are written to `folder`.
    ///
    /// # Errors
    /// When a program does not compile.
    pub fn new(
        mesh: &Mesh,
        model: &Vae,
        test: Split,
        samples: usize,
        [key, picture_key]: [Key; 2],
        folder: PathBuf,
    ) -> Result<Validation> {
        let batch = BATCH.next_multiple_of(mesh.replicas());
        let evaluator = Evaluator::new(mesh, model, batch, samples)?;
        let pictures = Pictures::new(mesh, model, &test, picture_key)?;
        Ok(Validation { mesh: mesh.clone(), evaluator, batch, pictures, test, key, folder })
    }

    /// Returns the IWELBO over all test images, and writes the pictures of a step. Returns `None` soon after `stop` returns true.
    ///
    /// # Errors
    /// When a device fails or a file cannot be written.
    pub fn run(
        &self,
        parameters: &[&Buffers],
        step: usize,
        stop: impl Fn() -> bool,
    ) -> Result<Option<Bound>> {
        let mut iwelbo = Vec::with_capacity(self.test.len());
        while iwelbo.len() < self.test.len() {
            if self.mesh.lead(|| Ok(stop()))? {
                return Ok(None);
            }
            let call = iwelbo.len()..(iwelbo.len() + self.batch).min(self.test.len());
            iwelbo.extend(self.evaluator.run(parameters, &self.test, self.key, call, |_| {})?.iwelbo);
        }
        let bound = Bound::from_values(&iwelbo)?;
        self.pictures.write(parameters, &self.folder, step)?;
        Ok(Some(bound))
    }
}
