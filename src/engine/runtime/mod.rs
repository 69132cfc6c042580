//! Devices, and programs on them. Knows programs and host arrays, and no models.

#[cfg(feature = "xla")]
mod cpu;
#[cfg(not(feature = "xla"))]
mod cpu {
    pub(super) fn client(_devices: usize) -> anyhow::Result<Box<dyn super::Client>> {
        anyhow::bail!("this binary was built without the XLA library and has no cpu device")
    }
}

mod headed;
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

/// XLA_FLAGS, the environment's options for XLA, has something that XLA does not know: it would end the process.
#[derive(Debug)]
pub struct WrongFlags(pub String);

impl fmt::Display for WrongFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XLA_FLAGS: {}", self.0)
    }
}

impl std::error::Error for WrongFlags {}

/// Where compiled programs are kept, for plugins that can write theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// The folder that VNCA_COMPILATION_CACHE names (none if that is empty or `off`), else the user's.
    #[default]
    Environment,
    Folder(PathBuf),
    Off,
}

/// Which forms programs are written in for a mesh, and why these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forms {
    pub target: Target,
    /// On a CPU, why matrix products are XLA's own in f32, where oneDNN's in the precision asked for cannot be had.
    pub no_one_dnn: Option<String>,
}

/// What all meshes over one client share: nothing of it belongs to the process.
struct Opened {
    device: Device,
    client: Box<dyn Client>,
    /// Asked for, in the place of what is found out.
    target: Option<Target>,
    /// Found out once for each precision.
    forms: [OnceLock<Forms>; 2],
    programs: Option<PathBuf>,
}

/// How a mesh is opened.
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
    /// Makes the CPU one of at least so many virtual devices, for meshes of several sizes. Other devices are as many as they are.
    #[must_use]
    pub fn devices(self, devices: usize) -> MeshBuilder {
        MeshBuilder { devices, ..self }
    }

    /// Writes programs in these forms, without finding out which ones the device is fast at.
    #[must_use]
    pub fn target(self, target: Target) -> MeshBuilder {
        MeshBuilder { target: Some(target), ..self }
    }

    /// Takes programs from a folder of exported ones instead of making them.
    #[must_use]
    pub fn programs(self, folder: Option<&Path>) -> MeshBuilder {
        MeshBuilder { programs: folder.map(Path::to_path_buf), ..self }
    }

    /// Keeps compiled programs there.
    #[must_use]
    pub fn cache(self, cache: Cache) -> MeshBuilder {
        MeshBuilder { cache, ..self }
    }

    /// Opens the device and takes `replicas` parts of it.
    ///
    /// # Errors
    /// When the device cannot be had or has fewer parts than replicas; [`WrongFlags`].
    pub fn open(self, replicas: usize) -> Result<Mesh> {
        ensure!(replicas > 0, "at least one replica is needed");
        let client = match &self.device {
            Device::Cpu => cpu::client(replicas.max(self.devices))?,
            Device::Plugin { plugin, settings } => pjrt::client(plugin, settings, &self.cache)?,
        };
        let MeshBuilder { device, target, programs, .. } = self;
        let forms = [const { OnceLock::new() }; 2];
        let opened = Opened { device, client, target, forms, programs };
        Mesh { opened: Arc::new(opened), replicas: 1 }.with_replicas(replicas)
    }
}

/// As many devices as there are replicas. A mesh and its clones share one client of the device with the meshes that
/// [`Mesh::with_replicas`] makes of them, and the client ends with the last of them and of their arrays and programs.
#[derive(Clone)]
pub struct Mesh {
    opened: Arc<Opened>,
    replicas: usize,
}

impl Mesh {
    /// Takes `replicas` devices. On the CPU these are as many virtual ones, which share the cores. Every call opens the device
    /// anew, and some can be opened once only at a time (TPUs): see [`Mesh::with_replicas`].
    ///
    /// # Errors
    /// As of [`MeshBuilder::open`].
    pub fn open(device: &Device, replicas: usize) -> Result<Mesh> {
        Mesh::builder(device).open(replicas)
    }

    /// Options of opening a device.
    pub fn builder(device: &Device) -> MeshBuilder {
        let (device, cache) = (device.clone(), Cache::default());
        MeshBuilder { device, devices: 1, target: None, programs: None, cache }
    }

    /// Another mesh over the same client. Arrays and programs of both may be used together.
    ///
    /// # Errors
    /// When the device has fewer parts than replicas.
    pub fn with_replicas(&self, replicas: usize) -> Result<Mesh> {
        ensure!(replicas > 0, "at least one replica is needed");
        let (device, count) = (&self.opened.device, self.devices());
        ensure!(replicas <= count, "{replicas} replicas need as many devices, {device} has {count}");
        Ok(Mesh { opened: self.opened.clone(), replicas })
    }

    /// What was opened.
    pub fn device(&self) -> &Device {
        &self.opened.device
    }

    /// The folder that programs are taken from, if they are not made.
    pub fn programs(&self) -> Option<&Path> {
        self.opened.programs.as_deref()
    }

    pub fn replicas(&self) -> usize {
        self.replicas
    }

    /// Devices that there are, of which the replicas take the first.
    pub fn devices(&self) -> usize {
        self.opened.client.device_count()
    }

    /// The forms that the device's kind of compiler is fast at, or that were asked for.
    pub fn target(&self) -> Target {
        self.opened.target.unwrap_or_else(|| self.opened.client.target())
    }

    /// The forms for products of a precision. `find` tries them out, once for all meshes over the client, where the device is a
    /// CPU and nothing else was asked for.
    pub(crate) fn forms(&self, precision: Precision, find: impl FnOnce() -> Forms) -> Forms {
        let plain = |target| Forms { target, no_one_dnn: None };
        match (self.opened.target, self.opened.client.target()) {
            (Some(target), _) => plain(target),
            (None, Target::Cpu) => self.opened.forms[precision as usize].get_or_init(find).clone(),
            (None, target) => plain(target),
        }
    }

    /// Whether the devices are those of the XLA library that this program is linked with, and no plugin's.
    pub fn is_linked(&self) -> bool {
        self.opened.client.is_linked()
    }

    /// The memory of a replica's device, where the runtime tells it.
    pub fn memory(&self, replica: usize) -> Option<Memory> {
        self.opened.client.memory(replica)
    }

    /// Platform and version, for people.
    pub fn describe(&self) -> String {
        self.opened.client.describe()
    }

    /// Compiles a program for these devices.
    ///
    /// # Errors
    /// When it was made for another number of replicas, or the compiler refuses it.
    pub fn compile(&self, program: Program) -> Result<Executable> {
        let (name, made_for) = (&program.signature.name, program.signature.replicas);
        ensure!(made_for == self.replicas, "{name} is for {made_for} replicas, there are {}", self.replicas);
        let loaded = self.opened.client.compile(&program).with_context(|| format!("compiling {name}"))?;
        Ok(Executable { program, loaded })
    }

    /// The same array on every device.
    pub fn replicate(&self, array: &Array) -> Result<Buffers> {
        let parts: Result<_> = (0..self.replicas).map(|r| self.opened.client.put(r, array)).collect();
        Ok(Buffers { shape: array.shape().clone(), parts: parts? })
    }

    /// An array for each device, all of one shape.
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
