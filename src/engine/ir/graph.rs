//! Graphs under construction and finished functions, their blocks and nodes, and [`Sym`], the handle that model code uses.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::panic::Location;

use anyhow::{Result, bail, ensure};

use super::op::Op;
use super::ops::elementwise::Elementwise;
use super::ops::source::Source;
use crate::engine::array::Array;
use crate::engine::shape::{DType, Precision, Shape};

/// Identifies an output of a node in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    /// Index of the node in [`Block::nodes`].
    pub node: usize,
    /// Index of the output among the node's outputs.
    pub output: usize,
}

impl Value {
    /// Returns the first output of a node. All operations but the loop have only one output.
    pub fn first(node: usize) -> Value {
        Value { node, output: 0 }
    }
}

/// An operation with its operands. Nodes come after their operands in a block.
#[derive(Clone, Debug)]
pub struct Node {
    /// The operation.
    pub op: Op,
    /// Values of the same block that the operation reads.
    pub operands: Vec<Value>,
    /// The shape of each output.
    pub shapes: Vec<Shape>,
}

/// A closed sequence of nodes: a whole computation or the body of a loop. It reads no values of other blocks.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// The nodes in topological order.
    pub nodes: Vec<Node>,
    /// Indices of the nodes that are the block's parameters, in the order of its arguments.
    pub parameters: Vec<usize>,
    /// The values that the block returns.
    pub results: Vec<Value>,
}

impl Block {
    /// Returns the shape of a value of this block.
    ///
    /// # Panics
    /// When the block has no such value.
    pub fn shape(&self, value: Value) -> &Shape {
        &self.nodes[value.node].shapes[value.output]
    }

    /// Follows a value back through [`Elementwise::Keep`], which does not change it.
    pub(crate) fn before_keep(&self, mut value: Value) -> Value {
        while let Node { op: Op::Elementwise(Elementwise::Keep), operands, .. } = &self.nodes[value.node] {
            value = operands[0];
        }
        value
    }
}

/// A named input of a finished computation.
#[derive(Clone, Debug)]
pub struct Input {
    /// The name.
    pub name: String,
    /// The shape on each replica.
    pub shape: Shape,
}

/// A named output of a finished computation.
#[derive(Clone, Debug)]
pub struct Output {
    /// The name.
    pub name: String,
    /// The shape on each replica.
    pub shape: Shape,
    /// Index of the input whose memory the output reuses.
    pub donor: Option<usize>,
}

/// A finished computation: a block whose parameters and results have names. Displays as text with one node a line.
#[derive(Clone, Debug)]
pub struct Function {
    /// The name, which is also the program's.
    pub name: String,
    /// The precision of matmuls and convolutions.
    pub precision: Precision,
    /// The nodes. Its parameters are the inputs and its results the outputs.
    pub block: Block,
    /// The inputs, one for each parameter of the block.
    pub inputs: Vec<Input>,
    /// The outputs, one for each result of the block.
    pub outputs: Vec<Output>,
}

/// A block under construction.
pub(super) struct Frame {
    id: usize,
    pub(super) block: Block,
    /// Values of the enclosing frame that this one uses, as pairs (value outside, parameter inside).
    captures: Vec<(Value, Value)>,
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) frames: Vec<Frame>,
    /// Number of frames opened so far. Provides the ids of new frames.
    opened: usize,
    inputs: Vec<Input>,
    error: Option<String>,
}

/// A graph under construction.
pub struct Graph {
    name: String,
    precision: Precision,
    pub(super) inner: RefCell<Inner>,
}

/// A value of a graph under construction, with a shape known while building.
///
/// It is a handle and cheap to copy. It can be used in the block in which it was created and in loops inside that block.
/// Operators and methods add nodes to the graph; most of them broadcast their operands as NumPy does.
#[derive(Clone, Copy)]
pub struct Sym<'g> {
    pub(super) graph: &'g Graph,
    frame: usize,
    pub(super) value: Value,
}

impl Graph {
    /// Creates an empty graph whose matmuls and convolutions have f32 operands.
    pub fn new(name: &str) -> Graph {
        Graph::with_precision(name, Precision::F32)
    }

