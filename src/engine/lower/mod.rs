//! Lowering: turns graphs into XLA modules with the builder of the `xla` crate.
//!
//! `Lowering::node` is one exhaustive match over the operations. Special forms for CPUs are in separate files. Operations that
//! the builder lacks are added to the finished module by `patch`.

mod bf16;
mod conv;
mod cpu_conv;
mod epilogue;
mod matmul;
mod patch;
mod placeholders;
mod unroll;

use std::cell::Cell;
use std::rc::Rc;

use anyhow::{Context, Result};
use xla::{ElementType, HloModuleProto, Literal, XlaBuilder, XlaComputation, XlaOp};

use self::conv::{FORWARD, Forward, WeightGrad};
use self::epilogue::Epilogue;
use crate::engine::array::Array;
use crate::engine::ir::ops::collective::Collective;
use crate::engine::ir::ops::control::Repeat;
use crate::engine::ir::ops::conv::Conv;
use crate::engine::ir::ops::elementwise::Elementwise as E;
use crate::engine::ir::ops::index::Index;
use crate::engine::ir::ops::layout::Layout;
use crate::engine::ir::ops::reduce::{Reduce, Reduction};
use crate::engine::ir::ops::source::Source;
use crate::engine::ir::{Block, Function, Node, Op, Value};
pub use crate::engine::program::Target;
use crate::engine::program::{Format, InputSpec, OutputSpec, Program, Signature};
use crate::engine::shape::{DType, Precision, Shape};

/// Lowers a function to a program for `replicas` replicas.
///
/// # Errors
/// When XLA's builder refuses an operation. Shapes are checked before, so this is a bug in the lowering.
pub fn lower(function: &Function, target: Target, replicas: usize) -> Result<Program> {
    let builder = XlaBuilder::new(&function.name);
    let has_placeholders = Cell::new(false);
    let lowering = Lowering {
        builder: &builder,
        target,
        precision: function.precision,
        has_placeholders: &has_placeholders,
    };
    let mut parameters = Vec::new();
    for (i, input) in function.inputs.iter().enumerate() {
        let ty = element_type(input.shape.dtype);
        let op = builder.parameter(i as i64, ty, &dims(&input.shape), &input.name)?;
        parameters.push(lowering.bitcast(&op, lowering.element_type(input.shape.dtype))?);
    }
    let results = lowering.block(&function.block, parameters.into_iter().map(Lowered::from).collect())?;
    let results = results.iter().zip(&function.outputs);
    let results = results.map(|(x, output)| lowering.bitcast(&x.op, element_type(output.shape.dtype)));
    let results = results.collect::<Result<Vec<_>>>()?;
    for (i, output) in function.outputs.iter().enumerate() {
        if let Some(donor) = output.donor {
            builder.setup_alias(i as i64, donor as i64);
        }
    }
    let computation = builder.build(&builder.tuple(&results)?)?;
    let module = if has_placeholders.get() {
        patch::replace_placeholders(&computation.proto())?
    } else {
        computation.proto()
    }
    .to_bytes()?;
    Ok(Program { signature: signature(function, target, replicas), module })
}

