//! Reads images from text with one image of 784 numbers per line. Larochelle's `.amat` files contain 0 and 1 separated by
//! blanks. Tables of other programs have commas, and may have a line of names, grey values, and a label in the first or last
//! column.

use anyhow::{Result, bail};

use super::PIXELS;
use super::input::Input;
use super::npy::GREY_HELP;

/// Bytes of a line in the published files: digit, blank, digit, ..., digit, line feed.
const LINE: usize = 2 * PIXELS;
/// Bytes read at a time, and the longest accepted line. Numbers may be as long as `1.000000000000000000e+00`.
const WINDOW: usize = 1 << 18;
/// Numbers in a line with a label.
const WITH_LABEL: usize = PIXELS + 1;

/// The images of a text file.
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    /// `n * 784` bytes: 0 or 1; with commas as separators also grey values from 0 to 255.
    pub pixels: Vec<u8>,
    /// A label for each image, if the lines have 785 numbers. The caller must check that they are from 0 to 9.
    pub labels: Option<Vec<u8>>,
}

/// Reads all images.
///
/// # Errors
/// When the text is malformed. The message names the file, and line and column (counted from 1) of the first problem, where
/// reading stops.
pub fn read(mut input: Input) -> Result<Text> {
    let mut parser = Parser::default();
    let mut window = vec![0; WINDOW];
    let mut have = 0;
    loop {
        let got = input.read_up_to(&mut window[have..])?;
        have += got;
        let last = have < window.len();
        let used = parser.lines(&window[..have], last).map_err(|e| input.error(e))?;
        input.check_memory(parser.values.len() as u64)?;
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
    if parser.values.is_empty() {
        bail!(input.error("no images: expected lines of 784 numbers 0 or 1, got blank lines only"));
    }
    let (text, message) = parser.finish().map_err(|e| input.error(e))?;
    if let Some(message) = message {
        log::warn!("{}", input.error(message));
    }
    Ok(text)
}

/// The position of the label in a line of 785 numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum LabelAt {
    First,
    Last,
}

/// The value of a pixel with ink, as far as it is known from the lines read.
#[derive(Clone, Copy, Default, PartialEq)]
enum Ink {
    /// All pixels are 0 so far.
    #[default]
    Unknown,
    One,
    Full,
    /// Some values are grey.
    Grey,
}

impl Ink {
    /// Returns the value after one more pixel.
    fn after(self, pixel: u8) -> Ink {
        match (self, pixel) {
            (ink, 0) => ink,
            (Ink::Unknown | Ink::One, 1) => Ink::One,
            (Ink::Unknown | Ink::Full, 255) => Ink::Full,
            _ => Ink::Grey,
        }
    }
}

#[derive(Default)]
struct Parser {
    /// All numbers, line after line.
    values: Vec<u8>,
    /// Numbers per line, 784 or 785; 0 before the first line.
    columns: usize,
    /// Whether the separators are commas. Otherwise they are blanks.
    commas: bool,
    /// Whether the first line contains names.
    names: bool,
    /// The position of the label according to the names.
    label_at: Option<LabelAt>,
    ink: Ink,
    /// Lines read so far.
    line: usize,
    /// The first blank line. Only blank lines may follow it.
    blank: Option<usize>,
    /// Begin and end of each number in the current line.
    tokens: Vec<(usize, usize)>,
}

impl Parser {
    /// Reads the complete lines in `text`, and with `last` also a final line without line end. Returns the number of bytes read.
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

    /// Reads a line in the form of the published files. Returns false and changes nothing if it has another form. The loop has
    /// no branches, so that the compiler vectorizes it: the text of the training set has 78 MB.
    fn published_form(&mut self, line: &[u8; LINE]) -> bool {
        let fits = matches!(self.columns, 0 | PIXELS) && matches!(self.ink, Ink::Unknown | Ink::One);
        if self.blank.is_some() || self.commas || !fits {
            return false;
        }
        let (pairs, end) = line.split_at(LINE - 2);
        let start = self.values.len();
        let mut wrong = (end[0] & 0xfe) ^ b'0' | end[1] ^ b'\n';
        let mut any = end[0] & 1;
        self.values.extend(pairs.chunks_exact(2).map(|pair| {
            wrong |= (pair[0] & 0xfe) ^ b'0' | pair[1] ^ b' ';
            any |= pair[0] & 1;
            pair[0] & 1
        }));
        self.values.push(end[0] & 1);
        if wrong != 0 {
            self.values.truncate(start);
            return false;
        }
        self.ink = self.ink.after(any);
        self.columns = PIXELS;
        self.line += 1;
        true
    }

