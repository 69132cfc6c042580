//! Devices of PJRT plugins: TPUs, GPUs, and any other device with a shared library that implements the PJRT C API.

mod aot;
mod api;
mod estimate;
mod executable;
#[expect(non_camel_case_types)]
mod ffi;
mod find;
mod gpu;
mod host;
mod kernels;
mod wire;

use std::any::Any;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};

pub use self::aot::{Compiled, Compiler, Usage};
pub use self::api::Value;
use self::api::{Api, Options};
// For the tests that give their readers damaged bytes.
pub use self::estimate::{Collective, Estimate, Trips};
use self::executable::UnloadedExecutable;
pub use self::find::Plugin;
pub(super) use self::find::cache as cache_folder;
pub use self::gpu::Gpu;
pub(super) use self::host::processor;
pub use self::host::{Lock, TPU_LOCK, gpu_files, nvidia_driver, package, process_name, tpu_files};
pub use self::kernels::Kernels;
#[doc(hidden)]
pub use self::wire::hlo::module_bytes;
#[doc(hidden)]
pub use super::cache::Entry as KeptProgram;
use super::{Buffer, Cache, Client, Loaded, Memory, cache};
use crate::engine::array::Array;
use crate::engine::program::{Format, Program, Signature, Target};
use crate::engine::shape::{DType, Shape};

/// Named options for creating a plugin's client, or named flags of its compiler.
pub type Settings = Vec<(String, Value)>;

/// Settings whose names begin with this are flags of the compiler, not options of the plugin.
const COMPILER_PREFIX: &str = "xla_";
/// The compiler flag that permits to leave out roundings, which GPUs do by default. We mean every rounding that we write.
const EXCESS_PRECISION: &str = "xla_allow_excess_precision";
/// The compiler flag with the folder of CUDA's device library and tools.
const CUDA_FOLDER: &str = "xla_gpu_cuda_data_dir";

/// A plugin's client. Buffers and executables keep it alive.
struct Shared {
    api: Api,
    client: *mut ffi::Client,
    /// The devices with their ids.
    devices: Vec<(*mut ffi::Device, i64)>,
    /// `tpu`, `cuda`, `cpu`, ...
    platform: String,
    flags: Settings,
    /// The folder of compiled programs.
    cache: Option<PathBuf>,
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

struct PluginBuffer {
    shared: Arc<Shared>,
    buffer: *mut ffi::Buffer,
}

// SAFETY: as for `Shared`; the buffer is freed once, when this is dropped.
unsafe impl Send for PluginBuffer {}
// SAFETY: as above.
unsafe impl Sync for PluginBuffer {}

struct PluginExecutable {
    shared: Arc<Shared>,
    executable: *mut ffi::LoadedExecutable,
    replicas: usize,
    inputs: usize,
    /// The number of results that the plugin reports and writes.
    outputs: usize,
}

// SAFETY: as for `PluginBuffer`.
unsafe impl Send for PluginExecutable {}
// SAFETY: as above.
unsafe impl Sync for PluginExecutable {}

/// Opens a plugin. A device may refuse a second client while one lives.
pub(super) fn client(plugin: &Plugin, settings: &Settings, cache: &Cache) -> Result<Box<dyn Client>> {
    let shared = open(plugin, &plugin.find()?, settings, cache::folder(cache))?;
    Ok(Box::new(PluginClient(Arc::new(shared))))
}

fn open(plugin: &Plugin, path: &Path, settings: &Settings, cache: Option<PathBuf>) -> Result<Shared> {
    let is_tpu = *plugin == Plugin::Tpu || path.file_name().is_some_and(|n| n == "libtpu.so");
    if is_tpu {
        find::tpu_device()?;
    }
    let explain =
        |e: anyhow::Error| if format!("{e:#}").contains("lockfile") { with_advice(path, e) } else { e };
    let api = Api::load(path).map_err(explain)?;
    let (flags, options): (Settings, Settings) =
        settings.iter().cloned().partition(|(name, _)| name.starts_with(COMPILER_PREFIX));
    let options = Options::new(&options)?;
    let create = ffi::Client_Create {
        create_options: options.as_ptr(),
        num_options: options.len(),
        ..Default::default()
    };
    // SAFETY: the options live during the call.
    let client = unsafe { api.call(create) }.map_err(|e| with_advice(path, e))?.client;
    // Dropping `shared` destroys the client if a later step fails.
    let mut shared = Shared { api, client, devices: Vec::new(), platform: String::new(), flags, cache };
    let api = &shared.api;
    // SAFETY: the client lives, and the name and the devices live as long as it does.
    let (platform, found) = unsafe {
        let name = api.call(ffi::Client_PlatformName { client, ..Default::default() })?;
        let found = api.call(ffi::Client_AddressableDevices { client, ..Default::default() })?;
        let devices = api::elements(found.addressable_devices, found.num_addressable_devices);
        (api::text(name.platform_name, name.platform_name_size), devices)
    };
    // SAFETY: as above.
    let with_id = |device: &*mut ffi::Device| Ok((*device, unsafe { device_id(api, *device) }?));
    let devices = found.iter().map(with_id).collect::<Result<_>>()?;
    (shared.platform, shared.devices) = (platform, devices);
    if is_gpu(&shared.platform) {
        shared.flags = with_gpu_defaults(path, &shared.flags);
    }
    Ok(shared)
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

/// # Safety
/// The device belongs to this plugin, and its client lives.
unsafe fn description(api: &Api, device: *mut ffi::Device) -> Result<*mut ffi::DeviceDescription> {
    let get = ffi::Device_GetDescription { device, ..Default::default() };
    // SAFETY: the caller's promise.
    Ok(unsafe { api.call(get) }?.device_description)
}

/// # Safety
/// As for [`description`].
unsafe fn device_id(api: &Api, device: *mut ffi::Device) -> Result<i64> {
    // SAFETY: the caller's promise; the description lives as long as the device.
    let found = unsafe {
        let device_description = description(api, device)?;
        api.call(ffi::DeviceDescription_Id { device_description, ..Default::default() })?
    };
    Ok(i64::from(found.id))
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
            let device_description = description(api, devices.first()?.0).ok()?;
            let get = ffi::DeviceDescription_Kind { device_description, ..Default::default() };
            let kind = api.call(get).ok()?;
            Some(api::text(kind.device_kind, kind.device_kind_size))
        }
    }

