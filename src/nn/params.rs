//! Parameters: names, layouts in checkpoints and on devices, initial values.
//!
//! The checkpoint layout is that of Equinox and PyTorch, also used for weights in other files: a convolution's weight is
//! (out, in, kh, kw), a linear layer's weight (out, in), a convolution's bias (out, 1, 1). In the device layout channels are
//! last: (kh, kw, in, out), (in, out), (out).

use anyhow::{Result, ensure};

use super::tree::Tree;
use crate::engine::array::Array;
use crate::engine::ir::ops::conv::Window;
use crate::engine::ir::{Graph, Sym};
use crate::engine::random::{Key, graph as draw};

/// The beginning of the names of averaged parameters in the state of a run and in checkpoints. Evaluation uses them instead of the
/// parameters themselves.
pub const AVERAGED: &str = "ema.";

/// The kind of a parameter, which determines its two layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The weight of a convolution: (out, in, kh, kw) in checkpoints, (kh, kw, in, out) on devices.
    ConvWeight,
    /// The weight of a 1x1 convolution: (out, in, 1, 1) in checkpoints, (in, out) on devices.
    PointWeight,
    /// The weight of a linear layer: (out, in) in checkpoints, (in, out) on devices.
    LinearWeight,
    /// The bias of a convolution: (out, 1, 1) in checkpoints, (out) on devices.
    ConvBias,
    /// The bias of a linear layer: (out).
    LinearBias,
    /// Any other parameter: of any sizes, the same in checkpoints and on devices.
    Plain,
}

/// One parameter of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaf {
    /// The name, such as `encoder.conv0.weight`.
    pub name: String,
    /// Sizes in the checkpoint layout.
    pub shape: Vec<usize>,
    /// The kind, which determines the layouts.
    pub role: Role,
    /// Bound of the initial values, which are uniform in (−limit, limit).
    pub limit: f32,
    /// Indices of the key splits that lead from the model's key to this parameter's key.
    pub path: Vec<usize>,
}

impl Leaf {
    /// Reports whether the parameter is a weight, not a bias.
    pub fn is_weight(&self) -> bool {
        matches!(self.role, Role::ConvWeight | Role::PointWeight | Role::LinearWeight)
    }

    /// Returns the sizes in the device layout.
    pub fn device_shape(&self) -> Vec<usize> {
        let s = &self.shape;
        match self.role {
            Role::ConvWeight => vec![s[2], s[3], s[1], s[0]],
            Role::PointWeight | Role::LinearWeight => vec![s[1], s[0]],
            Role::ConvBias | Role::LinearBias => vec![s[0]],
            Role::Plain => s.clone(),
        }
    }

    /// Converts an array from the checkpoint layout to the device layout.
    pub fn to_device_layout(&self, array: &Array) -> Array {
        let moved = match self.role {
            Role::ConvWeight | Role::PointWeight => array.transpose(&[2, 3, 1, 0]),
            Role::LinearWeight => array.transpose(&[1, 0]),
            Role::ConvBias | Role::LinearBias | Role::Plain => array.clone(),
        };
        moved.reshape(&self.device_shape())
    }

    /// Converts an array from the device layout to the checkpoint layout.
    pub fn to_checkpoint_layout(&self, array: &Array) -> Array {
        let moved = match self.role {
            Role::ConvWeight => array.transpose(&[3, 2, 0, 1]),
            Role::PointWeight | Role::LinearWeight => array.transpose(&[1, 0]),
            Role::ConvBias | Role::LinearBias | Role::Plain => array.clone(),
        };
        moved.reshape(&self.shape)
    }

    /// Returns the initial values in the checkpoint layout.
    pub fn init(&self, model: Key) -> Array {
        let key = self.path.iter().fold(model, |key, &i| key.split_at(i as u64));
        let count = self.shape.iter().product();
        Array::new(&self.shape, &key.uniform(count, -self.limit, self.limit))
    }

    /// Returns the initial values in the device layout, computed in a graph.
    pub fn init_in<'g>(&self, model: Sym<'g>) -> Sym<'g> {
        let key = self.path.iter().fold(model, |key, &i| draw::split_at(key, i));
        let values = draw::uniform(key, &self.shape, -self.limit, self.limit);
        match self.role {
            Role::ConvWeight | Role::PointWeight => values.transpose(&[2, 3, 1, 0]),
            Role::LinearWeight => values.transpose(&[1, 0]),
            Role::ConvBias | Role::LinearBias | Role::Plain => values,
        }
        .reshape(&self.device_shape())
    }
}

/// Returns weight and bias of a layer. The shape is that of the weight in checkpoints, which is PyTorch's: (out, in, kh, kw) for
/// [`Role::ConvWeight`], (out, in, 1, 1) for [`Role::PointWeight`], (out, in) for [`Role::LinearWeight`].
///
/// The initial values of both are uniform within ±1/√(fan in). Each has its own key: `path` leads from the model's key to the
/// layer's, and no other layer of a model may have the same path.
pub fn layer(name: &str, role: Role, shape: &[usize], path: &[usize]) -> [Leaf; 2] {
    let fan_in: usize = shape[1..].iter().product();
    let limit = (1.0 / (fan_in as f64).sqrt()) as f32;
    let (bias_role, bias_shape) = match role {
        Role::LinearWeight => (Role::LinearBias, vec![shape[0]]),
        _ => (Role::ConvBias, vec![shape[0], 1, 1]),
    };
    let leaf = |part: &str, shape: Vec<usize>, role, i| Leaf {
        name: format!("{name}.{part}"),
        shape,
        role,
        limit,
        path: [path, &[i]].concat(),
    };
    [leaf("weight", shape.to_vec(), role, 0), leaf("bias", bias_shape, bias_role, 1)]
}

