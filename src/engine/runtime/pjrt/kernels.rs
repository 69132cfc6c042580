//! Counts what a GPU launches, and the element types in which it convolves and multiplies.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::wire::hlo::{Instruction, Shape};

/// Counts of executions. A loop's body counts once for each iteration.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Kernels {
    /// Launches of kernels, library calls and copies. A sort and a library call may launch several kernels, and count once.
    pub launches: f64,
    /// Convolutions, by the element type of operands and result: `bf16`, or `bf16 -> f32` where they differ.
    pub convolutions: BTreeMap<String, f64>,
    /// Matmuls, by the element type of the operands.
    pub matmuls: BTreeMap<String, f64>,
}

/// Reports whether a device does anything for an instruction. The others name, group or reserve memory, or wait.
pub fn works(instruction: &Instruction) -> bool {
    match instruction.opcode.as_str() {
        "parameter" | "constant" | "tuple" | "get-tuple-element" | "bitcast" | "after-all" | "iota" => false,
        "opt-barrier" | "add-dependency" => false,
        "custom-call" => instruction.custom_call_target != "AllocateBuffer",
        opcode => !opcode.ends_with("-done"),
    }
}

impl Kernels {
    /// Counts a convolution or matmul that runs `times` times. `values` are the instructions of its computation by id.
    pub fn count(&mut self, instruction: &Instruction, values: &HashMap<i64, &Instruction>, times: f64) {
        let target = instruction.custom_call_target.as_str();
        let operand = || {
            let first = instruction.operand_ids.first().and_then(|id| values.get(id));
            element_type(first.and_then(|i| i.shape.as_ref()))
        };
        let is = |name: &str| instruction.opcode == name;
        if is("convolution") || is("custom-call") && target.starts_with("__cudnn$conv") {
            let (from, to) = (operand(), element_type(instruction.shape.as_ref()));
            let name = if from == to { from.to_string() } else { format!("{from} -> {to}") };
            *self.convolutions.entry(name).or_default() += times;
        } else if is("dot") || is("custom-call") && target.starts_with("__cublas$") {
            *self.matmuls.entry(operand().to_string()).or_default() += times;
        }
    }
}

/// Returns the name of an array's element type. The results of library calls are tuples, whose first element is the array.
fn element_type(shape: Option<&Shape>) -> &'static str {
    let Some(shape) = shape else { return "?" };
    // The numbers are those of `xla.PrimitiveType`.
    match (shape.element_type, shape.tuple.first()) {
        (10, _) => "f16",
        (11, _) => "f32",
        (12, _) => "f64",
        (16, _) => "bf16",
        (13, Some(first)) if first.tuple.is_empty() => element_type(Some(first)),
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F32: i32 = 11;
    const BF16: i32 = 16;

    fn array(element_type: i32) -> Option<Shape> {
        Some(Shape { element_type, dimensions: vec![8, 8], ..Shape::default() })
    }

    /// The shape of a library call's result: the array and the memory that the call works in.
    fn with_scratch(element_type: i32) -> Option<Shape> {
        let scratch = Shape { element_type: 6, dimensions: vec![0], ..Shape::default() };
        Some(Shape {
            element_type: 13,
            tuple: vec![array(element_type).unwrap(), scratch],
            ..Shape::default()
        })
    }

    fn instruction(id: i64, opcode: &str, shape: Option<Shape>, operands: &[i64]) -> Instruction {
        Instruction {
            id,
            opcode: opcode.into(),
            shape,
            operand_ids: operands.to_vec(),
            ..Instruction::default()
        }
    }

    fn call(id: i64, target: &str, shape: Option<Shape>, operands: &[i64]) -> Instruction {
        Instruction { custom_call_target: target.into(), ..instruction(id, "custom-call", shape, operands) }
    }

    fn by_type(counts: &[(&str, f64)]) -> BTreeMap<String, f64> {
        counts.iter().map(|(name, count)| (name.to_string(), *count)).collect()
    }

    #[test]
    fn what_only_names_or_reserves_memory_does_no_work() {
        for idle in [
            instruction(1, "bitcast", array(F32), &[]),
            instruction(1, "copy-done", array(F32), &[]),
            call(1, "AllocateBuffer", array(F32), &[]),
        ] {
            assert!(!works(&idle), "{idle:?}");
        }
        for busy in [
            instruction(1, "copy-start", array(F32), &[]),
            instruction(1, "sort", array(F32), &[]),
            call(1, "__cublas$gemm", array(F32), &[]),
        ] {
            assert!(works(&busy), "{busy:?}");
        }
    }

    #[test]
    fn library_calls_count_by_their_element_types() {
        let instructions = [
            instruction(1, "parameter", array(BF16), &[]),
            instruction(2, "parameter", array(F32), &[]),
            call(3, "__cudnn$convForward", with_scratch(BF16), &[1, 1]),
            call(4, "__cudnn$convBackwardFilter", with_scratch(F32), &[1, 1]),
            call(5, "__cudnn$convBiasActivationForward", with_scratch(F32), &[2, 2]),
            call(6, "__cublas$gemm", with_scratch(F32), &[1, 1]),
            call(7, "__cublas$lt$matmul", array(F32), &[2, 2]),
            // Damaged: its operand does not exist.
            instruction(8, "dot", None, &[9]),
        ];
        let values = instructions.iter().map(|i| (i.id, i)).collect();
        let mut kernels = Kernels::default();
        instructions.iter().for_each(|i| kernels.count(i, &values, 2.0));
        assert_eq!(kernels.convolutions, by_type(&[("bf16", 2.0), ("bf16 -> f32", 2.0), ("f32", 2.0)]));
        assert_eq!(kernels.matmuls, by_type(&[("bf16", 2.0), ("f32", 2.0), ("?", 2.0)]));
    }
}
