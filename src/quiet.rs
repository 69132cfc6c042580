//! Settings that XLA reads from the environment before its first use.

/// The number of virtual CPU devices, unless the user's own XLA_FLAGS says.
pub fn set_device_count(devices: usize) {
    const FLAG: &str = "--xla_force_host_platform_device_count";
    let flags = std::env::var("XLA_FLAGS").unwrap_or_default();
    if !flags.contains(FLAG) {
        set("XLA_FLAGS", format!("{flags} {FLAG}={devices}").trim());
    }
}

fn set(name: &str, value: &str) {
    // SAFETY: called before the first client is made, under its lock, when no other thread of ours reads the
    // environment; XLA's own threads start later.
    unsafe { std::env::set_var(name, value) }
}
