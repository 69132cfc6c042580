//! Devices of PJRT plugins: TPUs, GPUs, and any other device with a shared library that implements the PJRT C API.

mod aot;
mod api;
mod devices;
mod estimate;
mod executable;
#[expect(non_camel_case_types)]
mod ffi;
mod find;
mod gpu;
mod host;
mod kernels;
mod loaded;
mod store;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicI32;

use anyhow::{Context, Result, ensure};

pub use self::aot::{Compiled, Compiler, Usage};
pub use self::api::Value;
use self::api::{Api, Options};
use self::devices::{Device, description};
// For the tests that give their readers damaged bytes.
pub use self::estimate::{Collective, Estimate, Trips};
use self::executable::UnloadedExecutable;
pub use self::find::Plugin;
pub(super) use self::find::cache as cache_folder;
pub use self::gpu::Gpu;
#[cfg(feature = "xla")]
pub(super) use self::host::processor;
pub use self::host::{Lock, TPU_LOCK, gpu_files, nvidia_driver, package, process_name, tpu_files};
pub use self::kernels::Kernels;
use self::loaded::{PluginBuffer, PluginExecutable};
use self::store::Callbacks;
#[doc(hidden)]
pub use self::wire::hlo::module_bytes;
#[doc(hidden)]
pub use super::cache::Entry as KeptProgram;
use super::processes::Agreement;
use super::{Buffer, Cache, Client, Loaded, Memory, Processes, cache};
use crate::engine::array::Array;
use crate::engine::program::{Format, Program, Signature, Target};
use crate::engine::shape::DType;

/// Named options for creating a plugin's client, or named flags of its compiler.
pub type Settings = Vec<(String, Value)>;

/// Settings whose names begin with this are flags of the compiler, not options of the plugin.
const COMPILER_PREFIX: &str = "xla_";
/// The compiler flag that permits to leave out roundings, which GPUs do by default. We mean every rounding that we write.
const EXCESS_PRECISION: &str = "xla_allow_excess_precision";
/// The compiler flag with the folder of CUDA's device library and tools.
const CUDA_FOLDER: &str = "xla_gpu_cuda_data_dir";
/// The compiler flag that divides the timing of kernels among the processes, which then wait for each other's results.
const SHARED_TIMING: &str = "xla_gpu_shard_autotuning";

/// A plugin's client. Buffers and executables keep it alive.
struct Shared {
    api: Api,
    client: *mut ffi::Client,
    /// The devices of all processes.
    devices: Vec<Device>,
    /// This process's number.
    process: usize,
    /// `tpu`, `cuda`, `cpu`, ...
    platform: String,
    flags: Settings,
    /// The folder of compiled programs.
    cache: Option<PathBuf>,
    /// What the processes agree on, if they are several.
    agreement: Option<Agreement>,
    /// The number of calls so far of programs that run in several processes.
    launches: AtomicI32,
    /// The plugin calls them while the client lives.
    _callbacks: Option<Callbacks>,
}

// SAFETY: the C API may be called from any thread. The pointers stay valid as long as the client, which is destroyed once.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: this value is the client's only owner: buffers and executables hold `Shared`.
        unsafe { self.api.free(ffi::Client_Destroy { client: self.client, ..Default::default() }) };
    }
}

struct PluginClient(Arc<Shared>);

/// Opens a plugin, together with the other ones of several processes. A device may refuse a second client while one lives.
pub(super) fn client(
    plugin: &Plugin,
    settings: &Settings,
    cache: &Cache,
    processes: Option<&Processes>,
) -> Result<Box<dyn Client>> {
    let shared = open(plugin, &plugin.find()?, settings, cache::folder(cache), processes)?;
    Ok(Box::new(PluginClient(Arc::new(shared))))
}

