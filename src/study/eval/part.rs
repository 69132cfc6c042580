//! Divides an evaluation into parts, each a file.
//!
//! The jobs of a job array each evaluate one shard of the images. Merging the parts gives the same numbers as evaluating all images
//! at once, bit for bit.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

use super::Scores;
use super::spread::Spread;
use crate::error::{Error, Tag};
use crate::files;

/// Identifies an evaluation: model, weights, images, samples and seeds. All parts of an evaluation have the same task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// The model's description, in the caller's format.
    #[serde(deserialize_with = "crate::files::description")]
    pub model: serde_json::Value,
    /// Checksum of the weights.
    pub weights: String,
    /// Name and checksum of the images.
    pub data: String,
    /// Checksum of the pixels.
    pub pixels: String,
    /// Number of images in all parts.
    pub images: usize,
    /// Latent samples per image.
    pub samples: usize,
    /// The seeds. All images are evaluated once with each.
    pub seeds: Vec<u64>,
    /// Images per device call. Affects the last bits of the scores.
    pub batch_size: usize,
    /// Number of devices that share each call.
    pub replicas: usize,
}

/// A shard of the images: its index and the number of shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Index of the shard, from 0.
    pub index: usize,
    /// Number of shards.
    pub of: usize,
}

impl Shard {
    /// The only shard of an evaluation that is not sharded.
    pub const WHOLE: Shard = Shard { index: 0, of: 1 };

    /// Returns the range of this shard's images. It consists of whole batches, so that every device call is also one of the
    /// unsharded evaluation.
    pub fn range(self, images: usize, batch: usize) -> Range<usize> {
        let batches = images.div_ceil(batch.max(1));
        let start = |i: usize| (batches * i / self.of * batch).min(images);
        start(self.index)..start(self.index + 1)
    }
}

impl FromStr for Shard {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Shard> {
        let parsed = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        let (index, of): (usize, usize) =
            parsed.with_context(|| format!("expected I/N such as 0/8, got {text:?}"))?;
        ensure!(index < of, "shards of {text} are counted from 0 to {}", of.saturating_sub(1));
        ensure!(of <= MOST_SHARDS, "{of} shards are too many");
        Ok(Shard { index, of })
    }
}

/// The scores of one seed's samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draws {
    /// The importance-weighted bound of each image, in nats.
    pub iwelbo: Vec<f32>,
    /// The mean over the samples of log p(x | z), for each image, in nats.
    pub reconstruction: Vec<f32>,
}

/// The scores of a shard's images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Version of the file format.
    pub version: u32,
    /// Identifies the evaluation.
    pub task: Task,
    /// The shard of images that it covers.
    pub shard: Shard,
    /// Evaluation time in seconds.
    pub seconds: f64,
    /// The scores of each seed.
    pub draws: Vec<Draws>,
    /// KL(q(z | x) ‖ p(z)) of each image, in nats.
    pub kl: Vec<f32>,
    /// How the posterior means vary over the images.
    pub spread: Spread,
    /// Checksum of the file without it. Files of older versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crc: Option<u32>,
}

const VERSION: u32 = 1;
/// Shards of one evaluation at most.
const MOST_SHARDS: usize = 1 << 20;

impl Part {
    /// Creates a part from the scores of a shard, one for each seed.
    ///
    /// # Errors
    /// When a score is not finite. The error names the image.
    pub fn new(task: Task, shard: Shard, scores: Vec<Scores>, seconds: f64) -> Result<Part> {
        let from = shard.range(task.images, task.batch_size).start;
        for (seed, scores) in task.seeds.iter().zip(&scores) {
            if let Some(i) = scores.iwelbo.iter().position(|v| !v.is_finite()) {
                bail!("image {} has an IWELBO of {} (seed {seed})", from + i, scores.iwelbo[i]);
            }
        }
        let (kl, spread) = scores.first().map(|s| (s.kl.clone(), s.spread.clone())).unwrap_or_default();
        let draws = scores
            .into_iter()
            .map(|s| Draws { iwelbo: s.iwelbo, reconstruction: s.reconstruction })
            .collect();
        Ok(Part { version: VERSION, task, shard, seconds, draws, kl, spread, crc: None })
    }

