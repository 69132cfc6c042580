//! Programs: the result of lowering a graph, and the input of a runtime's compiler. They can be saved and loaded.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::engine::shape::Shape;
use crate::error::{Error, Tag};
use crate::files;

/// The name of the custom call that computes a convolution's weight gradient.
///
/// Programs for [`Target::OneDnn`] contain it, and the CPU runtime provides it. Its operands are the image (n, h, w, in) and
/// the cotangent (n, h', w', out), in f32 or bf16. Its result is the gradient (kh, kw, in, out) in f32. Its attribute
/// `window` lists stride, kernel dilation, low padding and high padding, each for rows and columns.
pub const WEIGHT_GRADIENT: &str = "vnca.weight-gradient";

/// The serialization format of a module.
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

/// The kind of device that a module is written for. It decides how matmuls, convolutions and bf16 arrays are lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// XLA's CPU compiler alone. Convolutions that it compiles badly become matmuls. All in f32.
    Cpu,
    /// XLA's CPU compiler and oneDNN. Matmuls and convolutions call the oneDNN inside XLA's library; weight gradients call a
    /// separate one.
    OneDnn,
    /// TPUs, and plugins that are neither a CPU's nor a GPU's. Every operation is XLA's own.
    Native,
    /// GPUs. As [`Target::Native`], but the results of convolutions and of most matmuls of a bf16 computation are bf16 too.
    Gpu,
}

impl Target {
    /// Reports whether the module is for a CPU.
    pub fn is_cpu(self) -> bool {
        match self {
            Target::Cpu | Target::OneDnn => true,
            Target::Native | Target::Gpu => false,
        }
    }
}

/// An input of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputSpec {
    /// The name, unique among the inputs.
    pub name: String,
    /// The shape on each replica.
    pub shape: Shape,
    /// Whether a call consumes the argument and an output reuses its memory.
    pub donated: bool,
}

/// An output of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputSpec {
    /// The name, unique among the outputs.
    pub name: String,
    /// The shape on each replica.
    pub shape: Shape,
}

/// The description of a program: its inputs and outputs, and the graph and device that it was lowered from and for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The program's name, which is also the stem of its files' names.
    pub name: String,
    /// The format of the module.
    pub format: Format,
    /// The kind of device that the module is written for.
    pub target: Target,
    /// The number of replicas that run the program together.
    pub replicas: usize,
    /// The fingerprint of the graph that was lowered. Programs with equal fingerprints compute the same function.
    pub graph: String,
    /// The inputs, in the order of a call's arguments.
    pub inputs: Vec<InputSpec>,
    /// The outputs, in the order of a call's results.
    pub outputs: Vec<OutputSpec>,
}

/// What `NAME.json` has: a signature, and which module it describes. Files of older versions do not say the latter.
#[derive(Serialize, Deserialize)]
struct Described {
    #[serde(flatten)]
    signature: Signature,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A lowered computation: a module and its description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The description.
    pub signature: Signature,
    /// The module in [`Signature::format`].
    pub module: Vec<u8>,
}

impl Program {
    fn paths(folder: &Path, name: &str, format: Format) -> (PathBuf, PathBuf) {
        (folder.join(format!("{name}.json")), folder.join(format!("{name}.{}", format.extension())))
    }

    /// Writes `NAME.json` (the signature) and `NAME.hlo.pb` or `NAME.stablehlo.mlir` (the module) into a folder. Creates the
    /// folder if it does not exist.
    ///
    /// # Errors
    /// When a file cannot be written. The error names the file.
    pub fn save(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let (json, module) = Self::paths(folder, &self.signature.name, self.signature.format);
        let sha256 = Some(sha256(&self.module));
        files::write_bytes(&module, &self.module)?;
        files::write_bytes(
            &json,
            serde_json::to_vec_pretty(&Described { signature: self.signature.clone(), sha256 })?,
        )
    }

    /// Reads the program `name` from a folder that [`Program::save`] wrote to.
    ///
    /// # Errors
    /// [`Error::Data`] when a file cannot be read or is not the signature of `name`. The error names the file.
    pub fn load(folder: &Path, name: &str) -> Result<Program> {
        Program::read(folder, name).tag(Error::Data)
    }

    fn read(folder: &Path, name: &str) -> Result<Program> {
        let (json, _) = Self::paths(folder, name, Format::Hlo);
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let Described { signature, sha256: expected } = serde_json::from_slice(&read(&json)?)
            .with_context(|| format!("{} is not the signature of a program", json.display()))?;
        ensure!(signature.name == name, "{} is the signature of {}", json.display(), signature.name);
        // Whoever changed the file may have written sizes that no memory has.
        let shapes =
            signature.inputs.iter().map(|i| &i.shape).chain(signature.outputs.iter().map(|o| &o.shape));
        for shape in shapes {
            let bytes = shape.dims.iter().try_fold(shape.dtype.size(), |n, size| n.checked_mul(*size));
            ensure!(
                bytes.is_some_and(|n| n <= isize::MAX as usize),
                "{}: {shape} is too large",
                json.display()
            );
        }
        let (_, path) = Self::paths(folder, name, signature.format);
        let module = read(&path)?;
        ensure!(
            expected.is_none_or(|expected| expected == sha256(&module)),
            "{} is not the module that {} describes: export the program again",
            path.display(),
            json.display()
        );
        Ok(Program { module, signature })
    }

    /// Checks the arguments of a call against the inputs.
    ///
    /// Each argument is given as its shape on one replica and whether the call owns it. A donated input needs an owned
    /// argument.
    ///
    /// # Errors
    /// When an argument is missing or does not match. The error names the first such argument, with the expected and the
    /// given shape.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_of_another_program_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let program = |name: &str, module: u8| Program {
            signature: Signature {
                name: name.into(),
                format: Format::Hlo,
                target: Target::Cpu,
                replicas: 1,
                graph: String::new(),
                inputs: vec![],
                outputs: vec![],
            },
            module: vec![module],
        };
        program("f", 1).save(folder.path()).unwrap();
        program("g", 2).save(folder.path()).unwrap();
        assert_eq!(Program::load(folder.path(), "f").unwrap(), program("f", 1));
        fs::copy(folder.path().join("g.hlo.pb"), folder.path().join("f.hlo.pb")).unwrap();
        let error = Program::load(folder.path(), "f").unwrap_err().to_string();
        assert!(error.contains("f.hlo.pb is not the module"), "{error}");
    }

    #[test]
    fn a_signature_of_sizes_that_no_memory_has_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let load = |dims: &[usize]| {
            let input = InputSpec { name: "x".into(), shape: Shape::f32(dims), donated: false };
            let signature = Signature {
                name: "f".into(),
                format: Format::Hlo,
                target: Target::Cpu,
                replicas: 1,
                graph: String::new(),
                inputs: vec![input],
                outputs: vec![],
            };
            let program = Program { signature, module: vec![1] };
            program.save(folder.path()).unwrap();
            Program::load(folder.path(), "f").map(|loaded| assert_eq!(loaded, program))
        };
        load(&[2, 0, 3]).unwrap();
        for dims in [&[usize::MAX, 3][..], &[1 << 61], &[1 << 32, 1 << 32, 0]] {
            let error = load(dims).unwrap_err().to_string();
            assert!(error.contains("too large"), "{error}");
        }
    }
}
