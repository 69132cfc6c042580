//! The metrics of a run: `metrics.jsonl`, with one line per gradient step, and TensorBoard event files.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::files;

/// The metrics of a gradient step. Contains no times, so that two runs with the same seeds write the same lines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Number of the step, counted from 1.
    pub step: usize,
    /// Training loss in nats.
    pub loss: f32,
    /// Norm of the averaged gradient, before clipping.
    pub grad_norm: f32,
    /// Score of the evaluation after this step, if one was due; `None` (in the file `null`) if it is not finite. The name has `_`
    /// for `/`: `test_iwelbo`, in nats.
    #[serde(flatten)]
    pub scores: BTreeMap<String, Option<f64>>,
}

impl Line {
    /// Returns a step's line, with the name and value of the score if an evaluation took place.
    pub fn new(step: usize, loss: f32, grad_norm: f32, score: Option<(&str, f64)>) -> Line {
        let finite = |value: f64| Some(value).filter(|value| value.is_finite());
        let scores = score.into_iter().map(|(name, value)| (name.replace('/', "_"), finite(value))).collect();
        Line { step, loss, grad_norm, scores }
    }

    /// Returns the line with the name and value of a score, if there is one.
    pub(super) fn scored(&self, score: Option<(&str, f64)>) -> Line {
        Line::new(self.step, self.loss, self.grad_norm, score)
    }
}

/// Writes the metrics files of a run.
pub struct Metrics {
    path: PathBuf,
    lines: BufWriter<File>,
    /// `None` after they could not be written: TensorBoard's copy of the lines is not worth a run.
    events: Option<Events>,
}

impl Metrics {
    /// Opens the files of a run that continues after a step. Removes the lines of later steps, which were written after the last
    /// checkpoint.
    ///
    /// A damaged or incomplete log does not stop the run. If lines would be lost, the old content is kept as
    /// `metrics.jsonl.aside`, with a warning.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn open(run: &Path, step: usize) -> Result<Metrics> {
        let path = run.join("metrics.jsonl");
        let at = || format!("cannot write {}", path.display());
        let KeptLines { bytes: keep, lines } = lines_to_keep(&path, step)?;
        let content = fs::metadata(&path).map_or(0, |found| found.len());
        if content > keep && (step == 0 || lines < step) {
            let aside = path.with_extension("jsonl.aside");
            fs::copy(&path, &aside).with_context(|| format!("cannot write {}", aside.display()))?;
            log::warn!("the run continues from step {step}: saved the old log as {}", aside.display());
        }
        if lines < step {
            log::warn!("{} lacks {} of the steps before step {}", path.display(), step - lines, step + 1);
        }
        // First, for this may fail while the log is as it was.
        let events = Events::create(&run.join("tensorboard"), step)?;
        let file = OpenOptions::new().create(true).append(true).open(&path).with_context(at)?;
        file.set_len(keep).with_context(at)?;
        Ok(Metrics { lines: BufWriter::new(file), path, events: Some(events) })
    }

    /// Writes a line to both files.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        serde_json::to_writer(&mut self.lines, line)
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        self.lines.write_all(b"\n").with_context(|| format!("cannot write {}", self.path.display()))?;
        self.write_events(|events| {
            events.scalar(line.step, "train/loss", line.loss)?;
            events.scalar(line.step, "train/grad_norm", line.grad_norm)?;
            line.scores.iter().try_for_each(|(name, value)| match value {
                Some(value) => events.scalar(line.step, &name.replacen('_', "/", 1), *value as f32),
                None => Ok(()),
            })
        });
        Ok(())
    }

    /// Flushes the buffers, so that other processes can read the lines.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.write_events(|events| events.out.flush().context("cannot write them"));
        self.lines.flush().with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Writes to TensorBoard's events. After an error, says so once and writes no more of them.
    fn write_events(&mut self, write: impl FnOnce(&mut Events) -> Result<()>) {
        if let Some(Err(error)) = self.events.as_mut().map(write) {
            log::warn!("TensorBoard gets no more events of this run: {error:#}");
            self.events = None;
        }
    }

    /// Flushes the lines to disk. They must be on disk before the checkpoint that follows them.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.lines.get_ref().sync_data().with_context(|| format!("cannot flush {}", self.path.display()))
    }
}

/// The part of a log that a resumed run keeps.
#[derive(Default)]
struct KeptLines {
    bytes: u64,
    lines: usize,
}

/// Finds the leading lines that are intact and in order, of steps up to `step`.
fn lines_to_keep(path: &Path, step: usize) -> Result<KeptLines> {
    let at = || format!("cannot read {}", path.display());
    let mut reader = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(KeptLines::default()),
        file => BufReader::new(file.with_context(at)?),
    };
    let (mut kept, mut last, mut text) = (KeptLines::default(), 0, Vec::new());
    while last < step {
        text.clear();
        reader.read_until(b'\n', &mut text).with_context(at)?;
        let line: Option<Line> = serde_json::from_slice(&text).ok().filter(|_| text.ends_with(b"\n"));
        match line.filter(|line| line.step > last && line.step <= step) {
            Some(line) => last = line.step,
            None => break,
        }
        kept.bytes += text.len() as u64;
        kept.lines += 1;
    }
    Ok(kept)
}

