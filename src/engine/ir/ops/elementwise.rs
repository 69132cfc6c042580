//! Operations on corresponding elements, and the functions derived from them.
//!
//! Operands of two-sided operations are broadcast to each other as in NumPy: sizes are aligned at the last
//! dimension, and a size of 1 or a missing dimension repeats. The broadcast is a node of its own, so that the
//! cotangent's sum back over the repeated dimensions stands in one place, at broadcast's VJP.

use std::ops::{Add, Div, Mul, Neg, Rem, Sub};

use crate::engine::ir::graph::Sym;
use crate::engine::ir::op::{Op, Vjp};
use crate::engine::shape::{DType, Shape};

#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Elementwise {
    Neg,
    Abs,
    Sign,
    Exp,
    Expm1,
    Log,
    Log1p,
    Sqrt,
    Tanh,
    /// x where x > 0, exp(x) − 1 elsewhere.
    Elu,
    Not,
    IsFinite,
    Convert(DType),
    /// The value itself, through which no gradient flows.
    Detach,
    /// The value itself, which the gradient of a loop saves rather than makes again.
    Keep,
    /// Operands: a value, and the same as it was saved: a gradient flows to the first, the second is what is used.
    Recall,
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    Max,
    Min,
    And,
    Or,
    Xor,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Select,
}

use Elementwise as E;

impl From<Elementwise> for Op {
    fn from(op: Elementwise) -> Op {
        Op::Elementwise(op)
    }
}

impl Elementwise {
    pub fn name(&self) -> &'static str {
        self.into()
    }

    pub fn infer(&self, operands: &[Shape]) -> Result<Shape, String> {
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
            E::Exp | E::Expm1 | E::Log | E::Log1p | E::Sqrt | E::Tanh | E::Elu => float(x),
            E::IsFinite => Ok(float(x)?.with_dtype(DType::Pred)),
            E::Not if x.dtype == DType::Pred => Ok(x.clone()),
            E::Not => Err("needs truth values".into()),
            E::Convert(dtype) => Ok(x.with_dtype(*dtype)),
            E::Recall | E::Add | E::Sub | E::Mul | E::Div | E::Rem | E::Max | E::Min => same(x, &operands[1]),
            E::And | E::Or | E::Xor => match x.dtype.is_float() {
                true => Err("needs integers or truth values".into()),
                false => same(x, &operands[1]),
            },
            E::Eq | E::Ne | E::Lt | E::Le | E::Gt | E::Ge => {
                Ok(same(x, &operands[1])?.with_dtype(DType::Pred))
            }
            E::Select => match x.dtype == DType::Pred && x.dims == operands[1].dims {
                true => same(&operands[1], &operands[2]),
                false => Err("the condition needs truth values of the operands' sizes".into()),
            },
        }
    }

    pub fn vjp<'g>(&self, at: &Vjp<'_, 'g>) -> Vec<Option<Sym<'g>>> {
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
            // By the result, so that what it was made of need not be kept.
            E::Elu => at.each([&|| ct * (y.min(y.like(0.0)) + 1.0)]),
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
            // Where both are equal the cotangent goes to the first, so that it is counted once.
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

/// The sizes that two operands have in common after broadcasting.
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
        abs => E::Abs;
        sign => E::Sign;
        exp => E::Exp;
        /// exp(x) − 1, exact near 0.
        expm1 => E::Expm1;
        log => E::Log;
        /// log(1 + x), exact near 0.
        log1p => E::Log1p;
        sqrt => E::Sqrt;
        tanh => E::Tanh;
        /// x where x > 0, exp(x) − 1 elsewhere.
        elu => E::Elu;
        logical_not => E::Not;
        is_finite => E::IsFinite;
        /// The value as a constant: no gradient flows through it.
        detach => E::Detach;
        /// The value itself, marked: the gradient of a loop may save it, so that what it was made of need not be made
        /// again.
        keep => E::Keep;
    }

    binary! {
        /// `rhs` in the place of this value, which it equals, for all but the gradient.
        recall => E::Recall;
        max => E::Max;
        min => E::Min;
        and => E::And;
        or => E::Or;
        xor => E::Xor;
        eq => E::Eq;
        ne => E::Ne;
        lt => E::Lt;
        le => E::Le;
        gt => E::Gt;
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

    #[track_caller]
    pub fn convert(self, dtype: DType) -> Sym<'g> {
        if self.dtype() == dtype {
            return self;
        }
        self.graph.push(E::Convert(dtype).into(), &[self])
    }

    /// `on_true` where `self` holds, `on_false` elsewhere; all three broadcast to the larger sizes.
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

    /// `value` where `self` holds, 0 elsewhere.
    #[track_caller]
    pub fn mask(self, value: Sym<'g>) -> Sym<'g> {
        self.select(value, self.graph.scalar(value.dtype(), 0.0))
    }

    /// A scalar of the same element type.
    pub fn like(self, value: f64) -> Sym<'g> {
        self.graph.scalar(self.dtype(), value)
    }

    /// log(1 + exp(x)), for −∞ too, where it and its gradient are 0.
    #[track_caller]
    pub fn softplus(self) -> Sym<'g> {
        self.max(self.like(0.0)) + (-self.abs()).exp().log1p()
    }

    /// 1 / (1 + exp(−x)).
    #[track_caller]
    pub fn sigmoid(self) -> Sym<'g> {
        (self * 0.5).tanh() * 0.5 + 0.5
    }

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
                self.binary($op, self.like(rhs))
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
