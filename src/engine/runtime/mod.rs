//! Devices: opens them, moves arrays to and from them, compiles and runs programs. Knows nothing of models.

mod cache;
mod call;
mod collective;
#[cfg(feature = "xla")]
mod cpu;
#[cfg(not(feature = "xla"))]
mod cpu {
    pub(super) fn client(_devices: usize, _cache: &super::Cache) -> anyhow::Result<Box<dyn super::Client>> {
        anyhow::bail!("this binary was built without the XLA library and has no cpu device")
    }
}

mod custom_call_header;
mod gather;
#[cfg(feature = "xla")]
mod onednn;
pub mod pjrt;
mod processes;
mod share;

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::engine::array::Array;
use crate::engine::program::{Program, Target};
use crate::engine::shape::{Precision, Shape};
use crate::error::{Error, Tag, valid};

pub use self::call::{Arg, Buffers, Executable};
use self::gather::Gathering;
pub use self::pjrt::{Plugin, Settings, Value};
use self::processes::Led;
pub use self::processes::{OfAll, OfSeveral, Processes};

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

/// The operations that each kind of device implements. The devices of all processes are numbered from 0, by process and then by
/// the runtime's own number.
pub(crate) trait Client: Send + Sync {
    /// Returns the platform and its version as text.
    fn describe(&self) -> String;
    /// Returns the process of each device.
    fn devices(&self) -> Vec<usize>;
    /// Returns this process's number.
    fn process(&self) -> usize {
        0
    }
    /// Returns the forms of matmuls and convolutions that this compiler is fast at.
    fn target(&self) -> Target;
    /// Reports whether the devices belong to the linked XLA library instead of a plugin.
    fn is_linked(&self) -> bool {
        false
    }
    /// Compiles a program whose replicas run on these devices, some of which are this process's.
    fn compile(&self, program: &Program, devices: &[usize]) -> Result<Box<dyn Loaded>>;
    /// Copies an array to a device of this process.
    fn put(&self, device: usize, array: &Array) -> Result<Box<dyn Buffer>>;
    /// Returns the memory use of a device, if the runtime reports it.
    fn memory(&self, device: usize) -> Option<Memory>;
}

/// A compiled program. Arguments and results are indexed by this process's replicas, then by position.
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
    gathering: Gathering,
    /// What process 0 leads, if there are several processes.
    led: Option<Led>,
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
    processes: Option<Processes>,
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

    /// Opens the device together with other processes, each of which opens its own devices of the same kind. The mesh then has
    /// the devices of all of them. Every process calls [`MeshBuilder::open`], which waits for the others.
    ///
    /// All processes have to make the same calls of [`Mesh::compile`], [`Executable::call`], [`Buffers::all`] and
    /// [`Buffers::get`] in the same order, but for those of a mesh from [`Mesh::local`]. Otherwise they wait for each other.
    #[must_use]
    pub fn processes(self, processes: Processes) -> MeshBuilder {
        MeshBuilder { processes: Some(processes), ..self }
    }

    /// Opens the device and returns a mesh of `replicas` of its devices, those of all processes together.
    ///
    /// # Errors
    /// [`Error::Device`] when the device cannot be opened or has too few devices for the replicas. [`Error::Usage`] when
    /// `replicas` is 0, when the number of this process is not below their count, when the linked CPU is to be opened by several
    /// processes, or XLA cannot parse the environment variable `XLA_FLAGS`: XLA itself would end the process.
    pub fn open(self, replicas: usize) -> Result<Mesh> {
        valid!(replicas > 0, "replicas", "is 0: it must be at least 1");
        if let Some(Processes { index, count, .. }) = &self.processes {
            valid!(index < count, "processes", "has {count} processes, of which none is number {index}");
        }
        let processes = self.processes.as_ref().filter(|processes| processes.count > 1);
        let client = match &self.device {
            Device::Cpu => {
                let problem = "are several: the device cpu works in one process, a PJRT plugin in several";
                valid!(processes.is_none(), "processes", "{problem}");
                cpu::client(replicas.max(self.devices), &self.cache)
            }
            Device::Plugin { plugin, settings } => pjrt::client(plugin, settings, &self.cache, processes),
        };
        let client = client.tag(Error::Device)?;
        let led = processes.map(Led::new);
        let MeshBuilder { device, target, programs, .. } = self;
        let (forms, gathering) = ([const { OnceLock::new() }; 2], Gathering::default());
        let opened = OpenDevice { device, client, target, forms, programs, gathering, led };
        Mesh { opened: Arc::new(opened), devices: Arc::default(), own: 0..0 }.with_replicas(replicas)
    }
}

