//! Plots the training curves of runs from their metrics.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};

use crate::study::figure::plots::{Frame, Line, lines};
use crate::train::metrics;

/// The largest number of points of a loss curve. Each point is the mean of the same number of steps.
const POINTS: usize = 200;

/// The training curves of a run.
pub struct TrainingCurves {
    pub name: String,
    /// The steps with their losses.
    losses: Vec<(f64, f64)>,
    /// The steps with an evaluation, and the bounds on the images that were evaluated.
    bounds: Vec<(f64, f64)>,
}

impl TrainingCurves {
    /// Reads a run's metrics. The last line may be incomplete: a run that goes on is writing it, or one was killed meanwhile.
    ///
    /// # Errors
    /// When the run has no metrics, or a line is invalid. The error names the file.
    pub fn read(name: String, run: &Path) -> Result<TrainingCurves> {
        let path = run.join("metrics.jsonl");
        let context = || format!("cannot read {}", path.display());
        let mut curves = TrainingCurves { name, losses: Vec::new(), bounds: Vec::new() };
        let mut file = BufReader::new(File::open(&path).with_context(context)?);
        let mut text = String::new();
        for number in 1.. {
            text.clear();
            file.read_line(&mut text).with_context(context)?;
            if !text.ends_with('\n') {
                break;
            }
            let invalid = || format!("{}: line {number} is not the metrics of a step", path.display());
            let line: metrics::Line = serde_json::from_str(&text).with_context(invalid)?;
            let step = line.step as f64;
            curves.losses.push((step, f64::from(line.loss)));
            let scores = ["test_iwelbo", "valid_iwelbo"].into_iter().find_map(|name| line.scores.get(name));
            curves.bounds.extend(scores.copied().flatten().map(|bound| (step, bound)));
        }
        Ok(curves)
    }

    /// Returns the number of gradient steps.
    pub fn steps(&self) -> usize {
        self.losses.last().map_or(0, |(step, _)| *step as usize)
    }

    /// Returns the loss curve: means over equal intervals of steps.
    ///
    /// High losses at the start, and single spikes, would squash the rest of the curve. So points above twice the last point are
    /// left out: in the first tenth of the curve together with all points before them, later one by one.
    fn loss(&self) -> Line {
        let interval = self.losses.len().div_ceil(POINTS).max(1);
        let mean = |part: &[(f64, f64)]| {
            let sum = part.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
            (sum.0 / part.len() as f64, sum.1 / part.len() as f64)
        };
        let points: Vec<(f64, f64)> = self.losses.chunks(interval).map(mean).collect();
        let limit = 2.0 * points.last().map_or(0.0, |p| p.1).max(1.0);
        let begin = points[..points.len() / 10].iter().rposition(|p| p.1 > limit).map_or(0, |i| i + 1);
        let visible =
            |(i, p): (usize, (f64, f64))| if i < begin || p.1 > limit { (p.0, f64::NAN) } else { p };
        let points = points.into_iter().enumerate().map(visible).collect();
        Line { name: self.name.clone(), points, band: vec![] }
    }

    /// Returns the curve of test bounds.
    fn bounds(&self) -> Line {
        Line { name: self.name.clone(), points: self.bounds.clone(), band: vec![] }
    }
}

/// The bytes of a PNG file.
type Png = Vec<u8>;

/// Plots the losses and the test bounds. Runs with fewer than two points are left out, and a plot without runs is `None`.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn plots(curves: &[TrainingCurves]) -> Result<[Option<Png>; 2]> {
    let plot = |title: &str, unit: &str, all: Vec<Line>, fewest: usize| {
        let all: Vec<Line> = all.into_iter().filter(|l| l.points.len() >= fewest).collect();
        let frame = Frame::new(title, "gradient steps", unit);
        (!all.is_empty()).then(|| lines(&frame, &all)).transpose()
    };
    let loss = plot("Training loss", "nats", curves.iter().map(TrainingCurves::loss).collect(), 2)?;
    let bounds = plot("Test IWELBO", "nats", curves.iter().map(TrainingCurves::bounds).collect(), 2)?;
    Ok([loss, bounds])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_means_without_high_points() {
        let loss = |i| if [0, 1, 4, 5, 99].contains(&i) { 500.0 } else { 100.0 + f64::from(i % 2) };
        let losses = (0..400).map(|i| (f64::from(i + 1), loss(i))).collect();
        let line = TrainingCurves { name: "x".into(), losses, bounds: vec![] }.loss();
        assert_eq!((line.points.len(), line.points[199]), (200, (399.5, 100.5)));
        assert!(line.points[..3].iter().all(|p| p.1.is_nan()) && line.points[3] == (7.5, 100.5));
        assert!(line.points[49].1.is_nan() && !line.points[50].1.is_nan());
    }
}
