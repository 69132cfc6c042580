//! Operations on each element, with the host's own functions beside them.

use super::{APPROXIMATE, Case, ROUNDED, case, f32s, truths};
use crate::engine::array::Array;
use crate::engine::ir::Sym;
use crate::engine::shape::{DType, Shape};

const ANY: [f32; 8] = [-2.0, -1.25, -0.5, 0.0, 0.25, 1.0, 1.5, 2.0];
const POSITIVE: [f32; 8] = [0.001, 0.25, 0.5, 1.0, 1.5, 2.0, 7.0, 1000.0];
const OTHER: [f32; 8] = [2.0, -1.25, 0.75, -4.0, 0.5, 1.0, -8.0, 0.25];

/// A function of one number.
fn one(
    name: &str,
    inputs: [f32; 8],
    build: impl for<'g> Fn(Sym<'g>) -> Sym<'g> + 'static,
    host: impl Fn(f64) -> f64,
) -> Case {
    let expected = inputs.map(|v| host(f64::from(v)) as f32);
    case(name, vec![f32s(&[8], &inputs)], f32s(&[8], &expected), move |_, x| build(x[0]))
}

/// A function of two numbers.
fn two(
    name: &str,
    build: impl for<'g> Fn(Sym<'g>, Sym<'g>) -> Sym<'g> + 'static,
    host: impl Fn(f32, f32) -> f32,
) -> Case {
    let expected: Vec<f32> = ANY.iter().zip(OTHER).map(|(a, b)| host(*a, b)).collect();
    let inputs = vec![f32s(&[8], &ANY), f32s(&[8], &OTHER)];
    case(name, inputs, f32s(&[8], &expected), move |_, x| build(x[0], x[1]))
}

