//! The boundaries between modules, read from their `use` lines. Generated text, links, included code and commands in the README
//! and the book.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vnca::cli::pretrained;

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

/// Each module, and what it may use besides `error`: a layer, or a module of one. A module is a file or folder in its layer. The
/// name of a layer alone stands for its `mod.rs`.
const ARROWS: &[(&str, &[&str])] = &[
    ("files", &[]),
    ("error", &[]),
    ("engine", &[]),
    ("engine::shape", &[]),
    ("engine::array", &["engine::shape"]),
    ("engine::ir", &["engine::array", "engine::shape"]),
    ("engine::key_values", &[]),
    ("engine::npy", &["engine::array", "engine::shape", "files"]),
    ("engine::program", &["engine::shape", "files"]),
    ("engine::random", &["engine::array", "engine::ir", "engine::shape"]),
    ("engine::lower", &["engine::array", "engine::ir", "engine::program", "engine::shape"]),
    ("engine::xla_log", &[]),
    (
        "engine::runtime",
        &["engine::array", "engine::key_values", "engine::program", "engine::shape", "files"],
    ),
    ("engine::compile", &["engine"]),
    ("engine::conformance", &["engine"]),
    ("hosts", &["engine::key_values"]),
    ("hosts::client", &["engine::key_values"]),
    ("hosts::found", &[]),
    ("hosts::messages", &[]),
    ("hosts::server", &[]),
    ("hosts::state", &[]),
    ("nn", &[]),
    ("nn::tree", &[]),
    ("nn::params", &["engine", "nn::tree"]),
    ("nn::optimiser", &["engine", "nn::params", "nn::tree"]),
    ("nn::weights", &["engine", "files", "nn::params"]),
    ("data", &["engine::array", "engine::random"]),
    ("data::amat", &[]),
    ("data::channels", &[]),
    ("data::decode", &[]),
    ("data::decoded_cache", &["files"]),
    ("data::download", &["data", "files"]),
    ("data::identity", &["data"]),
    ("data::emoji", &[]),
    ("data::folder", &[]),
    ("data::glyphs", &["engine::random"]),
    ("data::idx", &[]),
    ("data::image_files", &[]),
    ("data::input", &[]),
    ("data::known", &[]),
    ("data::labels", &[]),
    ("data::npy", &["engine::npy", "engine::shape"]),
    ("data::npz", &["files"]),
    ("data::reading", &[]),
    ("data::resize", &[]),
    ("data::split", &["engine::array", "engine::random"]),
    ("train", &[]),
    ("train::checkpoint", &["engine", "files", "nn"]),
    ("train::folder", &[]),
    ("train::metrics", &["files"]),
    ("train::options", &[]),
    ("train::order", &["engine"]),
    ("train::program", &["engine", "nn"]),
    ("train::records", &["engine"]),
    ("train::state", &["engine", "nn"]),
    ("train::task", &["engine", "nn"]),
    ("train::trainer", &["engine", "nn", "chain"]),
    ("train::watch", &["engine"]),
    ("model", &[]),
    ("model::baseline", &["engine", "nn"]),
    ("model::cell", &["engine", "nn"]),
    ("model::decoder", &["engine", "nn"]),
    ("model::elbo", &["engine", "nn", "train"]),
    ("model::encoder", &["engine", "nn"]),
    ("model::exchange", &["engine"]),
    ("model::frame", &["engine"]),
    ("model::grow", &["engine", "nn"]),
    ("model::likelihood", &["engine"]),
    ("model::objective", &["engine", "nn"]),
    ("model::pool", &["engine", "nn", "train"]),
    ("model::pool_host", &["engine", "nn", "train"]),
    ("model::report", &[]),
    ("model::vae", &["engine", "nn"]),
    ("study", &[]),
    ("study::analysis", &["engine", "nn", "train", "model", "data", "study::session", "chain"]),
    ("study::eval", &["engine", "files", "nn", "model", "data"]),
    ("study::figure", &["files"]),
    ("study::gallery", &["engine", "nn", "model", "data", "study"]),
    ("study::page", &["engine", "nn", "model", "study::figure"]),
    ("study::pictures", &["engine", "files", "nn", "model", "data", "study::figure", "study::gallery"]),
    ("study::session", &["engine", "nn", "model"]),
    ("study::validation", &["engine", "model", "data", "study"]),
    ("cli", &["engine"]),
    ("cli::commands", &["engine", "files", "nn", "train", "model", "data", "study", "cli"]),
    ("cli::config", &["engine", "files", "nn", "train", "model", "data"]),
    ("cli::environment", &["engine::xla_log"]),
    ("cli::error", &[]),
    ("cli::hosts", &["engine", "hosts"]),
    ("cli::image_options", &["data"]),
    ("cli::models", &["engine", "model", "data"]),
    ("cli::options", &["engine", "model", "nn::optimiser"]),
    ("cli::optimiser", &["nn", "chain"]),
    ("cli::huge_pages", &[]),
    ("cli::pretrained", &["engine", "nn", "data::known"]),
    ("cli::values", &["engine", "model", "nn::optimiser"]),
    ("cli::origin", &["engine", "nn", "data::identity"]),
];

