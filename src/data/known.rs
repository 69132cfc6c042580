//! The known public data files with their addresses, sizes and checksums, and the verification of a folder against them.
//!
//! The sha256 are those published with TensorFlow Datasets (binarized MNIST, Fashion-MNIST) and in many MNIST loaders. Those of
//! binarized MNIST, of MNIST's test files and of its training labels were also computed from the files.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::input::{GZIP_MAGIC, Gzip, Input};
use super::{amat, idx, mean, npy};

/// A public data set.
pub struct DataSet {
    /// Name on the command line.
    pub name: &'static str,
    /// Addresses of folders with all files, in the order in which they are tried.
    pub mirrors: &'static [&'static str],
    /// The files of the set.
    pub files: &'static [Known],
}

/// A public data file.
#[derive(Clone, Copy)]
pub struct Known {
    /// The file's name.
    pub name: &'static str,
    /// Size of the published file in bytes.
    pub bytes: u64,
    /// Digest of the published file, in hexadecimal digits.
    pub sha256: &'static str,
    /// Size and digest of the unpacked content, if known. Equal to those of the file if it is published unpacked.
    pub plain: Option<(u64, &'static str)>,
}

const fn plain(name: &'static str, bytes: u64, sha256: &'static str) -> Known {
    Known { name, bytes, sha256, plain: Some((bytes, sha256)) }
}

/// The data sets that can be downloaded.
pub const SETS: [DataSet; 3] = [
    DataSet {
        name: "binarized-mnist",
        mirrors: &["http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"],
        files: &[
            plain(
                "binarized_mnist_train.amat",
                78_400_000,
                "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
            ),
            plain(
                "binarized_mnist_valid.amat",
                15_680_000,
                "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
            ),
            plain(
                "binarized_mnist_test.amat",
                15_680_000,
                "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
            ),
        ],
    },
    DataSet {
        name: "mnist",
        mirrors: &[
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "https://storage.googleapis.com/cvdf-datasets/mnist",
        ],
        files: &[
            Known {
                name: "train-images-idx3-ubyte.gz",
                bytes: 9_912_422,
                sha256: "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                plain: Some((47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db")),
            },
            Known {
                name: "train-labels-idx1-ubyte.gz",
                bytes: 28_881,
                sha256: "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                plain: Some((60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5")),
            },
            Known {
                name: "t10k-images-idx3-ubyte.gz",
                bytes: 1_648_877,
                sha256: "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                plain: Some((7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7")),
            },
            Known {
                name: "t10k-labels-idx1-ubyte.gz",
                bytes: 4_542,
                sha256: "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                plain: Some((10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2")),
            },
        ],
    },
    DataSet {
        name: "fashion-mnist",
        mirrors: &[
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
        ],
        files: &[
            Known {
                name: "train-images-idx3-ubyte.gz",
                bytes: 26_421_880,
                sha256: "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                plain: None,
            },
            Known {
                name: "train-labels-idx1-ubyte.gz",
                bytes: 29_515,
                sha256: "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                plain: None,
            },
            Known {
                name: "t10k-images-idx3-ubyte.gz",
                bytes: 4_422_102,
                sha256: "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                plain: None,
            },
            Known {
                name: "t10k-labels-idx1-ubyte.gz",
                bytes: 5_148,
                sha256: "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                plain: None,
            },
        ],
    },
];

/// Returns a data set by name.
///
/// # Errors
/// When the name is unknown. The message lists the known names.
pub fn find(name: &str) -> Result<&'static DataSet> {
    SETS.iter().find(|set| set.name == name).with_context(|| {
        let names = SETS.map(|set| set.name).join(", ");
        format!("expected a data set among {names}, got '{name}'")
    })
}

impl Known {
    /// Returns the names that the file may have: the published one, and that of the other packing if it can be verified.
    pub fn names(&self) -> Vec<String> {
        let mut names = vec![self.name.to_owned()];
        if self.plain.is_some() {
            names.push(match self.name.strip_suffix(".gz") {
                Some(unpacked) => unpacked.to_owned(),
                None => format!("{}.gz", self.name),
            });
        }
        names
    }

    /// Checks that a file has this content, packed or unpacked.
    ///
    /// # Errors
    /// When it differs. The message has the expected and the actual checksum and size, without the file's name.
    pub fn check(&self, path: &Path) -> Result<()> {
        let found = Digest::from_file(path)?;
        if found.sha256 == self.sha256 {
            return Ok(());
        }
        let (what, found, bytes, sha256) = match self.plain {
            Some((bytes, sha256)) => match Digest::from_unpacked(path, bytes)? {
                Some(unpacked) => ("unpacked ", unpacked, bytes, sha256),
                None => ("", found, bytes, sha256),
            },
            None => ("", found, self.bytes, self.sha256),
        };
        if found.sha256 != sha256 {
            // Reading stops soon after the expected size.
            let more = if found.bytes > bytes { "at least " } else { "" };
            bail!(
                "wrong content: expected {what}sha256 {sha256} ({bytes} bytes), got {} ({more}{} bytes)",
                found.sha256,
                found.bytes
            );
        }
        Ok(())
    }
}

