//! Elementwise operations, compared with the host's own functions.

use super::{APPROXIMATE, Case, ROUNDED, bools, case, f32s};
use crate::engine::array::Array;
use crate::engine::ir::Sym;
use crate::engine::shape::{DType, Shape};

/// Inputs of functions that are defined everywhere.
const ANY: [f32; 8] = [-2.0, -1.25, -0.5, 0.0, 0.25, 1.0, 1.5, 2.0];
/// Inputs of functions of positive numbers.
const POSITIVE: [f32; 8] = [0.001, 0.25, 0.5, 1.0, 1.5, 2.0, 7.0, 1000.0];
/// The second operands of binary functions. None is zero.
const OTHER: [f32; 8] = [2.0, -1.25, 0.75, -4.0, 0.5, 1.0, -8.0, 0.25];

/// A case of a function of one number.
fn unary_case(
    name: &str,
    inputs: [f32; 8],
    build: impl for<'g> Fn(Sym<'g>) -> Sym<'g> + 'static,
    host: impl Fn(f64) -> f64,
) -> Case {
    let expected = inputs.map(|v| host(f64::from(v)) as f32);
    case(name, vec![f32s(&[8], &inputs)], f32s(&[8], &expected), move |_, x| build(x[0]))
}

/// A case of a function of two numbers.
fn binary_case(
    name: &str,
    build: impl for<'g> Fn(Sym<'g>, Sym<'g>) -> Sym<'g> + 'static,
    host: impl Fn(f32, f32) -> f32,
) -> Case {
    let expected: Vec<f32> = ANY.iter().zip(OTHER).map(|(a, b)| host(*a, b)).collect();
    let inputs = vec![f32s(&[8], &ANY), f32s(&[8], &OTHER)];
    case(name, inputs, f32s(&[8], &expected), move |_, x| build(x[0], x[1]))
}

