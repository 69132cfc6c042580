//! A key's numbers as a stream, for the distributions and shuffles of `rand` and `rand_distr`.

use std::convert::Infallible;

use rand::{SeedableRng, TryRng};

use super::Key;

/// Random words one after the other: word `i` is element `i` of [`Key::bits32`], what JAX's `random.bits(key)` gives. It is a
/// generator of `rand`: its trait [`rand::Rng`] was called `RngCore` before version 0.10.
///
/// This is a type beside [`Key`], for a key has no place in a stream: it is copied freely, and gives the same numbers each
/// time. A stream moves on, and is not copied by accident. Who needs several streams splits the key; a key that has a
/// stream should give no other draws, which would be of the same words.
///
/// For draws that nothing stored depends on. What a run draws, images of glyphs and orders of images come from [`Key`]'s
/// own functions: JAX and graphs on devices draw the same, and another version of `rand` may draw differently.
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
    /// The stream of this key's words.
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

    /// Two words, the low one first.
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let [low, high] = self.words();
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    /// Words in little-endian order. What is left of the last is dropped.
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for part in out.chunks_mut(4) {
            let [word] = self.words();
            part.copy_from_slice(&word.to_le_bytes()[..part.len()]);
        }
        Ok(())
    }
}

impl SeedableRng for KeyRng {
    /// The key's two words, little-endian.
    type Seed = [u8; 8];

    fn from_seed([a, b, c, d, e, f, g, h]: [u8; 8]) -> KeyRng {
        Key([u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]).rng()
    }

    /// The stream of [`Key::new`], as the seeds of JAX and of the command line are.
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
    fn the_words_are_the_keys_own_however_they_are_taken() {
        let words = Key::new(3).bits32(6);
        let mut rng = Key::new(3).rng();
        assert_eq!([rng.next_u32(), rng.next_u32()], words[..2]);
        assert_eq!(rng.next_u64(), u64::from(words[3]) << 32 | u64::from(words[2]));
        let mut bytes = [0; 6];
        rng.fill_bytes(&mut bytes);
        let all: Vec<u8> = words[4..].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(bytes, all[..6]);
        // Nothing of a word is kept.
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
    fn distributions_of_other_crates_take_it() {
        let n = 20_000;
        let drawn: Vec<f64> = Key::new(8).rng().sample_iter(StandardNormal).take(n).collect();
        let mean = drawn.iter().sum::<f64>() / n as f64;
        let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean}, {variance}");
    }
}
