//! `vnca data`.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;

use super::run_data::DecodingBar;
use super::{Outcome, Report, print, to_stderr};
use crate::cli::error::Exit;
use crate::data::download::{self, Options, Progress};
use crate::data::reading::content_hash;
use crate::data::{self, Dataset, ImageShape, Reading, Split, Values};
use crate::error::{Error, Tag, valid};
use crate::files;
use crate::study::figure::picture::{Colour, Picture};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Download a data set, verify it, and only then give its files their names
    Fetch {
        #[arg(value_parser = ["binarized-mnist", "mnist", "fashion-mnist"])]
        name: String,
        /// Folder [default: data/NAME under the current one]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Where the files are, instead of the public sources
        #[arg(long, value_name = "BASE")]
        url: Option<String>,
    },
    /// Check the files of a folder against the published checksums
    Verify {
        folder: PathBuf,
        /// Print JSON on stdout
        #[arg(long)]
        json: bool,
    },
    /// Show how a data set is understood: sizes, values, classes, and a picture of some of its images
    Show(ShowArgs),
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// A folder, a file, `glyphs` or `emoji`
    path: String,
    /// Resize images to this height and width, after a centre crop to the aspect ratio
    #[arg(long, value_name = "HxW", value_parser = parse_size)]
    image_size: Option<[usize; 2]>,
    /// Share of the images for training if the data set has no test images
    #[arg(long, value_name = "SHARE")]
    split: Option<f64>,
    /// Skip image files that cannot be read
    #[arg(long)]
    skip_bad: bool,
    /// Exchange rows and columns, as EMNIST's files need
    #[arg(long)]
    transpose: bool,
    /// The picture
    #[arg(long, value_name = "FILE.png", default_value = "data.png")]
    out: PathBuf,
    /// Print JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Parses `HxW`, or a single number for both.
fn parse_size(text: &str) -> Result<[usize; 2], String> {
    let number =
        |text: &str| text.trim().parse::<usize>().map_err(|_| "expected HxW, such as 64x48".to_string());
    match text.split_once(['x', 'X']) {
        Some((height, width)) => Ok([number(height)?, number(width)?]),
        None => number(text).map(|side| [side; 2]),
    }
}

/// A progress bar for each file that is downloaded, drawn where stderr is a terminal.
#[derive(Default)]
struct DownloadBars(RefCell<Option<(String, ProgressBar)>>);

impl DownloadBars {
    fn show(&self, progress: &Progress<'_>) {
        let mut current = self.0.borrow_mut();
        if current.as_ref().is_none_or(|(file, _)| file != progress.file) {
            let template = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(progress.total).with_style(style.progress_chars("=> "));
            *current = Some((progress.file.to_string(), bar.with_message(progress.file.to_string())));
        }
        if let Some((_, bar)) = current.as_ref() {
            bar.set_position(progress.bytes);
            if progress.bytes >= progress.total {
                bar.finish_and_clear();
            }
        }
    }
}

/// How long a download waits for a server that sends nothing.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn run(args: &Args) -> Outcome {
    match &args.action {
        Action::Fetch { name, out, url } => {
            let folder = out.clone().unwrap_or_else(|| PathBuf::from("data").join(name));
            let bars = DownloadBars::default();
            let progress = |progress: &Progress<'_>| bars.show(progress);
            let options = Options { url: url.as_deref(), progress: &progress, patience: PATIENCE };
            for file in download::fetch(name, &folder, &options)? {
                let from =
                    file.url.map_or_else(|| "already present".to_string(), |url| format!("from {url}"));
                to_stderr(&format!("{}: {from}", file.path.display()));
            }
            print(&folder.display().to_string())?;
            Ok(None)
        }
        Action::Verify { folder, json } => {
            let report = download::verify(folder).tag(Error::Data)?;
            if *json {
                print(&serde_json::to_string(&report)?)?;
            } else {
                for file in &report.files {
                    let images = file.images.map(|n| format!(", {n} images")).unwrap_or_default();
                    let mean = file.mean.map(|m| format!(", mean pixel {m:.4}")).unwrap_or_default();
                    let problem = file.problem.as_ref().map(|p| format!(": {p}")).unwrap_or_default();
                    print(&format!("{}: {}{images}{mean}{problem}", file.file, file.status))?;
                }
            }
            Ok(if report.ok { None } else { Some(Exit::BadInput) })
        }
        Action::Show(args) => show(args)?.print(args.json),
    }
}

fn show(args: &ShowArgs) -> Result<Report> {
    let reading = Reading {
        size: args.image_size,
        train_share: args.split,
        skip_bad: args.skip_bad,
        transpose: args.transpose,
        ..Reading::default()
    };
    valid!(
        !files::lies_within(&args.out, Path::new(&args.path)),
        "out",
        "{} lies among the images: the picture would become one of them",
        args.out.display()
    );
    let is_png = args.out.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png"));
    valid!(is_png, "out", "is {}: the picture is a .png", args.out.display());
    files::check_writable(&args.out)?;
    let progress = DecodingBar::default();
    let set = data::load_with(&args.path, &reading, &mut |done, all| progress.show(done, all))?;
    let first = set.train.as_ref().or(set.test.as_ref()).context("no images")?;
    contact_sheet(&first.spread(SHOWN)).write(&args.out)?;
    Ok(describe(&set, first, &args.out))
}

