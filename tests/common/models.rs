//! The models whose forward pass is compared with golden values from JAX.
#![allow(dead_code)]

use vnca::cli::models::{Kind, Model};
use vnca::engine::array::Array;
use vnca::engine::random::Key;
use vnca::nn::params::{Leaf, init};

/// Returns the models of the golden values: at the report's sizes, and tiny ones.
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

/// Returns initial values in the device layout. The last layer of an NCA's cell is random instead of zero, so that steps change
/// the cells.
pub fn woken(model: &Model) -> Vec<Array> {
    let scale = 0.4 / model.latent as f32;
    let value = |leaf: &Leaf, array: Array| {
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
    leaves.iter().zip(values).map(|(leaf, array)| leaf.to_device_layout(&value(leaf, array))).collect()
}
