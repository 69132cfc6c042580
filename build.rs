//! Compiles the C functions around XLA's CPU client, and sets the programs' run paths, so that they find the XLA library and oneDNN
//! where they are at build time.

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
    // docs.rs has no XLA library. Building documentation does not link.
    println!("cargo:rerun-if-env-changed=DOCS_RS");
    if env::var_os("DOCS_RS").is_some() {
        return;
    }
    let folder = PathBuf::from(env::var_os("XLA_EXTENSION_DIR").unwrap_or_else(|| ".xla/extension".into()));
    let library = folder.join("lib/libxla_extension.so");
    // The folder is a symbolic link. When tools/setup points it at another library, it also rewrites the file `linked` beside it.
    for file in [&library, &folder.with_file_name("linked")] {
        if file.exists() {
            println!("cargo:rerun-if-changed={}", file.display());
        }
    }
    let mut folders = Vec::new();
    // Programs get the real paths, not those of links.
    match library.canonicalize() {
        Ok(real) => folders.extend(real.parent().map(Path::to_path_buf)),
        Err(error) => println!(
            "cargo::error=the XLA library is missing: run tools/setup ({}: {error})",
            library.display()
        ),
    }
    #[cfg(feature = "xla")]
    compile_client(&folder);
    // oneDNN is loaded on demand and optional.
    let one_dnn = PathBuf::from(".xla/onednn/libdnnl.so.3");
    println!("cargo:rerun-if-changed={}", one_dnn.display());
    if let Ok(real) = one_dnn.canonicalize() {
        folders.extend(real.parent().map(Path::to_path_buf));
    }
    let paths: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    for path in &paths {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{path}");
    }
    // Linker arguments do not reach the programs of dependent crates. Their build scripts can read this instead.
    println!("cargo::metadata=RPATH={}", paths.join(":"));
}

/// Compiles `client.cc` with the flags of the xla crate's own wrapper. Without NDEBUG the library's headers declare different
/// classes.
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

/// Writes a corrected copy of a header that g++ refuses in xla_extension 0.11.0, and returns the copy's include folder. `None` if
/// the header needs no correction.
///
/// The header's declaration and definition write the same condition in two different ways. The xla crate corrects it too.
#[cfg(feature = "xla")]
fn corrected_headers(include: &Path) -> Option<PathBuf> {
    let header = "xla/tsl/concurrency/future.h";
    let text = fs::read_to_string(include.join(header)).ok()?;
    let [declared, defined] = ["!is_move_only>* = nullptr>", "!Future<T>::is_move_only>*>"];
    if !text.contains(declared) || !text.contains(defined) {
        return None;
    }
    let condition = "!internal::IsMoveOnly<T>::value>*";
    let text =
        text.replace(declared, &format!("{condition} = nullptr>")).replace(defined, &format!("{condition}>"));
    let folder = PathBuf::from(env::var_os("OUT_DIR")?).join("include");
    let file = folder.join(header);
    fs::create_dir_all(file.parent()?).ok()?;
    fs::write(file, text).ok()?;
    Some(folder)
}
