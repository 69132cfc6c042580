//! Operations that the builder lacks: it writes a custom call of our own name, and this step turns that into the
//! operation, in the module's text form.

use anyhow::{Context, Result, bail};
use xla::HloModuleProto;

/// The custom call that stands for an all-gather along the first dimension.
pub const ALL_GATHER: &str = "vnca.all-gather";
/// The custom call that stands for an all-to-all along the first dimension.
pub const ALL_TO_ALL: &str = "vnca.all-to-all";

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
    let named = |call: &str| {
        let target = format!("custom_call_target: \"{call}\"");
        fields.iter().any(|f| f.trim() == target).then(|| call.trim_start_matches("vnca.").to_string())
    };
    let opcode = named(ALL_GATHER).or_else(|| named(ALL_TO_ALL));
    let mut opcode_seen = false;
    for field in fields {
        let text = field.trim();
        let top = field.len() - field.trim_start().len() == depth;
        match &opcode {
            Some(opcode) if top && text.starts_with("opcode:") => {
                opcode_seen = true;
                out.push_str(&format!("{0}opcode: \"{opcode}\"\n{0}dimensions: 0\n", " ".repeat(depth)));
            }
            Some(_) if top && text.starts_with("custom_call") => {}
            _ => {
                out.push_str(field);
                out.push('\n');
            }
        }
    }
    if opcode.is_some() && !opcode_seen {
        bail!("a custom call without an opcode in the module's text");
    }
    Ok(())
}
