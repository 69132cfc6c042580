//! Caches compiled programs as files, so that a second run of the same configuration does not compile again.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fs};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::{Cache, pjrt};
use crate::files;

/// The environment variable with the cache's folder. Empty or `off` disables the cache.
const VARIABLE: &str = "VNCA_COMPILATION_CACHE";

/// The largest total size of the cached files, in bytes. The least recently used ones are removed first.
const LIMIT: u64 = 2 << 30;

/// The size in bytes of the checksum with which a file begins.
const CHECKSUM: usize = 32;

/// Identifies the format of the files. Another version of vnca with another format does not find them.
const FORMAT: &[u8] = b"checksum of name and program, program";

/// Returns a cache's folder. `None` if the cache is disabled.
pub fn folder(cache: &Cache) -> Option<PathBuf> {
    match (cache, env::var_os(VARIABLE)) {
        (Cache::Off, _) => None,
        (Cache::Folder(folder), _) => Some(folder.clone()),
        (Cache::Environment, Some(value)) if value.is_empty() || value == "off" => None,
        (Cache::Environment, Some(folder)) => Some(folder.into()),
        (Cache::Environment, None) => Some(pjrt::cache_folder()?.join("compiled")),
    }
}

/// Loads a program if `entry` has it. Otherwise compiles it and caches it in `entry`. `agree` is told whether the program was
/// loaded, and decides whether it is used: other processes may have to compile it.
///
/// # Errors
/// When the program cannot be compiled, or the processes do not agree. If it cannot be loaded or cached, the log has the reason.
pub fn load_or_compile<P>(
    entry: Option<Entry>,
    name: &str,
    load: impl FnOnce(&[u8]) -> Result<P>,
    agree: impl FnOnce(bool) -> Result<bool>,
    compile: impl FnOnce() -> Result<P>,
    save: impl FnOnce(&P) -> Result<Vec<u8>>,
) -> Result<P> {
    // Loading comes first, so that a program that cannot be loaded counts as one that is not there.
    let loaded = entry.as_ref().and_then(Entry::read).and_then(|bytes| {
        let warn = |error| log::info!("compiling {name} again, cannot load it: {error:#}");
        load(&bytes).map_err(warn).ok()
    });
    let all_agree = agree(loaded.is_some())?;
    match (loaded, &entry) {
        (Some(program), Some(entry)) if all_agree => {
            log::info!("loaded the compiled {name} from {}", entry.path().display());
            return Ok(program);
        }
        (Some(_), _) => log::info!("compiling {name} again, as other processes do"),
        (None, _) => {}
    }
    let program = compile()?;
    let Some(entry) = entry else { return Ok(program) };
    if let Err(error) = save(&program).and_then(|bytes| entry.write(&bytes)) {
        log::info!("the compiled {name} is not cached: {error:#}");
    }
    Ok(program)
}

/// The cache's file for one compiled program. The file need not exist.
pub struct Entry {
    name: String,
    path: PathBuf,
}

