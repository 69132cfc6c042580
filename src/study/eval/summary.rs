//! The results of an evaluation, as text and as JSON.

use anyhow::{Context, Result};
use serde::Serialize;

use super::part::Part;
use super::{Bound, plus_minus};
use crate::engine::shape::Precision;

/// The description of the model in a summary.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// Name of the model.
    pub model: String,
    /// Type of the operands of matmuls and convolutions.
    pub precision: Precision,
    /// Latent size Z.
    pub latent: usize,
    /// Steps of the automaton after each doubling, or in total if the grid does not double. `None` without an automaton.
    pub nca_steps: Option<usize>,
    /// Number of doublings, if the grid doubles.
    pub doublings: Option<usize>,
    /// Height, width and channels of an image.
    pub image: [usize; 3],
}

/// Means over the images, in nats. Standard errors are over the images unless noted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Name of the model.
    pub model: String,
    /// Type of the operands of matmuls and convolutions.
    pub precision: Precision,
    /// Name of the images.
    pub data: String,
    /// Mean of the IWELBO over images and seeds: log p(x) ≥ this.
    pub iwelbo: f64,
    /// Standard error of `iwelbo` over the images. One image has none.
    pub stderr: Option<f64>,
    /// −`iwelbo` in bits, divided by the number of an image's values.
    pub bits_per_dim: f64,
    /// Number of images.
    pub images: usize,
    /// Latent samples per image.
    pub samples: usize,
    /// Evaluation time in seconds.
    pub seconds: f64,
    /// The ELBO: `reconstruction` − `kl`.
    pub elbo: f64,
    /// Standard error of `elbo`.
    pub elbo_stderr: Option<f64>,
    /// E[log p(x | z)] under q(z | x).
    pub reconstruction: f64,
    /// KL(q(z | x) ‖ p(z)).
    pub kl: f64,
    /// Number of latent dimensions whose posterior mean varies with the image, at most `latent`.
    pub active_units: usize,
    /// Latent size Z.
    pub latent: usize,
    /// Seeds of the latent samples.
    pub seeds: Vec<u64>,
    /// The IWELBO of each seed, if there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub iwelbo_by_seed: Vec<f64>,
    /// Standard error of `iwelbo` over the seeds, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_over_seeds: Option<f64>,
    /// Steps of the automaton after each doubling, or in total if the grid does not double.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nca_steps: Option<usize>,
    /// Number of doublings, if the grid doubles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doublings: Option<usize>,
    /// The comparison with training images, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
}

/// The generalisation gap: how much higher the IWELBO is on training images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gap {
    /// IWELBO of training images minus the IWELBO of the same number of test images, in nats.
    pub gap: f64,
    /// Standard error of `gap`.
    pub gap_stderr: Option<f64>,
    /// IWELBO of the training images.
    pub train_iwelbo: f64,
    /// Standard error of `train_iwelbo`.
    pub train_stderr: Option<f64>,
    /// Number of training images.
    pub train_images: usize,
}

impl Summary {
    /// Summarises an evaluation.
    ///
    /// # Errors
    /// When the evaluation has no images.
    pub fn from_part(part: &Part, info: ModelInfo) -> Result<Summary> {
        let task = &part.task;
        let seeds = part.draws.len().max(1) as f64;
        let mean_over_seeds = |pick: fn(&super::part::Draws) -> &Vec<f32>| -> Vec<f64> {
            let sum = |i: usize| part.draws.iter().map(|d| f64::from(pick(d)[i])).sum::<f64>();
            (0..part.images()).map(|i| sum(i) / seeds).collect()
        };
        let iwelbo = Bound::from_values(&mean_over_seeds(|d| &d.iwelbo))?;
        let reconstruction = mean_over_seeds(|d| &d.reconstruction);
        let kl: Vec<f64> = part.kl.iter().map(|v| f64::from(*v)).collect();
        let elbo =
            Bound::from_values(&reconstruction.iter().zip(&kl).map(|(r, k)| r - k).collect::<Vec<_>>())?;
        let by_seed: Vec<f64> =
            part.draws.iter().map(|d| Ok(Bound::from_values(&d.iwelbo)?.mean)).collect::<Result<_>>()?;
        let several = by_seed.len() > 1;
        Ok(Summary {
            model: info.model,
            precision: info.precision,
            data: task.data.clone(),
            iwelbo: iwelbo.mean,
            stderr: iwelbo.stderr,
            bits_per_dim: -iwelbo.mean / std::f64::consts::LN_2 / info.image.iter().product::<usize>() as f64,
            images: iwelbo.images,
            samples: task.samples,
            seconds: part.seconds,
            elbo: elbo.mean,
            elbo_stderr: elbo.stderr,
            reconstruction: Bound::from_values(&reconstruction)?.mean,
            kl: Bound::from_values(&part.kl)?.mean,
            active_units: part.spread.active(),
            latent: info.latent,
            seeds: task.seeds.clone(),
            stderr_over_seeds: if several { Bound::from_values(&by_seed)?.stderr } else { None },
            iwelbo_by_seed: if several { by_seed } else { vec![] },
            nca_steps: info.nca_steps,
            doublings: info.doublings,
            gap: None,
        })
    }

    /// Adds the gap to an evaluation of the same number of training images.
    pub fn compared_to(mut self, train: &Summary) -> Summary {
        self.gap = Some(Gap {
            gap: train.iwelbo - self.iwelbo,
            gap_stderr: train.stderr.zip(self.stderr).map(|(train, test)| train.hypot(test)),
            train_iwelbo: train.iwelbo,
            train_stderr: train.stderr,
            train_images: train.images,
        });
        self
    }

    /// Formats the summary as JSON.
    ///
    /// # Errors
    /// Never in practice, because the fields are numbers and text.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string(self).context("cannot write the summary as JSON")
    }

    /// Formats the summary as a few lines of text.
    pub fn text(&self) -> String {
        let Summary { iwelbo, stderr, images, samples, seconds, data, .. } = self;
        let mut lines = vec![format!(
            "log p(x) >= {} nats ({images} images of {data}, {samples} samples, {seconds:.1} s)",
            plus_minus(*iwelbo, *stderr, 3)
        )];
        lines.push(format!("{:.4} bits per dimension", self.bits_per_dim));
        if let Some(over_seeds) = self.stderr_over_seeds {
            lines.push(format!("over {} seeds ± {over_seeds:.4} nats", self.seeds.len()));
        }
        lines.push(format!(
            "ELBO {} nats = reconstruction {:.3} - KL {:.3}",
            plus_minus(self.elbo, self.elbo_stderr, 3),
            self.reconstruction,
            self.kl
        ));
        lines.push(format!(
            "{} of {} latent dimensions are active (variance of the mean over the images above 0.01)",
            self.active_units, self.latent
        ));
        match (self.nca_steps, self.doublings) {
            (Some(steps), Some(doublings)) => {
                lines.push(format!("{doublings} doublings with {steps} steps after each"))
            }
            (Some(steps), None) => lines.push(format!("evaluated after T = {steps} steps")),
            _ => {}
        }
        if self.precision != Precision::F32 {
            lines.push(format!("matmuls and convolutions with operands in {}", self.precision));
        }
        if let Some(Gap { gap, gap_stderr, train_iwelbo, train_stderr, train_images }) = &self.gap {
            lines.push(format!(
                "training images {} nats ({train_images} images): a gap of {}",
                plus_minus(*train_iwelbo, *train_stderr, 3),
                plus_minus(*gap, *gap_stderr, 3)
            ));
        }
        lines.join("\n")
    }
}
