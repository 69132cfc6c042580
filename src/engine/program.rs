//! A program: everything that passes from building to running, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::engine::shape::Shape;
use crate::files;

/// The custom call of a convolution's weight gradient, which programs for [`Target::OneDnn`] contain and the runtime
/// provides. Its operands are the image (n, h, w, in) and the cotangent (n, h', w', out), in f32 or bf16, its result is the
/// gradient (kh, kw, in, out) in f32, and its attribute `window` holds stride, kernel dilation, padding before and padding
/// after, of rows and columns each.
pub const WEIGHT_GRADIENT: &str = "vnca.weight-gradient";

/// What the module's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A serialized `HloModuleProto`.
    Hlo,
    /// StableHLO text.
    StableHlo,
}

impl Format {
    fn extension(self) -> &'static str {
        match self {
            Format::Hlo => "hlo.pb",
            Format::StableHlo => "stablehlo.mlir",
        }
    }
}

/// Which forms a module is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// For XLA's CPU compiler: matrix products where it is slow at convolutions, all in f32
    Cpu,
    /// For the same, with calls of the oneDNN that most builds of XLA's CPU library contain, and of another one
    OneDnn,
    /// For TPUs and GPUs: every operation as XLA's own
    Native,
}

/// An input: its name, its shape, and whether a call consumes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputSpec {
    pub name: String,
    pub shape: Shape,
    pub donated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputSpec {
    pub name: String,
    pub shape: Shape,
}

/// Names, shapes and types of everything that goes in and comes out, for each replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    pub name: String,
    pub format: Format,
    pub target: Target,
    pub replicas: usize,
    /// Fingerprint of the graph that the module was made from: equal graphs compute the same.
    pub graph: String,
    pub inputs: Vec<InputSpec>,
    pub outputs: Vec<OutputSpec>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub signature: Signature,
    pub module: Vec<u8>,
}

impl Program {
    fn paths(folder: &Path, name: &str, format: Format) -> (PathBuf, PathBuf) {
        (folder.join(format!("{name}.json")), folder.join(format!("{name}.{}", format.extension())))
    }

    /// Writes `NAME.json` (the signature) and `NAME.hlo.pb` or `NAME.stablehlo.mlir` (the module) into a folder.
    ///
    /// # Errors
    /// When a file cannot be written; the error names it.
    pub fn save(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let (json, module) = Self::paths(folder, &self.signature.name, self.signature.format);
        files::write_bytes(&module, &self.module)?;
        files::write_bytes(&json, serde_json::to_vec_pretty(&self.signature)?)
    }

    /// Reads what [`Program::save`] wrote.
    ///
    /// # Errors
    /// When a file is missing or is no signature; the error names it.
    pub fn load(folder: &Path, name: &str) -> Result<Program> {
        let (json, _) = Self::paths(folder, name, Format::Hlo);
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let signature: Signature = serde_json::from_slice(&read(&json)?)
            .with_context(|| format!("{} is no program's signature", json.display()))?;
        ensure!(signature.name == name, "{} is the signature of {}", json.display(), signature.name);
        let (_, module) = Self::paths(folder, name, signature.format);
        Ok(Program { module: read(&module)?, signature })
    }

    /// Checks the shapes of a call's arguments, one an input, as every replica gets them.
    ///
    /// # Errors
    /// The first wrong argument: its name, expected and got.
    pub fn check(&self, arguments: &[(&Shape, bool)]) -> Result<()> {
        let Signature { name, inputs, .. } = &self.signature;
        if arguments.len() != inputs.len() {
            let missing = inputs.get(arguments.len()).map(|i| format!(", the first missing is {}", i.name));
            bail!(
                "{name} takes {} arguments, got {}{}",
                inputs.len(),
                arguments.len(),
                missing.unwrap_or_default()
            );
        }
        for (input, (shape, owned)) in inputs.iter().zip(arguments) {
            let InputSpec { name: argument, shape: expected, donated } = input;
            ensure!(*shape == expected, "argument {argument} of {name}: expected {expected}, got {shape}");
            ensure!(
                *owned || !donated,
                "argument {argument} of {name} is consumed by the call and must be given away"
            );
        }
        Ok(())
    }
}