/// Returns the signature of the program that [`lower`] makes, without lowering the function.
pub fn signature(function: &Function, target: Target, replicas: usize) -> Signature {
    let donated = |i: usize| function.outputs.iter().any(|o| o.donor == Some(i));
    let input = |(i, input): (usize, &crate::engine::ir::Input)| InputSpec {
        name: input.name.clone(),
        shape: input.shape.clone(),
        donated: donated(i),
    };
    let output = |o: &crate::engine::ir::Output| OutputSpec { name: o.name.clone(), shape: o.shape.clone() };
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

/// Converts a serialized `HloModuleProto` to StableHLO text.
///
/// # Errors
/// When the bytes are not a module, or the module contains an operation that StableHLO lacks.
pub fn stablehlo(module: &[u8]) -> Result<String> {
    let proto = HloModuleProto::parse_proto(module, true)?;
    Ok(proto.to_stablehlo_string()?)
}

/// Returns the element type of the `xla` crate.
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

/// Builds a computation of two scalars, which reductions and scatters use.
fn scalar_computation(
    dtype: DType,
    f: impl Fn(&XlaOp, &XlaOp) -> xla::Result<XlaOp>,
) -> Result<XlaComputation> {
    let builder = XlaBuilder::new("combine");
    let ty = element_type(dtype);
    let (a, b) = (builder.parameter(0, ty, &[], "a")?, builder.parameter(1, ty, &[], "b")?);
    Ok(f(&a, &b)?.build()?)
}

/// Returns the operands that an operation reads. The first operand of a recall serves only its gradient.
fn read_operands(node: &Node) -> &[Value] {
    match node.op {
        Op::Elementwise(E::Recall) => &node.operands[1..],
        _ => &node.operands,
    }
}

/// Reports for each node of a block whether its results depend on it.
fn live(block: &Block) -> Vec<bool> {
    let mut live = vec![false; block.nodes.len()];
    block.results.iter().for_each(|v| live[v.node] = true);
    for (at, node) in block.nodes.iter().enumerate().rev() {
        if live[at] {
            read_operands(node).iter().for_each(|v| live[v.node] = true);
        }
    }
    live
}

/// A lowered value, with what is known of it besides the operation.
#[derive(Clone)]
struct Lowered {
    op: XlaOp,
    /// The value of an s32 scalar that does not depend on the program's inputs.
    constant: Option<i64>,
    /// The rows of a stack of a loop that was written out.
    rows: Option<Rc<Vec<XlaOp>>>,
}

impl From<XlaOp> for Lowered {
    fn from(op: XlaOp) -> Lowered {
        Lowered { op, constant: None, rows: None }
    }
}

/// Lowers nodes into one builder: of the module's entry computation or of a loop's body.
struct Lowering<'b> {
    builder: &'b XlaBuilder,
    target: Target,
    precision: Precision,
    /// Set once a placeholder is added, which `patch` must replace.
    has_placeholders: &'b Cell<bool>,
}

