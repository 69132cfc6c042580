//! The draws of [`super::host`] as nodes of a graph: the same keys give the same numbers on every device.
//!
//! A key is a u32 array whose last dimension holds its two words; the dimensions before it are a batch of keys, each
//! of which makes its own draw, as under JAX's `vmap`.

use crate::engine::array::Array;
use crate::engine::ir::{Graph, Sym};
use crate::engine::random::Key;
use crate::engine::random::host::{ERF_INV_CENTRE, ERF_INV_TAIL};
use crate::engine::shape::{DType, Shape};

const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];

/// A key known while building.
pub fn constant(g: &Graph, key: Key) -> Sym<'_> {
    g.constant(Array::new(&[2], &key.0))
}

/// The builder has no shifts; the compiler turns these products and quotients into them.
fn rotate_left(x: Sym<'_>, by: u32) -> Sym<'_> {
    let power = |n: u32| x.like(f64::from(n).exp2());
    (x * power(by)).or(x / power(32 - by))
}

/// The hash of counters (0, first), (0, first + 1), ... `n` of them, under each key: two arrays (batch..., n). `first` is
/// a u32 scalar.
fn hash<'g>(keys: Sym<'g>, first: Sym<'g>, n: usize) -> (Sym<'g>, Sym<'g>) {
    let g = keys.graph();
    let batch = keys.dims()[..keys.rank() - 1].to_vec();
    let dims = [batch.as_slice(), &[n]].concat();
    let word = |i: usize| keys.slice_axis(batch.len(), i, i + 1).broadcast_to(&dims);
    let (k0, k1) = (word(0), word(1));
    let k2 = k0.xor(k1).xor(k0.like(f64::from(0x1BD1_1BDA_u32)));
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

/// The counter of the first draw, or of another one known while building.
fn counter<'g>(keys: Sym<'g>, at: usize) -> Sym<'g> {
    keys.graph().scalar(DType::U32, at as f64)
}

/// `n` new keys: (batch..., n, 2).
pub fn split(keys: Sym<'_>, n: usize) -> Sym<'_> {
    split_from(keys, counter(keys, 0), n)
}

/// The keys `first` (a u32 scalar) and after of a split: (batch..., n, 2).
pub fn split_from<'g>(keys: Sym<'g>, first: Sym<'g>, n: usize) -> Sym<'g> {
    let (a, b) = hash(keys, first, n);
    let column = |x: Sym<'_>| [x.dims().as_slice(), &[1]].concat();
    Sym::concat(&[a.reshape(&column(a)), b.reshape(&column(b))], a.rank())
}

/// The new keys one by one.
pub fn split_each<const N: usize>(key: Sym<'_>) -> [Sym<'_>; N] {
    let keys = split(key, N);
    let axis = keys.rank() - 2;
    std::array::from_fn(|i| keys.slice_axis(axis, i, i + 1).reshape(&key.dims()))
}

/// The `i`-th key of each key's split. It does not depend on how many keys the split has.
pub fn split_at(keys: Sym<'_>, i: usize) -> Sym<'_> {
    split_from(keys, counter(keys, i), 1).reshape(&keys.dims())
}

/// Uniform 32-bit words: (batch..., dims...).
pub fn bits32<'g>(keys: Sym<'g>, dims: &[usize]) -> Sym<'g> {
    bits32_from(keys, counter(keys, 0), dims)
}

/// The words of a larger draw from its place `first` (a u32 scalar) on: (batch..., dims...).
fn bits32_from<'g>(keys: Sym<'g>, first: Sym<'g>, dims: &[usize]) -> Sym<'g> {
    let (a, b) = hash(keys, first, dims.iter().product());
    let batch = &keys.dims()[..keys.rank() - 1];
    a.xor(b).reshape(&[batch, dims].concat())
}

/// Numbers in [0, 1) of 23 random bits.
fn unit(bits: Sym<'_>) -> Sym<'_> {
    (bits / bits.like(512.0)).convert(DType::F32) * (-23f64).exp2()
}

/// f32 numbers in [min, max).
pub fn uniform<'g>(keys: Sym<'g>, dims: &[usize], min: f32, max: f32) -> Sym<'g> {
    stretched(bits32(keys, dims), min, max)
}

/// The words as numbers in [min, max).
fn stretched(bits: Sym<'_>, min: f32, max: f32) -> Sym<'_> {
    let scaled = unit(bits) * f64::from(max - min) + f64::from(min);
    scaled.max(scaled.like(f64::from(min)))
}

/// Standard normal f32 numbers.
pub fn normal<'g>(keys: Sym<'g>, dims: &[usize]) -> Sym<'g> {
    normal_from(keys, counter(keys, 0), dims)
}

/// The numbers of a larger draw from its place `first` (a u32 scalar) on, so that it need not lie in memory as a whole.
pub fn normal_from<'g>(keys: Sym<'g>, first: Sym<'g>, dims: &[usize]) -> Sym<'g> {
    const LOW: f32 = -1.0 + f32::EPSILON / 2.0;
    erf_inv(stretched(bits32_from(keys, first, dims), LOW, 1.0)) * f64::from(std::f32::consts::SQRT_2)
}

/// Coin tosses, true with probability `p` (f32, broadcast to the draw).
pub fn bernoulli<'g>(keys: Sym<'g>, dims: &[usize], p: Sym<'g>) -> Sym<'g> {
    unit(bits32(keys, dims)).lt(p)
}

/// s32 integers in [min, max).
pub fn randint<'g>(keys: Sym<'g>, dims: &[usize], min: i32, max: i32) -> Sym<'g> {
    let span = if max <= min { 1 } else { max.wrapping_sub(min) as u32 };
    let half = (1u32 << 16) % span;
    let multiplier = half.wrapping_mul(half) % span;
    let [high, low] = split_each(keys);
    let modulo = |x: Sym<'g>| x % f64::from(span);
    let offset = modulo(bits32(high, dims)) * f64::from(multiplier) + modulo(bits32(low, dims));
    modulo(offset).convert(DType::S32) + f64::from(min)
}

/// A permutation of 0, 1, ... n − 1, as s32. The place in the low word makes the sort stable.
pub fn permutation(key: Sym<'_>, n: usize) -> Sym<'_> {
    let g = key.graph();
    let place = g.iota(&Shape::new(DType::U64, &[n]), 0);
    let high_word = 32f64.exp2();
    let rounds = (3.0 * (n.max(1) as f64).ln() / f64::from(u32::MAX).ln()).ceil() as usize;
    let mut key = key;
    let mut order = g.iota(&Shape::s32(&[n]), 0);
    for _ in 0..rounds {
        let [next, sub] = split_each(key);
        key = next;
        let keyed = bits32(sub, &[n]).convert(DType::U64) * high_word + place;
        let places = keyed.sort() % high_word;
        order = order.take(places.convert(DType::S32));
    }
    order
}

/// The inverse error function, as on the host.
fn erf_inv(x: Sym<'_>) -> Sym<'_> {
    let w = -(-(x * x)).log1p();
    let central = w.lt(w.like(5.0));
    let w = central.select(w - 2.5, w.sqrt() - 3.0);
    let coefficient =
        |i: usize| central.select(w.like(f64::from(ERF_INV_CENTRE[i])), w.like(f64::from(ERF_INV_TAIL[i])));
    (1..9).fold(coefficient(0), |p, i| coefficient(i) + p * w) * x
}