    /// Reads a line without its line end: numbers in any notation, separated by commas or by blanks and tabs.
    fn any_form(&mut self, line: &[u8]) -> Result<()> {
        self.line += 1;
        let first = self.columns == 0 && !self.names;
        if line.trim_ascii().is_empty() {
            self.blank = self.blank.or(Some(self.line));
            return Ok(());
        }
        if first && line.contains(&b',') {
            self.commas = true;
        }
        self.split(line);
        if first && self.commas && self.read_names(line)? {
            return Ok(());
        }
        let columns = if self.columns == 0 { WITH_LABEL } else { self.columns };
        let start = self.values.len();
        for i in 0..self.tokens.len() {
            let (from, to) = self.tokens[i];
            let Some(value) = whole_number(&line[from..to]) else { bail!(self.unexpected(line, i)) };
            if i == columns {
                bail!("line {}: expected {columns} numbers, got more (column {})", self.line, from + 1);
            }
            self.values.push(value);
        }
        let count = self.tokens.len();
        match (self.columns, self.blank) {
            (_, Some(blank)) => bail!("line {blank}: expected {columns} numbers, got a blank line"),
            (0, _) if count == PIXELS || count == WITH_LABEL => self.columns = count,
            (columns, _) if columns == count => {}
            (0, _) => {
                // Text with a malformed first line is usually not an image file. Name both forms.
                bail!(
                    "line {}: expected {PIXELS} numbers, or {WITH_LABEL} with a label, got {count}",
                    self.line
                )
            }
            (columns, _) => bail!("line {}: expected {columns} numbers, got {count}", self.line),
        }
        // The first or last of 785 numbers may be the label. `finish` checks them.
        let inside = if count == PIXELS { 0..count } else { 1..PIXELS };
        for i in inside {
            let after = self.ink.after(self.values[start + i]);
            if after == Ink::Grey && !self.commas {
                bail!(self.unexpected(line, i));
            }
            self.ink = after;
        }
        Ok(())
    }

    /// Finds the begin and end of each number in a line.
    fn split(&mut self, line: &[u8]) {
        self.tokens.clear();
        let commas = self.commas;
        let mut from = 0;
        for token in line.split(|&b| if commas { b == b',' } else { b.is_ascii_whitespace() }) {
            let begin = from + token.len() - token.trim_ascii_start().len();
            let end = begin + token.trim_ascii().len();
            from += token.len() + 1;
            if commas || begin < end {
                self.tokens.push((begin.min(end), end));
            }
        }
    }

    /// Reads a first line with the names of the columns. Returns false if it contains numbers.
    fn read_names(&mut self, line: &[u8]) -> Result<bool> {
        const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
        if line.starts_with(BYTE_ORDER_MARK) {
            self.tokens[0].0 += BYTE_ORDER_MARK.len();
        }
        let name = |(from, to): (usize, usize)| {
            line[from.min(to)..to].trim_ascii().trim_ascii_start().to_ascii_lowercase()
        };
        let is_number = |token: &[u8]| std::str::from_utf8(token).is_ok_and(|t| t.parse::<f64>().is_ok());
        if self.tokens.iter().any(|&(from, to)| is_number(&line[from.min(to)..to])) {
            return Ok(false);
        }
        let count = self.tokens.len();
        if count != PIXELS && count != WITH_LABEL {
            bail!(
                "line {}: expected the names of {PIXELS} pixels, or of a label and {PIXELS} pixels, got {count}",
                self.line
            );
        }
        let is_label = |token: (usize, usize)| {
            let name = name(token);
            matches!(name.trim_ascii(), b"label" | b"labels" | b"class" | b"target" | b"y")
                || name == b"\"label\""
                || name == b"'label'"
        };
        self.names = true;
        self.columns = count;
        if count == WITH_LABEL {
            self.label_at = match (is_label(self.tokens[0]), is_label(self.tokens[count - 1])) {
                (true, false) => Some(LabelAt::First),
                (false, true) => Some(LabelAt::Last),
                _ => None,
            };
        }
        Ok(true)
    }

