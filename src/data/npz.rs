//! Reads images and labels from the arrays of an `.npz` file, under the names that Keras and other programs use.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use zip::{CompressionMethod, ZipArchive};

use super::input::Input;
use super::{Part, Split, file_name, labels_beside, npy};
use crate::files;

/// The first bytes of a zip archive, which an `.npz` file is.
pub const MAGIC: &[u8] = b"PK\x03\x04";

/// An `.npz` file and the names of its arrays.
#[derive(Clone, Debug)]
pub struct Archive {
    /// Path of the file.
    pub path: PathBuf,
    /// Names of the arrays without `.npy`, in the file's order.
    names: Vec<String>,
}

impl Archive {
    /// Reads the names of a file's arrays.
    ///
    /// # Errors
    /// When the file cannot be read or is not a zip archive. The message names it.
    pub fn open(path: &Path) -> Result<Archive> {
        let names = zip(path)?
            .file_names()
            .map(|name| Ok(name?.trim_end_matches(".npy").to_owned()))
            .collect::<Result<Vec<_>>>()
            .with_context(|| format!("{}: cannot read the names of its arrays", path.display()))?;
        if let Some(name) = names.iter().find(|name| !files::stays_inside(name)) {
            bail!("{}: {name} is no name of an array: it leads out of the archive", path.display());
        }
        Ok(Archive { path: path.to_owned(), names })
    }

    /// Reports whether the file can have separate training and test images. A single array serves as both parts.
    pub fn has_parts(&self) -> bool {
        self.names.len() != 1
    }

    /// Reads the images of a part, with their labels if the file has them. A single array serves as both parts.
    ///
    /// # Errors
    /// When the arrays are not images. The message names the file and the array.
    pub fn grey(&self, part: Part) -> Result<Option<Split>> {
        let (images, labels) = match &self.names[..] {
            [only] => (Some(only.clone()), None),
            _ => (self.find(image_names(part)), self.find(label_names(part))),
        };
        let Some(images) = images else { return Ok(None) };
        let (shape, pixels) = self.read(&images, npy::read_any)?;
        let name = format!("{} {images}", file_name(&self.path));
        let labels = labels.and_then(|labels| {
            let n = pixels.len() / shape.values();
            labels_beside(self.read(&labels, npy::read_labels), n, &self.place(&labels))
        });
        let sources = vec![self.path.clone()];
        Ok(Some(Split { shape, ..Split::levels(name, pixels, labels, sources) }))
    }

    /// Returns the error that the file lacks the images of a part.
    pub fn missing(&self, part: Part) -> anyhow::Error {
        const SHOWN: usize = 12;
        let mut found = self.names[..self.names.len().min(SHOWN)].join(", ");
        if self.names.is_empty() {
            found += "nothing";
        }
        anyhow::anyhow!(
            "{}: no {} images in this file: looked for an array {}; found {found}",
            self.path.display(),
            part.name(),
            image_names(part).join(" or ")
        )
    }

    fn find(&self, names: [String; 3]) -> Option<String> {
        names.into_iter().find(|name| self.names.contains(name))
    }

    /// Names the file and an array in it, for messages.
    fn place(&self, array: &str) -> String {
        format!("{}, {array}", self.path.display())
    }

    /// Reads an array to its end, which verifies its checksum.
    fn read<T>(&self, array: &str, reader: fn(Input) -> Result<T>) -> Result<T> {
        let place = self.place(array);
        let mut zip = zip(&self.path)?;
        let entry = match zip.index_for_name(&format!("{array}.npy")) {
            Some(i) => zip.by_index(i),
            None => zip.by_name(array),
        };
        let entry = entry.with_context(|| format!("{place}: cannot be read"))?;
        let method = entry.compression();
        ensure!(
            matches!(method, CompressionMethod::Stored | CompressionMethod::Deflated),
            "{place}: compressed with {method}, which NumPy does not write: write the file with np.savez"
        );
        // An entry cannot be larger than its file, whatever its header claims.
        let file = self.path.metadata().map_or(0, |meta| meta.len());
        let (packed, size) = (method != CompressionMethod::Stored, entry.compressed_size().min(file));
        reader(Input::from_entry(place, entry, packed, size)?)
    }
}

fn zip(path: &Path) -> Result<ZipArchive<BufReader<File>>> {
    let file = File::open(path).with_context(|| format!("{}: cannot be opened", path.display()))?;
    ZipArchive::new(BufReader::new(file))
        .with_context(|| format!("{}: truncated or damaged, or not an .npz file", path.display()))
}

/// Returns the names of a part's images that are recognised. Keras's name comes first.
fn image_names(part: Part) -> [String; 3] {
    let part = part.name();
    [format!("x_{part}"), format!("{part}_images"), part.to_owned()]
}

fn label_names(part: Part) -> [String; 3] {
    let part = part.name();
    [format!("y_{part}"), format!("{part}_labels"), format!("labels_{part}")]
}