    /// Identifies everything that a compiled program depends on besides its module and options.
    fn fingerprint(&self) -> Vec<u8> {
        let Shared { api, devices, platform, .. } = &*self.0;
        let file = std::fs::metadata(api.path()).and_then(|m| Ok((m.len(), m.modified()?))).ok();
        let flags = ["XLA_FLAGS", "LIBTPU_INIT_ARGS"].map(std::env::var_os);
        // The CPU's compiler generates code for the machine that it runs on.
        let machine = (platform == "cpu").then(host::processor);
        let parts =
            (platform, self.version(), self.kind(), devices.len(), api.version(), file, flags, machine);
        format!("{parts:?}").into_bytes()
    }

    /// Takes ownership of a loaded executable.
    ///
    /// # Safety
    /// The executable belongs to this client, and nobody else frees it.
    unsafe fn wrap(
        &self,
        executable: *mut ffi::LoadedExecutable,
        signature: &Signature,
    ) -> Result<(PluginExecutable, UnloadedExecutable<'_>)> {
        let api = &self.0.api;
        let mut loaded = PluginExecutable {
            shared: self.0.clone(),
            executable,
            replicas: signature.replicas,
            inputs: signature.inputs.len(),
            outputs: 0,
        };
        let get = ffi::LoadedExecutable_GetExecutable { loaded_executable: executable, ..Default::default() };
        // SAFETY: the executable lives, and the caller has to free the object that the call returns.
        let unloaded = unsafe { UnloadedExecutable::new(api, api.call(get)?.executable) };
        // The plugin writes as many results as the executable has, whatever the signature says.
        loaded.outputs = unloaded.outputs()?;
        Ok((loaded, unloaded))
    }

    fn compile_uncached(
        &self,
        program: &Program,
        options: &[u8],
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
        unsafe { self.wrap(self.0.api.call(compile)?.executable, &program.signature) }
    }

