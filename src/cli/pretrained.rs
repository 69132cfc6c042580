//! Weights that come with the program: a folder with a file `NAME.safetensors` and a card `NAME.toml` for each model.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

use super::models::Model;
use crate::data::known::Digest;
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
    /// The training and test images: `glyphs`, the embedded digits, or a data set's name in `vnca data fetch`.
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

impl Card {
    /// Parses and checks a card. Refuses unknown keys: a misspelt size would have the report's value instead.
    fn parse(text: &str) -> Result<Card> {
        let table: toml::Table = toml::from_str(text)?;
        let card: Card = toml::from_str(text)?;
        let known = toml::Table::try_from(card.model)?;
        let mut given = table["model"].as_table().into_iter().flat_map(toml::Table::keys);
        if let Some(key) = given.find(|key| !known.contains_key(*key)) {
            let known: Vec<&str> = known.keys().map(String::as_str).collect();
            bail!("model: unknown field `{key}`, expected one of {}", known.join(", "));
        }
        // The message of an invalid size names an option otherwise.
        card.model.check().map_err(|error| anyhow!("model: {error}"))?;
        Ok(card)
    }
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

impl fmt::Display for Iwelbo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Iwelbo { mean, stderr, samples, images } = self;
        write!(f, "{mean:.2} ± {stderr:.2} nats, {samples} samples, {images} test images")
    }
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
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("data/pretrained")];
    folders.extend(beside.map(|folder| folder.join("../data/pretrained")));
    folders.extend(beside.map(|folder| folder.join("data/pretrained")));
    let listed: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    folders.into_iter().find(|folder| folder.is_dir()).ok_or_else(|| {
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
        let names = if names.is_empty() { "none".to_string() } else { names.join(", ") };
        return Err(anyhow!("--pretrained {name}: there is no such model; {} has {names}", folder.display()))
            .tag(Error::Usage);
    }
    let path = folder.join(format!("{name}.toml"));
    let read = || Card::parse(&fs::read_to_string(&path)?);
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
        let found = Digest::from_file(&path)?.sha256;
        ensure!(
            found == card.sha256,
            "its sha256 is {found}, and the card has {}: it is damaged",
            card.sha256
        );
        Ok(())
    };
    check().with_context(|| format!("cannot use {}", path.display())).tag(Error::Data)?;
    let arrays = weights::read(&path, &card.model.vae().leaves())?;
    Ok((card, arrays))
}

/// Returns a table of the pretrained weights in a folder, for the documentation.
///
/// # Errors
/// The errors of [`card`].
pub fn table(folder: &Path) -> Result<String> {
    let mut rows = vec![
        "| name | model | data | steps | IWELBO | licence of the data |".to_string(),
        "| --- | --- | --- | --- | --- | --- |".to_string(),
    ];
    for name in names(folder)? {
        let Card { description, data, steps, iwelbo, licence_of_data, .. } = card(folder, &name)?;
        rows.push(format!(
            "| `{name}` | {description} | `{data}` | {steps} | {iwelbo} | {licence_of_data} |"
        ));
    }
    Ok(rows.join("\n"))
}
