//! Estimates a program's cost from the compiler's optimized module.
//!
//! XLA's own cost analysis counts a loop's body once. Here a body counts once for each iteration, whose number the compiler notes
//! at the loop, or is the constant in the loop's condition. Where the number is known only at run time, it is the caller's
//! ([`Trips`]). The costs of a train program are those of one gradient step: what a call does once, such as copying its arguments
//! to another layout, is divided by the number of steps in a call.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::kernels::{self, Kernels};
use super::wire::hlo::{Computation, Instruction, Module, Shape};

/// Deepest nesting of calls, and most instructions, that are followed. Far more than any program has. Without limits a damaged
/// module in which a computation calls itself would be followed without end.
const DEEPEST: usize = 64;
const MOST_STEPS: usize = 1 << 22;

/// The collectives of one kind in a module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Collective {
    /// Number of executions.
    pub count: f64,
    /// Bytes that each replica contributes.
    pub bytes: f64,
}

impl Collective {
    /// Returns the bytes that each of several hosts has to send to others, at least, when they share the replicas evenly. A host's
    /// replicas first combine what they have, where that makes it less. `name` is XLA's name of the operation.
    pub fn between_hosts(&self, name: &str, replicas: usize, hosts: usize) -> f64 {
        let (hosts, of_host) = (hosts as f64, (replicas / hosts.max(1)) as f64);
        let to_others = (hosts - 1.0) / hosts;
        self.bytes
            * match name {
                // Each host reduces one part of the sum for all, and sends it to all.
                "all-reduce" => 2.0 * to_others,
                "reduce-scatter" => to_others,
                "all-gather" => of_host * (hosts - 1.0),
                // Every replica has a part for each one.
                "all-to-all" => of_host * to_others,
                _ if hosts > 1.0 => of_host,
                _ => 0.0,
            }
    }
}

/// Costs summed over a module. A loop's body counts once for each iteration.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// Sum of the compiler's own cycle estimates of fusions, convolutions and copies.
    pub cycles: f64,
    /// Bytes read from and written to the device's main memory.
    pub bytes: f64,
    /// Collectives, by XLA's name of the operation.
    pub collectives: BTreeMap<String, Collective>,
    /// What a GPU launches.
    pub kernels: Kernels,
}

/// The numbers of iterations of loops where they are known only at run time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trips {
    /// Of a loop in the entry computation: the gradient steps in a call. Costs are divided by it. 1 for a program without steps.
    pub steps: f64,
    /// Of a loop inside another one.
    pub drawn: f64,
}

impl Estimate {
    /// Sums the costs of a module.
    ///
    /// # Errors
    /// When the module is not well-formed.
    pub fn from_module(module: &Module, trips: Trips) -> Result<Estimate> {
        let by_id = module.computations.iter().map(|c| (c.id, c)).collect();
        let mut walk = Walk { by_id, trips, sum: Estimate::default(), depth: 0, steps: 0 };
        walk.computation(module.entry_id, 1.0 / trips.steps, true)?;
        Ok(walk.sum)
    }
}

struct Walk<'m> {
    by_id: HashMap<i64, &'m Computation>,
    trips: Trips,
    sum: Estimate,
    depth: usize,
    steps: usize,
}