    /// Returns the number of images.
    pub fn images(&self) -> usize {
        self.kl.len()
    }

    /// Writes the part to a file. The file appears complete or not at all.
    ///
    /// # Errors
    /// When it cannot be written. The error names it.
    pub fn save(&self, path: &Path) -> Result<()> {
        let whole = Part { crc: Some(self.checksum()?), ..self.clone() };
        files::write_bytes(path, serde_json::to_string(&whole)? + "\n")
    }

    /// Reads a file that [`Part::save`] wrote.
    ///
    /// # Errors
    /// When the file is not a part of an evaluation, or its lists have wrong lengths. The error names the file.
    pub fn load(path: &Path) -> Result<Part> {
        let name = path.display();
        let bytes = fs::read(path).with_context(|| format!("cannot read {name}"))?;
        let part: Part = serde_json::from_slice(&bytes)
            .with_context(|| format!("{name} is not a part of an evaluation"))?;
        part.check().with_context(|| format!("{name} is damaged"))?;
        Ok(part)
    }

    /// Returns the checksum of the text without a checksum.
    fn checksum(&self) -> Result<u32> {
        let text = serde_json::to_string(&Part { crc: None, ..self.clone() })?;
        Ok(crc32fast::hash(text.as_bytes()))
    }

    fn check(&self) -> Result<()> {
        let same = self.crc.map_or(Ok(true), |crc| Ok::<_, anyhow::Error>(crc == self.checksum()?))?;
        ensure!(same, "its content is not that of its checksum");
        ensure!(self.version == VERSION, "version {}, this program reads {VERSION}", self.version);
        let Shard { index, of } = self.shard;
        ensure!(index < of && of <= MOST_SHARDS, "shard {index} of {of}");
        let Task { images, batch_size, .. } = self.task;
        ensure!(batch_size > 0, "batches of 0 images");
        // Their products with the number of shards are numbers still.
        ensure!(images.max(batch_size) <= 1 << 40, "{images} images in batches of {batch_size}");
        let images = self.shard.range(self.task.images, self.task.batch_size).len();
        ensure!(self.draws.len() == self.task.seeds.len(), "{} seeds' scores", self.draws.len());
        let lists = self.draws.iter().flat_map(|d| [&d.iwelbo, &d.reconstruction]).chain([&self.kl]);
        for list in lists {
            ensure!(list.len() == images, "scores of {} images, expected {images}", list.len());
        }
        Ok(())
    }
}

/// Merges the files of all parts, in any order, into the whole evaluation.
///
/// # Errors
/// [`Error::Data`] when a part is missing or given twice, or parts belong to different evaluations. The error names the files
/// and the difference.
pub fn merge(files: &[PathBuf]) -> Result<Part> {
    merged(files).tag(Error::Data)
}

fn merged(files: &[PathBuf]) -> Result<Part> {
    let first = files.first().context("there are no files to merge")?;
    let mut parts = Vec::new();
    for file in files {
        parts.push((file, Part::load(file)?));
    }
    let (of, task) = (parts[0].1.shard.of, parts[0].1.task.clone());
    for (file, part) in &parts {
        let differing = differences(&task, &part.task)?;
        ensure!(
            differing.is_empty(),
            "{} and {} are of different evaluations: {}",
            first.display(),
            file.display(),
            differing.join("; ")
        );
        ensure!(
            part.shard.of == of,
            "{} is of {of} shards and {} of {}",
            first.display(),
            file.display(),
            part.shard.of
        );
    }
    parts.sort_by_key(|(_, part)| part.shard.index);
    for pair in parts.windows(2) {
        let ((a, part), (b, other)) = (&pair[0], &pair[1]);
        let index = part.shard.index;
        ensure!(
            index != other.shard.index,
            "{} and {} are both shard {index} of {of}",
            a.display(),
            b.display()
        );
    }
    // The number of shards is a file's word: no more of them are listed than people read.
    const SHOWN: usize = 20;
    let mut missing: Vec<String> = (0..of)
        .filter(|i| parts.iter().all(|(_, part)| part.shard.index != *i))
        .map(|i| format!("{i}/{of}"))
        .take(SHOWN + 1)
        .collect();
    if let Some(more) = missing.get_mut(SHOWN) {
        *more = "and more".into();
    }
    ensure!(missing.is_empty(), "shards are missing: {}", missing.join(", "));
    join(task, parts.into_iter().map(|(_, part)| part))
}

