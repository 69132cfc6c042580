//! Element types and shapes: all that graphs, programs and devices know of an array in common.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The type of an array's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    Pred,
    U8,
    S32,
    U32,
    U64,
    Bf16,
    F32,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::Pred | DType::U8 => 1,
            DType::Bf16 => 2,
            DType::S32 | DType::U32 | DType::F32 => 4,
            DType::U64 => 8,
        }
    }

    /// Whether gradients flow through values of this type.
    pub fn is_float(self) -> bool {
        matches!(self, DType::Bf16 | DType::F32)
    }

    /// The name that XLA's text uses: `f32`, `pred`, ...
    pub fn name(self) -> &'static str {
        match self {
            DType::Pred => "pred",
            DType::U8 => "u8",
            DType::S32 => "s32",
            DType::U32 => "u32",
            DType::U64 => "u64",
            DType::Bf16 => "bf16",
            DType::F32 => "f32",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The element type in which matrix products and convolutions take their operands. They are f32 arrays in any case, and so
/// are the results: with bf16 each operand is rounded to 8 significant bits, the sums of the products are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    F32,
    Bf16,
}

impl Precision {
    pub fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.dtype().fmt(f)
    }
}

/// Element type and sizes of the dimensions, slowest first. No dimensions: a scalar.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    pub dtype: DType,
    pub dims: Vec<usize>,
}

impl Shape {
    pub fn new(dtype: DType, dims: &[usize]) -> Shape {
        Shape { dtype, dims: dims.to_vec() }
    }

    pub fn f32(dims: &[usize]) -> Shape {
        Shape::new(DType::F32, dims)
    }

    pub fn u32(dims: &[usize]) -> Shape {
        Shape::new(DType::U32, dims)
    }

    pub fn s32(dims: &[usize]) -> Shape {
        Shape::new(DType::S32, dims)
    }

    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.dims.iter().product()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.count() * self.dtype.size()
    }

    /// The same sizes with another element type.
    pub fn with_dtype(&self, dtype: DType) -> Shape {
        Shape { dtype, dims: self.dims.clone() }
    }

    /// The same element type with other sizes.
    pub fn with_dims(&self, dims: &[usize]) -> Shape {
        Shape::new(self.dtype, dims)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.dims.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { "," } else { "" })?;
        }
        f.write_str("]")
    }
}

/// The largest divisor of `n` that is at most `most`.
pub fn divisor(n: usize, most: usize) -> usize {
    (1..=most.clamp(1, n)).rev().find(|d| n.is_multiple_of(*d)).unwrap_or(1)
}
