//! The boundaries of the architecture, read off the `use` lines; and generated text in the README.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Modules of ours that the files of one module name.
fn named_in(module: &str) -> Vec<String> {
    let src = root().join("src");
    let (file, folder) = (src.join(format!("{module}.rs")), src.join(module));
    let files = if folder.is_dir() { sources(&folder) } else { vec![file] };
    let mut named = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let code: String = text.split("#[cfg(test)]").next().unwrap_or_default().into();
        for part in code.split("crate::").skip(1) {
            named.push(part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    named
}

#[test]
fn arrows_between_modules_point_one_way() {
    for (module, allowed) in [
        ("shape", &[] as &[&str]),
        ("array", &["shape"]),
        ("ir", &["ir", "array", "shape"]),
        ("program", &["shape"]),
        ("build", &["array", "ir", "lower", "program", "runtime", "shape"]),
        ("conformance", &["conformance", "array", "build", "ir", "random", "runtime", "shape"]),
        ("lower", &["ir", "program", "array", "shape"]),
        ("runtime", &["runtime", "program", "array", "shape", "lower", "quiet"]),
        ("random", &["random", "ir", "array", "shape"]),
        ("model", &["model", "ir", "random", "array", "shape"]),
        ("data", &["data", "random"]),
        ("weights", &["weights", "data", "model", "array", "shape"]),
        ("figure", &["figure"]),
        (
            "analysis",
            &[
                "analysis", "array", "build", "data", "error", "ir", "model", "random", "runtime", "session",
                "shape", "train",
            ],
        ),
        ("gallery", &["gallery", "session", "model", "data", "eval", "random", "array", "shape"]),
    ] {
        for name in named_in(module) {
            assert!(allowed.contains(&name.as_str()), "{module} names {name}; it may name {allowed:?}");
        }
    }
}

#[test]
fn xla_is_named_in_the_lowering_and_the_cpu_runtime_only() {
    for file in sources(&root().join("src")) {
        let text = fs::read_to_string(&file).unwrap();
        let place = file.strip_prefix(root().join("src")).unwrap().to_path_buf();
        let allowed = place.starts_with("lower")
            || place == Path::new("runtime/cpu.rs")
            || place == Path::new("quiet.rs");
        assert!(allowed || !text.contains("xla::"), "{} names the xla crate", place.display());
    }
}

#[test]
fn unsafe_code_stands_in_the_modules_for_it() {
    for file in sources(&root().join("src")) {
        let text = fs::read_to_string(&file).unwrap();
        let place = file.strip_prefix(root().join("src")).unwrap().to_path_buf();
        let allowed = place.starts_with("runtime") || place == Path::new("quiet.rs");
        assert!(allowed || !text.contains("unsafe "), "{} has unsafe code", place.display());
    }
}

/// With VNCA_BLESS=1 the table is written into the README; without, it is compared.
#[test]
fn the_readme_lists_the_verbs() {
    let path = root().join("README.md");
    let text = fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- verbs -->\n", "<!-- /verbs -->");
    let from = text.find(begin).expect("the README has a place for the verbs") + begin.len();
    let to = text.find(end).expect("the place ends");
    let table = vnca::cli::verbs_table() + "\n";
    if std::env::var_os("VNCA_BLESS").is_some() {
        fs::write(&path, format!("{}{table}{}", &text[..from], &text[to..])).unwrap();
    } else {
        assert_eq!(&text[from..to], table, "run the tests with VNCA_BLESS=1 to write the table");
    }
}

/// Every command of the README's table of figures is one that the program understands.
#[test]
fn the_readmes_figures_have_commands_that_parse() {
    use clap::Parser;
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, table) = text.split_once("<!-- figures -->").expect("the README has a table of figures");
    let (table, _) = table.split_once("<!-- /figures -->").expect("the table ends");
    let commands: Vec<&str> = table.split('`').skip(1).step_by(2).collect();
    assert!(commands.len() >= 8, "{commands:?}");
    for command in commands {
        if let Err(error) = vnca::cli::Cli::try_parse_from(command.split(' ')) {
            panic!("`{command}` in the README: {error}");
        }
    }
}
