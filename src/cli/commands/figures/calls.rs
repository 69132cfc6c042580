//! The calls of other commands that draw the figures. Their arguments are those of the command lines shown under the pictures.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::super::picture::{self, Common};
use super::super::{
    Automaton, Source, eval, grow, images, interpolate, planes, probe, reconstruct, recover, sample, tsne,
};
use super::{Args, Run};

/// Another command with its arguments.
#[derive(Debug)]
pub enum Call {
    Eval(Box<eval::Options>),
    Grow(grow::Args),
    Interpolate(interpolate::Args),
    Planes(planes::Args),
    Probe(probe::Args),
    Reconstruct(reconstruct::Args),
    Recover(recover::Args),
    Sample(sample::Args),
    Tsne(tsne::Args),
}

impl Call {
    /// Runs the command and returns its JSON.
    ///
    /// # Errors
    /// As for the command.
    pub fn run(&self) -> Result<Value> {
        let report = match self {
            Call::Eval(args) => {
                let summary = eval::evaluate(args, &args.device)?.context("a shard has no summary")?;
                return Ok(serde_json::to_value(summary)?);
            }
            Call::Grow(args) => grow::report(args),
            Call::Interpolate(args) => interpolate::report(args),
            Call::Planes(args) => planes::report(args),
            Call::Probe(args) => probe::report(args),
            Call::Reconstruct(args) => reconstruct::report(args),
            Call::Recover(args) => recover::report(args),
            Call::Sample(args) => sample::report(args),
            Call::Tsne(args) => tsne::report(args),
        };
        Ok(report?.json)
    }
}

fn source(run: &Run, args: &Args) -> Source {
    Source { run: Some(run.folder.clone()), precision: args.precision, ..Source::default() }
}

fn common(run: &Run, args: &Args, out: PathBuf) -> Common {
    Common {
        source: source(run, args),
        seed: args.seed,
        out: Some(out),
        npy: false,
        device: args.device.clone(),
        json: false,
    }
}

fn labelled_images(args: &Args) -> images::Images {
    images::Images { data: args.data.clone(), labels: args.labels.clone() }
}

fn test_images(data: Option<&str>) -> picture::Images {
    picture::Images { data: data.map(str::to_string), split: "test".into() }
}

fn limit(args: &Args) -> Option<usize> {
    args.limit.map(|n| n as usize)
}

pub fn eval(run: &Run, args: &Args) -> Call {
    Call::Eval(Box::new(eval::Options {
        source: source(run, args),
        images: images::Evaluated {
            data: args.data.clone(),
            split: "test".into(),
            limit: None,
            spread: limit(args),
        },
        samples: args.samples,
        batch_size: 32,
        replicas: Some(1),
        seed: 2,
        repeat: 1,
        gap: false,
        shard: None,
        out: None,
        device: args.device.clone(),
        json: false,
    }))
}

pub fn grow(run: &Run, args: &Args) -> Call {
    Call::Grow(grow::Args { common: common(run, args, run.out.clone()), samples: 1, columns: 10 })
}

pub fn interpolate(run: &Run, args: &Args) -> Call {
    Call::Interpolate(interpolate::Args {
        common: common(run, args, run.out.clone()),
        images: test_images(None),
        rows: None,
        columns: 8,
        from: vec![],
        to: vec![],
        labels: None,
        draw: false,
    })
}

pub fn planes(run: &Run, args: &Args) -> Call {
    Call::Planes(planes::Args { common: common(run, args, run.out.clone()), samples: 2, channels: None })
}

pub fn probe(run: &Run, args: &Args) -> Call {
    Call::Probe(probe::Args {
        source: source(run, args),
        images: labelled_images(args),
        part: "test".into(),
        out: run.out.join("probe"),
        split: "images".into(),
        limit: limit(args),
        epochs: 5,
        samples: 10,
        seed: 2,
        device: args.device.clone(),
        json: false,
    })
}

