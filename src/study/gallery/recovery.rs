//! Damage and recovery (the report's figure 5).
//!
//! A picture is grown, then a square of its cells is set to zero and the automaton takes more steps. Damage may be repeated. The
//! module also measures how much of the picture comes back.

use anyhow::Result;
use serde::Serialize;

use super::{Latent, PIXELS, arguments, batch_size, compile_growth, log_likelihood, probability};
use crate::engine::array::Array;
use crate::engine::shape::{DType, Shape};
use crate::error::valid;
use crate::model::GRID_SIDE;
use crate::model::grow::{self, Grids, first_channels};
use crate::study::eval::Bound;
use crate::study::session::{Session, SessionProgram};

/// The damage to a grown picture: a square of cells is set to zero, once or several times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Side of the square, in cells.
    pub side: usize,
    /// First row and column of the square. `None`: drawn for each picture and each damage.
    pub at: Option<(usize, usize)>,
    /// Number of damages. A fixed number of steps follows each.
    pub count: usize,
}

impl Damage {
    /// Checks the fields.
    ///
    /// # Errors
    /// When the square is not inside the grid, or the number of damages is out of range. The error names the option.
    pub fn check(&self) -> Result<()> {
        valid!(
            (1..=GRID_SIDE).contains(&self.side),
            "sizes",
            "{}: a square of 1 to {GRID_SIDE} cells fits the grid",
            self.side
        );
        let (row, column) = self.at.unwrap_or((0, 0));
        valid!(
            row.max(column) + self.side <= GRID_SIDE,
            "at",
            "{row},{column}: a square of {} cells from there leaves the grid of {GRID_SIDE}",
            self.side
        );
        valid!((1..=1000).contains(&self.count), "damages", "{}: it must be from 1 to 1000", self.count);
        Ok(())
    }

    /// Returns the corner of each damage of a picture. As in the report's code, each damage splits the picture's key with
    /// `key, sub = split(key)` and draws the corner with `sub`.
    fn corners(&self, latent: &Latent) -> Vec<[i32; 2]> {
        let positions = grow::damage_corners(self.side, GRID_SIDE) as i32;
        let mut key = latent.key;
        let draw = |_| {
            let [next, sub] = key.split2();
            key = next;
            match self.at {
                Some((row, column)) => [row as i32, column as i32],
                None => {
                    let corner = sub.randint(2, 0, positions);
                    [corner[0], corner[1]]
                }
            }
        };
        (0..self.count).map(draw).collect()
    }
}

/// Checks the number of steps after each damage.
///
/// # Errors
/// When it is 0 or more than 10,000.
pub fn check_steps(steps: usize) -> Result<()> {
    valid!((1..=10_000).contains(&steps), "steps", "{steps}: it must be from 1 to 10000");
    Ok(())
}

/// The pictures of one latent over time, as logits: the stages of its growth, then for each damage the damaged picture and the
/// picture after each step.
pub struct Trajectory<'a> {
    growth: &'a [f32],
    /// The batch size: the distance between two pictures of one latent.
    stride: usize,
    /// The latent's index in the batch.
    index: usize,
    segments: &'a [Vec<f32>],
    steps: usize,
}

impl<'a> Trajectory<'a> {
    /// Returns the number of stages of growth.
    pub fn stages(&self) -> usize {
        self.growth.len() / (self.stride * PIXELS)
    }

    /// Returns the picture at a stage of the growth.
    pub fn at_stage(&self, stage: usize) -> &'a [f32] {
        &self.growth[(stage * self.stride + self.index) * PIXELS..][..PIXELS]
    }

    /// Returns the picture before any damage.
    pub fn original(&self) -> &'a [f32] {
        self.at_stage(self.stages() - 1)
    }

    /// Returns the picture `step` steps after a damage, counted from 0.
    pub fn after(&self, damage: usize, step: usize) -> &'a [f32] {
        &self.segments[damage][(step * self.stride + self.index) * PIXELS..][..PIXELS]
    }

    /// Returns all pictures in order of time.
    pub fn all(&self) -> Vec<&'a [f32]> {
        let growth = (0..self.stages()).map(|stage| self.at_stage(stage));
        let segments = (0..self.segments.len()).flat_map(|d| (0..=self.steps).map(move |s| (d, s)));
        growth.chain(segments.map(|(d, s)| self.after(d, s))).collect()
    }
}

