//! Turns a computation into an executable for the devices of a mesh. Lowers it, or loads the exported program.

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
        Some(folder) => load_exported(folder, function, mesh)?,
        None => lower_here(function, target(mesh, function.precision), mesh.replicas())?,
    })
}

/// Returns the forms that a mesh's compiler is fast at.
pub fn target(mesh: &Mesh, precision: Precision) -> Target {
    forms(mesh, precision).target
}

/// Returns the forms that a mesh's compiler is fast at, with the reason if oneDNN does not work. On a CPU, oneDNN computes
/// matmuls and convolutions if it works. Otherwise XLA computes them in f32, whatever the precision.
pub fn forms(mesh: &Mesh, precision: Precision) -> Forms {
    mesh.forms(precision, || match check_one_dnn(mesh, precision) {
        Ok(()) => Forms { target: Target::OneDnn, one_dnn_error: None },
        Err(why) => {
            log::info!("matmuls and convolutions by XLA in f32 on this CPU: {why:#}");
            Forms { target: Target::Cpu, one_dnn_error: Some(format!("{why:#}")) }
        }
    })
}

/// Checks that oneDNN can multiply operands of this type. Compiles and runs a small program to find out.
///
/// # Errors
/// When oneDNN cannot. The message has the reason.
#[cfg(feature = "xla")]
pub fn check_one_dnn(mesh: &Mesh, precision: Precision) -> Result<()> {
    probe::one_dnn(mesh, precision)
}

/// Returns an error, because without the XLA library there is no CPU device.
///
/// # Errors
/// Always.
#[cfg(not(feature = "xla"))]
pub fn check_one_dnn(_mesh: &Mesh, _precision: Precision) -> Result<()> {
    anyhow::bail!("this program was built without the XLA library")
}

#[cfg(feature = "xla")]
fn lower_here(function: &Function, target: Target, replicas: usize) -> Result<Program> {
    crate::engine::lower::lower(function, target, replicas)
}

#[cfg(not(feature = "xla"))]
fn lower_here(function: &Function, _target: Target, _replicas: usize) -> Result<Program> {
    anyhow::bail!(
        "this program was built without the XLA library and cannot lower {}: it needs the folder of exported programs",
        function.name
    )
}

/// Loads the exported program of a computation. The computation must be equal to the exported one.
fn load_exported(folder: &Path, function: &Function, mesh: &Mesh) -> Result<Program> {
    let replicas = mesh.replicas();
    let program = Program::load(folder, &function.name).with_context(|| {
        format!("{} holds no program {}: export it with vnca export", folder.display(), function.name)
    })?;
    let signature = &program.signature;
    let at = format!("the exported program {} in {}", function.name, folder.display());
    ensure!(
        signature.replicas == replicas,
        "{at} is for {} replicas, not {replicas}: export it for {replicas} replicas",
        signature.replicas
    );
    for (input, wanted) in signature.inputs.iter().zip(&function.inputs) {
        ensure!(
            (&input.name, &input.shape) == (&wanted.name, &wanted.shape),
            "{at} takes {} {}, these options need {} {}: export it again with the same options",
            input.name,
            input.shape,
            wanted.name,
            wanted.shape
        );
    }
    ensure!(
        signature.graph == function.fingerprint(),
        "{at} computes something else than this version of vnca with these options: export it again with the same options"
    );
    if (mesh.target(), signature.target) == (Target::Gpu, Target::Native) {
        log::warn!("{at} is in the form for TPUs: exported with --target gpu it is faster here");
    }
    Ok(program)
}
