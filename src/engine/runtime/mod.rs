//! Devices: opens them, moves arrays to and from them, compiles and runs programs. Knows nothing of models.

mod cache;
#[cfg(feature = "xla")]
mod cpu;
#[cfg(not(feature = "xla"))]
mod cpu {
    pub(super) fn client(_devices: usize, _cache: &super::Cache) -> anyhow::Result<Box<dyn super::Client>> {
        anyhow::bail!("this binary was built without the XLA library and has no cpu device")
    }
}

mod custom_call_header;
#[cfg(feature = "xla")]
mod onednn;
pub mod pjrt;

use std::any::Any;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::engine::array::Array;
use crate::engine::program::{Program, Target};
use crate::engine::shape::{Precision, Shape};
use crate::error::{Error, Tag, valid};

pub use self::pjrt::{Plugin, Settings, Value};

/// A kind of device to open. Nothing falls back to another device if it cannot be opened.
#[derive(Clone, Debug, PartialEq)]
pub enum Device {
    /// XLA's own CPU backend, linked into this program.
    Cpu,
    /// A PJRT plugin with its options.
    Plugin {
        /// The plugin, by name or path.
        plugin: Plugin,
        /// The options that its client is created with.
        settings: Settings,
    },
}

/// Parses `cpu`, `tpu`, `cuda` or a plugin's path. Options follow after commas: `cuda,memory_fraction=0.5,preallocate=false`.
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
            other => bail!("no device {other:?}: use cpu, tpu, cuda, or the path of a PJRT plugin"),
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

/// The memory use of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// Bytes in use now.
    pub used: u64,
    /// The most bytes that were in use at once, if the runtime reports it.
    pub peak: Option<u64>,
    /// Bytes that can be allocated in total, if the runtime reports it.
    pub limit: Option<u64>,
}

/// An array in one device's memory.
pub(crate) trait Buffer: Send + Sync {
    /// Waits for the array and copies it to the host.
    fn get(&self, shape: &Shape) -> Result<Array>;
    fn as_any(&self) -> &dyn Any;
}

/// The operations that each kind of device implements. Devices are numbered from 0.
pub(crate) trait Client: Send + Sync {
    /// Returns the platform and its version as text.
    fn describe(&self) -> String;
    fn device_count(&self) -> usize;
    /// Returns the forms of matmuls and convolutions that this compiler is fast at.
    fn target(&self) -> Target;
    /// Reports whether the devices belong to the linked XLA library instead of a plugin.
    fn is_linked(&self) -> bool {
        false
    }
    fn compile(&self, program: &Program) -> Result<Box<dyn Loaded>>;
    /// Copies an array to a device.
    fn put(&self, device: usize, array: &Array) -> Result<Box<dyn Buffer>>;
    /// Returns the memory use of a device, if the runtime reports it.
    fn memory(&self, device: usize) -> Option<Memory>;
}

/// A compiled program. Arguments and results are indexed by replica, then by position.
pub(crate) trait Loaded: Send + Sync {
    fn execute(&self, arguments: &[Vec<&dyn Buffer>]) -> Result<Vec<Vec<Box<dyn Buffer>>>>;
}

/// Where compiled programs are cached. Plugins that cannot serialize programs use no cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// The folder that `VNCA_COMPILATION_CACHE` names, or one in the user's cache if it is not set. No cache if it is empty or
    /// `off`.
    #[default]
    Environment,
    /// This folder.
    Folder(PathBuf),
    /// No cache.
    Off,
}

/// The forms of matmuls and convolutions in a mesh's programs, and why they were chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forms {
    /// The forms.
    pub target: Target,
    /// On a CPU, the reason why oneDNN cannot be used in the requested precision. XLA then multiplies in f32 without oneDNN.
    pub one_dnn_error: Option<String>,
}

/// An opened device: the state that all meshes over one client share.
struct OpenDevice {
    device: Device,
    client: Box<dyn Client>,
    /// The forms that the builder was given. `None`: probe them.
    target: Option<Target>,
    /// The probed forms of each precision.
    forms: [OnceLock<Forms>; 2],
    programs: Option<PathBuf>,
}

/// Options for opening a mesh.
///
/// ```no_run
/// # fn main() -> anyhow::Result<()> {
/// use vnca::engine::runtime::Mesh;
/// let mesh = Mesh::builder(&"cpu".parse()?).devices(8).open(1)?;
/// let eight = mesh.with_replicas(8)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct MeshBuilder {
    device: Device,
    devices: usize,
    target: Option<Target>,
    programs: Option<PathBuf>,
    cache: Cache,
}