/// A TensorBoard event file. A record is a length, its checksum, a protobuf message and its checksum.
struct Events {
    out: BufWriter<File>,
}

impl Events {
    fn create(folder: &Path, step: usize) -> Result<Events> {
        files::create_within(folder)?;
        // Readers order the files by name. The clock may have been set back since the last file.
        let last = newest_stamp(folder)?.map_or(0, |stamp| stamp + 1);
        let stamp = last.max(now() as u64);
        let path = folder.join(format!("events.out.tfevents.{stamp:010}.vnca.{step}"));
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut events = Events { out: BufWriter::new(file) };
        // Event.file_version is field 3. Event.session_log is field 7; with status START it makes readers drop the values
        // of this and later steps in the run's earlier files.
        events.event(0, &message(3, b"brain.Event:2"))?;
        events.event(step + 1, &message(7, &[0x08, 0x01]))?;
        Ok(events)
    }

    /// Writes a summary (field 5 of an event) of one value (field 1): its tag (1) and its number (2).
    fn scalar(&mut self, step: usize, tag: &str, value: f32) -> Result<()> {
        let mut body = message(1, tag.as_bytes());
        body.push(0x15);
        body.extend_from_slice(&value.to_le_bytes());
        self.event(step, &message(5, &message(1, &body)))
    }

    /// Writes an event: wall time (field 1), step (field 2) and content.
    fn event(&mut self, step: usize, what: &[u8]) -> Result<()> {
        let mut body = vec![0x09];
        body.extend_from_slice(&now().to_le_bytes());
        body.push(0x10);
        varint(&mut body, step as u64);
        body.extend_from_slice(what);
        let length = (body.len() as u64).to_le_bytes();
        let mut write = |bytes: &[u8]| self.out.write_all(bytes).context("cannot write them");
        write(&length)?;
        write(&masked_crc(&length))?;
        write(&body)?;
        write(&masked_crc(&body))
    }
}

/// Returns the greatest time stamp in the names of a folder's event files.
fn newest_stamp(folder: &Path) -> Result<Option<u64>> {
    let mut newest = None;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let name = entry?.file_name();
        let stamp =
            name.to_str().and_then(|name| name.strip_prefix("events.out.tfevents.")?.split('.').next());
        newest = newest.max(stamp.and_then(|stamp| stamp.parse().ok()));
    }
    Ok(newest)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Encodes a length-delimited protobuf field.
fn message(field: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    varint(&mut out, bytes.len() as u64);
    out.extend_from_slice(bytes);
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Returns the checksum of a record: CRC-32C, rotated and shifted as TensorFlow's record format defines it.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_after_the_step_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let line = |step| Line::new(step, 1.5, 2.5, None);
        let mut metrics = Metrics::open(folder.path(), 0).unwrap();
        for step in 1..=5 {
            metrics.write(&line(step)).unwrap();
        }
        metrics.sync().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}{{\"step\":6,\"lo")).unwrap();
        drop(Metrics::open(folder.path(), 3).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 3);
        assert!(!path.with_extension("jsonl.aside").exists());
    }

    #[test]
    fn a_damaged_log_does_not_stop_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("metrics.jsonl"), folder.path().join("metrics.jsonl.aside"));
        let lines = |steps: &[usize]| -> String {
            steps
                .iter()
                .map(|s| serde_json::to_string(&Line::new(*s, 1.0, 1.0, None)).unwrap() + "\n")
                .collect()
        };
        let damaged = lines(&[1, 2]) + "{\"step\":3,\n" + &lines(&[4, 5]);
        for (old, step, left, keeps_old) in [
            // The log is truncated or missing.
            (lines(&[1, 2]), 4, lines(&[1, 2]), false),
            (String::new(), 4, String::new(), false),
            // An earlier resume left a gap.
            (lines(&[1, 2, 5, 6]), 5, lines(&[1, 2, 5]), true),
            (damaged.clone(), 5, lines(&[1, 2]), true),
            // The run has no checkpoint and starts again.
            (lines(&[1, 2]), 0, String::new(), true),
        ] {
            let _ = fs::remove_file(&aside);
            fs::write(&path, &old).unwrap();
            drop(Metrics::open(folder.path(), step).unwrap());
            assert_eq!(fs::read_to_string(&path).unwrap(), left);
            assert_eq!(fs::read_to_string(&aside).ok(), keeps_old.then_some(old));
        }
    }

    #[test]
    fn a_new_event_file_sorts_last_even_after_the_clock_was_set_back() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("events.out.tfevents.9999999990.vnca.0"), "").unwrap();
        drop(Events::create(folder.path(), 3).unwrap());
        assert!(folder.path().join("events.out.tfevents.9999999991.vnca.3").exists());
    }

    #[test]
    fn event_records_have_the_published_checksum() {
        // CRC-32C of 32 zero bytes is 0x8a9136aa (RFC 3720, appendix B.4).
        let crc = 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked_crc(&[0; 32]), crc.to_le_bytes());
    }
}
