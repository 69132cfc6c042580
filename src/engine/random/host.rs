//! Random numbers on the host, equal to JAX's threefry2x32: equal keys give the same numbers.
//!
//! Every draw is *partitionable*: element `i` depends on the key and on `i` alone, not on the number of elements drawn. A part
//! of a draw therefore costs only that part, and loops over elements carry no state.
//!
//! Reference: J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), threefry with 20 rounds; and JAX with
//! `jax_threefry_partitionable` on.

/// Elements in a block. Within a block the high word of the index is constant.
const BLOCK: usize = 1 << 16;

/// A threefry key, the whole state of a random generator. A copy repeats the numbers; [`Key::split`] derives new keys.
///
/// ```
/// use vnca::engine::random::Key;
///
/// // The numbers of jax.random.uniform(jax.random.key(0), 2).
/// assert_eq!(Key::new(0).uniform(2, 0.0, 1.0), [0.947667, 0.9785799]);
///
/// let [weights, noise] = Key::new(1).split2();
/// assert_ne!(weights.bits32(4), noise.bits32(4));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub [u32; 2]);

/// Computes the threefry2x32 hash of the counter `(x0, x1)` under `key`.
#[inline(always)]
fn threefry2x32(key: [u32; 2], mut x0: u32, mut x1: u32) -> (u32, u32) {
    const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let schedule = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD1_1BDA];
    x0 = x0.wrapping_add(schedule[0]);
    x1 = x1.wrapping_add(schedule[1]);
    for group in 0..5 {
        for rotation in ROTATIONS[group % 2] {
            x0 = x0.wrapping_add(x1);
            x1 = x1.rotate_left(rotation) ^ x0;
        }
        x0 = x0.wrapping_add(schedule[(group + 1) % 3]);
        x1 = x1.wrapping_add(schedule[(group + 2) % 3]).wrapping_add(group as u32 + 1);
    }
    (x0, x1)
}

impl Key {
    /// Creates the key of a seed, which consists of the seed's high and low word, as `jax.random.key(seed)`.
    pub fn new(seed: u64) -> Key {
        Key([(seed >> 32) as u32, seed as u32])
    }

    /// Derives the `i`-th key of a split. It does not depend on the number of keys in the split.
    pub fn split_at(self, i: u64) -> Key {
        let (a, b) = threefry2x32(self.0, (i >> 32) as u32, i as u32);
        Key([a, b])
    }

    /// Derives `n` new keys.
    pub fn split(self, n: usize) -> Vec<Key> {
        (0..n as u64).map(|i| self.split_at(i)).collect()
    }

    /// Derives two new keys.
    pub fn split2(self) -> [Key; 2] {
        [self.split_at(0), self.split_at(1)]
    }

    /// Derives three new keys.
    pub fn split3(self) -> [Key; 3] {
        [self.split_at(0), self.split_at(1), self.split_at(2)]
    }

    /// Draws the elements `start..start + out.len()` of [`Key::bits32`] into `out`.
    pub fn bits32_from(self, start: u64, out: &mut [u32]) {
        self.fill(start, out, |bits| bits);
    }

    /// Draws `n` uniform 32-bit words.
    pub fn bits32(self, n: usize) -> Vec<u32> {
        self.draw(n, |bits| bits)
    }

    /// Draws `n` uniform numbers in `[min, max)`, from 23 random bits each.
    pub fn uniform(self, n: usize, min: f32, max: f32) -> Vec<f32> {
        let scale = Scale::new(min, max);
        match scale.exact {
            true => self.draw(n, |bits| scale.fused_in_f64(unit(bits))),
            false => self.draw(n, |bits| scale.fused(unit(bits))),
        }
    }

