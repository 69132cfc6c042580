//! Downloads public data sets over HTTP(S) and verifies them.
//!
//! A file gets its final name only when it is complete (`crate::files`) and its checksum is right. Mirrors are tried in turn.
//! If all fail, the error lists each address with the reason.

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

/// Progress of a file's download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Name of the file.
    pub file: &'a str,
    /// Bytes received.
    pub bytes: u64,
    /// Size of the file in bytes.
    pub total: u64,
}

/// Options of a download.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// Address to use instead of the known mirrors: `http://`, `https://` or `file://`, without the file name.
    pub url: Option<&'a str>,
    /// Called after each received part of a file.
    pub progress: &'a dyn Fn(&Progress<'_>),
    /// Time limit for a connection, and for each wait for more bytes.
    pub patience: Duration,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options { url: None, progress: &|_| {}, patience: Duration::from_secs(20) }
    }
}

/// A file that is present and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Path of the file.
    pub path: PathBuf,
    /// Address that it was downloaded from; `None` if it was already present and right.
    pub url: Option<String>,
}

/// Downloads the files of a data set into a folder: `binarized-mnist`, `mnist` or `fashion-mnist`. Creates the folder if it does
/// not exist.
///
/// Keeps files that are present and right. Replaces a file with other content once the right one has been downloaded, and keeps
/// the old one as `NAME.bad`. If the checksum of the unpacked content is known, a file may be unpacked where the published one
/// is packed, or the other way round. An address in `options` may offer either form.
///
/// # Errors
/// [`Error::Usage`] for an unknown name. [`Error::Data`] for the first file that cannot be downloaded. The message lists each
/// address with the reason. Files downloaded before are kept.
pub fn fetch(name: &str, dir: &Path, options: &Options) -> Result<Vec<Fetched>> {
    let set = known::find(name).tag(Error::Usage)?;
    fetch_files(set.files, set.mirrors, dir, options).tag(Error::Data)
}

fn fetch_files(files: &[Known], mirrors: &[&str], dir: &Path, options: &Options) -> Result<Vec<Fetched>> {
    fs::create_dir_all(dir).with_context(|| format!("{}: cannot create the folder", dir.display()))?;
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
                "{} of {} files are in {}; the next one cannot be downloaded",
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
    // Mirrors offer each file only under its published name.
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
                    // A wrong file in the other packing would otherwise still be found first.
                    for path in &here {
                        fs::rename(path, with_suffix(path, ".bad"))
                            .with_context(|| format!("{}: cannot rename the wrong file", path.display()))?;
                    }
                    let path = part.path().to_owned();
                    part.publish()?;
                    return Ok(Fetched { path, url: Some(url) });
                }
                Err(e) => failures += &format!("\n  {url}: {e:#}"),
            }
        }
    }
    bail!("{}: no address has the right file:{failures}", file.name);
}

/// Downloads a file under a temporary name and checks it.
fn fetch_from(
    url: &str,
    file: &Known,
    dir: &Path,
    name: &str,
    options: &Options,
    agent: &Agent,
) -> Result<Draft> {
    // The file may have the other packing. Its size is limited by the larger of the two.
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

/// Opens an address for reading. Also returns its size, if the server announces it.
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
