//! Larochelle's `.amat` text: an image a line, 784 numbers 0 or 1 separated by blanks.

use anyhow::{Result, bail};

use super::PIXELS;
use super::input::Input;

/// A line in the form of the published files: digit, blank, digit, ..., digit, line feed.
const LINE: usize = 2 * PIXELS;
/// The longest line accepted (numbers may be written out, as in `1.000000000000000000e+00`), and the bytes read at once.
const WINDOW: usize = 1 << 18;

/// Reads all images, one after the other: `n * 784` bytes, each 0 or 1.
///
/// # Errors
/// Name the file, the line and the column (both from 1) of the first thing that is not as it should be; nothing after
/// that is read.
pub fn read(mut input: Input) -> Result<Vec<u8>> {
    let mut parser = Parser { pixels: Vec::new(), line: 0, blank: None };
    let mut window = vec![0; WINDOW];
    let mut have = 0;
    loop {
        let got = input.read_up_to(&mut window[have..])?;
        have += got;
        let last = have < window.len();
        let used = parser.lines(&window[..have], last).map_err(|e| input.error(e))?;
        if last {
            break;
        }
        if used == 0 {
            bail!(input.error(format_args!(
                "line {}: expected {PIXELS} numbers 0 or 1, got no line end within {WINDOW} bytes",
                parser.line + 1
            )));
        }
        window.copy_within(used..have, 0);
        have -= used;
    }
    if parser.pixels.is_empty() {
        bail!(input.error("no images: expected lines of 784 numbers 0 or 1, got blank lines only"));
    }
    Ok(parser.pixels)
}

struct Parser {
    pixels: Vec<u8>,
    /// Lines read so far.
    line: usize,
    /// The first blank line: nothing but blank lines may follow.
    blank: Option<usize>,
}

impl Parser {
    /// Reads the whole lines in `text`; with `last` also one that has no line end. Returns the bytes used.
    fn lines(&mut self, text: &[u8], last: bool) -> Result<usize> {
        let mut at = 0;
        while at < text.len() {
            let rest = &text[at..];
            if let Some(line) = rest.first_chunk()
                && self.published_form(line)
            {
                at += LINE;
                continue;
            }
            match rest.iter().position(|&b| b == b'\n') {
                Some(end) => {
                    self.any_form(&rest[..end])?;
                    at += end + 1;
                }
                None if last => {
                    self.any_form(rest)?;
                    at = text.len();
                }
                None => break,
            }
        }
        Ok(at)
    }

    /// Reads a line in the published files' form, or changes nothing. Without branches, so that it is done in vectors:
    /// the text of the training set has 78 MB.
    fn published_form(&mut self, line: &[u8; LINE]) -> bool {
        if self.blank.is_some() {
            return false;
        }
        let (pairs, end) = line.split_at(LINE - 2);
        let start = self.pixels.len();
        let mut wrong = (end[0] & 0xfe) ^ b'0' | end[1] ^ b'\n';
        self.pixels.extend(pairs.chunks_exact(2).map(|pair| {
            wrong |= (pair[0] & 0xfe) ^ b'0' | pair[1] ^ b' ';
            pair[0] & 1
        }));
        self.pixels.push(end[0] & 1);
        if wrong != 0 {
            self.pixels.truncate(start);
            return false;
        }
        self.line += 1;
        true
    }

    /// Reads a line without its line end: blanks and tabs in any number, numbers in any form.
    fn any_form(&mut self, line: &[u8]) -> Result<()> {
        self.line += 1;
        let start = self.pixels.len();
        let mut at = 0;
        while at < line.len() {
            if line[at].is_ascii_whitespace() {
                at += 1;
                continue;
            }
            let length = line[at..].iter().position(u8::is_ascii_whitespace).unwrap_or(line.len() - at);
            let token = &line[at..at + length];
            let count = self.pixels.len() - start;
            let Some(value) = zero_or_one(token) else {
                bail!(
                    "line {}, column {} (number {}): expected 0 or 1, got {}",
                    self.line,
                    at + 1,
                    count + 1,
                    quoted(token)
                );
            };
            if count == PIXELS {
                bail!("line {}: expected {PIXELS} numbers, got more (column {})", self.line, at + 1);
            }
            self.pixels.push(value);
            at += length;
        }
        let count = self.pixels.len() - start;
        match (count, self.blank) {
            (0, _) => self.blank = self.blank.or(Some(self.line)),
            (PIXELS, None) => {}
            (PIXELS, Some(blank)) => bail!("line {blank}: expected {PIXELS} numbers, got a blank line"),
            _ => bail!("line {}: expected {PIXELS} numbers, got {count}", self.line),
        }
        Ok(())
    }
}

fn zero_or_one(token: &[u8]) -> Option<u8> {
    match token {
        b"0" => Some(0),
        b"1" => Some(1),
        _ => match std::str::from_utf8(token).ok()?.parse::<f64>().ok()? {
            0.0 => Some(0),
            1.0 => Some(1),
            _ => None,
        },
    }
}

/// A token for an error message: short, and without control characters.
fn quoted(token: &[u8]) -> String {
    let shown = &token[..token.len().min(24)];
    let dots = if shown.len() < token.len() { "..." } else { "" };
    format!("'{}{dots}'", shown.escape_ascii())
}