pub fn reconstruct(run: &Run, args: &Args) -> Call {
    Call::Reconstruct(reconstruct::Args {
        common: common(run, args, run.out.clone()),
        images: test_images(args.data.as_deref()),
        rows: 4,
        columns: 8,
        indices: vec![],
        latents: "mean".into(),
        draw: false,
    })
}

pub fn recover(run: &Run, args: &Args) -> Call {
    Call::Recover(recovery(run, args, &run.out))
}

pub fn recover_by_size(run: &Run, args: &Args) -> Call {
    let base = recovery(run, args, &run.out.join("recover-by-size.png"));
    Call::Recover(recover::Args { samples: 16, sizes: run.recovery_sizes().to_vec(), damages: 2, ..base })
}

fn recovery(run: &Run, args: &Args, out: &Path) -> recover::Args {
    let mut common = common(run, args, out.to_owned());
    common.source.automaton = Automaton { nca_steps: run.recovery_steps(), ..Automaton::default() };
    recover::Args {
        common,
        images: test_images(None),
        of: "samples".into(),
        samples: recover::SHOWN,
        steps: None,
        damages: 1,
        sizes: vec![],
        at: None,
    }
}

pub fn sample(run: &Run, args: &Args) -> Call {
    Call::Sample(samples(run, args, &run.out, false))
}

pub fn sample_drawn(run: &Run, args: &Args) -> Call {
    Call::Sample(samples(run, args, &run.out.join("sample-drawn.png"), true))
}

fn samples(run: &Run, args: &Args, out: &Path, draw: bool) -> sample::Args {
    sample::Args { common: common(run, args, out.to_owned()), rows: 4, columns: 8, draw }
}

pub fn tsne(run: &Run, args: &Args) -> Call {
    Call::Tsne(tsne::Args {
        source: source(run, args),
        images: labelled_images(args),
        split: "test".into(),
        out: run.out.join("tsne"),
        points: run.points(args),
        perplexity: run.perplexity(args).map_or(30.0, |n| n as f32),
        iterations: 1000,
        neighbours: 10,
        seed: 0,
        device: args.device.clone(),
        json: false,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::sections::{EVAL, Figure, SECTIONS};
    use super::*;
    use crate::cli::models::{Kind, Model};
    use crate::cli::{Cli, Command};
    use crate::data::{self, Part};

    /// For options that are not on the command line, `calls` repeats the command's defaults. This test compares the two.
    #[test]
    fn every_call_equals_the_command_line_under_its_picture() {
        if std::env::vars().any(|(name, _)| name.starts_with("VNCA_")) {
            // A developer's variables would change the command line's defaults.
            return;
        }
        let few = "--limit 100 --points 60 --labels 'my labels.npy' --seed 4 --device tpu --precision bf16 --data x,y";
        for (kind, more) in [(Kind::NonDoubling, few), (Kind::Doubling, "")] {
            let words = shlex::split(&format!("vnca figures --run r --out o {more}")).unwrap();
            let Command::Figures(args) = Cli::try_parse_from(words).unwrap().command else { unreachable!() };
            let run = Run {
                folder: "it's a run".into(),
                model: Model::new(kind, None).unwrap(),
                images: data::load_split(data::GLYPHS, Part::Test).unwrap(),
                out: PathBuf::from("a report").join(kind.name()),
                numbers: Default::default(),
            };
            let figures: Vec<&Figure> = SECTIONS.iter().flat_map(|section| section.figures).collect();
            for figure in figures.into_iter().chain([&EVAL]) {
                let command = run.command(figure, &args);
                let parsed = Cli::try_parse_from(shlex::split(&command).unwrap()).unwrap();
                assert_eq!(
                    format!("{:?}", parsed.command),
                    format!("{:?}", (figure.call)(&run, &args)),
                    "{command}"
                );
            }
        }
    }
}
