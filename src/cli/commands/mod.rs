//! The verbs of the command line. Each file has the arguments and the implementation of one verb.

pub mod ais;
#[cfg(feature = "xla")]
pub mod compile;
pub mod conformance;
pub mod convert;
pub mod data;
pub mod doctor;
pub mod eval;
#[cfg(feature = "xla")]
pub mod export;
pub mod figures;
pub mod grow;
pub mod images;
pub mod inspect;
pub mod interpolate;
pub mod label;
pub mod latents;
pub mod page;
pub mod picture;
pub mod planes;
pub mod probe;
#[cfg(feature = "xla")]
pub mod programs;
pub mod progress;
pub mod reconstruct;
pub mod recover;
pub mod reproduce;
pub mod run_data;
pub mod run_exported;
pub mod sample;
pub mod train;
pub mod tsne;

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cli::config::TrainConfig;
use crate::cli::error::Exit;
use crate::cli::hosts::Hosts;
use crate::cli::image_options::ImageSize;
use crate::cli::models::{Kind, Likelihood, Model};
use crate::cli::pretrained::{self, Card};
use crate::data::{IMAGE_SIDE, ImageShape};
use crate::engine::array::{Array, crc};
use crate::engine::compile::forms;
use crate::engine::random::Key;
use crate::engine::runtime::{Device, Mesh, Processes};
use crate::engine::shape::Precision;
use crate::error::{Error, Tag, valid};
use crate::nn::params::init;
use crate::nn::weights;
use crate::study::session::Session;
use crate::train::checkpoint::{Checkpoint, chosen};
pub use progress::bar;
use run_data::RunData;

/// The result of a verb: an exit code if it is not 0.
pub type Outcome = Result<Option<Exit>>;

/// The source of weights: a run's folder, a name of weights that come with the program, or a file and its model.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub struct Source {
    /// A run's folder: its best checkpoint, else its newest
    #[arg(long, value_name = "DIR", conflicts_with_all = ["weights", "model", "latent", "encoder_width"])]
    pub run: Option<PathBuf>,
    /// Weights that come with the program, such as `doubling`; an unknown name lists all
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with_all = ["run", "weights", "model", "latent", "encoder_width"]
    )]
    pub pretrained: Option<String>,
    /// A checkpoint, or parameters as .npz, .safetensors or Equinox's .eqx
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// The model of the weights; a checkpoint says its own
    #[arg(long)]
    pub model: Option<Kind>,
    /// Latent size of the model [default: the report's]
    #[arg(long, value_name = "Z")]
    pub latent: Option<usize>,
    /// Channels of the encoder's first convolution [default: the run's, else the report's 32]
    #[arg(long, value_name = "N")]
    pub encoder_width: Option<usize>,
    /// Height and width of the model's images [default: 28x28]
    #[arg(long, value_name = "H[xW]", conflicts_with_all = ["run", "pretrained"])]
    pub image_size: Option<ImageSize>,
    /// Channels of the model's images: 1, 3 or 4 [default: 1]
    #[arg(long, value_name = "N", conflicts_with_all = ["run", "pretrained"])]
    pub image_channels: Option<usize>,
    /// Distribution of pixels [default: bernoulli for 28x28 grey images, logistic-mixture for others]
    #[arg(long, conflicts_with_all = ["run", "pretrained"])]
    pub likelihood: Option<Likelihood>,
    /// Logistic distributions of a mixture [default: 5]
    #[arg(long, value_name = "K", conflicts_with_all = ["run", "pretrained"])]
    pub components: Option<usize>,
    /// Element type of the operands of matmuls and convolutions [default: the run's or the card's, else f32]
    #[arg(long, env = "VNCA_PRECISION", value_enum)]
    pub precision: Option<Precision>,
    #[command(flatten)]
    pub automaton: Automaton,
}