impl Entry {
    /// Returns the entry for a program that `parts` determine: compiler, module, options.
    pub fn new(folder: &Path, parts: &[&[u8]]) -> Entry {
        let mut hash = Sha256::new();
        for part in [FORMAT].iter().chain(parts) {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        let name: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        let path = folder.join(&name);
        Entry { name, path }
    }

    /// Returns the checksum of this entry's file. It contains the name, so that a file that was renamed counts as damaged.
    fn checksum(&self, body: &[u8]) -> [u8; CHECKSUM] {
        Sha256::new().chain_update(&self.name).chain_update(body).finalize().into()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the compiled program, if the file exists and is intact.
    pub fn read(&self) -> Option<Vec<u8>> {
        let mut bytes = fs::read(&self.path).ok()?;
        let body = bytes.split_off(CHECKSUM.min(bytes.len()));
        if bytes[..] != self.checksum(&body) {
            log::warn!("{} is damaged: compiling the program again", self.path.display());
            return None;
        }
        // The modification time records the last use. If setting it fails, the file is removed earlier than it should be.
        let _ = fs::File::open(&self.path).and_then(|f| f.set_modified(SystemTime::now()));
        Some(body)
    }

    /// Writes a compiled program, and removes old ones if the cache is larger than its limit.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn write(&self, body: &[u8]) -> Result<()> {
        self.write_within(body, LIMIT)
    }

    fn write_within(&self, body: &[u8], limit: u64) -> Result<()> {
        let context = || format!("cannot cache a compiled program in {}", self.path.display());
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).with_context(context)?;
        // `write_bytes` renames a complete file into place: another process never reads half of it.
        files::write_bytes(&self.path, [&self.checksum(body)[..], body].concat()).with_context(context)?;
        let found = fs::read_dir(folder).with_context(context)?.flatten();
        let mut files: Vec<(SystemTime, u64, PathBuf)> = found
            .filter_map(|f| {
                let metadata = f.metadata().ok()?;
                Some((metadata.modified().ok()?, metadata.len(), f.path()))
            })
            .collect();
        files.sort();
        let mut total: u64 = files.iter().map(|f| f.1).sum();
        for (_, size, path) in files.iter().filter(|f| f.2 != self.path) {
            if total <= limit {
                break;
            }
            // Ignore errors: another process may have removed the file already.
            let _ = fs::remove_file(path);
            total -= size;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_program_is_found_only_under_its_own_parts() {
        let folder = tempfile::tempdir().unwrap();
        let entry = Entry::new(folder.path(), &[b"ab", b"c"]);
        assert!(entry.read().is_none());
        entry.write(b"program").unwrap();
        assert_eq!(entry.read().unwrap(), b"program");
        assert!(Entry::new(folder.path(), &[b"a", b"bc"]).read().is_none());
        assert!(Entry::new(folder.path(), &[b"ab", b"d"]).read().is_none());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let entry = Entry::new(folder.path(), &[]);
        entry.write(b"program").unwrap();
        let whole = fs::read(entry.path()).unwrap();
        let changed = [&whole[..whole.len() - 1], b"x"].concat();
        for damaged in [&whole[..whole.len() - 1], &whole[..5], b"", &changed] {
            fs::write(entry.path(), damaged).unwrap();
            assert!(entry.read().is_none());
        }
    }

    #[test]
    fn a_file_under_another_name_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = [b"one", b"two"].map(|part| Entry::new(folder.path(), &[part]));
        one.write(b"program").unwrap();
        fs::rename(one.path(), other.path()).unwrap();
        assert!(other.read().is_none());
    }

    #[test]
    fn a_program_that_cannot_be_loaded_is_compiled_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let entry = || Some(Entry::new(folder.path(), &[]));
        let load = |bytes: &[u8]| (bytes != b"old").then(|| bytes.to_vec()).context("too old");
        let get = |compiled: &[u8]| {
            load_or_compile(entry(), "test", load, Ok, || Ok(compiled.to_vec()), |p| Ok(p.clone())).unwrap()
        };
        assert_eq!(get(b"old"), b"old");
        assert_eq!(get(b"new"), b"new");
        assert_eq!(get(b"newer"), b"new");
    }

    #[test]
    fn the_processes_decide_whether_a_loaded_program_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let get = |agree: fn(bool) -> Result<bool>| {
            let entry = Some(Entry::new(folder.path(), &[]));
            load_or_compile(entry, "test", |_| Ok("loaded"), agree, || Ok("compiled"), |_| Ok(vec![1]))
        };
        let told_not_loaded = |loaded: bool| Ok(loaded || bail!("not loaded"));
        assert_eq!(get(told_not_loaded).unwrap_err().to_string(), "not loaded");
        assert_eq!(get(|_| Ok(false)).unwrap(), "compiled");
        assert_eq!(get(|_| Ok(false)).unwrap(), "compiled");
        assert_eq!(get(told_not_loaded).unwrap(), "loaded");
    }

    #[test]
    fn the_least_recently_used_program_is_removed_first() {
        let folder = tempfile::tempdir().unwrap();
        let entries: Vec<Entry> = (0..4u8).map(|i| Entry::new(folder.path(), &[&[i]])).collect();
        for (entry, age) in entries.iter().zip([30, 40, 20]) {
            entry.write(&[0; 68]).unwrap();
            let used = SystemTime::now() - std::time::Duration::from_secs(age);
            fs::File::open(entry.path()).unwrap().set_modified(used).unwrap();
        }
        assert!(entries[1].read().is_some(), "reading makes it the most recently used");
        entries[3].write_within(&[0; 68], 300).unwrap();
        let kept: Vec<bool> = entries.iter().map(|e| e.path().exists()).collect();
        assert_eq!(kept, [false, true, true, true]);
    }
}