/// Returns the module of a source file, such as `engine::ir`; `None` for `lib.rs` and `main.rs`.
fn module_of(place: &Path) -> Option<String> {
    let parts: Vec<String> =
        place.with_extension("").iter().map(|p| p.to_string_lossy().into_owned()).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|p| *p != "mod").take(2).collect();
    (!matches!(parts[..], ["lib"] | ["main"])).then(|| parts.join("::"))
}

/// Returns the layers and modules that a file names with `crate::`, outside of its tests.
fn named_in(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod").next().unwrap_or_default();
    let is_name = |c: &char| c.is_ascii_lowercase() || *c == '_' || *c == ':';
    code.split("crate::")
        .skip(1)
        .map(|rest| {
            let path: String = rest.chars().take_while(is_name).collect();
            path.split("::").filter(|p| !p.is_empty()).take(2).collect::<Vec<_>>().join("::")
        })
        .collect()
}

#[test]
fn modules_use_only_allowed_modules() {
    let allows = |allowed: &[&str], named: &str| {
        allowed
            .iter()
            .any(|a| named == *a || named.strip_prefix(a).is_some_and(|rest| rest.starts_with("::")))
    };
    let mut problems = Vec::new();
    for file in sources(&root().join("src")) {
        let place = file.strip_prefix(root().join("src")).unwrap();
        let Some(module) = module_of(place) else { continue };
        let Some((_, allowed)) = ARROWS.iter().find(|(m, _)| *m == module) else {
            problems.push(format!("{} belongs to an unlisted module: {module}", place.display()));
            continue;
        };
        for named in named_in(&fs::read_to_string(&file).unwrap()) {
            if !allows(allowed, &named) && !allows(&[&module, "error"], &named) {
                problems.push(format!("{} uses {named}; allowed are {allowed:?}", place.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn only_the_lowering_uses_the_xla_crate() {
    for file in sources(&root().join("src")) {
        let text = fs::read_to_string(&file).unwrap();
        let place = file.strip_prefix(root().join("src")).unwrap().to_path_buf();
        let allowed = place.starts_with("engine/lower") || place == Path::new("engine/xla_log.rs");
        assert!(allowed || !text.contains("xla::"), "{} names the xla crate", place.display());
    }
}

#[test]
fn only_some_modules_contain_unsafe_code() {
    for file in sources(&root().join("src")) {
        let text = fs::read_to_string(&file).unwrap();
        let place = file.strip_prefix(root().join("src")).unwrap().to_path_buf();
        let allowed = place.starts_with("engine/runtime") || place == Path::new("cli/environment.rs");
        assert!(allowed || !text.contains("unsafe "), "{} has unsafe code", place.display());
    }
}

/// Compares a table with the text between two markers of a page. VNCA_BLESS=1 writes it.
fn compare_table(page: &str, marker: &str, table: &str) {
    let path = root().join(page);
    let text = fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- {marker} -->\n"), format!("<!-- /{marker} -->"));
    let from = text.find(&begin).expect("the page has the marker") + begin.len();
    let to = text.find(&end).expect("the page has the end marker");
    let table = format!("{table}\n");
    if std::env::var_os("VNCA_BLESS").is_some() {
        fs::write(&path, format!("{}{table}{}", &text[..from], &text[to..])).unwrap();
    } else {
        assert_eq!(&text[from..to], table, "run the tests with VNCA_BLESS=1 to write the table");
    }
}

#[test]
fn the_readme_lists_the_verbs() {
    compare_table("README.md", "verbs", &vnca::cli::verbs_table());
}

#[test]
fn the_book_lists_the_pretrained_weights() {
    compare_table("docs/data.md", "pretrained", &pretrained::table(&pretrained::folder().unwrap()).unwrap());
}

/// Returns the pages of the book as paths in docs/.
fn pages() -> Vec<String> {
    fn below(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => below(&path, found),
                false => found.push(path),
            }
        }
    }
    let docs = root().join("docs");
    let mut found = Vec::new();
    below(&docs, &mut found);
    let names = found.iter().map(|p| p.strip_prefix(&docs).unwrap().to_str().unwrap().to_owned());
    let mut names: Vec<String> = names.filter(|n| n.ends_with(".md") && n != "SUMMARY.md").collect();
    names.sort();
    names
}

/// Returns each text between `open` and `close`.
fn between<'t>(text: &'t str, open: &'t str, close: char) -> impl Iterator<Item = &'t str> {
    text.split(open).skip(1).filter_map(move |rest| Some(rest.split_once(close)?.0))
}

/// Returns path and text of the README, the changelog and every page.
fn texts() -> Vec<(PathBuf, String)> {
    let own = pages().into_iter().chain(["SUMMARY.md".into()]).map(|page| Path::new("docs").join(page));
    let paths = own.chain(["README.md".into(), "CHANGELOG.md".into()]);
    paths.map(|path| (path.clone(), fs::read_to_string(root().join(path)).unwrap())).collect()
}

#[test]
fn the_summary_has_every_page() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let mut listed: Vec<String> = between(&summary, "](", ')').map(str::to_owned).collect();
    listed.sort();
    assert_eq!(listed, pages());
}

/// Returns the identifiers of a page's headings, as mdBook and GitHub derive them.
fn headings(page: &str) -> Vec<String> {
    let kept = |c: char| c.is_alphanumeric() || "-_ ".contains(c);
    let id = |title: &str| title.to_lowercase().replace(|c| !kept(c), "").replace(' ', "-");
    page.lines().filter(|l| l.starts_with('#')).map(|l| id(l.trim_start_matches('#').trim())).collect()
}

#[test]
fn links_and_includes_of_pages_have_targets() {
    let mut broken = Vec::new();
    for (path, text) in texts() {
        let folder = root().join(&path).parent().unwrap().to_path_buf();
        for link in between(&text, "](", ')').filter(|link| !link.contains("://")) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { root().join(&path) } else { folder.join(file) };
            let page = || fs::read_to_string(&target).unwrap_or_default();
            if !target.exists() || !heading.is_empty() && !headings(&page()).iter().any(|h| h == heading) {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
        for include in between(&text, "{{#include ", '}') {
            let (file, anchor) = include.split_once(':').expect("an include names an anchor");
            let code = fs::read_to_string(folder.join(file)).unwrap_or_default();
            let has = |mark: &str| code.lines().any(|l| l.trim() == format!("// {mark}: {anchor}"));
            if !has("ANCHOR") || !has("ANCHOR_END") {
                broken.push(format!("{}: {include}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Returns the commands of this program on a page: lines of shell blocks, and text in backquotes with options.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let is_ours = |c: &str| ["vnca ", "tools/vnca ", "target/release/vnca "].iter().any(|p| c.starts_with(p));
    for (i, block) in text.split("```").enumerate() {
        if i % 2 == 0 {
            let words = block.replace('\n', " ");
            found
                .extend(words.split('`').skip(1).step_by(2).filter(|c| c.contains(" --")).map(str::to_owned));
        } else if let Some(lines) = block.strip_prefix("sh\n") {
            let parts = lines.lines().map(|l| l.split([';', '>', '|', '&']).next().unwrap_or_default());
            found.extend(parts.map(|l| l.split(" #").next().unwrap_or_default().to_owned()));
        }
    }
    found.retain(|command| is_ours(command));
    found
}

/// The program can parse every command of the README and of the book.
#[test]
fn commands_of_the_pages_parse() {
    use clap::Parser;
    let (mut problems, mut count) = (Vec::new(), 0);
    for (path, text) in texts().into_iter().filter(|(path, _)| !path.ends_with("CHANGELOG.md")) {
        for command in commands(&text) {
            count += 1;
            if let Err(error) = vnca::cli::Cli::try_parse_from(command.split_whitespace())
                && error.kind() != clap::error::ErrorKind::DisplayHelp
            {
                problems.push(format!("`{command}` in {}: {error}", path.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(count > 60, "only {count} commands were found");
}

/// The README's program equals that of the library's front page, which is compiled as a documentation test.
#[test]
fn the_readmes_program_is_the_librarys() {
    let library = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let (_, program) = library.split_once("//! ```no_run\n").expect("lib.rs has a program");
    let (program, _) = program.split_once("//! ```\n").expect("the program ends");
    let lines = program.lines().map(|l| l.trim_start_matches("//!").strip_prefix(' ').unwrap_or_default());
    let program: String = lines.map(|line| format!("{line}\n")).collect();
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert_eq!(between(&readme, "```rust\n", '`').next(), Some(program.as_str()));
}

/// The program can parse every command of the table of figures.
#[test]
fn the_reports_figures_have_commands_that_parse() {
    use clap::Parser;
    let text = fs::read_to_string(root().join("docs/pictures.md")).unwrap();
    let (_, table) = text.split_once("<!-- figures -->").expect("the page has a table of figures");
    let (table, _) = table.split_once("<!-- /figures -->").expect("the table ends");
    let commands: Vec<&str> = table.split('`').skip(1).step_by(2).collect();
    assert!(commands.len() >= 8, "{commands:?}");
    for command in commands {
        if let Err(error) = vnca::cli::Cli::try_parse_from(command.split(' ')) {
            panic!("`{command}` in the table of figures: {error}");
        }
    }
}

/// The headers that stand in for LLVM's and MLIR's define functions. In a program that is built without optimisation these are
/// symbols, and the XLA library would call one that it sees instead of its own function of this name, whose class is another.
#[test]
fn stand_ins_for_headers_take_no_place_of_the_librarys_functions() {
    const SOURCE: &str = r#"
        #include "mlir/IR/BuiltinOps.h"
        #include "mlir/IR/OwningOpRef.h"
        extern "C" void use(mlir::Operation *operation) {
            mlir::OwningOpRef<mlir::ModuleOp> module = mlir::ModuleOp(operation);
            std::string text;
            llvm::raw_string_ostream out(text);
            module->print(out);
            out.flush();
        }
    "#;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("use.cc"), SOURCE).unwrap();
    let run = |program: &str, words: &str| {
        let output =
            Command::new(program).args(words.split(' ')).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{program} {words}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let headers = root().join("tools/xla-shim/include");
    run("c++", &format!("-std=c++17 -O0 -fPIC -shared use.cc -o use.so -I{}", headers.display()));
    let seen = run("nm", "-D --defined-only use.so");
    assert!(seen.contains(" T use") && !seen.contains("llvm") && !seen.contains("mlir"), "{seen}");
}
