//! A model whose weights are on a mesh, and programs that use them.

use anyhow::Result;

use crate::engine::array::Array;
use crate::engine::compile;
use crate::engine::ir::{Graph, Sym};
use crate::engine::runtime::{Arg, Buffers, Device, Executable, Mesh};
use crate::model::Vae;
use crate::nn::params::Params;

/// A model whose parameters are on every device of a mesh.
pub struct Session {
    /// The devices.
    pub mesh: Mesh,
    /// The model.
    pub model: Vae,
    /// In the order of the model's leaves, in the device layout.
    parameters: Vec<Buffers>,
}

impl Session {
    /// Opens a mesh of `replicas` devices and copies the weights to it, as [`Session::new`] does.
    ///
    /// # Errors
    /// When the device cannot be opened.
    pub fn open(device: &Device, replicas: usize, model: Vae, weights: &[Array]) -> Result<Session> {
        Session::new(&Mesh::open(device, replicas)?, model, weights)
    }

    /// Copies the weights to every device of a mesh. They are in the checkpoint layout, in the order of the model's leaves.
    ///
    /// # Errors
    /// When a device fails.
    pub fn new(mesh: &Mesh, model: Vae, weights: &[Array]) -> Result<Session> {
        let leaves = model.leaves();
        let put = leaves.iter().zip(weights).map(|(leaf, a)| mesh.replicate(&leaf.to_device_layout(a)));
        let parameters = put.collect::<Result<_>>()?;
        Ok(Session { mesh: mesh.clone(), model, parameters })
    }

    /// Returns the parameters in the order of the model's leaves, in the device layout.
    pub fn parameters(&self) -> Vec<&Buffers> {
        self.parameters.iter().collect()
    }

    /// Compiles a program over the model's parameters; see [`Vae::function`].
    ///
    /// # Errors
    /// When the graph is ill-formed or does not compile.
    pub fn compile(
        &self,
        name: &str,
        build: impl for<'g> FnOnce(&'g Graph, &Params<'g>) -> Vec<(String, Sym<'g>)>,
    ) -> Result<SessionProgram<'_>> {
        let executable = compile::compile(&self.mesh, &self.model.function(name, build)?)?;
        Ok(SessionProgram { session: self, executable })
    }
}

/// A program compiled over a session's parameters.
pub struct SessionProgram<'s> {
    session: &'s Session,
    executable: Executable,
}

impl SessionProgram<'_> {
    /// Runs the program with the same inputs on every device, and returns the first device's results.
    ///
    /// # Errors
    /// When an input does not have the declared shape, or the device fails.
    pub fn call(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let mut arguments: Vec<Arg<'_>> = self.session.parameters.iter().map(Arg::from).collect();
        for input in inputs {
            arguments.push(self.session.mesh.replicate(input)?.into());
        }
        self.executable.call(arguments)?.iter().map(Buffers::replicated).collect()
    }

    /// Runs the program with a part of the rows of every input on each device, and returns the rows of all devices.
    ///
    /// # Errors
    /// When the devices' parts do not have the declared shapes, or a device fails.
    pub fn call_by_rows(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let mesh = &self.session.mesh;
        let mut arguments: Vec<Arg<'_>> = self.session.parameters.iter().map(Arg::from).collect();
        for input in inputs {
            arguments.push(mesh.shard(&input.split_rows(mesh.replicas())?)?.into());
        }
        self.executable.call(arguments)?.iter().map(|buffers| Array::join_rows(&buffers.all()?)).collect()
    }
}
