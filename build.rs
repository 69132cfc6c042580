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
    // The real places go into the programs.
    match library.canonicalize() {
        Ok(real) => search_beside(&real),
        Err(error) => println!(
            "cargo::error=the XLA library is missing: run tools/setup ({}: {error})",
            library.display()
        ),
    }
    // Loaded on demand, and not needed everywhere.
    let one_dnn = PathBuf::from(".xla/onednn/libdnnl.so.3");
    println!("cargo:rerun-if-changed={}", one_dnn.display());
    if let Ok(real) = one_dnn.canonicalize() {
        search_beside(&real);
    }
}

fn search_beside(library: &Path) {
    let folder = library.parent().expect("a file lies in a folder");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
}
