//! The models of JAX's forward numbers.
#![allow(dead_code)]

use vnca::cli::models::{Kind, Model};
use vnca::engine::array::Array;
use vnca::engine::random::Key;
use vnca::nn::params::{Leaf, init};

/// The models of the forward goldens: at the report's sizes, and tiny ones.
pub fn models() -> Vec<(String, Model)> {
    let mut models = Vec::new();
    for kind in Kind::ALL {
        models.push((format!("full.{kind}"), Model::new(kind, None).expect("a model of the report")));
        let tiny = Model::new(kind, Some(16)).expect("a small model");
        let nca_steps = match kind {
            Kind::Baseline => 0,
            Kind::Doubling => 2,
            Kind::NonDoubling => 6,
        };
        models.push((format!("tiny.{kind}"), Model { nca_steps, ..tiny }));
    }
    models
}

/// Initial values in the inner layout, the last layer of an NCA's cell replaced so that its steps do something.
pub fn woken(model: &Model) -> Vec<Array> {
    let scale = 0.4 / model.latent as f32;
    let awake = |leaf: &Leaf, array: Array| {
        let key = match leaf.name.as_str() {
            "cell.conv1.weight" => Key::new(100),
            "cell.conv1.bias" => Key::new(101),
            _ => return array,
        };
        let values: Vec<f32> = key.normal(array.shape().count()).iter().map(|v| scale * v).collect();
        Array::new(array.dims(), &values)
    };
    let leaves = model.vae().leaves();
    let values = init(&leaves, Key::new(0));
    leaves.iter().zip(values).map(|(leaf, array)| leaf.to_inner(&awake(leaf, array))).collect()
}
