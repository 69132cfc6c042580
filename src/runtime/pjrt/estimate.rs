//! What a compiled module costs, read off the module that the compiler gives back.
//!
//! XLA's own cost analysis counts a loop's body once. Here a body counts as often as its condition's constant says. Where
//! only the run tells, it counts once in the entry (the train program's loop over gradient steps), and as often as the
//! caller says inside another loop.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use serde::Serialize;

use super::wire::hlo::{Computation, Instruction, Module, Shape};

/// Collectives of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Collective {
    pub count: f64,
    /// Bytes that each replica brings.
    pub bytes: f64,
}

/// Sums over a module, each loop's body as often as it runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// The compiler's own estimates of its fusions, convolutions and copies, added up.
    pub cycles: f64,
    /// Read from and written to the device's main memory.
    pub bytes: f64,
    pub collectives: BTreeMap<String, Collective>,
}

impl Estimate {
    /// # Errors
    /// When the module is not as XLA writes it.
    pub fn of(module: &Module, inner_trips: f64) -> Result<Estimate> {
        let by_id = module.computations.iter().map(|c| (c.id, c)).collect();
        let mut walk = Walk { by_id, inner_trips, sum: Estimate::default() };
        walk.computation(module.entry_id, 1.0, true)?;
        Ok(walk.sum)
    }
}

struct Walk<'m> {
    by_id: HashMap<i64, &'m Computation>,
    inner_trips: f64,
    sum: Estimate,
}

impl<'m> Walk<'m> {
    fn find(&self, id: i64) -> Result<&'m Computation> {
        self.by_id.get(&id).copied().with_context(|| format!("the module has no computation {id}"))
    }

    fn computation(&mut self, id: i64, times: f64, entry: bool) -> Result<()> {
        let computation = self.find(id)?;
        let values: HashMap<i64, &Instruction> = computation.instructions.iter().map(|i| (i.id, i)).collect();
        for instruction in &computation.instructions {
            match instruction.opcode.as_str() {
                "while" => {
                    let [body, condition] = instruction.called_ids[..] else { continue };
                    let known = trips(self.find(condition)?).or_else(|| trips(self.by_id.get(&body)?));
                    let count = known.unwrap_or(if entry { 1.0 } else { self.inner_trips });
                    // Which of the two is the body, the order does not say in every version: the condition gives a truth
                    // value and has nothing to count.
                    for called in [body, condition] {
                        self.computation(called, times * count, false)?;
                    }
                }
                "call" | "conditional" | "async-start" => {
                    for called in &instruction.called_ids {
                        self.computation(*called, times, entry)?;
                    }
                }
                _ => self.instruction(instruction, &values, times),
            }
        }
        Ok(())
    }

    fn instruction(&mut self, instruction: &Instruction, values: &HashMap<i64, &Instruction>, times: f64) {
        let opcode = instruction.opcode.as_str();
        if ["parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"]
            .contains(&opcode)
            || opcode.ends_with("-done")
        {
            return;
        }
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
    }
}

/// Bytes that a fusion moves: of an operand from which it only takes slices, those; of one that it updates in place, the
/// update.
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
    moved + root.map_or(written, |r| size(r.operand_ids[1]).min(written))
}

/// The number that a loop's condition compares its counter with.
fn trips(condition: &Computation) -> Option<f64> {
    let root = condition.instructions.iter().find(|i| i.id == condition.root_id)?;
    let operand = |id: &i64| condition.instructions.iter().find(|i| i.id == *id);
    let constant = root.operand_ids.iter().filter_map(operand).find(|i| i.opcode == "constant")?;
    (root.opcode == "compare").then_some(f64::from(*constant.literal.as_ref()?.s32.first()?))
}

fn cycles(config: &[u8]) -> f64 {
    let json: serde_json::Value = serde_json::from_slice(config).unwrap_or_default();
    let text = json["window_config"]["estimated_cycles"].as_str();
    text.and_then(|t| t.parse().ok()).unwrap_or_default()
}

/// Bytes in the device's main memory: memory space 0. Others lie on the chip.
fn main_bytes(shape: &Shape) -> f64 {
    match shape.tuple.is_empty() {
        true if shape.layout.as_ref().is_some_and(|l| l.memory_space != 0) => 0.0,
        true => bytes(shape),
        false => shape.tuple.iter().map(main_bytes).sum(),
    }
}

fn bytes(shape: &Shape) -> f64 {
    // Numbers of `xla.PrimitiveType`.
    let size = match shape.element_type {
        1 | 2 | 6 => 1.0,
        3 | 7 | 10 | 16 => 2.0,
        4 | 8 | 11 => 4.0,
        5 | 9 | 12 => 8.0,
        _ => return shape.tuple.iter().map(bytes).sum(),
    };
    size * shape.dimensions.iter().product::<i64>() as f64
}
