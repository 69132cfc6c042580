//! Compiles programs ahead of time, for devices that this computer need not have.

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::api::{self, Api, Options, Value};
use super::estimate::{Estimate, Trips};
use super::executable::UnloadedExecutable;
use super::gpu::Gpu;
use super::{Plugin, Settings, ffi, to_ffi, wire, with_gpu_defaults};
use crate::engine::program::Program;
use crate::error::{Error, Tag};

/// Topologies for error messages.
const EXAMPLES: &str = "v2:2x2, v3:2x2, v4:2x2x1, v5e:2x4, v6e:2x4 (TPUs), a100, h100, h200, b200 (GPUs)";

/// The compiler of a PJRT plugin.
pub struct Compiler {
    api: Api,
}

/// The device memory that a compiled program needs, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// All arguments.
    pub arguments: i64,
    /// All outputs.
    pub outputs: i64,
    /// The part of the arguments that outputs take over.
    pub donated: i64,
    /// Intermediate values.
    pub temporaries: i64,
    /// The program's code.
    pub code: i64,
}

impl Usage {
    /// Returns the bytes that the program needs in total.
    pub fn total(&self) -> i64 {
        self.arguments + self.outputs - self.donated + self.temporaries + self.code
    }
}

/// A compiled program's memory use, costs and optimized module.
pub struct Compiled {
    /// Device memory.
    pub usage: Usage,
    /// XLA's cost analysis by its names, such as flops and bytes accessed. XLA counts a loop's body once. Empty where the plugin
    /// has no cost analysis of a program that no device holds, as the CUDA plugin.
    pub costs: Vec<(String, f64)>,
    /// The optimized module, a serialized `HloModuleProto`.
    pub module: Vec<u8>,
    /// Number of hosts whose devices run the program.
    pub hosts: usize,
}

impl Compiled {
    /// Estimates cycles, bytes, collectives and kernels.
    ///
    /// # Errors
    /// When the module is not well-formed.
    pub fn estimate(&self, trips: Trips) -> Result<Estimate> {
        Estimate::from_module(&wire::hlo::Module::read(&self.module)?, trips)
    }
}

impl Compiler {
    /// Loads a plugin's compiler, without opening a device.
    ///
    /// # Errors
    /// [`Error::Device`] when the file is missing or is not a plugin.
    pub fn load(plugin: &Plugin) -> Result<Compiler> {
        let api = plugin.find().and_then(|path| Api::load(&path));
        Ok(Compiler { api: api.tag(Error::Device)? })
    }

    /// Returns the plugin's file.
    pub fn path(&self) -> &std::path::Path {
        self.api.path()
    }

    /// Compiles a program for a named topology, with compiler flags. The topology is one of TPUs, such as `v3:2x2`, or the name of
    /// a [`Gpu`]. Of GPUs there are as many as the program has replicas.
    ///
    /// # Errors
    /// When there is no such topology, the topology has fewer devices than replicas, or the compiler refuses the program.
    pub fn compile(&self, topology: &str, program: &Program, flags: &Settings) -> Result<Compiled> {
        let api = &self.api;
        let replicas = program.signature.replicas;
        let gpu = Gpu::named(topology);
        let flags = if gpu.is_some() { with_gpu_defaults(api.path(), flags) } else { flags.clone() };
        let topology = Topology::create(api, topology, gpu, replicas).with_context(|| {
            format!("{} has no topology {topology:?}; examples are {EXAMPLES}", api.path().display())
        })?;
        let devices = topology.devices()?;
        ensure!(
            replicas <= devices.len(),
            "{replicas} replicas need as many devices, the topology has {}",
            devices.len()
        );
        let ids: Vec<i64> = devices[..replicas].iter().map(|(_, id)| *id).collect();
        // The devices are in the order of their hosts.
        let hosts = devices[..replicas].chunk_by(|(a, _), (b, _)| a == b).count();
        let module = to_ffi(program);
        let options = wire::compile_options(replicas, Some(&ids), &flags);
        // SAFETY: topology, program and options live during the call. The executable has no other owner.
        let executable = unsafe {
            let compiled = api.call(ffi::Compile {
                topology: topology.topology,
                program: &raw const module,
                compile_options: options.as_ptr().cast(),
                compile_options_size: options.len(),
                ..Default::default()
            })?;
            UnloadedExecutable::new(api, compiled.executable)
        };
        let costs =
            executable.costs().or_else(|error| match format!("{error:#}").contains("not supported") {
                true => Ok(Vec::new()),
                false => Err(error),
            })?;
        Ok(Compiled { usage: executable.usage()?, costs, module: executable.module()?, hosts })
    }
}

struct Topology<'a> {
    api: &'a Api,
    topology: *mut ffi::TopologyDescription,
}

impl<'a> Topology<'a> {
    fn create(api: &'a Api, name: &str, gpu: Option<Gpu>, replicas: usize) -> Result<Topology<'a>> {
        // The numbers of slices, of hosts in a slice and of GPUs in a host.
        let gpus = format!("1x1x{replicas}");
        let (name, options) = match gpu {
            Some(gpu) => {
                let target = ("target_config".to_string(), Value::Text(gpu.target_config()));
                (gpus.as_str(), vec![target, ("topology".to_string(), Value::Text(gpus.clone()))])
            }
            None => (name, Settings::new()),
        };
        let options = Options::new(&options)?;
        // SAFETY: name and options live during the call. The topology has no other owner.
        let created = unsafe {
            api.call(ffi::TopologyDescription_Create {
                topology_name: name.as_ptr().cast(),
                topology_name_size: name.len(),
                create_options: options.as_ptr(),
                num_options: options.len(),
                ..Default::default()
            })?
        };
        Ok(Topology { api, topology: created.topology })
    }

    /// Returns each device's host and number, in the order of the replicas of a mesh: by host, then by number.
    fn devices(&self) -> Result<Vec<(i32, i64)>> {
        // SAFETY: the topology lives, and its descriptions live as long as it does.
        let descriptions = unsafe {
            let list = self.api.call(ffi::TopologyDescription_GetDeviceDescriptions {
                topology: self.topology,
                ..Default::default()
            })?;
            api::elements(list.descriptions, list.num_descriptions)
        };
        let device = |description: &*mut ffi::DeviceDescription| {
            let device_description = *description;
            let id = ffi::DeviceDescription_Id { device_description, ..Default::default() };
            let process = ffi::DeviceDescription_ProcessIndex { device_description, ..Default::default() };
            // SAFETY: as above.
            let (id, process) = unsafe { (self.api.call(id)?.id, self.api.call(process)?.process_index) };
            Ok((process, i64::from(id)))
        };
        let mut devices = descriptions.iter().map(device).collect::<Result<Vec<_>>>()?;
        devices.sort_unstable();
        Ok(devices)
    }
}

impl Drop for Topology<'_> {
    fn drop(&mut self) {
        let destroy = ffi::TopologyDescription_Destroy { topology: self.topology, ..Default::default() };
        // SAFETY: this value is the topology's only owner.
        unsafe { self.api.free(destroy) };
    }
}
