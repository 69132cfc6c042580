//! Operations on corresponding elements, and functions composed of them.
//!
//! Operands are broadcast to each other as in NumPy: dimensions are aligned at the last one, and missing dimensions and
//! dimensions of size 1 are repeated. The broadcast is a separate node. Only its VJP sums cotangents over repeated dimensions.

use std::ops::{Add, Div, Mul, Neg, Rem, Sub};

use crate::engine::ir::graph::Sym;
use crate::engine::ir::op::{Op, Vjp};
use crate::engine::shape::{DType, Shape};

/// An operation on corresponding elements. Its operands have equal sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Elementwise {
    /// −x.
    Neg,
    /// |x|.
    Abs,
    /// −1, 0 or 1.
    Sign,
    /// exp(x).
    Exp,
    /// exp(x) − 1, accurate near 0.
    Expm1,
    /// The natural logarithm of x.
    Log,
    /// log(1 + x), accurate near 0.
    Log1p,
    /// The square root of x.
    Sqrt,
    /// tanh(x).
    Tanh,
    /// sin(x), of radians.
    Sin,
    /// cos(x), of radians.
    Cos,
    /// x where x > 0, exp(x) − 1 elsewhere.
    Elu,
    /// The negation of a boolean.
    Not,
    /// Whether x is neither infinite nor NaN.
    IsFinite,
    /// x as another element type.
    Convert(DType),
    /// x, as a constant for differentiation.
    Detach,
    /// x. The gradient of a loop saves it instead of recomputing it.
    Keep,
    /// Operands: a recomputed value and its saved copy. The result is the copy; the gradient flows to the recomputed value.
    Recall,
    /// x + y.
    Add,
    /// x − y.
    Sub,
    /// x · y.
    Mul,
    /// x / y. Integers are truncated towards zero.
    Div,
    /// The remainder of x / y, with the sign of x.
    Rem,
    /// The larger of x and y.
    Max,
    /// The smaller of x and y.
    Min,
    /// The conjunction of booleans, or bitwise of integers.
    And,
    /// The disjunction of booleans, or bitwise of integers.
    Or,
    /// The exclusive disjunction of booleans, or bitwise of integers.
    Xor,
    /// x = y.
    Eq,
    /// x ≠ y.
    Ne,
    /// x < y.
    Lt,
    /// x ≤ y.
    Le,
    /// x > y.
    Gt,
    /// x ≥ y.
    Ge,
    /// Operands: condition, x, y. x where the condition holds, y elsewhere.
    Select,
}

use Elementwise as E;

impl From<Elementwise> for Op {
    fn from(op: Elementwise) -> Op {
        Op::Elementwise(op)
    }
}

impl Elementwise {
    pub(in crate::engine::ir) fn name(&self) -> &'static str {
        self.into()
    }

    pub(in crate::engine::ir) fn infer(&self, operands: &[Shape]) -> Result<Shape, String> {
        let x = &operands[0];
        let float = |shape: &Shape| match shape.dtype.is_float() {
            true => Ok(shape.clone()),
            false => Err("needs floating-point numbers".to_string()),
        };
        let same = |a: &Shape, b: &Shape| match a == b {
            true => Ok(a.clone()),
            false => Err("operands differ".to_string()),
        };
        match self {
            E::Neg | E::Abs | E::Sign | E::Detach | E::Keep => Ok(x.clone()),
            E::Exp | E::Expm1 | E::Log | E::Log1p | E::Sqrt | E::Tanh | E::Sin | E::Cos | E::Elu => float(x),
            E::IsFinite => Ok(float(x)?.with_dtype(DType::Pred)),
            E::Not if x.dtype == DType::Pred => Ok(x.clone()),
            E::Not => Err("needs booleans".into()),
            E::Convert(dtype) => Ok(x.with_dtype(*dtype)),
            E::Recall | E::Add | E::Sub | E::Mul | E::Div | E::Rem | E::Max | E::Min => same(x, &operands[1]),
            E::And | E::Or | E::Xor => match x.dtype.is_float() {
                true => Err("needs integers or booleans".into()),
                false => same(x, &operands[1]),
            },
            E::Eq | E::Ne | E::Lt | E::Le | E::Gt | E::Ge => {
                Ok(same(x, &operands[1])?.with_dtype(DType::Pred))
            }
            E::Select => match x.dtype == DType::Pred && x.dims == operands[1].dims {
                true => same(&operands[1], &operands[2]),
                false => Err("the condition must be boolean and of the operands' sizes".into()),
            },
        }
    }

    pub(in crate::engine::ir) fn vjp<'g>(&self, at: &Vjp<'_, 'g>) -> Vec<Option<Sym<'g>>> {
        let (ct, y, x) = (at.ct(), at.out(), at.operands[0]);
        let rhs = || at.operands[1];
        let none = || at.operands.iter().map(|_| None).collect();
        match self {
            E::Neg => at.each([&|| -ct]),
            E::Abs => at.each([&|| ct * x.sign()]),
            E::Exp => at.each([&|| ct * y]),
            E::Expm1 => at.each([&|| ct * (y + 1.0)]),
            E::Log => at.each([&|| ct / x]),
            E::Log1p => at.each([&|| ct / (x + 1.0)]),
            E::Sqrt => at.each([&|| ct * 0.5 / y]),
            E::Tanh => at.each([&|| ct * (-(y * y) + 1.0)]),
            E::Sin => at.each([&|| ct * x.cos()]),
            E::Cos => at.each([&|| -(ct * x.sin())]),
            // In terms of the result, so that the operand need not be saved.
            E::Elu => at.each([&|| ct * (y.min(y.scalar_like(0.0)) + 1.0)]),
            E::Convert(_) => match x.dtype().is_float() {
                true => at.each([&|| ct.convert(x.dtype())]),
                false => none(),
            },
            E::Sign | E::Not | E::IsFinite | E::Detach => none(),
            E::Keep => at.each([&|| ct]),
            E::Recall => vec![at.wanted[0].then_some(ct), None],
            E::Add => at.each([&|| ct, &|| ct]),
            E::Sub => at.each([&|| ct, &|| -ct]),
            E::Mul => at.each([&|| ct * rhs(), &|| ct * x]),
            E::Div => at.each([&|| ct / rhs(), &|| -(ct * y / rhs())]),
            // Where both operands are equal, the whole cotangent goes to the first one.
            E::Max => at.each([&|| x.ge(rhs()).mask(ct), &|| x.lt(rhs()).mask(ct)]),
            E::Min => at.each([&|| x.le(rhs()).mask(ct), &|| x.gt(rhs()).mask(ct)]),
            E::Select => {
                let zero = || x.graph().full(&ct.shape(), 0.0);
                vec![
                    None,
                    at.wanted[1].then(|| x.select(ct, zero())),
                    at.wanted[2].then(|| x.select(zero(), ct)),
                ]
            }
            E::Rem | E::And | E::Or | E::Xor | E::Eq | E::Ne | E::Lt | E::Le | E::Gt | E::Ge => none(),
        }
    }
}