/// Describes a data set as text and JSON. `first` is a part of it.
fn describe(set: &Dataset, first: &Split, picture: &Path) -> Report {
    let parts: Vec<&Split> = [&set.train, &set.test].into_iter().flatten().collect();
    let count = |split: &Option<Split>| split.as_ref().map_or(0, Split::len);
    let (least, most) = parts
        .iter()
        .flat_map(|split| &split.pixels)
        .fold((255, 0), |(least, most), value| (std::cmp::min(least, *value), std::cmp::max(most, *value)));
    let values = match first.values {
        Values::Bits => "bits",
        Values::Levels => "levels",
    };
    let duplicates = duplicates(&parts);
    let classes = classes(set, &parts);
    let ImageShape { height, width, channels } = first.shape;
    let mut lines = vec![
        format!("{}: {}", set.name, set.format),
        format!("train      {} images", count(&set.train)),
        match &set.test {
            Some(test) => format!("test       {} images", test.len()),
            None if set.is_one_for_both() => {
                "test       none: the same images serve as both; --split 0.9 divides them".to_string()
            }
            None => "test       none; --split 0.9 keeps some of the training images for testing".to_string(),
        },
        format!("image      {}", first.shape),
        format!("values     {values}, {least} to {most}, mean {:.4}", first.mean()),
    ];
    for (name, [train, test]) in &classes {
        let tests = if set.test.is_some() { format!(", {test} for testing") } else { String::new() };
        lines.push(format!("class      {name}: {train}{tests}"));
    }
    if duplicates > 0 {
        lines.push(format!("duplicates {duplicates} images are equal to an earlier one"));
    }
    if set.skipped > 0 {
        lines.push(format!("skipped    {} files that cannot be read", set.skipped));
    }
    lines.push(format!("picture    {}", picture.display()));
    let classes: Vec<serde_json::Value> = classes
        .iter()
        .map(|(name, [train, test])| serde_json::json!({"name": name, "train": train, "test": test}))
        .collect();
    let json = serde_json::json!({
        "name": set.name,
        "format": set.format,
        "train": count(&set.train),
        "test": set.test.as_ref().map(Split::len),
        "height": height,
        "width": width,
        "channels": channels,
        "values": values,
        "least": least,
        "greatest": most,
        "mean": first.mean(),
        "classes": classes,
        "duplicates": duplicates,
        "skipped": set.skipped,
        "notes": set.notes,
        "picture": picture.to_string_lossy(),
    });
    Report { json, text: lines.join("\n") }
}

/// Returns the number of images of each class, for training and for testing.
fn classes(set: &Dataset, parts: &[&Split]) -> Vec<(String, [usize; 2])> {
    let labels =
        |split: &Option<Split>| split.as_ref().and_then(|split| split.labels.clone()).unwrap_or_default();
    let sides = [labels(&set.train), labels(&set.test)];
    if parts.iter().all(|split| split.labels.is_none()) {
        return Vec::new();
    }
    let named = set.classes.len();
    let last = sides.iter().flatten().max().map_or(0, |label| usize::from(*label) + 1).max(named);
    (0..last)
        .map(|class| {
            let count =
                |labels: &Vec<u8>| labels.iter().filter(|label| usize::from(**label) == class).count();
            let name = set.classes.get(class).cloned().unwrap_or_else(|| class.to_string());
            (name, [count(&sides[0]), count(&sides[1])])
        })
        .collect()
}

/// Counts the images that are equal to an earlier one, in either part.
fn duplicates(parts: &[&Split]) -> usize {
    let mut seen = HashSet::new();
    let mut count = 0;
    for split in parts {
        let images: Vec<&[u8]> = split.pixels.chunks_exact(split.shape.values()).collect();
        let hashes: Vec<[u8; 32]> =
            images.into_par_iter().map(|image| content_hash(image, split.shape)).collect();
        count += hashes.into_iter().filter(|hash| !seen.insert(*hash)).count();
    }
    count
}

/// Images in the picture, and in a row of it.
const SHOWN: usize = 32;
const ROW: usize = 8;
/// Pixels between images.
const GAP: usize = 2;
/// Least side of an image in the picture: smaller images are enlarged.
const LEAST: usize = 64;

/// Draws images in rows. Transparent ones lie on a light checkerboard.
fn contact_sheet(images: &Split) -> Picture {
    let ImageShape { height, width, channels } = images.shape;
    let scale = LEAST.div_ceil(height.min(width)).max(1);
    let white = if images.values == Values::Bits { 255 } else { 1 };
    let (tile_height, tile_width) = (scale * height + GAP, scale * width + GAP);
    let columns = images.len().clamp(1, ROW);
    let rows = images.len().div_ceil(ROW);
    let (sheet_height, sheet_width) = (rows * tile_height + GAP, columns * tile_width + GAP);
    let mut pixels = vec![128; sheet_height * sheet_width * 3];
    for i in 0..images.len() {
        let image = images.image(i);
        let (top, left) = (i / ROW * tile_height + GAP, i % ROW * tile_width + GAP);
        for y in 0..scale * height {
            for x in 0..scale * width {
                let at = (y / scale * width + x / scale) * channels;
                let value = &image[at..at + channels];
                let colour = match *value {
                    [r, g, b, opacity] => {
                        let ground: u32 = if (y / 8 + x / 8).is_multiple_of(2) { 255 } else { 224 };
                        let below = (255 - u32::from(opacity) * white) * ground / 255;
                        [r, g, b].map(|c| (u32::from(c) * white + below).min(255) as u8)
                    }
                    [r, g, b] => [r, g, b].map(|c| (u32::from(c) * white) as u8),
                    _ => [(u32::from(value[0]) * white) as u8; 3],
                };
                pixels[((top + y) * sheet_width + left + x) * 3..][..3].copy_from_slice(&colour);
            }
        }
    }
    Picture { width: sheet_width, height: sheet_height, colour: Colour::Rgb, pixels }
}
