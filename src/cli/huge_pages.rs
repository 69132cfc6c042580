//! Huge pages for the memory that XLA allocates.
//!
//! Every device call allocates its working memory again, up to gigabytes. With pages of 4 KiB the page faults make a gradient
//! step of an automaton about a fifth slower. glibc's allocator requests huge pages only if an environment variable is set when
//! the process starts.

/// The environment variable that glibc reads when a process starts, and its value for huge pages.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TUNABLES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");

/// Restarts this process with the same arguments and with huge pages requested from glibc's allocator.
///
/// Does nothing if `GLIBC_TUNABLES` is already set, by the user or by an earlier call, or if the kernel's setting is not
/// `madvise`: then the kernel provides huge pages always or never. If the restart fails, the process continues, only slower.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn restart_with_huge_pages() {
    use std::os::unix::process::CommandExt;

    let kernel = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if std::env::var_os(TUNABLES.0).is_some() || !kernel.contains("[madvise]") {
        return;
    }
    let mut words = std::env::args_os();
    let (Ok(program), Some(name)) = (std::env::current_exe(), words.next()) else { return };
    // `exec` returns only on failure. The process then works without huge pages.
    let _ = std::process::Command::new(program).arg0(name).args(words).env(TUNABLES.0, TUNABLES.1).exec();
}

/// Does nothing: only glibc's allocator has this setting.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn restart_with_huge_pages() {}
