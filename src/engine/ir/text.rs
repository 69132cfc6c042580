//! Graphs as text with one node a line, for readers and for tests that compare whole graphs.

use std::fmt;

use sha2::{Digest, Sha256};

use super::graph::{Block, Function, Value};
use super::op::Op;
use crate::engine::shape::Precision;

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let precision = match self.precision {
            Precision::F32 => String::new(),
            precision => format!(" products={precision}"),
        };
        writeln!(f, "function {}{precision} {{", self.name)?;
        let names: Vec<&str> = self.inputs.iter().map(|i| i.name.as_str()).collect();
        write_block(f, &self.block, 1, &names)?;
        for (output, value) in self.outputs.iter().zip(&self.block.results) {
            let donor = output.donor.map(|d| format!(" in the memory of {}", self.inputs[d].name));
            writeln!(f, "  output {} = {}{}", output.name, name(*value), donor.unwrap_or_default())?;
        }
        writeln!(f, "}}")
    }
}

impl Function {
    /// Returns the first 24 hexadecimal digits of the SHA-256 of the function's text.
    ///
    /// The text contains every operation and constant (large constants by a checksum), so that functions with equal
    /// fingerprints compute the same.
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::digest(self.to_string());
        digest[..12].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn write_block(f: &mut fmt::Formatter<'_>, block: &Block, depth: usize, names: &[&str]) -> fmt::Result {
    let indent = "  ".repeat(depth);
    for (at, node) in block.nodes.iter().enumerate() {
        let shapes: Vec<String> = node.shapes.iter().map(ToString::to_string).collect();
        let operands: Vec<String> = node.operands.iter().map(|v| name(*v)).collect();
        let parameter = block.parameters.iter().position(|p| *p == at);
        let operands = match parameter {
            Some(k) => names.get(k).map_or_else(|| k.to_string(), ToString::to_string),
            None => operands.join(", "),
        };
        write!(
            f,
            "{indent}%{at} = {} {}({operands}){}",
            shapes.join(" "),
            node.op.name(),
            node.op.attributes()
        )?;
        if let Op::Repeat(repeat) = &node.op {
            writeln!(f, " {{")?;
            write_block(f, &repeat.body, depth + 1, &[])?;
            let results: Vec<String> = repeat.body.results.iter().map(|v| name(*v)).collect();
            writeln!(f, "{indent}  give {}", results.join(", "))?;
            writeln!(f, "{indent}}}")?;
        } else {
            writeln!(f)?;
        }
    }
    Ok(())
}

fn name(value: Value) -> String {
    match value.output {
        0 => format!("%{}", value.node),
        output => format!("%{}.{output}", value.node),
    }
}
