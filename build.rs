//! Lets the programs find the XLA library where they were linked with it.

use std::env;
use std::path::PathBuf;

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
    // The real place goes into the programs.
    match library.canonicalize() {
        Ok(real) => println!(
            "cargo:rustc-link-arg=-Wl,-rpath,{}",
            real.parent().expect("a file lies in a folder").display()
        ),
        Err(error) => println!(
            "cargo::error=the XLA library is missing: run tools/setup ({}: {error})",
            library.display()
        ),
    }
}
