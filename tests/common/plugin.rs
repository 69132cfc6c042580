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