fn open(
    plugin: &Plugin,
    path: &Path,
    settings: &Settings,
    cache: Option<PathBuf>,
    processes: Option<&Processes>,
) -> Result<Shared> {
    let is_tpu = *plugin == Plugin::Tpu || path.file_name().is_some_and(|n| n == "libtpu.so");
    if is_tpu {
        find::tpu_device()?;
    }
    let explain =
        |e: anyhow::Error| if format!("{e:#}").contains("lockfile") { with_advice(path, e) } else { e };
    let api = Api::load(path).map_err(explain)?;
    let (flags, options): (Settings, Settings) =
        settings.iter().cloned().partition(|(name, _)| name.starts_with(COMPILER_PREFIX));
    // A TPU's runtime finds the other processes by itself.
    let through_store = processes.filter(|_| !is_tpu);
    let options = Options::new(&with_processes(options, through_store)?)?;
    let mut create = ffi::Client_Create {
        create_options: options.as_ptr(),
        num_options: options.len(),
        ..Default::default()
    };
    let callbacks = through_store.map(|processes| Callbacks::new(&processes.store));
    if let Some(callbacks) = &callbacks {
        callbacks.add_to(&mut create);
    }
    // SAFETY: the options live during the call, and the store as long as the client.
    let client = unsafe { api.call(create) }.map_err(|e| with_advice(path, e))?.client;
    // Dropping `shared` destroys the client if a later step fails.
    let mut shared = Shared {
        api,
        client,
        devices: Vec::new(),
        process: 0,
        platform: String::new(),
        flags,
        cache,
        agreement: processes.map(Agreement::new),
        launches: AtomicI32::new(0),
        _callbacks: callbacks,
    };
    let api = &shared.api;
    // SAFETY: the client lives, and the name as long as it does.
    let (platform, found) = unsafe {
        let name = api.call(ffi::Client_PlatformName { client, ..Default::default() })?;
        let platform = api::text(name.platform_name, name.platform_name_size);
        (platform, devices::find(api, client, processes)?)
    };
    shared.platform = platform;
    (shared.process, shared.devices) = found;
    if is_gpu(&shared.platform) {
        shared.flags = with_gpu_defaults(path, &shared.flags);
    }
    Ok(shared)
}

/// Adds the options by which a plugin knows its place among the processes.
fn with_processes(mut options: Settings, processes: Option<&Processes>) -> Result<Settings> {
    if let Some(Processes { index, count, .. }) = processes {
        for (name, number) in [("node_id", *index), ("num_nodes", *count)] {
            ensure!(options.iter().all(|(given, _)| given != name), "option {name} is set by the processes");
            options.push((name.into(), Value::Int(number as i64)));
        }
    }
    Ok(options)
}

/// Adds the flags that a GPU's compiler needs, unless they are given.
fn with_gpu_defaults(plugin: &Path, flags: &Settings) -> Settings {
    let folder = find::cuda_folder(plugin).map(|folder| (CUDA_FOLDER, Value::Text(folder)));
    let defaults = folder.into_iter().chain([(EXCESS_PRECISION, Value::Bool(false))]);
    let missing = defaults.filter(|(name, _)| flags.iter().all(|(given, _)| given != name));
    flags.iter().cloned().chain(missing.map(|(name, value)| (name.to_string(), value))).collect()
}

/// Reports whether a platform is one of GPUs.
fn is_gpu(platform: &str) -> bool {
    ["cuda", "rocm", "gpu"].contains(&platform)
}

/// Adds advice to the error of a device that does not open.
fn with_advice(path: &Path, error: anyhow::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    let hint = if text.contains("already in use") || text.contains("lockfile") || text.contains("busy") {
        "another process holds the device: end it (the message names it, or: sudo lsof -w /dev/accel0), and remove \
         /tmp/libtpu_lockfile if no process holds it"
    } else if text.contains("Unexpected option") {
        "this plugin has no such option: leave it out"
    } else if text.contains("No visible GPU")
        || text.contains("CUDA_ERROR_NO_DEVICE")
        || text.contains("no CUDA-capable device")
    {
        "no NVIDIA GPU is visible: nvidia-smi must list one, and CUDA_VISIBLE_DEVICES must not hide it"
    } else if text.contains("libcuda") || text.contains("CUDA driver") {
        "the NVIDIA driver is missing or too old for this plugin: see nvidia-smi"
    } else if text.contains("RESOURCE_EXHAUSTED") || text.contains("out of memory") {
        "the device's memory is in use: see nvidia-smi, or reserve less of it with ,memory_fraction=0.5 or ,preallocate=false"
    } else {
        "see docs/devices.md"
    };
    error.context(format!("{} cannot open a device ({hint})", path.display()))
}

