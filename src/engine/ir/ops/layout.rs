//! Operations that move elements without computing.

use crate::engine::ir::graph::Sym;
use crate::engine::ir::op::{Op, Vjp};
use crate::engine::shape::Shape;

/// The numbers of fill values to insert along one dimension. Negative `low` and `high` remove elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Before the first element.
    pub low: i64,
    /// After the last element.
    pub high: i64,
    /// Between neighbouring elements. Not negative.
    pub interior: i64,
}

impl Padding {
    /// Returns padding before and after a dimension's elements, with none between them.
    pub fn new(low: i64, high: i64) -> Padding {
        Padding { low, high, interior: 0 }
    }
}

/// An operation that moves elements.
#[derive(Clone, Debug, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Layout {
    /// Repeats an array along new dimensions.
    Broadcast {
        /// The sizes of the result.
        dims: Vec<usize>,
        /// The dimension of the result for each dimension of the operand, in rising order.
        axes: Vec<usize>,
    },
    /// Changes the sizes and keeps the row-major order of the elements.
    Reshape {
        /// The sizes of the result.
        dims: Vec<usize>,
    },
    /// Reorders the dimensions.
    Transpose {
        /// The dimension of the operand for each dimension of the result.
        axes: Vec<usize>,
    },
    /// Reads every `stride`-th element from `start` up to `limit`, exclusive, in each dimension.
    Slice {
        /// The first index in each dimension.
        start: Vec<usize>,
        /// The end in each dimension, exclusive.
        limit: Vec<usize>,
        /// The distance between the elements read in each dimension.
        stride: Vec<usize>,
    },
    /// Inserts or removes elements. Operands: the array and the scalar to insert.
    Pad {
        /// The padding of each dimension.
        padding: Vec<Padding>,
    },
    /// Joins arrays along one dimension.
    Concat {
        /// The dimension.
        axis: usize,
    },
    /// Reverses the order of the elements along some dimensions.
    Reverse {
        /// The dimensions.
        axes: Vec<usize>,
    },
}

impl From<Layout> for Op {
    fn from(op: Layout) -> Op {
        Op::Layout(op)
    }
}

