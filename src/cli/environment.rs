//! The log, and defaults for environment variables that libraries read.

use std::env;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::engine::xla_log;

/// Hides the messages of XLA and of plugins.
const HIDE_MESSAGES: [(&str, &str); 1] = [("TF_CPP_MIN_LOG_LEVEL", "3")];

/// Shows all messages of XLA and of plugins.
const SHOW_MESSAGES: [(&str, &str); 1] = [("TF_CPP_MIN_LOG_LEVEL", "0")];

/// Keeps libtpu from querying TPU metadata on a computer that is not a TPU VM.
#[cfg(feature = "xla")]
pub const WITHOUT_TPU: [(&str, &str); 6] = [
    ("TPU_SKIP_MDS_QUERY", "1"),
    ("TPU_ACCELERATOR_TYPE", "v3-8"),
    ("TPU_WORKER_HOSTNAMES", "localhost"),
    ("TPU_WORKER_ID", "0"),
    // Several of these processes may run at once, because none uses a device.
    ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    // It tries to move its code to huge pages, cannot, and writes that to stderr whatever the level of its log.
    ("LIBTPU_INIT_ARGS", "--hugepage_text=false"),
];

/// Starts the log. Hides XLA's own messages unless `verbose` or `RUST_LOG` requests them.
pub fn start_log(verbose: bool) {
    let asked = verbose || env::var_os("RUST_LOG").is_some();
    let default = if verbose { "info" } else { "warn" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default))
        .format_timestamp(None)
        .init();
    if asked {
        set_defaults(&SHOW_MESSAGES);
    } else {
        set_defaults(&HIDE_MESSAGES);
        xla_log::hide_messages();
    }
}

/// Sets variables that the user has not set, for libraries that are loaded later. Does nothing if the process has several
/// threads: another thread could read the environment at the same time.
pub fn set_defaults(variables: &[(&str, &str)]) {
    if !is_alone() {
        log::info!("the process has several threads: its environment stays unchanged");
        return;
    }
    for (name, value) in variables.iter().filter(|(name, _)| env::var_os(name).is_none()) {
        // SAFETY: this is the only thread, so nobody else reads or writes the environment.
        unsafe { env::set_var(name, value) };
    }
}

/// Reports whether the command line has an option. Its name is without dashes.
pub fn is_given(option: &str) -> bool {
    let is_it = |word: &str| word.strip_prefix("--").and_then(|word| word.split('=').next()) == Some(option);
    env::args_os().any(|word| is_it(&word.to_string_lossy()))
}

/// Reports whether the process was started with a signal ignored, as under `nohup`. Reads `/proc/self/status`.
pub fn ignores(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    (1..=64).contains(&signal) && mask >> (signal - 1) & 1 == 1
}

/// Makes SIGTERM and SIGINT end the first process of a container. The system ignores these signals there unless the process
/// handles them.
pub fn end_on_signals_as_first_process() {
    if std::process::id() != 1 {
        return;
    }
    for signal in [SIGTERM, SIGINT] {
        let always = Arc::new(AtomicBool::new(true));
        if let Err(error) = flag::register_conditional_shutdown(signal, 128 + signal, always) {
            log::warn!("signal {signal} will not end this process: {error}");
        }
    }
}

/// Reports whether the process has only one thread. Reads `/proc/self/task`.
fn is_alone() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_set_in_a_process_with_several_threads() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || ended.recv());
        set_defaults(&[("VNCA_OF_A_TEST", "1")]);
        assert_eq!(env::var_os("VNCA_OF_A_TEST"), None);
        drop(end);
        let _ = other.join().unwrap();
    }
}
