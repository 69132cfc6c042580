//! The weights that a new run begins with, if the user names some.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::commands::{Source, Weights};
use super::config::TrainOptions;
use super::models::{Kind, Model};
use super::pretrained;
use crate::data::identity::located;
use crate::engine::array::Array;
use crate::error::{Error, Tag, valid};
use crate::nn::params::arrange;
use crate::nn::weights;

/// The weights that `--from` names.
pub enum Origin {
    /// A run, a checkpoint, or weights that come with the program: they say of what model they are.
    Known(Box<Weights>),
    /// A file of another kind. The options have to describe its model.
    File(PathBuf),
}

/// Returns what a configuration records of `--from`: an absolute path, or a name of weights that come with the program.
pub fn recorded(from: &str) -> String {
    if Path::new(from).exists() { located(from) } else { from.into() }
}

impl Origin {
    /// Finds weights: a run's folder, a file, or a name of weights that come with the program.
    ///
    /// # Errors
    /// When there are none of this name, or they are damaged.
    pub fn find(from: &str) -> Result<Origin> {
        let path = Path::new(from);
        let load = |source: Source| source.load().map(|weights| Origin::Known(Box::new(weights)));
        let found = if path.is_dir() {
            load(Source { run: Some(path.into()), ..Source::default() })
        } else if path.is_file() {
            match Source::default().checkpoint(path)? {
                Some((model, arrays)) => {
                    Ok(Origin::Known(Box::new(Weights { model, arrays, data: None, card: None })))
                }
                None => Ok(Origin::File(path.into())),
            }
        } else {
            let folder = pretrained::folder().tag(Error::Data)?;
            let names = pretrained::names(&folder).tag(Error::Data)?;
            let known = || {
                ensure!(
                    names.iter().any(|name| name == from),
                    "there is no such run, file or model; the program comes with {}",
                    names.join(", ")
                );
                Ok(())
            };
            known()
                .tag(Error::Usage)
                .and_then(|()| load(Source { pretrained: Some(from.into()), ..Source::default() }))
        };
        found.with_context(|| format!("--from {from}"))
    }

    /// Returns the options of the weights' model, as far as the weights say them.
    pub fn options(&self) -> TrainOptions {
        let Origin::Known(weights) = self else { return TrainOptions::default() };
        let Model { kind, latent, nca_steps, update_prob, encoder_width, precision, .. } = weights.model;
        let Model { likelihood, components, doublings, start_side, .. } = weights.model;
        let grows = kind != Kind::Baseline;
        TrainOptions {
            model: Some(kind),
            latent: Some(latent),
            encoder_width: Some(encoder_width),
            precision: Some(precision),
            likelihood: Some(likelihood),
            components: Some(components),
            nca_steps: grows.then_some(nca_steps),
            update_prob: grows.then_some(update_prob),
            doublings: (kind == Kind::Doubling).then_some(doublings),
            start_side: (kind == Kind::NonDoubling).then_some(start_side),
            ..TrainOptions::default()
        }
    }

    /// Returns the parameters for a model, in the checkpoint layout and the leaves' order.
    ///
    /// # Errors
    /// When they are of another model. The message names what differs.
    pub fn parameters(&self, from: &str, model: &Model) -> Result<Vec<Array>> {
        let leaves = model.vae().leaves();
        let arrays = match self {
            Origin::File(path) => weights::read(path, &leaves),
            Origin::Known(weights) => {
                let own = weights.model;
                for (name, asked, own) in [
                    ("model", model.kind.to_string(), own.kind.to_string()),
                    ("latent", model.latent.to_string(), own.latent.to_string()),
                    ("encoder_width", model.encoder_width.to_string(), own.encoder_width.to_string()),
                    ("image_size", model.image.to_string(), own.image.to_string()),
                ] {
                    valid!(
                        asked == own,
                        name,
                        "is {asked}, and the weights of {from} are of a model with {own}"
                    );
                }
                let names = weights.model.vae().leaves().into_iter().map(|leaf| leaf.name);
                arrange(&leaves, names.zip(weights.arrays.iter().cloned()).collect()).tag(Error::Usage)
            }
        };
        arrays.with_context(|| format!("--from {from}"))
    }
}
