//! Lowering: graphs to XLA modules, through the builders of the `xla` crate.
//!
//! One exhaustive match over the operations. Where a target does better with another form, that form stands in the
//! target's file; what the builder lacks is put in by [`patch`] on the finished module.

mod cpu;
mod patch;

use anyhow::{Context, Result};
use xla::{ElementType, HloModuleProto, Literal, XlaBuilder, XlaComputation, XlaOp};

use crate::array::Array;
use crate::ir::ops::collective::Collective;
use crate::ir::ops::control::Repeat;
use crate::ir::ops::conv::{Conv, Window};
use crate::ir::ops::elementwise::Elementwise as E;
use crate::ir::ops::index::Index;
use crate::ir::ops::layout::Layout;
use crate::ir::ops::linalg::Dot;
use crate::ir::ops::reduce::{Reduce, Reduction};
use crate::ir::ops::source::Source;
use crate::ir::{Block, Function, Node, Op};
pub use crate::program::Target;
use crate::program::{Format, InputSpec, OutputSpec, Program, Signature};
use crate::shape::{DType, Shape};

/// Turns a finished graph into a program for so many replicas.
///
/// # Errors
/// When XLA's builder refuses an operation; shapes were checked before, so this is a mistake in the lowering.
pub fn lower(function: &Function, target: Target, replicas: usize) -> Result<Program> {
    let builder = XlaBuilder::new(&function.name);
    let mut parameters = Vec::new();
    for (i, input) in function.inputs.iter().enumerate() {
        let op =
            builder.parameter(i as i64, element_type(input.shape.dtype), &dims(&input.shape), &input.name)?;
        parameters.push(op);
    }
    let lowering = Lowering { builder: &builder, target };
    let results = lowering.block(&function.block, parameters)?;
    for (i, output) in function.outputs.iter().enumerate() {
        if let Some(donor) = output.donor {
            builder.setup_alias(i as i64, donor as i64);
        }
    }
    let computation = builder.build(&builder.tuple(&results)?)?;
    let module = if needs_patch(&function.block) {
        patch::patched(&computation.proto())?
    } else {
        computation.proto()
    }
    .to_bytes()?;
    Ok(Program { signature: signature(function, target, replicas), module })
}

/// The signature of a graph's program.
pub fn signature(function: &Function, target: Target, replicas: usize) -> Signature {
    let donated = |i: usize| function.outputs.iter().any(|o| o.donor == Some(i));
    let input = |(i, input): (usize, &crate::ir::Input)| InputSpec {
        name: input.name.clone(),
        shape: input.shape.clone(),
        donated: donated(i),
    };
    let output = |o: &crate::ir::Output| OutputSpec { name: o.name.clone(), shape: o.shape.clone() };
    Signature {
        name: function.name.clone(),
        format: Format::Hlo,
        target,
        graph: function.fingerprint(),
        replicas,
        inputs: function.inputs.iter().enumerate().map(input).collect(),
        outputs: function.outputs.iter().map(output).collect(),
    }
}

/// A module as StableHLO text.
///
/// # Errors
/// When the module is none, or has something that StableHLO has not.
pub fn stablehlo(module: &[u8]) -> Result<String> {
    let proto = HloModuleProto::parse_proto(module, true)?;
    Ok(proto.to_stablehlo_string()?)
}

/// Whether there are operations that the builder lacks.
fn needs_patch(block: &Block) -> bool {
    block.nodes.iter().any(|node| match &node.op {
        Op::Collective(op) => match op {
            Collective::AllGather { .. } | Collective::AllToAll { .. } => true,
            Collective::AllReduce => false,
        },
        Op::Repeat(repeat) => needs_patch(&repeat.body),
        Op::Source(_) | Op::Elementwise(_) | Op::Reduce(_) | Op::Dot(_) | Op::Conv(_) => false,
        Op::Layout(_) | Op::Index(_) => false,
    })
}

