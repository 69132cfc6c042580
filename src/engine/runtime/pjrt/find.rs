//! Finds the library files of PJRT plugins.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};

use super::host;

/// A PJRT plugin, by name or path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// libtpu, from `TPU_LIBRARY_PATH`, Python's packages, the user's cache or the loader's path.
    Tpu,
    /// The CUDA plugin, from Python's packages or the user's cache.
    Cuda,
    /// The plugin in this file.
    File(PathBuf),
}

/// Paths of the CUDA plugin inside a folder of Python packages, newest version first.
const CUDA_PATHS: [&str; 2] =
    ["jax_plugins/xla_cuda13/xla_cuda_plugin.so", "jax_plugins/xla_cuda12/xla_cuda_plugin.so"];
/// The path of libtpu inside a folder of Python packages.
const TPU_PATH: &str = "libtpu/libtpu.so";

impl Plugin {
    /// Finds the plugin's file.
    ///
    /// # Errors
    /// When there is none. The message says where this function searched and how to install the plugin.
    pub fn find(&self) -> Result<PathBuf> {
        match self {
            Plugin::File(path) => {
                ensure!(path.is_file(), "there is no file {}: name a PJRT plugin", path.display());
                // The loader would search its own folders for a bare file name.
                path.canonicalize().with_context(|| format!("cannot use {}", path.display()))
            }
            Plugin::Tpu => find_tpu(),
            Plugin::Cuda => find_cuda(),
        }
    }
}

fn find_cuda() -> Result<PathBuf> {
    // The cache has only what compiling needs, so that the packages come first.
    let own = || cache().map(|c| c.join("cuda").join(CUDA_PATHS[0])).filter(|p| p.is_file());
    in_packages(&CUDA_PATHS).or_else(own).ok_or_else(|| {
        anyhow!(
            "there is no CUDA plugin: python3 has none of the packages jax-cuda13-pjrt and jax-cuda12-pjrt ({}); \
             install one with: pip install \"jax[cuda13]\" (tools/setup --cuda is enough for vnca compile), or give \
             the path of its xla_cuda_plugin.so as the device",
            package_folders().describe()
        )
    })
}

fn find_tpu() -> Result<PathBuf> {
    if let Some(path) = env::var_os("TPU_LIBRARY_PATH") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "TPU_LIBRARY_PATH is {}: there is no such file", path.display());
        return Ok(path);
    }
    let own = cache().map(|c| c.join(TPU_PATH)).filter(|p| p.is_file());
    if let Some(path) = in_packages(&[TPU_PATH]).or(own) {
        return Ok(path);
    }
    in_loader_folders("libtpu.so").ok_or_else(|| {
        anyhow!(
            "there is no TPU library: TPU_LIBRARY_PATH is not set, python3 has no package libtpu ({}), the loader's \
             folders have no libtpu.so; install it with: pip install libtpu (or tools/setup --tpu), or name it with \
             --device PATH",
            package_folders().describe()
        )
    })
}

/// Returns the folder where tools/setup keeps downloads.
pub fn cache() -> Option<PathBuf> {
    let home = || env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    env::var_os("VNCA_CACHE").map(PathBuf::from).or_else(|| Some(base?.join("vnca")))
}

/// The folders in which the `python3` of the path looks for packages.
struct PackageFolders(Vec<PathBuf>);

impl PackageFolders {
    fn describe(&self) -> String {
        match self.0.len() {
            0 => "there is no python3".to_string(),
            n => format!("searched {n} folders"),
        }
    }
}

fn package_folders() -> PackageFolders {
    let script = "import sys; print('\\n'.join(p for p in sys.path if p))";
    let output = Command::new("python3").args(["-c", script]).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    PackageFolders(text.lines().map(PathBuf::from).collect())
}

fn in_packages(paths: &[&str]) -> Option<PathBuf> {
    let folders = package_folders().0;
    paths.iter().flat_map(|path| folders.iter().map(move |f| f.join(path))).find(|p| p.is_file())
}

/// Finds a library in the folders of LD_LIBRARY_PATH or in the usual folders of the system.
fn in_loader_folders(name: &str) -> Option<PathBuf> {
    let configured = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let usual = ["/usr/local/lib", "/usr/lib", "/lib", "/usr/lib/x86_64-linux-gnu"].map(PathBuf::from);
    env::split_paths(&configured).chain(usual).map(|folder| folder.join(name)).find(|p| p.is_file())
}

/// Returns the device file of the first TPU chip. Call this before opening libtpu, which waits for minutes if there is no chip.
///
/// # Errors
/// When this machine has no TPU.
pub fn tpu_device() -> Result<String> {
    host::tpu_files().first().map(|file| file.display().to_string()).ok_or_else(|| {
        anyhow!(
            "this machine has no TPU: neither /dev/accel0 nor /dev/vfio/0 exists; run on a TPU VM (in a container, \
             pass the devices on), or compile for a TPU without one: vnca compile"
        )
    })
}

/// Returns the folder of NVIDIA's Python packages beside a CUDA plugin. It contains the device library that the compiler needs.
pub fn cuda_folder(plugin: &Path) -> Option<String> {
    let packages = plugin.ancestors().nth(3).filter(|_| plugin.ends_with("xla_cuda_plugin.so"))?;
    let folders = ["nvidia/cu13", "nvidia/cuda_nvcc"].map(|name| packages.join(name));
    folders.into_iter().find(|f| f.is_dir()).map(|f| f.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_a_missing_file() {
        let error = Plugin::File("no/such.so".into()).find().unwrap_err().to_string();
        assert!(error.contains("there is no file no/such.so"), "{error}");
    }
}