/// The device that a verb uses.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct DeviceOptions {
    /// Device: cpu, tpu, cuda or the path of a PJRT plugin, with its options after commas
    #[arg(long, default_value = "cpu", env = "VNCA_DEVICE")]
    pub device: String,
    #[arg(from_global)]
    programs: Option<PathBuf>,
    #[arg(skip)]
    opened: SharedMesh,
    /// The processes that open the device together, if there are several.
    #[arg(skip)]
    processes: Option<Processes>,
}

/// The mesh that was opened last. Clones share it, so that a verb that runs other verbs opens the device only once.
#[derive(Clone, Default)]
struct SharedMesh(Rc<RefCell<Option<Mesh>>>);

impl fmt::Debug for SharedMesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedMesh")
    }
}

impl DeviceOptions {
    /// Parses the device's name.
    ///
    /// # Errors
    /// When the name is unknown.
    pub fn get(&self) -> Result<Device> {
        self.device.parse().tag(Error::Usage)
    }

    /// Returns the options of a verb that several processes run together.
    pub fn together(&self, hosts: &Hosts) -> DeviceOptions {
        DeviceOptions { processes: hosts.processes().cloned(), ..self.clone() }
    }

    /// Returns the options of a verb whose programs are not among the exported ones.
    pub fn without_programs(&self) -> DeviceOptions {
        DeviceOptions { programs: None, ..self.clone() }
    }

    /// Reports whether this process writes files and prints results: it is alone, or process 0.
    pub fn is_first(&self) -> bool {
        self.processes.as_ref().is_none_or(|processes| processes.index == 0)
    }

    /// Opens the device for `replicas` replicas, by default for one, or for all devices of several processes. A CPU is divided into at least `devices` virtual devices.
    ///
    /// # Errors
    /// When the name is unknown, or the device is not available.
    pub fn open(&self, devices: usize, replicas: impl Into<Option<usize>>) -> Result<Mesh> {
        let device = self.get()?;
        let processes = self.processes.as_ref();
        let (replicas, all) = match (replicas.into(), processes) {
            (Some(replicas), _) => (replicas, false),
            (None, None) => (1, false),
            (None, Some(processes)) => (processes.count, true),
        };
        let mut opened = self.opened.0.borrow_mut();
        let fits = |mesh: &&Mesh| *mesh.device() == device && mesh.devices() >= devices.max(replicas);
        if let Some(mesh) = opened.as_ref().filter(fits) {
            return mesh.with_replicas(replicas);
        }
        // Close the other mesh first, because some devices allow only one client at a time.
        *opened = None;
        let mesh = open(&device, self.programs.as_deref(), devices, replicas, processes)?;
        let mesh = if all { mesh.with_replicas(mesh.devices())? } else { mesh };
        Ok(opened.insert(mesh).clone())
    }

    /// Opens the device and uploads weights.
    ///
    /// # Errors
    /// The errors of [`DeviceOptions::open`].
    pub fn session(&self, replicas: impl Into<Option<usize>>, weights: &Weights) -> Result<Session> {
        let mesh = self.open(1, replicas)?;
        let model = weights.model.vae();
        report_forms(&mesh, model.precision);
        Session::new(&mesh, model, &weights.arrays).tag(Error::Device)
    }
}

/// Opens a device.
///
/// # Errors
/// The errors of [`MeshBuilder::open`](crate::engine::runtime::MeshBuilder::open).
pub fn open(
    device: &Device,
    programs: Option<&Path>,
    devices: usize,
    replicas: usize,
    processes: Option<&Processes>,
) -> Result<Mesh> {
    let builder = Mesh::builder(device).devices(devices).programs(programs);
    match processes {
        Some(processes) => builder.processes(processes.clone()).open(replicas),
        None => builder.open(replicas),
    }
}

/// Prints a message to stderr if a CPU lacks the requested precision.
pub fn report_forms(mesh: &Mesh, precision: Precision) {
    if precision == Precision::F32 || mesh.programs().is_some() {
        return;
    }
    if let Some(why) = forms(mesh, precision).one_dnn_error {
        inform(&format!("no {precision} matmuls on this CPU, computing in f32: {why}"));
    }
}

