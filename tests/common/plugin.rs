//! The plugin that tests run on beside the CPU.
#![allow(dead_code)]

use std::path::Path;

/// `VNCA_TEST_DEVICE`, else the CPU plugin that `tools/setup --tests` gets, with eight devices. Where there is neither, the
/// tests that need one say so and are left out.
pub fn device() -> Option<String> {
    if let Ok(device) = std::env::var("VNCA_TEST_DEVICE") {
        return Some(device);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".xla/plugin/pjrt_c_api_cpu_plugin.so");
    if !path.exists() {
        eprintln!("left out: no plugin at hand; tools/setup --tests gets one");
        return None;
    }
    Some(format!("{},cpu_device_count=8", path.display()))
}
