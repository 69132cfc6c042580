//! Finds the files of PJRT plugins.

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
    /// The CUDA plugin among Python's packages.
    Cuda,
    /// The plugin in this file.
    File(PathBuf),
}

/// Paths of the CUDA plugin inside a folder of Python packages, the newest version first.
const CUDA_PLACES: [&str; 2] =
    ["jax_plugins/xla_cuda13/xla_cuda_plugin.so", "jax_plugins/xla_cuda12/xla_cuda_plugin.so"];
const TPU_PLACE: &str = "libtpu/libtpu.so";

impl Plugin {
    /// Finds the plugin's file.
    ///
    /// # Errors
    /// When there is none. The message lists where it was searched for, and what to do.
    pub fn find(&self) -> Result<PathBuf> {
        match self {
            Plugin::File(path) => {
                ensure!(path.is_file(), "there is no file {}: name a PJRT plugin", path.display());
                // The loader would look for a bare name in its own folders.
                path.canonicalize().with_context(|| format!("cannot use {}", path.display()))
            }
            Plugin::Tpu => find_tpu(),
            Plugin::Cuda => in_packages(&CUDA_PLACES).ok_or_else(|| {
                anyhow!(
                    "there is no CUDA plugin: python3 has none of the packages jax-cuda13-pjrt and jax-cuda12-pjrt \
                     ({}); install one with: pip install \"jax[cuda13]\", or name its xla_cuda_plugin.so with --device \
                     PATH",
                    package_folders().len_text()
                )
            }),
        }
    }
}

fn find_tpu() -> Result<PathBuf> {
    if let Some(path) = env::var_os("TPU_LIBRARY_PATH") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "TPU_LIBRARY_PATH is {}: there is no such file", path.display());
        return Ok(path);
    }
    let own = cache().map(|c| c.join(TPU_PLACE)).filter(|p| p.is_file());
    if let Some(path) = in_packages(&[TPU_PLACE]).or(own) {
        return Ok(path);
    }
    loaders_path("libtpu.so").ok_or_else(|| {
        anyhow!(
            "there is no TPU library: TPU_LIBRARY_PATH is not set, python3 has no package libtpu ({}), the loader's \
             folders have no libtpu.so; install it with: pip install libtpu (or tools/setup --tpu), or name it with \
             --device PATH",
            package_folders().len_text()
        )
    })
}

/// The folder where tools/setup keeps what it fetches.
pub fn cache() -> Option<PathBuf> {
    let home = || env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    env::var_os("VNCA_CACHE").map(PathBuf::from).or_else(|| Some(base?.join("vnca")))
}

/// Folders in which the python3 of the path looks for packages.
struct Folders(Vec<PathBuf>);

impl Folders {
    fn len_text(&self) -> String {
        match self.0.len() {
            0 => "there is no python3".to_string(),
            n => format!("looked into {n} folders"),
        }
    }
}

fn package_folders() -> Folders {
    let script = "import sys; print('\\n'.join(p for p in sys.path if p))";
    let output = Command::new("python3").args(["-c", script]).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    Folders(text.lines().map(PathBuf::from).collect())
}

fn in_packages(places: &[&str]) -> Option<PathBuf> {
    let folders = package_folders().0;
    places.iter().flat_map(|place| folders.iter().map(move |f| f.join(place))).find(|p| p.is_file())
}

/// A library in the folders of LD_LIBRARY_PATH or the usual ones of the system.
fn loaders_path(name: &str) -> Option<PathBuf> {
    let own = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let usual = ["/usr/local/lib", "/usr/lib", "/lib", "/usr/lib/x86_64-linux-gnu"].map(PathBuf::from);
    env::split_paths(&own).chain(usual).map(|folder| folder.join(name)).find(|p| p.is_file())
}

/// What must be there before a TPU's library is asked for devices: without it, it waits for minutes.
///
/// # Errors
/// When this machine has no TPU.
pub fn tpu_device() -> Result<String> {
    host::tpu_files().first().map(|file| file.display().to_string()).ok_or_else(|| {
        anyhow!(
            "this machine has no TPU: neither /dev/accel0 nor /dev/vfio/0 is there; run on a TPU VM (in a container, \
             pass the devices on), or see what would run there with: vnca compile"
        )
    })
}

/// The folder of NVIDIA's own packages beside a CUDA plugin of a Python package: the compiler's device library is there.
pub fn cuda_folder(plugin: &Path) -> Option<String> {
    let packages = plugin.ancestors().nth(3).filter(|_| plugin.ends_with("xla_cuda_plugin.so"))?;
    let folders = ["nvidia/cu13", "nvidia/cuda_nvcc"].map(|name| packages.join(name));
    folders.into_iter().find(|f| f.is_dir()).map(|f| f.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Plugin::File("no/such.so".into()).find().unwrap_err().to_string();
        assert!(error.contains("there is no file no/such.so"), "{error}");
    }
}