    /// Draws `n` standard normal numbers.
    pub fn normal(self, n: usize) -> Vec<f32> {
        const LOW: f32 = -1.0 + f32::EPSILON / 2.0;
        self.draw(n, |bits| {
            // JAX's span 1 - LOW rounds to 2. The multiplication is therefore exact, and fusing it with the addition changes
            // nothing.
            let u = (unit(bits) * 2.0 + LOW).max(LOW);
            std::f32::consts::SQRT_2 * erf_inv(u)
        })
    }

    /// Draws `n` booleans. Element `i` is true with probability `p(i)`.
    pub fn bernoulli(self, n: usize, p: impl Fn(usize) -> f32) -> Vec<bool> {
        let mut out = vec![false; n];
        let mut bits = [0u32; 1024];
        for (block, out) in out.chunks_mut(bits.len()).enumerate() {
            let start = block * bits.len();
            let bits = &mut bits[..out.len()];
            self.bits32_from(start as u64, bits);
            for (i, (out, &bits)) in out.iter_mut().zip(&*bits).enumerate() {
                *out = unit(bits) < p(start + i);
            }
        }
        out
    }

    /// Draws `n` uniform integers in `[min, max)`. As in JAX, an empty range (`max <= min`) gives `min`.
    pub fn randint(self, n: usize, min: i32, max: i32) -> Vec<i32> {
        let span = if max <= min { 1 } else { max.wrapping_sub(min) as u32 };
        let half = (1u32 << 16) % span;
        let multiplier = half.wrapping_mul(half) % span;
        let [high, low] = self.split2();
        let mut out = high.bits32(n);
        for (high, low) in out.iter_mut().zip(low.bits32(n)) {
            *high = (*high % span).wrapping_mul(multiplier).wrapping_add(low % span) % span;
        }
        out.into_iter().map(|offset| min.wrapping_add(offset as i32)).collect()
    }

    /// Draws a permutation of `0..n`.
    ///
    /// # Panics
    /// When `n` does not fit in 32 bits.
    pub fn permutation(self, n: usize) -> Vec<u32> {
        let n = u32::try_from(n).expect("a permutation has fewer than 2^32 elements");
        let mut order: Vec<u32> = (0..n).collect();
        let mut key = self;
        // Longer arrays need more rounds, because 32-bit sort keys collide and equal keys keep the order of the last round.
        let rounds = (3.0 * f64::from(n.max(1)).ln() / f64::from(u32::MAX).ln()).ceil() as u32;
        for _ in 0..rounds {
            let [next, sub] = key.split2();
            key = next;
            // The index in the low word makes an unstable sort stable.
            let mut keyed: Vec<u64> =
                (0u64..).zip(sub.bits32(n as usize)).map(|(i, bits)| u64::from(bits) << 32 | i).collect();
            keyed.sort_unstable();
            order = keyed.into_iter().map(|key_and_index| order[key_and_index as u32 as usize]).collect();
        }
        order
    }

    /// Returns `f(bits of element i)` for each `i` below `n`.
    fn draw<T: Copy + Default>(self, n: usize, f: impl Fn(u32) -> T) -> Vec<T> {
        let mut out = vec![T::default(); n];
        self.fill(0, &mut out, f);
        out
    }

    /// Sets `out[i] = f(bits of element start + i)`.
    fn fill<T>(self, start: u64, out: &mut [T], f: impl Fn(u32) -> T) {
        // The first block ends at a multiple of BLOCK. So the low word of the index wraps around in no block.
        let first = BLOCK - (start % BLOCK as u64) as usize;
        let (head, tail) = out.split_at_mut(first.min(out.len()));
        let mut at = start;
        for block in std::iter::once(head).chain(tail.chunks_mut(BLOCK)) {
            let (high, low) = ((at >> 32) as u32, at as u32);
            at += block.len() as u64;
            for (i, out) in block.iter_mut().enumerate() {
                let (a, b) = threefry2x32(self.0, high, low + i as u32);
                *out = f(a ^ b);
            }
        }
    }
}

