//! The loop: a body that runs a fixed or a variable number of times and passes values from trip to trip. It is differentiable
//! in both cases.

use crate::engine::ir::grad::pullback_with;
use crate::engine::ir::graph::{Block, Graph, Node, Sym, Value};
use crate::engine::ir::op::{Op, Vjp};
use crate::engine::ir::ops::elementwise::Elementwise;
use crate::engine::shape::{DType, Precision, Shape};

/// A loop. In each trip the body maps (trip index, carries, captured values) to (next carries, values to stack).
///
/// Operands: the number of trips (an s32 scalar) if `dynamic`; the initial carries; the captured values. Outputs: the final
/// carries, then a stack for each stacked value. A stack is an array of `max_trips` rows; row i holds the value of trip i, and
/// zeros if the loop ended before.
#[derive(Clone, Debug)]
pub struct Repeat {
    /// The largest number of trips; the number of trips unless `dynamic`.
    pub max_trips: usize,
    /// Whether the number of trips is an operand.
    pub dynamic: bool,
    /// The number of carries.
    pub carries: usize,
    /// The body. Its parameters are the trip index (an s32 scalar), the carries and the captured values; its results are the next
    /// carries and the values to stack.
    pub body: Block,
    /// What the gradient saves and recomputes.
    pub options: RepeatOptions,
    /// Index of the first result that was added for the gradient. The gradient reads only the rows of trips that ran.
    pub saved_from: usize,
}

/// What the gradient of a loop saves in the forward pass and what it recomputes.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RepeatOptions {
    /// How much is recomputed.
    ///
    /// - 0: The carries of every trip are saved, and the values that the body marks with [`Sym::keep`].
    /// - 1: Only the carries of every trip are saved. The body is recomputed from them.
    /// - k > 1: Only the carries of every k-th trip are saved. Each segment of k trips is recomputed from them, with 0 inside
    ///   the segment.
    pub remat: usize,
    /// The element type in which floating-point values are saved. `None` saves each in its own.
    pub save_as: Option<DType>,
}

impl RepeatOptions {
    /// Returns the default options for a precision: everything is saved, in the precision's type.
    ///
    /// Saving in bf16 loses little, because matmuls and convolutions round the saved values anyway.
    pub fn for_precision(precision: Precision) -> RepeatOptions {
        let save_as = (precision == Precision::Bf16).then_some(DType::Bf16);
        RepeatOptions { remat: 0, save_as }
    }
}

impl Repeat {
    pub(in crate::engine::ir) fn attributes(&self) -> String {
        let most = if self.dynamic { "max_trips" } else { "trips" };
        format!(" {most}={} carries={}", self.max_trips, self.carries)
    }

    /// Returns the index of the first carry among the operands.
    pub(crate) fn first_carry(&self) -> usize {
        usize::from(self.dynamic)
    }

    pub(in crate::engine::ir) fn infer(&self, operands: &[Shape]) -> Result<Vec<Shape>, String> {
        let first = self.first_carry();
        if self.dynamic && operands.first() != Some(&Shape::s32(&[])) {
            return Err("the number of trips must be an s32 scalar".into());
        }
        let parameters = self.body.parameters.len();
        if operands.len() + 1 != parameters + first || self.body.results.len() < self.carries {
            return Err(format!(
                "the body has {parameters} parameters and {} results",
                self.body.results.len()
            ));
        }
        let carries = &operands[first..first + self.carries];
        for (i, (carry, value)) in carries.iter().zip(&self.body.results).enumerate() {
            let result = self.body.shape(*value);
            if result != carry {
                return Err(format!("carry {i} enters the body as {carry} and leaves it as {result}"));
            }
        }
        let rows = self.body.results[self.carries..].iter().map(|v| self.body.shape(*v));
        let stacks = rows.map(|s| s.with_dims(&[&[self.max_trips], s.dims.as_slice()].concat()));
        Ok(carries.iter().cloned().chain(stacks).collect())
    }

