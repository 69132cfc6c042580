//! `vnca page`: an interactive page, one HTML file that grows pictures in a browser.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::tsne::MAP;
use super::{Outcome, Report, Source, Weights};
use crate::cli::models::{Likelihood, Model};
use crate::data::ImageShape;
use crate::engine::npy::Record;
use crate::engine::shape::DType;
use crate::error::{Error, Tag};
use crate::files;
use crate::study::page::{Content, Map, Pixels, html};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub source: Source,
    /// The page
    #[arg(long, default_value = "page.html", value_name = "FILE")]
    pub out: PathBuf,
    /// Title of the page [default: one that names the model]
    #[arg(long, value_name = "TEXT")]
    pub title: Option<String>,
    /// Folder of `vnca tsne`: its map of latents is the page's map
    #[arg(long, value_name = "DIR")]
    pub tsne: Option<PathBuf>,
    /// Leave out the encoder: the page is smaller, and finds no latents of drawings
    #[arg(long)]
    pub no_encoder: bool,
    /// Seed of the first picture, which is the first one of `vnca sample` with this seed
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Print JSON on stdout
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &Args) -> Outcome {
    report(args)?.print(args.json)
}

/// Writes the page and returns its name and size.
///
/// # Errors
/// When the weights or the map cannot be read, the page cannot show the model, or the file cannot be written.
pub fn report(args: &Args) -> Result<Report> {
    let weights = args.source.load()?;
    let check_seed = || {
        ensure!(args.seed < 1 << 53, "--seed {}: the page's numbers end at 2^53", args.seed);
        Ok(())
    };
    check_seed().tag(Error::Usage)?;
    let map = args.tsne.as_deref().map(|folder| read_map(folder, &weights)).transpose()?;
    let model = weights.model.vae();
    let page = html(&Content {
        model: &model,
        weights: &weights.arrays,
        title: args.title.clone().unwrap_or_else(|| title(&weights).into()),
        origin: origin(args, &weights, model.parameter_count()),
        pixels: pixels(&weights.model),
        digits: of_digits(&weights.model),
        seed: args.seed,
        encoder: !args.no_encoder,
        map,
    })
    .tag(Error::Usage)?;
    files::write_bytes(&args.out, &page)?;
    let text = format!("{}: {:.1} MB, opens in a browser", args.out.display(), page.len() as f64 / 1e6);
    let json = json!({ "verb": "page", "files": [args.out.to_string_lossy()], "bytes": page.len(), "model": weights.model, "seed": args.seed });
    Ok(Report { json, text })
}

/// Reports whether a model's pictures are those of the report.
fn of_digits(model: &Model) -> bool {
    model.image == ImageShape::MNIST && model.likelihood.of_bits()
}

fn title(weights: &Weights) -> &'static str {
    match (weights.model.grows(), of_digits(&weights.model)) {
        (true, true) => "Digits that grow",
        (true, false) => "Pictures that grow",
        (false, true) => "Digits from a latent space",
        (false, false) => "Pictures from a latent space",
    }
}

/// Returns what a model's outputs are for the page.
fn pixels(model: &Model) -> Pixels {
    let channels = model.image.channels;
    match model.likelihood {
        Likelihood::Bernoulli | Likelihood::DynamicBernoulli => Pixels::Bits,
        Likelihood::Logistic => Pixels::Logistic { components: 1, channels },
        Likelihood::LogisticMixture => Pixels::Logistic { components: model.components, channels },
    }
}

/// Describes where the weights come from.
fn origin(args: &Args, weights: &Weights, parameters: usize) -> String {
    let Source { run, weights: file, pretrained, .. } = &args.source;
    let path = run.as_ref().or(file.as_ref()).and_then(|path| path.file_name());
    let name = path.map(|name| name.to_string_lossy().into_owned()).or(pretrained.clone());
    format!(
        "Made by vnca {} from the weights{}: the {} model, {parameters} parameters, latent size {}.",
        env!("CARGO_PKG_VERSION"),
        name.map(|name| format!(" of {name}")).unwrap_or_default(),
        weights.model.kind,
        weights.model.latent,
    )
}

/// What a map says of itself, as far as it matters here.
#[derive(serde::Deserialize)]
struct MapOf {
    weights: Option<String>,
}

/// Reads what `vnca tsne` wrote of these weights.
fn read_map(folder: &Path, weights: &Weights) -> Result<Map> {
    let latent = weights.model.latent;
    // Maps of older versions have no such file.
    let described = fs::read(folder.join(MAP)).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let of = described.and_then(|map: MapOf| map.weights);
    let same = of.is_none_or(|of| of == weights.checksum());
    let check = || {
        ensure!(
            same,
            "--tsne {}: the map is of other weights; `vnca tsne` makes one of these",
            folder.display()
        );
        Ok(())
    };
    check().tag(Error::Data)?;
    let read = |name: &str| {
        let path = folder.join(name);
        let array = || Record::take(&mut fs::read(&path)?.as_slice())?.array();
        array().with_context(|| format!("--tsne: cannot read {}", path.display())).tag(Error::Data)
    };
    let (map, means, labels) = (read("map.npy")?, read("means.npy")?, read("labels.npy")?);
    let check = || {
        let n = labels.dims().iter().product::<usize>();
        ensure!(
            n > 0 && labels.dims().len() == 1 && labels.shape().dtype == DType::U8,
            "--tsne {}: labels.npy is no list of u1",
            folder.display()
        );
        ensure!(
            map.shape().dtype == DType::F32
                && means.shape().dtype == DType::F32
                && map.dims() == [n, 2]
                && means.dims() == [n, latent],
            "--tsne {}: map.npy is {:?} and means.npy {:?}; for {n} labels and this model they are [{n}, 2] and [{n}, {latent}]",
            folder.display(),
            map.dims(),
            means.dims()
        );
        Ok(())
    };
    check().tag(Error::Data)?;
    Ok(Map { coordinates: map.to_vec::<f32>(), labels: labels.to_vec::<u8>(), means: means.to_vec::<f32>() })
}
