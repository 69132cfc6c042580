//! Lets the programs find the XLA library where they were linked with it, and oneDNN beside it.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=XLA_EXTENSION_DIR");
    if env::var_os("CARGO_FEATURE_XLA").is_none() {
        return;
    }
    let folder = PathBuf::from(env::var_os("XLA_EXTENSION_DIR").unwrap_or_else(|| ".xla/extension".into()));
    let library = folder.join("lib/libxla_extension.so");
    // The folder is a link, which tools/setup may later turn to another library; it says so in a file beside the link.
    for file in [&library, &folder.with_file_name("linked")] {
        if file.exists() {
            println!("cargo:rerun-if-changed={}", file.display());
        }
    }
    let mut folders = Vec::new();
    // The real places go into the programs.
    match library.canonicalize() {
        Ok(real) => folders.extend(real.parent().map(Path::to_path_buf)),
        Err(error) => println!(
            "cargo::error=the XLA library is missing: run tools/setup ({}: {error})",
            library.display()
        ),
    }
    // Loaded on demand, and not needed everywhere.
    let one_dnn = PathBuf::from(".xla/onednn/libdnnl.so.3");
    println!("cargo:rerun-if-changed={}", one_dnn.display());
    if let Ok(real) = one_dnn.canonicalize() {
        folders.extend(real.parent().map(Path::to_path_buf));
    }
    let places: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    for place in &places {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{place}");
    }
    // For crates that depend on this one: arguments for the linker do not reach their programs.
    println!("cargo::metadata=RPATH={}", places.join(":"));
}
