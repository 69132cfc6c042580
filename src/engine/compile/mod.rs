//! From a computation to a program that runs on the devices of a mesh: made here, or exported before.

#[cfg(feature = "xla")]
mod probe;

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::engine::ir::Function;
use crate::engine::program::{Program, Target};
use crate::engine::runtime::{Executable, Forms, Mesh};
use crate::engine::shape::Precision;

/// Compiles a computation for a mesh. Lowers it in the forms that the mesh's compiler is fast at, or loads the exported program.
///
/// # Errors
/// When the compiler refuses the program, or the exported program is missing or computes something else.
pub fn compile(mesh: &Mesh, function: &Function) -> Result<Executable> {
    mesh.compile(match mesh.programs() {
        Some(folder) => exported(folder, function, mesh.replicas())?,
        None => made(function, target(mesh, function.precision), mesh.replicas())?,
    })
}

/// Returns the forms that a mesh's compiler is fast at.
pub fn target(mesh: &Mesh, precision: Precision) -> Target {
    forms(mesh, precision).target
}

/// Returns the forms that a mesh's compiler is fast at. On a CPU, oneDNN computes matmuls and convolutions if it works.
/// Otherwise XLA computes them in f32, whatever the precision, and the answer says why.
pub fn forms(mesh: &Mesh, precision: Precision) -> Forms {
    mesh.forms(precision, || match check_one_dnn(mesh, precision) {
        Ok(()) => Forms { target: Target::OneDnn, one_dnn_error: None },
        Err(why) => {
            log::info!("XLA's own products in f32 on this CPU: {why:#}");
            Forms { target: Target::Cpu, one_dnn_error: Some(format!("{why:#}")) }
        }
    })
}

/// Checks that oneDNN can multiply operands of this type. Compiles and runs a small program to find out.
///
/// # Errors
/// When it cannot, with the reason.
#[cfg(feature = "xla")]
pub fn check_one_dnn(mesh: &Mesh, precision: Precision) -> Result<()> {
    probe::one_dnn(mesh, precision)
}

/// Always fails: without the XLA library there is no CPU device.
///
/// # Errors
/// Always.
#[cfg(not(feature = "xla"))]
pub fn check_one_dnn(_mesh: &Mesh, _precision: Precision) -> Result<()> {
    anyhow::bail!("this program was built without the XLA library")
}

#[cfg(feature = "xla")]
fn made(function: &Function, target: Target, replicas: usize) -> Result<Program> {
    crate::engine::lower::lower(function, target, replicas)
}

#[cfg(not(feature = "xla"))]
fn made(function: &Function, _target: Target, _replicas: usize) -> Result<Program> {
    anyhow::bail!(
        "this program was built without the XLA library and makes no programs ({}): give it exported ones with --programs \
         DIR",
        function.name
    )
}

/// Loads the exported program of a computation. The computation must be the same as when it was exported.
fn exported(folder: &Path, function: &Function, replicas: usize) -> Result<Program> {
    let program = Program::load(folder, &function.name).with_context(|| {
        format!("{} holds no program {}: export it with vnca export", folder.display(), function.name)
    })?;
    let signature = &program.signature;
    let at = format!("the exported program {} in {}", function.name, folder.display());
    ensure!(
        signature.replicas == replicas,
        "{at} is for {} replicas, not {replicas}: export it with --replicas {replicas}",
        signature.replicas
    );
    for (input, wanted) in signature.inputs.iter().zip(&function.inputs) {
        ensure!(
            (&input.name, &input.shape) == (&wanted.name, &wanted.shape),
            "{at} takes {} {}, these options need {} {}: export it with the same options",
            input.name,
            input.shape,
            wanted.name,
            wanted.shape
        );
    }
    ensure!(
        signature.graph == function.fingerprint(),
        "{at} computes something else than these options and this version of vnca: export it again with the same options"
    );
    Ok(program)
}