impl Lowering<'_> {
    /// Lowers the nodes of a block and returns its results.
    fn block(&self, block: &Block, parameters: Vec<Lowered>) -> Result<Vec<Lowered>> {
        let mut parameters: Vec<Option<Lowered>> = parameters.into_iter().map(Some).collect();
        let mut values: Vec<Vec<Lowered>> = Vec::with_capacity(block.nodes.len());
        let live = live(block);
        for (at, node) in block.nodes.iter().enumerate() {
            let lowered = match block.parameters.iter().position(|p| *p == at) {
                Some(k) => vec![parameters[k].take().context("a parameter was lowered twice")?],
                // Mostly values that are recomputed only for the rules of their gradients.
                None if !live[at] => vec![],
                None => {
                    let lowered = self.in_block(block, node, &values);
                    lowered.with_context(|| format!("lowering {}", node.op.name()))?
                }
            };
            values.push(lowered);
        }
        Ok(block.results.iter().map(|v| values[v.node][v.output].clone()).collect())
    }

    /// Lowers a node whose operands are among the lowered values of its block.
    fn in_block(&self, block: &Block, node: &Node, values: &[Vec<Lowered>]) -> Result<Vec<Lowered>> {
        let operands = read_operands(node).iter().map(|v| &values[v.node][v.output]);
        let operands: Vec<&Lowered> = operands.collect();
        if let Op::Repeat(op) = &node.op
            && self.unrolls(op, &operands)
        {
            return self.unrolled(op, &operands);
        }
        if let Op::Index(Index::DynamicSlice { sizes }) = &node.op
            && let Some(row) = unroll::row(&operands, sizes)?
        {
            return Ok(vec![row.into()]);
        }
        if let Some(fused) = self.fused_bias_elu(block, node, values)? {
            return Ok(vec![fused.into()]);
        }
        let known = unroll::constant(&node.op, &operands);
        let ops: Vec<&XlaOp> = operands.iter().map(|x| &x.op).collect();
        let lowered = self.node(block, node, &ops)?.into_iter();
        Ok(lowered.map(|op| Lowered { constant: known, ..op.into() }).collect())
    }

    /// Lowers a node and returns its outputs.
    fn node(&self, block: &Block, node: &Node, x: &[&XlaOp]) -> Result<Vec<XlaOp>> {
        let shapes: Vec<&Shape> = read_operands(node).iter().map(|v| block.shape(*v)).collect();
        if self.needs_f32(&node.op, &shapes) {
            return self.in_f32(node, &shapes, x);
        }
        let shape = |i: usize| shapes[i];
        let result = &node.shapes[0];
        let lowered = match &node.op {
            Op::Source(op) => self.source(op)?,
            Op::Elementwise(E::Convert(to)) => self.converted(x[0], shape(0).dtype, *to)?,
            Op::Elementwise(E::Recall) => self.recalled(block, node, x[0])?,
            Op::Elementwise(op) if self.is_narrow() => self.narrow_elementwise(op, x)?,
            Op::Elementwise(op) => elementwise(op, x)?,
            Op::Reduce(op) => self.reduce(op, shape(0), x[0])?,
            Op::Dot(op) => self.dot(op, x[0], x[1], result, Epilogue::None)?,
            Op::Conv(op) => self.conv(op, x, shape(0), shape(1), result)?,
            Op::Layout(op) => layout(op, x)?,
            Op::Index(op) => self.index(op, x, shape(0), node)?,
            Op::Collective(op) => self.collective(op, x[0], shape(0), result)?,
            Op::Repeat(op) => return self.repeat(op, x, node, block),
        };
        Ok(vec![lowered])
    }

    /// Lowers a recall to the saved value.
    ///
    /// On devices other than CPUs the saved result of an ELU goes through a maximum with −1, which does not change it. Without
    /// this operation the TPU's compiler reads the whole stack in every matmul, and estimates up to 10 % more time for a step.
    fn recalled(&self, block: &Block, node: &Node, saved: &XlaOp) -> Result<XlaOp> {
        let origin = &block.nodes[block.before_keep(node.operands[0]).node];
        if self.target != Target::Native || !matches!(origin.op, Op::Elementwise(E::Elu)) {
            return Ok(saved.clone());
        }
        let least = self.builder.c0(-1f32)?.convert(saved.ty()?)?;
        Ok(saved.max(&least.broadcast_in_dim(&dims(&node.shapes[0]), &[])?)?)
    }

    /// Lowers an operation with bf16 operands: converts them to f32, computes, and converts bf16 results back.
    fn in_f32(&self, node: &Node, shapes: &[&Shape], x: &[&XlaOp]) -> Result<Vec<XlaOp>> {
        let wide = |shape: &Shape| match shape.dtype {
            DType::Bf16 => shape.with_dtype(DType::F32),
            _ => shape.clone(),
        };
        let operands = x.iter().zip(shapes).map(|(x, shape)| match shape.dtype {
            DType::Bf16 => self.converted(x, DType::Bf16, DType::F32),
            _ => Ok((*x).clone()),
        });
        let operands = operands.collect::<Result<Vec<_>>>()?;
        let mut block = Block::default();
        for shape in shapes {
            block.nodes.push(Node {
                op: Source::Parameter.into(),
                operands: vec![],
                shapes: vec![wide(shape)],
            });
        }
        let inner = Node {
            op: node.op.clone(),
            operands: (0..shapes.len()).map(Value::first).collect(),
            shapes: node.shapes.iter().map(wide).collect(),
        };
        let results = self.node(&block, &inner, &operands.iter().collect::<Vec<_>>())?;
        let narrowed = results.iter().zip(&node.shapes).map(|(op, shape)| match shape.dtype {
            DType::Bf16 => self.converted(op, DType::F32, DType::Bf16),
            _ => Ok(op.clone()),
        });
        narrowed.collect()
    }

    /// Adds the placeholder of an operation that the builder lacks, with the operation's fields as text.
    fn placeholder(
        &self,
        name: &str,
        operands: &[XlaOp],
        ty: ElementType,
        dims: &[i64],
        fields: &str,
    ) -> Result<XlaOp> {
        self.has_placeholders.set(true);
        Ok(self.builder.custom_call(name, operands, ty, dims, fields.as_bytes())?)
    }

    fn xla_shape(&self, shape: &Shape) -> xla::Shape {
        xla::Shape::array_with_type(self.element_type(shape.dtype), dims(shape))
    }

    fn source(&self, op: &Source) -> Result<XlaOp> {
        Ok(match op {
            Source::Parameter => anyhow::bail!("a parameter that its block does not list"),
            Source::Constant(array) => self.constant(array)?,
            Source::Iota { shape, axis } => {
                let iota = self.builder.iota(element_type(shape.dtype), &dims(shape), *axis as i64)?;
                self.bitcast(&iota, self.element_type(shape.dtype))?
            }
        })
    }

    fn constant(&self, array: &Array) -> Result<XlaOp> {
        let ty = self.element_type(array.shape().dtype);
        let literal = Literal::create_from_shape_and_untyped_data(ty, array.dims(), array.bytes())?;
        Ok(self.builder.constant_literal(&literal)?)
    }

    /// Adds an array of zeros.
    fn zeros(&self, shape: &Shape) -> Result<XlaOp> {
        let zero = self.builder.zero(self.element_type(shape.dtype))?;
        Ok(zero.broadcast_in_dim(&dims(shape), &[])?)
    }

    /// Adds an array for a loop that writes every element that is read. It contains zeros where the compiler has no array without
    /// initial values.
    fn uninitialized(&self, shape: &Shape) -> Result<XlaOp> {
        if self.target != Target::Gpu {
            return self.zeros(shape);
        }
        let ty = self.element_type(shape.dtype);
        Ok(self.builder.custom_call::<XlaOp>("AllocateBuffer", &[], ty, &dims(shape), &[])?)
    }

    fn reduce(&self, op: &Reduce, shape: &Shape, x: &XlaOp) -> Result<XlaOp> {
        let ty = element_type(shape.dtype);
        if self.sums_by_matmul(op, shape) {
            return self.sum_by_matmul(x, shape);
        }
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
            (target, Conv::Forward(window)) if !target.is_cpu() => {
                self.convolution(window, &FORWARD, x[0], x[1], result, Epilogue::None)
            }
            (_, Conv::Forward(window)) => self.cpu_conv(&Forward {
                window: *window,
                image: x[0],
                kernel: x[1],
                image_shape: image,
                kernel_shape: other,
                result,
                epilogue: Epilogue::None,
            }),
            (target, Conv::WeightGrad { window, kernel }) => {
                let (window, kernel) = (*window, *kernel);
                let grad = WeightGrad {
                    window,
                    kernel,
                    image: x[0],
                    result: x[1],
                    image_shape: image,
                    result_shape: other,
                };
                if target.is_cpu() { self.cpu_weight_grad(&grad) } else { self.weight_grad(&grad) }
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
                let ty = self.element_type(result.dtype);
                self.placeholder(patch::ALL_GATHER, &[row], ty, &dims(result), patch::ALONG_FIRST)?
            }
            Collective::AllToAll { replicas } => {
                let ty = self.element_type(result.dtype);
                let operands = std::slice::from_ref(x);
                // Compilers take an empty list as all replicas. The conversion to StableHLO needs the list.
                let ids: String = (0..*replicas).map(|r| format!(" replica_ids: {r}")).collect();
                let fields = format!("{} replica_groups {{{ids} }}", patch::ALONG_FIRST);
                self.placeholder(patch::ALL_TO_ALL, operands, ty, &dims(result), &fields)?
            }
        })
    }

    /// Lowers a loop to a `while` over the tuple (index, number of trips if dynamic, carries, stacks, captured values).
    fn repeat(&self, op: &Repeat, x: &[&XlaOp], node: &Node, block: &Block) -> Result<Vec<XlaOp>> {
        let first = op.first_carry();
        let (carries, captured) = x[first..].split_at(op.carries);
        let stacks = &node.shapes[op.carries..];
        let mut init: Vec<XlaOp> = vec![self.builder.c0(0i32)?];
        init.extend(x[..first + op.carries].iter().map(|v| (*v).clone()));
        for (i, stack) in stacks.iter().enumerate() {
            let written = !op.dynamic || op.carries + i >= op.saved_from;
            init.push(if written { self.uninitialized(stack)? } else { self.zeros(stack)? });
        }
        init.extend(captured.iter().map(|v| (*v).clone()));
        let operand_shape = |i: usize| block.shape(node.operands[i]).clone();
        let mut shapes = vec![Shape::s32(&[])];
        shapes.extend((0..first + op.carries).map(operand_shape));
        shapes.extend(stacks.iter().cloned());
        shapes.extend((first + carries.len()..x.len()).map(operand_shape));
        let state = xla::Shape::tuple(shapes.iter().map(|s| self.xla_shape(s)).collect());
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
            let lowering = Lowering { builder: &builder, ..*self };
            let results = lowering.block(&op.body, arguments.into_iter().map(Lowered::from).collect())?;
            let results = results.into_iter().map(|x| x.op);
            let mut next = vec![index.add_(&builder.c0(1i32)?)?];
            next.extend((0..first).map(|i| field(1 + i)).collect::<xla::Result<Vec<_>>>()?);
            for (i, result) in results.enumerate() {
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
        E::Sin => x[0].sin(),
        E::Cos => x[0].cos(),
        E::Elu => {
            let zero = x[0].zeros_like()?;
            let positive = x[0].gt(&zero)?;
            // expm1 gets 0 where x is positive, so that it cannot overflow.
            positive.select(x[0], &positive.select(&zero, x[0])?.expm1()?)
        }
        E::Not => x[0].not(),
        E::IsFinite => x[0].is_finite(),
        E::Detach | E::Keep | E::Recall | E::Convert(_) => Ok(x[0].clone()),
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
