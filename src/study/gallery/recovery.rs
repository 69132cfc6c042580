//! Damage and recovery: a picture is grown, a square of its cells is set to zero, and the automaton takes more steps,
//! as often as is wanted (the report's figure 5); and how much of the picture comes back, as numbers.

use anyhow::Result;
use serde::Serialize;

use super::{Latent, PIXELS, arguments, batch_of, compile_growth, log_likelihood, probability};
use crate::engine::array::Array;
use crate::engine::shape::{DType, Shape};
use crate::error::valid;
use crate::model::SIDE;
use crate::model::grow::{self, Grids, first_channels};
use crate::study::eval::Bound;
use crate::study::session::{Session, SessionProgram};

/// What is done to a grown picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Rows and columns of the square.
    pub side: usize,
    /// Its first row and column; `None`: drawn for every picture and damage.
    pub at: Option<(usize, usize)>,
    /// How often it is done, each time after `steps` further steps.
    pub count: usize,
}

impl Damage {
    /// # Errors
    /// When the square does not lie in the grid; the error names the flag.
    pub fn check(&self) -> Result<()> {
        valid!(
            (1..=SIDE).contains(&self.side),
            "sizes",
            "{}: a square of 1 to {SIDE} cells fits the grid",
            self.side
        );
        let (row, column) = self.at.unwrap_or((0, 0));
        valid!(
            row.max(column) + self.side <= SIDE,
            "at",
            "{row},{column}: a square of {} cells from there leaves the grid of {SIDE}",
            self.side
        );
        valid!((1..=1000).contains(&self.count), "damages", "{}: it must be from 1 to 1000", self.count);
        Ok(())
    }

    /// The corner of each damage of a picture: as in the report's code `key, sub = split(key)` before each, from the key
    /// of the picture, and a corner drawn with `sub`.
    fn corners(&self, latent: &Latent) -> Vec<[i32; 2]> {
        let places = grow::damage_corners(self.side, SIDE) as i32;
        let mut key = latent.key;
        let draw = |_| {
            let [next, sub] = key.split2();
            key = next;
            match self.at {
                Some((row, column)) => [row as i32, column as i32],
                None => {
                    let corner = sub.randint(2, 0, places);
                    [corner[0], corner[1]]
                }
            }
        };
        (0..self.count).map(draw).collect()
    }
}

/// # Errors
/// When there are no steps after a damage, or too many.
pub fn check_steps(steps: usize) -> Result<()> {
    valid!((1..=10_000).contains(&steps), "steps", "{steps}: it must be from 1 to 10000");
    Ok(())
}

/// The logits of a picture all along: `growth` stages, then for each damage the damaged picture and that after each step.
pub struct Course<'a> {
    growth: &'a [f32],
    /// Pictures of the growth and of the recovery lie this far apart: one of each latent of the batch is between.
    stride: usize,
    at: usize,
    segments: &'a [Vec<f32>],
    steps: usize,
}

impl<'a> Course<'a> {
    /// Stages of growth.
    pub fn growth(&self) -> usize {
        self.growth.len() / (self.stride * PIXELS)
    }

    /// The picture of stage `i` of the growth.
    pub fn grown(&self, stage: usize) -> &'a [f32] {
        &self.growth[(stage * self.stride + self.at) * PIXELS..][..PIXELS]
    }

    /// The picture before any damage.
    pub fn original(&self) -> &'a [f32] {
        self.grown(self.growth() - 1)
    }

    /// The picture `step` steps after damage number `damage`, counted from 0.
    pub fn after(&self, damage: usize, step: usize) -> &'a [f32] {
        &self.segments[damage][(step * self.stride + self.at) * PIXELS..][..PIXELS]
    }

    /// All pictures in order.
    pub fn all(&self) -> Vec<&'a [f32]> {
        let growth = (0..self.growth()).map(|stage| self.grown(stage));
        let segments = (0..self.segments.len()).flat_map(|d| (0..=self.steps).map(move |s| (d, s)));
        growth.chain(segments.map(|(d, s)| self.after(d, s))).collect()
    }
}

/// The compiled programs: growth, and one damage with the steps after it.
pub struct Recovery<'s> {
    grow: SessionProgram<'s>,
    segment: SessionProgram<'s>,
    batch: usize,
    steps: usize,
}

