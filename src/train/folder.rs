//! A run's folder, which one process at a time may write to.
//!
//! The owner holds a lock on the file `run.lock` in the folder. The operating system releases the lock when the process ends,
//! however it ends, so that a dead process never blocks the folder. The file's content names the owner. On NFS the server keeps
//! the lock, which then also works between machines, unless the folder is mounted with `nolock` or `local_lock`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const LOCK: &str = "run.lock";

/// A run's folder, locked against other processes until this value is dropped.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    lock: File,
    /// Whether locking created the folder.
    is_new: bool,
}

impl RunFolder {
    /// Locks a folder, and creates it if it does not exist. A created folder that is still empty is removed on drop.
    ///
    /// # Errors
    /// When another process has the lock (the message names it), or the folder cannot be created or written to.
    pub fn lock(path: &Path) -> Result<RunFolder> {
        let is_new = !path.exists();
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        RunFolder::lock_existing(path, is_new)
    }

    /// Creates and locks the first of the folders that does not exist yet. Two processes never get the same one.
    ///
    /// # Errors
    /// When a folder cannot be created or written to.
    pub fn first_free(paths: impl IntoIterator<Item = PathBuf>) -> Result<RunFolder> {
        for path in paths {
            let at = || format!("cannot create {}", path.display());
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).with_context(at)?;
            }
            match fs::create_dir(&path) {
                Ok(()) => return RunFolder::lock_existing(&path, true),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(at),
            }
        }
        bail!("all of the folders exist already")
    }

    fn lock_existing(path: &Path, is_new: bool) -> Result<RunFolder> {
        let file = path.join(LOCK);
        let at = || format!("cannot write {}", file.display());
        loop {
            let mut options = OpenOptions::new();
            let mut lock = options.read(true).write(true).create(true).open(&file).with_context(at)?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let _ = lock.read_to_string(&mut holder);
                    let holder = if holder.is_empty() { "another process" } else { holder.trim() };
                    bail!(
                        "{} is in use by {holder}: wait until it ends, or choose another folder",
                        path.display()
                    );
                }
                Err(TryLockError::Error(error)) => log::warn!(
                    "{} cannot be locked ({error}): make sure that no other process uses it",
                    path.display()
                ),
            }
            // The previous owner may have removed the file between the two calls. Then the lock protects nothing.
            let inode = |found: fs::Metadata| (found.dev(), found.ino());
            let is_current = match (lock.metadata(), fs::metadata(&file)) {
                (Ok(own), Ok(found)) => inode(own) == inode(found),
                _ => false,
            };
            if is_current {
                let host = rustix::system::uname();
                let holder =
                    format!("process {} on {}\n", std::process::id(), host.nodename().to_string_lossy());
                lock.set_len(0).and_then(|()| lock.write_all(holder.as_bytes())).with_context(at)?;
                return Ok(RunFolder { path: path.to_owned(), lock, is_new });
            }
        }
    }

    /// Returns the folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        // Remove the file while the lock is held, so that it cannot be another owner's.
        let _ = fs::remove_file(self.path.join(LOCK));
        let _ = self.lock.unlock();
        if self.is_new {
            // Fails if a run has written something.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        let first = RunFolder::lock(&path).unwrap();
        let error = RunFolder::lock(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        fs::write(path.join("metrics.jsonl"), "").unwrap();
        drop(first);
        assert!(!path.join(LOCK).exists());
        // A killed process leaves the file without the lock.
        fs::write(path.join(LOCK), "process 1 on elsewhere\n").unwrap();
        drop(RunFolder::lock(&path).unwrap());
        assert!(path.exists());
    }

    #[test]
    fn the_first_free_folder_is_taken_and_removed_if_nothing_is_written() {
        let parent = tempfile::tempdir().unwrap();
        let paths = || (1..).map(|n| parent.path().join(format!("runs/m-{n}")));
        let [first, second] = [(); 2].map(|()| RunFolder::first_free(paths()).unwrap());
        assert!(first.path().ends_with("m-1") && second.path().ends_with("m-2"));
        fs::write(second.path().join("config.json"), "").unwrap();
        drop((first, second));
        assert!(!parent.path().join("runs/m-1").exists() && parent.path().join("runs/m-2").exists());
    }
}
