//! Exact nearest neighbours, and the accuracy of predicting a point's label from them. The accuracy measures how well classes are
//! separated.

use rayon::prelude::*;

/// A neighbour of a point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Index of the neighbour.
    pub index: usize,
    /// Euclidean distance.
    pub distance: f32,
}

/// Finds the `k` nearest other points of each point, nearest first. Of points at equal distances, the lower index comes first.
///
/// `points` is (n, dimensions) in row-major order. Every point is compared with every other one, because a search index is no
/// faster in hundreds of dimensions. `done` is called with the number of newly finished points.
///
/// # Panics
/// When there are not more than `k` points, or `points` does not consist of whole rows. Both are bugs.
pub fn nearest(
    points: &[f32],
    dimensions: usize,
    k: usize,
    done: impl Fn(usize) + Sync,
) -> Vec<Vec<Neighbour>> {
    let n = points.len() / dimensions;
    assert!(n > k && n * dimensions == points.len(), "{k} neighbours among {n} points");
    let nearest_to = |i: usize| {
        let own = &points[i * dimensions..][..dimensions];
        let distances = points.chunks_exact(dimensions).map(|other| squared_distance(own, other));
        let mut all: Vec<(f32, usize)> =
            distances.enumerate().filter(|(j, _)| *j != i).map(|(j, d)| (d, j)).collect();
        let order = |a: &(f32, usize), b: &(f32, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
        if k < all.len() {
            all.select_nth_unstable_by(k, order);
            all.truncate(k);
        }
        all.sort_unstable_by(order);
        done(1);
        all.into_iter().map(|(d, index)| Neighbour { index, distance: d.sqrt() }).collect()
    };
    (0..n).into_par_iter().map(nearest_to).collect()
}

/// Returns the squared Euclidean distance. Adds up in eight lanes, so that the compiler can use vector instructions.
fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| (x - y) * (x - y)).sum();
    for (a, b) in a.zip(b) {
        for (sum, (x, y)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += (x - y) * (x - y);
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Returns the share of points whose label is the majority label of their `k` nearest neighbours. In a tie, the label of the
/// nearest neighbour among the tied labels counts.
pub fn label_accuracy(neighbours: &[Vec<Neighbour>], labels: &[u8], k: usize) -> f64 {
    let right = neighbours.iter().zip(labels).filter(|(row, own)| {
        let mut votes = [0usize; 256];
        let near = &row[..row.len().min(k)];
        near.iter().for_each(|n| votes[usize::from(labels[n.index])] += 1);
        let most = votes.iter().max();
        let first = near.iter().map(|n| labels[n.index]).find(|l| Some(&votes[usize::from(*l)]) == most);
        first == Some(**own)
    });
    right.count() as f64 / labels.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_points_on_a_line() {
        let points = [0.0, 1.0, 3.0, 3.5, 9.0];
        let found = nearest(&points, 1, 2, |_| {});
        let indices: Vec<Vec<usize>> =
            found.iter().map(|row| row.iter().map(|n| n.index).collect()).collect();
        assert_eq!(indices, [[1, 2], [0, 2], [3, 1], [2, 1], [3, 2]]);
        assert_eq!(found[4][0].distance, 5.5);
        // With one neighbour: 0, 1 have the neighbour's label; 2, 3 and 4 do not.
        assert_eq!(label_accuracy(&found, &[7, 7, 7, 1, 2], 1), 0.4);
        // With two neighbours of different labels, the nearer one counts.
        assert_eq!(label_accuracy(&found, &[7, 7, 1, 1, 1], 2), 1.0);
    }

    #[test]
    fn distances_in_many_dimensions() {
        let points: Vec<f32> = (0..3 * 11).map(|i| (i * i % 17) as f32).collect();
        let (a, b) = (&points[..11], &points[11..22]);
        let expected: f32 = a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum();
        assert_eq!(squared_distance(a, b), expected);
        assert_eq!(nearest(&points, 11, 1, |_| {}).len(), 3);
    }
}
