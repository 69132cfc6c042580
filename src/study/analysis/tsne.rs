//! t-SNE: a map of points to two dimensions that keeps neighbours together. Method: van der Maaten & Hinton, "Visualizing Data
//! using t-SNE" (2008).
//!
//! Only nearest neighbours attract each other, as in van der Maaten, "Accelerating t-SNE using Tree-Based Algorithms" (2014). The
//! repulsion is summed over all pairs. For the few thousand points that fit a picture, this is as fast as a tree and exact. All
//! sums have a fixed order, so that a key gives the same map on any number of threads. The constants of the gradient descent are
//! those of scikit-learn.

use anyhow::Result;
use rand::RngExt;
use rand_distr::StandardNormal;
use rayon::prelude::*;

use super::neighbours::Neighbour;
use crate::engine::random::Key;
use crate::error::valid;

/// Options of t-SNE.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The effective number of neighbours of a point.
    pub perplexity: f32,
    /// Number of gradient steps.
    pub iterations: usize,
}

impl Options {
    /// Returns the number of neighbours that attract a point: three times the perplexity.
    ///
    /// # Errors
    /// When there are too few points for the perplexity, or an option is out of range. The error names the option.
    pub fn neighbours(&self, points: usize) -> Result<usize> {
        let Options { perplexity, iterations } = *self;
        valid!((1.0..=1e6).contains(&perplexity), "perplexity", "{perplexity}: it must be 1 or more");
        valid!(
            (1..=1_000_000).contains(&iterations),
            "iterations",
            "{iterations}: it must be from 1 to 1000000"
        );
        let k = (3.0 * perplexity) as usize;
        valid!(
            points > k,
            "perplexity",
            "{perplexity} needs {k} neighbours, but there are only {points} points: it must be under {}",
            points as f32 / 3.0
        );
        Ok(k)
    }
}

/// A t-SNE map.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// The points' coordinates, (n, 2).
    pub coordinates: Vec<f32>,
    /// The remaining Kullback-Leibler divergence, in nats.
    pub divergence: f32,
}

/// Factor on the attraction in the first iterations. It brings clusters together.
const EXAGGERATION: f32 = 12.0;
/// Number of iterations with exaggerated attraction.
const EXAGGERATED_ITERATIONS: usize = 250;
const MIN_GAIN: f32 = 0.01;

/// Computes the map of points from their nearest neighbours, of which [`Options::neighbours`] are used for each point. `done` is
/// called with the number of finished iterations.
///
/// # Errors
/// When the options do not fit the points.
pub fn map(neighbours: &[Vec<Neighbour>], key: Key, options: Options, done: impl Fn(usize)) -> Result<Map> {
    let n = neighbours.len();
    let k = options.neighbours(n)?;
    let attractions = joint_probabilities(neighbours, k, f64::from(options.perplexity));
    let rate = (n as f32 / EXAGGERATION / 4.0).max(50.0);
    // All points begin close together, so that only the forces decide where they move.
    let mut drawn = key.rng().sample_iter(StandardNormal).map(|c: f32| 1e-4 * c);
    let mut points = Points { x: drawn.by_ref().take(n).collect(), y: drawn.take(n).collect() };
    let (mut velocity, mut gains) = (Points::filled(n, 0.0), Points::filled(n, 1.0));
    let (mut repulsions, mut gradients) = (Vec::with_capacity(n), Vec::with_capacity(n));
    for iteration in 0..options.iterations {
        let (exaggeration, momentum) =
            if iteration < EXAGGERATED_ITERATIONS { (EXAGGERATION, 0.5) } else { (1.0, 0.8) };
        let total = repel(&points, &mut repulsions);
        let gradient = |i: usize| {
            let pull = points.attraction(i, &attractions[i]);
            let push = [repulsions[i].x, repulsions[i].y].map(|p| (f64::from(p) / total) as f32);
            [4.0 * (exaggeration * pull[0] - push[0]), 4.0 * (exaggeration * pull[1] - push[1])]
        };
        (0..n).into_par_iter().map(gradient).collect_into_vec(&mut gradients);
        let axes = points.axes().into_iter().zip(velocity.axes()).zip(gains.axes());
        for (axis, ((coordinates, velocity), gains)) in axes.enumerate() {
            for (i, gradient) in gradients.iter().map(|g| g[axis]).enumerate() {
                // The velocity points against the gradient unless the gradient has changed its sign.
                let turned = (gradient > 0.0) == (velocity[i] > 0.0);
                gains[i] = if turned { gains[i] * 0.8 } else { gains[i] + 0.2 }.max(MIN_GAIN);
                velocity[i] = momentum * velocity[i] - rate * gains[i] * gradient;
                coordinates[i] += velocity[i];
            }
            let mean = coordinates.iter().sum::<f32>() / n as f32;
            coordinates.iter_mut().for_each(|c| *c -= mean);
        }
        done(iteration + 1);
    }
    let total = repel(&points, &mut repulsions);
    let divergence = points.divergence(&attractions, total) as f32;
    let coordinates = points.x.iter().zip(&points.y).flat_map(|(x, y)| [*x, *y]).collect();
    Ok(Map { coordinates, divergence })
}

