//! NVIDIA GPUs that programs can be compiled for without having one.
//!
//! XLA's GPU compiler reads what it has to know about a GPU from a text, `stream_executor.GpuTargetConfigProto`
//! (xla/stream_executor/device_description.proto).

/// A GPU, described by the numbers that XLA's compiler and a report need.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// The name on the command line, such as `h100`.
    pub name: &'static str,
    /// The name that the driver reports.
    pub description: &'static str,
    /// Main memory in bytes.
    pub memory: i64,
    /// Bandwidth of the main memory in bytes per second.
    pub bandwidth: i64,
    /// The second-level cache in bytes.
    l2: i64,
    /// Streaming multiprocessors, and the f32 units of each.
    cores: i64,
    fpus_per_core: i64,
    ghz: f64,
    /// Shared memory of a multiprocessor in bytes, and the most that a block can have of it.
    shared_per_core: i64,
    shared_per_block: i64,
    /// The major number of the compute capability. The minor number of all of these is 0.
    capability: i64,
}

const A100: Gpu = Gpu {
    name: "a100",
    description: "NVIDIA A100-SXM4-80GB",
    memory: 85_100_068_864,
    bandwidth: 2_039_040_000_000,
    l2: 41_943_040,
    cores: 108,
    fpus_per_core: 64,
    ghz: 1.41,
    shared_per_core: 167_936,
    shared_per_block: 166_912,
    capability: 8,
};

const H100: Gpu = Gpu {
    name: "h100",
    description: "NVIDIA H100 80GB HBM3",
    memory: 84_942_979_072,
    bandwidth: 3_352_320_000_000,
    l2: 52_428_800,
    cores: 132,
    fpus_per_core: 128,
    ghz: 1.98,
    shared_per_core: 233_472,
    shared_per_block: 232_448,
    capability: 9,
};

const H200: Gpu = Gpu {
    name: "h200",
    description: "NVIDIA H200 141GB HBM3e",
    memory: 151_397_597_184,
    bandwidth: 4_800_000_000_000,
    ..H100
};

const B200: Gpu = Gpu {
    name: "b200",
    description: "NVIDIA B200",
    memory: 191_514_411_008,
    bandwidth: 7_672_320_000_000,
    l2: 132_644_864,
    cores: 148,
    ghz: 1.965,
    capability: 10,
    ..H100
};

impl Gpu {
    /// The GPUs, oldest first.
    pub const ALL: [Gpu; 4] = [A100, H100, H200, B200];

    /// Returns the GPU with a name, if it is known.
    pub fn named(name: &str) -> Option<Gpu> {
        Gpu::ALL.into_iter().find(|gpu| gpu.name == name)
    }

    /// Returns the text of the `GpuTargetConfigProto`. The versions are those of CUDA 13.0 and cuDNN 9.10, which decide what the
    /// compiler may use.
    pub fn target_config(&self) -> String {
        let Gpu { description, memory, bandwidth, l2, cores, fpus_per_core, ghz, .. } = self;
        let Gpu { shared_per_core, shared_per_block, capability, .. } = self;
        format!(
            r#"gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared_per_block}
  shared_memory_per_core: {shared_per_core}
  core_count: {cores}
  fpus_per_core: {fpus_per_core}
  clock_rate_ghz: {ghz}
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
  l2_cache_size: {l2}
  cuda_compute_capability {{ major: {capability} }}
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{description}"
"#
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_config_has_the_numbers_of_its_gpu() {
        let text = Gpu::named("h200").unwrap().target_config();
        for line in [
            "shared_memory_per_core: 233472",
            "shared_memory_per_block_optin: 232448",
            "core_count: 132",
            "clock_rate_ghz: 1.98",
            "memory_bandwidth: 4800000000000",
            "device_memory_size: 151397597184",
            "cuda_compute_capability { major: 9 }",
            "device_description_str: \"NVIDIA H200 141GB HBM3e\"",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
        assert_eq!(text.matches('{').count(), text.matches('}').count());
        assert_eq!(Gpu::named("h100:8"), None);
    }
}