    /// Creates an empty graph whose matmuls and convolutions round their operands to `precision`.
    pub fn with_precision(name: &str, precision: Precision) -> Graph {
        let graph = Graph { name: name.to_string(), precision, inner: RefCell::default() };
        graph.open_frame();
        graph
    }

    /// Declares the next input of the computation.
    ///
    /// # Panics
    /// When called inside a loop's body.
    pub fn input(&self, name: &str, shape: &Shape) -> Sym<'_> {
        assert_eq!(self.inner.borrow().frames.len(), 1, "input {name} declared inside a loop's body");
        self.inner.borrow_mut().inputs.push(Input { name: name.to_string(), shape: shape.clone() });
        self.add_parameter(shape)
    }

    /// Adds an array known while building.
    pub fn constant(&self, array: Array) -> Sym<'_> {
        self.push(Source::Constant(array).into(), &[])
    }

    /// Adds a scalar constant of type `dtype`, converted from `value`.
    /// A number that the type cannot hold, such as 0.5 for an integer type, is a build error. Infinity stands for the greatest
    /// integer.
    #[track_caller]
    pub fn scalar(&self, dtype: DType, value: f64) -> Sym<'_> {
        let least_and_most = match dtype {
            DType::S32 => Some((f64::from(i32::MIN), f64::from(i32::MAX))),
            DType::U32 => Some((0.0, f64::from(u32::MAX))),
            DType::U64 => Some((0.0, u64::MAX as f64)),
            DType::U8 => Some((0.0, f64::from(u8::MAX))),
            DType::F32 | DType::Bf16 | DType::Pred => None,
        };
        if let Some((least, most)) = least_and_most {
            let holds = value.is_infinite() || value.fract() == 0.0 && (least..=most).contains(&value);
            if !holds {
                self.fail(&format!("{value} is no number of type {dtype}: convert the array to f32 before"));
            }
        }
        let array = match dtype {
            DType::F32 => Array::scalar(value as f32),
            DType::S32 => Array::scalar(value as i32),
            DType::U32 => Array::scalar(value as u32),
            DType::U64 => Array::scalar(value as u64),
            DType::U8 => Array::scalar(value as u8),
            DType::Bf16 => return self.scalar(DType::F32, value).convert(DType::Bf16),
            DType::Pred => return self.scalar(DType::U8, value).ne(self.scalar(DType::U8, 0.0)),
        };
        self.constant(array)
    }

    /// Adds an array filled with `value`.
    #[track_caller]
    pub fn full(&self, shape: &Shape, value: f64) -> Sym<'_> {
        self.scalar(shape.dtype, value).broadcast_to(&shape.dims)
    }

    /// Adds an array of elements 0, 1, 2, ... along dimension `axis`, repeated along the others.
    #[track_caller]
    pub fn iota(&self, shape: &Shape, axis: usize) -> Sym<'_> {
        self.push(Source::Iota { shape: shape.clone(), axis }.into(), &[])
    }

    /// Returns the computation of named outputs.
    ///
    /// `donors` lists pairs of an output and an input by name: the output reuses the memory of the input, which a call then
    /// consumes. The graph stays usable, and can be finished again with other outputs.
    ///
    /// # Errors
    /// When an operation has operands of wrong shapes. The message names the first such operation and its line in the source.
    /// Also when a donor is unknown, used twice or of another shape than its output.
    pub fn finish(&self, outputs: &[(String, Sym<'_>)], donors: &[(String, String)]) -> Result<Function> {
        for (name, sym) in outputs {
            ensure!(std::ptr::eq(sym.graph, self), "graph {}: output {name} is of another graph", self.name);
        }
        let results: Vec<Value> = outputs.iter().map(|(_, sym)| self.resolve(*sym)).collect();
        let inner = self.inner.borrow();
        if let Some(error) = &inner.error {
            bail!("graph {}: {error}", self.name);
        }
        ensure!(inner.frames.len() == 1, "graph {}: a loop's body was left open", self.name);
        let mut block = inner.frames[0].block.clone();
        block.results = results;
        let mut named: Vec<Output> = Vec::new();
        for ((name, _), value) in outputs.iter().zip(&block.results) {
            let shape = block.shape(*value).clone();
            let mut donor = None;
            if let Some((_, input)) = donors.iter().find(|(output, _)| output == name) {
                let at = inner.inputs.iter().position(|i| &i.name == input);
                let at = at.ok_or_else(|| {
                    anyhow::anyhow!("output {name} has the donor {input}, which is not an input")
                })?;
                let given = &inner.inputs[at].shape;
                ensure!(
                    *given == shape,
                    "output {name} {shape} has the donor {input} {given} of another shape"
                );
                ensure!(named.iter().all(|o| o.donor != Some(at)), "input {input} is donated twice");
                donor = Some(at);
            }
            named.push(Output { name: name.clone(), shape, donor });
        }
        let (name, precision, inputs) = (self.name.clone(), self.precision, inner.inputs.clone());
        Ok(Function { name, precision, block, inputs, outputs: named })
    }

    /// Adds a node with one output, whose shape follows from the operands.
    #[track_caller]
    pub(super) fn push(&self, op: Op, operands: &[Sym<'_>]) -> Sym<'_> {
        if operands.iter().any(|s| !std::ptr::eq(s.graph, self)) {
            self.fail(&format!("{}: its operands are of different graphs", op.name()));
            return self.push_raw(Source::poison().into(), vec![], vec![Shape::f32(&[])])[0];
        }
        let values: Vec<Value> = operands.iter().map(|s| self.resolve(*s)).collect();
        let shapes: Vec<Shape> = operands.iter().map(|s| s.shape()).collect();
        match op.infer(&shapes) {
            Ok(shapes) => self.push_raw(op, values, shapes)[0],
            Err(error) => {
                let got: Vec<String> = shapes.iter().map(Shape::to_string).collect();
                self.fail(&format!("{}({}): {error}", op.name(), got.join(", ")));
                operands.first().map_or_else(
                    || self.push_raw(Source::poison().into(), vec![], vec![Shape::f32(&[])])[0],
                    |s| self.sym(self.resolve(*s)),
                )
            }
        }
    }

    /// Adds a node with outputs of the given shapes, and returns them.
    pub(super) fn push_raw(&self, op: Op, operands: Vec<Value>, shapes: Vec<Shape>) -> Vec<Sym<'_>> {
        let count = shapes.len();
        let node = {
            let mut inner = self.inner.borrow_mut();
            let nodes = &mut inner.frames.last_mut().expect("a graph has a top frame").block.nodes;
            nodes.push(Node { op, operands, shapes });
            nodes.len() - 1
        };
        (0..count).map(|output| self.sym(Value { node, output })).collect()
    }

    /// Records a build error with the line of code that called the operation, unless an earlier one is recorded.
    #[track_caller]
    pub(super) fn fail(&self, message: &str) {
        let caller = Location::caller();
        let mut inner = self.inner.borrow_mut();
        inner.error.get_or_insert_with(|| format!("{message} at {}:{}", caller.file(), caller.line()));
    }

    /// Records a build error, unless an earlier one is recorded. [`Graph::finish`] returns it. For checks of one's own.
    pub fn reject(&self, message: &str) {
        self.inner.borrow_mut().error.get_or_insert_with(|| message.to_string());
    }

    /// Returns the handle of a value of the innermost frame.
    pub(super) fn sym(&self, value: Value) -> Sym<'_> {
        Sym { graph: self, frame: self.inner.borrow().frames.last().map_or(0, |f| f.id), value }
    }

    /// Adds a parameter to the innermost frame.
    pub(super) fn add_parameter(&self, shape: &Shape) -> Sym<'_> {
        let mut inner = self.inner.borrow_mut();
        let frame = inner.frames.last_mut().expect("a graph has a top frame");
        let value = add_parameter(frame, shape.clone());
        Sym { graph: self, frame: frame.id, value }
    }

    /// Opens a frame inside the innermost one: the body of a loop.
    pub(super) fn open_frame(&self) {
        let mut inner = self.inner.borrow_mut();
        let id = inner.opened;
        inner.opened += 1;
        inner.frames.push(Frame { id, block: Block::default(), captures: Vec::new() });
    }

    /// Closes the innermost frame. Returns its block and the values of the enclosing frame that the block captured, which are
    /// the arguments of its last parameters.
    pub(super) fn close_frame(&self, results: &[Sym<'_>]) -> (Block, Vec<Value>) {
        let results: Vec<Value> = results.iter().map(|s| self.resolve(*s)).collect();
        let mut frame = self.inner.borrow_mut().frames.pop().expect("a frame was opened");
        frame.block.results = results;
        (frame.block, frame.captures.into_iter().map(|(outside, _)| outside).collect())
    }

    /// Returns the value that represents `sym` in the innermost frame. A value of an enclosing frame becomes a parameter of
    /// every frame in between.
    pub(super) fn resolve(&self, sym: Sym<'_>) -> Value {
        let mut inner = self.inner.borrow_mut();
        let Some(home) = inner.frames.iter().position(|f| f.id == sym.frame) else {
            inner
                .error
                .get_or_insert_with(|| "a value of a loop's body was used outside the loop".to_string());
            return Value::first(0);
        };
        let mut value = sym.value;
        for depth in home + 1..inner.frames.len() {
            let shape = inner.frames[depth - 1].block.shape(value).clone();
            let frame = &mut inner.frames[depth];
            value = match frame.captures.iter().find(|(outside, _)| *outside == value) {
                Some((_, inside)) => *inside,
                None => {
                    let inside = add_parameter(frame, shape);
                    frame.captures.push((value, inside));
                    inside
                }
            };
        }
        value
    }

    /// Maps each recalled value of the innermost block to its saved copy.
    pub(super) fn recalled(&self) -> HashMap<Value, Value> {
        let inner = self.inner.borrow();
        let block = &inner.frames.last().expect("a graph has a top frame").block;
        let recalls = block.nodes.iter().filter(|n| matches!(n.op, Op::Elementwise(Elementwise::Recall)));
        recalls.map(|recall| (block.before_keep(recall.operands[0]), recall.operands[1])).collect()
    }

    /// Copies the nodes of a block into the innermost frame, with `arguments` for its parameters, and returns its results.
    ///
    /// If `recalled` has a value for a node, later nodes use this value, and the copied node serves only the gradient.
    pub(super) fn inline<'g>(
        &'g self,
        block: &Block,
        arguments: &[Sym<'g>],
        recalled: &HashMap<usize, Sym<'g>>,
    ) -> Vec<Sym<'g>> {
        let mut map: Vec<Vec<Sym<'g>>> = Vec::with_capacity(block.nodes.len());
        for (at, node) in block.nodes.iter().enumerate() {
            let copied = match block.parameters.iter().position(|p| *p == at) {
                Some(k) => vec![arguments[k]],
                None => {
                    let operands =
                        node.operands.iter().map(|v| self.resolve(map[v.node][v.output])).collect();
                    self.push_raw(node.op.clone(), operands, node.shapes.clone())
                }
            };
            map.push(match recalled.get(&at) {
                Some(saved) => vec![copied[0].recall(*saved)],
                None => copied,
            });
        }
        block.results.iter().map(|v| map[v.node][v.output]).collect()
    }
}