impl<'s> Recovery<'s> {
    /// Compiles for so many pictures and steps after each damage.
    ///
    /// # Errors
    /// When the model has no automaton, or a number is out of range.
    pub fn new(session: &'s Session, pictures: usize, steps: usize) -> Result<Recovery<'s>> {
        check_steps(steps)?;
        let (batch, model) = (batch_of(pictures)?, &session.model);
        let automaton = super::automaton(model)?;
        let channels = model.likelihood.outputs().channels;
        let grow = compile_growth(session, batch)?;
        let segment = session.compile("recover", |g, params| {
            let cells = g.input("cells", &Shape::f32(&[batch, SIDE, SIDE, model.latent]));
            let keys = g.input("keys", &Shape::u32(&[batch, 2]));
            let corners = g.input("corners", &Shape::s32(&[batch, 2]));
            let side = g.input("side", &Shape::new(DType::S32, &[]));
            let damaged = grow::damage_at(cells, corners, side);
            let grids = Grids { cells: damaged, keys };
            let (grids, course) = automaton.automaton(params).watched(grids, steps, channels);
            let outputs = [
                ("cells", grids.cells),
                ("keys", grids.keys),
                ("damaged", first_channels(damaged, channels)),
                ("course", course),
            ];
            outputs.map(|(name, sym)| (name.to_string(), sym)).to_vec()
        })?;
        Ok(Recovery { grow, segment, batch, steps })
    }

    /// Runs every damage on every latent: `each(damage, latent, course)`, all damages of a latent between the same growth.
    ///
    /// # Errors
    /// When a damage is not possible, the device fails, or `each` says so.
    pub fn run(
        &self,
        latents: &[Latent],
        damages: &[Damage],
        mut each: impl FnMut(usize, usize, &Course<'_>) -> Result<()>,
    ) -> Result<()> {
        for damage in damages {
            damage.check()?;
        }
        for (part, rows) in latents.chunks(self.batch).enumerate() {
            let grown = self.grow.call(&arguments(rows, self.batch))?;
            let growth = grown[2].to_vec::<f32>();
            for (d, damage) in damages.iter().enumerate() {
                let segments = self.segments(rows, damage, &grown)?;
                for at in 0..rows.len() {
                    let (stride, steps) = (self.batch, self.steps);
                    let course = Course { growth: &growth, stride, at, segments: &segments, steps };
                    each(d, part * self.batch + at, &course)?;
                }
            }
        }
        Ok(())
    }

    fn segments(&self, rows: &[Latent], damage: &Damage, grown: &[Array]) -> Result<Vec<Vec<f32>>> {
        let corners: Vec<Vec<[i32; 2]>> = rows.iter().map(|latent| damage.corners(latent)).collect();
        let mut state = [grown[0].clone(), grown[1].clone()];
        let mut segments = Vec::new();
        let places = |i: usize| {
            let row = |r: usize| corners[r.min(rows.len() - 1)][i];
            Array::new(&[self.batch, 2], &(0..self.batch).flat_map(row).collect::<Vec<i32>>())
        };
        for places in (0..damage.count).map(places) {
            let [cells, keys] = state;
            let results = self.segment.call(&[cells, keys, places, Array::scalar(damage.side as i32)])?;
            let mut pictures = results[2].to_vec::<f32>();
            results[3].with_elements(|course: &[f32]| pictures.extend_from_slice(course));
            segments.push(pictures);
            state = [results[0].clone(), results[1].clone()];
        }
        Ok(segments)
    }
}

/// Pixels that are more likely 1 than 0.
fn on(logits: &[f32]) -> Vec<bool> {
    logits.iter().map(|l| probability(*l) > 0.5).collect()
}

/// The picture's most likely image.
pub fn most_likely(logits: &[f32]) -> Vec<f32> {
    on(logits).into_iter().map(|on| f32::from(u8::from(on))).collect()
}

/// Intersection over union of the pixels that are 1 in an image and more likely 1 than 0 in a picture; 1 if both have none.
pub fn iou(image: &[f32], logits: &[f32]) -> f64 {
    let (mut both, mut either) = (0, 0);
    for (pixel, on) in image.iter().map(|p| *p > 0.5).zip(on(logits)) {
        both += usize::from(pixel && on);
        either += usize::from(pixel || on);
    }
    if either == 0 { 1.0 } else { both as f64 / either as f64 }
}

/// How near pictures are to their images after so many steps from a damage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Rows and columns of the square that was damaged.
    pub side: usize,
    /// Damages so far; 0: the grown picture, before any.
    pub damage: usize,
    /// Steps since the last damage; 0 for the grown picture.
    pub step: usize,
    /// Intersection over union, mean and standard error over pictures.
    pub iou: Bound,
    /// Log-likelihood of the image in nats, mean and standard error over pictures.
    pub log_likelihood: Bound,
    /// The share of what the last damage took that has come back, of means over pictures; `None` where it took nothing.
    pub iou_regained: Option<f64>,
    /// The same share of the log-likelihood.
    pub log_likelihood_regained: Option<f64>,
}

/// Collects the numbers of one size of damage.
pub struct Meter {
    damage: Damage,
    steps: usize,
    /// IoU and log-likelihood by moment (the original first) and picture.
    values: Vec<[Vec<f32>; 2]>,
}

impl Meter {
    /// Returns a meter of a damage with so many steps after each.
    pub fn new(damage: Damage, steps: usize) -> Meter {
        Meter { damage, steps, values: vec![Default::default(); 1 + damage.count * (steps + 1)] }
    }