/// Converts a word to a number in `[0, 1)` by its upper 23 bits.
#[inline(always)]
pub fn unit(bits: u32) -> f32 {
    // Exact: an integer below 2^23 times a power of two. The cast to i32 is for CPUs that convert only i32 vectors.
    (bits >> 9) as i32 as f32 * (1.0 / (1 << 23) as f32)
}

/// Maps `[0, 1)` to `[min, max)` as XLA's CPU backend does: multiplication and addition are rounded once.
#[derive(Clone, Copy)]
struct Scale {
    min: f32,
    span: f32,
    /// Whether the computation in f64 is exact before it is rounded to f32.
    exact: bool,
}

impl Scale {
    fn new(min: f32, max: f32) -> Scale {
        let span = max - min;
        // The product has up to 24 + 23 bits, and its lowest bit is 2^-23 times the span's. If `min` is about as large as the
        // span, the sum fits in the 53 bits of an f64.
        let exact = min == 0.0 || (min.abs() <= span * 16.0 && min.abs() * 16.0 >= span);
        Scale { min, span, exact }
    }

    /// Equals [`Scale::fused`] where `exact`. Its instructions have vector forms on every CPU.
    #[inline(always)]
    fn fused_in_f64(self, unit: f32) -> f32 {
        let value = (f64::from(unit) * f64::from(self.span) + f64::from(self.min)) as f32;
        if value < self.min { self.min } else { value }
    }

    /// Maps a number by a fused multiply-add.
    fn fused(self, unit: f32) -> f32 {
        unit.mul_add(self.span, self.min).max(self.min)
    }
}

/// Coefficients of `erf_inv` for w = −log(1 − x²) < 5: a polynomial in w − 2.5, highest power first.
pub(super) const ERF_INV_CENTRE: [f32; 9] = [
    2.810_226_4e-8,
    3.432_739_4e-7,
    -3.523_387_7e-6,
    -4.391_506_5e-6,
    2.185_808_7e-4,
    -1.253_725e-3,
    -4.177_681_6e-3,
    0.246_640_73,
    1.501_409_4,
];
/// Coefficients of `erf_inv` for w ≥ 5: a polynomial in √w − 3, highest power first.
pub(super) const ERF_INV_TAIL: [f32; 9] = [
    -2.002_142_6e-4,
    1.009_505_6e-4,
    1.349_343_2e-3,
    -3.673_428_4e-3,
    5.739_507_7e-3,
    -7.622_461_3e-3,
    9.438_870_5e-3,
    1.001_674,
    2.832_976_8,
];

