//! Training curves of runs, from their metrics.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};

use crate::study::figure::plots::{Frame, Line, lines};
use crate::train::metrics;

/// Points of a loss curve at most: each is the mean of as many steps.
const POINTS: usize = 200;

/// A run's losses by step, and test bounds where they were due.
pub struct Course {
    pub name: String,
    losses: Vec<f64>,
    bounds: Vec<(f64, f64)>,
}

impl Course {
    /// # Errors
    /// When the run has no metrics, or a line is none; the error names the file.
    pub fn read(name: String, run: &Path) -> Result<Course> {
        let path = run.join("metrics.jsonl");
        let at = || format!("cannot read {}", path.display());
        let mut course = Course { name, losses: Vec::new(), bounds: Vec::new() };
        for (number, line) in BufReader::new(File::open(&path).with_context(at)?).lines().enumerate() {
            let text = line.with_context(at)?;
            let wrong = || format!("{}: line {} is no step's", path.display(), number + 1);
            let line: metrics::Line = serde_json::from_str(&text).with_context(wrong)?;
            course.losses.push(f64::from(line.loss));
            course.bounds.extend(line.scores.get("test_iwelbo").map(|bound| (line.step as f64, *bound)));
        }
        Ok(course)
    }

    pub fn steps(&self) -> usize {
        self.losses.len()
    }

    /// Means of stretches of steps. The first losses and single leaps would leave no room for the rest: the line begins after
    /// the last point of its first tenth that lies more than twice as high as it ends, and is broken at such points later.
    fn loss(&self) -> Line {
        let stretch = self.losses.len().div_ceil(POINTS).max(1);
        let mean = |(i, part): (usize, &[f64])| {
            let n = part.len() as f64;
            ((i * stretch) as f64 + (n + 1.0) / 2.0, part.iter().sum::<f64>() / n)
        };
        let points: Vec<(f64, f64)> = self.losses.chunks(stretch).enumerate().map(mean).collect();
        let limit = 2.0 * points.last().map_or(0.0, |p| p.1).max(1.0);
        let begin = points[..points.len() / 10].iter().rposition(|p| p.1 > limit).map_or(0, |i| i + 1);
        let seen = |(i, p): (usize, (f64, f64))| if i < begin || p.1 > limit { (p.0, f64::NAN) } else { p };
        let points = points.into_iter().enumerate().map(seen).collect();
        Line { name: self.name.clone(), points, band: vec![] }
    }

    fn bounds(&self) -> Line {
        Line { name: self.name.clone(), points: self.bounds.clone(), band: vec![] }
    }
}

/// A picture's file.
type Png = Vec<u8>;

/// The plot of the losses, if there is a step, and of the test bounds, if there are two of one run.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn plots(courses: &[Course]) -> Result<[Option<Png>; 2]> {
    let plot = |title: &str, unit: &str, all: Vec<Line>, fewest: usize| {
        let all: Vec<Line> = all.into_iter().filter(|l| l.points.len() >= fewest).collect();
        let frame = Frame::new(title, "gradient steps", unit);
        (!all.is_empty()).then(|| lines(&frame, &all)).transpose()
    };
    let loss = plot("Training loss", "nats", courses.iter().map(Course::loss).collect(), 2)?;
    let bounds = plot("Test IWELBO", "nats", courses.iter().map(Course::bounds).collect(), 2)?;
    Ok([loss, bounds])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_means_of_stretches_without_what_is_far_above_the_end() {
        let losses: Vec<f64> = (0..400)
            .map(|i| if [0, 1, 4, 5, 99].contains(&i) { 500.0 } else { 100.0 + f64::from(i % 2) })
            .collect();
        let line = Course { name: "x".into(), losses, bounds: vec![] }.loss();
        assert_eq!((line.points.len(), line.points[199]), (200, (399.5, 100.5)));
        assert!(line.points[..3].iter().all(|p| p.1.is_nan()) && line.points[3] == (7.5, 100.5));
        assert!(line.points[49].1.is_nan() && !line.points[50].1.is_nan());
    }
}