impl Layout {
    pub(in crate::engine::ir) fn name(&self) -> &'static str {
        self.into()
    }

    pub(in crate::engine::ir) fn attributes(&self) -> String {
        match self {
            Layout::Broadcast { axes, .. } => format!(" axes={axes:?}"),
            Layout::Reshape { .. } => String::new(),
            Layout::Transpose { axes } | Layout::Reverse { axes } => format!(" axes={axes:?}"),
            Layout::Slice { start, limit, stride } => {
                format!(" start={start:?} limit={limit:?} stride={stride:?}")
            }
            Layout::Pad { padding } => {
                let text: Vec<String> =
                    padding.iter().map(|p| format!("{}_{}_{}", p.low, p.high, p.interior)).collect();
                format!(" padding={}", text.join("x"))
            }
            Layout::Concat { axis } => format!(" axis={axis}"),
        }
    }

    pub(in crate::engine::ir) fn infer(&self, operands: &[Shape]) -> Result<Shape, String> {
        let x = operands.first().ok_or("needs an operand")?;
        let rank = x.rank();
        match self {
            Layout::Broadcast { dims, axes } => {
                let fits = axes.len() == rank
                    && axes.windows(2).all(|w| w[0] < w[1])
                    && axes.iter().zip(&x.dims).all(|(&a, d)| dims.get(a) == Some(d));
                if fits { Ok(x.with_dims(dims)) } else { Err(format!("does not fit {dims:?} at {axes:?}")) }
            }
            Layout::Reshape { dims } => match dims.iter().product::<usize>() == x.count() {
                true => Ok(x.with_dims(dims)),
                false => Err(format!("has another number of elements than {dims:?}")),
            },
            Layout::Transpose { axes } => {
                let mut sorted = axes.clone();
                sorted.sort_unstable();
                match sorted.into_iter().eq(0..rank) {
                    true => Ok(x.with_dims(&axes.iter().map(|&a| x.dims[a]).collect::<Vec<_>>())),
                    false => Err(format!("{axes:?} is not a permutation of its dimensions")),
                }
            }
            Layout::Slice { start, limit, stride } => {
                let fits = start.len() == rank
                    && (0..rank).all(|i| start[i] <= limit[i] && limit[i] <= x.dims[i] && stride[i] > 0);
                if !fits {
                    return Err(format!("has no slice from {start:?} to {limit:?} with stride {stride:?}"));
                }
                let dims: Vec<usize> = (0..rank).map(|i| (limit[i] - start[i]).div_ceil(stride[i])).collect();
                Ok(x.with_dims(&dims))
            }
            Layout::Pad { padding } => {
                if padding.len() != rank || operands.get(1) != Some(&x.with_dims(&[])) {
                    return Err("needs a padding for each dimension and a scalar of its type".into());
                }
                let padded = |(p, &d): (&Padding, &usize)| {
                    let size = d as i64 + p.low + p.high + p.interior * (d as i64 - 1).max(0);
                    usize::try_from(size).map_err(|_| format!("leaves {size} elements"))
                };
                let dims: Result<Vec<usize>, String> = padding.iter().zip(&x.dims).map(padded).collect();
                Ok(x.with_dims(&dims?))
            }
            Layout::Concat { axis } => {
                let mut dims = x.dims.clone();
                *dims.get_mut(*axis).ok_or(format!("has no dimension {axis}"))? = 0;
                for part in operands {
                    let fits = part.dtype == x.dtype
                        && part.rank() == rank
                        && (0..rank).all(|i| i == *axis || part.dims[i] == x.dims[i]);
                    if !fits {
                        return Err(format!("{part} cannot be joined to {x} along dimension {axis}"));
                    }
                    dims[*axis] += part.dims[*axis];
                }
                Ok(x.with_dims(&dims))
            }
            Layout::Reverse { axes } => match axes.iter().all(|a| *a < rank) {
                true => Ok(x.clone()),
                false => Err(format!("has no dimensions {axes:?}")),
            },
        }
    }

    pub(in crate::engine::ir) fn vjp<'g>(&self, at: &Vjp<'_, 'g>) -> Vec<Option<Sym<'g>>> {
        let (ct, x) = (at.ct(), at.operands[0]);
        match self {
            Layout::Broadcast { dims, axes } => at.each([&|| {
                let repeated: Vec<usize> = (0..dims.len()).filter(|a| !axes.contains(a)).collect();
                ct.sum(&repeated)
            }]),
            Layout::Reshape { .. } => at.each([&|| ct.reshape(&x.dims())]),
            Layout::Transpose { axes } => at.each([&|| {
                let mut back = vec![0; axes.len()];
                for (i, &a) in axes.iter().enumerate() {
                    back[a] = i;
                }
                ct.transpose(&back)
            }]),
            Layout::Slice { start, stride, .. } => at.each([&|| {
                let padding: Vec<Padding> = (x.dims().iter().zip(ct.dims()).enumerate())
                    .map(|(i, (&full, part))| {
                        let covered = if part == 0 { 0 } else { (part - 1) * stride[i] + 1 };
                        let high = full as i64 - start[i] as i64 - covered as i64;
                        Padding { low: start[i] as i64, high, interior: stride[i] as i64 - 1 }
                    })
                    .collect();
                ct.pad(ct.scalar_like(0.0), &padding)
            }]),
            Layout::Pad { padding } => {
                let kept = || {
                    let undo: Vec<Padding> = padding.iter().map(|p| Padding::new(-p.low, -p.high)).collect();
                    let inner = ct.pad(ct.scalar_like(0.0), &undo);
                    let stride: Vec<usize> = padding.iter().map(|p| p.interior as usize + 1).collect();
                    inner.slice_strided(&vec![0; stride.len()], &inner.dims(), &stride)
                };
                // The fill value's cotangent is the sum of the cotangents of all inserted elements.
                let fill = || {
                    let whole = ct.graph().full(&x.shape(), 0.0).pad(ct.scalar_like(1.0), padding);
                    (ct * whole).sum_all()
                };
                at.each([&kept, &fill])
            }
            Layout::Concat { axis } => {
                let mut from = 0;
                let mut parts = Vec::new();
                for (operand, wanted) in at.operands.iter().zip(at.wanted) {
                    let size = operand.dims()[*axis];
                    parts.push(wanted.then(|| ct.slice_axis(*axis, from, from + size)));
                    from += size;
                }
                parts
            }
            Layout::Reverse { axes } => at.each([&|| ct.reverse(axes)]),
        }
    }
}

