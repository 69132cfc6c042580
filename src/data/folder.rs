//! A folder of data files with the usual names.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::input::Input;
use super::{Part, Split, file_name, idx, is_image, labels_beside, npy, read_file, read_npy};

/// A folder and the names in it.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    /// Sorted names. Names of folders end with a slash.
    pub(super) names: Vec<String>,
}

/// The kinds of data files, in the order in which a folder is searched for them.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Amat,
    Idx,
    Npy,
}

impl Folder {
    pub(super) fn open(path: &Path) -> Result<Folder> {
        let read = || -> std::io::Result<Vec<String>> {
            std::fs::read_dir(path)?
                .map(|entry| {
                    let entry = entry?;
                    let kind = entry.file_type()?;
                    let is_folder = kind.is_dir()
                        || kind.is_symlink()
                            && std::fs::metadata(entry.path()).is_ok_and(|meta| meta.is_dir());
                    let name = entry.file_name().to_string_lossy().into_owned();
                    // The slash keeps a folder from matching the name of a data file.
                    Ok(if is_folder { name + "/" } else { name })
                })
                .collect()
        };
        let mut names = read().with_context(|| format!("{}: the folder cannot be listed", path.display()))?;
        names.sort();
        Ok(Folder { path: path.to_owned(), names })
    }

    /// Returns the path of a file in this folder, unpacked or gzip.
    pub(super) fn file(&self, name: &str) -> Option<PathBuf> {
        [name.to_owned(), format!("{name}.gz")]
            .iter()
            .find(|&name| self.names.binary_search(name).is_ok())
            .map(|name| self.path.join(name))
    }

    /// Returns the path of an IDX file, in either common spelling.
    pub(super) fn idx_file(&self, part: Part, what: &str) -> Option<PathBuf> {
        ['-', '.'].iter().find_map(|&dot| self.file(&idx_name(part, what, dot)))
    }

    /// Returns the first kind of data files that the folder contains.
    pub(super) fn kind(&self) -> Option<Kind> {
        let amat = ["train", "valid", "test"].map(amat_name);
        if amat.iter().any(|name| self.file(name).is_some()) {
            Some(Kind::Amat)
        } else if [Part::Train, Part::Test].iter().any(|&part| self.idx_file(part, "images-idx3").is_some()) {
            Some(Kind::Idx)
        } else if ["train.npy", "test.npy"].iter().any(|name| self.file(name).is_some()) {
            Some(Kind::Npy)
        } else {
            None
        }
    }

    /// Reads the images of a part, if the folder has them. Arrays of 28 x 28 may be grey only if `grey`.
    pub(super) fn read(&self, part: Part, grey: bool) -> Result<Option<Split>> {
        match self.kind() {
            Some(Kind::Amat) => self.amat(part),
            Some(Kind::Idx) => self.grey(part),
            Some(Kind::Npy) => self.npy(part, grey),
            None => Ok(None),
        }
    }

    pub(super) fn amat(&self, part: Part) -> Result<Option<Split>> {
        let Some(path) = self.file(&amat_name(part.name())) else { return Ok(None) };
        let mut name = format!("binarized_mnist_{}", part.name());
        let Split { mut pixels, mut labels, mut sources, .. } = read_file(&path, true)?;
        if part == Part::Train
            && let Some(path) = self.file(&amat_name("valid"))
        {
            name += "+valid";
            let mut valid = read_file(&path, true)?;
            pixels.append(&mut valid.pixels);
            labels = labels.zip(valid.labels).map(|(labels, more)| [labels, more].concat());
            sources.push(path);
        }
        Ok(Some(Split::levels(name, pixels, labels, sources)))
    }

    pub(super) fn grey(&self, part: Part) -> Result<Option<Split>> {
        let Some(path) = self.idx_file(part, "images-idx3") else { return Ok(None) };
        let (shape, pixels) = idx::read_any(Input::open(&path)?)?;
        let n = pixels.len() / shape.values();
        let name = file_name(&path);
        let mut sources = vec![path];
        let labels = match self.idx_file(part, "labels-idx1") {
            Some(path) => with_labels(path, idx::read_labels, n, &mut sources),
            None => None,
        };
        Ok(Some(Split { shape, ..Split::levels(name, pixels, labels, sources) }))
    }

