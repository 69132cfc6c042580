//! An opened data file: its content as one stream, unpacked where it is gzip, which knows how far it has been read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::bufread::MultiGzDecoder;

/// Deflate makes at most 258 bytes from 2 bits: no gzip stream unpacks to more than this many times its size.
const DEFLATE_RATIO: u64 = 1032;

/// A data file opened for reading. Every error names the file, and the place in its (unpacked) content.
pub struct Input {
    /// The file.
    pub path: PathBuf,
    reader: Box<dyn BufRead>,
    /// The first bytes of the content, up to 8.
    head: Vec<u8>,
    gzip: bool,
    /// Size on the disk, in bytes.
    size: u64,
    /// Bytes of content read so far.
    offset: u64,
}

impl Input {
    /// Opens a file; whether it is gzip is seen from its first two bytes, not from its name.
    pub fn open(path: &Path) -> Result<Input> {
        let name = path.display();
        let meta = std::fs::metadata(path).with_context(|| format!("{name}: cannot be read"))?;
        ensure!(!meta.is_dir(), "{name}: expected a file, got a folder");
        ensure!(meta.is_file(), "{name}: expected a file, got a device, pipe or socket");
        ensure!(meta.len() > 0, "{name}: the file is empty (0 bytes)");
        let file = File::open(path).with_context(|| format!("{name}: cannot be opened"))?;
        let mut file = BufReader::with_capacity(1 << 17, file);
        let gzip =
            file.fill_buf().with_context(|| format!("{name}: cannot be read"))?.starts_with(&[0x1f, 0x8b]);
        let reader: Box<dyn BufRead> = match gzip {
            true => Box::new(BufReader::with_capacity(1 << 17, MultiGzDecoder::new(file))),
            false => Box::new(file),
        };
        let mut input =
            Input { path: path.to_owned(), reader, head: Vec::new(), gzip, size: meta.len(), offset: 0 };
        let mut head = [0; 8];
        let got = input.read_up_to(&mut head)?;
        ensure!(got > 0, "{name}: the file is empty (unpacks to 0 bytes)");
        input.head = head[..got].to_vec();
        input.offset = 0;
        let rest = std::mem::replace(&mut input.reader, Box::new(io::empty()));
        input.reader = Box::new(Cursor::new(input.head.clone()).chain(rest));
        Ok(input)
    }

    /// The first bytes of the content, up to 8, whatever has been read since.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// `PATH: MESSAGE`, as an error.
    pub fn error(&self, message: impl std::fmt::Display) -> anyhow::Error {
        anyhow!("{}: {message}", self.path.display())
    }

    /// Reads until `buffer` is full or the content ends; returns the bytes read.
    pub fn read_up_to(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut got = 0;
        while got < buffer.len() {
            match self.reader.read(&mut buffer[got..]) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.broken(e, got)),
            }
        }
        self.offset += got as u64;
        Ok(got)
    }

    /// Fills `buffer`, or says that the file ends within `what`.
    pub fn read_all(&mut self, buffer: &mut [u8], what: &str) -> Result<()> {
        let start = self.offset;
        let got = self.read_up_to(buffer)?;
        if got < buffer.len() {
            let expected = buffer.len();
            bail!(self.error(format_args!(
                "truncated in {what}: expected {expected} bytes from byte {start} on, got {got}"
            )));
        }
        Ok(())
    }

    /// Refuses a header's claim of `claimed` more bytes which the file cannot hold, before anything is allocated.
    pub fn check_claim(&self, claimed: u64, what: &str) -> Result<()> {
        let total = self.offset.saturating_add(claimed);
        if self.gzip {
            let most = self.size.saturating_mul(DEFLATE_RATIO);
            if total > most {
                bail!(self.error(format_args!(
                    "the header claims {what}, {claimed} bytes: gzip data of {} bytes cannot hold that",
                    self.size
                )));
            }
        } else if total != self.size {
            let (relation, got) =
                if total > self.size { ("truncated", self.size) } else { ("too long", self.size) };
            bail!(self.error(format_args!(
                "{relation}: the header claims {what}, which makes {total} bytes in all, got {got}"
            )));
        }
        Ok(())
    }

    /// Reads exactly the `claimed` bytes that are left of the file. Memory grows with what is there.
    pub fn read_body(&mut self, claimed: u64, what: &str) -> Result<Vec<u8>> {
        self.check_claim(claimed, what)?;
        let mut body = Vec::new();
        let result = (&mut self.reader).take(claimed).read_to_end(&mut body);
        if let Err(e) = result {
            return Err(self.broken(e, body.len()));
        }
        let start = self.offset;
        self.offset += body.len() as u64;
        if (body.len() as u64) < claimed {
            let got = body.len();
            bail!(self.error(format_args!(
                "truncated: expected {claimed} bytes from byte {start} on ({what}), got {got}"
            )));
        }
        self.finish(what)?;
        Ok(body)
    }

    /// Checks that the content ends here (and with it gzip's checksum).
    pub fn finish(&mut self, what: &str) -> Result<()> {
        let end = self.offset;
        if self.read_up_to(&mut [0])? > 0 {
            bail!(self.error(format_args!(
                "too long: expected the end at byte {end}, after {what}, got more data"
            )));
        }
        Ok(())
    }

    fn broken(&self, error: io::Error, got: usize) -> anyhow::Error {
        let at = self.offset + got as u64;
        match self.gzip {
            true => self.error(format_args!(
                "truncated or damaged: the gzip stream breaks off after {at} unpacked bytes ({error})"
            )),
            false => self.error(format_args!("cannot be read at byte {at}: {error}")),
        }
    }
}
