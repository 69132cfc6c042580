//! A map of points in two dimensions that keeps neighbours together: t-SNE.
//!
//! van der Maaten & Hinton, "Visualizing Data using t-SNE" (2008), with the repulsion of van der Maaten, "Accelerating
//! t-SNE using Tree-Based Algorithms" (2014), by the crate `bhtsne`. The neighbours are our own, exact ones, and the
//! first map is drawn from a key. The crate runs on one thread: on several, sums come in no certain order, and the same
//! seed would give other maps.

use anyhow::{Context, Result, ensure};
use bhtsne::{Neighbor, tSNE};

use super::neighbours::Neighbour;
use crate::random::Key;

/// What decides over a map beside the points.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Neighbours that a point has in effect.
    pub perplexity: f32,
    pub iterations: usize,
    /// A cell of the tree counts as one point when it is this much smaller than it is far: 0.5 is usual, less is more
    /// exact.
    pub theta: f32,
}

impl Options {
    /// Neighbours of a point that are looked at.
    ///
    /// # Errors
    /// When there are too few points for the perplexity, or a number is out of range; the error names the flag.
    pub fn neighbours(&self, points: usize) -> Result<usize> {
        let Options { perplexity, iterations, theta } = *self;
        ensure!((1.0..=1e6).contains(&perplexity), "--perplexity {perplexity}: it must be 1 or more");
        ensure!(theta > 0.0 && theta <= 2.0, "--theta {theta}: it must be over 0 and at most 2");
        ensure!((1..=1_000_000).contains(&iterations), "--iterations {iterations}: from 1 to 1000000");
        let k = (3.0 * perplexity) as usize;
        ensure!(
            points > k,
            "--perplexity {perplexity} looks at {k} neighbours, and there are {points} points: it must be under {}",
            points as f32 / 3.0
        );
        Ok(k)
    }
}

/// A map: two coordinates a point, and the divergence that is left, in nats.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    pub coordinates: Vec<f32>,
    pub divergence: f32,
}

/// Makes the map of points from their neighbours, three times the perplexity of each. `done` hears the number of
/// finished iterations.
///
/// # Errors
/// When the options do not fit the points.
pub fn map(
    neighbours: &[Vec<Neighbour>],
    key: Key,
    options: Options,
    done: impl Fn(usize) + Sync,
) -> Result<Map> {
    let k = options.neighbours(neighbours.len())?;
    let rows: Vec<Vec<Neighbor<f32>>> = neighbours
        .iter()
        .map(|row| row[..k].iter().map(|n| Neighbor { index: n.index, distance: n.distance }).collect())
        .collect();
    // A narrow cloud: what is near is then decided by the forces alone.
    let first: Vec<f32> = key.normal(2 * rows.len()).into_iter().map(|x| x * 1e-4).collect();
    let points = vec![(); rows.len()];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().context("starting a thread")?;
    let (coordinates, divergence) = pool.install(|| {
        let mut tsne = tSNE::<f32, (), 2>::new(&points);
        tsne.perplexity(options.perplexity)
            .epochs(options.iterations)
            .initial_embedding(first)
            .epoch_callback(|epoch, _| done(epoch + 1))
            .barnes_hut_with_neighbors(options.theta, &rows);
        (tsne.embedding(), tsne.kl_divergence())
    });
    Ok(Map { coordinates, divergence: divergence.context("the map was not made")? })
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
        let options = Options { perplexity: 10.0, iterations: 400, theta: 0.5 };
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
        assert!(error.contains("--perplexity"), "{error}");
    }
}
