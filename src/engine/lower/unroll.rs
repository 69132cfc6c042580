//! Loops that are written out, once for each trip: for accelerators, where the number of trips is known while building.
//!
//! On a GPU every operation of a loop costs a launch, and on every accelerator each row of a stack costs a copy. In a loop that is
//! written out, the compiler finds rows by their constant indices, needs no stack, and fuses operations of different trips.
//! The gradient's sums over the trips become one operation over the rows of all trips where a trip has few rows. Small grids have
//! few: a matmul with as many rows as there are in one of their trips takes no less time than one with the rows of all.

use std::rc::Rc;

use anyhow::Result;
use xla::XlaOp;

use super::{Lowered, Lowering};
use crate::engine::ir::ops::control::Repeat;
use crate::engine::ir::ops::conv::Conv;
use crate::engine::ir::ops::elementwise::Elementwise;
use crate::engine::ir::ops::reduce::Reduction;
use crate::engine::ir::ops::source::Source;
use crate::engine::ir::{Block, Node, Op, Value};
use crate::engine::program::Target;
use crate::engine::shape::{DType, Shape};

/// The most operations to which a loop is written out. The compiler's time grows with them.
const MOST_OPERATIONS: usize = 8192;

/// A carry to which each trip adds the result of a sum over rows: an operation whose result does not depend on the order of its
/// operands' first dimension. The gradients of weights and biases are such sums.
struct RowSum {
    carry: usize,
    node: usize,
    /// For each operand, its index among the values that the trips collect.
    operands: Vec<usize>,
}

/// Returns the row that a slice of a stack is, if the loop that made it was written out and the row's index is known.
///
/// XLA would find it too, but not through every conversion.
pub(super) fn row(operands: &[&Lowered], sizes: &[usize]) -> Result<Option<XlaOp>> {
    let [stack, index, rest @ ..] = operands else { return Ok(None) };
    let (Some(rows), Some(index)) = (&stack.rows, index.constant) else { return Ok(None) };
    let whole = stack.op.dims()?[1..] == sizes[1..] && rest.iter().all(|start| start.constant == Some(0));
    if sizes[0] != 1 || !whole {
        return Ok(None);
    }
    // As XLA does for indices that are out of range.
    Ok(Some(rows[index.clamp(0, rows.len() as i64 - 1) as usize].clone()))
}

/// Returns the value of a node that is an s32 scalar, if its operands' values are known.
pub(super) fn constant(op: &Op, operands: &[&Lowered]) -> Option<i64> {
    let of = |i: usize| operands.get(i).and_then(|x| x.constant);
    match op {
        Op::Source(Source::Constant(array)) if array.shape() == &Shape::s32(&[]) => {
            array.to_vec::<i32>().first().map(|v| i64::from(*v))
        }
        Op::Elementwise(Elementwise::Add) => of(0)?.checked_add(of(1)?),
        Op::Elementwise(Elementwise::Sub) => of(0)?.checked_sub(of(1)?),
        Op::Elementwise(Elementwise::Mul) => of(0)?.checked_mul(of(1)?),
        _ => None,
    }
}

/// Returns the number of operations of a block, with those of the bodies of loops.
fn operations(block: &Block) -> usize {
    let of = |node: &Node| match &node.op {
        Op::Repeat(repeat) => 1 + operations(&repeat.body),
        _ => 1,
    };
    block.nodes.iter().map(of).sum()
}

