//! The sections of the page, from top to bottom, and the commands that draw their figures.

use serde_json::Value;

use super::calls::{self, Call};
use super::{Args, Run};

/// A requirement of a figure that not every model or data set meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    Cells,
    Labels,
    LabelledCells,
}

/// A figure and the command that draws it.
pub struct Figure {
    /// Name of its numbers in the JSON.
    pub name: &'static str,
    pub title: &'static str,
    /// The command line. [`Run::command`] replaces the words in braces.
    pub command: &'static str,
    /// Returns the call that the command line describes.
    pub call: fn(&Run, &Args) -> Call,
    pub needs: Needs,
    /// Files and their captions.
    pub files: &'static [(&'static str, &'static str)],
    /// Formats its numbers as a sentence, if it has one.
    pub summary: fn(&Value) -> Option<String>,
}

pub struct Section {
    pub anchor: &'static str,
    pub title: &'static str,
    pub about: &'static str,
    pub figures: &'static [Figure],
}

/// The evaluation, whose numbers are in the table of results.
pub const EVAL: Figure = Figure {
    name: "eval",
    title: "bound",
    command: "eval --run {run} {data} --samples {samples} {spread} {device}",
    call: calls::eval,
    needs: Needs::Nothing,
    files: &[],
    summary: |_| None,
};

/// The linear probe. Its accuracy is also in the table of results.
pub const PROBE: Figure = Figure {
    name: "probe",
    title: "probe of cells",
    command: "probe --run {run} {data} {labels} {limit} --out {out}/probe {device}",
    call: calls::probe,
    needs: Needs::LabelledCells,
    files: &[
        (
            "probe/prior.png",
            "Samples of the prior: channel 0, the class predicted from each cell, its softmax probability; the classes' colours.",
        ),
        ("probe/positions.png", "The share of correctly predicted cells by their position in the grid."),
    ],
    summary: summarise_probe,
};

pub const SECTIONS: &[Section] = &[
    Section {
        anchor: "reconstructions",
        title: "Figure 2: reconstructions and samples",
        about: "Test images above their reconstructions from the posterior means, and samples of the prior: as \
                probabilities of pixels, and as pixels drawn with these probabilities.",
        figures: &[
            Figure {
                name: "reconstruct",
                title: "reconstructions",
                command: "reconstruct --run {run} {data} {seed} --out {out} {device}",
                call: calls::reconstruct,
                needs: Needs::Nothing,
                files: &[("reconstruct.png", "Test images, each row above its reconstructions.")],
                summary: summarise_reconstructions,
            },
            Figure {
                name: "sample",
                title: "samples",
                command: "sample --run {run} {seed} --out {out} {device}",
                call: calls::sample,
                needs: Needs::Nothing,
                files: &[("sample.png", "Samples of the prior: probabilities.")],
                summary: |v| {
                    Some(format!(
                        "The mean entropy of a picture's pixels is {:.1} nats.",
                        v["mean_entropy_nats"].as_f64()?
                    ))
                },
            },
            Figure {
                name: "sample_drawn",
                title: "samples, drawn",
                command: "sample --run {run} --draw {seed} --out {out}/sample-drawn.png {device}",
                call: calls::sample_drawn,
                needs: Needs::Nothing,
                files: &[("sample-drawn.png", "The same samples: pixels drawn.")],
                summary: |_| None,
            },
        ],
    },
    Section {
        anchor: "growth",
        title: "Figure 3: growth",
        about: "How a sample of the prior grows. The doubling model has a row for each doubling, with the grid after it \
                and after every step; the non-doubling model shows its start and every step, row after row.",
        figures: &[Figure {
            name: "grow",
            title: "growth",
            command: "grow --run {run} {seed} --out {out} {device}",
            call: calls::grow,
            needs: Needs::Cells,
            files: &[("grow.png", "All stages of one sample."), ("grow.gif", "The same as an animation.")],
            summary: |_| None,
        }],
    },
    Section {
        anchor: "interpolation",
        title: "Figure 4a: interpolation",
        about: "Decoded points on a straight line in latent space between two samples of the prior.",
        figures: &[Figure {
            name: "interpolate",
            title: "interpolation",
            command: "interpolate --run {run} {seed} --out {out} {device}",
            call: calls::interpolate,
            needs: Needs::Nothing,
            files: &[("interpolate.png", "Each row goes from one sample to another.")],
            summary: |_| None,
        }],
    },
    Section {
        anchor: "tsne",
        title: "Figures 4b, 4c, 7b: maps of the latents",
        about: "The posterior means of test images in two dimensions (t-SNE), in the colours of their labels.",
        figures: &[Figure {
            name: "tsne",
            title: "map of the latents",
            command: "tsne --run {run} {data} {labels} {points} {perplexity} --out {out}/tsne {device}",
            call: calls::tsne,
            needs: Needs::Labels,
            files: &[("tsne/map.png", "Each point is an image.")],
            summary: summarise_map,
        }],
    },
    Section {
        anchor: "damage",
        title: "Figure 5: damage and recovery",
        about: "Grown samples lose a square of cells of half the grid's height and width, then the automaton takes further \
                steps. Only a model that has learned to keep its pictures, as the non-doubling one does with its pool, is \
                expected to recover.",
        figures: &[
            Figure {
                name: "recover",
                title: "recovery",
                command: "recover --run {run} {recovery} {seed} --out {out} {device}",
                call: calls::recover,
                needs: Needs::Cells,
                files: &[
                    ("recover.png", "Original, damaged, recovered."),
                    ("recover.gif", "Growth, damage and recovery as an animation."),
                ],
                summary: summarise_recovery,
            },
            Figure {
                name: "recover_by_size",
                title: "recovery by size of damage",
                command: "recover --run {run} {recovery} --samples 16 --sizes {sizes} --damages 2 {seed} --out \
                          {out}/recover-by-size.png {device}",
                call: calls::recover_by_size,
                needs: Needs::Cells,
                files: &[
                    (
                        "recover-by-size-iou.png",
                        "Overlap with the undamaged picture after damage, done twice; 16 samples, bands of one standard error.",
                    ),
                    (
                        "recover-by-size-log-likelihood.png",
                        "Log-likelihood of the undamaged picture's most likely image, likewise.",
                    ),
                ],
                summary: |_| None,
            },
        ],
    },
    Section {
        anchor: "probe",
        title: "Figure 6: a linear probe of single cells",
        about: "Softmax regression of an image's label from each single cell's final state, tested on images that it was \
                not trained on. The report's probe is right for 80.37 % of cells, with cells of one image in training and test.",
        figures: &[PROBE],
    },
    Section {
        anchor: "planes",
        title: "Figure 7a: planes of a latent grid",
        about: "The first seven channels of two grown samples, one plane per channel. Channel 0, the first parameter of the pixels' distribution (for bits, the logit), is \
                on top. Each plane's colours go from its lowest value (violet) to its highest (yellow).",
        figures: &[Figure {
            name: "planes",
            title: "latent planes",
            command: "planes --run {run} {seed} --out {out} {device}",
            call: calls::planes,
            needs: Needs::Cells,
            files: &[("planes.png", "Channels 0 (top) to 6 of two samples.")],
            summary: |_| None,
        }],
    },
];

