//! Arrays in host memory: the arguments of a program before transfer, and its results after.

use anyhow::{Context, Result, ensure};

use crate::engine::shape::{DType, Shape};

/// A Rust type with the memory representation of an array element.
pub trait Element: bytemuck::NoUninit + bytemuck::AnyBitPattern {
    /// The element type of arrays that hold values of this type.
    const DTYPE: DType;
}

impl Element for u8 {
    const DTYPE: DType = DType::U8;
}
impl Element for i32 {
    const DTYPE: DType = DType::S32;
}
impl Element for u32 {
    const DTYPE: DType = DType::U32;
}
impl Element for u64 {
    const DTYPE: DType = DType::U64;
}
impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

/// A dense row-major array of any element type.
///
/// ```
/// use vnca::engine::array::Array;
///
/// let matrix = Array::new(&[2, 3], &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
/// assert_eq!(matrix.shape().to_string(), "f32[2,3]");
///
/// let transposed = matrix.transpose(&[1, 0]);
/// assert_eq!(transposed.dims(), [3, 2]);
/// assert_eq!(transposed.to_vec::<f32>(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    shape: Shape,
    bytes: Vec<u8>,
}

impl Array {
    /// Creates an array of sizes `dims` from its elements in row-major order.
    ///
    /// # Panics
    /// When the length of `data` is not the product of `dims`.
    pub fn new<T: Element>(dims: &[usize], data: &[T]) -> Array {
        let shape = Shape::new(T::DTYPE, dims);
        assert_eq!(shape.count(), data.len(), "{shape} made from {} elements", data.len());
        Array { shape, bytes: bytemuck::cast_slice(data).to_vec() }
    }

    /// Creates an array without dimensions that holds one value.
    pub fn scalar<T: Element>(value: T) -> Array {
        Array::new(&[], &[value])
    }

    /// Creates an array of zeros, which are `false` for the type `pred`.
    pub fn zeros(shape: &Shape) -> Array {
        Array { shape: shape.clone(), bytes: vec![0; shape.bytes()] }
    }

    /// Creates a scalar of type `pred`.
    pub fn boolean(value: bool) -> Array {
        Array { shape: Shape::new(DType::Pred, &[]), bytes: vec![u8::from(value)] }
    }

    /// Creates an array from its bytes: elements in row-major order and in the machine's byte order.
    ///
    /// # Errors
    /// When the length of `bytes` is not [`Shape::bytes`] of `shape`.
    pub fn from_bytes(shape: Shape, bytes: Vec<u8>) -> Result<Array> {
        ensure!(shape.bytes() == bytes.len(), "{shape} needs {} bytes, got {}", shape.bytes(), bytes.len());
        Ok(Array { shape, bytes })
    }

