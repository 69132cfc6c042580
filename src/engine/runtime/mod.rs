//! Devices, and programs on them. Knows programs and host arrays, and no models.

#[cfg(feature = "xla")]
mod cpu;
#[cfg(not(feature = "xla"))]
mod cpu {
    pub(super) fn client(_replicas: usize) -> anyhow::Result<std::sync::Arc<dyn super::Client>> {
        anyhow::bail!("this binary was built without the XLA library and has no cpu device")
    }

    pub(super) fn reserve(_devices: usize) {}
}

mod headed;
#[cfg(feature = "xla")]
mod onednn;
pub mod pjrt;

use std::any::Any;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::engine::array::Array;
use crate::engine::program::{Program, Target};
use crate::engine::shape::Shape;

pub use self::pjrt::{Plugin, Settings, Value};

/// A device that the user chose. There is no other one in its place when it cannot be had.
#[derive(Clone, Debug, PartialEq)]
pub enum Device {
    /// XLA's own CPU backend, linked into this program.
    Cpu,
    /// A PJRT plugin with the options that it is opened with.
    Plugin { plugin: Plugin, settings: Settings },
}

/// `cpu`, `tpu`, `cuda` or a plugin's path, and after commas its options: `cuda,memory_fraction=0.5,preallocate=false`.
impl FromStr for Device {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Device> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default();
        let mut settings = Settings::new();
        for part in parts {
            let Some((option, value)) = part.split_once('=').filter(|(option, _)| !option.is_empty()) else {
                bail!("device {text:?}: {part:?} is no option of the form NAME=VALUE")
            };
            ensure!(settings.iter().all(|(o, _)| o != option), "device {text:?}: {option} is given twice");
            settings.push((option.to_string(), Value::parse(value)?));
        }
        let plugin = match name {
            "cpu" => {
                ensure!(settings.is_empty(), "device {text:?}: cpu has no options");
                return Ok(Device::Cpu);
            }
            "tpu" => Plugin::Tpu,
            "cuda" => Plugin::Cuda,
            path if path.contains('/') || path.ends_with(".so") => Plugin::File(path.into()),
            other => bail!("no device {other:?}: take cpu, tpu, cuda, or the path of a PJRT plugin"),
        };
        Ok(Device::Plugin { plugin, settings })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Plugin { plugin: Plugin::Tpu, .. } => f.write_str("tpu"),
            Device::Plugin { plugin: Plugin::Cuda, .. } => f.write_str("cuda"),
            Device::Plugin { plugin: Plugin::File(path), .. } => write!(f, "{}", path.display()),
        }
    }
}

/// A device's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    pub used: u64,
    pub peak: Option<u64>,
    pub limit: Option<u64>,
}

/// One array in one device's memory.
pub(crate) trait Buffer: Send + Sync {
    fn get(&self, shape: &Shape) -> Result<Array>;
    fn as_any(&self) -> &dyn Any;
}

/// What a kind of device has to do. Devices are counted from 0.
pub(crate) trait Client: Send + Sync {
    fn describe(&self) -> String;
    fn device_count(&self) -> usize;
    /// The forms that this compiler is fast at.
    fn target(&self) -> Target;
    /// Whether it is the library that this program is linked with, and no plugin.
    fn is_linked(&self) -> bool {
        false
    }
    fn compile(&self, program: &Program) -> Result<Box<dyn Loaded>>;
    fn put(&self, device: usize, array: &Array) -> Result<Box<dyn Buffer>>;
    /// The memory of a device, where the runtime tells it.
    fn memory(&self, device: usize) -> Option<Memory>;
}

/// A compiled program: arguments and results as [replica][index].
pub(crate) trait Loaded: Send + Sync {
    fn execute(&self, arguments: &[Vec<&dyn Buffer>]) -> Result<Vec<Vec<Box<dyn Buffer>>>>;
}

/// As many devices as there are replicas.
#[derive(Clone)]
pub struct Mesh {
    client: Arc<dyn Client>,
    replicas: usize,
}

impl Mesh {
    /// Makes the CPU one of at least `replicas` virtual devices, for a process that will open meshes of several sizes. Without
    /// effect once one is open.
    pub fn reserve(replicas: usize) {
        cpu::reserve(replicas);
    }

    /// Takes `replicas` devices. On the CPU any number of virtual ones share the cores; their number is fixed by the
    /// first call in a process that makes one, to `replicas` or what [`Mesh::reserve`] said before.
    ///
    /// # Errors
    /// When the device cannot be had or has fewer parts than replicas.
    pub fn open(device: &Device, replicas: usize) -> Result<Mesh> {
        ensure!(replicas > 0, "at least one replica is needed");
        let client: Arc<dyn Client> = match device {
            Device::Cpu => cpu::client(replicas)?,
            Device::Plugin { plugin, settings } => pjrt::client(plugin, settings)?,
        };
        let count = client.device_count();
        ensure!(replicas <= count, "{replicas} replicas need as many devices, {device} has {count}");
        Ok(Mesh { client, replicas })
    }

