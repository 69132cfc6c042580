//! Writes result files atomically: a file is complete or absent, even after a power failure.
//!
//! A file is written in its final folder under a temporary name that ends in `.part`, flushed to disk and renamed. Then the
//! folder is flushed. An older file of the same name keeps its content until the rename. After an error the unfinished file is
//! removed. No two writers share a temporary name.
//!
//! Checks of places and of what others have written stand here too: whether a path lies within a folder, whether a name in an
//! archive stays inside, how long a description may be.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::{Builder, NamedTempFile};

const DRAFT_SUFFIX: &str = ".part";
const BUFFER_BYTES: usize = 1 << 20;

/// An unfinished file, for results that are written in pieces. Dropping it removes the file.
#[derive(Debug)]
pub struct Draft {
    out: BufWriter<NamedTempFile>,
    path: PathBuf,
}

impl Draft {
    /// Creates an unfinished file, which [`Draft::publish`] will rename to `path`.
    ///
    /// # Errors
    /// When the folder cannot be written to, or `path` is a folder or device. The message names the file.
    pub fn create(path: &Path) -> Result<Draft> {
        let begin = || -> Result<Draft> {
            // A rename would replace a device by a file.
            let free = fs::metadata(path).map_or(true, |found| found.is_file());
            ensure!(free, "expected a file or a free name, found a folder or device");
            let mut prefix = path.file_name().context("the path does not end in a file name")?.to_owned();
            prefix.push(".");
            // The usual mode of a new file; the kernel applies the umask. By default only the owner may read a temporary file.
            let permissions = Permissions::from_mode(0o666);
            let file = Builder::new()
                .prefix(&prefix)
                .suffix(DRAFT_SUFFIX)
                .permissions(permissions)
                .tempfile_in(parent_folder(path))?;
            Ok(Draft { out: BufWriter::with_capacity(BUFFER_BYTES, file), path: path.to_owned() })
        };
        begin().with_context(|| cannot_write(path))
    }

    /// Returns the name that the finished file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Flushes the file to disk and returns the temporary name under which it can be read.
    ///
    /// # Errors
    /// When the file cannot be written. The message names it.
    pub fn sync(&mut self) -> Result<&Path> {
        let flushed = self.out.flush().and_then(|()| self.out.get_ref().as_file().sync_all());
        flushed.with_context(|| cannot_write(&self.path))?;
        Ok(self.out.get_ref().path())
    }