/// Puts parameters under a scope: in the scope `cell`, `conv0.weight` becomes `cell.conv0.weight`. Prepends `path` to their
/// paths of key splits.
pub fn scoped(scope: &str, path: &[usize], leaves: Vec<Leaf>) -> Vec<Leaf> {
    let inner = |leaf: Leaf| Leaf {
        name: format!("{scope}.{}", leaf.name),
        path: [path, leaf.path.as_slice()].concat(),
        ..leaf
    };
    leaves.into_iter().map(inner).collect()
}

/// Parameters in a graph, by name, in the device layout.
#[derive(Clone)]
pub struct Params<'g> {
    named: Tree<Sym<'g>>,
}

impl<'g> Params<'g> {
    /// Gives values the names of the leaves, which are in the same order.
    pub fn new(leaves: &[Leaf], values: &[Sym<'g>]) -> Params<'g> {
        Params { named: leaves.iter().map(|l| l.name.clone()).zip(values.iter().copied()).collect() }
    }

    /// Declares a program input for each leaf. Its name is `prefix` followed by the leaf's name.
    pub fn inputs(g: &'g Graph, leaves: &[Leaf], prefix: &str) -> Vec<Sym<'g>> {
        use crate::engine::shape::Shape;
        leaves
            .iter()
            .map(|l| g.input(&format!("{prefix}{}", l.name), &Shape::f32(&l.device_shape())))
            .collect()
    }

    /// Returns the parameters of a scope, without the scope in their names.
    pub fn scope(&self, scope: &str) -> Params<'g> {
        Params { named: self.named.scope(scope) }
    }

    /// Returns a parameter by name.
    ///
    /// # Panics
    /// When no parameter has the name, which is a mistake in the model's code.
    #[track_caller]
    pub fn get(&self, name: &str) -> Sym<'g> {
        self.named[name]
    }

    /// Returns weight and bias of a layer.
    ///
    /// # Panics
    /// When the model has no such layer, which is a mistake in the model's code.
    #[track_caller]
    pub fn layer(&self, name: &str) -> (Sym<'g>, Sym<'g>) {
        (self.get(&format!("{name}.weight")), self.get(&format!("{name}.bias")))
    }

    /// Reports whether a layer has the name.
    pub fn has_layer(&self, name: &str) -> bool {
        self.named.get(&format!("{name}.weight")).is_some()
    }

    /// Returns these parameters with an additional layer, usually one that was computed from them.
    pub fn with_layer(&self, name: &str, weight: Sym<'g>, bias: Sym<'g>) -> Params<'g> {
        let mut named = self.named.clone();
        named.extend([(format!("{name}.weight"), weight), (format!("{name}.bias"), bias)]);
        Params { named }
    }

    /// Applies a convolution and its bias to grids (n, h, w, in): (n, h', w', out).
    #[track_caller]
    pub fn conv(&self, name: &str, x: Sym<'g>, window: Window) -> Sym<'g> {
        let (weight, bias) = self.layer(name);
        x.conv(weight, window) + bias
    }

    /// Computes x W + b over the last dimension: a linear layer, or a 1x1 convolution of an NHWC grid.
    #[track_caller]
    pub fn linear(&self, name: &str, x: Sym<'g>) -> Sym<'g> {
        let (weight, bias) = self.layer(name);
        let dims = x.dims();
        let (rows, last) = dims.split_at(dims.len() - 1);
        let flat = x.reshape(&[rows.iter().product(), last[0]]);
        let out = [rows, &[bias.dims()[0]]].concat();
        (flat.dot(weight) + bias).reshape(&out)
    }
}

/// Returns the initial values of a model, in the checkpoint layout.
pub fn init(leaves: &[Leaf], key: Key) -> Vec<Array> {
    leaves.iter().map(|leaf| leaf.init(key)).collect()
}

/// Puts named arrays in the order of the leaves.
///
/// # Errors
/// When a name is missing, unknown or of another shape. The message lists all of them, with both shapes.
pub fn arrange(leaves: &[Leaf], mut named: Vec<(String, Array)>) -> Result<Vec<Array>> {
    let mut problems = Vec::new();
    let mut arranged = Vec::new();
    for leaf in leaves {
        match named.iter().position(|(name, _)| *name == leaf.name) {
            None => problems.push(format!("missing {} {:?}", leaf.name, leaf.shape)),
            Some(at) => {
                let (name, array) = named.swap_remove(at);
                if array.dims() != leaf.shape || array.shape().dtype != crate::engine::shape::DType::F32 {
                    problems.push(format!("{name}: expected f32{:?}, got {}", leaf.shape, array.shape()));
                }
                arranged.push(array);
            }
        }
    }
    problems.extend(named.iter().map(|(name, array)| format!("not of this model: {name} {}", array.shape())));
    ensure!(problems.is_empty(), "the parameters do not fit the model: {}", problems.join("; "));
    Ok(arranged)
}