/// Computes the inverse error function in single precision, for `-1 < x < 1`.
///
/// Source: M. Giles, "Approximating the erfinv function" (GPU Computing Gems, 2011), with the coefficients that XLA uses.
fn erf_inv(x: f32) -> f32 {
    let w = -(-x * x).ln_1p();
    let (coefficients, w) = if w < 5.0 { (ERF_INV_CENTRE, w - 2.5) } else { (ERF_INV_TAIL, w.sqrt() - 3.0) };
    coefficients.iter().fold(0.0, |sum, c| sum * w + c) * x
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All expected numbers come from JAX 0.10.2 on a CPU, with `jax.random.key(0)`.
    const KEY: Key = Key([0, 0]);

    #[test]
    fn a_key_is_the_seeds_two_words() {
        assert_eq!(Key::new(0), KEY);
        assert_eq!(Key::new(0x0123_4567_89ab_cdef), Key([0x0123_4567, 0x89ab_cdef]));
    }

    #[test]
    fn threefry_gives_the_published_test_vectors() {
        // From the Random123 distribution's known answers.
        assert_eq!(threefry2x32([0, 0], 0, 0), (0x6b20_0159, 0x99ba_4efe));
        assert_eq!(threefry2x32([u32::MAX; 2], u32::MAX, u32::MAX), (0x1cb9_96fc, 0xbb00_2be7));
        assert_eq!(
            threefry2x32([0x1319_8a2e, 0x0370_7344], 0x243f_6a88, 0x85a3_08d3),
            (0xc492_3a9c, 0x483d_f7a0)
        );
    }

    #[test]
    fn splits_equal_jax() {
        let keys =
            [Key([1797259609, 2579123966]), Key([928981903, 3453687069]), Key([4146024105, 2718843009])];
        assert_eq!(KEY.split(3), keys);
        assert_eq!(KEY.split3(), keys);
        assert_eq!(KEY.split2(), keys[..2]);
        assert_eq!(KEY.split_at(2), keys[2]);
    }

    #[test]
    fn bits_equal_jax() {
        let bits = [
            4070199207, 4202968722, 1427181096, 2012915765, 2447653815, 710830403, 1332275837, 2961296638,
            3207338339, 734502358, 4232062733, 108588429, 2748958889, 2416739154, 3862094091,
        ];
        assert_eq!(KEY.bits32(15), bits);
        assert!(KEY.bits32(0).is_empty());
    }

    #[test]
    fn a_part_of_a_draw_equals_the_whole() {
        let whole = KEY.bits32(2 * BLOCK + 10);
        for (start, len) in [(0, 3), (7, BLOCK), (BLOCK - 1, BLOCK + 2), (2 * BLOCK, 10)] {
            let mut part = vec![0; len];
            KEY.bits32_from(start as u64, &mut part);
            assert_eq!(part, whole[start..start + len], "from {start}, {len} long");
        }
        // Where the low word of the index wraps around, the high word increases.
        let mut across = [0; 4];
        KEY.bits32_from((1 << 32) - 2, &mut across);
        for (i, bits) in (u64::from(u32::MAX) - 1..).zip(across) {
            let Key([a, b]) = KEY.split_at(i);
            assert_eq!(a ^ b, bits);
        }
    }

    #[test]
    fn uniforms_equal_jax_to_the_last_bit() {
        let unit = [
            0.947_667,
            0.978_579_9,
            0.332_291_48,
            0.468_668_46,
            0.569_888_7,
            0.165_503_02,
            0.310_194_6,
            0.689_480_54,
        ];
        assert_eq!(KEY.uniform(8, 0.0, 1.0), unit);
        let symmetric = [
            0.179_066_8,
            0.191_431_95,
            -0.067_083_41,
            -0.012_532_616,
            0.027_955_486,
            -0.133_798_8,
            -0.075_922_154,
            0.075_792_216,
        ];
        assert_eq!(KEY.uniform(8, -0.2, 0.2), symmetric);
    }

    #[test]
    fn first_weights_equal_jax_to_the_last_bit() {
        // The first and third layer of the published models' encoder: 1 and 64 input channels, 5x5 kernels.
        let layers = KEY.split2()[0].split(6);
        let first = layers[0].split2()[0].uniform(800, -0.2, 0.2);
        assert_eq!(first[..3], [-0.171_301_71, -0.054_991_63, -0.025_643_587]);
        assert_eq!(first[799], -0.181_107_52);
        let limit = (1.0 / 1600f64.sqrt()) as f32;
        let third = layers[2].split2()[0].uniform(128 * 1600, -limit, limit);
        assert_eq!(third[..3], [-0.022_822_32, -0.012_056_41, 0.017_492_82]);
        assert_eq!(third[128 * 1600 - 1], -0.007_913_184);
    }

    #[test]
    fn both_forms_of_scaling_agree() {
        for (min, max) in [(-0.2, 0.2), (-1.0 / 27.7, 1.0 / 27.7), (0.1, 1.7), (-3.0, 0.0), (0.0, 0.3)] {
            let scale = Scale::new(min, max);
            assert!(scale.exact, "{min} {max}");
            for bits in KEY.bits32(10_000) {
                let fused = scale.fused(unit(bits));
                assert_eq!(scale.fused_in_f64(unit(bits)).to_bits(), fused.to_bits());
                assert!(min <= fused && fused <= max);
            }
        }
        assert!(!Scale::new(1000.0, 1000.5).exact);
        assert!(KEY.uniform(1000, 1000.0, 1000.5).iter().all(|x| (1000.0..=1000.5).contains(x)));
    }

    #[test]
    fn normals_equal_jax() {
        let expected = [
            1.622_642_2,
            2.025_264_7,
            -0.433_594_44,
            -0.078_617_35,
            0.176_090_9,
            -0.972_089_23,
            -0.495_298_74,
            0.494_378_6f32,
        ];
        for (got, want) in KEY.normal(8).into_iter().zip(expected) {
            assert!((got - want).abs() <= 1e-6 * want.abs(), "got {got}, want {want}");
        }
        let many: Vec<f64> = KEY.normal(100_000).into_iter().map(f64::from).collect();
        let mean = many.iter().sum::<f64>() / 1e5;
        let deviation = (many.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1e5).sqrt();
        assert!((mean - -0.001_721_436_157).abs() < 1e-7, "{mean}");
        assert!((deviation - 1.001_887_440_68).abs() < 1e-6, "{deviation}");
    }

    #[test]
    fn erf_inv_inverts_erf_in_both_branches() {
        // erf(0.5), erf(2.5) and erf(3). The last two lie in the tail (w > 5).
        assert!((erf_inv(0.520_499_9) - 0.5).abs() < 1e-6);
        assert!((erf_inv(0.999_593_1) - 2.5).abs() < 1e-4);
        assert!((erf_inv(-0.999_977_9) + 3.0).abs() < 1e-2);
        assert_eq!(erf_inv(0.0), 0.0);
        let extreme = erf_inv(-1.0 + f32::EPSILON / 2.0);
        assert!(extreme.is_finite() && extreme < -3.8, "{extreme}");
    }

    #[test]
    fn integers_equal_jax() {
        assert_eq!(KEY.randint(16, 32, 64), [37, 48, 40, 61, 35, 51, 48, 63, 53, 59, 36, 42, 56, 35, 59, 35]);
        assert_eq!(KEY.randint(16, 0, 5), [4, 0, 2, 3, 1, 2, 2, 3, 3, 3, 1, 4, 0, 4, 4, 0]);
        assert_eq!(KEY.randint(2, 0, 16), [5, 0]);
        assert_eq!(KEY.randint(3, 9, 9), [9; 3]);
        assert!(KEY.randint(1000, -7, 12).iter().all(|x| (-7..12).contains(x)));
        assert!(KEY.randint(1000, i32::MIN, i32::MAX).iter().any(|&x| x < 0));
    }

    #[test]
    fn tosses_equal_jax() {
        let heads: Vec<usize> = (0..).zip(KEY.bernoulli(32, |_| 0.13)).filter(|t| t.1).map(|t| t.0).collect();
        assert_eq!(heads, [11, 19, 20, 30]);
        let by_index = KEY.bernoulli(3000, |i| (i % 2) as f32);
        assert!(by_index.iter().enumerate().all(|(i, &heads)| heads == (i % 2 == 1)));
    }

    #[test]
    fn permutations_equal_jax() {
        assert_eq!(KEY.permutation(16), [0, 1, 8, 12, 5, 6, 4, 13, 14, 3, 10, 2, 7, 15, 11, 9]);
        assert_eq!(
            KEY.permutation(1024)[..16],
            [166, 872, 474, 336, 210, 769, 0, 475, 36, 835, 420, 209, 234, 609, 868, 613]
        );
        let long = KEY.permutation(60_000);
        assert_eq!(long[..8], [48820, 47051, 9095, 5778, 25367, 40208, 19520, 18286]);
        let sum = (0u32..).zip(&long).fold(0u32, |sum, (i, &p)| sum.wrapping_add(i.wrapping_mul(p)));
        assert_eq!(sum, 319_343_559);
        assert_eq!((KEY.permutation(0), KEY.permutation(1)), (vec![], vec![0]));
    }
}