fn summarise_reconstructions(v: &Value) -> Option<String> {
    let error = match (v["wrong_pixels"].as_f64(), v["mean_error_levels"].as_f64()) {
        (Some(wrong), _) => {
            let pixels = &v["images"][0]["pixels"];
            format!("{wrong:.1} of {pixels} pixels wrong where the likelier value is taken")
        }
        (None, levels) => format!("a mean error of {:.1} of 255 levels", levels?),
    };
    Some(format!(
        "Mean over these images: log p(x|z) {:.2} nats, KL {:.2} nats, {error}.",
        v["log_likelihood"].as_f64()?,
        v["kl"].as_f64()?
    ))
}

fn summarise_map(v: &Value) -> Option<String> {
    Some(format!(
        "The {} nearest neighbours of an image predict its label for {:.1} % of {} images in latent space, and for {:.1} % \
         in the map.",
        v["neighbours"],
        100.0 * v["accuracy_latent"].as_f64()?,
        v["points"],
        100.0 * v["accuracy_map"].as_f64()?
    ))
}

fn summarise_probe(v: &Value) -> Option<String> {
    Some(format!(
        "{:.2} % of {} cells of {} images predict the label; 95 % interval over images {:.2} to {:.2} %.",
        100.0 * v["accuracy"].as_f64()?,
        v["cells_tested"],
        v["images_tested"],
        100.0 * v["interval_95"][0].as_f64()?,
        100.0 * v["interval_95"][1].as_f64()?
    ))
}

fn summarise_recovery(v: &Value) -> Option<String> {
    let points = v["points"].as_array()?;
    let (damaged, last) = (points.get(1)?, points.last()?);
    let iou = |p: &Value| p["iou"]["mean"].as_f64();
    let regained = match last["iou_regained"].as_f64() {
        Some(share) => format!("{:.0} % of the loss is regained", 100.0 * share),
        None => "nothing was lost".into(),
    };
    Some(format!(
        "Overlap (IoU) with the undamaged picture: {:.3} after the damage, {:.3} after {} steps; {regained}.",
        iou(damaged)?,
        iou(last)?,
        last["step"]
    ))
}