/// Joins parts, which are in the order of their shards.
fn join(task: Task, parts: impl Iterator<Item = Part>) -> Result<Part> {
    let empty = Draws { iwelbo: vec![], reconstruction: vec![] };
    let mut whole = Part {
        version: VERSION,
        shard: Shard::WHOLE,
        seconds: 0.0,
        draws: vec![empty; task.seeds.len()],
        kl: vec![],
        spread: Spread::default(),
        crc: None,
        task,
    };
    for part in parts {
        whole.seconds += part.seconds;
        whole.kl.extend(part.kl);
        whole.spread.merge(&part.spread)?;
        for (own, draws) in whole.draws.iter_mut().zip(part.draws) {
            own.iwelbo.extend(draws.iwelbo);
            own.reconstruction.extend(draws.reconstruction);
        }
    }
    Ok(whole)
}

/// Lists the fields that differ, with both values.
fn differences(a: &Task, b: &Task) -> Result<Vec<String>> {
    let (a, b) = (serde_json::to_value(a)?, serde_json::to_value(b)?);
    let fields = a.as_object().ok_or_else(|| anyhow!("a task has fields"))?;
    let differing = fields.iter().filter(|(name, value)| b[name.as_str()] != **value);
    Ok(differing.map(|(name, value)| format!("{name} {value} and {}", b[name.as_str()])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_whole_batches_and_cover_each_image_once() {
        for (images, batch, of) in [(21, 4, 3), (10_000, 32, 7), (3, 4, 2), (0, 4, 2), (64, 8, 8)] {
            let mut next = 0;
            for index in 0..of {
                let range = Shard { index, of }.range(images, batch);
                assert_eq!(range.start, next);
                assert!(range.start.is_multiple_of(batch) || range.is_empty());
                next = range.end;
            }
            assert_eq!(next, images);
        }
    }

    #[test]
    fn a_shard_is_parsed() {
        assert_eq!("2/5".parse::<Shard>().unwrap(), Shard { index: 2, of: 5 });
        for wrong in ["", "3", "3/3", "1/0", "-1/2", "a/b", "1/9999999999"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_of_more_shards_or_images_than_there_can_be_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part.json");
        let none = r#"{"version":1,"task":{"model":0,"weights":"","data":"","pixels":"","images":0,"samples":1,
            "seeds":[],"batch_size":1,"replicas":1},"shard":{"index":3,"of":8},"seconds":0,"draws":[],"kl":[],
            "spread":{"images":0,"sums":[],"squares":[]}}"#;
        let refused = |from: &str, to: &str| {
            fs::write(&path, none.replace(from, to)).unwrap();
            format!("{:#}", merge(std::slice::from_ref(&path)).unwrap_err())
        };
        for (from, to) in [
            ("\"of\":8", "\"of\":9223372036854775807"),
            ("\"images\":0,\"samples", "\"images\":18446744073709551615,\"samples"),
            ("\"batch_size\":1", "\"batch_size\":18446744073709551615"),
        ] {
            assert!(refused(from, to).contains("is damaged"), "{to}: {}", refused(from, to));
        }
        let missing = refused("\"of\":8", "\"of\":1000000");
        assert!(missing.contains("0/1000000, 1/1000000") && missing.ends_with("and more"), "{missing}");
    }

    #[test]
    fn floats_survive_json_bit_for_bit() {
        let values: Vec<f32> = crate::engine::random::Key::new(5)
            .bits32(4000)
            .into_iter()
            .map(f32::from_bits)
            .filter(|v| v.is_finite())
            .collect();
        let text = serde_json::to_string(&values).unwrap();
        let read: Vec<f32> = serde_json::from_slice(text.as_bytes()).unwrap();
        assert_eq!(
            values.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
            read.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        );
    }
}
