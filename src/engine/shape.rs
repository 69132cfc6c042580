//! Element types and shapes, which graphs, programs and devices share.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The type of an array's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// Boolean, one byte each: 0 or 1.
    Pred,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 32-bit integer.
    S32,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 64-bit integer.
    U64,
    /// The upper half of an [`F32`](DType::F32): 8 significant bits and its full range.
    Bf16,
    /// IEEE 754 single precision.
    F32,
}

impl DType {
    /// Returns the size of one element in bytes.
    pub fn size(self) -> usize {
        match self {
            DType::Pred | DType::U8 => 1,
            DType::Bf16 => 2,
            DType::S32 | DType::U32 | DType::F32 => 4,
            DType::U64 => 8,
        }
    }

    /// Reports whether this is a floating-point type. Gradients flow only through values of these types.
    pub fn is_float(self) -> bool {
        matches!(self, DType::Bf16 | DType::F32)
    }

    /// Returns the name that XLA's text format uses, such as `f32` or `pred`.
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

/// The element type to which matmuls and convolutions round their operands.
///
/// The arrays in a graph stay f32. With [`Bf16`](Precision::Bf16) the operands are rounded to 8 significant bits; the
/// accumulation and the result are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// No rounding.
    #[default]
    F32,
    /// Operands are rounded to bf16.
    Bf16,
}

impl Precision {
    /// Returns the element type of the rounded operands.
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

/// The element type and the sizes of an array's dimensions. Displays as in XLA's text format: `f32[2,3]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// The element type.
    pub dtype: DType,
    /// Sizes of the dimensions, slowest-varying first. Empty for a scalar.
    pub dims: Vec<usize>,
}

impl Shape {
    /// Creates a shape of any element type.
    pub fn new(dtype: DType, dims: &[usize]) -> Shape {
        Shape { dtype, dims: dims.to_vec() }
    }

    /// Creates a shape of f32 elements.
    pub fn f32(dims: &[usize]) -> Shape {
        Shape::new(DType::F32, dims)
    }

    /// Creates a shape of u32 elements.
    pub fn u32(dims: &[usize]) -> Shape {
        Shape::new(DType::U32, dims)
    }

    /// Creates a shape of s32 elements.
    pub fn s32(dims: &[usize]) -> Shape {
        Shape::new(DType::S32, dims)
    }

    /// Returns the number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// Returns the number of elements.
    pub fn count(&self) -> usize {
        self.dims.iter().product()
    }

    /// Returns the size of a dense array in bytes.
    pub fn bytes(&self) -> usize {
        self.count() * self.dtype.size()
    }

    /// Returns a shape of the same sizes with another element type.
    pub fn with_dtype(&self, dtype: DType) -> Shape {
        Shape { dtype, dims: self.dims.clone() }
    }

    /// Returns a shape of the same element type with other sizes.
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

/// Returns the largest divisor of `n` that is at most `most`; 1 if `most` is 0.
///
/// # Panics
/// When `n` is 0.
pub fn largest_divisor(n: usize, most: usize) -> usize {
    (1..=most.clamp(1, n)).rev().find(|d| n.is_multiple_of(*d)).unwrap_or(1)
}