/// The points that attract a point, with the joint probability p_ij of each pair.
type Attractions = Vec<(usize, f32)>;

/// Returns the joint probabilities p_ij = (p_j|i + p_i|j) / 2n, which add up to 1.
fn joint_probabilities(neighbours: &[Vec<Neighbour>], k: usize, perplexity: f64) -> Vec<Attractions> {
    let n = neighbours.len();
    let conditional: Vec<Vec<f64>> =
        neighbours.par_iter().map(|row| conditional_probabilities(&row[..k], perplexity)).collect();
    let mut joint: Vec<Attractions> = vec![Vec::new(); n];
    for (i, row) in neighbours.iter().enumerate() {
        for (neighbour, p) in row[..k].iter().zip(&conditional[i]) {
            let half = (p / (2 * n) as f64) as f32;
            joint[i].push((neighbour.index, half));
            joint[neighbour.index].push((i, half));
        }
    }
    for row in &mut joint {
        row.sort_by_key(|(j, _)| *j);
        row.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            kept.1 += if same { next.1 } else { 0.0 };
            same
        });
    }
    joint
}

/// Returns the conditional probabilities p_j|i of a point's neighbours: normal densities of the distances, normalised. Bisection
/// finds the precision for which their perplexity is the given one.
fn conditional_probabilities(row: &[Neighbour], perplexity: f64) -> Vec<f64> {
    let squares: Vec<f64> = row.iter().map(|n| f64::from(n.distance).powi(2)).collect();
    let nearest = squares.first().copied().unwrap_or(0.0);
    let (mut low, mut high, mut precision) = (0.0, f64::INFINITY, 1.0);
    let mut probabilities = Vec::new();
    for _ in 0..100 {
        probabilities = squares.iter().map(|d| (-(d - nearest) * precision).exp()).collect();
        let total: f64 = probabilities.iter().sum();
        probabilities.iter_mut().for_each(|p| *p /= total);
        let entropy: f64 = probabilities.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        let error = entropy - perplexity.ln();
        if error.abs() < 1e-5 {
            break;
        }
        if error > 0.0 {
            low = precision
        } else {
            high = precision
        }
        precision = if high.is_finite() { 0.5 * (low + high) } else { 2.0 * precision };
    }
    probabilities
}

/// The effect of all other points on one point: the sum of the similarities, and the sum of the repulsive forces before their
/// normalisation by the total similarity.
#[derive(Clone, Copy, Debug)]
struct Repulsion {
    similarity: f32,
    x: f32,
    y: f32,
}

/// Computes the repulsion of each point into `repulsions`, and returns the sum of the similarities of all pairs.
fn repel(points: &Points, repulsions: &mut Vec<Repulsion>) -> f64 {
    (0..points.x.len()).into_par_iter().map(|i| points.repulsion(i)).collect_into_vec(repulsions);
    repulsions.iter().map(|p| f64::from(p.similarity)).sum()
}

/// Two numbers for each point, one for each axis.
#[derive(Clone, Debug)]
struct Points {
    x: Vec<f32>,
    y: Vec<f32>,
}

impl Points {
    fn filled(n: usize, value: f32) -> Points {
        Points { x: vec![value; n], y: vec![value; n] }
    }