pub(crate) fn element_type(dtype: DType) -> ElementType {
    match dtype {
        DType::Pred => ElementType::Pred,
        DType::U8 => ElementType::U8,
        DType::S32 => ElementType::S32,
        DType::U32 => ElementType::U32,
        DType::U64 => ElementType::U64,
        DType::Bf16 => ElementType::Bf16,
        DType::F32 => ElementType::F32,
    }
}

fn i64s(values: &[usize]) -> Vec<i64> {
    values.iter().map(|v| *v as i64).collect()
}

fn dims(shape: &Shape) -> Vec<i64> {
    i64s(&shape.dims)
}

fn xla_shape(shape: &Shape) -> xla::Shape {
    xla::Shape::array_with_type(element_type(shape.dtype), dims(shape))
}

/// A reducing computation of two scalars.
fn scalar_computation(
    dtype: DType,
    f: impl Fn(&XlaOp, &XlaOp) -> xla::Result<XlaOp>,
) -> Result<XlaComputation> {
    let builder = XlaBuilder::new("combine");
    let ty = element_type(dtype);
    let (a, b) = (builder.parameter(0, ty, &[], "a")?, builder.parameter(1, ty, &[], "b")?);
    Ok(f(&a, &b)?.build()?)
}

/// Lowers into one builder: the module's entry, or a loop's body.
struct Lowering<'b> {
    builder: &'b XlaBuilder,
    target: Target,
}