    /// Loads an executable that [`UnloadedExecutable::serialize`] wrote.
    fn load(
        &self,
        bytes: &[u8],
        signature: &Signature,
    ) -> Result<(PluginExecutable, UnloadedExecutable<'_>)> {
        let load = ffi::Executable_DeserializeAndLoad {
            client: self.0.client,
            serialized_executable: bytes.as_ptr().cast(),
            serialized_executable_size: bytes.len(),
            ..Default::default()
        };
        // SAFETY: client and bytes live during the call; the executable has no other owner.
        unsafe { self.wrap(self.0.api.call(load)?.loaded_executable, signature) }
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

    fn device_count(&self) -> usize {
        self.0.devices.len()
    }

    fn target(&self) -> Target {
        match self.0.platform.as_str() {
            "cpu" => Target::Cpu,
            platform if is_gpu(platform) => Target::Gpu,
            _ => Target::Native,
        }
    }

    fn compile(&self, program: &Program) -> Result<Box<dyn Loaded>> {
        let Shared { devices, flags, .. } = &*self.0;
        let replicas = program.signature.replicas;
        let ids: Vec<i64> = devices.iter().take(replicas).map(|(_, id)| *id).collect();
        let options = wire::compile_options(replicas, Some(&ids), flags);
        let format = format_name(program.signature.format);
        let entry = self.0.cache.as_ref().map(|folder| {
            cache::Entry::new(folder, &[&self.fingerprint(), format.as_bytes(), &program.module, &options])
        });
        let (loaded, _) = cache::load_or_compile(
            entry,
            &program.signature.name,
            |bytes| self.load(bytes, &program.signature),
            || self.compile_uncached(program, &options),
            |(_, unloaded)| unloaded.serialize(),
        )?;
        Ok(Box::new(loaded))
    }

    fn put(&self, device: usize, array: &Array) -> Result<Box<dyn Buffer>> {
        let Shared { api, client, devices, .. } = &*self.0;
        let (device, _) = devices.get(device).ok_or_else(|| anyhow!("there is no device {device}"))?;
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
            device: *device,
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
        let (device, _) = self.0.devices.get(device)?;
        let stats = ffi::Device_MemoryStats { device: *device, ..Default::default() };
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

impl Buffer for PluginBuffer {
    fn get(&self, shape: &Shape) -> Result<Array> {
        let api = &self.shared.api;
        let mut bytes = vec![0; shape.bytes()];
        // Asks for row-major order, whatever layout the device uses.
        let order: Vec<i64> = (0..shape.rank() as i64).rev().collect();
        let mut layout = ffi::Buffer_MemoryLayout {
            tiled: ffi::Tiled {
                struct_size: size_of::<ffi::Tiled>(),
                extension_start: ptr::null_mut(),
                minor_to_major: order.as_ptr(),
                minor_to_major_size: order.len(),
                tile_dims: ptr::null(),
                tile_dim_sizes: ptr::null(),
                num_tiles: 0,
            },
            r#type: ffi::LAYOUT_TILED,
            ..Default::default()
        };
        let copy = ffi::Buffer_ToHostBuffer {
            src: self.buffer,
            host_layout: &raw mut layout,
            dst: bytes.as_mut_ptr().cast::<c_void>(),
            dst_size: bytes.len(),
            ..Default::default()
        };
        // SAFETY: buffer and layout live, and `bytes`, which has `dst_size` bytes, lives until the event is ready.
        unsafe { api.wait(api.call(copy)?.event) }?;
        Array::from_bytes(shape.clone(), bytes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for PluginBuffer {
    fn drop(&mut self) {
        // SAFETY: this value is the buffer's only owner.
        unsafe { self.shared.api.free(ffi::Buffer_Destroy { buffer: self.buffer, ..Default::default() }) };
    }
}

impl Loaded for PluginExecutable {
    fn execute(&self, arguments: &[Vec<&dyn Buffer>]) -> Result<Vec<Vec<Box<dyn Buffer>>>> {
        let api = &self.shared.api;
        let own = |b: &&dyn Buffer| match b.as_any().downcast_ref::<PluginBuffer>() {
            Some(b) if Arc::ptr_eq(&b.shared, &self.shared) => Ok(b.buffer),
            Some(_) => {
                Err(anyhow!("an argument belongs to another client of the device: use meshes that share one"))
            }
            None => Err(anyhow!("an argument is on another kind of device")),
        };
        let complete = |row: &Vec<&dyn Buffer>| row.len() == self.inputs;
        ensure!(
            arguments.len() == self.replicas && arguments.iter().all(complete),
            "the program needs {} rows of {} arguments",
            self.replicas,
            self.inputs
        );
        let lists: Vec<Vec<*mut ffi::Buffer>> =
            arguments.iter().map(|row| row.iter().map(own).collect()).collect::<Result<_>>()?;
        let inputs: Vec<*const *mut ffi::Buffer> = lists.iter().map(|row| row.as_ptr()).collect();
        let mut results = vec![vec![ptr::null_mut::<ffi::Buffer>(); self.outputs]; lists.len()];
        let outputs: Vec<*mut *mut ffi::Buffer> = results.iter_mut().map(|row| row.as_mut_ptr()).collect();
        let mut options = ffi::ExecuteOptions::default();
        let execute = ffi::LoadedExecutable_Execute {
            executable: self.executable,
            options: &raw mut options,
            argument_lists: inputs.as_ptr(),
            num_devices: lists.len(),
            num_args: self.inputs,
            output_lists: outputs.as_ptr(),
            ..Default::default()
        };
        // SAFETY: the executable lives, and the lists live during the call. The numbers of arguments and of results are those of
        // the program's signature and of the plugin's report. The buffers belong to the executable's client.
        unsafe { api.call(execute) }?;
        let boxed = |buffer: *mut ffi::Buffer| {
            ensure!(!buffer.is_null(), "the plugin returned no buffer for a result");
            Ok(Box::new(PluginBuffer { shared: self.shared.clone(), buffer }) as Box<dyn Buffer>)
        };
        results.into_iter().map(|row| row.into_iter().map(boxed).collect()).collect()
    }
}

impl Drop for PluginExecutable {
    fn drop(&mut self) {
        let destroy = ffi::LoadedExecutable_Destroy { executable: self.executable, ..Default::default() };
        // SAFETY: this value is the executable's only owner.
        unsafe { self.shared.api.free(destroy) };
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