/// Returns the C API's number for an element type.
fn element_type(dtype: DType) -> i32 {
    match dtype {
        DType::Pred => 1,
        DType::S32 => 4,
        DType::U8 => 6,
        DType::U32 => 8,
        DType::U64 => 9,
        DType::F32 => 11,
        DType::Bf16 => 13,
    }
}

/// Returns the C API's name of a module's format.
fn format_name(format: Format) -> &'static str {
    match format {
        Format::Hlo => "hlo",
        Format::StableHlo => "mlir",
    }
}

/// Returns a program as the C API's structure. The structure points into the program, which must outlive it.
fn to_ffi(program: &Program) -> ffi::Program {
    let format = format_name(program.signature.format);
    ffi::Program {
        code: program.module.as_ptr().cast_mut().cast(),
        code_size: program.module.len(),
        format: format.as_ptr().cast(),
        format_size: format.len(),
        ..Default::default()
    }
}

impl PluginClient {
    /// Returns the platform's version, which may have several lines.
    fn version(&self) -> String {
        let Shared { api, client, .. } = &*self.0;
        let get = ffi::Client_PlatformVersion { client: *client, ..Default::default() };
        // SAFETY: the client lives, and the string lives as long as it does.
        let text = unsafe { api.call(get).map(|v| api::text(v.platform_version, v.platform_version_size)) };
        text.unwrap_or_default()
    }

    /// Returns the kind of the first device.
    fn kind(&self) -> Option<String> {
        let Shared { api, devices, .. } = &*self.0;
        // SAFETY: the client lives, and device, description and string live as long as it does.
        unsafe {
            let device_description = description(api, devices.first()?.pointer).ok()?;
            let get = ffi::DeviceDescription_Kind { device_description, ..Default::default() };
            let kind = api.call(get).ok()?;
            Some(api::text(kind.device_kind, kind.device_kind_size))
        }
    }

    /// Identifies everything that a compiled program depends on besides its module and options.
    fn fingerprint(&self) -> Vec<u8> {
        let Shared { api, platform, .. } = &*self.0;
        let file = std::fs::metadata(api.path()).and_then(|m| Ok((m.len(), m.modified()?))).ok();
        let flags = ["XLA_FLAGS", "LIBTPU_INIT_ARGS"].map(std::env::var_os);
        // The CPU's compiler generates code for the machine that it runs on.
        let machine = (platform == "cpu").then(host::processor);
        let parts =
            (platform, self.version(), self.kind(), self.devices(), api.version(), file, flags, machine);
        format!("{parts:?}").into_bytes()
    }

    fn compile_uncached(
        &self,
        program: &Program,
        options: &[u8],
        own: &[*mut ffi::Device],
    ) -> Result<(PluginExecutable, UnloadedExecutable<'_>)> {
        let module = to_ffi(program);
        let compile = ffi::Client_Compile {
            client: self.0.client,
            program: &raw const module,
            compile_options: options.as_ptr().cast(),
            compile_options_size: options.len(),
            ..Default::default()
        };
        // SAFETY: client, program and options live during the call; the executable has no other owner.
        unsafe {
            PluginExecutable::new(&self.0, self.0.api.call(compile)?.executable, &program.signature, own)
        }
    }

    /// Loads an executable that [`UnloadedExecutable::serialize`] wrote.
    fn load(
        &self,
        bytes: &[u8],
        signature: &Signature,
        own: &[*mut ffi::Device],
    ) -> Result<(PluginExecutable, UnloadedExecutable<'_>)> {
        let load = ffi::Executable_DeserializeAndLoad {
            client: self.0.client,
            serialized_executable: bytes.as_ptr().cast(),
            serialized_executable_size: bytes.len(),
            ..Default::default()
        };
        // SAFETY: client and bytes live during the call; the executable has no other owner.
        unsafe { PluginExecutable::new(&self.0, self.0.api.call(load)?.loaded_executable, signature, own) }
    }
}

impl Client for PluginClient {
    fn describe(&self) -> String {
        let Shared { api, devices, platform, .. } = &*self.0;
        let version = self.version();
        let first = version.lines().next().unwrap_or_default().trim();
        let (major, minor) = api.version();
        format!(
            "{platform}: {} x {} ({first}; PJRT {major}.{minor}, {})",
            devices.len(),
            self.kind().unwrap_or_default(),
            api.path().display()
        )
    }

