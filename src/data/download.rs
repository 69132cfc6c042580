//! Fetching public data sets over HTTP(S), such that what is there afterwards is right, or is not there.
//!
//! A file takes its name only when it is whole (`crate::files`) and its checksum was compared. Mirrors are tried in turn; when none has the file, the error lists each address
//! and why it failed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ureq::Agent;

use super::known::{self, Known};
use crate::error::{Error, Tag};
use crate::files::Draft;

pub use super::known::verify;

/// How far the download of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Name of the file.
    pub file: &'a str,
    /// Bytes that have come.
    pub bytes: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// How to fetch.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Where the files are, instead of the known mirrors: `http://`, `https://` or `file://`, without the file's name.
    pub url: Option<&'a str>,
    /// Is called after each piece of a file has come.
    pub progress: &'a dyn Fn(&Progress<'_>),
    /// How long to wait for a connection, and at any later time for the next bytes.
    pub patience: Duration,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options { url: None, progress: &|_| {}, patience: Duration::from_secs(20) }
    }
}

/// A file that is now there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Where it is now.
    pub path: PathBuf,
    /// Where it came from; `None` if it was there already, and right.
    pub url: Option<String>,
}

/// Fetches a data set's files into a folder, which is made if need be: `binarized-mnist`, `mnist` or `fashion-mnist`.
///
/// Files that are there and right are left alone. A file that is there with other content is replaced once the right
/// one has come, and kept beside it as `NAME.bad`. Files that are unpacked where the published one is packed, or the
/// other way round, are right too, where the content's checksum is known; an address given in `options` may offer them.
///
/// # Errors
/// [`Error::Usage`] for an unknown name. [`Error::Data`] for the first file that cannot be had: each address that was tried, and
/// why it failed. What came before stays.
pub fn fetch(name: &str, dir: &Path, options: &Options) -> Result<Vec<Fetched>> {
    let set = known::find(name).tag(Error::Usage)?;
    fetch_files(set.files, set.mirrors, dir, options).tag(Error::Data)
}

fn fetch_files(files: &[Known], mirrors: &[&str], dir: &Path, options: &Options) -> Result<Vec<Fetched>> {
    fs::create_dir_all(dir).with_context(|| format!("{}: the folder cannot be made", dir.display()))?;
    let config = Agent::config_builder()
        .user_agent(concat!("vnca/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(options.patience))
        .timeout_connect(Some(options.patience))
        .timeout_recv_response(Some(options.patience))
        .timeout_per_read(Some(options.patience));
    let agent = config.build().new_agent();
    let mut done = Vec::new();
    for file in files {
        let fetched = fetch_file(file, mirrors, dir, options, &agent).with_context(|| {
            format!(
                "{} of {} files are in {}; the next could not be had",
                done.len(),
                files.len(),
                dir.display()
            )
        })?;
        done.push(fetched);
    }
    Ok(done)
}

fn fetch_file(
    file: &Known,
    mirrors: &[&str],
    dir: &Path,
    options: &Options,
    agent: &Agent,
) -> Result<Fetched> {
    let here: Vec<PathBuf> =
        file.names().iter().map(|name| dir.join(name)).filter(|path| path.exists()).collect();
    if let Some(path) = here.iter().find(|path| file.check(path).is_ok()) {
        return Ok(Fetched { path: path.clone(), url: None });
    }
    // The mirrors have each file under its published name only.
    let (bases, names) = match options.url {
        Some(url) => (vec![url], file.names()),
        None => (mirrors.to_vec(), vec![file.name.to_owned()]),
    };
    let mut failures = String::new();
    for base in bases {
        for name in &names {
            let url = format!("{}/{name}", base.trim_end_matches('/'));
            match fetch_from(&url, file, dir, name, options, agent) {
                Ok(part) => {
                    // Else a wrong file that is there in the other packing would still be found first.
                    for path in &here {
                        fs::rename(path, with_suffix(path, ".bad")).with_context(|| {
                            format!("{}: the wrong file cannot be moved away", path.display())
                        })?;
                    }
                    let path = part.path().to_owned();
                    part.publish()?;
                    return Ok(Fetched { path, url: Some(url) });
                }
                Err(e) => failures += &format!("\n  {url}: {e:#}"),
            }
        }
    }
    bail!("{}: no address gave the file:{failures}", file.name);
}

/// Brings a file to the disk under a temporary name, and checks it.
fn fetch_from(
    url: &str,
    file: &Known,
    dir: &Path,
    name: &str,
    options: &Options,
    agent: &Agent,
) -> Result<Draft> {
    // In the other packing it is another size: no larger than the larger of the two.
    let expected =
        if name == file.name { file.bytes } else { file.plain.map_or(file.bytes, |(bytes, _)| bytes) };
    let limit = expected.max(file.bytes);
    let (mut source, announced) = open(url, agent)?;
    let total = announced.unwrap_or(expected);
    let mut part = Draft::create(&dir.join(name))?;
    let mut chunk = vec![0; 1 << 16];
    let mut got = 0;
    loop {
        let n =
            source.read(&mut chunk).with_context(|| format!("broke off after {got} of {expected} bytes"))?;
        if n == 0 {
            break;
        }
        got += n as u64;
        ensure!(got <= limit, "too long: expected {limit} bytes at most, got more");
        part.write_all(&chunk[..n]).with_context(|| format!("cannot write {}", part.path().display()))?;
        (options.progress)(&Progress { file: name, bytes: got, total });
    }
    file.check(part.sync()?)?;
    Ok(part)
}

/// Opens an address for reading; with its size, if that is announced.
fn open(url: &str, agent: &Agent) -> Result<(Box<dyn Read>, Option<u64>)> {
    if let Some(path) = url.strip_prefix("file://") {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        ensure!(meta.is_file(), "expected a file, got a folder or device");
        return Ok((Box::new(file), Some(meta.len())));
    }
    if !url.starts_with("http://") && !url.starts_with("https://") {
        bail!("expected an address that starts with http://, https:// or file://");
    }
    let body = agent.get(url).call()?.into_body();
    let announced = body.content_length();
    Ok((Box::new(body.into_reader()), announced))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests;
