//! Operations without operands: parameters, constants and counters.

use crate::engine::array::Array;
use crate::engine::ir::op::Op;
use crate::engine::shape::Shape;

/// An operation without operands.
#[derive(Clone, Debug, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Source {
    /// A parameter of the block. [`Block::parameters`](crate::engine::ir::Block::parameters) gives its index.
    Parameter,
    /// An array known while building.
    Constant(Array),
    /// Elements 0, 1, 2, ... along one dimension, repeated along the others.
    Iota {
        /// The shape of the result.
        shape: Shape,
        /// The dimension along which the elements count.
        axis: usize,
    },
}

impl From<Source> for Op {
    fn from(op: Source) -> Op {
        Op::Source(op)
    }
}

impl Source {
    /// Returns a placeholder for an operation with a build error.
    pub(in crate::engine::ir) fn poison() -> Source {
        Source::Constant(Array::scalar(f32::NAN))
    }

    pub(in crate::engine::ir) fn name(&self) -> &'static str {
        self.into()
    }

    pub(in crate::engine::ir) fn attributes(&self) -> String {
        match self {
            Source::Parameter => String::new(),
            Source::Constant(array) if array.shape().count() == 1 => format!(" value={}", scalar_text(array)),
            Source::Constant(array) => format!(" crc32={:08x}", crc32fast::hash(array.bytes())),
            Source::Iota { axis, .. } => format!(" axis={axis}"),
        }
    }

    pub(in crate::engine::ir) fn infer(&self) -> Result<Shape, String> {
        match self {
            Source::Parameter => Err("a parameter's shape is given, not inferred".into()),
            Source::Constant(array) => Ok(array.shape().clone()),
            Source::Iota { shape, axis } if *axis < shape.rank() => Ok(shape.clone()),
            Source::Iota { shape, axis } => Err(format!("{shape} has no dimension {axis}")),
        }
    }
}

fn scalar_text(array: &Array) -> String {
    use crate::engine::shape::DType;
    match array.shape().dtype {
        DType::Pred | DType::U8 => array.bytes()[0].to_string(),
        DType::Bf16 => format!("{:02x?}", array.bytes()),
        DType::S32 => array.to_vec::<i32>()[0].to_string(),
        DType::U32 => array.to_vec::<u32>()[0].to_string(),
        DType::U64 => array.to_vec::<u64>()[0].to_string(),
        DType::F32 => format!("{:?}", array.to_vec::<f32>()[0]),
    }
}
