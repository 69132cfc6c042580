//! Reads and writes at indices known only at run time, and sorting.

use crate::engine::ir::graph::Sym;
use crate::engine::ir::op::{Op, Vjp};
use crate::engine::shape::{DType, Shape};

/// An operation at indices known only at run time.
#[derive(Clone, Debug, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Index {
    /// Reads a slice. Operands: array; its start in each dimension, as s32 scalars.
    DynamicSlice {
        /// The sizes of the slice.
        sizes: Vec<usize>,
    },
    /// Overwrites a slice. Operands: array; update; its start in each dimension, as s32 scalars.
    DynamicUpdateSlice,
    /// Reads rows. Operands: array (rows, d...); s32 row indices (i...). Result (i..., d...).
    Take,
    /// Adds to rows. Operands: array (rows, d...); s32 row indices (i...); updates (i..., d...).
    AddRows,
    /// Overwrites rows. Operands: array (rows, d...); distinct s32 row indices (i...); updates (i..., d...).
    SetRows,
    /// Sorts unsigned integers along the last dimension in ascending order.
    Sort,
}

impl From<Index> for Op {
    fn from(op: Index) -> Op {
        Op::Index(op)
    }
}

impl Index {
    pub(in crate::engine::ir) fn name(&self) -> &'static str {
        self.into()
    }

    pub(in crate::engine::ir) fn attributes(&self) -> String {
        match self {
            Index::DynamicSlice { sizes } => format!(" sizes={sizes:?}"),
            Index::DynamicUpdateSlice | Index::Take | Index::AddRows | Index::SetRows | Index::Sort => {
                String::new()
            }
        }
    }

    pub(in crate::engine::ir) fn infer(&self, operands: &[Shape]) -> Result<Shape, String> {
        let x = &operands[0];
        let starts = |from: usize| match operands.len() == from + x.rank()
            && operands[from..].iter().all(|s| *s == Shape::s32(&[]))
        {
            true => Ok(()),
            false => Err("needs one s32 scalar for each dimension".to_string()),
        };
        let fits = |part: &[usize]| part.len() == x.rank() && part.iter().zip(&x.dims).all(|(p, d)| p <= d);
        let rows = |indices: &Shape| match x.rank() > 0 && indices.dtype == DType::S32 {
            true => Ok(x.with_dims(&[&indices.dims, &x.dims[1..]].concat())),
            false => Err("needs an array with rows and s32 indices".to_string()),
        };
        match self {
            Index::DynamicSlice { sizes } => {
                starts(1)?;
                if fits(sizes) {
                    Ok(x.with_dims(sizes))
                } else {
                    Err(format!("has no slice of sizes {sizes:?}"))
                }
            }
            Index::DynamicUpdateSlice => {
                starts(2)?;
                match operands[1].dtype == x.dtype && fits(&operands[1].dims) {
                    true => Ok(x.clone()),
                    false => Err("the update does not fit".into()),
                }
            }
            Index::Take => rows(&operands[1]),
            Index::AddRows | Index::SetRows => match rows(&operands[1])? == operands[2] {
                true => Ok(x.clone()),
                false => Err("the updates are not rows of the array".into()),
            },
            Index::Sort => match x.dtype {
                DType::U8 | DType::U32 | DType::U64 if x.rank() > 0 => Ok(x.clone()),
                _ => Err("needs unsigned integers".into()),
            },
        }
    }

    pub(in crate::engine::ir) fn vjp<'g>(&self, at: &Vjp<'_, 'g>) -> Vec<Option<Sym<'g>>> {
        let (ct, x) = (at.ct(), at.operands[0]);
        let zeros = |x: Sym<'g>| x.graph().full(&x.shape(), 0.0);
        let mut cotangents = vec![None; at.operands.len()];
        match self {
            Index::DynamicSlice { .. } => {
                let starts = &at.operands[1..];
                cotangents[0] = at.wanted[0].then(|| zeros(x).dynamic_update_slice(ct, starts));
            }
            Index::DynamicUpdateSlice => {
                let (update, starts) = (at.operands[1], &at.operands[2..]);
                cotangents[0] = at.wanted[0].then(|| ct.dynamic_update_slice(zeros(update), starts));
                cotangents[1] = at.wanted[1].then(|| ct.dynamic_slice(starts, &update.dims()));
            }
            Index::Take => {
                cotangents[0] = at.wanted[0].then(|| zeros(x).add_rows(at.operands[1], ct));
            }
            Index::AddRows => {
                cotangents[0] = at.wanted[0].then_some(ct);
                cotangents[2] = at.wanted[2].then(|| ct.take(at.operands[1]));
            }
            Index::SetRows => {
                let (rows, updates) = (at.operands[1], at.operands[2]);
                cotangents[0] = at.wanted[0].then(|| ct.set_rows(rows, zeros(updates)));
                cotangents[2] = at.wanted[2].then(|| ct.take(rows));
            }
            Index::Sort => {}
        }
        cotangents
    }
}