    /// Compares all pictures of a course with its image.
    pub fn add(&mut self, image: &[f32], course: &Course<'_>) {
        let steps = self.steps;
        let later = (0..self.damage.count).flat_map(|d| (0..=steps).map(move |s| course.after(d, s)));
        for (values, picture) in self.values.iter_mut().zip([course.original()].into_iter().chain(later)) {
            values[0].push(iou(image, picture) as f32);
            values[1].push(log_likelihood(image, picture) as f32);
        }
    }

    /// # Errors
    /// When no picture was added.
    pub fn points(&self) -> Result<Vec<Point>> {
        let means: Vec<[Bound; 2]> = self
            .values
            .iter()
            .map(|[iou, likelihood]| Ok([Bound::of(iou)?, Bound::of(likelihood)?]))
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

/// The points as CSV, a head line first. What is not defined is empty.
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
            p.iou.stderr,
            p.log_likelihood.mean,
            p.log_likelihood.stderr,
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
    fn corners_follow_the_reports_keys_unless_a_place_is_given() {
        let latent = Latent { z: vec![], key: Key::new(7) };
        let damage = Damage { side: 16, at: None, count: 2 };
        let [next, sub] = Key::new(7).split2();
        let expected = [sub.randint(2, 0, 16), next.split2()[1].randint(2, 0, 16)];
        assert_eq!(damage.corners(&latent).concat(), expected.concat());
        let placed = Damage { at: Some((3, 5)), ..damage };
        assert_eq!(placed.corners(&latent), [[3, 5], [3, 5]]);
        assert!(placed.check().is_ok());
        assert!(Damage { at: Some((17, 0)), ..damage }.check().is_err());
        assert!(Damage { side: 33, ..damage }.check().is_err());
        assert_eq!(Damage { side: 32, ..damage }.corners(&latent), [[0, 0], [0, 0]]);
    }

    #[test]
    fn overlap_counts_pixels_above_one_half() {
        assert_eq!(iou(&[1.0, 1.0, 0.0, 0.0], &[3.0, -1.0, 0.1, f32::NEG_INFINITY]), 1.0 / 3.0);
        assert_eq!(iou(&[0.0; 2], &[-1.0; 2]), 1.0);
    }

    /// One picture whose square of four pixels is lost, and half of it found again.
    #[test]
    fn what_is_regained_is_a_share_of_what_was_lost() {
        let picture =
            |lit: usize| (0..PIXELS).map(|i| if i < lit { 9.0 } else { -9.0 }).collect::<Vec<f32>>();
        let growth = [picture(0), picture(8)].concat();
        let segments = [[picture(4), picture(6)].concat(), [picture(8), picture(8)].concat()];
        let course = Course { growth: &growth, stride: 1, at: 0, segments: &segments, steps: 1 };
        assert_eq!((course.growth(), course.all().len()), (2, 6));
        let mut meter = Meter::new(Damage { side: 2, at: None, count: 2 }, 1);
        assert!(meter.points().is_err());
        meter.add(&most_likely(course.original()), &course);
        let points = meter.points().unwrap();
        let ious: Vec<f64> = points.iter().map(|p| p.iou.mean).collect();
        assert_eq!(ious, [1.0, 0.5, 0.75, 1.0, 1.0]);
        let shares: Vec<Option<f64>> = points.iter().map(|p| p.iou_regained).collect();
        assert_eq!(shares, [None, Some(0.0), Some(0.5), None, None]);
        let share = points[2].log_likelihood_regained.unwrap();
        assert!((share - 0.5).abs() < 1e-6, "{share}");
        let csv = csv(&points);
        assert_eq!(csv.lines().count(), 6);
        assert!(csv.lines().nth(1).unwrap().starts_with("2,0,0,1,0,") && csv.ends_with(",,\n"));
    }
}