    pub(super) fn npy(&self, part: Part, grey: bool) -> Result<Option<Split>> {
        let Some(path) = self.file(&format!("{}.npy", part.name())) else { return Ok(None) };
        let (shape, pixels) = read_npy(&path, grey)?;
        let n = pixels.len() / shape.values();
        let name = file_name(&path);
        let mut sources = vec![path];
        let labels = match self.file(&format!("{}_labels.npy", part.name())) {
            Some(path) => with_labels(path, npy::read_labels, n, &mut sources),
            None => None,
        };
        Ok(Some(Split { shape, ..Split::levels(name, pixels, labels, sources) }))
    }

    /// Says how many image files lie beside the data files, which are read instead of them; `None` if there are none.
    pub(super) fn unread_images(&self) -> Option<String> {
        let count = self.names.iter().filter(|name| is_image(Path::new(name))).count();
        let data = match self.kind()? {
            Kind::Amat => "text",
            Kind::Idx => "IDX files",
            Kind::Npy => "arrays",
        };
        (count > 0).then(|| format!("the folder has {data}: {count} image files beside them are not read"))
    }

    /// Returns the error that the folder lacks the images of a part.
    pub(super) fn missing(&self, part: Part) -> anyhow::Error {
        let amat = format!("{}[.gz]", amat_name(part.name()));
        let idx = format!("{}[.gz]", idx_name(part, "images-idx3", '-'));
        let npy = format!("{}.npy", part.name());
        // If the folder has one kind, files of other kinds would be ignored.
        let looked_for = match self.kind() {
            Some(Kind::Amat) => amat,
            Some(Kind::Idx) => idx,
            Some(Kind::Npy) => npy,
            None => {
                format!("{amat}, {idx} or {npy}, and for PNG, JPEG, WebP, GIF and BMP files in it and below")
            }
        };
        self.lacks(&format!("{} images", part.name()), &looked_for)
    }

    pub(super) fn lacks(&self, what: &str, looked_for: &str) -> anyhow::Error {
        const SHOWN: usize = 12;
        let mut found = self.names[..self.names.len().min(SHOWN)].join(", ");
        match self.names.len() {
            0 => found += "nothing",
            n if n > SHOWN => found += &format!(" and {} more", n - SHOWN),
            _ => {}
        }
        anyhow::anyhow!(
            "{}: no {what} in this folder: looked for {looked_for}; found {found}",
            self.path.display()
        )
    }
}

fn amat_name(part: &str) -> String {
    format!("binarized_mnist_{part}.amat")
}

/// Returns the published name of an IDX file: `train-images-idx3-ubyte`, or with a dot as second separator.
pub(super) fn idx_name(part: Part, what: &str, dot: char) -> String {
    let part = match part {
        Part::Train => "train",
        Part::Test => "t10k",
    };
    match dot {
        '-' => format!("{part}-{what}-ubyte"),
        _ => format!("{part}-{}-ubyte", what.replacen('-', &dot.to_string(), 1)),
    }
}

/// Adds the labels of a file to images, if they fit, and their file to the sources.
fn with_labels(
    path: PathBuf,
    reader: fn(Input) -> Result<Vec<u8>>,
    images: usize,
    sources: &mut Vec<PathBuf>,
) -> Option<Vec<u8>> {
    let place = path.display().to_string();
    let labels = labels_beside(Input::open(&path).and_then(reader), images, &place)?;
    sources.push(path);
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idx_names_have_two_spellings() {
        assert_eq!(idx_name(Part::Train, "images-idx3", '-'), "train-images-idx3-ubyte");
        assert_eq!(idx_name(Part::Test, "labels-idx1", '.'), "t10k-labels.idx1-ubyte");
    }
}