/// The compiled programs: one for the growth, and one for a damage with the steps after it.
pub struct Recovery<'s> {
    grow: SessionProgram<'s>,
    segment: SessionProgram<'s>,
    batch: usize,
    steps: usize,
}

impl<'s> Recovery<'s> {
    /// Compiles the programs for a number of pictures and of steps after each damage.
    ///
    /// # Errors
    /// When the model has no automaton, or a number is out of range.
    pub fn new(session: &'s Session, pictures: usize, steps: usize) -> Result<Recovery<'s>> {
        check_steps(steps)?;
        let (batch, model) = (batch_size(pictures)?, &session.model);
        let automaton = super::automaton(model)?;
        let channels = model.likelihood.outputs().channels;
        let grow = compile_growth(session, batch)?;
        let segment = session.compile("recover", |g, params| {
            let cells = g.input("cells", &Shape::f32(&[batch, GRID_SIDE, GRID_SIDE, model.latent]));
            let keys = g.input("keys", &Shape::u32(&[batch, 2]));
            let corners = g.input("corners", &Shape::s32(&[batch, 2]));
            let side = g.input("side", &Shape::new(DType::S32, &[]));
            let damaged = grow::damage_at(cells, corners, side);
            let grids = Grids { cells: damaged, keys };
            let (grids, logits) = automaton
                .automaton(params)
                .watched(grids, steps, |cells| vec![first_channels(cells, channels)]);
            let outputs = [
                ("cells", grids.cells),
                ("keys", grids.keys),
                ("damaged", first_channels(damaged, channels)),
                ("course", logits[0]),
            ];
            outputs.map(|(name, sym)| (name.to_string(), sym)).to_vec()
        })?;
        Ok(Recovery { grow, segment, batch, steps })
    }

    /// Runs every damage on every latent and calls `each(damage, latent, trajectory)` with the indices of both. A latent grows
    /// once, and each damage starts from its grown picture.
    ///
    /// # Errors
    /// When a damage is invalid, the device fails, or `each` returns an error.
    pub fn run(
        &self,
        latents: &[Latent],
        damages: &[Damage],
        mut each: impl FnMut(usize, usize, &Trajectory<'_>) -> Result<()>,
    ) -> Result<()> {
        for damage in damages {
            damage.check()?;
        }
        for (part, rows) in latents.chunks(self.batch).enumerate() {
            let grown = self.grow.call(&arguments(rows, self.batch))?;
            let growth = grown[2].to_vec::<f32>();
            for (d, damage) in damages.iter().enumerate() {
                let segments = self.segments(rows, damage, &grown)?;
                for index in 0..rows.len() {
                    let (stride, steps) = (self.batch, self.steps);
                    let trajectory =
                        Trajectory { growth: &growth, stride, index, segments: &segments, steps };
                    each(d, part * self.batch + index, &trajectory)?;
                }
            }
        }
        Ok(())
    }

    /// Returns the pictures after each damage: the damaged ones, then those after each step.
    fn segments(&self, rows: &[Latent], damage: &Damage, grown: &[Array]) -> Result<Vec<Vec<f32>>> {
        let corners: Vec<Vec<[i32; 2]>> = rows.iter().map(|latent| damage.corners(latent)).collect();
        let mut state = [grown[0].clone(), grown[1].clone()];
        let mut segments = Vec::new();
        let corners_of = |i: usize| {
            let row = |r: usize| corners[r.min(rows.len() - 1)][i];
            Array::new(&[self.batch, 2], &(0..self.batch).flat_map(row).collect::<Vec<i32>>())
        };
        for corners in (0..damage.count).map(corners_of) {
            let [cells, keys] = state;
            let results = self.segment.call(&[cells, keys, corners, Array::scalar(damage.side as i32)])?;
            let mut pictures = results[2].to_vec::<f32>();
            results[3].with_elements(|logits: &[f32]| pictures.extend_from_slice(logits));
            segments.push(pictures);
            state = [results[0].clone(), results[1].clone()];
        }
        Ok(segments)
    }
}

/// Reports for each pixel whether it is more likely 1 than 0.
fn likely_ones(logits: &[f32]) -> Vec<bool> {
    logits.iter().map(|l| probability(*l) > 0.5).collect()
}

/// Returns a picture's most likely image, of zeros and ones.
pub fn most_likely(logits: &[f32]) -> Vec<f32> {
    likely_ones(logits).into_iter().map(|one| f32::from(u8::from(one))).collect()
}

/// Returns the intersection over union of two sets of pixels: those that are 1 in an image, and those that are more likely 1 than 0
/// in a picture. 1 if both sets are empty.
pub fn iou(image: &[f32], logits: &[f32]) -> f64 {
    let (mut both, mut either) = (0, 0);
    for (pixel, likely) in image.iter().map(|p| *p > 0.5).zip(likely_ones(logits)) {
        both += usize::from(pixel && likely);
        either += usize::from(pixel || likely);
    }
    if either == 0 { 1.0 } else { both as f64 / either as f64 }
}

/// How similar pictures are to their images at one moment of the recovery.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Side of the damaged square, in cells.
    pub side: usize,
    /// Number of damages so far. 0: the grown picture, before any damage.
    pub damage: usize,
    /// Steps since the last damage. 0 for the grown picture.
    pub step: usize,
    /// Intersection over union, mean and standard error over pictures.
    pub iou: Bound,
    /// Log-likelihood of the image in nats, mean and standard error over pictures.
    pub log_likelihood: Bound,
    /// (now − damaged) / (original − damaged), each a mean IoU over pictures. `None` if the damage did not change the mean.
    pub iou_regained: Option<f64>,
    /// The share regained, computed from the log-likelihood.
    pub log_likelihood_regained: Option<f64>,
}

/// Accumulates the similarities for one damage.
pub struct RecoveryStatistics {
    damage: Damage,
    steps: usize,
    /// IoU and log-likelihood by moment and picture. The first moment is the original picture.
    values: Vec<[Vec<f32>; 2]>,
}

impl RecoveryStatistics {
    /// Returns empty statistics for a damage and the number of steps after it.
    pub fn new(damage: Damage, steps: usize) -> RecoveryStatistics {
        RecoveryStatistics { damage, steps, values: vec![Default::default(); 1 + damage.count * (steps + 1)] }
    }

