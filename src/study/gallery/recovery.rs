//! Damage and recovery (the report's figure 5).
//!
//! A picture is grown, then a square of its cells is set to zero and the automaton takes more steps. Damage may be repeated. The
//! module also measures how much of the picture comes back.

use anyhow::Result;
use serde::Serialize;

use super::{Latent, arguments, batch_size, compile_growth};
use crate::data::Split;
use crate::engine::array::Array;
use crate::engine::ir::Sym;
use crate::engine::shape::{DType, Shape};
use crate::error::valid;
use crate::model::grow::{self, Grids, first_channels};
use crate::model::{Frame, Vae};
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
    pub fn check(&self, frame: &Frame) -> Result<()> {
        let [rows, columns] = frame.grid;
        let most = rows.min(columns);
        valid!(
            (1..=most).contains(&self.side),
            "sizes",
            "{}: a square of 1 to {most} cells fits the grid",
            self.side
        );
        let (row, column) = self.at.unwrap_or((0, 0));
        valid!(
            row <= rows - self.side && column <= columns - self.side,
            "at",
            "{row},{column}: a square of {} cells from there leaves the grid of {rows} x {columns}",
            self.side
        );
        valid!((1..=1000).contains(&self.count), "damages", "{}: it must be from 1 to 1000", self.count);
        Ok(())
    }

    /// Returns the corner of each damage of a picture. As in the report's code, each damage splits the picture's key with
    /// `key, sub = split(key)` and draws the corner with `sub`.
    fn corners(&self, latent: &Latent, frame: &Frame) -> Vec<[i32; 2]> {
        let positions = frame.grid.map(|length| grow::damage_corners(self.side, length) as i32);
        let mut key = latent.key;
        let draw = |_| {
            let [next, sub] = key.split2();
            key = next;
            match self.at {
                Some((row, column)) => [row as i32, column as i32],
                None => {
                    // Rows and columns have their own ranges, and the same draws.
                    [sub.randint(2, 0, positions[0])[0], sub.randint(2, 0, positions[1])[1]]
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

/// The pictures of one latent over time, as brightness from 0 to 1: the stages of its growth, then for each damage the damaged
/// picture and the picture after each step.
pub struct Trajectory<'a> {
    growth: &'a [f32],
    /// The batch size: the distance between two pictures of one latent.
    stride: usize,
    /// The latent's index in the batch.
    index: usize,
    segments: &'a [Segment],
    steps: usize,
    /// The undamaged image: pixels of a data set that count.
    image: &'a [u8],
    /// The value of its pixels that is shown as brightness 1.
    white: u8,
}

/// The pictures after a damage.
struct Segment {
    /// The damaged pictures, then those after each step: (1 + steps, batch, h, w, channels).
    shown: Vec<f32>,
    /// log p of the undamaged images, given the cells before the damage, the damaged ones, and those after each step: (2 + steps,
    /// batch).
    log_likelihoods: Vec<f32>,
}

impl<'a> Trajectory<'a> {
    /// Returns the number of stages of growth.
    pub fn stages(&self) -> usize {
        self.growth.len() / (self.stride * self.size())
    }

    fn size(&self) -> usize {
        self.image.len()
    }

    /// Returns the picture at a stage of the growth.
    pub fn at_stage(&self, stage: usize) -> &'a [f32] {
        &self.growth[(stage * self.stride + self.index) * self.size()..][..self.size()]
    }

    /// Returns the picture before any damage.
    pub fn original(&self) -> &'a [f32] {
        self.at_stage(self.stages() - 1)
    }

    /// Returns the picture `step` steps after a damage, counted from 0.
    pub fn after(&self, damage: usize, step: usize) -> &'a [f32] {
        &self.segments[damage].shown[(step * self.stride + self.index) * self.size()..][..self.size()]
    }

    /// Returns log p of the undamaged image in nats, given the cells before any damage.
    pub fn original_log_likelihood(&self) -> f32 {
        self.segments[0].log_likelihoods[self.index]
    }

    /// Returns log p of the undamaged image in nats, `step` steps after a damage, counted from 0.
    pub fn log_likelihood_after(&self, damage: usize, step: usize) -> f32 {
        self.segments[damage].log_likelihoods[(1 + step) * self.stride + self.index]
    }

    /// Returns how similar a picture is to the undamaged image; see [`similarity`].
    fn similarity(&self, picture: &[f32]) -> f64 {
        similarity(self.image, picture, self.white)
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
    model: &'s Vae,
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
        let (batch, model) = (batch_size(pictures, &session.model.frame)?, &session.model);
        let automaton = super::automaton(model)?;
        let (frame, channels) = (model.frame, model.likelihood.outputs().channels);
        let [height, width, values] = frame.counted();
        let grow = compile_growth(session, batch)?;
        let segment = session.compile("recover", |g, params| {
            let [rows, columns] = frame.grid;
            let cells = g.input("cells", &Shape::f32(&[batch, rows, columns, model.latent]));
            let keys = g.input("keys", &Shape::u32(&[batch, 2]));
            let corners = g.input("corners", &Shape::s32(&[batch, 2]));
            let side = g.input("side", &Shape::new(DType::S32, &[]));
            let images = g.input("images", &Shape::new(DType::U8, &[batch, height, width, values]));
            let watch = |cells| {
                let outputs = first_channels(cells, channels);
                vec![model.means(outputs), model.log_prob_of_counted(images, outputs)]
            };
            let damaged = grow::damage_at(cells, corners, side);
            let (before, hurt) = (watch(cells), watch(damaged));
            let grids = Grids { cells: damaged, keys };
            let (grids, course) = automaton.automaton(params).watched(grids, steps, watch);
            let stacked = |i: usize| {
                let row = hurt[i].reshape(&[&[1], hurt[i].dims().as_slice()].concat());
                Sym::concat(&[row, course[i]], 0)
            };
            let log_before = before[1].reshape(&[1, batch]);
            let outputs = [
                ("cells", grids.cells),
                ("keys", grids.keys),
                ("shown", stacked(0)),
                ("log_likelihoods", Sym::concat(&[log_before, stacked(1)], 0)),
            ];
            outputs.map(|(name, sym)| (name.to_string(), sym)).to_vec()
        })?;
        Ok(Recovery { grow, segment, model, batch, steps })
    }

    /// Runs every damage on every latent and calls `each(damage, latent, trajectory)` with the indices of both. A latent grows
    /// once, and each damage starts from its grown picture. `images` are the latents' undamaged images. Without them the most
    /// likely image of each grown picture is the undamaged one.
    ///
    /// # Errors
    /// When a damage is invalid, the device fails, or `each` returns an error.
    pub fn run(
        &self,
        latents: &[Latent],
        images: Option<&Split>,
        damages: &[Damage],
        mut each: impl FnMut(usize, usize, &Trajectory<'_>) -> Result<()>,
    ) -> Result<()> {
        let (frame, white) = (&self.model.frame, self.model.likelihood.white());
        for damage in damages {
            damage.check(frame)?;
        }
        let size: usize = frame.counted().iter().product();
        for (part, rows) in latents.chunks(self.batch).enumerate() {
            let grown = self.grow.call(&arguments(rows, self.batch))?;
            let growth = grown[2].to_vec::<f32>();
            let undamaged: Vec<Vec<u8>> = (0..self.batch)
                .map(|i| match images {
                    Some(images) => {
                        super::framed(frame, images.image((part * self.batch + i).min(images.len() - 1)))
                    }
                    None => most_likely(&growth[growth.len() - (self.batch - i) * size..][..size], white),
                })
                .collect();
            for (d, damage) in damages.iter().enumerate() {
                let segments = self.segments(rows, damage, &grown, &undamaged)?;
                for (index, image) in undamaged.iter().enumerate().take(rows.len()) {
                    let (stride, steps) = (self.batch, self.steps);
                    let (growth, segments) = (&growth, &segments);
                    let trajectory = Trajectory { growth, stride, index, segments, steps, image, white };
                    each(d, part * self.batch + index, &trajectory)?;
                }
            }
        }
        Ok(())
    }

    /// Returns the pictures after each damage.
    fn segments(
        &self,
        rows: &[Latent],
        damage: &Damage,
        grown: &[Array],
        undamaged: &[Vec<u8>],
    ) -> Result<Vec<Segment>> {
        let frame = &self.model.frame;
        let corners: Vec<Vec<[i32; 2]>> = rows.iter().map(|latent| damage.corners(latent, frame)).collect();
        let mut state = [grown[0].clone(), grown[1].clone()];
        let mut segments = Vec::new();
        let corners_of = |i: usize| {
            let row = |r: usize| corners[r.min(rows.len() - 1)][i];
            Array::new(&[self.batch, 2], &(0..self.batch).flat_map(row).collect::<Vec<i32>>())
        };
        let [height, width, values] = frame.counted();
        let images = Array::new(&[self.batch, height, width, values], &undamaged.concat());
        for corners in (0..damage.count).map(corners_of) {
            let [cells, keys] = state;
            let side = Array::scalar(damage.side as i32);
            let results = self.segment.call(&[cells, keys, corners, side, images.clone()])?;
            segments.push(Segment {
                shown: results[2].to_vec::<f32>(),
                log_likelihoods: results[3].to_vec::<f32>(),
            });
            state = [results[0].clone(), results[1].clone()];
        }
        Ok(segments)
    }
}

/// Returns a picture's most likely image, as pixels of a data set in which `white` is shown as brightness 1. Where only 0 and 1
/// exist, 1 must be the more likely one.
fn most_likely(picture: &[f32], white: u8) -> Vec<u8> {
    let pixel = |mean: &f32| match white {
        1 => u8::from(*mean > 0.5),
        white => (mean * f32::from(white)).round() as u8,
    };
    picture.iter().map(pixel).collect()
}

/// Returns the sum over pixels of the smaller brightness, of an image and of a picture's most likely image, divided by the sum of
/// the larger brightness. For bits it is the intersection over union of the pixels that are 1. 1 if all pixels are black.
pub fn similarity(image: &[u8], picture: &[f32], white: u8) -> f64 {
    let (mut both, mut either) = (0u64, 0u64);
    for (pixel, likely) in image.iter().zip(most_likely(picture, white)) {
        both += u64::from(likely.min(*pixel));
        either += u64::from(likely.max(*pixel));
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
    /// Similarity to the undamaged image: for bits the intersection over union, for others see [`similarity`]. Mean and standard
    /// error over pictures.
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

    /// Compares all pictures of a trajectory, from the original on, with the undamaged image.
    pub fn add(&mut self, trajectory: &Trajectory<'_>) {
        let steps = self.steps;
        let original = (trajectory.original(), trajectory.original_log_likelihood());
        let later = (0..self.damage.count).flat_map(|d| {
            (0..=steps).map(move |s| (trajectory.after(d, s), trajectory.log_likelihood_after(d, s)))
        });
        for (values, (picture, log_likelihood)) in
            self.values.iter_mut().zip([original].into_iter().chain(later))
        {
            values[0].push(trajectory.similarity(picture) as f32);
            values[1].push(log_likelihood);
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
        assert_eq!(damage.corners(&latent, &Frame::REPORT).concat(), expected.concat());
        let fixed = Damage { at: Some((3, 5)), ..damage };
        assert_eq!(fixed.corners(&latent, &Frame::REPORT), [[3, 5], [3, 5]]);
        assert!(fixed.check(&Frame::REPORT).is_ok());
        assert!(Damage { at: Some((17, 0)), ..damage }.check(&Frame::REPORT).is_err());
        assert!(Damage { side: 33, ..damage }.check(&Frame::REPORT).is_err());
        assert_eq!(Damage { side: 32, ..damage }.corners(&latent, &Frame::REPORT), [[0, 0], [0, 0]]);
    }

    #[test]
    fn corners_of_a_grid_that_is_not_square_have_two_ranges() {
        let frame = Frame::new(12, 40, 3);
        let damage = Damage { side: 6, at: None, count: 1 };
        let corners: Vec<[i32; 2]> =
            (0..100).map(|i| damage.corners(&Latent { z: vec![], key: Key::new(i) }, &frame)[0]).collect();
        let most = |axis: usize| corners.iter().map(|c| c[axis]).max().unwrap();
        assert!(most(0) < 6 && most(1) > 20 && most(1) < 34, "{corners:?}");
        assert!(Damage { side: 13, ..damage }.check(&frame).is_err());
        assert!(Damage { at: Some((6, 34)), ..damage }.check(&frame).is_ok());
        assert!(Damage { at: Some((7, 0)), ..damage }.check(&frame).is_err());
    }

    #[test]
    fn overlap_counts_pixels_above_one_half_or_brightness() {
        assert_eq!(similarity(&[1, 1, 0, 0], &[0.95, 0.3, 0.51, 0.0], 1), 1.0 / 3.0);
        assert_eq!(similarity(&[0; 2], &[0.2; 2], 1), 1.0);
        assert_eq!(similarity(&[100, 200], &[50.0 / 255.0, 1.0], 255), 250.0 / 355.0);
    }

    /// A picture loses four of its eight pixels and regains two of them.
    #[test]
    fn the_regained_share_is_relative_to_the_loss() {
        const PIXELS: usize = 64;
        let picture =
            |ones: usize| (0..PIXELS).map(|i| if i < ones { 0.9 } else { 0.1 }).collect::<Vec<f32>>();
        let growth = [picture(0), picture(8)].concat();
        let segment = |pictures: [usize; 2], log_likelihoods: [f32; 3]| Segment {
            shown: pictures.map(picture).concat(),
            log_likelihoods: log_likelihoods.to_vec(),
        };
        let segments = [segment([4, 6], [-10.0, -50.0, -30.0]), segment([8, 8], [-30.0, -10.0, -10.0])];
        let image = most_likely(&picture(8), 1);
        let trajectory = Trajectory {
            growth: &growth,
            stride: 1,
            index: 0,
            segments: &segments,
            steps: 1,
            image: &image,
            white: 1,
        };
        assert_eq!((trajectory.stages(), trajectory.all().len()), (2, 6));
        let mut statistics = RecoveryStatistics::new(Damage { side: 2, at: None, count: 2 }, 1);
        assert!(statistics.points().is_err());
        statistics.add(&trajectory);
        let points = statistics.points().unwrap();
        let ious: Vec<f64> = points.iter().map(|p| p.iou.mean).collect();
        assert_eq!(ious, [1.0, 0.5, 0.75, 1.0, 1.0]);
        let shares: Vec<Option<f64>> = points.iter().map(|p| p.iou_regained).collect();
        assert_eq!(shares, [None, Some(0.0), Some(0.5), None, None]);
        assert_eq!(points[2].log_likelihood_regained, Some(0.5));
        let csv = csv(&points);
        assert_eq!(csv.lines().count(), 6);
        assert!(csv.lines().nth(1).unwrap().starts_with("2,0,0,1,,") && csv.ends_with(",,\n"));
    }
}
