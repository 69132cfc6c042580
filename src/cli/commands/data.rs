//! `vnca data`.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{Outcome, print, to_stderr};
use crate::cli::error::Exit;
use crate::data::download::{self, Options, Progress};
use crate::error::{Error, Tag};

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
    }
}