impl<'g> Sym<'g> {
    /// Appends rows of zeros to the array, up to a total of `rows`.
    #[track_caller]
    pub fn pad_rows(self, rows: usize) -> Sym<'g> {
        let dims = self.dims();
        let mut padding = vec![Padding::default(); dims.len()];
        if let (Some(first), Some(own)) = (padding.first_mut(), dims.first()) {
            *first = Padding::new(0, rows as i64 - *own as i64);
        }
        self.pad(self.scalar_like(0.0), &padding)
    }

    /// Repeats the array to sizes `dims`: its dimension `i` becomes dimension `axes[i]` of the result. `axes` are in rising
    /// order.
    #[track_caller]
    pub fn broadcast_in_dim(self, dims: &[usize], axes: &[usize]) -> Sym<'g> {
        if self.dims() == dims {
            return self;
        }
        self.graph.push(Layout::Broadcast { dims: dims.to_vec(), axes: axes.to_vec() }.into(), &[self])
    }

    /// Repeats the array to sizes `dims` as NumPy does: dimensions are aligned at the last one, and missing dimensions and
    /// dimensions of size 1 are repeated.
    #[track_caller]
    pub fn broadcast_to(self, dims: &[usize]) -> Sym<'g> {
        let own = self.dims();
        if own == dims {
            return self;
        }
        if own.len() > dims.len() {
            self.graph.fail(&format!("{} cannot be broadcast to {dims:?}", self.shape()));
            return self;
        }
        let missing = dims.len() - own.len();
        let axes: Vec<usize> =
            (0..own.len()).filter(|&i| own[i] == dims[i + missing]).map(|i| i + missing).collect();
        let kept: Vec<usize> = axes.iter().map(|&a| dims[a]).collect();
        self.reshape(&kept).broadcast_in_dim(dims, &axes)
    }

    /// Changes the sizes to `dims` and keeps the row-major order of the elements.
    #[track_caller]
    pub fn reshape(self, dims: &[usize]) -> Sym<'g> {
        if self.dims() == dims {
            return self;
        }
        self.graph.push(Layout::Reshape { dims: dims.to_vec() }.into(), &[self])
    }

    /// Reorders the dimensions: dimension `i` of the result is dimension `axes[i]` of the array.
    #[track_caller]
    pub fn transpose(self, axes: &[usize]) -> Sym<'g> {
        if axes.iter().copied().eq(0..self.rank()) {
            return self;
        }
        self.graph.push(Layout::Transpose { axes: axes.to_vec() }.into(), &[self])
    }

    /// Returns the elements from `start` up to `limit`, exclusive, in each dimension.
    #[track_caller]
    pub fn slice(self, start: &[usize], limit: &[usize]) -> Sym<'g> {
        self.slice_strided(start, limit, &vec![1; start.len()])
    }

    /// Returns every `stride`-th element from `start` up to `limit`, exclusive, in each dimension.
    #[track_caller]
    pub fn slice_strided(self, start: &[usize], limit: &[usize], stride: &[usize]) -> Sym<'g> {
        let whole = start.iter().all(|s| *s == 0) && stride.iter().all(|s| *s == 1);
        if whole && self.dims() == limit {
            return self;
        }
        let op = Layout::Slice { start: start.to_vec(), limit: limit.to_vec(), stride: stride.to_vec() };
        self.graph.push(op.into(), &[self])
    }

    /// Returns the elements `from..to` of dimension `axis` and all elements of the others.
    #[track_caller]
    pub fn slice_axis(self, axis: usize, from: usize, to: usize) -> Sym<'g> {
        let mut limit = self.dims();
        let mut start = vec![0; limit.len()];
        if axis >= limit.len() {
            self.graph.fail(&format!("{} has no dimension {axis}", self.shape()));
            return self;
        }
        start[axis] = from;
        limit[axis] = to;
        self.slice(&start, &limit)
    }

    /// Returns row `at`, known while building, without the first dimension.
    ///
    /// # Panics
    /// When the value is a scalar.
    #[track_caller]
    pub fn at(self, at: usize) -> Sym<'g> {
        self.slice_axis(0, at, at + 1).reshape(&self.dims()[1..])
    }

    /// Inserts the scalar `fill` around and between the elements, or removes elements, by the padding of each dimension.
    #[track_caller]
    pub fn pad(self, fill: Sym<'g>, padding: &[Padding]) -> Sym<'g> {
        if padding.iter().all(|p| *p == Padding::default()) && padding.len() == self.rank() {
            return self;
        }
        self.graph.push(Layout::Pad { padding: padding.to_vec() }.into(), &[self, fill])
    }

    /// Reverses the order of the elements along the dimensions `axes`.
    #[track_caller]
    pub fn reverse(self, axes: &[usize]) -> Sym<'g> {
        self.graph.push(Layout::Reverse { axes: axes.to_vec() }.into(), &[self])
    }

    /// Joins arrays along the dimension `axis`. Their other sizes are equal.
    ///
    /// # Panics
    /// When `parts` is empty.
    #[track_caller]
    pub fn concat(parts: &[Sym<'g>], axis: usize) -> Sym<'g> {
        if parts.len() == 1 {
            return parts[0];
        }
        parts[0].graph.push(Layout::Concat { axis }.into(), parts)
    }

    /// Doubles the grid of an NHWC array by repeating each pixel 2 x 2 times: from (n, h, w, c) to (n, 2 h, 2 w, c).
    #[track_caller]
    pub fn double_grid(self) -> Sym<'g> {
        let d = self.dims();
        let [n, h, w, c] = d[..] else {
            self.graph.fail(&format!("{} is not an NHWC array", self.shape()));
            return self;
        };
        self.broadcast_in_dim(&[n, h, 2, w, 2, c], &[0, 1, 3, 5]).reshape(&[n, 2 * h, 2 * w, c])
    }
}