impl Lowering<'_> {
    fn block(&self, block: &Block, parameters: Vec<XlaOp>) -> Result<Vec<XlaOp>> {
        let mut parameters: Vec<Option<XlaOp>> = parameters.into_iter().map(Some).collect();
        let mut values: Vec<Vec<XlaOp>> = Vec::with_capacity(block.nodes.len());
        for (at, node) in block.nodes.iter().enumerate() {
            let lowered = match block.parameters.iter().position(|p| *p == at) {
                Some(k) => vec![parameters[k].take().context("a parameter was lowered twice")?],
                None => {
                    let operands: Vec<&XlaOp> =
                        node.operands.iter().map(|v| &values[v.node][v.output]).collect();
                    self.node(block, node, &operands)
                        .with_context(|| format!("lowering {}", node.op.name()))?
                }
            };
            values.push(lowered);
        }
        Ok(block.results.iter().map(|v| values[v.node][v.output].clone()).collect())
    }

    fn node(&self, block: &Block, node: &Node, x: &[&XlaOp]) -> Result<Vec<XlaOp>> {
        let shape = |i: usize| block.shape(node.operands[i]);
        let result = &node.shapes[0];
        let lowered = match &node.op {
            Op::Source(op) => self.source(op)?,
            Op::Elementwise(op) => elementwise(op, x)?,
            Op::Reduce(op) => self.reduce(op, shape(0), x[0])?,
            Op::Dot(op) => dot(op, x[0], x[1])?,
            Op::Conv(op) => self.conv(op, x, shape(0), shape(1), result)?,
            Op::Layout(op) => layout(op, x)?,
            Op::Index(op) => self.index(op, x, shape(0), node)?,
            Op::Collective(op) => self.collective(op, x[0], shape(0), result)?,
            Op::Repeat(op) => return self.repeat(op, x, node, block),
        };
        Ok(vec![lowered])
    }

    fn source(&self, op: &Source) -> Result<XlaOp> {
        Ok(match op {
            Source::Parameter => anyhow::bail!("a parameter that its block does not list"),
            Source::Constant(array) => self.constant(array)?,
            Source::Iota { shape, axis } => {
                self.builder.iota(element_type(shape.dtype), &dims(shape), *axis as i64)?
            }
        })
    }

    fn constant(&self, array: &Array) -> Result<XlaOp> {
        let ty = element_type(array.shape().dtype);
        let literal = Literal::create_from_shape_and_untyped_data(ty, array.dims(), array.bytes())?;
        Ok(self.builder.constant_literal(&literal)?)
    }

    fn zeros(&self, shape: &Shape) -> Result<XlaOp> {
        let zero = self.builder.zero(element_type(shape.dtype))?;
        Ok(zero.broadcast_in_dim(&dims(shape), &[])?)
    }

    fn reduce(&self, op: &Reduce, shape: &Shape, x: &XlaOp) -> Result<XlaOp> {
        let ty = element_type(shape.dtype);
        let (init, combine) = match op.reduction {
            Reduction::Sum => (self.builder.zero(ty)?, scalar_computation(shape.dtype, |a, b| a.add_(b))?),
            Reduction::Max => {
                (self.builder.min_value(ty)?, scalar_computation(shape.dtype, |a, b| a.max(b))?)
            }
        };
        Ok(x.reduce(init, combine, &i64s(&op.axes), false)?)
    }

    fn conv(&self, op: &Conv, x: &[&XlaOp], image: &Shape, other: &Shape, result: &Shape) -> Result<XlaOp> {
        match (self.target, op) {
            (Target::Cpu, Conv::Forward(window)) => self.cpu_conv(*window, x[0], x[1], image, other, result),
            (Target::Cpu, Conv::WeightGrad { window, kernel }) => {
                self.cpu_weight_grad(*window, *kernel, x[0], x[1], image, other)
            }
            (Target::Native, Conv::Forward(window)) => native_conv(window, x[0], x[1]),
            (Target::Native, Conv::WeightGrad { window, kernel }) => {
                native_weight_grad(window, *kernel, x[0], x[1], image, other)
            }
        }
    }

    fn index(&self, op: &Index, x: &[&XlaOp], shape: &Shape, node: &Node) -> Result<XlaOp> {
        Ok(match op {
            Index::DynamicSlice { sizes } => x[0].dynamic_slice(&x[1..], &i64s(sizes))?,
            Index::DynamicUpdateSlice => x[0].dynamic_update_slice(x[1], &x[2..])?,
            Index::Take => {
                let rank = node.shapes[0].rank();
                let lead = rank + 1 - shape.rank();
                let offsets: Vec<i64> = (lead..rank).map(|d| d as i64).collect();
                let mut sizes = dims(shape);
                sizes[0] = 1;
                x[0].gather(x[1], &offsets, &[0], &[0], Some(lead as i64), &sizes)?
            }
            Index::AddRows | Index::SetRows => {
                let combine = match op {
                    Index::AddRows => scalar_computation(shape.dtype, |a, b| a.add_(b))?,
                    _ => scalar_computation(shape.dtype, |_, b| Ok(b.clone()))?,
                };
                let lead = x[1].rank()?;
                let window: Vec<i64> = (lead..lead + shape.rank() - 1).map(|d| d as i64).collect();
                x[0].scatter(x[1], x[2], &combine, &window, &[0], &[0], lead as i64)?
            }
            Index::Sort => x[0].sort_asc(shape.rank() as i64 - 1, false)?,
        })
    }

    fn collective(&self, op: &Collective, x: &XlaOp, shape: &Shape, result: &Shape) -> Result<XlaOp> {
        Ok(match op {
            Collective::AllReduce => x.all_reduce(&scalar_computation(shape.dtype, |a, b| a.add_(b))?)?,
            Collective::AllGather { .. } => {
                let row = x.reshape(&[&[1], dims(shape).as_slice()].concat())?;
                let ty = element_type(result.dtype);
                self.builder.custom_call(patch::ALL_GATHER, &[row], ty, &dims(result), b"")?
            }
            Collective::AllToAll { .. } => {
                let ty = element_type(result.dtype);
                self.builder.custom_call(
                    patch::ALL_TO_ALL,
                    std::slice::from_ref(x),
                    ty,
                    &dims(result),
                    b"",
                )?
            }
        })
    }

    /// A `while` over the tuple (index, trips if known only at run time, carries, stacks, captured values).
    fn repeat(&self, op: &Repeat, x: &[&XlaOp], node: &Node, block: &Block) -> Result<Vec<XlaOp>> {
        let first = op.first_carry();
        let (carries, captured) = x[first..].split_at(op.carries);
        let stacks = &node.shapes[op.carries..];
        let mut init: Vec<XlaOp> = vec![self.builder.c0(0i32)?];
        init.extend(x[..first + op.carries].iter().map(|v| (*v).clone()));
        for stack in stacks {
            init.push(self.zeros(stack)?);
        }
        init.extend(captured.iter().map(|v| (*v).clone()));
        let operand_shape = |i: usize| block.shape(node.operands[i]).clone();
        let mut shapes = vec![Shape::s32(&[])];
        shapes.extend((0..first + op.carries).map(operand_shape));
        shapes.extend(stacks.iter().cloned());
        shapes.extend((first + carries.len()..x.len()).map(operand_shape));
        let state = xla::Shape::tuple(shapes.iter().map(xla_shape).collect());
        let outputs = 1 + first..1 + first + node.shapes.len();

        let condition = {
            let builder = XlaBuilder::new("condition");
            let state = builder.parameter_s(0, &state, "state")?;
            let trips = match op.dynamic {
                true => state.get_tuple_element(1)?,
                false => builder.c0(op.max_trips as i32)?,
            };
            state.get_tuple_element(0)?.lt(&trips)?.build()?
        };
        let body = {
            let builder = XlaBuilder::new("body");
            let state = builder.parameter_s(0, &state, "state")?;
            let field = |i: usize| state.get_tuple_element(i as i64);
            let index = field(0)?;
            let mut arguments = vec![index.clone()];
            for i in (1 + first..1 + first + op.carries).chain(outputs.end..shapes.len()) {
                arguments.push(field(i)?);
            }
            let lowering = Lowering { builder: &builder, target: self.target };
            let results = lowering.block(&op.body, arguments)?;
            let mut next = vec![index.add_(&builder.c0(1i32)?)?];
            next.extend((0..first).map(|i| field(1 + i)).collect::<xla::Result<Vec<_>>>()?);
            for (i, result) in results.into_iter().enumerate() {
                next.push(match i < op.carries {
                    true => result,
                    false => {
                        let at = outputs.start + i;
                        let row = result.reshape(&[&[1], &dims(&shapes[at])[1..]].concat())?;
                        let zero = builder.c0(0i32)?;
                        let starts: Vec<&XlaOp> =
                            (0..shapes[at].rank()).map(|d| if d == 0 { &index } else { &zero }).collect();
                        field(at)?.dynamic_update_slice(&row, &starts)?
                    }
                });
            }
            for i in outputs.end..shapes.len() {
                next.push(field(i)?);
            }
            builder.build(&builder.tuple(&next)?)?
        };
        let last = XlaOp::while_(condition, body, self.builder.tuple(&init)?)?;
        outputs.map(|i| Ok(last.get_tuple_element(i as i64)?)).collect()
    }
}

