//! The draws of [`super::host`] as nodes of a graph. Equal keys give equal numbers on every device.
//!
//! A key is a u32 array (batch..., 2), whose last dimension holds the key's two words. Each key of a batch makes its own draw, as
//! under JAX's `vmap`.

use crate::engine::array::Array;
use crate::engine::ir::{Graph, Sym};
use crate::engine::random::Key;
use crate::engine::random::host::{ERF_INV_CENTRE, ERF_INV_TAIL};
use crate::engine::shape::{DType, Shape};

const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];

/// Adds a key known while building: u32 (2).
pub fn constant(g: &Graph, key: Key) -> Sym<'_> {
    g.constant(Array::new(&[2], &key.0))
}

/// Rotates the bits of u32 elements. Graphs have no shifts; the compiler turns these multiplications and divisions into them.
fn rotate_left(x: Sym<'_>, by: u32) -> Sym<'_> {
    let power = |n: u32| x.scalar_like(f64::from(n).exp2());
    (x * power(by)).or(x / power(32 - by))
}

/// Hashes the `n` counters (0, first), (0, first + 1), ... under each key. Returns two u32 arrays (batch..., n), the words of the
/// hashes. `first` is a u32 scalar.
fn hash<'g>(keys: Sym<'g>, first: Sym<'g>, n: usize) -> (Sym<'g>, Sym<'g>) {
    let g = keys.graph();
    let batch = keys.dims()[..keys.rank() - 1].to_vec();
    let dims = [batch.as_slice(), &[n]].concat();
    let word = |i: usize| keys.slice_axis(batch.len(), i, i + 1).broadcast_to(&dims);
    let (k0, k1) = (word(0), word(1));
    let k2 = k0.xor(k1).xor(k0.scalar_like(f64::from(0x1BD1_1BDA_u32)));
    let schedule = [k0, k1, k2];
    let counter = g.iota(&Shape::u32(&dims), batch.len()) + first;
    let (mut x0, mut x1) = (k0, counter + k1);
    for group in 0..5 {
        for by in ROTATIONS[group % 2] {
            x0 = x0 + x1;
            x1 = rotate_left(x1, by).xor(x0);
        }
        x0 = x0 + schedule[(group + 1) % 3];
        x1 = x1 + schedule[(group + 2) % 3] + (group as f64 + 1.0);
    }
    (x0, x1)
}

/// Returns a counter known while building, as a u32 scalar.
fn counter<'g>(keys: Sym<'g>, at: usize) -> Sym<'g> {
    keys.graph().scalar(DType::U32, at as f64)
}

/// Derives `n` new keys from each key: (batch..., n, 2).
pub fn split(keys: Sym<'_>, n: usize) -> Sym<'_> {
    split_from(keys, counter(keys, 0), n)
}

/// Derives the `n` keys of a split from index `first` (a u32 scalar) on: (batch..., n, 2).
pub fn split_from<'g>(keys: Sym<'g>, first: Sym<'g>, n: usize) -> Sym<'g> {
    let (a, b) = hash(keys, first, n);
    let column = |x: Sym<'_>| [x.dims().as_slice(), &[1]].concat();
    Sym::concat(&[a.reshape(&column(a)), b.reshape(&column(b))], a.rank())
}

/// Derives `N` new keys and returns each as a separate value, in the shape of `key`.
pub fn split_each<const N: usize>(key: Sym<'_>) -> [Sym<'_>; N] {
    let keys = split(key, N);
    let axis = keys.rank() - 2;
    std::array::from_fn(|i| keys.slice_axis(axis, i, i + 1).reshape(&key.dims()))
}

/// Derives the `i`-th key of each key's split: (batch..., 2). It does not depend on the number of keys in the split.
pub fn split_at(keys: Sym<'_>, i: usize) -> Sym<'_> {
    split_from(keys, counter(keys, i), 1).reshape(&keys.dims())
}

/// Draws uniform 32-bit words: u32 (batch..., dims...).
pub fn bits32<'g>(keys: Sym<'g>, dims: &[usize]) -> Sym<'g> {
    bits32_from(keys, counter(keys, 0), dims)
}

