//! The table of results: the report's published numbers beside those of the runs.

use anyhow::{Context, Result};

use super::sections::EVAL;
use super::{Args, Run};
use crate::cli::models::Kind;
use crate::study::figure::page::Page;

/// The published results of a model. Source: "[Re] Variational Neural Cellular Automata", ReScience 2023.
pub struct Published {
    /// Lower bound on log p(x) in nats, with K = 128 samples, on the 10,000 test images of statically binarized MNIST.
    pub iwelbo: f64,
    /// The bound in the original paper, which the report reproduces.
    pub original: Option<f64>,
    parameters: usize,
    /// Training time on a TPU v3-8.
    training: &'static str,
    /// Time for the IWELBO of the test set on a TPU v3-8, in seconds.
    seconds: f64,
    /// Share of test cells from which a linear probe predicts the image's label.
    probe: Option<f64>,
}

/// Returns the published results of a model.
pub fn published_results(kind: Kind) -> Published {
    match kind {
        Kind::Baseline => Published {
            iwelbo: -84.64,
            original: None,
            parameters: 10_282_497,
            training: "10 min",
            seconds: 1.45,
            probe: None,
        },
        Kind::Doubling => Published {
            iwelbo: -84.15,
            original: Some(-84.23),
            parameters: 6_585_088,
            training: "40 min",
            seconds: 162.0,
            probe: None,
        },
        Kind::NonDoubling => Published {
            iwelbo: -89.3,
            original: Some(-90.97),
            parameters: 5_042_432,
            training: "2.5 h",
            seconds: 75.0,
            probe: Some(0.8037),
        },
    }
}

/// Number of test images in the published evaluation.
const IMAGES: u64 = 10_000;
/// Number of latent samples in the published evaluation.
const SAMPLES: u64 = 128;

/// Writes the section with the table.
///
/// # Errors
/// When an evaluation lacks a number, which is a bug.
pub fn write(page: &mut Page, args: &Args, runs: &[Run]) -> Result<()> {
    page.section("results", "Results");
    page.text(
        "The importance-weighted bound on log p(x) of test images, in nats (higher is better), with its standard error over \
         images. Published: with 128 samples on the 10,000 test images of statically binarized MNIST; times on a TPU v3-8. The \
         linear probe predicts an image's label from single cells; the published one had cells of one image in training and test.",
    );
    let kinds: Vec<String> = runs.iter().map(|run| run.model.kind.to_string()).collect();
    let head: Vec<&str> = std::iter::once("").chain(kinds.iter().map(String::as_str)).collect();
    let columns: Vec<Vec<String>> = runs.iter().map(column).collect::<Result<_>>()?;
    let row = |(i, name): (usize, &&str)| {
        std::iter::once(name.to_string()).chain(columns.iter().map(|c| c[i].clone())).collect()
    };
    let rows: Vec<Vec<String>> = ROWS.iter().enumerate().map(row).collect();
    page.table(&head, &rows);
    for run in runs {
        if let Some(differences) = differences(run) {
            page.text(&differences);
        }
    }
    for run in runs {
        page.command(&run.command(&EVAL, args));
    }
    Ok(())
}

/// The names of the table's rows.
const ROWS: [&str; 15] = [
    "IWELBO, published",
    "IWELBO, original paper",
    "IWELBO, ours",
    "images, ours",
    "samples, ours",
    "ELBO, ours",
    "KL, ours",
    "active latents, ours",
    "parameters, published",
    "parameters, ours",
    "linear probe, published",
    "linear probe, ours",
    "training, published",
    "seconds for the IWELBO, published",
    "seconds for the IWELBO, ours",
];

/// Returns a model's column of the table.
fn column(run: &Run) -> Result<Vec<String>> {
    let eval = &run.numbers["eval"];
    let number = |name: &str| eval[name].as_f64().with_context(|| format!("vnca eval reported no {name}"));
    let with_error = |name: &str, stderr: &str| -> Result<String> {
        let value = minus(number(name)?, 2);
        // One image has no standard error.
        Ok(eval[stderr].as_f64().map_or(value.clone(), |error| format!("{value} \u{b1} {error:.2}")))
    };
    let p = published_results(run.model.kind);
    let cells: [String; ROWS.len()] = [
        minus(p.iwelbo, 2),
        p.original.map_or(NONE.into(), |v| minus(v, 2)),
        with_error("iwelbo", "stderr")?,
        with_commas(number("images")? as usize),
        with_commas(number("samples")? as usize),
        with_error("elbo", "elbo_stderr")?,
        minus(number("kl")?, 2),
        format!("{} of {}", eval["active_units"], run.model.latent),
        with_commas(p.parameters),
        with_commas(run.model.vae().parameter_count()),
        p.probe.map_or(NONE.into(), percent),
        run.numbers.get("probe").and_then(|probe| probe["accuracy"].as_f64()).map_or(NONE.into(), percent),
        p.training.into(),
        p.seconds.to_string(),
        format!("{:.1}", number("seconds")?),
    ];
    Ok(cells.into())
}

/// Lists the differences of the run's evaluation from the published one, if there are any.
fn differences(run: &Run) -> Option<String> {
    let eval = &run.numbers["eval"];
    let mut reasons = Vec::new();
    if !run.images.name.contains("binarized_mnist") {
        reasons.push(format!("evaluated on {}", run.images.name));
    }
    if eval["images"].as_u64() != Some(IMAGES) {
        reasons.push(format!("on {} images", eval["images"]));
    }
    if eval["samples"].as_u64() != Some(SAMPLES) {
        reasons.push(format!("with {} samples", eval["samples"]));
    }
    if run.model.latent != run.model.kind.default_latent() {
        let report = run.model.kind.default_latent();
        reasons.push(format!("with a latent size of {} where the report has {report}", run.model.latent));
    }
    if run.model.nca_steps != run.model.kind.default_nca_steps() {
        let report = run.model.kind.default_nca_steps();
        reasons.push(format!("with {} steps where the report has {report}", run.model.nca_steps));
    }
    (!reasons.is_empty()).then(|| {
        format!(
            "{}: not directly comparable with the published number: {}.",
            run.model.kind,
            reasons.join(", ")
        )
    })
}

/// The cell of a number that does not exist.
const NONE: &str = "\u{2013}";

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// Formats a number with a minus sign instead of a hyphen.
pub fn minus(value: f64, digits: usize) -> String {
    format!("{value:.digits$}").replace('-', "\u{2212}")
}

/// Formats 10282497 as 10,282,497.
fn with_commas(value: usize) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_formatted() {
        assert_eq!((with_commas(10_282_497), with_commas(512)), ("10,282,497".into(), "512".into()));
        assert_eq!(minus(-84.641, 2), "\u{2212}84.64");
    }
}
