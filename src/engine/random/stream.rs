//! A generator of a key's random words, for the distributions and shuffles of `rand` and `rand_distr`.

use std::convert::Infallible;

use rand::{SeedableRng, TryRng};

use super::Key;

/// A generator of `rand` whose word `i` is element `i` of [`Key::bits32`], as in JAX's `random.bits(key)`. Its trait
/// [`rand::Rng`] was called `RngCore` before version 0.10.
///
/// A [`Key`] is stateless: its copies draw the same numbers each time. A generator has a position, and cannot be copied by
/// accident. For several generators, split the key. A key with a generator should make no other draws, which would use the same
/// words.
///
/// Use it only for draws that no stored result depends on, because another version of `rand` may draw differently. Runs, images
/// of glyphs and orders of images use the methods of [`Key`], which draw the same numbers as JAX and graphs on devices.
///
/// ```
/// use rand::RngExt;
/// use rand::seq::SliceRandom;
/// use rand_distr::StandardNormal;
/// use vnca::engine::random::Key;
///
/// let [points, order] = Key::new(7).split2();
/// let cloud: Vec<f32> = points.rng().sample_iter(StandardNormal).take(100).collect();
/// let mut rows: Vec<usize> = (0..100).collect();
/// rows.shuffle(&mut order.rng());
/// # assert!(cloud.iter().all(|x| x.is_finite()) && rows != (0..100).collect::<Vec<_>>());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRng {
    key: Key,
    /// Words drawn so far.
    at: u64,
}

impl Key {
    /// Returns a generator of this key's words.
    pub fn rng(self) -> KeyRng {
        KeyRng { key: self, at: 0 }
    }
}

impl KeyRng {
    fn words<const N: usize>(&mut self) -> [u32; N] {
        let mut words = [0; N];
        self.key.bits32_from(self.at, &mut words);
        self.at += N as u64;
        words
    }
}

impl TryRng for KeyRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let [word] = self.words();
        Ok(word)
    }

    /// Combines two words, the low one first.
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let [low, high] = self.words();
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    /// Fills the bytes with words in little-endian order. Drops unused bytes of the last word.
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for part in out.chunks_mut(4) {
            let [word] = self.words();
            part.copy_from_slice(&word.to_le_bytes()[..part.len()]);
        }
        Ok(())
    }
}

impl SeedableRng for KeyRng {
    /// The key's two words in little-endian order.
    type Seed = [u8; 8];

    fn from_seed([a, b, c, d, e, f, g, h]: [u8; 8]) -> KeyRng {
        Key([u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]).rng()
    }

    /// Returns the generator of [`Key::new`], so that seeds mean the same as in JAX and on the command line.
    fn seed_from_u64(seed: u64) -> KeyRng {
        Key::new(seed).rng()
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, RngExt};
    use rand_distr::StandardNormal;

    use super::*;

    #[test]
    fn the_words_are_those_of_the_key_in_any_form() {
        let words = Key::new(3).bits32(6);
        let mut rng = Key::new(3).rng();
        assert_eq!([rng.next_u32(), rng.next_u32()], words[..2]);
        assert_eq!(rng.next_u64(), u64::from(words[3]) << 32 | u64::from(words[2]));
        let mut bytes = [0; 6];
        rng.fill_bytes(&mut bytes);
        let all: Vec<u8> = words[4..].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(bytes, all[..6]);
        // Unused bytes of a word are dropped.
        assert_eq!(rng.next_u32(), Key::new(3).bits32(7)[6]);
    }

    #[test]
    fn a_seed_is_a_key() {
        assert_eq!(KeyRng::seed_from_u64(0x0000_0005_0000_0009), Key([5, 9]).rng());
        assert_eq!(KeyRng::from_seed([5, 0, 0, 0, 9, 0, 0, 0]), Key([5, 9]).rng());
        let fork = KeyRng::from_rng(&mut Key::new(1).rng());
        let words = Key::new(1).bits32(2);
        assert_eq!(fork, Key([words[0], words[1]]).rng());
    }

    #[test]
    fn distributions_of_other_crates_accept_the_generator() {
        let n = 20_000;
        let drawn: Vec<f64> = Key::new(8).rng().sample_iter(StandardNormal).take(n).collect();
        let mean = drawn.iter().sum::<f64>() / n as f64;
        let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean}, {variance}");
    }
}
