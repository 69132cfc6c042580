//! Operations that the builder lacks: it writes a custom call of our own name, and this step turns that into the
//! operation, in the module's text form. The call's configuration is the text of the operation's own fields.

use anyhow::{Context, Result, bail};
use xla::HloModuleProto;

/// The custom call that stands for an all-gather along the first dimension.
pub const ALL_GATHER: &str = "vnca.all-gather";
/// The custom call that stands for an all-to-all along the first dimension.
pub const ALL_TO_ALL: &str = "vnca.all-to-all";

/// The field that those two have in common.
pub const ALONG_FIRST: &str = "dimensions: 0";
/// The custom call that stands for the same bits as another type.
pub const BITCAST: &str = "vnca.bitcast-convert";
/// The custom calls that stand for a product of rounded operands with an f32 result.
pub const DOT: &str = "vnca.dot";
pub const CONVOLUTION: &str = "vnca.convolution";
/// The custom call that stands for another one, of XLA's interface for them that the builder does not know.
pub const CUSTOM_CALL: &str = "vnca.custom-call";

/// The module with every custom call of ours replaced by its operation.
///
/// # Errors
/// When the text form is not as expected, which means that the library's version changed it.
pub fn patched(module: &HloModuleProto) -> Result<HloModuleProto> {
    let text = rewrite(&module.to_pbtxt()?)?;
    HloModuleProto::parse_proto(text.as_bytes(), false).context("reading back the patched module")
}

/// An instruction is a braced field of a computation: it opens with `    instructions {` in this indented format and
/// closes with a brace at the same depth.
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
            // The text of fields, in which single quotes are all that is escaped.
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