fn elementwise(op: &E, x: &[&XlaOp]) -> xla::Result<XlaOp> {
    match op {
        E::Neg => x[0].neg(),
        E::Abs => x[0].abs(),
        E::Sign => x[0].sign(),
        E::Exp => x[0].exp(),
        E::Expm1 => x[0].expm1(),
        E::Log => x[0].log(),
        E::Log1p => x[0].log1p(),
        E::Sqrt => x[0].sqrt(),
        E::Tanh => x[0].tanh(),
        E::Not => x[0].not(),
        E::IsFinite => x[0].is_finite(),
        E::Convert(dtype) => x[0].convert(element_type(*dtype).primitive_type()),
        E::Detach | E::Keep => Ok(x[0].clone()),
        E::Recall => Ok(x[1].clone()),
        E::Add => x[0].add_(x[1]),
        E::Sub => x[0].sub_(x[1]),
        E::Mul => x[0].mul_(x[1]),
        E::Div => x[0].div_(x[1]),
        E::Rem => x[0].rem_(x[1]),
        E::Max => x[0].max(x[1]),
        E::Min => x[0].min(x[1]),
        E::And => x[0].and(x[1]),
        E::Or => x[0].or(x[1]),
        E::Xor => x[0].xor(x[1]),
        E::Eq => x[0].eq(x[1]),
        E::Ne => x[0].ne(x[1]),
        E::Lt => x[0].lt(x[1]),
        E::Le => x[0].le(x[1]),
        E::Gt => x[0].gt(x[1]),
        E::Ge => x[0].ge(x[1]),
        E::Select => x[0].select(x[1], x[2]),
    }
}

