//! An opened data file, or one array of an `.npz` file. Its content is a stream, unpacked if necessary, that counts the bytes
//! read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::bufread::GzDecoder;

/// Largest ratio of unpacked to packed size. Deflate makes at most 258 bytes from 2 bits.
const DEFLATE_RATIO: u64 = 1032;
/// A packed file's pixels may take this many times its size plus [`EXPANSION_ALLOWANCE`].
const MAX_EXPANSION: u64 = 4;
/// Bytes of pixels that any packed file may have. Binary images compress to a sixteenth; MNIST's 70,000 images have 55 MB.
const EXPANSION_ALLOWANCE: u64 = 64 << 20;

/// A data file opened for reading. Every error names the file and the position in its unpacked content.
pub struct Input<'a> {
    /// Name of the file, and of the array in it, for errors.
    name: String,
    reader: Box<dyn BufRead + 'a>,
    /// The first bytes of the content, up to 8.
    head: Vec<u8>,
    /// Name of the compression, for errors; `None` if the content is not packed.
    packing: Option<&'static str>,
    /// Size on disk, in bytes.
    size: u64,
    /// Bytes of content read so far.
    offset: u64,
}

impl Input<'static> {
    /// Opens a file. Its first two bytes, not its name, decide whether it is gzip.
    ///
    /// # Errors
    /// When the path is not a file, or the file is empty or cannot be read. The message names it.
    pub fn open(path: &Path) -> Result<Input<'static>> {
        let name = path.display();
        let meta = std::fs::metadata(path).with_context(|| format!("{name}: cannot be read"))?;
        ensure!(!meta.is_dir(), "{name}: expected a file, got a folder");
        ensure!(meta.is_file(), "{name}: expected a file, got a device, pipe or socket");
        ensure!(meta.len() > 0, "{name}: the file is empty (0 bytes)");
        let file = File::open(path).with_context(|| format!("{name}: cannot be opened"))?;
        let mut file = BufReader::with_capacity(1 << 17, file);
        let gzip =
            file.fill_buf().with_context(|| format!("{name}: cannot be read"))?.starts_with(&GZIP_MAGIC);
        let (reader, packing): (Box<dyn BufRead>, _) = match gzip {
            true => (Box::new(BufReader::with_capacity(1 << 17, Gzip::new(file))), Some("gzip")),
            false => (Box::new(file), None),
        };
        Input::begin(name.to_string(), reader, packing, meta.len())
    }
}

impl<'a> Input<'a> {
    /// Wraps an array of an `.npz` file. It takes `size` bytes of the file, packed or not.
    ///
    /// # Errors
    /// When the array is empty or cannot be read. The message begins with the name.
    pub fn from_entry(name: String, entry: impl Read + 'a, packed: bool, size: u64) -> Result<Input<'a>> {
        let reader = Box::new(BufReader::with_capacity(1 << 17, entry));
        Input::begin(name, reader, packed.then_some("zip"), size)
    }

    /// Reads the first bytes into `head`.
    fn begin(
        name: String,
        reader: Box<dyn BufRead + 'a>,
        packing: Option<&'static str>,
        size: u64,
    ) -> Result<Input<'a>> {
        let mut input = Input { name, reader, head: Vec::new(), packing, size, offset: 0 };
        let mut head = [0; 8];
        let got = input.read_up_to(&mut head)?;
        ensure!(got > 0, input.error("the file is empty (unpacks to 0 bytes)"));
        input.head = head[..got].to_vec();
        input.offset = 0;
        let rest = std::mem::replace(&mut input.reader, Box::new(io::empty()));
        input.reader = Box::new(Cursor::new(input.head.clone()).chain(rest));
        Ok(input)
    }

    /// Returns the first bytes of the content, up to 8, independent of the reading position.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Returns the error `PATH: MESSAGE`.
    pub fn error(&self, message: impl std::fmt::Display) -> anyhow::Error {
        anyhow!("{}: {message}", self.name)
    }