    pub fn replicas(&self) -> usize {
        self.replicas
    }

    /// Devices that there are, of which the replicas take the first.
    pub fn devices(&self) -> usize {
        self.client.device_count()
    }

    /// The forms that programs for these devices are to be written in.
    pub fn target(&self) -> Target {
        self.client.target()
    }

    /// Whether the devices are those of the XLA library that this program is linked with, and no plugin's.
    pub fn is_linked(&self) -> bool {
        self.client.is_linked()
    }

    /// The memory of a replica's device, where the runtime tells it.
    pub fn memory(&self, replica: usize) -> Option<Memory> {
        self.client.memory(replica)
    }

    /// Platform and version, for people.
    pub fn describe(&self) -> String {
        self.client.describe()
    }

    /// Compiles a program for these devices.
    ///
    /// # Errors
    /// When it was made for another number of replicas, or the compiler refuses it.
    pub fn compile(&self, program: Program) -> Result<Executable> {
        let (name, made_for) = (&program.signature.name, program.signature.replicas);
        ensure!(made_for == self.replicas, "{name} is for {made_for} replicas, there are {}", self.replicas);
        let loaded = self.client.compile(&program).with_context(|| format!("compiling {name}"))?;
        Ok(Executable { program, loaded })
    }

    /// The same array on every device.
    pub fn replicate(&self, array: &Array) -> Result<Buffers> {
        let parts: Result<_> = (0..self.replicas).map(|r| self.client.put(r, array)).collect();
        Ok(Buffers { shape: array.shape().clone(), parts: parts? })
    }

    /// An array for each device, all of one shape.
    pub fn shard(&self, arrays: &[Array]) -> Result<Buffers> {
        ensure!(arrays.len() == self.replicas, "{} arrays for {} replicas", arrays.len(), self.replicas);
        let shape = arrays[0].shape().clone();
        for array in arrays {
            ensure!(*array.shape() == shape, "replicas' arrays differ: {shape} and {}", array.shape());
        }
        let parts: Result<_> = arrays.iter().enumerate().map(|(r, a)| self.client.put(r, a)).collect();
        Ok(Buffers { shape, parts: parts? })
    }
}

/// One array on each device of a mesh, of one shape, equal or not.
pub struct Buffers {
    shape: Shape,
    parts: Vec<Box<dyn Buffer>>,
}

impl Buffers {
    /// Shape of one replica's array.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Waits for a replica's array and copies it to the host.
    pub fn get(&self, replica: usize) -> Result<Array> {
        let part = self.parts.get(replica).ok_or_else(|| anyhow!("there is no replica {replica}"))?;
        part.get(&self.shape)
    }

    /// Every replica's array.
    pub fn all(&self) -> Result<Vec<Array>> {
        self.parts.iter().map(|p| p.get(&self.shape)).collect()
    }
}

/// An argument of a call: lent, or given away. What a program takes over (donation) must be given.
pub enum Arg<'a> {
    Lent(&'a Buffers),
    Given(Buffers),
}

impl Arg<'_> {
    fn buffers(&self) -> &Buffers {
        match self {
            Arg::Lent(buffers) => buffers,
            Arg::Given(buffers) => buffers,
        }
    }
}

impl<'a> From<&'a Buffers> for Arg<'a> {
    fn from(buffers: &'a Buffers) -> Self {
        Arg::Lent(buffers)
    }
}

impl From<Buffers> for Arg<'_> {
    fn from(buffers: Buffers) -> Self {
        Arg::Given(buffers)
    }
}

/// A program compiled for a mesh.
pub struct Executable {
    program: Program,
    loaded: Box<dyn Loaded>,
}

impl Executable {
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Runs the program on all devices. Results come in the order of the signature's outputs.
    ///
    /// # Errors
    /// An argument of the wrong number, shape, type, or lent where it is consumed: by name, with expected and got.
    pub fn call(&self, arguments: Vec<Arg<'_>>) -> Result<Vec<Buffers>> {
        let shapes: Vec<(&Shape, bool)> =
            arguments.iter().map(|a| (a.buffers().shape(), matches!(a, Arg::Given(_)))).collect();
        self.program.check(&shapes)?;
        let signature = &self.program.signature;
        for (argument, input) in arguments.iter().zip(&signature.inputs) {
            let parts = argument.buffers().parts.len();
            let replicas = signature.replicas;
            ensure!(parts == replicas, "argument {} is on {parts} devices, not {replicas}", input.name);
        }
        let by_replica: Vec<Vec<&dyn Buffer>> = (0..signature.replicas)
            .map(|r| arguments.iter().map(|a| a.buffers().parts[r].as_ref()).collect())
            .collect();
        let results =
            self.loaded.execute(&by_replica).with_context(|| format!("running {}", signature.name))?;
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
        Ok(buffers.map(|(parts, output)| Buffers { shape: output.shape.clone(), parts }).collect())
    }
}
