//! A map of points in two dimensions that keeps neighbours together: t-SNE, van der Maaten & Hinton, "Visualizing Data using
//! t-SNE" (2008).
//!
//! Points attract their nearest neighbours, as in van der Maaten, "Accelerating t-SNE using Tree-Based Algorithms" (2014). The
//! repulsion is summed over all pairs: for the few thousand points that a picture can show, a plain loop is as fast as a tree, and
//! exact. Every sum has its order, so that a key gives one map on any number of threads. The descent's constants are scikit-learn's.

use anyhow::Result;
use rand::RngExt;
use rand_distr::StandardNormal;
use rayon::prelude::*;

use super::neighbours::Neighbour;
use crate::engine::random::Key;
use crate::error::valid;

/// What decides over a map beside the points.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Neighbours that a point has in effect.
    pub perplexity: f32,
    /// Gradient steps.
    pub iterations: usize,
}

impl Options {
    /// Neighbours of a point that are looked at.
    ///
    /// # Errors
    /// When there are too few points for the perplexity, or a number is out of range; the error names the field.
    pub fn neighbours(&self, points: usize) -> Result<usize> {
        let Options { perplexity, iterations } = *self;
        valid!((1.0..=1e6).contains(&perplexity), "perplexity", "{perplexity}: it must be 1 or more");
        valid!((1..=1_000_000).contains(&iterations), "iterations", "{iterations}: from 1 to 1000000");
        let k = (3.0 * perplexity) as usize;
        valid!(
            points > k,
            "perplexity",
            "{perplexity} looks at {k} neighbours, and there are {points} points: it must be under {}",
            points as f32 / 3.0
        );
        Ok(k)
    }
}

/// A map: two coordinates a point, and the divergence that is left, in nats.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// Two coordinates a point, (n, 2).
    pub coordinates: Vec<f32>,
    /// The Kullback-Leibler divergence that is left, in nats.
    pub divergence: f32,
}

/// At first neighbours attract each other so many times more, which brings clusters together.
const EXAGGERATION: f32 = 12.0;
const EXAGGERATED: usize = 250;
const LEAST_GAIN: f32 = 0.01;

/// Makes the map of points from their neighbours, three times the perplexity of each. `done` hears the number of
/// finished iterations.
///
/// # Errors
/// When the options do not fit the points.
pub fn map(neighbours: &[Vec<Neighbour>], key: Key, options: Options, done: impl Fn(usize)) -> Result<Map> {
    let n = neighbours.len();
    let k = options.neighbours(n)?;
    let attractions = joint(neighbours, k, f64::from(options.perplexity));
    let rate = (n as f32 / EXAGGERATION / 4.0).max(50.0);
    // A narrow cloud: what is near is then decided by the forces alone.
    let mut drawn = key.rng().sample_iter(StandardNormal).map(|c: f32| 1e-4 * c);
    let mut at = Plane { x: drawn.by_ref().take(n).collect(), y: drawn.take(n).collect() };
    let (mut speed, mut gains) = (Plane::all(n, 0.0), Plane::all(n, 1.0));
    let (mut pushes, mut slopes) = (Vec::with_capacity(n), Vec::with_capacity(n));
    for iteration in 0..options.iterations {
        let (exaggeration, momentum) = if iteration < EXAGGERATED { (EXAGGERATION, 0.5) } else { (1.0, 0.8) };
        let total = repulsion(&at, &mut pushes);
        let slope = |i: usize| {
            let pull = at.pull(i, &attractions[i]);
            let push = [pushes[i].x, pushes[i].y].map(|p| (f64::from(p) / total) as f32);
            [4.0 * (exaggeration * pull[0] - push[0]), 4.0 * (exaggeration * pull[1] - push[1])]
        };
        (0..n).into_par_iter().map(slope).collect_into_vec(&mut slopes);
        let axes = at.axes().into_iter().zip(speed.axes()).zip(gains.axes());
        for (axis, ((at, speed), gains)) in axes.enumerate() {
            for (i, slope) in slopes.iter().map(|s| s[axis]).enumerate() {
                let turned = (slope > 0.0) == (speed[i] > 0.0);
                gains[i] = if turned { gains[i] * 0.8 } else { gains[i] + 0.2 }.max(LEAST_GAIN);
                speed[i] = momentum * speed[i] - rate * gains[i] * slope;
                at[i] += speed[i];
            }
            let mean = at.iter().sum::<f32>() / n as f32;
            at.iter_mut().for_each(|c| *c -= mean);
        }
        done(iteration + 1);
    }
    let total = repulsion(&at, &mut pushes);
    let divergence = at.divergence(&attractions, total) as f32;
    let coordinates = at.x.iter().zip(&at.y).flat_map(|(x, y)| [*x, *y]).collect();
    Ok(Map { coordinates, divergence })
}

/// Neighbours of a point with the probability of the pair.
type Attraction = Vec<(usize, f32)>;