impl<'m> Walk<'m> {
    fn find(&self, id: i64) -> Result<&'m Computation> {
        self.by_id.get(&id).copied().with_context(|| format!("the module has no computation {id}"))
    }

    fn enter(&mut self, computation: &Computation) -> Result<()> {
        (self.depth, self.steps) = (self.depth + 1, self.steps + 1 + computation.instructions.len());
        ensure!(
            self.depth <= DEEPEST && self.steps <= MOST_STEPS,
            "the module's computations call each other without end"
        );
        Ok(())
    }

    fn computation(&mut self, id: i64, times: f64, entry: bool) -> Result<()> {
        let computation = self.find(id)?;
        self.enter(computation)?;
        let values: HashMap<i64, &Instruction> = computation.instructions.iter().map(|i| (i.id, i)).collect();
        for instruction in &computation.instructions {
            match instruction.opcode.as_str() {
                "while" => {
                    let [body, condition] = instruction.called_ids[..] else { continue };
                    let constant =
                        || trips(self.find(condition).ok()?).or_else(|| trips(self.by_id.get(&body)?));
                    let count = known_trips(&instruction.backend_config)
                        .or_else(constant)
                        .unwrap_or(if entry { self.trips.steps } else { self.trips.drawn });
                    // Versions of XLA list body and condition in different orders. Visiting both is safe, because the
                    // condition has next to no cost.
                    for called in [body, condition] {
                        self.computation(called, times * count, false)?;
                    }
                }
                "call" | "conditional" | "async-start" => {
                    for called in &instruction.called_ids {
                        self.computation(*called, times, entry)?;
                    }
                }
                _ => self.instruction(instruction, &values, times)?,
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Counts the matmuls and convolutions of an instruction, also where they are fused.
    fn kernels(
        &mut self,
        instruction: &Instruction,
        values: &HashMap<i64, &Instruction>,
        times: f64,
    ) -> Result<()> {
        self.sum.kernels.count(instruction, values, times);
        if instruction.opcode != "fusion" {
            return Ok(());
        }
        for id in &instruction.called_ids {
            let Some(fused) = self.by_id.get(id).copied() else { continue };
            self.enter(fused)?;
            let values = fused.instructions.iter().map(|i| (i.id, i)).collect();
            for inner in &fused.instructions {
                self.kernels(inner, &values, times)?;
            }
            self.depth -= 1;
        }
        Ok(())
    }

    fn instruction(
        &mut self,
        instruction: &Instruction,
        values: &HashMap<i64, &Instruction>,
        times: f64,
    ) -> Result<()> {
        if !kernels::works(instruction) {
            return Ok(());
        }
        let opcode = instruction.opcode.as_str();
        self.sum.kernels.launches += times;
        self.kernels(instruction, values, times)?;
        self.sum.cycles += times * cycles(&instruction.backend_config);
        let operands: Vec<f64> = (instruction.operand_ids.iter())
            .map(|id| values.get(id).and_then(|i| i.shape.as_ref()).map_or(0.0, main_bytes))
            .collect();
        let name = opcode.trim_end_matches("-start");
        if ["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"].contains(&name)
        {
            let whole = |id: &i64| values.get(id).and_then(|i| i.shape.as_ref()).map_or(0.0, bytes);
            let collective = self.sum.collectives.entry(name.to_string()).or_default();
            collective.count += times;
            collective.bytes += times * instruction.operand_ids.iter().map(whole).sum::<f64>();
        }
        let written = instruction.shape.as_ref().map_or(0.0, main_bytes);
        let moved = match (opcode, self.by_id.get(instruction.called_ids.first().unwrap_or(&-1))) {
            ("fusion", Some(fused)) => fusion_bytes(fused, &operands, written),
            ("dynamic-slice" | "gather" | "slice", _) => 2.0 * written,
            ("dynamic-update-slice", _) => 2.0 * operands.get(1).copied().unwrap_or_default(),
            _ if opcode.ends_with("-start") => 2.0 * operands.iter().sum::<f64>(),
            _ => written + operands.iter().sum::<f64>(),
        };
        self.sum.bytes += times * moved;
        Ok(())
    }
}

/// Returns the bytes that a fusion moves. An operand that it only slices counts with the size of the slices, an operand that it
/// updates in place with the size of the update.
fn fusion_bytes(fused: &Computation, operands: &[f64], written: f64) -> f64 {
    let by_id: HashMap<i64, &Instruction> = fused.instructions.iter().map(|i| (i.id, i)).collect();
    let size = |id: i64| by_id.get(&id).and_then(|i| i.shape.as_ref()).map_or(0.0, bytes);
    let mut moved = 0.0;
    for parameter in fused.instructions.iter().filter(|i| i.opcode == "parameter") {
        let whole = operands.get(parameter.parameter_number as usize).copied().unwrap_or_default();
        let users: Vec<&Instruction> =
            fused.instructions.iter().filter(|i| i.operand_ids.contains(&parameter.id)).collect();
        let part = |user: &&Instruction| match user.opcode.as_str() {
            "dynamic-slice" | "gather" if user.operand_ids[0] == parameter.id => Some(size(user.id)),
            "dynamic-update-slice" if user.operand_ids[0] == parameter.id => Some(0.0),
            _ => None,
        };
        let parts: Option<f64> = users.iter().map(part).sum();
        moved += parts.map_or(whole, |parts| parts.min(whole));
    }
    let root = by_id.get(&fused.root_id).filter(|r| r.opcode == "dynamic-update-slice");
    let update = root.and_then(|r| r.operand_ids.get(1));
    moved + update.map_or(written, |update| size(*update).min(written))
}

/// Returns the constant with which a loop's condition compares its counter.
fn trips(condition: &Computation) -> Option<f64> {
    let root = condition.instructions.iter().find(|i| i.id == condition.root_id)?;
    let operand = |id: &i64| condition.instructions.iter().find(|i| i.id == *id);
    let constant = root.operand_ids.iter().filter_map(operand).find(|i| i.opcode == "constant")?;
    (root.opcode == "compare").then_some(f64::from(*constant.literal.as_ref()?.s32.first()?))
}

/// Returns the number of trips that the compiler notes at a loop.
fn known_trips(config: &[u8]) -> Option<f64> {
    let json: serde_json::Value = serde_json::from_slice(config).ok()?;
    json["known_trip_count"]["n"].as_str()?.parse().ok()
}

fn cycles(config: &[u8]) -> f64 {
    let json: serde_json::Value = serde_json::from_slice(config).unwrap_or_default();
    let text = json["window_config"]["estimated_cycles"].as_str();
    text.and_then(|t| t.parse().ok()).unwrap_or_default()
}

/// Returns the bytes in the device's main memory, memory space 0. The other spaces are on the chip.
fn main_bytes(shape: &Shape) -> f64 {
    match shape.tuple.is_empty() {
        true if shape.layout.as_ref().is_some_and(|l| l.memory_space != 0) => 0.0,
        true => bytes(shape),
        false => shape.tuple.iter().map(main_bytes).sum(),
    }
}

fn bytes(shape: &Shape) -> f64 {
    // Keys are the numbers of `xla.PrimitiveType`.
    let size = match shape.element_type {
        1 | 2 | 6 => 1.0,
        3 | 7 | 10 | 16 => 2.0,
        4 | 8 | 11 => 4.0,
        5 | 9 | 12 => 8.0,
        _ => return shape.tuple.iter().map(bytes).sum(),
    };
    size * shape.dimensions.iter().map(|n| *n as f64).product::<f64>()
}

#[cfg(test)]
mod tests {
    use super::super::wire::hlo::{Layout, Literal};
    use super::*;

    /// The shape of an f32 array in a memory space: 0 is the main memory, others are on the chip.
    fn f32s(dimensions: &[i64], memory_space: i64) -> Option<Shape> {
        let layout = Some(Layout { memory_space });
        Some(Shape { element_type: 11, dimensions: dimensions.to_vec(), layout, tuple: vec![] })
    }

    fn instruction(
        id: i64,
        opcode: &str,
        shape: Option<Shape>,
        operands: &[i64],
        called: &[i64],
    ) -> Instruction {
        Instruction {
            id,
            opcode: opcode.into(),
            shape,
            operand_ids: operands.to_vec(),
            called_ids: called.to_vec(),
            ..Instruction::default()
        }
    }

    /// A loop whose number of trips the compiler notes.
    fn noted_loop(id: i64, trips: u32, called: &[i64]) -> Instruction {
        let backend_config = format!(r#"{{"known_trip_count":{{"n":"{trips}"}}}}"#).into_bytes();
        Instruction { backend_config, ..instruction(id, "while", None, &[], called) }
    }

    fn with_cycles(cycles: u32, instruction: Instruction) -> Instruction {
        let backend_config = format!(r#"{{"window_config":{{"estimated_cycles":"{cycles}"}}}}"#).into_bytes();
        Instruction { backend_config, ..instruction }
    }

    fn computation(id: i64, instructions: Vec<Instruction>) -> Computation {
        let root_id = instructions.last().map_or(0, |i| i.id);
        Computation { id, root_id, instructions, ..Computation::default() }
    }

    const ONCE: Trips = Trips { steps: 1.0, drawn: 15.5 };

    /// A condition that compares with a constant, or with a number known only at run time.
    fn condition(id: i64, trips: Option<i32>) -> Computation {
        let number = match trips {
            Some(trips) => Instruction {
                literal: Some(Literal { s32: vec![trips] }),
                ..instruction(2, "constant", None, &[], &[])
            },
            None => instruction(2, "get-tuple-element", None, &[1], &[]),
        };
        let counter = instruction(1, "parameter", None, &[], &[]);
        computation(id, vec![counter, number, instruction(3, "compare", None, &[1, 2], &[])])
    }

    /// In a call of five steps, what moves 104 bytes once counts with a fifth, and what moves 8 in each step with 8.
    #[test]
    fn what_a_call_does_once_is_divided_by_its_steps() {
        let moves = |id, bytes: i64| instruction(id, "copy", f32s(&[bytes / 8], 0), &[1], &[]);
        let body = computation(1, vec![instruction(1, "parameter", f32s(&[1], 0), &[], &[]), moves(2, 8)]);
        let entry = computation(
            0,
            vec![
                instruction(1, "parameter", f32s(&[25], 0), &[], &[]),
                instruction(2, "negate", f32s(&[], 0), &[1], &[]),
                instruction(3, "while", None, &[2], &[1, 2]),
            ],
        );
        let module = Module { computations: vec![entry, body, condition(2, None)], entry_id: 0 };
        let found = Estimate::from_module(&module, Trips { steps: 5.0, drawn: 0.0 }).unwrap();
        assert_eq!(found.bytes, (100.0 + 4.0) / 5.0 + 8.0);
    }

    fn estimate(computations: Vec<Computation>) -> Estimate {
        Estimate::from_module(&Module { computations, entry_id: 0 }, ONCE).unwrap()
    }

    #[test]
    fn bodies_count_once_for_each_iteration() {
        let fusion = |cycles| with_cycles(cycles, instruction(9, "fusion", None, &[], &[]));
        let looped = |id, body, condition| instruction(id, "while", None, &[], &[body, condition]);
        let found = estimate(vec![
            // The loop over gradient steps, whose number is known only at run time, counts once.
            computation(0, vec![looped(1, 1, 10), fusion(1)]),
            condition(10, None),
            // Its body has two loops of 8 and of 5 trips, and one whose number is drawn at run time.
            computation(1, vec![looped(1, 2, 11), noted_loop(3, 5, &[4, 12]), looped(2, 3, 12), fusion(10)]),
            condition(11, Some(8)),
            condition(12, None),
            computation(2, vec![fusion(100)]),
            computation(3, vec![fusion(1000)]),
            computation(4, vec![fusion(10_000)]),
        ]);
        assert_eq!(found.cycles, 1.0 + 10.0 + 8.0 * 100.0 + 15.5 * 1000.0 + 5.0 * 10_000.0);
        // The fusions above; and one comparison in each trip's condition.
        let fusions = 1.0 + 1.0 + 8.0 + 15.5 + 5.0;
        assert_eq!(found.kernels.launches, fusions + 1.0 + 8.0 + 15.5 + 5.0);
    }

    #[test]
    fn only_main_memory_counts() {
        let found = estimate(vec![
            computation(
                0,
                vec![
                    instruction(1, "parameter", f32s(&[100, 10], 0), &[], &[]),
                    instruction(2, "parameter", f32s(&[10], 1), &[], &[]),
                    // The fusion reads a row of 40 bytes, and 40 bytes on the chip. It writes 40 bytes.
                    instruction(3, "fusion", f32s(&[10], 0), &[1, 2], &[1]),
                    // Reads all 4,000 bytes, and writes nothing to the main memory.
                    instruction(4, "copy", f32s(&[100, 10], 1), &[1], &[]),
                    // Writes a row in place. The update is read and written.
                    instruction(5, "dynamic-update-slice", f32s(&[100, 10], 0), &[1, 3], &[]),
                ],
            ),
            computation(
                1,
                vec![
                    instruction(1, "parameter", f32s(&[100, 10], 0), &[], &[]),
                    Instruction {
                        parameter_number: 1,
                        ..instruction(2, "parameter", f32s(&[10], 1), &[], &[])
                    },
                    instruction(3, "dynamic-slice", f32s(&[10], 0), &[1], &[]),
                    instruction(4, "add", f32s(&[10], 0), &[3, 2], &[]),
                ],
            ),
        ]);
        assert_eq!(found.bytes, (40.0 + 40.0) + 4000.0 + 2.0 * 40.0);
    }

    #[test]
    fn collectives_count_by_kind_with_the_bytes_of_each_replica() {
        let found = estimate(vec![computation(
            0,
            vec![
                instruction(1, "parameter", f32s(&[10], 0), &[], &[]),
                instruction(2, "parameter", f32s(&[5], 0), &[], &[]),
                instruction(3, "all-reduce-start", f32s(&[15], 0), &[1, 2], &[]),
                instruction(4, "all-reduce-done", f32s(&[15], 0), &[3], &[]),
                instruction(5, "all-to-all", f32s(&[10], 0), &[1], &[]),
            ],
        )]);
        let expected = [("all-reduce", 60.0), ("all-to-all", 40.0)];
        let expected = expected.map(|(name, bytes)| (name.to_string(), Collective { count: 1.0, bytes }));
        assert_eq!(found.collectives, BTreeMap::from(expected));
    }

    #[test]
    fn hosts_send_the_least_that_a_collective_needs() {
        let collective = Collective { count: 1.0, bytes: 8.0 };
        let sent = |name| [1, 2, 4].map(|hosts| collective.between_hosts(name, 8, hosts));
        assert_eq!(sent("all-reduce"), [0.0, 8.0, 12.0]);
        assert_eq!(sent("reduce-scatter"), [0.0, 4.0, 6.0]);
        assert_eq!(sent("all-gather"), [0.0, 32.0, 48.0]);
        assert_eq!(sent("all-to-all"), [0.0, 16.0, 12.0]);
        assert_eq!(sent("collective-permute"), [0.0, 32.0, 16.0]);
    }

    #[test]
    fn matmuls_inside_of_fusions_count_by_their_own_operands() {
        let with_dot = |id, operand, more| {
            let parameter = Shape { element_type: 16, ..f32s(&[8, 8], 0).unwrap() };
            let parameter = instruction(1, "parameter", Some(parameter), &[], &[]);
            let converted = instruction(2, "convert", f32s(&[8, 8], 0), &[1], &[]);
            let dot = instruction(3, "dot", f32s(&[8, 8], 0), &[operand, operand], &[]);
            computation(id, [vec![parameter, converted, dot], more].concat())
        };
        let fusion = |id, fused| instruction(id, "fusion", f32s(&[8, 8], 0), &[], &[fused]);
        let found = estimate(vec![
            computation(0, vec![noted_loop(1, 3, &[1, 9]), fusion(2, 3)]),
            computation(1, vec![fusion(1, 2)]),
            with_dot(2, 1, vec![fusion(4, 3)]),
            with_dot(3, 2, vec![]),
            computation(9, vec![]),
        ]);
        let expected = [("bf16", 3.0), ("f32", 4.0)].map(|(name, count)| (name.to_string(), count));
        assert_eq!(found.kernels.matmuls, BTreeMap::from(expected));
        assert_eq!(found.kernels.launches, 4.0);
    }

    #[test]
    fn a_computation_that_calls_itself_is_an_error() {
        for opcode in ["call", "fusion"] {
            let called = |id, calls: &[i64]| computation(id, vec![instruction(1, opcode, None, &[], calls)]);
            // In a circle, and so that each doubles the calls of the next.
            let twice = |id| called(id, &[id + 1, id + 1]);
            let doubling = (0..60).map(twice).chain([computation(60, vec![])]).collect();
            for computations in [vec![called(0, &[1]), called(1, &[0])], doubling] {
                let error = Estimate::from_module(&Module { computations, entry_id: 0 }, ONCE).unwrap_err();
                assert!(error.to_string().contains("without end"), "{error}");
            }
        }
    }

    #[test]
    fn damaged_instructions_count_for_something_finite_or_nothing() {
        let update = instruction(1, "dynamic-update-slice", f32s(&[10], 0), &[1], &[]);
        let huge = instruction(2, "copy", f32s(&[1 << 40, 1 << 40], 0), &[], &[]);
        let fused = computation(1, vec![update]);
        let found =
            estimate(vec![computation(0, vec![instruction(1, "fusion", None, &[], &[1]), huge]), fused]);
        assert_eq!(found.bytes, 4.0 * 2f64.powi(80));
    }

    #[test]
    fn a_missing_computation_is_an_error() {
        let module = Module { computations: vec![], entry_id: 7 };
        let error = Estimate::from_module(&module, ONCE).unwrap_err().to_string();
        assert_eq!(error, "the module has no computation 7");
    }
}
