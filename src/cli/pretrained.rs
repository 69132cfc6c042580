//! Weights that come with the program: a folder with a file `NAME.safetensors` and a card `NAME.toml` for each model.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::models::Model;
use crate::engine::array::Array;
use crate::error::{Error, Tag};
use crate::nn::weights;

/// Overrides the folder of the weights.
pub const FOLDER: &str = "VNCA_PRETRAINED";

/// What is known about pretrained weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// What the model is, in a sentence.
    pub description: String,
    /// The training and test images: `glyphs`, the embedded digits, or the name of a data set.
    pub data: String,
    /// Licence of the images.
    pub licence_of_data: String,
    /// Gradient steps of the training.
    pub steps: usize,
    /// The command that trained the model.
    pub command: String,
    /// Checksum of the file of weights.
    pub sha256: String,
    /// The bound on the test images.
    pub iwelbo: Iwelbo,
    /// The model and its sizes.
    pub model: Model,
}

/// A bound on log p(x) of test images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Iwelbo {
    /// Mean, in nats.
    pub mean: f64,
    /// Standard error over images.
    pub stderr: f64,
    /// Latent samples per image.
    pub samples: usize,
    /// Number of test images.
    pub images: usize,
}

/// Returns the folder with the weights: `VNCA_PRETRAINED`, or that of the sources, or one beside the program.
///
/// # Errors
/// When there is none.
pub fn folder() -> Result<PathBuf> {
    if let Some(folder) = env::var_os(FOLDER) {
        let folder = PathBuf::from(folder);
        ensure!(folder.is_dir(), "{FOLDER}={} is no folder", folder.display());
        return Ok(folder);
    }
    let program = env::current_exe().ok();
    let beside = program.as_deref().and_then(Path::parent);
    let mut places = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("data/pretrained")];
    places.extend(beside.map(|folder| folder.join("data/pretrained")));
    places.extend(beside.map(|folder| folder.join("../data/pretrained")));
    let listed: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    places.into_iter().find(|place| place.is_dir()).ok_or_else(|| {
        anyhow!(
            "there are no pretrained weights in {}: set {FOLDER} to the folder data/pretrained of the sources",
            listed.join(", ")
        )
    })
}

/// Returns the names of the pretrained weights in a folder, in alphabetical order.
///
/// # Errors
/// When the folder cannot be read.
pub fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_card = path.extension().is_some_and(|ending| ending == "toml");
        names.extend(path.file_stem().filter(|_| is_card).map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Reads the card of pretrained weights.
///
/// # Errors
/// When there is no such name, or the card is invalid.
pub fn card(folder: &Path, name: &str) -> Result<Card> {
    let names = names(folder).tag(Error::Data)?;
    if !names.iter().any(|known| known == name) {
        let known = || -> Result<Card> {
            bail!(
                "--pretrained {name}: there is no such model; {} has {}",
                folder.display(),
                names.join(", ")
            )
        };
        return known().tag(Error::Usage);
    }
    let path = folder.join(format!("{name}.toml"));
    let read = || -> Result<Card> {
        let card: Card = toml::from_str(&fs::read_to_string(&path)?)?;
        // Its fields are no options of the command line here.
        card.model.check().map_err(|error| anyhow!("model: {error}"))?;
        Ok(card)
    };
    read().with_context(|| format!("cannot use {}", path.display())).tag(Error::Data)
}

/// Reads the card and the weights of a name.
///
/// # Errors
/// The errors of [`card`], and when the file of weights is missing or not that of the card.
pub fn load(folder: &Path, name: &str) -> Result<(Card, Vec<Array>)> {
    let card = card(folder, name)?;
    let path = folder.join(format!("{name}.safetensors"));
    let check = || -> Result<()> {
        let sum: String = Sha256::digest(fs::read(&path)?).iter().map(|byte| format!("{byte:02x}")).collect();
        ensure!(sum == card.sha256, "its sha256 is {sum}, and the card has {}: it is damaged", card.sha256);
        Ok(())
    };
    check().with_context(|| format!("cannot use {}", path.display())).tag(Error::Data)?;
    let arrays = weights::read(&path, &card.model.vae().leaves())?;
    Ok((card, arrays))
}