impl MeshBuilder {
    /// Sets the least number of virtual CPU devices, for meshes of several sizes over one client. Ignored for other devices.
    #[must_use]
    pub fn devices(self, devices: usize) -> MeshBuilder {
        MeshBuilder { devices, ..self }
    }

    /// Writes programs in these forms, without probing which forms the device is fast at.
    #[must_use]
    pub fn target(self, target: Target) -> MeshBuilder {
        MeshBuilder { target: Some(target), ..self }
    }

    /// Loads exported programs from a folder instead of lowering graphs.
    #[must_use]
    pub fn programs(self, folder: Option<&Path>) -> MeshBuilder {
        MeshBuilder { programs: folder.map(Path::to_path_buf), ..self }
    }

    /// Sets where compiled programs are cached.
    #[must_use]
    pub fn cache(self, cache: Cache) -> MeshBuilder {
        MeshBuilder { cache, ..self }
    }

    /// Opens the device and returns a mesh of `replicas` of its devices.
    ///
    /// # Errors
    /// [`Error::Device`] when the device cannot be opened or has fewer devices than replicas. [`Error::Usage`] when `replicas` is
    /// 0, or XLA cannot parse the environment variable `XLA_FLAGS`: XLA itself would end the process.
    pub fn open(self, replicas: usize) -> Result<Mesh> {
        valid!(replicas > 0, "replicas", "is 0: it must be at least 1");
        let client = match &self.device {
            Device::Cpu => cpu::client(replicas.max(self.devices), &self.cache),
            Device::Plugin { plugin, settings } => pjrt::client(plugin, settings, &self.cache),
        };
        let client = client.tag(Error::Device)?;
        let MeshBuilder { device, target, programs, .. } = self;
        let forms = [const { OnceLock::new() }; 2];
        let opened = OpenDevice { device, client, target, forms, programs };
        Mesh { opened: Arc::new(opened), replicas: 1 }.with_replicas(replicas)
    }
}

/// A set of devices, one for each replica.
///
/// Clones of a mesh, and the meshes that [`Mesh::with_replicas`] makes from it, share one client. The client is closed when the
/// last of them, of their arrays and of their programs is dropped.
#[derive(Clone)]
pub struct Mesh {
    opened: Arc<OpenDevice>,
    replicas: usize,
}

impl Mesh {
    /// Opens a device and returns a mesh of `replicas` of its devices. CPU devices are virtual and share the cores.
    ///
    /// Every call opens the device again. TPUs cannot be opened twice at the same time: see [`Mesh::with_replicas`].
    ///
    /// # Errors
    /// As for [`MeshBuilder::open`].
    pub fn open(device: &Device, replicas: usize) -> Result<Mesh> {
        Mesh::builder(device).open(replicas)
    }

    /// Returns the options for opening a device, with their defaults.
    pub fn builder(device: &Device) -> MeshBuilder {
        let (device, cache) = (device.clone(), Cache::default());
        MeshBuilder { device, devices: 1, target: None, programs: None, cache }
    }

    /// Returns a mesh of another size over the same client. Both meshes may be used side by side.
    ///
    /// # Errors
    /// [`Error::Device`] when there are fewer devices than replicas. [`Error::Usage`] when `replicas` is 0.
    pub fn with_replicas(&self, replicas: usize) -> Result<Mesh> {
        valid!(replicas > 0, "replicas", "is 0: it must be at least 1");
        let (device, count) = (&self.opened.device, self.devices());
        if replicas > count {
            let problem = anyhow!("{replicas} replicas need as many devices, {device} has {count}");
            return Err(Error::Device(problem).into());
        }
        Ok(Mesh { opened: self.opened.clone(), replicas })
    }

    /// Returns the kind of device that was opened.
    pub fn device(&self) -> &Device {
        &self.opened.device
    }

    /// Returns the folder that programs are loaded from, if any.
    pub fn programs(&self) -> Option<&Path> {
        self.opened.programs.as_deref()
    }

    /// Returns the number of replicas.
    pub fn replicas(&self) -> usize {
        self.replicas
    }

    /// Returns the client's number of devices. The replicas use the first ones.
    pub fn devices(&self) -> usize {
        self.opened.client.device_count()
    }