/// A case of a comparison of two numbers.
fn comparison_case(
    name: &str,
    build: impl for<'g> Fn(Sym<'g>, Sym<'g>) -> Sym<'g> + 'static,
    host: impl Fn(&f32, &f32) -> bool,
) -> Case {
    let expected: Vec<bool> = ANY.iter().zip(&OTHER).map(|(a, b)| host(a, b)).collect();
    let inputs = vec![f32s(&[8], &ANY), f32s(&[8], &OTHER)];
    case(name, inputs, bools(&expected), move |_, x| build(x[0], x[1]))
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = unary();
    cases.extend([
        binary_case("add", |a, b| a + b, |a, b| a + b),
        binary_case("sub", |a, b| a - b, |a, b| a - b),
        binary_case("mul", |a, b| a * b, |a, b| a * b),
        binary_case("div", |a, b| a / b, |a, b| a / b).with_tolerance(ROUNDED),
        binary_case("max", |a, b| a.max(b), f32::max),
        binary_case("min", |a, b| a.min(b), f32::min),
        binary_case("recall", |a, b| a.recall(b), |_, b| b),
        binary_case("select", |a, b| a.gt(b).select(a, b * 3.0), |a, b| if a > b { a } else { b * 3.0 }),
        comparison_case("eq", |a, b| a.eq(b), f32::eq),
        comparison_case("ne", |a, b| a.ne(b), f32::ne),
        comparison_case("lt", |a, b| a.lt(b), |a, b| a < b),
        comparison_case("le", |a, b| a.le(b), |a, b| a <= b),
        comparison_case("gt", |a, b| a.gt(b), |a, b| a > b),
        comparison_case("ge", |a, b| a.ge(b), |a, b| a >= b),
    ]);
    let special = [0.0, -1.0, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let finite: Vec<bool> = special.iter().map(|v| v.is_finite()).collect();
    cases.push(case("is_finite", vec![f32s(&[6], &special)], bools(&finite), |_, x| x[0].is_finite()));
    let inputs = vec![f32s(&[2, 1], &[1.0, 2.0]), f32s(&[3], &[10.0, 20.0, 30.0])];
    let sums = f32s(&[2, 3], &[11.0, 21.0, 31.0, 12.0, 22.0, 32.0]);
    cases.push(case("broadcasting", inputs, sums, |_, x| x[0] + x[1]));
    cases
}

fn unary() -> Vec<Case> {
    let softplus = |v: f64| v.max(0.0) + (-v.abs()).exp().ln_1p();
    let approximate = vec![
        unary_case("exp", ANY, |x| x.exp(), f64::exp),
        unary_case("expm1", ANY, |x| x.expm1(), f64::exp_m1),
        unary_case("log", POSITIVE, |x| x.log(), f64::ln),
        unary_case("log1p", POSITIVE, |x| x.log1p(), f64::ln_1p),
        unary_case("sqrt", POSITIVE, |x| x.sqrt(), f64::sqrt),
        unary_case("tanh", ANY, |x| x.tanh(), f64::tanh),
        unary_case("sin", ANY, |x| x.sin(), f64::sin),
        unary_case("cos", ANY, |x| x.cos(), f64::cos),
        unary_case("elu", ANY, |x| x.elu(), |v| if v > 0.0 { v } else { v.exp_m1() }),
        unary_case("softplus", ANY, |x| x.softplus(), softplus),
        unary_case("sigmoid", ANY, |x| x.sigmoid(), |v| 1.0 / (1.0 + (-v).exp())),
    ];
    let mut cases: Vec<Case> = approximate.into_iter().map(|c| c.with_tolerance(APPROXIMATE)).collect();
    cases.extend([
        unary_case("neg", ANY, |x| -x, |v| -v),
        unary_case("abs", ANY, |x| x.abs(), f64::abs),
        unary_case("sign", ANY, |x| x.sign(), |v| if v == 0.0 { 0.0 } else { v.signum() }),
        unary_case("detach", ANY, |x| x.detach(), |v| v),
        unary_case("keep", ANY, |x| x.keep(), |v| v),
    ]);
    // bf16 rounds to nearest, ties to even.
    let unrounded = [1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1.0 - 1.0 / 512.0, 1.0e-30];
    let rounded = [1.0, 1.0, 1.0 + 4.0 / 256.0, -1.0, f32::from_bits(0x0da2_0000)];
    cases.push(case("convert to bf16", vec![f32s(&[5], &unrounded)], f32s(&[5], &rounded), |_, x| {
        x[0].convert(DType::Bf16).convert(DType::F32)
    }));
    let truncated = Array::new(&[8], &ANY.map(|v| v as i32));
    cases.push(case("convert to s32", vec![f32s(&[8], &ANY)], truncated, |_, x| x[0].convert(DType::S32)));
    cases
}

fn u32s(values: &[u32]) -> Array {
    Array::new(&[values.len()], values)
}

pub(super) fn integer_cases() -> Vec<Case> {
    let (a, b) = ([7u32, 0xFFFF_FFFF, 0x8000_0001, 12_345], [3u32, 2, 0x1001, 0xFFF0_0000]);
    let integer_case =
        move |name: &str, build: for<'g> fn(Sym<'g>, Sym<'g>) -> Sym<'g>, host: fn(u32, u32) -> u32| {
            let expected: Vec<u32> = a.iter().zip(b).map(|(a, b)| host(*a, b)).collect();
            case(name, vec![u32s(&a), u32s(&b)], u32s(&expected), move |_, x| build(x[0], x[1]))
        };
    let signed = [-7i32, -1, 5, i32::MIN];
    let values = [true, false, true, false];
    let zeros_and_ones = Array::new(&[4], &[1u8, 0, 1, 0]);
    vec![
        integer_case("add", |a, b| a + b, u32::wrapping_add),
        integer_case("sub", |a, b| a - b, u32::wrapping_sub),
        integer_case("mul", |a, b| a * b, u32::wrapping_mul),
        integer_case("div", |a, b| a / b, |a, b| a / b),
        integer_case("rem", |a, b| a % b, |a, b| a % b),
        integer_case("and", |a, b| a.and(b), |a, b| a & b),
        integer_case("or", |a, b| a.or(b), |a, b| a | b),
        integer_case("xor", |a, b| a.xor(b), |a, b| a ^ b),
        integer_case("max", |a, b| a.max(b), u32::max),
        // The remainder has the sign of the dividend.
        case("rem of s32", vec![Array::new(&[4], &signed)], Array::new(&[4], &[-3i32, -1, 1, 0]), |_, x| {
            x[0] % 4.0
        }),
        case("not", vec![zeros_and_ones.clone()], bools(&values.map(|v| !v)), |_, x| {
            x[0].ne(x[0].scalar_like(0.0)).logical_not()
        }),
        case("and, or, xor of truths", vec![zeros_and_ones], bools(&values), |g, x| {
            let t = x[0].ne(x[0].scalar_like(0.0));
            let all = g.full(&Shape::new(DType::Pred, &[4]), 1.0);
            // (t ∧ true) ∨ (t ⊕ t) = t
            t.and(all).or(t.xor(t))
        }),
        case(
            "u32 to u64 to u32",
            vec![u32s(&a)],
            Array::new(&[4], &a.map(|v| ((u64::from(v) << 32) + 5) % 1000)),
            |_, x| (x[0].convert(DType::U64) * 32f64.exp2() + 5.0) % 1000.0,
        ),
        case(
            "u32 to f32",
            vec![u32s(&[0, 1, 1 << 24, 0xFFFF_FF00])],
            f32s(&[4], &[0.0, 1.0, 16_777_216.0, 4_294_967_040.0]),
            |_, x| x[0].convert(DType::F32),
        ),
    ]
}