    /// Reads until `buffer` is full or the content ends. Returns the number of bytes read.
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

    /// Fills `buffer`. If the file ends before, returns an error that it is truncated in `what`.
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

    /// Checks before any allocation that the file can hold the `claimed` further bytes of a header.
    pub fn check_claim(&self, claimed: u64, what: &str) -> Result<()> {
        let total = self.offset.saturating_add(claimed);
        if let Some(packing) = self.packing {
            let most = self.size.saturating_mul(DEFLATE_RATIO);
            if total > most {
                bail!(self.error(format_args!(
                    "the header claims {what}, {claimed} bytes: {packing} data of {} bytes cannot hold them",
                    self.size
                )));
            }
        } else if total != self.size {
            let (relation, got) =
                if total > self.size { ("truncated", self.size) } else { ("too long", self.size) };
            bail!(self.error(format_args!(
                "{relation}: the header claims {what}, a file of {total} bytes, got {got}"
            )));
        }
        Ok(())
    }

    /// Checks before any allocation that `bytes` of pixels or labels are plausible for the size of a packed file.
    ///
    /// # Errors
    /// When `bytes` is more than four times the file's size plus 64 MiB.
    pub fn check_memory(&self, bytes: u64) -> Result<()> {
        let most = MAX_EXPANSION.saturating_mul(self.size).saturating_add(EXPANSION_ALLOWANCE);
        if self.packing.is_some() && bytes > most {
            bail!(self.error(format_args!(
                "unpacks to {bytes} bytes of images or more: the limit for {} packed bytes is {most}; if the images are \
                 right, unpack the file first",
                self.size
            )));
        }
        Ok(())
    }

    /// Reads exactly the `claimed` remaining bytes of the file. Memory grows with the bytes read, not with the claim.
    pub fn read_body(&mut self, claimed: u64, what: &str) -> Result<Vec<u8>> {
        self.check_claim(claimed, what)?;
        self.check_memory(claimed)?;
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

    /// Checks that the content ends here. This also verifies gzip's checksum.
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
        match self.packing {
            // The stream itself is intact.
            Some(_) if error.kind() == io::ErrorKind::InvalidInput => {
                self.error(format_args!("{error}, after {at} unpacked bytes"))
            }
            Some(packing) => self.error(format_args!(
                "truncated or damaged: the {packing} stream breaks off after {at} unpacked bytes ({error})"
            )),
            None => self.error(format_args!("cannot be read at byte {at}: {error}")),
        }
    }
}

/// The first two bytes of a gzip file.
pub const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Unpacks consecutive gzip streams. Skips zeros after a stream, which are padding from tapes and block devices.
pub struct Gzip<R> {
    /// `None` after the last stream.
    stream: Option<GzDecoder<R>>,
}

impl<R: BufRead> Gzip<R> {
    /// Unpacks the content of a reader.
    pub fn new(packed: R) -> Gzip<R> {
        Gzip { stream: Some(GzDecoder::new(packed)) }
    }
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(stream) = &mut self.stream {
            let got = stream.read(buffer)?;
            if got > 0 || buffer.is_empty() {
                return Ok(got);
            }
            let Some(stream) = self.stream.take() else { break };
            let mut packed = stream.into_inner();
            skip_zeros(&mut packed)?;
            match packed.fill_buf()? {
                [] => {}
                [first, ..] if *first == GZIP_MAGIC[0] => self.stream = Some(GzDecoder::new(packed)),
                _ => {
                    let message = "other bytes follow the gzip stream";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
                }
            }
        }
        Ok(0)
    }
}

fn skip_zeros(packed: &mut impl BufRead) -> io::Result<()> {
    loop {
        let bytes = packed.fill_buf()?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let all = zeros == bytes.len();
        packed.consume(zeros);
        if zeros == 0 || !all {
            return Ok(());
        }
    }
}
