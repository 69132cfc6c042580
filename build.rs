//! Compiles the C functions over XLA's CPU client, and lets the programs find the XLA library where they were linked with it,
//! and oneDNN beside it.

use std::env;
#[cfg(feature = "xla")]
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=XLA_EXTENSION_DIR");
    if env::var_os("CARGO_FEATURE_XLA").is_none() {
        return;
    }
    // docs.rs has no XLA library; documentation is made without linking.
    println!("cargo:rerun-if-env-changed=DOCS_RS");
    if env::var_os("DOCS_RS").is_some() {
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
    #[cfg(feature = "xla")]
    compile_client(&folder);
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

/// Compiles `client.cc` as the xla crate compiles its own wrapper: the library's headers declare other classes without NDEBUG.
#[cfg(feature = "xla")]
fn compile_client(extension: &Path) {
    const SOURCE: &str = "src/engine/runtime/cpu/client.cc";
    println!("cargo:rerun-if-changed={SOURCE}");
    let include = extension.join("include");
    if !include.exists() {
        return;
    }
    let mut build = cc::Build::new();
    build.cpp(true).pic(true).warnings(false).std("c++17").define("NDEBUG", None).opt_level(1);
    if let Some(corrected) = corrected_headers(&include) {
        build.include(corrected);
    }
    build.include(include).file(SOURCE).compile("vnca_cpu_client");
}

/// A folder with the header that g++ refuses in xla_extension 0.11.0, corrected; none where the header needs no correction.
/// Its declaration and its definition say one condition in two ways. The xla crate does the same for itself.
#[cfg(feature = "xla")]
fn corrected_headers(include: &Path) -> Option<PathBuf> {
    let place = "xla/tsl/concurrency/future.h";
    let text = fs::read_to_string(include.join(place)).ok()?;
    let [declared, defined] = ["!is_move_only>* = nullptr>", "!Future<T>::is_move_only>*>"];
    if !text.contains(declared) || !text.contains(defined) {
        return None;
    }
    let condition = "!internal::IsMoveOnly<T>::value>*";
    let text =
        text.replace(declared, &format!("{condition} = nullptr>")).replace(defined, &format!("{condition}>"));
    let folder = PathBuf::from(env::var_os("OUT_DIR")?).join("include");
    let file = folder.join(place);
    fs::create_dir_all(file.parent()?).ok()?;
    fs::write(file, text).ok()?;
    Some(folder)
}