/// Returns the sizes to which two operands are broadcast; `None` if they do not fit.
fn common_dims(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |dims: &[usize], i: usize| {
        let missing = rank - dims.len();
        if i < missing { 1 } else { dims[i - missing] }
    };
    (0..rank)
        .map(|i| match (size(a, i), size(b, i)) {
            (m, n) if m == n => Some(m),
            (1, n) => Some(n),
            (m, 1) => Some(m),
            _ => None,
        })
        .collect()
}

macro_rules! unary {
    ($($(#[$doc:meta])* $method:ident => $op:expr;)*) => {$(
        $(#[$doc])*
        #[track_caller]
        pub fn $method(self) -> Sym<'g> {
            self.graph.push(Op::Elementwise($op), &[self])
        }
    )*};
}

macro_rules! binary {
    ($($(#[$doc:meta])* $method:ident => $op:expr;)*) => {$(
        $(#[$doc])*
        #[track_caller]
        pub fn $method(self, rhs: Sym<'g>) -> Sym<'g> {
            self.binary($op, rhs)
        }
    )*};
}

impl<'g> Sym<'g> {
    unary! {
        /// Returns |x|.
        abs => E::Abs;
        /// Returns −1, 0 or 1, by the sign of x.
        sign => E::Sign;
        /// Returns exp(x).
        exp => E::Exp;
        /// Returns exp(x) − 1, accurate near 0.
        expm1 => E::Expm1;
        /// Returns the natural logarithm.
        log => E::Log;
        /// Returns log(1 + x), accurate near 0.
        log1p => E::Log1p;
        /// Returns the square root.
        sqrt => E::Sqrt;
        /// Returns tanh(x).
        tanh => E::Tanh;
        /// Returns the sine of radians.
        sin => E::Sin;
        /// Returns the cosine of radians.
        cos => E::Cos;
        /// Returns the exponential linear unit: x where x > 0, exp(x) − 1 elsewhere.
        elu => E::Elu;
        /// Negates booleans.
        logical_not => E::Not;
        /// Reports where elements are neither infinite nor NaN, as booleans.
        is_finite => E::IsFinite;
        /// Returns the value as a constant for differentiation: no gradient flows through it.
        detach => E::Detach;
        /// Returns the value, and lets the gradient of an enclosing loop save it instead of recomputing it.
        ///
        /// Whether the loop saves it depends on [`RepeatOptions::remat`](crate::engine::ir::RepeatOptions::remat).
        keep => E::Keep;
    }

    binary! {
        /// Returns `rhs`, a saved copy of this value. The gradient flows to this value, not to the copy.
        recall => E::Recall;
        /// Returns the larger of each two elements. Where they are equal, the gradient flows to `self`.
        max => E::Max;
        /// Returns the smaller of each two elements. Where they are equal, the gradient flows to `self`.
        min => E::Min;
        /// Returns the conjunction of booleans, or the bitwise one of integers.
        and => E::And;
        /// Returns the disjunction of booleans, or the bitwise one of integers.
        or => E::Or;
        /// Returns the exclusive disjunction of booleans, or the bitwise one of integers.
        xor => E::Xor;
        /// Compares elements for equality. The result is boolean.
        eq => E::Eq;
        /// Compares elements for inequality. The result is boolean.
        ne => E::Ne;
        /// Reports where elements are less than those of `rhs`. The result is boolean.
        lt => E::Lt;
        /// Reports where elements are at most those of `rhs`. The result is boolean.
        le => E::Le;
        /// Reports where elements are greater than those of `rhs`. The result is boolean.
        gt => E::Gt;
        /// Reports where elements are at least those of `rhs`. The result is boolean.
        ge => E::Ge;
    }

    #[track_caller]
    fn binary(self, op: Elementwise, rhs: Sym<'g>) -> Sym<'g> {
        let Some(dims) = common_dims(&self.dims(), &rhs.dims()) else {
            self.graph.fail(&format!(
                "{}({}, {}): sizes do not broadcast",
                op.name(),
                self.shape(),
                rhs.shape()
            ));
            return self;
        };
        self.graph.push(op.into(), &[self.broadcast_to(&dims), rhs.broadcast_to(&dims)])
    }

    /// Converts the elements to another type. The gradient flows through conversions between floating-point types alone.
    #[track_caller]
    pub fn convert(self, dtype: DType) -> Sym<'g> {
        if self.dtype() == dtype {
            return self;
        }
        self.graph.push(E::Convert(dtype).into(), &[self])
    }

    /// Returns `on_true` where the boolean `self` holds and `on_false` elsewhere. All three are broadcast to each other.
    #[track_caller]
    pub fn select(self, on_true: Sym<'g>, on_false: Sym<'g>) -> Sym<'g> {
        let dims = common_dims(&on_true.dims(), &on_false.dims()).and_then(|d| common_dims(&self.dims(), &d));
        let Some(dims) = dims else {
            self.graph.fail(&format!(
                "select({}, {}, {}): sizes do not broadcast",
                self.shape(),
                on_true.shape(),
                on_false.shape()
            ));
            return on_true;
        };
        let operands = [self, on_true, on_false].map(|s| s.broadcast_to(&dims));
        self.graph.push(E::Select.into(), &operands)
    }

    /// Returns `value` where the boolean `self` holds and 0 elsewhere.
    #[track_caller]
    pub fn mask(self, value: Sym<'g>) -> Sym<'g> {
        self.select(value, self.graph.scalar(value.dtype(), 0.0))
    }

    /// Returns a scalar constant of this value's element type. A number that the type cannot hold is a build error.
    #[track_caller]
    pub fn scalar_like(self, value: f64) -> Sym<'g> {
        self.graph.scalar(self.dtype(), value)
    }

    /// Returns log(1 + exp(x)). At −∞ it and its gradient are 0.
    #[track_caller]
    pub fn softplus(self) -> Sym<'g> {
        self.max(self.scalar_like(0.0)) + (-self.abs()).exp().log1p()
    }

    /// Returns 1 / (1 + exp(−x)).
    #[track_caller]
    pub fn sigmoid(self) -> Sym<'g> {
        (self * 0.5).tanh() * 0.5 + 0.5
    }

    /// Returns x².
    #[track_caller]
    pub fn square(self) -> Sym<'g> {
        self * self
    }
}

macro_rules! operator {
    ($($trait:ident $method:ident $op:expr;)*) => {$(
        impl<'g> $trait for Sym<'g> {
            type Output = Sym<'g>;
            #[track_caller]
            fn $method(self, rhs: Sym<'g>) -> Sym<'g> {
                self.binary($op, rhs)
            }
        }

        impl<'g> $trait<f64> for Sym<'g> {
            type Output = Sym<'g>;
            #[track_caller]
            fn $method(self, rhs: f64) -> Sym<'g> {
                self.binary($op, self.scalar_like(rhs))
            }
        }

        impl<'g> $trait<Sym<'g>> for f64 {
            type Output = Sym<'g>;
            #[track_caller]
            fn $method(self, rhs: Sym<'g>) -> Sym<'g> {
                rhs.scalar_like(self).binary($op, rhs)
            }
        }
    )*};
}

operator! {
    Add add E::Add;
    Sub sub E::Sub;
    Mul mul E::Mul;
    Div div E::Div;
    Rem rem E::Rem;
}

impl<'g> Neg for Sym<'g> {
    type Output = Sym<'g>;
    #[track_caller]
    fn neg(self) -> Sym<'g> {
        self.graph.push(E::Neg.into(), &[self])
    }
}
