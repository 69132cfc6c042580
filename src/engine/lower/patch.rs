//! Adds operations that the builder lacks. The lowering adds a custom call as a placeholder. This pass rewrites it to the
//! operation, in the text format of the module. The placeholder's configuration is the text of the operation's fields.

use anyhow::{Context, Result, bail};
use xla::HloModuleProto;

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

/// Returns the module with every placeholder replaced by its operation.
///
/// # Errors
/// When the text format is not as expected, which can happen with another version of the XLA library.
pub fn replace_placeholders(module: &HloModuleProto) -> Result<HloModuleProto> {
    let text = rewrite(&module.to_pbtxt()?)?;
    // The reader tries an xla.HloSnapshot first and prints errors to stderr unless the text is one.
    let text = format!("hlo {{ hlo_module {{\n{text}}} }}");
    HloModuleProto::parse_proto(text.as_bytes(), false).context("reading back the patched module")
}

/// Rewrites the placeholders in the text of a module.
///
/// An instruction begins with an indented line `instructions {` and ends with a brace at the same indentation.
fn rewrite(text: &str) -> Result<String> {
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