    /// Makes the forward loop stack the carries of each trip and the values marked with [`Sym::keep`]. Adds a second loop, from
    /// the last trip to the first, that recomputes the body from the stacks and pulls the cotangents back through it. The
    /// cotangents of captured values are summed in carries of the second loop.
    pub(in crate::engine::ir) fn vjp<'g>(&self, at: &Vjp<'_, 'g>) -> Vec<Option<Sym<'g>>> {
        let graph = at.operands[0].graph();
        let first = self.first_carry();
        let captures_from = first + self.carries;
        let kept = self.kept();
        let (saved, saved_kept) = graph.save(at.node, &kept, self.options);
        let trips =
            if self.dynamic { at.operands[0] } else { graph.scalar(DType::S32, self.max_trips as f64) };

        // Only floating-point carries and captured values have cotangents.
        let floats: Vec<usize> =
            (0..self.carries).filter(|&i| at.operands[first + i].dtype().is_float()).collect();
        let wanted: Vec<usize> = (captures_from..at.operands.len())
            .filter(|&i| at.wanted[i] && at.operands[i].dtype().is_float())
            .collect();
        let zeros = |s: Sym<'g>| graph.full(&s.shape(), 0.0);
        let mut init: Vec<Sym<'g>> = Vec::new();
        for &i in &floats {
            init.push(at.cotangents[i].unwrap_or_else(|| zeros(at.outputs[i])));
        }
        init.extend(wanted.iter().map(|&i| zeros(at.operands[i])));

        let body = |index: Sym<'g>, cts: &[Sym<'g>]| {
            let trip = trips - index - 1.0;
            let carries: Vec<Sym<'g>> = (saved.iter().enumerate())
                .map(|(i, s)| s.row(trip).convert(at.operands[first + i].dtype()))
                .collect();
            let captures: Vec<Sym<'g>> =
                at.operands[captures_from..].iter().map(|s| graph.sym(graph.resolve(*s))).collect();
            let arguments = [&[trip], carries.as_slice(), captures.as_slice()].concat();
            let recalled = kept.iter().zip(&saved_kept).map(|(&node, stack)| {
                let dtype = self.body.shape(Value::first(node)).dtype;
                (node, stack.row(trip).convert(dtype))
            });
            let results = graph.inline(&self.body, &arguments, &recalled.collect());
            let mut arrived: Vec<(Sym<'g>, Sym<'g>)> = Vec::new();
            for (k, &i) in floats.iter().enumerate() {
                arrived.push((results[i], cts[k]));
            }
            for (k, result) in results.iter().enumerate().skip(self.carries) {
                if let Some(ct) = at.cotangents[k] {
                    arrived.push((*result, ct.row(trip)));
                }
            }
            let mut wrt: Vec<Sym<'g>> = floats.iter().map(|&i| carries[i]).collect();
            wrt.extend(wanted.iter().map(|&i| captures[i - captures_from]));
            let pulled = pullback_with(&arrived, &wrt);
            let next =
                pulled.into_iter().zip(&wrt).enumerate().map(|(k, (ct, s))| match (k < floats.len(), ct) {
                    (true, ct) => ct.unwrap_or_else(|| zeros(*s)),
                    (false, Some(ct)) => cts[k] + ct,
                    (false, None) => cts[k],
                });
            (next.collect(), vec![])
        };
        let results = if self.dynamic {
            graph.repeat_upto(trips, self.max_trips, &init, body)
        } else {
            graph.repeat(self.max_trips, &init, body)
        };

        let mut cotangents = vec![None; at.operands.len()];
        for (k, &i) in floats.iter().enumerate() {
            cotangents[first + i] = Some(results[k]);
        }
        for (k, &i) in wanted.iter().enumerate() {
            cotangents[i] = Some(results[floats.len() + k]);
        }
        cotangents
    }
}

impl Repeat {
    /// Returns the indices of the body's nodes that are saved besides the carries.
    fn kept(&self) -> Vec<usize> {
        let marked = |node: &Node| matches!(node.op, Op::Elementwise(Elementwise::Keep));
        let nodes = self.body.nodes.iter().enumerate();
        nodes.filter(|(_, node)| self.options.remat == 0 && marked(node)).map(|(at, _)| at).collect()
    }
}

