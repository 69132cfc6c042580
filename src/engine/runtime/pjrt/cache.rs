//! Caches the compiled programs of plugins as files, so that a second run of the same configuration does not compile again.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fs};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::engine::runtime::Cache;
use crate::files;

/// The environment variable with the cache's folder. Empty or `off` disables the cache.
const VARIABLE: &str = "VNCA_COMPILATION_CACHE";

/// The largest total size of the cached files, in bytes. The least recently used ones are removed first.
const LIMIT: u64 = 2 << 30;

/// The size in bytes of the checksum with which a file begins.
const CHECKSUM: usize = 32;

/// Returns a cache's folder. `None` if the cache is disabled.
pub fn folder(cache: &Cache) -> Option<PathBuf> {
    match (cache, env::var_os(VARIABLE)) {
        (Cache::Off, _) => None,
        (Cache::Folder(folder), _) => Some(folder.clone()),
        (Cache::Environment, Some(value)) if value.is_empty() || value == "off" => None,
        (Cache::Environment, Some(folder)) => Some(folder.into()),
        (Cache::Environment, None) => Some(super::find::cache()?.join("compiled")),
    }
}

/// The cache's file for one compiled program. The file need not exist.
pub struct Entry {
    path: PathBuf,
}

impl Entry {
    /// Returns the entry for a program that `parts` determine: compiler, module, options.
    pub fn new(folder: &Path, parts: &[&[u8]]) -> Entry {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        let name: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        Entry { path: folder.join(name) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the compiled program, if the file exists and is intact.
    pub fn read(&self) -> Option<Vec<u8>> {
        let mut bytes = fs::read(&self.path).ok()?;
        let body = bytes.split_off(CHECKSUM.min(bytes.len()));
        if bytes[..] != Sha256::digest(&body)[..] {
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
        files::write_bytes(&self.path, [&Sha256::digest(body)[..], body].concat()).with_context(context)?;
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
