//! The results of single runs, kept as JSON beside each run's folder, and their statistics.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Tag};
use crate::files;

/// A run that was trained, and evaluated unless training has diverged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    pub seed: u64,
    /// The run's folder.
    pub run: PathBuf,
    /// The words of the command line that began or resumed it last.
    pub command: Vec<String>,
    /// `None` before the first part of the training has ended.
    pub trained: Option<Trained>,
    /// Whether training has ended before its last step.
    pub stopped: bool,
    /// The step whose loss or gradient was not finite, if there was one.
    pub not_finite: Option<usize>,
    pub evaluation: Option<Evaluation>,
    /// The run whose weights this one began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<Box<Finished>>,
}

/// What `vnca train --json` reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    pub steps: usize,
    /// Seconds with reading the images and compiling.
    pub seconds: f64,
    /// `None` if there was no step left.
    pub ms_per_step: Option<f64>,
    pub device: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The words of its command line.
    pub command: Vec<String>,
    /// What `vnca eval --json` reports.
    pub summary: Value,
}

impl Finished {
    /// Returns a run that is still to do.
    pub fn new(seed: u64, run: PathBuf) -> Finished {
        Finished {
            seed,
            run,
            command: vec![],
            trained: None,
            stopped: false,
            not_finite: None,
            evaluation: None,
            first: None,
        }
    }

    /// Reads a file that [`Finished::save`] wrote; `None` if it does not exist.
    ///
    /// # Errors
    /// When the file cannot be read or is another one.
    pub fn read(path: &Path) -> Result<Option<Finished>> {
        let text = match fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let problem =
            || format!("{} is not the result of a run: delete it to repeat the run", path.display());
        serde_json::from_slice(&text).with_context(problem).tag(Error::Data)
    }

    /// Writes the file, completely or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        files::write_bytes(path, serde_json::to_string_pretty(self)? + "\n")
    }

    /// Adds a part of the training, which may have been resumed.
    pub fn add(&mut self, part: Trained, stopped: bool) {
        let before = self.trained.as_ref().map_or(0.0, |before| before.seconds);
        self.trained = Some(Trained { seconds: before + part.seconds, ..part });
        self.stopped = stopped;
    }

    /// Reports whether there is nothing left to train.
    pub fn is_done(&self) -> bool {
        self.trained.is_some() && !self.stopped || self.not_finite.is_some()
    }

    /// Reports whether it was evaluated by this command line.
    pub fn has_evaluated(&self, words: &[String]) -> bool {
        self.evaluation.as_ref().is_some_and(|evaluation| evaluation.command == words)
    }

    /// Returns the seconds of training, with those of the run before.
    pub fn seconds(&self) -> Option<f64> {
        let before = self.first.as_ref().map_or(Some(0.0), |first| first.seconds());
        Some(self.trained.as_ref()?.seconds + before?)
    }

    /// Returns the command lines of the training and the evaluation.
    pub fn commands(&self) -> Vec<&[String]> {
        let before = self.first.iter().flat_map(|first| first.commands());
        let evaluated = self.evaluation.iter().map(|evaluation| evaluation.command.as_slice());
        before.chain([self.command.as_slice()]).chain(evaluated).filter(|words| !words.is_empty()).collect()
    }

    /// Returns a number of the evaluation.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.evaluation.as_ref()?.summary[name].as_f64()
    }
}

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub mean: f64,
    /// `None` for a single value.
    pub stderr: Option<f64>,
}

impl Estimate {
    /// Returns the mean of independent values; `None` if there are none.
    pub fn new(values: &[f64]) -> Option<Estimate> {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let stderr = (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt());
        (!values.is_empty()).then_some(Estimate { mean, stderr })
    }

    /// Formats the mean and its standard error.
    pub fn text(&self) -> String {
        let sign = |text: String| text.replace('-', "\u{2212}");
        let mean = sign(format!("{:.2}", self.mean));
        self.stderr.map_or(mean.clone(), |stderr| format!("{mean} \u{b1} {stderr:.2}"))
    }
}

/// Returns the mean difference of an evaluated number between runs and the runs of `base` with the same seeds.
pub fn difference(name: &str, runs: &[Finished], base: &[Finished]) -> Option<Estimate> {
    let of_seed = |one: &Finished| {
        let other = base.iter().find(|other| other.seed == one.seed)?;
        Some(one.number(name)? - other.number(name)?)
    };
    Estimate::new(&runs.iter().filter_map(of_seed).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(seed: u64, iwelbo: f64) -> Finished {
        let evaluation = Evaluation { command: vec![], summary: json!({ "iwelbo": iwelbo }) };
        Finished { evaluation: Some(evaluation), ..Finished::new(seed, PathBuf::new()) }
    }

    #[test]
    fn an_effect_is_the_mean_of_the_differences_between_equal_seeds() {
        let base = [run(0, -90.0), run(1, -100.0), run(2, -95.0)];
        let runs = [run(2, -93.0), run(0, -89.0), run(1, -97.0), run(7, -1.0)];
        let effect = difference("iwelbo", &runs, &base).unwrap();
        // Differences of 1, 2 and 3.
        assert_eq!((effect.mean, effect.text()), (2.0, "2.00 \u{b1} 0.58".into()));
        assert_eq!(difference("iwelbo", &runs[3..], &base), None);
        assert_eq!(Estimate::new(&[-1.5]).unwrap().text(), "\u{2212}1.50");
    }

    #[test]
    fn a_result_is_read_as_it_was_written_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed-0.json");
        assert_eq!(Finished::read(&path).unwrap(), None);
        run(0, -90.0).save(&path).unwrap();
        assert_eq!(Finished::read(&path).unwrap(), Some(run(0, -90.0)));
        fs::write(&path, "{").unwrap();
        let error = format!("{:#}", Finished::read(&path).unwrap_err());
        assert!(error.contains("seed-0.json") && error.contains("delete it"), "{error}");
    }
}