    fn devices(&self) -> Vec<usize> {
        self.0.devices.iter().map(|device| device.process).collect()
    }

    fn process(&self) -> usize {
        self.0.process
    }

    fn target(&self) -> Target {
        match self.0.platform.as_str() {
            "cpu" => Target::Cpu,
            platform if is_gpu(platform) => Target::Gpu,
            _ => Target::Native,
        }
    }

    fn compile(&self, program: &Program, devices: &[usize]) -> Result<Box<dyn Loaded>> {
        let Shared { flags, process, agreement, .. } = &*self.0;
        let Signature { name, graph, replicas, format, .. } = &program.signature;
        let devices: Vec<Device> = devices.iter().map(|device| self.0.devices[*device]).collect();
        let ids: Vec<i64> = devices.iter().map(|device| device.id).collect();
        let own = devices.iter().filter(|device| device.process == *process);
        let own: Vec<*mut ffi::Device> = own.map(|device| device.pointer).collect();
        let mut flags = flags.clone();
        // Others neither compile nor load a program of this process alone.
        let is_local = own.len() == devices.len();
        if is_local && agreement.is_some() && is_gpu(&self.0.platform) {
            flags.push((SHARED_TIMING.into(), Value::Bool(false)));
        }
        let agreement = agreement.as_ref().filter(|_| !is_local);
        let options = wire::compile_options(*replicas, Some(&ids), &flags);
        let format = format_name(*format);
        let entry = self.0.cache.as_ref().map(|folder| {
            cache::Entry::new(folder, &[&self.fingerprint(), format.as_bytes(), &program.module, &options])
        });
        let (loaded, _) = cache::load_or_compile(
            entry,
            name,
            |bytes| self.load(bytes, &program.signature, &own),
            |loaded| agreement.map_or(Ok(loaded), |all| all.all_loaded(&format!("{name} {graph}"), loaded)),
            || self.compile_uncached(program, &options, &own),
            |(_, unloaded)| unloaded.serialize(),
        )?;
        Ok(Box::new(loaded))
    }

    fn put(&self, device: usize, array: &Array) -> Result<Box<dyn Buffer>> {
        let Shared { api, client, devices, .. } = &*self.0;
        let device = devices.get(device).with_context(|| format!("there is no device {device}"))?;
        let dims: Vec<i64> = array.dims().iter().map(|d| *d as i64).collect();
        // With these semantics the plugin copies the data before the call returns. The transfer itself may go on in the
        // background.
        let put = ffi::Client_BufferFromHostBuffer {
            client: *client,
            data: array.bytes().as_ptr().cast(),
            r#type: element_type(array.shape().dtype),
            dims: dims.as_ptr(),
            num_dims: dims.len(),
            host_buffer_semantics: ffi::ONLY_DURING_CALL,
            device: device.pointer,
            ..Default::default()
        };
        // SAFETY: client and device live, and the array lives during the call. It has as many bytes as its sizes and type
        // need. The event has no other owner.
        let buffer = unsafe {
            let put = api.call(put)?;
            let buffer = PluginBuffer { shared: self.0.clone(), buffer: put.buffer };
            api.wait(put.done_with_host_buffer)?;
            buffer
        };
        Ok(Box::new(buffer))
    }

    fn memory(&self, device: usize) -> Option<Memory> {
        let device = self.0.devices.get(device).filter(|device| device.process == self.0.process)?;
        let stats = ffi::Device_MemoryStats { device: device.pointer, ..Default::default() };
        // SAFETY: the device lives.
        let stats = unsafe { self.0.api.call(stats) }.ok()?;
        let optional = |value: i64, is_set: bool| is_set.then_some(value as u64);
        Some(Memory {
            used: stats.bytes_in_use as u64,
            peak: optional(stats.peak_bytes_in_use, stats.peak_bytes_in_use_is_set),
            limit: optional(stats.bytes_limit, stats.bytes_limit_is_set),
        })
    }
}

/// Describes a plugin without opening its devices.
///
/// # Errors
/// When the file is missing, is not a plugin, or implements another major version of the API.
pub fn inspect(plugin: &Plugin) -> Result<String> {
    let api = Api::open(&plugin.find()?)?;
    let (major, minor) = api.version();
    Ok(format!("{} (PJRT {major}.{minor})", api.path().display()))
}
