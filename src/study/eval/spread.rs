//! Counts the active latent dimensions: those whose posterior mean varies with the image. Definition: Burda, Grosse &
//! Salakhutdinov, "Importance Weighted Autoencoders" (2016), section 4.1.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// A dimension is active if the variance of its mean over the images is above this.
const ACTIVE_VARIANCE: f64 = 0.01;
/// Means are rounded to multiples of this quantum, so that their sums are exact whatever the order and the shards.
const QUANTUM: f64 = 1.0 / (1u32 << 24) as f64;

/// For each latent dimension, the sums over images of the posterior mean and of its square, in quanta.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spread {
    images: usize,
    sums: Vec<i128>,
    squares: Vec<i128>,
}

impl Spread {
    /// Adds the posterior means of some images, (images, Z) in row-major order.
    pub fn add(&mut self, means: &[f32], images: usize) {
        let latent = means.len() / images.max(1);
        self.resize(latent);
        self.images += images;
        for row in means.chunks_exact(latent.max(1)) {
            for ((mean, sum), square) in row.iter().zip(&mut self.sums).zip(&mut self.squares) {
                let quanta = i128::from((f64::from(*mean) / QUANTUM).round() as i64);
                *sum = sum.saturating_add(quanta);
                *square = square.saturating_add(quanta * quanta);
            }
        }
    }

    fn resize(&mut self, latent: usize) {
        if self.sums.is_empty() {
            (self.sums, self.squares) = (vec![0; latent], vec![0; latent]);
        }
    }

    /// Adds the images of another spread.
    ///
    /// # Errors
    /// When the latent sizes differ.
    pub fn merge(&mut self, other: &Spread) -> Result<()> {
        if other.images == 0 {
            return Ok(());
        }
        self.resize(other.sums.len());
        ensure!(
            self.sums.len() == other.sums.len(),
            "latent sizes {} and {} differ",
            self.sums.len(),
            other.sums.len()
        );
        let add = |own: &mut Vec<i128>, other: &[i128]| {
            own.iter_mut().zip(other).for_each(|(a, b)| *a = a.saturating_add(*b));
        };
        add(&mut self.sums, &other.sums);
        add(&mut self.squares, &other.squares);
        self.images += other.images;
        Ok(())
    }

    /// Returns the variance over the images of each dimension's mean.
    pub fn variances(&self) -> Vec<f64> {
        let n = self.images.max(1) as f64;
        let variance = |(sum, square): (&i128, &i128)| {
            let mean = *sum as f64 / n;
            (*square as f64 / n - mean * mean) * QUANTUM * QUANTUM
        };
        self.sums.iter().zip(&self.squares).map(variance).collect()
    }

    /// Returns the number of active dimensions.
    pub fn active(&self) -> usize {
        self.variances().iter().filter(|v| **v > ACTIVE_VARIANCE).count()
    }
}

/// The form of a [`Spread`] in a file. Sums are strings, because many JSON readers keep only 53 bits of a number.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SerializedSpread {
    images: usize,
    sums: Vec<String>,
    squares: Vec<String>,
}

impl Serialize for Spread {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = |values: &[i128]| values.iter().map(ToString::to_string).collect();
        let written =
            SerializedSpread { images: self.images, sums: text(&self.sums), squares: text(&self.squares) };
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Spread {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Spread, D::Error> {
        let written = SerializedSpread::deserialize(deserializer)?;
        let numbers = |texts: Vec<String>| -> Result<Vec<i128>> {
            texts.iter().map(|t| t.parse().with_context(|| format!("{t:?} is no integer"))).collect()
        };
        let read = || -> Result<Spread> {
            let (sums, squares) = (numbers(written.sums)?, numbers(written.squares)?);
            ensure!(sums.len() == squares.len(), "{} sums and {} squares", sums.len(), squares.len());
            Ok(Spread { images: written.images, sums, squares })
        };
        read().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dimension_that_varies_is_active_and_merging_is_exact() {
        // Three images, two dimensions. The variances are 2/3 and about 1e-6.
        let means = [-1.0f32, 0.3, 0.0, 0.3, 1.0, 0.302];
        let mut whole = Spread::default();
        whole.add(&means, 3);
        assert_eq!(whole.active(), 1);
        assert!((whole.variances()[0] - 2.0 / 3.0).abs() < 1e-6, "{:?}", whole.variances());
        let (mut first, mut rest) = (Spread::default(), Spread::default());
        first.add(&means[..2], 1);
        rest.add(&means[2..], 2);
        let text = serde_json::to_string(&rest).unwrap();
        let mut merged: Spread = serde_json::from_str(&text).unwrap();
        merged.merge(&first).unwrap();
        merged.merge(&Spread::default()).unwrap();
        assert_eq!(merged, whole);
    }
}