    /// Flushes the finished file to disk and renames it to its final name.
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

/// Creates a file and calls `fill` to write its content.
///
/// # Errors
/// When `fill` fails or the file cannot be written. The message names the file.
pub fn write(path: &Path, fill: impl FnOnce(&mut Draft) -> Result<()>) -> Result<()> {
    let mut draft = Draft::create(path)?;
    fill(&mut draft).with_context(|| cannot_write(path))?;
    draft.publish()
}

/// Writes bytes to a file.
///
/// # Errors
/// When the file cannot be written. The message names it.
pub fn write_bytes(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    write(path, |out| Ok(out.write_all(bytes.as_ref())?))
}

/// Checks that a file can be written, before the work whose results it gets.
///
/// # Errors
/// When the folder cannot be written to, or `path` is a folder or device. The message names the file.
pub fn check_writable(path: &Path) -> Result<()> {
    Draft::create(path).map(drop)
}

/// Reports whether a path, which need not exist, lies within a folder.
pub fn lies_within(path: &Path, folder: &Path) -> bool {
    let there = path.ancestors().map(|part| if part.as_os_str().is_empty() { Path::new(".") } else { part });
    let resolved = there.filter_map(|part| part.canonicalize().ok()).next();
    matches!((resolved, folder.canonicalize()), (Some(path), Ok(folder)) if path.starts_with(&folder))
}

/// Reports whether a name in an archive stays in the folder into which other programs would unpack it. Nothing is unpacked here;
/// an archive with other names was made to do harm, or is damaged.
pub fn stays_inside(name: &str) -> bool {
    let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    Path::new(name).components().all(plain) && !name.contains(['\\', '\0'])
}

/// Gives a file a second name, replacing any file of that name. Creates a hard link, or a copy if the file system has no links.
///
/// # Errors
/// When the link cannot be created. The message contains the second name.
pub fn link(from: &Path, to: &Path) -> Result<()> {
    let second = |at: &Path| fs::hard_link(from, at).or_else(|_| fs::copy(from, at).map(drop));
    let linked = Builder::new().suffix(DRAFT_SUFFIX).make_in(parent_folder(to), second);
    publish(linked.with_context(|| cannot_write(to))?, to)
}

/// Deserializes a description in JSON of any form, of at most 64 KiB: as a tree of values it takes 80 times the memory of its text.
///
/// # Errors
/// When it is longer, or no JSON.
pub fn description<'de, D: serde::Deserializer<'de>>(from: D) -> Result<serde_json::Value, D::Error> {
    use serde::de::Error;

    const MOST: usize = 1 << 16;
    let text = <Box<serde_json::value::RawValue> as serde::Deserialize>::deserialize(from)?;
    let length = text.get().len();
    if length > MOST {
        return Err(D::Error::custom(format_args!(
            "a description of {length} bytes; at most {MOST} are read"
        )));
    }
    serde_json::from_str(text.get()).map_err(D::Error::custom)
}

/// Returns the number of bytes that this user can write to a folder's file system; `None` if the file system does not report it.
pub fn free_space(folder: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(folder).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

/// Creates a folder within one that exists, unless it is there already. If the outer folder has been moved away meanwhile, it is not
/// made anew: what is written then would be apart from the rest.
///
/// # Errors
/// When the folder cannot be created. The message names it.
pub fn create_within(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(_) if path.is_dir() => Ok(()),
        created => created.with_context(|| format!("cannot create {}", path.display())),
    }
}

/// Removes the unfinished files that killed processes left in a folder. No other process may write to the folder meanwhile.
pub fn remove_drafts(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().ends_with(DRAFT_SUFFIX.as_bytes()) {
            // A file that cannot be removed does no harm.
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
    fn a_file_is_complete_or_absent() {
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
        // The permissions are those of a file that is written directly.
        let plain = folder.path().join("plain");
        fs::write(&plain, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
    }

    #[test]
    fn a_path_lies_within_a_folder_whether_it_exists_or_not() {
        let parent = tempfile::tempdir().unwrap();
        let [inner, beside] = ["inner", "inner-2"].map(|name| parent.path().join(name));
        [&inner, &beside].iter().for_each(|folder| fs::create_dir(folder).unwrap());
        for (path, within) in [
            (inner.clone(), true),
            (inner.join("a/b"), true),
            (beside.join("a"), false),
            (beside.join("../inner/c"), true),
            (parent.path().join("elsewhere"), false),
        ] {
            assert_eq!(lies_within(&path, &inner), within, "{}", path.display());
        }
        assert!(lies_within(Path::new("new"), Path::new(".")) && !lies_within(Path::new("new"), &inner));
    }

    #[test]
    fn names_in_archives_stay_inside() {
        for name in ["x.npy", "encoder.conv0.weight", "a/b.npy", "./x", "..x/y"] {
            assert!(stays_inside(name), "{name}");
        }
        for name in ["/etc/x", "../x", "a/../../x", "..\\x", "x\0"] {
            assert!(!stays_inside(name), "{name}");
        }
    }

    #[test]
    fn a_draft_is_readable_under_its_temporary_name_and_removed_on_drop() {
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
    fn a_link_replaces_an_existing_file() {
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
    fn folders_and_devices_are_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), Path::new("/dev/null"), Path::new("/")] {
            let error = write_bytes(path, b"").unwrap_err();
            assert!(format!("{error:#}").contains("found a folder or device"), "{error:#}");
        }
        let missing = folder.path().join("no/such/file");
        assert!(format!("{:#}", write_bytes(&missing, b"").unwrap_err()).contains("no/such/file"));
    }
}
