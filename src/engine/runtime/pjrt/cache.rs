//! Keeps compiled programs of plugins as files, so that a second run of the same configuration does not compile again.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fs};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::engine::runtime::Cache;
use crate::files;

/// Names the folder; empty or `off` keeps nothing.
const VARIABLE: &str = "VNCA_COMPILATION_CACHE";

/// The most bytes that the folder holds. The least recently used programs are removed first.
const LIMIT: u64 = 2 << 30;

/// Bytes of the checksum at a file's head.
const HEAD: usize = 32;

/// The folder of a cache. None if nothing is kept.
pub fn folder(cache: &Cache) -> Option<PathBuf> {
    match (cache, env::var_os(VARIABLE)) {
        (Cache::Off, _) => None,
        (Cache::Folder(folder), _) => Some(folder.clone()),
        (Cache::Environment, Some(value)) if value.is_empty() || value == "off" => None,
        (Cache::Environment, Some(folder)) => Some(folder.into()),
        (Cache::Environment, None) => Some(super::find::cache()?.join("compiled")),
    }
}

/// Where one compiled program lies, or would.
pub struct Entry {
    path: PathBuf,
}

impl Entry {
    /// The entry of what `parts` determine, all of them together: compiler, module, options.
    pub fn within(folder: &Path, parts: &[&[u8]]) -> Entry {
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

    /// Reads the compiled program, if it is there and complete.
    pub fn read(&self) -> Option<Vec<u8>> {
        let mut bytes = fs::read(&self.path).ok()?;
        let body = bytes.split_off(HEAD.min(bytes.len()));
        if bytes[..] != Sha256::digest(&body)[..] {
            log::warn!("{} is damaged and is made anew", self.path.display());
            return None;
        }
        // Records the time of use. If that fails, the program is only removed earlier.
        let _ = fs::File::open(&self.path).and_then(|f| f.set_modified(SystemTime::now()));
        Some(body)
    }

    /// Writes a compiled program, and removes old ones beyond the limit.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn write(&self, body: &[u8]) -> Result<()> {
        self.write_within(body, LIMIT)
    }

    fn write_within(&self, body: &[u8], limit: u64) -> Result<()> {
        let at = || format!("cannot keep a compiled program in {}", self.path.display());
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).with_context(at)?;
        // Other processes see the complete file or none.
        files::write_bytes(&self.path, [&Sha256::digest(body)[..], body].concat()).with_context(at)?;
        let found = fs::read_dir(folder).with_context(at)?.flatten();
        let mut files: Vec<(SystemTime, u64, PathBuf)> = found
            .filter_map(|f| {
                let about = f.metadata().ok()?;
                Some((about.modified().ok()?, about.len(), f.path()))
            })
            .collect();
        files.sort();
        let mut total: u64 = files.iter().map(|f| f.1).sum();
        for (_, size, path) in files.iter().filter(|f| f.2 != self.path) {
            if total <= limit {
                break;
            }
            // Another process may have removed it already.
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
    fn what_was_kept_comes_back_unless_anything_differs() {
        let folder = tempfile::tempdir().unwrap();
        let entry = Entry::within(folder.path(), &[b"ab", b"c"]);
        assert!(entry.read().is_none());
        entry.write(b"program").unwrap();
        assert_eq!(entry.read().unwrap(), b"program");
        assert!(Entry::within(folder.path(), &[b"a", b"bc"]).read().is_none());
        assert!(Entry::within(folder.path(), &[b"ab", b"d"]).read().is_none());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let entry = Entry::within(folder.path(), &[]);
        entry.write(b"program").unwrap();
        let whole = fs::read(entry.path()).unwrap();
        let changed = [&whole[..whole.len() - 1], b"x"].concat();
        for damaged in [&whole[..whole.len() - 1], &whole[..5], b"", &changed] {
            fs::write(entry.path(), damaged).unwrap();
            assert!(entry.read().is_none());
        }
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let entries: Vec<Entry> = (0..4u8).map(|i| Entry::within(folder.path(), &[&[i]])).collect();
        for (entry, age) in entries.iter().zip([30, 40, 20]) {
            entry.write(&[0; 68]).unwrap();
            let then = SystemTime::now() - std::time::Duration::from_secs(age);
            fs::File::open(entry.path()).unwrap().set_modified(then).unwrap();
        }
        assert!(entries[1].read().is_some(), "reading makes it the newest");
        entries[3].write_within(&[0; 68], 300).unwrap();
        let kept: Vec<bool> = entries.iter().map(|e| e.path().exists()).collect();
        assert_eq!(kept, [false, true, true, true]);
    }
}
