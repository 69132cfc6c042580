//! Options and helpers of the commands that draw pictures: the model, the seed, the images and the output files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::run_data::ImageSource;
use super::{DeviceOptions, Report, Source, Weights, file_names};
use crate::cli::models::Model;
use crate::data::{Part, Split};
use crate::engine::npy;
use crate::error::valid;
use crate::files;
use crate::study::session::Session;

/// The largest number of pictures. More are taken for a mistake in the command line.
const MAX_PICTURES: usize = 4096;

#[derive(Debug, clap::Args)]
pub struct Common {
    #[command(flatten)]
    pub source: Source,
    /// Seed: picture i uses the i-th split of its key; 3 is the seed of the pictures during training
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub seed: u64,
    /// A folder, or the name of the .png; other files get the same name [default: figures in the run's folder, or here]
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
    /// Also write the pictures' values as .npy
    #[arg(long)]
    pub npy: bool,
    #[command(flatten)]
    pub device: DeviceOptions,
    /// Print the numbers and the files' names as JSON on stdout instead of the files' names alone
    #[arg(long)]
    pub json: bool,
}

/// The images that a command shows.
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
    /// Reads the images.
    ///
    /// # Errors
    /// When the images cannot be read.
    pub fn load(&self, weights: &Weights) -> Result<Split> {
        let part = if self.split == "train" { Part::Train } else { Part::Test };
        ImageSource::new(self.data.as_deref(), weights.data.as_ref()).split(part)
    }
}

impl Common {
    /// Reads the weights.
    ///
    /// # Errors
    /// When the weights cannot be read.
    pub fn weights(&self) -> Result<Weights> {
        self.source.load()
    }

    /// Opens the device and copies the weights to it.
    ///
    /// # Errors
    /// When the device cannot be opened.
    pub fn session(&self, weights: &Weights) -> Result<Session> {
        self.device.session(1, weights)
    }

    /// Creates the folder for a command's files.
    ///
    /// # Errors
    /// When it cannot be created, or `--out` has the ending of another kind of picture.
    pub fn files(&self, verb: &'static str) -> Result<Files> {
        let extension = self.out.as_deref().and_then(Path::extension).unwrap_or_default();
        let is_other_picture = |other: &&str| extension.eq_ignore_ascii_case(other);
        valid!(
            !["gif", "jpg", "jpeg", "svg", "pdf", "bmp", "webp"].iter().any(is_other_picture),
            "out",
            "has the ending of another kind of file: pictures are written as FILE.png, or into a folder"
        );
        let (folder, name) = match &self.out {
            Some(path) if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) => {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                (path.parent().unwrap_or(Path::new("")).to_path_buf(), name)
            }
            Some(folder) => (folder.clone(), verb.to_string()),
            None => (self.source.run.clone().unwrap_or_default().join("figures"), verb.to_string()),
        };
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Files { verb, folder, name, written: Vec::new() })
    }
}

/// The output files of a command.
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

    /// Writes a file whose name ends with `ending`, such as `.png` or `-loss.png`.
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
    /// When the number of values does not match the sizes, or the file cannot be written.
    pub fn write_npy(&mut self, ending: &str, dims: &[usize], values: &[f32]) -> Result<()> {
        let path = self.path(ending);
        npy::save(&path, dims, values)?;
        self.written.push(path);
        Ok(())
    }

    /// Returns the report. Its JSON has the numbers and the files' names, its text only the names.
    pub fn report(self, seed: u64, weights: &Weights, mut numbers: Value) -> Report {
        let names: Vec<String> = self.written.iter().map(|p| p.display().to_string()).collect();
        numbers["verb"] = json!(self.verb);
        numbers["model"] = json!(weights.model);
        numbers["seed"] = json!(seed);
        numbers["files"] = json!(file_names(&self.written));
        Report { json: numbers, text: names.join("\n") }
    }
}

/// Checks a number of pictures.
///
/// # Errors
/// When it is 0 or too large. The error names the flags.
pub fn check_count(flags: &str, count: usize) -> Result<()> {
    ensure!(count > 0, "{flags}: there is nothing to show");
    ensure!(count <= MAX_PICTURES, "{flags}: {count} pictures are too many, at most {MAX_PICTURES}");
    Ok(())
}

/// Returns the dimensions of an array of pictures, without the last one if the pictures are grey.
pub fn array_dims(count: &[usize], [height, width, channels]: [usize; 3]) -> Vec<usize> {
    let mut dims = [count, &[height, width]].concat();
    if channels > 1 {
        dims.push(channels);
    }
    dims
}

/// Returns the mean of some numbers, or 0 if there are none.
pub fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values.into_iter().fold((0.0, 0.0), |(sum, count), v| (sum + v, count + 1.0));
    if count == 0.0 { 0.0 } else { sum / count }
}

/// Returns the mean over pictures of the sum of the entropies of their pixels, in nats, given the probabilities that pixels are 1. 0 if
/// every pixel is certain. `None` if pixels are no bits.
pub fn mean_entropy(model: &Model, probabilities: &[f32], size: usize) -> Option<f64> {
    let pixel_entropy =
        |p: f64| if p <= 0.0 || p >= 1.0 { 0.0 } else { -p * p.ln() - (1.0 - p) * (1.0 - p).ln() };
    let entropy = |picture: &[f32]| picture.iter().map(|p| pixel_entropy(f64::from(*p))).sum::<f64>();
    model.likelihood.of_bits().then(|| mean(probabilities.chunks_exact(size).map(entropy)))
}

/// Checks the indices of images.
///
/// # Errors
/// When no image has an index. The error names the flag.
pub fn check_indices(flag: &str, indices: &[usize], split: &Split) -> Result<()> {
    match indices.iter().find(|i| **i >= split.len()) {
        Some(i) => Err(anyhow!("{flag} {i}: {} has images 0 to {}", split.name, split.len() - 1)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::models::Kind;

    #[test]
    fn a_fair_pixel_has_an_entropy_of_one_bit() {
        let model = Model::report(Kind::Baseline);
        assert!((mean_entropy(&model, &[0.5, 0.0, 1.0], 3).unwrap() - 2f64.ln()).abs() < 1e-6);
        assert_eq!((mean([1.0, 2.0]), mean([])), (1.5, 0.0));
    }
}