    /// Returns the element type and the sizes of the dimensions.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Returns the sizes of the dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.shape.dims
    }

    /// Returns the elements as bytes, in row-major order.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Copies the elements in row-major order.
    ///
    /// # Panics
    /// When `T` is not the array's element type.
    pub fn to_vec<T: Element>(&self) -> Vec<T> {
        assert_eq!(T::DTYPE, self.shape.dtype, "elements of {} read as {}", self.shape, T::DTYPE);
        bytemuck::pod_collect_to_vec(&self.bytes)
    }

    /// Calls `f` with the elements in row-major order and returns its result.
    ///
    /// The elements are copied only when their memory is not aligned for `T`. Allocators usually align it.
    ///
    /// # Panics
    /// When `T` is not the array's element type.
    pub fn with_elements<T: Element, R>(&self, f: impl FnOnce(&[T]) -> R) -> R {
        assert_eq!(T::DTYPE, self.shape.dtype, "elements of {} read as {}", self.shape, T::DTYPE);
        match bytemuck::try_cast_slice(&self.bytes) {
            Ok(elements) => f(elements),
            Err(_) => f(&self.to_vec::<T>()),
        }
    }

    /// Reorders the dimensions: dimension `i` of the result is dimension `axes[i]` of `self`.
    ///
    /// # Panics
    /// When the length of `axes` is not the number of dimensions, or an axis does not exist.
    pub fn transpose(&self, axes: &[usize]) -> Array {
        let dims = self.dims();
        assert_eq!(axes.len(), dims.len(), "{} transposed by {axes:?}", self.shape);
        let out: Vec<usize> = axes.iter().map(|&a| dims[a]).collect();
        let mut strides = vec![self.shape.dtype.size(); dims.len()];
        for i in (1..dims.len()).rev() {
            strides[i - 1] = strides[i] * dims[i];
        }
        let steps: Vec<usize> = axes.iter().map(|&a| strides[a]).collect();
        let moved = match self.shape.dtype.size() {
            4 => gather::<4>(&self.bytes, &out, &steps),
            8 => gather::<8>(&self.bytes, &out, &steps),
            2 => gather::<2>(&self.bytes, &out, &steps),
            _ => gather::<1>(&self.bytes, &out, &steps),
        };
        Array { shape: self.shape.with_dims(&out), bytes: moved }
    }

    /// Returns the same elements, in the same row-major order, as an array of sizes `dims`.
    ///
    /// # Panics
    /// When the number of elements differs.
    pub fn reshape(mut self, dims: &[usize]) -> Array {
        let shape = self.shape.with_dims(dims);
        assert_eq!(shape.count(), self.shape.count(), "{} reshaped to {shape}", self.shape);
        self.shape = shape;
        self
    }

    /// Divides the array along its first dimension into `count` equal parts.
    ///
    /// # Errors
    /// When the number of rows is not a multiple of `count`, or there are no dimensions.
    pub fn split_rows(&self, count: usize) -> Result<Vec<Array>> {
        let rows = self.dims().first().copied().unwrap_or(0);
        ensure!(
            count > 0 && rows > 0 && rows.is_multiple_of(count),
            "{} does not divide into {count} equal parts",
            self.shape
        );
        let shape = self.shape.with_dims(&[&[rows / count], &self.dims()[1..]].concat());
        let size = shape.bytes();
        let part = |i: usize| Array::from_bytes(shape.clone(), self.bytes[i * size..(i + 1) * size].to_vec());
        (0..count).map(part).collect()
    }

    /// Joins arrays of one shape along their first dimension.
    ///
    /// # Errors
    /// When there are no arrays, or they have no dimensions or different shapes.
    pub fn join_rows(parts: &[Array]) -> Result<Array> {
        let shape = &parts.first().context("there is nothing to join")?.shape;
        let (first, rest) =
            shape.dims.split_first().with_context(|| format!("{shape} has no rows to join"))?;
        ensure!(
            parts.iter().all(|part| part.shape == *shape),
            "arrays of different shapes have no common rows"
        );
        let bytes = parts.iter().flat_map(|part| &part.bytes).copied().collect();
        Array::from_bytes(shape.with_dims(&[&[first * parts.len()], rest].concat()), bytes)
    }
}

/// Copies elements of `SIZE` bytes from a strided array into a dense one of sizes `dims`. Neighbours along dimension `i` lie
/// `steps[i]` bytes apart in `from`.
fn gather<const SIZE: usize>(from: &[u8], dims: &[usize], steps: &[usize]) -> Vec<u8> {
    let Some((&inner, outer)) = dims.split_last() else {
        return from.to_vec();
    };
    let step = steps[outer.len()];
    let count: usize = dims.iter().product();
    let mut bytes = vec![0; count * SIZE];
    let mut index = vec![0usize; outer.len()];
    for row in bytes.chunks_exact_mut((inner * SIZE).max(1)) {
        let mut at: usize = index.iter().zip(steps).map(|(i, s)| i * s).sum();
        for element in row.chunks_exact_mut(SIZE) {
            element.copy_from_slice(&from[at..at + SIZE]);
            at += step;
        }
        for d in (0..outer.len()).rev() {
            index[d] += 1;
            if index[d] < outer[d] {
                break;
            }
            index[d] = 0;
        }
    }
    bytes
}

/// Returns the CRC-32 of the bytes of arrays, one after the other.
pub fn crc(arrays: &[Array]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    arrays.iter().for_each(|array| hasher.update(array.bytes()));
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transpose_moves_elements() {
        let a = Array::new(&[2, 3], &[1i32, 2, 3, 4, 5, 6]);
        let t = a.transpose(&[1, 0]);
        assert_eq!(t.dims(), &[3, 2]);
        assert_eq!(t.to_vec::<i32>(), [1, 4, 2, 5, 3, 6]);
        assert_eq!(t.transpose(&[1, 0]), a);
    }

    #[test]
    fn rows_are_split_and_joined() {
        let a = Array::new(&[4, 1], &[1i32, 2, 3, 4]);
        let parts = a.split_rows(2).unwrap();
        assert_eq!(parts, [Array::new(&[2, 1], &[1i32, 2]), Array::new(&[2, 1], &[3i32, 4])]);
        assert_eq!(Array::join_rows(&parts).unwrap(), a);
        assert!(a.split_rows(3).is_err() && Array::scalar(1f32).split_rows(1).is_err());
        assert!(Array::join_rows(&[]).is_err() && Array::join_rows(&[Array::scalar(1f32)]).is_err());
        assert!(Array::join_rows(&[a.clone(), parts[0].clone()]).is_err());
    }

    #[test]
    fn from_bytes_checks_the_length() {
        let error = Array::from_bytes(Shape::f32(&[2]), vec![0; 7]).unwrap_err().to_string();
        assert_eq!(error, "f32[2] needs 8 bytes, got 7");
    }
}
