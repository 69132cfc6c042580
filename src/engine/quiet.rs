//! Settings that XLA reads from the environment before its first use: how much it says, how many devices it makes.

/// Keeps XLA's own messages off the terminal unless they were asked for, and starts our own log.
#[cfg(feature = "cli")]
pub fn init(verbose: bool) {
    let asked = verbose || std::env::var_os("RUST_LOG").is_some();
    let default = if verbose { "info" } else { "warn" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default))
        .format_timestamp(None)
        .init();
    if !asked {
        hush();
    }
}

/// Keeps XLA's own messages off the terminal.
pub fn hush() {
    if std::env::var_os("TF_CPP_MIN_LOG_LEVEL").is_none() {
        set("TF_CPP_MIN_LOG_LEVEL", "3");
    }
    #[cfg(feature = "xla")]
    xla::set_min_log_level(xla::TfLogLevel::Fatal);
}

/// The flags of XLA's CPU backend, each unless the user's own XLA_FLAGS has it: the number of virtual devices, and how
/// much the compiler optimises. At level 1 programs compile in two thirds of the time and run as fast: their time goes
/// into the library's own matrix products.
pub fn set_cpu_flags(devices: usize) {
    let mut flags = std::env::var("XLA_FLAGS").unwrap_or_default();
    for (flag, value) in
        [("--xla_force_host_platform_device_count", devices), ("--xla_backend_optimization_level", 1)]
    {
        if !flags.contains(flag) {
            flags += &format!(" {flag}={value}");
        }
    }
    set("XLA_FLAGS", flags.trim());
}

/// Keeps a TPU's library from asking a machine that is no TPU VM for its metadata.
pub fn without_tpu() {
    for (name, value) in [
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v3-8"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_WORKER_ID", "0"),
        // No device is taken, so that several such processes may run.
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ] {
        if std::env::var_os(name).is_none() {
            set(name, value);
        }
    }
}

fn set(name: &str, value: &str) {
    // SAFETY: called at the start of the process, or under the lock of the first client's making; no other thread of
    // ours reads or writes the environment, and XLA's own threads start later.
    unsafe { std::env::set_var(name, value) }
}
