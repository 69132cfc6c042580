//! The PJRT plugin that tests use besides the linked CPU backend.
#![allow(dead_code)]

use std::path::Path;

/// Returns the device in `VNCA_TEST_DEVICE`, else the CPU plugin that `tools/setup --tests` installs, with eight devices. Returns
/// `None` if neither exists. Tests that need a plugin are then skipped.
pub fn device() -> Option<String> {
    if let Ok(device) = std::env::var("VNCA_TEST_DEVICE") {
        return Some(device);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".xla/plugin/pjrt_c_api_cpu_plugin.so");
    if !path.exists() {
        eprintln!("skipped: no plugin found; tools/setup --tests installs one");
        return None;
    }
    Some(format!("{},cpu_device_count=8", path.display()))
}

/// Returns the CPU plugin with collectives between processes that `tools/setup --tests` builds, with this number of devices in each
/// process. Returns `None` if it does not exist. Tests that need it are then skipped.
pub fn of_processes(devices: usize) -> Option<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".xla/cpu-processes/plugin.so");
    if !path.exists() {
        eprintln!(
            "skipped: no plugin for several processes found; tools/setup --tests builds it if it finds Gloo"
        );
        return None;
    }
    Some(format!("{},num_devices={devices}", path.display()))
}
