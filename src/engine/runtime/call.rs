//! Arrays on the devices of a mesh, and calls of programs with them.

use anyhow::{Context, Result, ensure};

use super::{Buffer, Loaded, Mesh};
use crate::engine::array::Array;
use crate::engine::program::{OutputSpec, Program};
use crate::engine::shape::Shape;

/// One array on each device of a mesh. All have the same shape; their values may differ.
pub struct Buffers {
    pub(super) mesh: Mesh,
    pub(super) shape: Shape,
    /// The arrays of this process's replicas.
    pub(super) parts: Vec<Box<dyn Buffer>>,
}

impl Buffers {
    /// Returns the shape of one replica's array.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Waits for a replica's array and copies it to the host. With several processes all of them have to call it, like
    /// [`Buffers::all`], because the replica is another process's for all but one of them.
    ///
    /// # Errors
    /// When there is no such replica, or the program that computes the array failed.
    pub fn get(&self, replica: usize) -> Result<Array> {
        ensure!(replica < self.mesh.replicas(), "there is no replica {replica}");
        match self.mesh.is_local() {
            true => self.parts[replica].get(&self.shape),
            false => Ok(self.all()?.swap_remove(replica)),
        }
    }

    /// Waits for the array of this process's first replica and copies it to the host. Serves arrays that are the same on all
    /// replicas. Any process may call it, whatever the others do.
    ///
    /// # Errors
    /// When the program that computes the array failed.
    pub fn replicated(&self) -> Result<Array> {
        let first = self.parts.first().context("a mesh has a replica of each process")?;
        self.mesh.mark(first.get(&self.shape))
    }

    /// Waits for every replica's array and copies them to the host, in the order of the replicas.
    ///
    /// With several processes all of them have to call it, in the same order as their other calls: a program sends every array
    /// to every device, whose memory must hold them. It is compiled when arrays of a shape are first asked for.
    ///
    /// # Errors
    /// When the program that computes them failed.
    pub fn all(&self) -> Result<Vec<Array>> {
        let Mesh { opened, devices, .. } = &self.mesh;
        match self.mesh.is_local() {
            true => self.own(),
            false => {
                let client = opened.client.as_ref();
                self.mesh.mark(opened.gathering.all(client, devices, &self.shape, &self.parts))
            }
        }
    }

    /// Waits for the arrays of this process's replicas and copies them to the host, in the order of [`Mesh::own_replicas`]. Any
    /// process may call it, whatever the others do.
    ///
    /// # Errors
    /// When the program that computes them failed.
    pub fn own(&self) -> Result<Vec<Array>> {
        self.parts.iter().map(|part| part.get(&self.shape)).collect()
    }
}

/// An argument of a call. An input whose memory the program donates to an output must be [`Arg::Donated`].
pub enum Arg<'a> {
    /// Buffers that the caller keeps.
    Borrowed(&'a Buffers),
    /// Buffers that the program may reuse for its outputs.
    Donated(Buffers),
}

impl Arg<'_> {
    fn buffers(&self) -> &Buffers {
        match self {
            Arg::Borrowed(buffers) => buffers,
            Arg::Donated(buffers) => buffers,
        }
    }
}

impl<'a> From<&'a Buffers> for Arg<'a> {
    fn from(buffers: &'a Buffers) -> Self {
        Arg::Borrowed(buffers)
    }
}

impl From<Buffers> for Arg<'_> {
    fn from(buffers: Buffers) -> Self {
        Arg::Donated(buffers)
    }
}

/// A program compiled for a mesh.
pub struct Executable {
    pub(super) mesh: Mesh,
    pub(super) program: Program,
    pub(super) loaded: Box<dyn Loaded>,
}

impl Executable {
    /// Returns the program that was compiled.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Runs the program on all devices. Results come in the order of the signature's outputs. With several processes all of them
    /// have to call it, in the same order as their other calls.
    ///
    /// # Errors
    /// When an argument has the wrong shape or type, is lent although the program donates it, or when the number of arguments is
    /// wrong. The message names the argument, with the expected and the actual value.
    pub fn call(&self, arguments: Vec<Arg<'_>>) -> Result<Vec<Buffers>> {
        let shapes: Vec<(&Shape, bool)> =
            arguments.iter().map(|a| (a.buffers().shape(), matches!(a, Arg::Donated(_)))).collect();
        self.program.check(&shapes)?;
        let signature = &self.program.signature;
        let devices = &self.mesh.devices;
        for (argument, input) in arguments.iter().zip(&signature.inputs) {
            let other = &argument.buffers().mesh.devices;
            ensure!(other == devices, "argument {} is on devices {other:?}, not {devices:?}", input.name);
        }
        let by_replica: Vec<Vec<&dyn Buffer>> = (0..self.mesh.own.len())
            .map(|r| arguments.iter().map(|a| a.buffers().parts[r].as_ref()).collect())
            .collect();
        let executed =
            self.loaded.execute(&by_replica).with_context(|| format!("running {}", signature.name));
        let results = self.mesh.mark(executed)?;
        let mut columns: Vec<Vec<Box<dyn Buffer>>> = signature.outputs.iter().map(|_| Vec::new()).collect();
        for row in results {
            ensure!(
                row.len() == columns.len(),
                "{} gave {} results, not {}",
                signature.name,
                row.len(),
                columns.len()
            );
            for (column, buffer) in columns.iter_mut().zip(row) {
                column.push(buffer);
            }
        }
        let buffers = columns.into_iter().zip(&signature.outputs);
        let mesh = &self.mesh;
        let wrap = |(parts, output): (_, &OutputSpec)| Buffers {
            mesh: mesh.clone(),
            shape: output.shape.clone(),
            parts,
        };
        Ok(buffers.map(wrap).collect())
    }
}