/// A set of devices, one for each replica.
///
/// Clones of a mesh, and the meshes that [`Mesh::with_replicas`] makes from it, share one client. The client is closed when the
/// last of them, of their arrays and of their programs is dropped.
///
/// A mesh may have the devices of several processes: see [`MeshBuilder::processes`]. Each process then holds the arrays of its
/// own replicas, which follow each other.
#[derive(Clone)]
pub struct Mesh {
    opened: Arc<OpenDevice>,
    /// The device of each replica.
    devices: Arc<[usize]>,
    /// This process's replicas.
    own: Range<usize>,
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
        MeshBuilder { device, devices: 1, target: None, programs: None, cache, processes: None }
    }

    /// Returns a mesh of another size over the same client. Both meshes may be used side by side.
    ///
    /// Each process gives its first devices, all the same number.
    ///
    /// # Errors
    /// [`Error::Device`] when there are fewer devices than replicas, or their number does not divide among the processes.
    /// [`Error::Usage`] when `replicas` is 0.
    pub fn with_replicas(&self, replicas: usize) -> Result<Mesh> {
        self.choose(replicas, 0..self.processes())
    }

    /// Returns a mesh of this process's own devices, the first ones. Its programs run without the other processes.
    ///
    /// # Errors
    /// As for [`Mesh::with_replicas`].
    pub fn local(&self, replicas: usize) -> Result<Mesh> {
        self.choose(replicas, self.process()..self.process() + 1)
    }

    /// Returns a mesh of as many devices of each of these processes, which include this one.
    fn choose(&self, replicas: usize, processes: Range<usize>) -> Result<Mesh> {
        valid!(replicas > 0, "replicas", "is 0: it must be at least 1");
        let process_of = self.opened.client.devices();
        let share = replicas / processes.len();
        let mut chosen = Vec::new();
        for process in processes.clone() {
            let devices = (0..process_of.len()).filter(|device| process_of[*device] == process);
            chosen.extend(devices.take(share));
        }
        if chosen.len() < replicas {
            let device = &self.opened.device;
            let count = process_of.iter().filter(|process| processes.contains(process)).count();
            let problem = match processes.len() {
                1 => anyhow!("{replicas} replicas need as many devices, {device} has {count}"),
                n => anyhow!(
                    "{replicas} replicas need as many devices, the same number from each of {n} processes, {device} has \
                     {count} in all"
                ),
            };
            return Err(Error::Device(problem).into());
        }
        let first = (self.process() - processes.start) * share;
        Ok(Mesh { opened: self.opened.clone(), devices: chosen.into(), own: first..first + share })
    }

    /// Returns the kind of device that was opened.
    pub fn device(&self) -> &Device {
        &self.opened.device
    }

    /// Returns the folder that programs are loaded from, if any.
    pub fn programs(&self) -> Option<&Path> {
        self.opened.programs.as_deref()
    }

    /// Returns the number of replicas, those of all processes.
    pub fn replicas(&self) -> usize {
        self.devices.len()
    }

    /// Returns the replicas whose devices are this process's.
    pub fn own_replicas(&self) -> Range<usize> {
        self.own.clone()
    }

    /// Returns the number of devices, those of all processes.
    pub fn devices(&self) -> usize {
        self.opened.client.devices().len()
    }

    /// Returns the number of this process among those that opened the device together.
    pub fn process(&self) -> usize {
        self.opened.client.process()
    }

    /// Returns the number of processes that opened the device together.
    pub fn processes(&self) -> usize {
        self.opened.client.devices().last().map_or(1, |last| last + 1)
    }

    /// Lets process 0 do something that only it may do or decide, such as writing a file, and gives its outcome to all
    /// processes. All of them call this in the same order as their other calls. A single process just does it.
    ///
    /// # Errors
    /// The error of process 0, on all processes. With several it has the context [`OfAll`], and its
    /// [kind](crate::error::kind) everywhere. When the processes' store fails.
    pub fn lead<T: Serialize + DeserializeOwned>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        match &self.opened.led {
            Some(led) if !self.is_local() => led.next(act),
            _ => act(),
        }
    }

    /// Does the same as [`Mesh::lead`], for what only process 0 gets; the others get `None`.
    ///
    /// # Errors
    /// As for [`Mesh::lead`].
    pub fn on_first<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        let mut own = None;
        self.lead(|| {
            own = Some(act()?);
            Ok(())
        })?;
        Ok(own)
    }

    /// Checks that all processes pass the same text, such as the options of what they are about to do.
    ///
    /// # Errors
    /// On every process, when one text differs from that of process 0: names the process and the first line that differs. When
    /// the processes' store fails.
    pub fn agree(&self, name: &str, own: &str) -> Result<()> {
        match &self.opened.led {
            Some(led) if !self.is_local() => led.agree(name, own),
            _ => Ok(()),
        }
    }

    /// Gives all processes the bytes that process 0 has. The others' are not used.
    ///
    /// # Errors
    /// When a device or the processes' store fails.
    pub fn share(&self, own: Option<Vec<u8>>) -> Result<Vec<u8>> {
        if self.is_local() {
            return Ok(own.unwrap_or_default());
        }
        let length = self.lead(|| Ok(own.as_ref().map_or(0, Vec::len)))?;
        share::share(self, own.as_deref().filter(|_| self.process() == 0), length)
    }

    /// Reports whether all replicas are this process's.
    pub fn is_local(&self) -> bool {
        self.own.len() == self.devices.len()
    }

    /// Marks an error of a program as one of several processes, if it is.
    fn mark<T>(&self, result: Result<T>) -> Result<T> {
        match self.is_local() {
            true => result,
            false => result.context(OfSeveral),
        }
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

    /// Returns the memory use of a replica's device, if it is this process's and the runtime reports it.
    pub fn memory(&self, replica: usize) -> Option<Memory> {
        self.opened.client.memory(*self.devices.get(replica)?)
    }

    /// Returns the platform and its version as text.
    pub fn describe(&self) -> String {
        self.opened.client.describe()
    }

    /// Compiles a program for these devices.
    ///
    /// # Errors
    /// When the program is for another number of replicas, or the compiler refuses it. With several processes also when they
    /// compile different programs.
    pub fn compile(&self, program: Program) -> Result<Executable> {
        let (name, replicas) = (&program.signature.name, program.signature.replicas);
        ensure!(
            replicas == self.replicas(),
            "{name} is for {replicas} replicas, there are {}",
            self.replicas()
        );
        let compiled = self.opened.client.compile(&program, &self.devices);
        let loaded = compiled.with_context(|| format!("compiling {name}"))?;
        Ok(Executable { mesh: self.clone(), program, loaded })
    }

    /// Copies an array to every device. Every process gives an equal array.
    ///
    /// # Errors
    /// When a device refuses it, for example because its memory is full.
    pub fn replicate(&self, array: &Array) -> Result<Buffers> {
        self.put(array.shape(), self.own.clone().map(|_| array))
    }

    /// Copies one array to each device, in the order of the replicas. Those for other processes' devices are not used.
    ///
    /// # Errors
    /// When the number of arrays is not the number of replicas, when their shapes differ, or when a device refuses one.
    pub fn shard(&self, arrays: &[Array]) -> Result<Buffers> {
        ensure!(arrays.len() == self.replicas(), "{} arrays for {} replicas", arrays.len(), self.replicas());
        self.shard_own(&arrays[self.own.clone()])
    }

    /// Copies one array to each device of this process, in the order of [`Mesh::own_replicas`]. The other processes copy the
    /// arrays of their replicas, which have the same shape.
    ///
    /// # Errors
    /// When the number of arrays is not the number of own replicas, when their shapes differ, or when a device refuses one.
    pub fn shard_own(&self, arrays: &[Array]) -> Result<Buffers> {
        let own = self.own.len();
        ensure!(arrays.len() == own, "{} arrays for {own} replicas of this process", arrays.len());
        let shape = arrays[0].shape();
        for array in arrays {
            ensure!(array.shape() == shape, "replicas' arrays differ: {shape} and {}", array.shape());
        }
        self.put(shape, arrays.iter())
    }

    /// Copies an array for each own replica to its device.
    fn put<'a>(&self, shape: &Shape, arrays: impl Iterator<Item = &'a Array>) -> Result<Buffers> {
        let devices = self.devices[self.own.clone()].iter();
        let parts: Result<_> =
            devices.zip(arrays).map(|(device, array)| self.opened.client.put(*device, array)).collect();
        Ok(Buffers { mesh: self.clone(), shape: shape.clone(), parts: parts? })
    }
}