fn dot(op: &Dot, lhs: &XlaOp, rhs: &XlaOp) -> xla::Result<XlaOp> {
    let [a, b] = [&op.lhs_contract, &op.rhs_contract].map(|v| i64s(v));
    let [c, d] = [&op.lhs_batch, &op.rhs_batch].map(|v| i64s(v));
    lhs.dot_general(rhs, &a, &b, &c, &d)
}

fn layout(op: &Layout, x: &[&XlaOp]) -> xla::Result<XlaOp> {
    match op {
        Layout::Broadcast { dims, axes } => x[0].broadcast_in_dim(&i64s(dims), &i64s(axes)),
        Layout::Reshape { dims } => x[0].reshape(&i64s(dims)),
        Layout::Transpose { axes } => x[0].transpose(&i64s(axes)),
        Layout::Slice { start, limit, stride } => {
            let mut op = x[0].clone();
            for d in 0..start.len() {
                let whole = start[d] == 0 && stride[d] == 1 && op.dims()?[d] == limit[d];
                if !whole {
                    op = op.slice_in_dim(start[d] as i64, limit[d] as i64, stride[d] as i64, d as i64)?;
                }
            }
            Ok(op)
        }
        Layout::Pad { padding } => {
            let config: Vec<_> = padding.iter().map(|p| (p.low, p.high, p.interior)).collect();
            x[0].pad(x[1], &config)
        }
        Layout::Concat { axis } => x[0].concat_in_dim(&x[1..], *axis as i64),
        Layout::Reverse { axes } => x[0].rev(&i64s(axes)),
    }
}

/// XLA's convolution, NHWC x HWIO → NHWC.
fn native_conv(window: &Window, image: &XlaOp, kernel: &XlaOp) -> Result<XlaOp> {
    let Window { stride, padding, image_dilation, kernel_dilation } = window;
    let grid = &[1, 2];
    let [stride, image_dilation, kernel_dilation] =
        [stride, image_dilation, kernel_dilation].map(|v| i64s(v));
    Ok(image.conv_general_dilated(
        kernel,
        &stride,
        padding,
        &image_dilation,
        &kernel_dilation,
        0,
        3,
        grid,
        0,
        3,
        grid,
        2,
        3,
        &[0, 1],
        1,
        1,
        false,
    )?)
}

/// The weight gradient as XLA's convolution: channels take the place of the batch, and the cotangent that of the kernel.
fn native_weight_grad(
    window: &Window,
    kernel: [usize; 2],
    image: &XlaOp,
    result: &XlaOp,
    image_shape: &Shape,
    result_shape: &Shape,
) -> Result<XlaOp> {
    let grid = |s: &Shape| [s.dims[1], s.dims[2]];
    let padding = window.weight_padding(grid(image_shape), kernel, grid(result_shape));
    let [stride, image_dilation, kernel_dilation] =
        [&window.kernel_dilation, &window.image_dilation, &window.stride].map(|v| i64s(v));
    Ok(image.conv_general_dilated(
        result,
        &stride,
        &padding,
        &image_dilation,
        &kernel_dilation,
        3,
        0,
        &[1, 2],
        2,
        3,
        &[0, 1],
        0,
        3,
        &[1, 2],
        1,
        1,
        false,
    )?)
}
