//! Writes result files atomically: a file is complete or absent, also after a loss of power.
//!
//! A file is written in its final folder under a temporary name that ends in `.part`, flushed to the disk and renamed. Then the
//! folder is flushed. An older file of that name keeps its content until the rename. After an error the unfinished file is
//! removed. No two writers share a temporary name.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::{Builder, NamedTempFile};

const ENDING: &str = ".part";
const BUFFER: usize = 1 << 20;

/// An unfinished file, for results that are written piece by piece. Dropping it removes the file.
#[derive(Debug)]
pub struct Draft {
    out: BufWriter<NamedTempFile>,
    path: PathBuf,
}

impl Draft {
    /// Creates an unfinished file that [`Draft::publish`] will give this name.
    ///
    /// # Errors
    /// When the folder cannot be written to, or the name is that of a folder or device. The message names the file.
    pub fn create(path: &Path) -> Result<Draft> {
        let begin = || -> Result<Draft> {
            // Renaming to it would replace a device by a file.
            let free = fs::metadata(path).map_or(true, |found| found.is_file());
            ensure!(free, "expected a file or nothing there, found a folder or device");
            let mut prefix = path.file_name().context("it does not end in a file's name")?.to_owned();
            prefix.push(".");
            // What every new file gets, the user's mask applied: a temporary file alone would be its owner's only.
            let permissions = Permissions::from_mode(0o666);
            let file = Builder::new()
                .prefix(&prefix)
                .suffix(ENDING)
                .permissions(permissions)
                .tempfile_in(parent_folder(path))?;
            Ok(Draft { out: BufWriter::with_capacity(BUFFER, file), path: path.to_owned() })
        };
        begin().with_context(|| cannot_write(path))
    }

    /// Returns the name that the finished file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Flushes the file to the disk. Returns the temporary name under which it can be read.
    ///
    /// # Errors
    /// When the file cannot be written. The message names it.
    pub fn sync(&mut self) -> Result<&Path> {
        let flushed = self.out.flush().and_then(|()| self.out.get_ref().as_file().sync_all());
        flushed.with_context(|| cannot_write(&self.path))?;
        Ok(self.out.get_ref().path())
    }

    /// Flushes the finished file to the disk and gives it its name.
    ///
    /// # Errors
    /// When the file cannot be written. The message names it.
    pub fn publish(mut self) -> Result<()> {
        self.sync()?;
        let at = || cannot_write(&self.path);
        let file = self.out.into_inner().map_err(|error| error.into_error()).with_context(at)?;
        publish(file, &self.path)
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Seek for Draft {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.out.seek(to)
    }
}

/// Writes a file with the content that `fill` writes to it.
///
/// # Errors
/// When `fill` fails or the file cannot be written. The message names the file.
pub fn write(path: &Path, fill: impl FnOnce(&mut Draft) -> Result<()>) -> Result<()> {
    let mut draft = Draft::create(path)?;
    fill(&mut draft).with_context(|| cannot_write(path))?;
    draft.publish()
}

/// Writes a file of these bytes.
///
/// # Errors
/// When the file cannot be written. The message names it.
pub fn write_bytes(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    write(path, |out| Ok(out.write_all(bytes.as_ref())?))
}

/// Gives a file a second name, and replaces a file that has it. Makes a hard link, or a copy on a file system without links.
///
/// # Errors
/// When the link cannot be made. The message has the second name.
pub fn link(from: &Path, to: &Path) -> Result<()> {
    let second = |at: &Path| fs::hard_link(from, at).or_else(|_| fs::copy(from, at).map(drop));
    let linked = Builder::new().suffix(ENDING).make_in(parent_folder(to), second);
    publish(linked.with_context(|| cannot_write(to))?, to)
}

/// Returns the bytes that are free in a folder for this user; `None` where the file system does not say.
pub fn free_space(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

/// Removes the unfinished files that killed processes left in a folder. No other process may be writing there.
pub fn remove_drafts(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().ends_with(ENDING.as_bytes()) {
            // One that stays does no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn publish<F>(file: NamedTempFile<F>, path: &Path) -> Result<()> {
    file.persist(path).map_err(|refused| refused.error).with_context(|| cannot_write(path))?;
    let folder = parent_folder(path);
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Not every file system can flush a folder.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        flushed => flushed.with_context(|| format!("cannot flush {}", folder.display())),
    }
}

fn parent_folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_there_as_a_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        write_bytes(&path, b"old").unwrap();
        let error = write(&path, |out| {
            out.write_all(b"half")?;
            assert_eq!(fs::read(&path)?, b"old");
            anyhow::bail!("no more")
        });
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("result.json") && error.contains("no more"), "{error}");
        assert_eq!(
            (fs::read(&path).unwrap(), names(folder.path())),
            (b"old".to_vec(), vec!["result.json".into()])
        );
        write_bytes(&path, b"new").unwrap();
        assert_eq!((fs::read(&path).unwrap(), names(folder.path()).len()), (b"new".to_vec(), 1));
        // Who may read it is what it is for a file that is made without these precautions.
        let plain = folder.path().join("plain");
        fs::write(&plain, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
    }

    #[test]
    fn a_draft_is_read_under_its_temporary_name_and_goes_when_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.npy");
        let mut draft = Draft::create(&path).unwrap();
        draft.write_all(b"row").unwrap();
        let aside = draft.sync().unwrap().to_owned();
        assert_eq!((fs::read(&aside).unwrap(), path.exists()), (b"row".to_vec(), false));
        let name = aside.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("rows.npy.") && name.ends_with(".part"), "{name}");
        drop(draft);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_second_name_displaces_the_file_that_had_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        write_bytes(&at("one"), b"1").unwrap();
        write_bytes(&at("best"), b"0").unwrap();
        link(&at("one"), &at("best")).unwrap();
        assert_eq!(
            (fs::read(at("best")).unwrap(), names(folder.path())),
            (b"1".to_vec(), vec!["best".into(), "one".into()])
        );
        fs::write(at("two.npz.x7.part"), "").unwrap();
        remove_drafts(folder.path());
        assert_eq!(names(folder.path()), ["best", "one"]);
    }

    #[test]
    fn no_folder_or_device_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), Path::new("/dev/null"), Path::new("/")] {
            let error = write_bytes(path, b"").unwrap_err();
            assert!(format!("{error:#}").contains("found a folder or device"), "{error:#}");
        }
        let missing = folder.path().join("no/such/file");
        assert!(format!("{:#}", write_bytes(&missing, b"").unwrap_err()).contains("no/such/file"));
    }
}