/// Size and sha256 of a file.
pub struct Digest {
    /// Size in bytes.
    pub bytes: u64,
    /// Digest in hexadecimal digits.
    pub sha256: String,
}

impl Digest {
    /// Computes the digest of a file as stored.
    pub fn from_file(path: &Path) -> Result<Digest> {
        Digest::from_stream(open(path)?).with_context(|| format!("{}: cannot be read", path.display()))
    }

    /// Computes the digest of a gzip file's content; `None` for other files. Stops after one byte more than expected.
    fn from_unpacked(path: &Path, expected: u64) -> Result<Option<Digest>> {
        let mut magic = Vec::new();
        open(path)?.take(2).read_to_end(&mut magic)?;
        if magic != GZIP_MAGIC {
            return Ok(None);
        }
        let unpacked = Gzip::new(BufReader::new(open(path)?)).take(expected.saturating_add(1));
        Digest::from_stream(unpacked).context("truncated or damaged gzip data").map(Some)
    }

    fn from_stream(mut stream: impl Read) -> std::io::Result<Digest> {
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        let mut chunk = vec![0; 1 << 16];
        loop {
            match stream.read(&mut chunk)? {
                0 => break,
                n => {
                    hash.update(&chunk[..n]);
                    bytes += n as u64;
                }
            }
        }
        let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Digest { bytes, sha256 })
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("{}: cannot be opened", path.display()))
}

/// The result of [`verify`] for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, strum::Display)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Status {
    /// The file is the published one, or has its content in another packing.
    Ok,
    /// The file has a published name but other content.
    Mismatch,
    /// No published file has this name.
    Unknown,
}

/// A data file of a folder.
#[derive(Clone, Debug, Serialize)]
pub struct FileReport {
    /// The file's name.
    pub file: String,
    /// Whether it is a published file.
    pub status: Status,
    /// The data set that it belongs to, for status `ok`.
    pub set: Option<&'static str>,
    /// Size in bytes.
    pub bytes: u64,
    /// Digest in hexadecimal digits.
    pub sha256: String,
    /// Number of images, if the file contains images and can be read.
    pub images: Option<usize>,
    /// Number of labels, if the file contains labels and can be read.
    pub labels: Option<usize>,
    /// Mean pixel from 0 to 1; for grey images before binarization.
    pub mean: Option<f64>,
    /// The problem with the file, if any.
    pub problem: Option<String>,
}

/// The data files of a folder.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The folder.
    pub folder: PathBuf,
    /// The files, sorted by name.
    pub files: Vec<FileReport>,
    /// Whether the folder contains data files and none has a problem.
    pub ok: bool,
}

/// Compares all data files of a folder with the known ones and reads them. Data files are recognised by name: `.amat`, `.csv`,
/// `-ubyte`, `.npy`, also with `.gz`.
///
/// # Errors
/// When the folder cannot be listed or a file cannot be read from disk. Problems with a file's content are in the report.
pub fn verify(dir: &Path) -> Result<Report> {
    let folder = super::Folder::open(dir)?;
    let names = folder.names.iter().filter(|name| reader_for(name).is_some());
    let files: Vec<FileReport> = names.map(|name| verify_file(dir, name)).collect::<Result<_>>()?;
    let ok = !files.is_empty() && files.iter().all(|file| file.problem.is_none());
    Ok(Report { folder: dir.to_owned(), files, ok })
}

fn verify_file(dir: &Path, name: &str) -> Result<FileReport> {
    let path = dir.join(name);
    let Digest { bytes, sha256 } = Digest::from_file(&path)?;
    // The other common spelling: train-images.idx3-ubyte.
    let spelled = name.replace(".idx", "-idx");
    let candidates = SETS
        .iter()
        .flat_map(|set| set.files.iter().map(|file| (set.name, file)))
        .filter(|(_, file)| file.names().contains(&spelled) || spelled == file.name.trim_end_matches(".gz"));
    let (mut status, mut set, mut problem) = (Status::Unknown, None, None);
    for (set_name, known) in candidates {
        match known.check(&path) {
            Ok(()) => {
                (status, set, problem) = (Status::Ok, Some(set_name), None);
                break;
            }
            Err(e) => {
                status = Status::Mismatch;
                problem.get_or_insert(format!("not the file of {set_name}: {e:#}"));
            }
        }
    }
    let (mut images, mut labels, mut mean) = (None, None, None);
    match read(&path, name) {
        Ok(Content::Images(n, m)) => (images, mean) = (Some(n), Some(m)),
        Ok(Content::Labels(n)) => labels = Some(n),
        Err(e) => problem = Some(format!("{e:#}")),
    }
    Ok(FileReport { file: name.to_owned(), status, set, bytes, sha256, images, labels, mean, problem })
}

