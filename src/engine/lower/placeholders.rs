//! The text of a module with its placeholders replaced. Knows nothing of XLA's library, so that it can be tested alone.

use anyhow::{Context, Result, bail};

/// The placeholder of an all-gather along the first dimension.
pub const ALL_GATHER: &str = "vnca.all-gather";
/// The placeholder of an all-to-all along the first dimension.
pub const ALL_TO_ALL: &str = "vnca.all-to-all";
/// The field of [`ALL_GATHER`] and [`ALL_TO_ALL`] that names the dimension.
pub const ALONG_FIRST: &str = "dimensions: 0";
/// The placeholder of a bitcast to another element type.
pub const BITCAST: &str = "vnca.bitcast-convert";
/// The placeholder of a matmul of bf16 operands with an f32 result.
pub const DOT: &str = "vnca.dot";
/// The placeholder of a convolution of bf16 operands with an f32 result.
pub const CONVOLUTION: &str = "vnca.convolution";
/// The placeholder of a custom call through XLA's typed FFI.
pub const CUSTOM_CALL: &str = "vnca.custom-call";

/// Rewrites the placeholders in the text of a module.
///
/// An instruction begins with an indented line `instructions {` and ends with a brace at the same indentation.
///
/// # Errors
/// When an instruction does not end, or a placeholder has no opcode.
pub fn rewrite(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start() != "instructions {" {
            out.push_str(line);
            out.push('\n');
            continue;
        }
        let depth = line.len() - line.trim_start().len();
        let close = format!("{}}}", " ".repeat(depth));
        let mut fields = Vec::new();
        loop {
            let field = lines.next().context("the module's text ends inside an instruction")?;
            if field == close {
                break;
            }
            fields.push(field);
        }
        out.push_str(line);
        out.push('\n');
        write_instruction(&mut out, &fields, depth + 2)?;
        out.push_str(&close);
        out.push('\n');
    }
    Ok(out)
}

/// Writes the fields of an instruction, rewritten if it is a placeholder.
fn write_instruction(out: &mut String, fields: &[&str], depth: usize) -> Result<()> {
    let target = |call: &&&str| fields.iter().any(|f| f.trim() == format!("custom_call_target: \"{call}\""));
    let Some(call) = [ALL_GATHER, ALL_TO_ALL, BITCAST, DOT, CONVOLUTION, CUSTOM_CALL].iter().find(target)
    else {
        fields.iter().for_each(|field| *out += &format!("{field}\n"));
        return Ok(());
    };
    let indent = " ".repeat(depth);
    let mut opcode_seen = false;
    for field in fields {
        let text = field.trim();
        if field.len() - field.trim_start().len() != depth {
            out.push_str(&format!("{field}\n"));
        } else if text.starts_with("opcode:") {
            opcode_seen = true;
            out.push_str(&format!("{indent}opcode: \"{}\"\n", call.trim_start_matches("vnca.")));
        } else if let Some(config) = text.strip_prefix("backend_config: ") {
            // The configuration contains the fields as text. Only single quotes are escaped in it.
            out.push_str(&format!("{indent}{}\n", config.trim_matches('"').replace("\\'", "'")));
        } else if !text.starts_with("custom_call") {
            out.push_str(&format!("{field}\n"));
        }
    }
    if !opcode_seen {
        bail!("a custom call without an opcode in the module's text");
    }
    Ok(())
}