impl<'g> Sym<'g> {
    /// Reads a slice of sizes `sizes` that begins at `starts`, one s32 scalar for each dimension.
    ///
    /// A slice that would reach outside the array is moved back inside, as in XLA.
    #[track_caller]
    pub fn dynamic_slice(self, starts: &[Sym<'g>], sizes: &[usize]) -> Sym<'g> {
        let operands = [&[self], starts].concat();
        self.graph.push(Index::DynamicSlice { sizes: sizes.to_vec() }.into(), &operands)
    }

    /// Returns the array with `update` written at `starts`, one s32 scalar for each dimension.
    ///
    /// An update that would reach outside the array is moved back inside, as in XLA.
    #[track_caller]
    pub fn dynamic_update_slice(self, update: Sym<'g>, starts: &[Sym<'g>]) -> Sym<'g> {
        let operands = [&[self, update], starts].concat();
        self.graph.push(Index::DynamicUpdateSlice.into(), &operands)
    }

    /// Returns row `at` (an s32 scalar), without the first dimension.
    #[track_caller]
    pub fn row(self, at: Sym<'g>) -> Sym<'g> {
        let dims = self.dims();
        let mut sizes = dims.clone();
        if let Some(first) = sizes.first_mut() {
            *first = 1;
        }
        self.dynamic_slice(&row_starts(at, dims.len()), &sizes).reshape(dims.get(1..).unwrap_or(&[]))
    }

    /// Returns the array with its row `at` (an s32 scalar) replaced by `value`.
    #[track_caller]
    pub fn with_row(self, at: Sym<'g>, value: Sym<'g>) -> Sym<'g> {
        let row = value.reshape(&[&[1], value.dims().as_slice()].concat());
        self.dynamic_update_slice(row, &row_starts(at, self.rank()))
    }

    /// Returns the rows at `indices`: from an array (rows, d...) and s32 indices (i...), an array (i..., d...).
    #[track_caller]
    pub fn take(self, indices: Sym<'g>) -> Sym<'g> {
        self.graph.push(Index::Take.into(), &[self, indices])
    }

    /// Returns the array (rows, d...) with `updates` (i..., d...) added to the rows at the s32 `indices` (i...). Updates of
    /// equal indices add up.
    #[track_caller]
    pub fn add_rows(self, indices: Sym<'g>, updates: Sym<'g>) -> Sym<'g> {
        self.graph.push(Index::AddRows.into(), &[self, indices, updates])
    }

    /// Returns the array (rows, d...) with the rows at the s32 `indices` (i...) replaced by `updates` (i..., d...).
    ///
    /// All indices must differ. The result is unspecified where they do not.
    #[track_caller]
    pub fn set_rows(self, indices: Sym<'g>, updates: Sym<'g>) -> Sym<'g> {
        self.graph.push(Index::SetRows.into(), &[self, indices, updates])
    }

    /// Sorts unsigned integers along the last dimension in ascending order.
    #[track_caller]
    pub fn sort(self) -> Sym<'g> {
        self.graph.push(Index::Sort.into(), &[self])
    }
}

/// Returns the start indices of row `at`.
fn row_starts<'g>(at: Sym<'g>, rank: usize) -> Vec<Sym<'g>> {
    let zero = at.scalar_like(0.0);
    (0..rank).map(|i| if i == 0 { at } else { zero }).collect()
}