/// Options of the automaton that may differ from those of training.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
#[group(skip)]
pub struct Automaton {
    /// NCA steps: after each doubling, or in total [default: the run's or the card's, else the report's 8 or
    /// 36]
    #[arg(long, value_name = "N")]
    pub nca_steps: Option<usize>,
    /// Number of doublings (doubling) [default: the run's or the card's, else 5]
    #[arg(long, value_name = "K")]
    pub doublings: Option<usize>,
    /// Probability that a cell is updated in an NCA step [default: the run's or the card's, else 1]
    #[arg(long, value_name = "P")]
    pub update_prob: Option<f64>,
    /// Side, in cells, of the central square of the grid that starts as the latent (nondoubling) [default: the run's or the
    /// card's, else 32, the whole grid]
    #[arg(long, value_name = "N")]
    pub start_side: Option<usize>,
}

impl Automaton {
    fn apply(&self, model: Model) -> Result<Model> {
        let model = Model {
            nca_steps: self.nca_steps.unwrap_or(model.nca_steps),
            doublings: self.doublings.unwrap_or(model.doublings),
            update_prob: self.update_prob.unwrap_or(model.update_prob),
            start_side: self.start_side.unwrap_or(model.start_side),
            ..model
        };
        model.check()?;
        Ok(model)
    }
}

/// A model with its weights, in the checkpoint layout and the leaves' order.
pub struct Weights {
    pub model: Model,
    pub arrays: Vec<Array>,
    /// The data set that the weights were trained on, if the source says so.
    pub data: Option<RunData>,
    /// The card of pretrained weights.
    pub card: Option<Card>,
}

impl Weights {
    /// Returns a checksum of all arrays.
    pub fn checksum(&self) -> String {
        format!("{:08x}", crc(&self.arrays))
    }
}

impl Source {
    /// Returns the model that is chosen without weights.
    ///
    /// # Errors
    /// When no model is chosen, or its latent size is out of range.
    pub fn bare_model(&self) -> Result<Model> {
        let Some(kind) = self.model else {
            bail!("one of --run, --pretrained, --weights and --model is needed")
        };
        let mut model = Model::new(kind, self.latent)?;
        let image = image_shape(self.image_size, self.image_channels);
        let likelihood = self.likelihood.unwrap_or(Likelihood::of_images(image));
        model.components = self.components.unwrap_or(model.components);
        let model = model.for_images(image, likelihood);
        self.computed(Model { encoder_width: self.encoder_width.unwrap_or(model.encoder_width), ..model })
    }

    /// Applies the options for precision and growth to a model.
    fn computed(&self, model: Model) -> Result<Model> {
        let precision = self.precision.unwrap_or(model.precision);
        self.automaton.apply(Model { precision, ..model })
    }

    /// Reads the weights. Without a source of weights, returns the initial values of a seed.
    ///
    /// # Errors
    /// The errors of [`Source::load`].
    pub fn load_or_init(&self, seed: u64) -> Result<Weights> {
        if self.run.is_some() || self.weights.is_some() || self.pretrained.is_some() {
            return self.load();
        }
        let model = self.bare_model()?;
        let arrays = init(&model.vae().leaves(), Key::new(seed));
        Ok(Weights { arrays, model, data: Some(RunData::unknown(model)), card: None })
    }

