//! Adds operations that the builder lacks. The lowering adds a custom call as a placeholder. This pass rewrites it to the
//! operation, in the text format of the module. The placeholder's configuration is the text of the operation's fields.

use anyhow::{Context, Result};
use xla::HloModuleProto;

pub use super::placeholders::*;

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