/// Probabilities of pairs, which add up to 1: the means of each side's share of the other.
fn joint(neighbours: &[Vec<Neighbour>], k: usize, perplexity: f64) -> Vec<Attraction> {
    let n = neighbours.len();
    let one_way: Vec<Vec<f64>> = neighbours.par_iter().map(|row| shares(&row[..k], perplexity)).collect();
    let mut both: Vec<Attraction> = vec![Vec::new(); n];
    for (i, row) in neighbours.iter().enumerate() {
        for (neighbour, share) in row[..k].iter().zip(&one_way[i]) {
            let half = (share / (2 * n) as f64) as f32;
            both[i].push((neighbour.index, half));
            both[neighbour.index].push((i, half));
        }
    }
    for row in &mut both {
        row.sort_by_key(|(j, _)| *j);
        row.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            kept.1 += if same { next.1 } else { 0.0 };
            same
        });
    }
    both
}

/// What share each neighbour has of a point: a normal density of the distance, so wide that as many neighbours count in effect
/// as the perplexity says.
fn shares(row: &[Neighbour], perplexity: f64) -> Vec<f64> {
    let squares: Vec<f64> = row.iter().map(|n| f64::from(n.distance).powi(2)).collect();
    let nearest = squares.first().copied().unwrap_or(0.0);
    let (mut least, mut most, mut precision) = (0.0, f64::INFINITY, 1.0);
    let mut shares = Vec::new();
    for _ in 0..100 {
        shares = squares.iter().map(|d| (-(d - nearest) * precision).exp()).collect();
        let total: f64 = shares.iter().sum();
        shares.iter_mut().for_each(|s| *s /= total);
        let entropy: f64 = shares.iter().filter(|s| **s > 0.0).map(|s| -s * s.ln()).sum();
        let off = entropy - perplexity.ln();
        if off.abs() < 1e-5 {
            break;
        }
        if off > 0.0 {
            least = precision
        } else {
            most = precision
        }
        precision = if most.is_finite() { 0.5 * (least + most) } else { 2.0 * precision };
    }
    shares
}

/// What all other points do to one: the sums of their similarities, and of the forces before these are divided by the sum of all.
#[derive(Clone, Copy, Debug)]
struct Push {
    similarity: f32,
    x: f32,
    y: f32,
}

/// Fills in what pushes each point, and gives the sum of all pairs' similarities.
fn repulsion(at: &Plane, pushes: &mut Vec<Push>) -> f64 {
    (0..at.x.len()).into_par_iter().map(|i| at.push(i)).collect_into_vec(pushes);
    pushes.iter().map(|p| f64::from(p.similarity)).sum()
}

/// A number for each point on each of two axes.
#[derive(Clone, Debug)]
struct Plane {
    x: Vec<f32>,
    y: Vec<f32>,
}

impl Plane {
    fn all(n: usize, value: f32) -> Plane {
        Plane { x: vec![value; n], y: vec![value; n] }
    }

    fn axes(&mut self) -> [&mut Vec<f32>; 2] {
        [&mut self.x, &mut self.y]
    }

    /// From i to j, and the similarity of the two: Student's density.
    fn between(&self, i: usize, j: usize) -> (f32, f32, f32) {
        let (dx, dy) = (self.x[i] - self.x[j], self.y[i] - self.y[j]);
        (dx, dy, 1.0 / (1.0 + dx * dx + dy * dy))
    }

    fn pull(&self, i: usize, attraction: &Attraction) -> [f32; 2] {
        let mut sum = [0f32; 2];
        for (j, p) in attraction {
            let (dx, dy, q) = self.between(i, *j);
            sum = [sum[0] + p * q * dx, sum[1] + p * q * dy];
        }
        sum
    }

    /// Sixteen sums side by side, which a CPU's vectors hold.
    fn push(&self, i: usize) -> Push {
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
        // The point itself is none of the others; it has a similarity of 1 and no force.
        Push { similarity: similarity - 1.0, x, y }
    }

    /// Kullback-Leibler divergence of the map's similarities from the points', in nats.
    fn divergence(&self, attractions: &[Attraction], total: f64) -> f64 {
        let of = |(i, row): (usize, &Attraction)| -> f64 {
            let pair = |(j, p): &(usize, f32)| {
                let p = f64::from(*p);
                if p > 0.0 { p * (p * total / f64::from(self.between(i, *j).2)).ln() } else { 0.0 }
            };
            row.iter().map(pair).sum()
        };
        attractions.iter().enumerate().map(of).sum()
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
        let made = map(&near, Key::new(3), options, |_| {}).unwrap();
        assert_eq!(made.coordinates.len(), 2 * n);
        let accuracy = label_accuracy(&nearest(&made.coordinates, 2, 5, |_| {}), &labels, 5);
        assert!(accuracy == 1.0, "{accuracy}");
        // Neighbourhoods are kept far better than by chance, where the divergence is near 2.
        assert!(made.divergence < 1.2, "{}", made.divergence);
        assert_eq!(map(&near, Key::new(3), options, |_| {}).unwrap(), made);
        assert_ne!(map(&near, Key::new(4), options, |_| {}).unwrap().coordinates, made.coordinates);
        let error = Options { perplexity: 50.0, ..options }.neighbours(n).unwrap_err().to_string();
        assert!(error.contains("perplexity"), "{error}");
    }
}