    /// Compares all pictures of a trajectory, from the original on, with an image.
    pub fn add(&mut self, image: &[f32], trajectory: &Trajectory<'_>) {
        let steps = self.steps;
        let later = (0..self.damage.count).flat_map(|d| (0..=steps).map(move |s| trajectory.after(d, s)));
        for (values, picture) in self.values.iter_mut().zip([trajectory.original()].into_iter().chain(later))
        {
            values[0].push(iou(image, picture) as f32);
            values[1].push(log_likelihood(image, picture) as f32);
        }
    }

    /// Returns a point for each moment.
    ///
    /// # Errors
    /// When no picture was added.
    pub fn points(&self) -> Result<Vec<Point>> {
        let means: Vec<[Bound; 2]> = self
            .values
            .iter()
            .map(|[iou, likelihood]| Ok([Bound::from_values(iou)?, Bound::from_values(likelihood)?]))
            .collect::<Result<_>>()?;
        let moment = |damage: usize, step: usize| match damage {
            0 => 0,
            _ => 1 + (damage - 1) * (self.steps + 1) + step,
        };
        let point = |damage: usize, step: usize| {
            let now = means[moment(damage, step)];
            let regained = |i: usize| {
                let (damaged, original) = (means[moment(damage, 0)][i].mean, means[0][i].mean);
                let share = (now[i].mean - damaged) / (original - damaged);
                (damage > 0 && share.is_finite()).then_some(share)
            };
            Point {
                side: self.damage.side,
                damage,
                step,
                iou: now[0],
                log_likelihood: now[1],
                iou_regained: regained(0),
                log_likelihood_regained: regained(1),
            }
        };
        let later = (1..=self.damage.count).flat_map(|d| (0..=self.steps).map(move |s| (d, s)));
        Ok([(0, 0)].into_iter().chain(later).map(|(d, s)| point(d, s)).collect())
    }
}

/// Formats points as CSV with a header line. An undefined value is an empty field.
pub fn csv(points: &[Point]) -> String {
    let mut text = String::from(
        "size,damages,steps,iou,iou_stderr,log_likelihood,log_likelihood_stderr,iou_regained,log_likelihood_regained\n",
    );
    for p in points {
        let share = |s: Option<f64>| s.map_or(String::new(), |s| s.to_string());
        text += &format!(
            "{},{},{},{},{},{},{},{},{}\n",
            p.side,
            p.damage,
            p.step,
            p.iou.mean,
            share(p.iou.stderr),
            p.log_likelihood.mean,
            share(p.log_likelihood.stderr),
            share(p.iou_regained),
            share(p.log_likelihood_regained),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::random::Key;

    #[test]
    fn corners_follow_the_reports_keys_unless_a_corner_is_given() {
        let latent = Latent { z: vec![], key: Key::new(7) };
        let damage = Damage { side: 16, at: None, count: 2 };
        let [next, sub] = Key::new(7).split2();
        let expected = [sub.randint(2, 0, 16), next.split2()[1].randint(2, 0, 16)];
        assert_eq!(damage.corners(&latent).concat(), expected.concat());
        let fixed = Damage { at: Some((3, 5)), ..damage };
        assert_eq!(fixed.corners(&latent), [[3, 5], [3, 5]]);
        assert!(fixed.check().is_ok());
        assert!(Damage { at: Some((17, 0)), ..damage }.check().is_err());
        assert!(Damage { side: 33, ..damage }.check().is_err());
        assert_eq!(Damage { side: 32, ..damage }.corners(&latent), [[0, 0], [0, 0]]);
    }

    #[test]
    fn overlap_counts_pixels_above_one_half() {
        assert_eq!(iou(&[1.0, 1.0, 0.0, 0.0], &[3.0, -1.0, 0.1, f32::NEG_INFINITY]), 1.0 / 3.0);
        assert_eq!(iou(&[0.0; 2], &[-1.0; 2]), 1.0);
    }

    /// A picture loses four of its eight pixels and regains two of them.
    #[test]
    fn the_regained_share_is_relative_to_the_loss() {
        let picture =
            |ones: usize| (0..PIXELS).map(|i| if i < ones { 9.0 } else { -9.0 }).collect::<Vec<f32>>();
        let growth = [picture(0), picture(8)].concat();
        let segments = [[picture(4), picture(6)].concat(), [picture(8), picture(8)].concat()];
        let trajectory = Trajectory { growth: &growth, stride: 1, index: 0, segments: &segments, steps: 1 };
        assert_eq!((trajectory.stages(), trajectory.all().len()), (2, 6));
        let mut statistics = RecoveryStatistics::new(Damage { side: 2, at: None, count: 2 }, 1);
        assert!(statistics.points().is_err());
        statistics.add(&most_likely(trajectory.original()), &trajectory);
        let points = statistics.points().unwrap();
        let ious: Vec<f64> = points.iter().map(|p| p.iou.mean).collect();
        assert_eq!(ious, [1.0, 0.5, 0.75, 1.0, 1.0]);
        let shares: Vec<Option<f64>> = points.iter().map(|p| p.iou_regained).collect();
        assert_eq!(shares, [None, Some(0.0), Some(0.5), None, None]);
        let share = points[2].log_likelihood_regained.unwrap();
        assert!((share - 0.5).abs() < 1e-6, "{share}");
        let csv = csv(&points);
        assert_eq!(csv.lines().count(), 6);
        assert!(csv.lines().nth(1).unwrap().starts_with("2,0,0,1,,") && csv.ends_with(",,\n"));
    }
}