/// Draws the words of a larger draw from index `first` (a u32 scalar) on: u32 (batch..., dims...).
fn bits32_from<'g>(keys: Sym<'g>, first: Sym<'g>, dims: &[usize]) -> Sym<'g> {
    let (a, b) = hash(keys, first, dims.iter().product());
    let batch = &keys.dims()[..keys.rank() - 1];
    a.xor(b).reshape(&[batch, dims].concat())
}

/// Converts words to f32 numbers in `[0, 1)` by their upper 23 bits.
fn unit(bits: Sym<'_>) -> Sym<'_> {
    (bits / bits.scalar_like(512.0)).convert(DType::F32) * (-23f64).exp2()
}

/// Draws uniform numbers in `[min, max)`: f32 (batch..., dims...).
pub fn uniform<'g>(keys: Sym<'g>, dims: &[usize], min: f32, max: f32) -> Sym<'g> {
    in_range(bits32(keys, dims), min, max)
}

/// Converts words to f32 numbers in `[min, max)`.
fn in_range(bits: Sym<'_>, min: f32, max: f32) -> Sym<'_> {
    let scaled = unit(bits) * f64::from(max - min) + f64::from(min);
    scaled.max(scaled.scalar_like(f64::from(min)))
}

/// Draws standard normal numbers: f32 (batch..., dims...).
pub fn normal<'g>(keys: Sym<'g>, dims: &[usize]) -> Sym<'g> {
    normal_from(keys, counter(keys, 0), dims)
}

/// Draws the standard normal numbers of a larger draw from index `first` (a u32 scalar) on: f32 (batch..., dims...).
///
/// A large draw can be made in parts this way, so that it need not be in memory as a whole.
pub fn normal_from<'g>(keys: Sym<'g>, first: Sym<'g>, dims: &[usize]) -> Sym<'g> {
    const LOW: f32 = -1.0 + f32::EPSILON / 2.0;
    erf_inv(in_range(bits32_from(keys, first, dims), LOW, 1.0)) * f64::from(std::f32::consts::SQRT_2)
}

/// Draws booleans (batch..., dims...) that are true with probability `p`, which is f32 and broadcast to the draw.
pub fn bernoulli<'g>(keys: Sym<'g>, dims: &[usize], p: Sym<'g>) -> Sym<'g> {
    unit(bits32(keys, dims)).lt(p)
}

/// Draws uniform integers in `[min, max)`: s32 (batch..., dims...). As in JAX, an empty range gives `min`.
pub fn randint<'g>(keys: Sym<'g>, dims: &[usize], min: i32, max: i32) -> Sym<'g> {
    let span = if max <= min { 1 } else { max.wrapping_sub(min) as u32 };
    let half = (1u32 << 16) % span;
    let multiplier = half.wrapping_mul(half) % span;
    let [high, low] = split_each(keys);
    let modulo = |x: Sym<'g>| x % f64::from(span);
    let offset = modulo(bits32(high, dims)) * f64::from(multiplier) + modulo(bits32(low, dims));
    modulo(offset).convert(DType::S32) + f64::from(min)
}

/// Draws a permutation of 0, 1, ... n − 1 from one key: s32 (n).
pub fn permutation(key: Sym<'_>, n: usize) -> Sym<'_> {
    let g = key.graph();
    // The index in the low word makes the sort stable.
    let index = g.iota(&Shape::new(DType::U64, &[n]), 0);
    let high_word = 32f64.exp2();
    let rounds = (3.0 * (n.max(1) as f64).ln() / f64::from(u32::MAX).ln()).ceil() as usize;
    let mut key = key;
    let mut order = g.iota(&Shape::s32(&[n]), 0);
    for _ in 0..rounds {
        let [next, sub] = split_each(key);
        key = next;
        let keyed = bits32(sub, &[n]).convert(DType::U64) * high_word + index;
        let indices = keyed.sort() % high_word;
        order = order.take(indices.convert(DType::S32));
    }
    order
}

/// Computes the inverse error function as the host does.
fn erf_inv(x: Sym<'_>) -> Sym<'_> {
    let w = -(-(x * x)).log1p();
    let central = w.lt(w.scalar_like(5.0));
    let w = central.select(w - 2.5, w.sqrt() - 3.0);
    let coefficient = |i: usize| {
        central.select(w.scalar_like(f64::from(ERF_INV_CENTRE[i])), w.scalar_like(f64::from(ERF_INV_TAIL[i])))
    };
    (1..9).fold(coefficient(0), |p, i| coefficient(i) + p * w) * x
}
