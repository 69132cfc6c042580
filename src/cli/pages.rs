//! Huge pages for what XLA allocates.
//!
//! A device call takes its working memory anew, up to gigabytes. In pages of 4 KiB the kernel hands that out so slowly that
//! an automaton's gradient step takes a fifth more time. glibc's allocator asks for huge pages if it is told to when a process
//! starts, and at no other time.

/// What glibc reads at the start of a process, and the setting for huge pages.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TUNABLES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");

/// Starts this process anew, with the same arguments, so that its allocator asks for huge pages: unless it has settings
/// already, by the user or by this function, or the kernel hands them out without being asked, or never.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn ask_for_huge_ones() {
    use std::os::unix::process::CommandExt;

    let kernel = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if std::env::var_os(TUNABLES.0).is_some() || !kernel.contains("[madvise]") {
        return;
    }
    let mut words = std::env::args_os();
    let (Ok(program), Some(name)) = (std::env::current_exe(), words.next()) else { return };
    // Returns only if it fails, and then all works without, only slower.
    let _ = std::process::Command::new(program).arg0(name).args(words).env(TUNABLES.0, TUNABLES.1).exec();
}

/// Only glibc's allocator has the setting.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn ask_for_huge_ones() {}