fn add_parameter(frame: &mut Frame, shape: Shape) -> Value {
    let node = frame.block.nodes.len();
    frame.block.nodes.push(Node { op: Source::Parameter.into(), operands: vec![], shapes: vec![shape] });
    frame.block.parameters.push(node);
    Value::first(node)
}

impl<'g> Sym<'g> {
    /// Returns the graph.
    pub fn graph(&self) -> &'g Graph {
        self.graph
    }

    /// Returns the shape.
    pub fn shape(&self) -> Shape {
        let inner = self.graph.inner.borrow();
        let frame = inner.frames.iter().find(|f| f.id == self.frame);
        frame.map_or_else(|| Shape::f32(&[]), |f| f.block.shape(self.value).clone())
    }

    /// Returns the sizes of the dimensions.
    pub fn dims(&self) -> Vec<usize> {
        self.shape().dims
    }

    /// Returns the element type.
    pub fn dtype(&self) -> DType {
        self.shape().dtype
    }

    /// Returns the number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape().rank()
    }

    /// Returns the value unchanged and checks its sizes. A mismatch is a build error, which [`Graph::finish`] returns.
    #[track_caller]
    pub fn expect(self, dims: &[usize]) -> Sym<'g> {
        if self.dims() != dims {
            self.graph.fail(&format!("expected sizes {dims:?}, got {}", self.shape()));
        }
        self
    }
}

impl fmt::Debug for Sym<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}.{} {}", self.value.node, self.value.output, self.shape())
    }
}