/// The arguments of [`Graph::repeat_with`] besides the body.
#[derive(Clone, Copy, Debug)]
pub struct Loop<'g, 'i> {
    /// What the gradient saves and recomputes.
    pub options: RepeatOptions,
    /// The number of trips, an s32 scalar known at run time. `None` runs `max_trips` trips.
    pub trips: Option<Sym<'g>>,
    /// The largest number of trips, known while building.
    pub max_trips: usize,
    /// The initial carries.
    pub init: &'i [Sym<'g>],
}

/// The results of a loop's body: the next carries, and the values to stack.
pub type BodyResults<'g> = (Vec<Sym<'g>>, Vec<Sym<'g>>);

impl Graph {
    /// Adds a loop that runs `body(index, carries)` `trips` times. Returns the final carries, then the stacks.
    ///
    /// The body returns the next carries, in the shapes of `init`, and values to stack. A stack has one row for each trip. The
    /// body may use values from outside the loop. `body` itself is called once, to build the graph.
    #[track_caller]
    pub fn repeat<'g>(
        &'g self,
        trips: usize,
        init: &[Sym<'g>],
        body: impl FnOnce(Sym<'g>, &[Sym<'g>]) -> BodyResults<'g>,
    ) -> Vec<Sym<'g>> {
        self.repeat_with(
            Loop { options: RepeatOptions::default(), trips: None, max_trips: trips, init },
            body,
        )
    }

    /// Adds a loop as [`Graph::repeat`] does, whose number of trips is an s32 scalar known at run time and at most `max_trips`.
    ///
    /// Stacks have `max_trips` rows. Rows of trips that were not run are zeros.
    #[track_caller]
    pub fn repeat_upto<'g>(
        &'g self,
        trips: Sym<'g>,
        max_trips: usize,
        init: &[Sym<'g>],
        body: impl FnOnce(Sym<'g>, &[Sym<'g>]) -> BodyResults<'g>,
    ) -> Vec<Sym<'g>> {
        self.repeat_with(
            Loop { options: RepeatOptions::default(), trips: Some(trips), max_trips, init },
            body,
        )
    }

    /// Adds a loop as [`Graph::repeat`] does, with all options.
    #[track_caller]
    pub fn repeat_with<'g>(
        &'g self,
        how: Loop<'g, '_>,
        body: impl FnOnce(Sym<'g>, &[Sym<'g>]) -> BodyResults<'g>,
    ) -> Vec<Sym<'g>> {
        if how.options.remat < 2 { self.repeat_once(how, body) } else { self.repeat_in_segments(how, body) }
    }

    /// Adds a loop over segments of `remat` trips. The outer loop saves the carries at the beginning of each segment. The inner
    /// loop saves the values of one segment at a time.
    #[track_caller]
    fn repeat_in_segments<'g>(
        &'g self,
        how: Loop<'g, '_>,
        body: impl FnOnce(Sym<'g>, &[Sym<'g>]) -> BodyResults<'g>,
    ) -> Vec<Sym<'g>> {
        let Loop { options, trips, max_trips, init } = how;
        let length = options.remat;
        let segments = max_trips.div_ceil(length);
        let last = trips.unwrap_or_else(|| self.scalar(DType::S32, max_trips as f64));
        let count = trips.map(|trips| (trips + (length as f64 - 1.0)) / trips.scalar_like(length as f64));
        let outer = RepeatOptions { remat: 1, ..options };
        let inner = RepeatOptions { remat: 0, ..options };
        let outer = Loop { options: outer, trips: count, max_trips: segments, init };
        let results = self.repeat_once(outer, |segment, carries| {
            let begin = segment * length as f64;
            let left = (last - begin).min(begin.scalar_like(length as f64));
            let inner = Loop { options: inner, trips: Some(left), max_trips: length, init: carries };
            let mut results = self.repeat_once(inner, |i, c| body(begin + i, c));
            let stacked = results.split_off(carries.len());
            (results, stacked)
        });
        let join = |(i, stack): (usize, &Sym<'g>)| {
            if i < init.len() {
                return *stack;
            }
            let dims = stack.dims();
            let rows = [&[dims[0] * dims[1]], &dims[2..]].concat();
            stack.reshape(&rows).slice_axis(0, 0, max_trips)
        };
        results.iter().enumerate().map(join).collect()
    }

    /// Adds one loop node.
    #[track_caller]
    fn repeat_once<'g>(
        &'g self,
        how: Loop<'g, '_>,
        body: impl FnOnce(Sym<'g>, &[Sym<'g>]) -> BodyResults<'g>,
    ) -> Vec<Sym<'g>> {
        let Loop { options, trips, max_trips, init } = how;
        self.open_frame();
        let index = self.add_parameter(&Shape::s32(&[]));
        let carries: Vec<Sym<'g>> = init.iter().map(|s| self.add_parameter(&s.shape())).collect();
        let (next, stacked) = body(index, &carries);
        if next.len() != init.len() {
            self.fail(&format!("repeat: {} carries enter the body and {} leave it", init.len(), next.len()));
        }
        let (block, captures) = self.close_frame(&[next, stacked].concat());
        let (dynamic, carries, saved_from) = (trips.is_some(), init.len(), block.results.len());
        let op = Repeat { max_trips, dynamic, carries, body: block, options, saved_from };
        let mut operands: Vec<_> = trips.iter().chain(init).map(|s| self.resolve(*s)).collect();
        operands.extend(captures);
        let shapes: Vec<Shape> = operands.iter().map(|v| self.sym(*v).shape()).collect();
        match op.infer(&shapes) {
            Ok(shapes) => self.push_raw(Op::Repeat(Box::new(op)), operands, shapes),
            Err(error) => {
                self.fail(&format!("repeat: {error}"));
                init.to_vec()
            }
        }
    }

    /// Makes a loop of the innermost block stack the carries at the beginning of each trip and the nodes `kept` of its body.
    /// Returns the stacks of both.
    fn save(&self, node: usize, kept: &[usize], options: RepeatOptions) -> (Vec<Sym<'_>>, Vec<Sym<'_>>) {
        let (from, to, carries) = {
            let mut inner = self.inner.borrow_mut();
            let block = &mut inner.frames.last_mut().expect("a graph has a top frame").block;
            let node = &mut block.nodes[node];
            let Op::Repeat(repeat) = &mut node.op else {
                return (vec![], vec![]);
            };
            let from = node.shapes.len();
            let rows = repeat.max_trips;
            let carries = (0..repeat.carries).map(|i| repeat.body.parameters[1 + i]).collect::<Vec<_>>();
            for &at in carries.iter().chain(kept) {
                let (value, shape) = repeat.body.saved(at, options);
                repeat.body.results.push(value);
                node.shapes.push(shape.with_dims(&[&[rows], shape.dims.as_slice()].concat()));
            }
            (from, node.shapes.len(), repeat.carries)
        };
        let stack = |output| self.sym(Value { node, output });
        ((from..from + carries).map(stack).collect(), (from + carries..to).map(stack).collect())
    }
}

impl Block {
    /// Returns the value to stack for a node, converted to the type in which it is saved, and its shape.
    fn saved(&mut self, node: usize, options: RepeatOptions) -> (Value, Shape) {
        let value = Value::first(node);
        let shape = self.shape(value).clone();
        match options.save_as {
            Some(dtype) if shape.dtype.is_float() && shape.dtype != dtype => {
                let shape = shape.with_dtype(dtype);
                let op = Elementwise::Convert(dtype).into();
                self.nodes.push(Node { op, operands: vec![value], shapes: vec![shape.clone()] });
                (Value::first(self.nodes.len() - 1), shape)
            }
            _ => (value, shape),
        }
    }
}