    fn axes(&mut self) -> [&mut Vec<f32>; 2] {
        [&mut self.x, &mut self.y]
    }

    /// Returns the difference of points i and j, and their similarity: the density of Student's t-distribution, not normalised.
    fn difference(&self, i: usize, j: usize) -> (f32, f32, f32) {
        let (dx, dy) = (self.x[i] - self.x[j], self.y[i] - self.y[j]);
        (dx, dy, 1.0 / (1.0 + dx * dx + dy * dy))
    }

    /// Returns the sum of the attractive forces on point i.
    fn attraction(&self, i: usize, attractions: &Attractions) -> [f32; 2] {
        let mut sum = [0f32; 2];
        for (j, p) in attractions {
            let (dx, dy, q) = self.difference(i, *j);
            sum = [sum[0] + p * q * dx, sum[1] + p * q * dy];
        }
        sum
    }

    /// Returns the repulsion of point i. Adds up in sixteen lanes, so that the compiler can use vector instructions.
    fn repulsion(&self, i: usize) -> Repulsion {
        const WIDTH: usize = 16;
        let (x, y) = (self.x[i], self.y[i]);
        let mut sums = [[0f32; WIDTH]; 3];
        let mut add = |xs: &[f32], ys: &[f32]| {
            for (lane, (other_x, other_y)) in xs.iter().zip(ys).enumerate() {
                let (dx, dy) = (x - other_x, y - other_y);
                let q = 1.0 / (1.0 + dx * dx + dy * dy);
                sums[0][lane] += q;
                sums[1][lane] += q * q * dx;
                sums[2][lane] += q * q * dy;
            }
        };
        let (xs, ys) = (self.x.as_chunks::<WIDTH>(), self.y.as_chunks::<WIDTH>());
        xs.0.iter().zip(ys.0).for_each(|(xs, ys)| add(xs, ys));
        add(xs.1, ys.1);
        let [similarity, x, y] = sums.map(|s| s.iter().sum::<f32>());
        // The sums include the point itself, which has a similarity of 1 and no force.
        Repulsion { similarity: similarity - 1.0, x, y }
    }

    /// Returns the Kullback-Leibler divergence of the map's similarities from the joint probabilities, in nats.
    fn divergence(&self, attractions: &[Attractions], total: f64) -> f64 {
        let row_sum = |(i, row): (usize, &Attractions)| -> f64 {
            let term = |(j, p): &(usize, f32)| {
                let p = f64::from(*p);
                if p > 0.0 { p * (p * total / f64::from(self.difference(i, *j).2)).ln() } else { 0.0 }
            };
            row.iter().map(term).sum()
        };
        attractions.iter().enumerate().map(row_sum).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::neighbours::{label_accuracy, nearest};
    use super::*;

    #[test]
    fn separate_clouds_stay_separate_and_a_key_gives_one_map() {
        // Three clouds in 16 dimensions.
        let (n, d) = (150, 16);
        let labels: Vec<u8> = (0..n).map(|i| (i % 3) as u8).collect();
        let noise = Key::new(1).normal(n * d);
        let points: Vec<f32> = noise
            .iter()
            .enumerate()
            .map(|(i, x)| x + if i % d == (i / d) % 3 { 12.0 } else { 0.0 })
            .collect();
        let options = Options { perplexity: 10.0, iterations: 400 };
        let near = nearest(&points, d, options.neighbours(n).unwrap(), |_| {});
        let embedding = map(&near, Key::new(3), options, |_| {}).unwrap();
        assert_eq!(embedding.coordinates.len(), 2 * n);
        let accuracy = label_accuracy(&nearest(&embedding.coordinates, 2, 5, |_| {}), &labels, 5);
        assert!(accuracy == 1.0, "{accuracy}");
        // A random map has a divergence near 2.
        assert!(embedding.divergence < 1.2, "{}", embedding.divergence);
        assert_eq!(map(&near, Key::new(3), options, |_| {}).unwrap(), embedding);
        assert_ne!(map(&near, Key::new(4), options, |_| {}).unwrap().coordinates, embedding.coordinates);
        let error = Options { perplexity: 50.0, ..options }.neighbours(n).unwrap_err().to_string();
        assert!(error.contains("perplexity"), "{error}");
    }
}