impl Lowering<'_> {
    /// Reports whether a loop is written out: if it fills a stack, or reads the rows of one. Others gain nothing, and by the
    /// estimates of the TPU's compiler take more memory. A loop whose values are recomputed for the gradient stays a loop too: the
    /// compiler would find that a written-out recomputation gives the values of the forward pass, and keep those instead.
    pub(super) fn unrolls(&self, op: &Repeat, x: &[&Lowered]) -> bool {
        let stacks = op.body.results.len() > op.carries || x.iter().any(|x| x.rows.is_some());
        let operations = op.max_trips * operations(&op.body);
        let recomputed = op.options.remat > 0;
        !self.target.is_cpu()
            && !op.dynamic
            && !recomputed
            && stacks
            && (1..=MOST_OPERATIONS).contains(&operations)
    }

    /// Lowers a loop whose body is written out once for each trip.
    pub(super) fn unrolled(&self, op: &Repeat, x: &[&Lowered]) -> Result<Vec<Lowered>> {
        let owned = |values: &[&Lowered]| values.iter().map(|v| (*v).clone()).collect::<Vec<Lowered>>();
        let (mut carries, captured) = (owned(&x[..op.carries]), owned(&x[op.carries..]));
        let (body, sums) = self.without_row_sums(op);
        let mut stacks = vec![Vec::new(); body.results.len() - op.carries];
        for trip in 0..op.max_trips {
            let index = self.builder.c0(trip as i32)?;
            let index = Lowered { constant: Some(trip as i64), ..index.into() };
            let arguments = [&[index], carries.as_slice(), captured.as_slice()].concat();
            let mut results = self.block(&body, arguments)?;
            let rows = results.split_off(op.carries);
            stacks.iter_mut().zip(rows).for_each(|(stack, row)| stack.push(row.op));
            carries = results;
        }
        let collected = stacks.split_off(op.body.results.len() - op.carries);
        for sum in &sums {
            let added = self.over_all_trips(&op.body, sum, &collected)?;
            carries[sum.carry] = carries[sum.carry].op.add_(&added)?.into();
        }
        for rows in &stacks {
            let rows = rows.iter().map(|row| {
                let dims: Vec<i64> = row.dims()?.iter().map(|d| *d as i64).collect();
                row.reshape(&[&[1], dims.as_slice()].concat())
            });
            let rows = rows.collect::<xla::Result<Vec<_>>>()?;
            let stack = rows[0].concat_in_dim(&rows[1..], 0)?;
            carries.push(Lowered { rows: Some(Rc::new(rows)), ..stack.into() });
        }
        Ok(carries)
    }

    /// Returns the body of a loop without its sums over few rows. Additional results are the operands of these sums.
    fn without_row_sums(&self, op: &Repeat) -> (Block, Vec<RowSum>) {
        let mut body = op.body.clone();
        let (mut sums, mut collected) = (Vec::new(), Vec::new());
        for carry in 0..op.carries {
            let parameter = Value::first(op.body.parameters[1 + carry]);
            let Some(node) = self.row_sum(&op.body, op.body.results[carry], parameter) else { continue };
            let operands = op.body.nodes[node].operands.iter().map(|value| {
                collected.iter().position(|known| known == value).unwrap_or_else(|| {
                    collected.push(*value);
                    collected.len() - 1
                })
            });
            sums.push(RowSum { carry, node, operands: operands.collect() });
            body.results[carry] = parameter;
        }
        body.results.extend(collected);
        (body, sums)
    }

    /// Returns the sum over few rows that `result` adds to the loop's parameter; `None` if it is something else.
    fn row_sum(&self, body: &Block, result: Value, parameter: Value) -> Option<usize> {
        let Node { op: Op::Elementwise(Elementwise::Add), operands: terms, .. } = &body.nodes[result.node]
        else {
            return None;
        };
        let node = terms[1].node;
        let Node { op, operands, .. } = &body.nodes[node];
        let sums = match op {
            Op::Dot(dot) => {
                dot.lhs_batch.is_empty() && [&dot.lhs_contract, &dot.rhs_contract].iter().all(|c| **c == [0])
            }
            Op::Conv(conv) => matches!(conv, Conv::WeightGrad { .. }),
            Op::Reduce(reduce) => reduce.reduction == Reduction::Sum && reduce.axes.contains(&0),
            _ => false,
        };
        // By measurement on an H200, and by the TPU compiler's estimates.
        let few = if self.target == Target::Gpu { 1 << 21 } else { 1 << 16 };
        let small = operands.iter().all(|v| body.shape(*v).count() <= few);
        // Nothing else may need the carry's values in the trips. A loop can stack them, too.
        let read = |value: Value| {
            let operands = body.nodes.iter().flat_map(|n| &n.operands);
            operands.chain(&body.results).filter(|v| **v == value).count()
        };
        (sums && small && terms[0] == parameter && read(parameter) == 1 && read(result) == 1).then_some(node)
    }

    /// Lowers a sum over the rows of all trips.
    fn over_all_trips(&self, body: &Block, sum: &RowSum, collected: &[Vec<XlaOp>]) -> Result<XlaOp> {
        let Node { op, operands, shapes } = &body.nodes[sum.node];
        let (mut rows, mut all) = (Vec::new(), Block::default());
        for (value, at) in operands.iter().zip(&sum.operands) {
            let shape = body.shape(*value);
            let trips = &collected[*at];
            let joined = self.joined(trips, shape)?;
            rows.push(joined);
            let dims = [&[trips.len() * shape.dims[0]], &shape.dims[1..]].concat();
            let op = Source::Parameter.into();
            all.nodes.push(Node { op, operands: vec![], shapes: vec![shape.with_dims(&dims)] });
        }
        let operands = (0..rows.len()).map(Value::first).collect();
        let node = Node { op: op.clone(), operands, shapes: shapes.clone() };
        Ok(self.node(&all, &node, &rows.iter().collect::<Vec<_>>())?.swap_remove(0))
    }

    /// Joins the rows of all trips, in bf16 if that is the type in which they are read.
    fn joined(&self, trips: &[XlaOp], shape: &Shape) -> Result<XlaOp> {
        if !self.is_narrow() || shape.dtype != DType::F32 {
            return Ok(trips[0].concat_in_dim(&trips[1..], 0)?);
        }
        let narrow = trips.iter().map(|x| self.converted(x, DType::F32, DType::Bf16));
        let narrow = narrow.collect::<Result<Vec<_>>>()?;
        self.converted(&narrow[0].concat_in_dim(&narrow[1..], 0)?, DType::Bf16, DType::F32)
    }
}