    /// Returns the forms that the builder was given, else those that the device's compiler is fast at.
    pub fn target(&self) -> Target {
        self.opened.target.unwrap_or_else(|| self.opened.client.target())
    }

    /// Returns the forms for matmuls and convolutions in a precision. On a CPU, unless the builder was given a target, `find`
    /// probes them, once for all meshes over the client.
    pub(crate) fn forms(&self, precision: Precision, find: impl FnOnce() -> Forms) -> Forms {
        let forms = |target| Forms { target, one_dnn_error: None };
        match (self.opened.target, self.opened.client.target()) {
            (Some(target), _) => forms(target),
            (None, Target::Cpu) => self.opened.forms[precision as usize].get_or_init(find).clone(),
            (None, target) => forms(target),
        }
    }

    /// Reports whether the devices belong to the linked XLA library, not to a plugin.
    pub fn is_linked(&self) -> bool {
        self.opened.client.is_linked()
    }

    /// Returns the memory use of a replica's device, if the runtime reports it.
    pub fn memory(&self, replica: usize) -> Option<Memory> {
        self.opened.client.memory(replica)
    }

    /// Returns the platform and its version as text.
    pub fn describe(&self) -> String {
        self.opened.client.describe()
    }

    /// Compiles a program for these devices.
    ///
    /// # Errors
    /// When the program is for another number of replicas, or the compiler refuses it.
    pub fn compile(&self, program: Program) -> Result<Executable> {
        let (name, replicas) = (&program.signature.name, program.signature.replicas);
        ensure!(replicas == self.replicas, "{name} is for {replicas} replicas, there are {}", self.replicas);
        let loaded = self.opened.client.compile(&program).with_context(|| format!("compiling {name}"))?;
        Ok(Executable { program, loaded })
    }

    /// Copies an array to every device.
    ///
    /// # Errors
    /// When a device refuses it, for example because its memory is full.
    pub fn replicate(&self, array: &Array) -> Result<Buffers> {
        let parts: Result<_> = (0..self.replicas).map(|r| self.opened.client.put(r, array)).collect();
        Ok(Buffers { shape: array.shape().clone(), parts: parts? })
    }

    /// Copies one array to each device, in the order of the replicas.
    ///
    /// # Errors
    /// When the number of arrays is not the number of replicas, when their shapes differ, or when a device refuses one.
    pub fn shard(&self, arrays: &[Array]) -> Result<Buffers> {
        ensure!(arrays.len() == self.replicas, "{} arrays for {} replicas", arrays.len(), self.replicas);
        let shape = arrays[0].shape().clone();
        for array in arrays {
            ensure!(*array.shape() == shape, "replicas' arrays differ: {shape} and {}", array.shape());
        }
        let parts: Result<_> = arrays.iter().enumerate().map(|(r, a)| self.opened.client.put(r, a)).collect();
        Ok(Buffers { shape, parts: parts? })
    }
}

/// One array on each device of a mesh. All have the same shape; their values may differ.
pub struct Buffers {
    shape: Shape,
    parts: Vec<Box<dyn Buffer>>,
}

impl Buffers {
    /// Returns the shape of one replica's array.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Waits for a replica's array and copies it to the host.
    ///
    /// # Errors
    /// When there is no such replica, or the program that computes the array failed.
    pub fn get(&self, replica: usize) -> Result<Array> {
        let part = self.parts.get(replica).ok_or_else(|| anyhow!("there is no replica {replica}"))?;
        part.get(&self.shape)
    }

    /// Waits for every replica's array and copies them to the host, in the order of the replicas.
    ///
    /// # Errors
    /// When the program that computes them failed.
    pub fn all(&self) -> Result<Vec<Array>> {
        self.parts.iter().map(|p| p.get(&self.shape)).collect()
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
    program: Program,
    loaded: Box<dyn Loaded>,
}

impl Executable {
    /// Returns the program that was compiled.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Runs the program on all devices. Results come in the order of the signature's outputs.
    ///
    /// # Errors
    /// When an argument has the wrong shape or type, is lent although the program donates it, or when the number of arguments is
    /// wrong. The message names the argument, with the expected and the actual value.
    pub fn call(&self, arguments: Vec<Arg<'_>>) -> Result<Vec<Buffers>> {
        let shapes: Vec<(&Shape, bool)> =
            arguments.iter().map(|a| (a.buffers().shape(), matches!(a, Arg::Donated(_)))).collect();
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
