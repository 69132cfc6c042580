//! From a computation to a program that runs on the devices of a mesh.

use anyhow::Result;

use crate::ir::Function;
use crate::lower::lower;
use crate::runtime::{Executable, Mesh};

/// Lowers a computation in the forms that the mesh's compiler is fast at, and compiles it.
///
/// # Errors
/// When the compiler refuses it.
pub fn compile(mesh: &Mesh, function: &Function) -> Result<Executable> {
    mesh.compile(lower(function, mesh.target(), mesh.replicas())?)
}