    /// Reads a checkpoint with the model that it was made with; `None` if the file is another kind of file, or the model one that
    /// only its own program knows.
    ///
    /// # Errors
    /// When an option contradicts the checkpoint, or the checkpoint lacks an array.
    pub fn checkpoint(&self, path: &Path) -> Result<Option<(Model, Vec<Array>)>> {
        let Ok(Checkpoint { meta, arrays }) = Checkpoint::load(path) else { return Ok(None) };
        let Ok(model) = serde_json::from_value::<Model>(meta.model) else { return Ok(None) };
        let image = image_shape(self.image_size, self.image_channels);
        let given_image = self.image_size.is_some() || self.image_channels.is_some();
        let said = [
            ("model", self.model.map(|kind| (kind.to_string(), model.kind.to_string()))),
            ("latent", self.latent.map(|n| (n.to_string(), model.latent.to_string()))),
            ("encoder_width", self.encoder_width.map(|n| (n.to_string(), model.encoder_width.to_string()))),
            ("image_size", given_image.then(|| (image.to_string(), model.image.to_string()))),
            (
                "likelihood",
                self.likelihood.map(|l| (l.name().to_string(), model.likelihood.name().to_string())),
            ),
            ("components", self.components.map(|n| (n.to_string(), model.components.to_string()))),
        ];
        for (name, values) in said {
            let Some((asked, own)) = values else { continue };
            valid!(
                asked == own,
                name,
                "is {asked}, and the checkpoint {} is of a model with {own}",
                path.display()
            );
        }
        Ok(Some((model, weights::from_checkpoint(path, &model.vae().leaves(), arrays)?)))
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// When no source is given, or the file is missing, damaged or of another model.
    pub fn load(&self) -> Result<Weights> {
        if let Some(run) = &self.run {
            let config = TrainConfig::from_run(run)?;
            let (path, Checkpoint { meta, arrays }) = chosen(run)?;
            let arrays = weights::from_checkpoint(&path, &config.model.vae().leaves(), arrays)?;
            let data = RunData::new(run, &config, &meta);
            let model = self.computed(config.model)?;
            return Ok(Weights { model, arrays, data: Some(data), card: None });
        }
        if let Some(name) = &self.pretrained {
            let (card, arrays) = pretrained::load(&pretrained::folder().tag(Error::Data)?, name)?;
            let data = Some(RunData::pretrained(name, &card));
            return Ok(Weights { model: self.computed(card.model)?, arrays, data, card: Some(card) });
        }
        let Some(path) = &self.weights else {
            bail!("--run DIR, --pretrained NAME, or --weights FILE with --model, is needed")
        };
        if let Some((model, arrays)) = self.checkpoint(path)? {
            let model = self.computed(model)?;
            return Ok(Weights { arrays, model, data: Some(RunData::unknown(model)), card: None });
        }
        let model = self.bare_model()?;
        let arrays = weights::read(path, &model.vae().leaves())?;
        Ok(Weights { arrays, model, data: Some(RunData::unknown(model)), card: None })
    }
}

/// Returns the size of images that options describe, by default the report's.
pub fn image_shape(size: Option<ImageSize>, channels: Option<usize>) -> ImageShape {
    let ImageSize([height, width]) = size.unwrap_or(ImageSize([IMAGE_SIDE; 2]));
    ImageShape { height, width, channels: channels.unwrap_or(1) }
}

/// The results of a verb, as JSON and as text.
#[derive(Clone, Debug)]
pub struct Report {
    pub json: Value,
    pub text: String,
}

impl Report {
    /// Writes the results to stdout, as JSON or as text.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn print(&self, json: bool) -> Outcome {
        print(&if json { self.json.to_string() } else { self.text.clone() })?;
        Ok(None)
    }
}

/// Returns files' names for JSON, which has no others than those in Unicode.
pub fn file_names(files: &[PathBuf]) -> Vec<String> {
    files.iter().map(|file| file.to_string_lossy().into_owned()).collect()
}

/// Writes one or several lines of results to stdout. A closed pipe, as after `| head`, is no error.
///
/// # Errors
/// When stdout cannot be written for another reason.
pub fn print(text: &str) -> Result<()> {
    use std::io::{ErrorKind, Write};
    if is_silent() {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(()),
    }
}

/// Whether this process leaves it to another one to print results and progress.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Leaves it to process 0 to print results and progress. Errors are still printed.
pub fn be_silent() {
    SILENT.store(true, Ordering::Relaxed);
}

fn is_silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

/// Writes a message about the progress to stderr, unless this process is silent.
pub fn inform(text: &str) {
    if !is_silent() {
        to_stderr(text);
    }
}

/// Writes a message to stderr. Ignores errors: a closed terminal or a full disk must not end a run.
pub fn to_stderr(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