/// Number of images and their mean pixel, or number of labels.
enum Content {
    Images(usize, f64),
    Labels(usize),
}

type Reader = fn(Input) -> Result<Vec<u8>>;

/// Chooses by name how to read a data file: whether it contains labels, its reader, and the value of a white pixel. `None` for
/// other files.
fn reader_for(name: &str) -> Option<(bool, Reader, f64)> {
    let stem = name.strip_suffix(".gz").unwrap_or(name);
    if stem.ends_with(".amat") || stem.ends_with(".csv") {
        Some((false, |input| Ok(amat::read(input)?.pixels), 1.0))
    } else if stem.ends_with("idx1-ubyte") {
        Some((true, idx::read_labels, 1.0))
    } else if stem.ends_with("-ubyte") {
        Some((false, idx::read_images, 255.0))
    } else if stem.ends_with("labels.npy") {
        Some((true, npy::read_labels, 1.0))
    } else if stem.ends_with(".npy") {
        Some((false, npy::read_images, 1.0))
    } else {
        None
    }
}

fn read(path: &Path, name: &str) -> Result<Content> {
    let (labels, read, white) = reader_for(name).context("not a data file")?;
    let values = read(Input::open(path)?)?;
    // Text may contain grey values.
    let white = if values.iter().any(|value| *value > 1) { 255.0 } else { white };
    match labels {
        true => Ok(Content::Labels(values.len())),
        false => Ok(Content::Images(values.len() / super::PIXELS, mean(&values) / white)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_well_formed() {
        for set in &SETS {
            assert!(!set.mirrors.is_empty() && !set.files.is_empty());
            for mirror in set.mirrors {
                assert!(mirror.starts_with("http") && !mirror.ends_with('/'), "{mirror}");
            }
            for file in set.files {
                let sums = [Some(file.sha256), file.plain.map(|(_, sha256)| sha256)];
                for sum in sums.into_iter().flatten() {
                    assert!(sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()), "{}", file.name);
                }
                assert!(reader_for(file.name).is_some(), "{}", file.name);
                assert!(file.bytes > 0);
            }
        }
        assert_eq!(SETS[1].files[2].names(), ["t10k-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte"]);
        assert_eq!(SETS[0].files[0].names(), ["binarized_mnist_train.amat", "binarized_mnist_train.amat.gz"]);
        assert_eq!(SETS[2].files[0].names(), ["train-images-idx3-ubyte.gz"]);
    }

    #[test]
    fn a_folder_is_checked_file_by_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let line = format!("{}1\n", "0 ".repeat(783));
        std::fs::write(at("binarized_mnist_test.amat"), &line).unwrap();
        std::fs::write(at("mine.amat"), line.repeat(3)).unwrap();
        std::fs::write(at("broken.npy"), "no array").unwrap();
        std::fs::write(at("notes.txt"), "not data").unwrap();
        std::fs::write(at("x.amat.12.part"), "not data").unwrap();
        std::fs::write(at("t10k-labels.idx1-ubyte"), [0, 0, 8, 1, 0, 0, 0, 2, 3, 4]).unwrap();

        let report = verify(dir.path()).unwrap();
        assert!(!report.ok);
        let files: Vec<&str> = report.files.iter().map(|f| f.file.as_str()).collect();
        assert_eq!(files, ["binarized_mnist_test.amat", "broken.npy", "mine.amat", "t10k-labels.idx1-ubyte"]);
        let [test, broken, mine, labels] = &report.files[..] else { unreachable!() };
        assert_eq!((test.status, test.images), (Status::Mismatch, Some(1)));
        assert!(test.problem.as_ref().unwrap().contains("not the file of binarized-mnist"));
        assert_eq!((broken.status, broken.images), (Status::Unknown, None));
        assert!(broken.problem.as_ref().unwrap().contains("broken.npy"));
        assert_eq!((mine.status, mine.images, mine.problem.as_ref()), (Status::Unknown, Some(3), None));
        assert!((mine.mean.unwrap() - 1.0 / 784.0).abs() < 1e-12);
        assert_eq!((labels.status, labels.labels, labels.images), (Status::Mismatch, Some(2), None));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["files"][2]["status"], "unknown");
    }

    #[test]
    fn a_folder_without_data_is_not_ok() {
        assert!(!verify(tempfile::tempdir().unwrap().path()).unwrap().ok);
        let error = verify(Path::new("/no/such/folder")).unwrap_err().to_string();
        assert!(error.contains("/no/such/folder"), "{error}");
    }
}
