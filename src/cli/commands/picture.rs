//! What the picture verbs share: which model, which seed, which images, and where the files go.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::run_data::Wanted;
use super::{On, Report, Source, Weights};
use crate::data::{Part, Split};
use crate::engine::npy;
use crate::files;
use crate::study::gallery::{self, Latent};
use crate::study::session::Session;

/// More pictures than this are a mistake in the command line.
const MOST: usize = 4096;

#[derive(Debug, clap::Args)]
pub struct Common {
    #[command(flatten)]
    pub source: Source,
    /// Seed: picture i has the i-th key of its split; 3 is the seed of the pictures of training
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub seed: u64,
    /// A folder, or the name of the .png; other files get the same name [default: figures in the run's folder, or here]
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
    /// Also write the pictures' values as .npy
    #[arg(long)]
    pub npy: bool,
    #[command(flatten)]
    pub device: On,
    /// Print the numbers and the files' names as JSON on stdout instead of the files' names alone
    #[arg(long)]
    pub json: bool,
}

/// Which images, where a verb shows some.
#[derive(Debug, clap::Args)]
pub struct Images {
    /// Images: a file, a folder, or `glyphs` [default: those that the run was trained on, else glyphs]
    #[arg(long, env = "VNCA_DATA", value_name = "PATH")]
    pub data: Option<String>,
    /// Which part of the data
    #[arg(long, default_value = "test", value_parser = ["train", "test"])]
    pub split: String,
}

impl Images {
    /// # Errors
    /// When the images cannot be read.
    pub fn load(&self, weights: &Weights) -> Result<Split> {
        let part = if self.split == "train" { Part::Train } else { Part::Test };
        Wanted::new(self.data.as_deref(), weights.data.as_ref()).split(part)
    }
}

impl Common {
    /// # Errors
    /// When the weights cannot be read.
    pub fn weights(&self) -> Result<Weights> {
        self.source.load()
    }

    /// # Errors
    /// When the device cannot be had.
    pub fn session(&self, weights: &Weights) -> Result<Session> {
        self.device.session(1, weights)
    }

    /// Where the verb's files go; makes the folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn files(&self, verb: &'static str) -> Result<Files> {
        let (folder, name) = match &self.out {
            Some(path) if path.extension().is_some_and(|e| e == "png") => {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                (path.parent().unwrap_or(Path::new("")).to_path_buf(), name)
            }
            Some(folder) => (folder.clone(), verb.to_string()),
            None => (self.source.run.clone().unwrap_or_default().join("figures"), verb.to_string()),
        };
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Files { verb, folder, name, written: Vec::new() })
    }
}

/// The files of one verb's call.
pub struct Files {
    verb: &'static str,
    folder: PathBuf,
    name: String,
    written: Vec<PathBuf>,
}

impl Files {
    fn path(&self, ending: &str) -> PathBuf {
        self.folder.join(format!("{}{ending}", self.name))
    }

    /// Writes the file whose name ends so: `.png`, `-loss.png`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, ending: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path(ending);
        files::write_bytes(&path, bytes)?;
        self.written.push(path);
        Ok(())
    }

    /// Writes f32 values as NumPy's `.npy`.
    ///
    /// # Errors
    /// When there are more or fewer than the sizes say, or the file cannot be written.
    pub fn write_npy(&mut self, ending: &str, dims: &[usize], values: &[f32]) -> Result<()> {
        let path = self.path(ending);
        npy::save(&path, dims, values)?;
        self.written.push(path);
        Ok(())
    }

    /// What was made: the numbers and the names for scripts, the names for people.
    pub fn report(self, seed: u64, weights: &Weights, mut numbers: Value) -> Report {
        let names: Vec<String> = self.written.iter().map(|p| p.display().to_string()).collect();
        numbers["verb"] = json!(self.verb);
        numbers["model"] = json!(weights.model);
        numbers["seed"] = json!(seed);
        numbers["files"] = json!(self.written);
        Report { json: numbers, text: names.join("\n") }
    }
}

/// # Errors
/// When there is nothing to show, or too much; the error names the flags.
pub fn check_count(flags: &str, count: usize) -> Result<()> {
    ensure!(count > 0, "{flags}: there is nothing to show");
    ensure!(count <= MOST, "{flags}: {count} pictures are too many, at most {MOST}");
    Ok(())
}

/// The values to show of pictures: the probabilities of their logits, or 0 and 1 drawn with them.
pub fn values(logits: &[f32], latents: &[Latent], bernoulli: bool) -> Vec<f32> {
    let probabilities = gallery::probabilities(logits);
    if !bernoulli {
        return probabilities;
    }
    let pictures = probabilities.chunks_exact(gallery::PIXELS).zip(latents);
    pictures.flat_map(|(picture, latent)| latent.toss(picture)).collect()
}

/// Mean of some numbers, 0 of none.
pub fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values.into_iter().fold((0.0, 0.0), |(sum, count), v| (sum + v, count + 1.0));
    if count == 0.0 { 0.0 } else { sum / count }
}

/// What Bernoulli draws of a picture leave open, in nats: 0 where every pixel is sure.
pub fn entropy(logits: &[f32]) -> f64 {
    let of = |p: f64| if p <= 0.0 || p >= 1.0 { 0.0 } else { -p * p.ln() - (1.0 - p) * (1.0 - p).ln() };
    logits.iter().map(|l| of(f64::from(gallery::probability(*l)))).sum()
}

/// Indices of images given as a list, each checked against how many there are.
///
/// # Errors
/// An index that no image has; the error names the flag.
pub fn check_indices(flag: &str, indices: &[usize], split: &Split) -> Result<()> {
    match indices.iter().find(|i| **i >= split.len()) {
        Some(i) => Err(anyhow!("{flag} {i}: {} has images 0 to {}", split.name, split.len() - 1)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fair_pixel_leaves_one_bit_open() {
        assert!((entropy(&[0.0, f32::NEG_INFINITY, 200.0]) - 2f64.ln()).abs() < 1e-6);
        assert_eq!((mean([1.0, 2.0]), mean([])), (1.5, 0.0));
    }
}
