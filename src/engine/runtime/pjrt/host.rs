//! Inspects accelerators without opening them: device files, libtpu's lock, package versions.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file that a process locks while it uses the TPU.
pub const TPU_LOCK: &str = "/tmp/libtpu_lockfile";

/// Lists the files in a folder whose names are `prefix` followed by a number.
fn list_numbered(folder: &str, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_numbered = |path: &PathBuf| {
        let number = path.file_name().and_then(|name| name.to_str()?.strip_prefix(prefix));
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut found: Vec<PathBuf> = entries.filter(is_numbered).collect();
    found.sort();
    found
}

/// Lists the device files of TPU chips: `/dev/accel0` ..., or on newer TPU VMs `/dev/vfio/0` ...
pub fn tpu_files() -> Vec<PathBuf> {
    [list_numbered("/dev", "accel"), list_numbered("/dev/vfio", "")].concat()
}

/// Lists the device files of NVIDIA GPUs: `/dev/nvidia0` ...
pub fn gpu_files() -> Vec<PathBuf> {
    list_numbered("/dev", "nvidia")
}

/// Returns the first core's model and instruction sets, without values that change over time.
pub fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = |key: &str| text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    ["model name", "stepping", "flags"].map(line).join("\n")
}

/// Returns the version of the NVIDIA driver, if it is loaded.
pub fn nvidia_driver() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    // `NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  ...`
    let is_version =
        |word: &&str| word.contains('.') && word.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_string)
}

/// The state of a lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// There is no such file.
    Absent,
    /// The file exists but no process holds it: the process that locked it has ended.
    Stale,
    /// The process with this id holds it. 0 if the system does not report the process.
    Held(u32),
}

impl Lock {
    /// Reads the state of a lock file from `/proc/locks`.
    pub fn read(path: &Path) -> Lock {
        let Ok(metadata) = fs::metadata(path) else { return Lock::Absent };
        // Each line is one lock, with its process and the file's device and inode.
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let holder = locks.lines().find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            // `1: FLOCK ADVISORY WRITE 28320 fe:00:5408897 0 EOF`. A waiting lock has `->` after its number.
            let [_, _, _, _, pid, file, ..] = words[..] else { return None };
            let inode: u64 = file.rsplit(':').next()?.parse().ok()?;
            (inode == metadata.ino()).then(|| pid.parse().unwrap_or(0))
        });
        holder.map_or(Lock::Stale, Lock::Held)
    }
}

/// Returns the name of a process.
pub fn process_name(pid: u32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|name| name.trim().to_string())
}

/// Returns the name and version of the Python package that a file belongs to, such as `libtpu 0.0.52`.
///
/// Reads them from the name of the folder `libtpu-0.0.52.dist-info`, which is beside the file's folder or above it.
pub fn package(file: &Path, name: &str) -> Option<String> {
    let version = |folder: &Path| {
        fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
            let folder = entry.file_name().into_string().ok()?;
            let version = folder.strip_suffix(".dist-info")?.strip_prefix(name)?.strip_prefix('-')?;
            Some(format!("{name} {version}"))
        })
    };
    // tools/setup puts the version into the name of the file's own folder.
    let from_setup = file.canonicalize().ok().and_then(|real| {
        let folder = real.parent()?.file_name()?.to_str()?.to_string();
        Some(format!("{name} {}", folder.strip_prefix(name)?.strip_prefix('-')?))
    });
    from_setup.or_else(|| file.ancestors().skip(1).take(4).find_map(version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_state_of_a_lock_names_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("lock");
        assert_eq!(Lock::read(&file), Lock::Absent);
        fs::write(&file, "").unwrap();
        assert_eq!(Lock::read(&file), Lock::Stale);
        // The child writes into the file once it holds the lock.
        let script = "exec 9>>\"$0\"; flock 9; echo >&9; read -r _";
        let mut child = Command::new("bash")
            .args(["-c", script])
            .arg(&file)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("bash is installed: tools/setup needs it");
        while fs::metadata(&file).unwrap().len() == 0 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let held = Lock::read(&file);
        drop(child.stdin.take());
        child.wait().unwrap();
        let Lock::Held(pid) = held else { panic!("{held:?}") };
        assert!(pid > 0 && process_name(std::process::id()).is_some());
        assert_eq!(Lock::read(&file), Lock::Stale);
    }

    #[test]
    fn package_versions_come_from_folder_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libtpu/libtpu.so");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
        assert_eq!(package(&file, "libtpu"), None);
        fs::create_dir(folder.path().join("libtpu-0.0.52.dist-info")).unwrap();
        assert_eq!(package(&file, "libtpu").unwrap(), "libtpu 0.0.52");
        let kept = folder.path().join("libtpu-1.2/libtpu.so");
        fs::create_dir_all(kept.parent().unwrap()).unwrap();
        fs::write(&kept, "").unwrap();
        assert_eq!(package(&kept, "libtpu").unwrap(), "libtpu 1.2");
    }
}