    /// Returns the error for the `i`-th number of a line.
    fn unexpected(&self, line: &[u8], i: usize) -> anyhow::Error {
        let (from, to) = self.tokens[i];
        let token = &line[from..to];
        let expected = match (self.commas, self.ink) {
            (true, _) => "a whole number from 0 to 255",
            (false, Ink::Full) => "0 or 255",
            (false, _) => "0 or 1",
        };
        let help = match whole_number(token) {
            Some(_) if !self.commas => format!(": {GREY_HELP}"),
            _ => String::new(),
        };
        anyhow::anyhow!(
            "line {}, column {} (number {}): expected {expected}, got {}{help}",
            self.line,
            from + 1,
            i + 1,
            quote_token(token)
        )
    }

    /// Separates the labels from the pixels, and maps ink to 1 if no value is grey. Also returns a message for the user, if the
    /// label's position was guessed.
    fn finish(mut self) -> Result<(Text, Option<String>)> {
        let (mut labels, mut message) = (None, None);
        if self.columns == WITH_LABEL {
            let at = match self.label_at {
                Some(at) => at,
                None => {
                    let at = self.find_label()?;
                    let place = if at == LabelAt::First { "first" } else { "last" };
                    message = Some(format!("{WITH_LABEL} numbers in a line: using the {place} one as label"));
                    at
                }
            };
            let (label, pixel) = match at {
                LabelAt::First => (0, PIXELS),
                LabelAt::Last => (PIXELS, 0),
            };
            labels = Some(self.column(label).collect());
            for (row, value) in self.column(pixel).enumerate() {
                if self.ink.after(value) == Ink::Grey && !self.commas {
                    bail!(
                        "line {} (number {}): expected 0 or 1, got {value}",
                        row + 1 + usize::from(self.names),
                        pixel + 1
                    );
                }
            }
            self.ink = self.column(pixel).fold(self.ink, Ink::after);
            let mut i = 0;
            self.values.retain(|_| {
                i += 1;
                (i - 1) % WITH_LABEL != label
            });
        }
        match self.ink {
            Ink::Full => self.values.iter_mut().for_each(|pixel| *pixel = (*pixel).min(1)),
            Ink::Grey => super::check_grey(&self.values)?,
            Ink::Unknown | Ink::One => {}
        }
        Ok((Text { pixels: self.values, labels }, message))
    }

    /// Finds the column of labels: the first or the last column, whichever alone can contain labels. If both can, the usual one:
    /// the first in tables with commas, the last in `.amat` files.
    fn find_label(&self) -> Result<LabelAt> {
        let is_pixel =
            |column| self.ink == Ink::Grey || self.column(column).all(|v| self.ink.after(v) != Ink::Grey);
        let is_label = |column| self.column(column).all(|v| v <= 9);
        let varies = |column| self.column(column).any(|v| v != 0);
        let usual = if self.commas { LabelAt::First } else { LabelAt::Last };
        type Test<'a> = &'a dyn Fn(usize, usize) -> bool;
        let tests: [Test; 3] = [
            &|_, pixel| is_pixel(pixel),
            &|label, _| is_label(label),
            // In most data sets the corner pixel is always background.
            &|label, pixel| varies(label) && !varies(pixel),
        ];
        for (i, test) in tests.iter().enumerate() {
            match (test(0, PIXELS), test(PIXELS, 0)) {
                (true, false) => return Ok(LabelAt::First),
                (false, true) => return Ok(LabelAt::Last),
                (false, false) if i == 0 && !self.commas => bail!(
                    "{WITH_LABEL} numbers in a line: expected {PIXELS} pixels and a label, first or last, but neither is one"
                ),
                _ => {}
            }
        }
        Ok(usual)
    }

    fn column(&self, column: usize) -> impl Iterator<Item = u8> + '_ {
        self.values.iter().skip(column).step_by(WITH_LABEL).copied()
    }
}

fn whole_number(token: &[u8]) -> Option<u8> {
    match token {
        [digit @ b'0'..=b'9'] => Some(digit - b'0'),
        _ => {
            let value = std::str::from_utf8(token).ok()?.parse::<f64>().ok()?;
            (value.fract() == 0.0 && (0.0..=255.0).contains(&value)).then_some(value as u8)
        }
    }
}

/// Quotes a token for an error message, shortened and without control characters.
fn quote_token(token: &[u8]) -> String {
    let shown = &token[..token.len().min(24)];
    let dots = if shown.len() < token.len() { "..." } else { "" };
    format!("'{}{dots}'", shown.escape_ascii())
}