/// A comparison of two numbers.
fn comparison(
    name: &str,
    build: impl for<'g> Fn(Sym<'g>, Sym<'g>) -> Sym<'g> + 'static,
    host: impl Fn(&f32, &f32) -> bool,
) -> Case {
    let expected: Vec<bool> = ANY.iter().zip(&OTHER).map(|(a, b)| host(a, b)).collect();
    let inputs = vec![f32s(&[8], &ANY), f32s(&[8], &OTHER)];
    case(name, inputs, truths(&expected), move |_, x| build(x[0], x[1]))
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = unary();
    cases.extend([
        two("add", |a, b| a + b, |a, b| a + b),
        two("sub", |a, b| a - b, |a, b| a - b),
        two("mul", |a, b| a * b, |a, b| a * b),
        two("div", |a, b| a / b, |a, b| a / b).within(ROUNDED),
        two("max", |a, b| a.max(b), f32::max),
        two("min", |a, b| a.min(b), f32::min),
        two("recall", |a, b| a.recall(b), |_, b| b),
        two("select", |a, b| a.gt(b).select(a, b * 3.0), |a, b| if a > b { a } else { b * 3.0 }),
        comparison("eq", |a, b| a.eq(b), f32::eq),
        comparison("ne", |a, b| a.ne(b), f32::ne),
        comparison("lt", |a, b| a.lt(b), |a, b| a < b),
        comparison("le", |a, b| a.le(b), |a, b| a <= b),
        comparison("gt", |a, b| a.gt(b), |a, b| a > b),
        comparison("ge", |a, b| a.ge(b), |a, b| a >= b),
    ]);
    let edges = [0.0, -1.0, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let finite: Vec<bool> = edges.iter().map(|v| v.is_finite()).collect();
    cases.push(case("is_finite", vec![f32s(&[6], &edges)], truths(&finite), |_, x| x[0].is_finite()));
    let row = vec![f32s(&[2, 1], &[1.0, 2.0]), f32s(&[3], &[10.0, 20.0, 30.0])];
    let sums = f32s(&[2, 3], &[11.0, 21.0, 31.0, 12.0, 22.0, 32.0]);
    cases.push(case("broadcasting", row, sums, |_, x| x[0] + x[1]));
    cases
}

fn unary() -> Vec<Case> {
    let softplus = |v: f64| v.max(0.0) + (-v.abs()).exp().ln_1p();
    let approximate = vec![
        one("exp", ANY, |x| x.exp(), f64::exp),
        one("expm1", ANY, |x| x.expm1(), f64::exp_m1),
        one("log", POSITIVE, |x| x.log(), f64::ln),
        one("log1p", POSITIVE, |x| x.log1p(), f64::ln_1p),
        one("sqrt", POSITIVE, |x| x.sqrt(), f64::sqrt),
        one("tanh", ANY, |x| x.tanh(), f64::tanh),
        one("elu", ANY, |x| x.elu(), |v| if v > 0.0 { v } else { v.exp_m1() }),
        one("softplus", ANY, |x| x.softplus(), softplus),
        one("sigmoid", ANY, |x| x.sigmoid(), |v| 1.0 / (1.0 + (-v).exp())),
    ];
    let mut cases: Vec<Case> = approximate.into_iter().map(|c| c.within(APPROXIMATE)).collect();
    cases.extend([
        one("neg", ANY, |x| -x, |v| -v),
        one("abs", ANY, |x| x.abs(), f64::abs),
        one("sign", ANY, |x| x.sign(), |v| if v == 0.0 { 0.0 } else { v.signum() }),
        one("detach", ANY, |x| x.detach(), |v| v),
        one("keep", ANY, |x| x.keep(), |v| v),
    ]);
    // Rounded to the nearest, and of two as near to the even one.
    let given = [1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1.0 - 1.0 / 512.0, 1.0e-30];
    let rounded = [1.0, 1.0, 1.0 + 4.0 / 256.0, -1.0, f32::from_bits(0x0da2_0000)];
    cases.push(case("convert to bf16", vec![f32s(&[5], &given)], f32s(&[5], &rounded), |_, x| {
        x[0].convert(DType::Bf16).convert(DType::F32)
    }));
    let cut = Array::new(&[8], &ANY.map(|v| v as i32));
    cases.push(case("convert to s32", vec![f32s(&[8], &ANY)], cut, |_, x| x[0].convert(DType::S32)));
    cases
}

fn u32s(values: &[u32]) -> Array {
    Array::new(&[values.len()], values)
}

pub(super) fn integer_cases() -> Vec<Case> {
    let (a, b) = ([7u32, 0xFFFF_FFFF, 0x8000_0001, 12_345], [3u32, 2, 0x1001, 0xFFF0_0000]);
    let both =
        move |name: &str, build: for<'g> fn(Sym<'g>, Sym<'g>) -> Sym<'g>, host: fn(u32, u32) -> u32| {
            let expected: Vec<u32> = a.iter().zip(b).map(|(a, b)| host(*a, b)).collect();
            case(name, vec![u32s(&a), u32s(&b)], u32s(&expected), move |_, x| build(x[0], x[1]))
        };
    let signed = [-7i32, -1, 5, i32::MIN];
    let truth = [true, false, true, false];
    let zeros_and_ones = Array::new(&[4], &[1u8, 0, 1, 0]);
    vec![
        both("add", |a, b| a + b, u32::wrapping_add),
        both("sub", |a, b| a - b, u32::wrapping_sub),
        both("mul", |a, b| a * b, u32::wrapping_mul),
        both("div", |a, b| a / b, |a, b| a / b),
        both("rem", |a, b| a % b, |a, b| a % b),
        both("and", |a, b| a.and(b), |a, b| a & b),
        both("or", |a, b| a.or(b), |a, b| a | b),
        both("xor", |a, b| a.xor(b), |a, b| a ^ b),
        both("max", |a, b| a.max(b), u32::max),
        // The sign is that of the dividend.
        case("rem of s32", vec![Array::new(&[4], &signed)], Array::new(&[4], &[-3i32, -1, 1, 0]), |_, x| {
            x[0] % 4.0
        }),
        case("not", vec![zeros_and_ones.clone()], truths(&truth.map(|v| !v)), |_, x| {
            x[0].ne(x[0].like(0.0)).logical_not()
        }),
        case("and, or, xor of truths", vec![zeros_and_ones], truths(&truth), |g, x| {
            let t = x[0].ne(x[0].like(0.0));
            let all = g.full(&Shape::new(DType::Pred, &[4]), 1.0);
            // t and (true, or t without all): t
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
