//! An interactive page: one HTML file with a model's weights, that grows, damages and explores its pictures in a browser.
//!
//! The file contains everything it needs and loads nothing. It computes with WebGPU, WebGL2 or WebAssembly. The latter is compiled
//! from `tools/page/kernel.rs` by `tools/page/build`.
//!
//! A network is described to the page as a list of convolutions. Weights are f16, in blocks of 8 output channels: (blocks, kernel,
//! kernel, inputs, 8). All numbers of channels but those of images and latents are padded with zeros to multiples of 8.

use anyhow::{Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use half::f16;
use serde::Serialize;
use serde_json::{Value, json};

use super::figure::page::escape;
use crate::engine::array::Array;
use crate::model::grow::{Growth, SCOPE};
use crate::model::{Frame, Grow, Vae};
use crate::nn::params::Leaf;

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPTS: [&str; 2] = [include_str!("backends.js"), include_str!("page.js")];
const KERNEL: &[u8] = include_bytes!("kernel.wasm");

/// Output channels per block of weights.
const BLOCK: usize = 8;
/// The largest page, in bytes. Browsers open larger files slowly.
pub const MAX_BYTES: usize = 96 << 20;

/// What a page shows.
pub struct Content<'a> {
    /// The model.
    pub model: &'a Vae,
    /// Its weights, in the checkpoint layout and the order of the leaves.
    pub weights: &'a [Array],
    /// Title of the page.
    pub title: String,
    /// Origin of the weights, as a sentence.
    pub origin: String,
    /// How the page computes pixels from the likelihood's outputs.
    pub pixels: Pixels,
    /// Whether the pictures are digits. The page's sentences name them.
    pub digits: bool,
    /// Seed of the first picture: the first sample of `vnca sample` with this seed.
    pub seed: u64,
    /// Whether the page contains the encoder, for images that its reader draws.
    pub encoder: bool,
    /// A map of latents.
    pub map: Option<Map>,
}

/// The likelihood's outputs of a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pixels {
    /// One logit of a bit. The page shows its probability.
    Bits,
    /// A mixture of logistic distributions of values from -1 to 1, which are levels from 0 to 255. The page shows the mean.
    ///
    /// The outputs are one logit for each component; means, for each channel and component; logarithms of scales, for each channel
    /// and component; and for 3 or 4 channels, factors before tanh, for each component: of green by red, of blue by red, of blue by
    /// green. Means of RGBA are those of colours multiplied by the opacity.
    Logistic {
        /// Number of components.
        components: usize,
        /// Values of a pixel: 1 for grey, 3 for RGB, 4 for RGBA.
        channels: usize,
    },
}

impl Pixels {
    /// Returns the number of outputs of a pixel.
    pub fn outputs(&self) -> usize {
        match *self {
            Pixels::Bits => 1,
            Pixels::Logistic { components, channels } => {
                let factors = if channels >= 3 { 3 } else { 0 };
                components * (1 + 2 * channels + factors)
            }
        }
    }

    /// Returns the number of values of a pixel.
    pub fn channels(&self) -> usize {
        match *self {
            Pixels::Bits => 1,
            Pixels::Logistic { channels, .. } => channels,
        }
    }
}

/// A map of latents: points in a plane, with class and latent each.
pub struct Map {
    /// x and y of each point.
    pub coordinates: Vec<f32>,
    /// The class of each point.
    pub labels: Vec<u8>,
    /// The latent of each point.
    pub means: Vec<f32>,
}

/// A convolution, as the page's scripts read it.
#[derive(Serialize)]
struct Layer<D: Serialize> {
    kernel: usize,
    stride: usize,
    dilation: usize,
    /// Padding before the first row and column.
    low: usize,
    /// Number of channels of a cell's layer; height, width and channels of another layer.
    #[serde(rename = "in")]
    input: D,
    out: D,
    /// Index of the first weight.
    weight: usize,
    /// Index of the first bias.
    bias: usize,
    elu: bool,
    add: bool,
    /// Grids that a cell's layer reads and writes: 0 is the state.
    from: usize,
    to: usize,
}

/// Collects weights in the page's layout.
struct Packer<'a> {
    leaves: Vec<Leaf>,
    arrays: &'a [Array],
    packed: Vec<f16>,
}

impl Packer<'_> {
    fn index(&self, name: &str) -> Option<usize> {
        self.leaves.iter().position(|leaf| leaf.name == name)
    }

    /// Returns the sizes of a layer's weight.
    fn weight_shape(&self, layer: &str) -> Option<&[usize]> {
        Some(&self.leaves[self.index(&format!("{layer}.weight"))?].shape)
    }

    /// Returns the values of a layer's weight and bias.
    fn values(&self, layer: &str) -> Option<[Vec<f32>; 2]> {
        let values = |part: &str| Some(self.arrays[self.index(&format!("{layer}.{part}"))?].to_vec::<f32>());
        Some([values("weight")?, values("bias")?])
    }

    /// Returns the output channels of a 5x5 convolution. `None`: there is no such layer with these input channels.
    fn conv5_outputs(&self, layer: &str, channels: usize) -> Option<usize> {
        match *self.weight_shape(layer)? {
            [outputs, inputs, 5, 5] if inputs == channels => Some(outputs),
            _ => None,
        }
    }

    /// Packs a layer whose weight has the sizes (out, inputs, kernel, kernel). Returns the indices of weight and bias.
    fn pack(&mut self, weight: &[f32], bias: &[f32], inputs: [usize; 2], kernel: usize) -> (usize, usize) {
        let [inputs, padded_inputs] = inputs;
        let (outputs, taps) = (bias.len(), kernel * kernel);
        let at = self.packed.len();
        for block in 0..outputs.div_ceil(BLOCK) {
            for tap in 0..taps {
                for input in 0..padded_inputs {
                    for output in block * BLOCK..(block + 1) * BLOCK {
                        let inside = output < outputs && input < inputs;
                        let value = if inside { weight[(output * inputs + input) * taps + tap] } else { 0.0 };
                        self.packed.push(f16::from_f32(value));
                    }
                }
            }
        }
        let bias_at = self.packed.len();
        self.packed.extend(bias.iter().map(|b| f16::from_f32(*b)));
        self.packed.resize(bias_at + padded(outputs), f16::ZERO);
        (at, bias_at)
    }

    /// Packs the layers of an automaton's cell. `None`: the cell is no list of convolutions.
    fn cell(&mut self, grow: &Grow) -> Option<Vec<Layer<usize>>> {
        let mut layers = Vec::new();
        for layer in grow.cell.layers()? {
            let name = format!("{SCOPE}.{}", layer.name);
            let shape = self.weight_shape(&name)?;
            let (outputs, inputs, kernel) = (shape[0], shape[1], shape[2]);
            let [weight, bias] = self.values(&name)?;
            let input = padded(inputs);
            let (weight, bias) = self.pack(&weight, &bias, [inputs, input], kernel);
            layers.push(Layer {
                kernel,
                stride: 1,
                dilation: 1,
                low: (kernel - 1) / 2,
                input,
                out: padded(outputs),
                weight,
                bias,
                elu: layer.elu,
                add: layer.add,
                from: layer.from,
                to: layer.to,
            });
        }
        Some(layers)
    }

    /// Packs a layer of a network for images. `name` is that of the layer; its weight has `inputs` input channels.
    fn image_layer(&mut self, name: &str, inputs: usize, step: Step) -> Option<Layer<[usize; 3]>> {
        let [mut weight, mut bias] = self.values(name)?;
        if let Some(pixels) = step.regroup {
            weight = regrouped(&weight, bias.len(), pixels);
            bias = regrouped(&bias, bias.len(), pixels);
        }
        let (height, width, channels) = step.input;
        let (weight, bias_at) = self.pack(&weight, &bias, [inputs, channels], step.kernel);
        let (out_height, out_width) = step.output;
        Some(Layer {
            kernel: step.kernel,
            stride: step.stride,
            dilation: step.dilation,
            low: step.low,
            input: [height, width, channels],
            out: [out_height, out_width, padded(bias.len())],
            weight,
            bias: bias_at,
            elu: step.elu,
            add: false,
            from: 0,
            to: 0,
        })
    }

    /// Packs the report's encoder, of any width, for images of any size. `None`: the parameters are those of another one.
    fn encoder(&mut self, frame: &Frame) -> Option<Vec<Layer<[usize; 3]>>> {
        let mut layers = Vec::new();
        let (mut sides, mut channels) = (frame.grid, [frame.channels; 2]);
        for i in 0..=frame.halvings(4) {
            let stride = if i == 0 { 1 } else { 2 };
            let name = format!("encoder.conv{i}");
            let outputs = self.conv5_outputs(&name, channels[0])?;
            let next = sides.map(|side| side.div_ceil(stride));
            let step = Step {
                input: (sides[0], sides[1], channels[1]),
                output: (next[0], next[1]),
                kernel: 5,
                stride,
                dilation: 1,
                low: 2,
                elu: true,
                regroup: None,
            };
            layers.push(self.image_layer(&name, channels[0], step)?);
            (sides, channels) = (next, [outputs, padded(outputs)]);
        }
        if self.weight_shape("encoder.linear")?[1] != sides[0] * sides[1] * channels[0] {
            return None;
        }
        // The features are ordered by channel, row and column, like the weights of a convolution.
        let kernel = sides[0].max(sides[1]);
        let [weight, bias] = self.values("encoder.linear")?;
        let weight = squared(&weight, sides, kernel);
        let (weight, bias_at) = self.pack(&weight, &bias, channels, kernel);
        layers.push(Layer {
            kernel,
            stride: 1,
            dilation: 1,
            low: 0,
            input: [sides[0], sides[1], channels[1]],
            out: [1, 1, padded(bias.len())],
            weight,
            bias: bias_at,
            elu: false,
            add: false,
            from: 0,
            to: 0,
        });
        Some(layers)
    }

    /// Packs the baseline's decoder. `None`: the parameters are those of another one.
    fn decoder(&mut self, latent: usize, frame: &Frame) -> Option<Vec<Layer<[usize; 3]>>> {
        let doublings = frame.halvings(4);
        let mut sides = frame.grid.map(|side| side >> doublings);
        let pixels = sides[0] * sides[1];
        let none = Step {
            input: (1, 1, latent),
            output: (1, 1),
            kernel: 1,
            stride: 1,
            dilation: 1,
            low: 0,
            elu: false,
            regroup: Some(pixels),
        };
        let mut layers = vec![self.image_layer("decoder.linear", latent, none)?];
        let mut channels = layers[0].out[2] / pixels;
        for i in 0..=doublings {
            let doubles = i < doublings;
            let next = match (doubles, frame.counts_margin) {
                (true, _) => sides.map(|side| 2 * side),
                // The last convolution computes the image, or the whole grid.
                (false, true) => [frame.height, frame.width],
                (false, false) => sides,
            };
            let name = format!("decoder.conv{i}");
            let outputs = self.conv5_outputs(&name, channels)?;
            let step = Step {
                input: (sides[0], sides[1], channels),
                output: (next[0], next[1]),
                kernel: 5,
                stride: 1,
                dilation: if doubles { 2 } else { 1 },
                low: if doubles || !frame.counts_margin { 2 } else { 0 },
                elu: doubles,
                regroup: None,
            };
            layers.push(self.image_layer(&name, channels, step)?);
            (sides, channels) = (next, outputs);
        }
        Some(layers)
    }
}

/// Sizes of a layer of a network for images.
struct Step {
    /// Height, width and channels.
    input: (usize, usize, usize),
    output: (usize, usize),
    kernel: usize,
    stride: usize,
    dilation: usize,
    low: usize,
    elu: bool,
    /// The layer's outputs are a grid of this number of pixels, in which the channel varies slowest. Orders them with the channel
    /// varying fastest.
    regroup: Option<usize>,
}

fn padded(channels: usize) -> usize {
    channels.next_multiple_of(BLOCK)
}

/// Orders rows (channels, pixels) of `outputs` rows in all as (pixels, channels).
fn regrouped(rows: &[f32], outputs: usize, pixels: usize) -> Vec<f32> {
    let (length, channels) = (rows.len() / outputs, outputs / pixels);
    let row = |output: usize| &rows[output * length..][..length];
    (0..outputs).flat_map(|i| row(i % channels * pixels + i / channels)).copied().collect()
}

/// Returns weights (..., rows, columns) as (..., kernel, kernel), with zeros after the last rows and columns.
fn squared(weights: &[f32], [rows, columns]: [usize; 2], kernel: usize) -> Vec<f32> {
    let mut square = vec![0.0; weights.len() / (rows * columns) * kernel * kernel];
    for (i, row) in weights.chunks_exact(columns).enumerate() {
        let to = (i / rows * kernel + i % rows) * kernel;
        square[to..to + columns].copy_from_slice(row);
    }
    square
}

/// Returns f16 numbers as base64, in little-endian order.
fn encoded(values: &[f16]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

impl Map {
    /// Returns the map as the page's scripts read it: coordinates from -1 to 1.
    fn json(&self) -> Value {
        let most = self.coordinates.iter().fold(f32::MIN_POSITIVE, |most, x| most.max(x.abs()));
        let rounded = |x: f32| (f64::from(x / most) * 1e4).round() / 1e4;
        let points: Vec<[f64; 2]> =
            self.coordinates.chunks_exact(2).map(|p| [rounded(p[0]), rounded(p[1])]).collect();
        let means: Vec<f16> = self.means.iter().map(|x| f16::from_f32(*x)).collect();
        json!({ "points": points, "labels": self.labels, "means": encoded(&means) })
    }
}

/// Returns the page as HTML.
///
/// # Errors
/// When the page cannot show the model, its weights do not fit f16, or the page would be larger than [`MAX_BYTES`].
pub fn html(content: &Content<'_>) -> Result<String> {
    let model = content.model;
    let mut packer = Packer { leaves: model.leaves(), arrays: content.weights, packed: Vec::new() };
    let (pixels, frame) = (content.pixels, &model.frame);
    let outputs = model.likelihood.outputs().channels;
    ensure!(
        outputs == pixels.outputs() && frame.channels == pixels.channels(),
        "the likelihood has {outputs} outputs for {} values of a pixel: the page would show {pixels:?} with {} and {}",
        frame.channels,
        pixels.outputs(),
        pixels.channels()
    );
    let grow = model.decoder.automaton();
    let cell = match grow {
        Some(grow) => {
            let layers = packer.cell(grow);
            ensure!(
                layers.is_some(),
                "the cell of {} is not described as convolutions: the page needs Cell::layers",
                model.name
            );
            layers
        }
        None => None,
    };
    let decoder = if grow.is_none() { packer.decoder(model.latent, frame) } else { None };
    ensure!(
        cell.is_some() || decoder.is_some(),
        "the decoder of {} is neither an automaton nor the baseline's: the page cannot show it",
        model.name
    );
    let encoder = if content.encoder { packer.encoder(frame) } else { None };
    let all_finite = packer.packed.iter().all(|value| value.is_finite());
    ensure!(all_finite, "some weights are not finite, or over 65504, more than f16 holds");
    let bytes = packer.packed.len() * 2 / 3 * 4;
    ensure!(
        bytes <= MAX_BYTES,
        "the page would have {} MiB, for {} weights in f16 as text; at most {} MiB. It is smaller without the encoder",
        bytes >> 20,
        packer.packed.len(),
        MAX_BYTES >> 20
    );
    let (doublings, steps) = match grow.map(|grow| grow.growth) {
        Some(Growth::Doublings { doublings, steps }) => (Some(doublings), steps),
        Some(Growth::Steps(steps)) => (None, steps),
        None => (None, 0),
    };
    let widths = cell.iter().flatten().flat_map(|layer| [layer.input, layer.out]);
    let thing = if content.digits { "digit" } else { "picture" };
    let description = json!({
        "name": model.name,
        "latent": model.latent,
        "channels": padded(model.latent),
        "width": widths.max().unwrap_or(0),
        "grid": frame.grid,
        "image": [frame.height, frame.width, frame.channels],
        "shown": frame.counted(),
        "mixture": match pixels {
            Pixels::Bits => None,
            Pixels::Logistic { components, .. } => Some(json!({ "components": components })),
        },
        "outputs": outputs,
        "thing": thing,
        "first": grow.map(|grow| grow.first_sides(frame)),
        "start_side": grow.map(|grow| grow.start_side),
        "update_prob": grow.map(|grow| grow.update_prob),
        "doublings": doublings,
        "steps": steps,
        "seed": content.seed,
        "origin": content.origin,
        "cell": cell,
        "decoder": decoder,
        "encoder": encoder,
        "map": content.map.as_ref().map(Map::json),
    });
    let parts = [
        ("TITLE", escape(&content.title)),
        ("THING", thing.to_string()),
        ("STYLE", STYLE.trim_end().to_string()),
        ("SCRIPT", SCRIPTS.concat().trim_end().to_string()),
        // A closing tag in a text would end the script element.
        ("MODEL", description.to_string().replace("</", "<\\/")),
        ("WEIGHTS", encoded(&packer.packed)),
        ("KERNEL", STANDARD.encode(KERNEL)),
    ];
    Ok(fill(TEMPLATE, &parts))
}

/// Replaces each `{{NAME}}` of a template. What is inserted is not searched.
fn fill(template: &str, parts: &[(&str, String)]) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").expect("the template closes its braces");
        out += before;
        out += &parts.iter().find(|(part, _)| *part == name).expect("the template names a part").1;
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::engine::ir::Sym;
    use crate::engine::random::Key;
    use crate::model::Bernoulli;
    use crate::model::cell::{Cell, ShallowCell};
    use crate::model::encoder::ConvEncoder;
    use crate::nn::params::{Params, init};

    #[test]
    fn rows_are_regrouped_by_pixel() {
        // 2 channels of 3 pixels, rows of one number.
        let rows = [10.0, 11.0, 12.0, 20.0, 21.0, 22.0];
        assert_eq!(regrouped(&rows, 6, 3), [10.0, 20.0, 11.0, 21.0, 12.0, 22.0]);
    }

    struct Undescribed;

    impl Cell for Undescribed {
        fn parameters(&self, channels: usize) -> Vec<Leaf> {
            ShallowCell.parameters(channels)
        }

        fn update<'g>(&self, params: &Params<'g>, cells: Sym<'g>) -> Sym<'g> {
            ShallowCell.update(params, cells)
        }
    }

    #[test]
    fn a_square_kernel_has_zeros_after_the_weights() {
        let weights = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(squared(&weights, [1, 2], 2), [1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0]);
        assert_eq!(squared(&weights, [2, 1], 2), [1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0]);
        assert_eq!(squared(&weights, [2, 2], 2), weights);
    }

    fn page_with(grow: Grow, encoder: bool, pixels: Pixels) -> Result<String> {
        let model = Vae::new("own", 4, ConvEncoder { width: 2 }, grow, Bernoulli);
        let weights = init(&model.leaves(), Key::new(0));
        let (title, origin) = ("<b>".to_string(), "</script>".to_string());
        html(&Content {
            model: &model,
            weights: &weights,
            title,
            origin,
            pixels,
            digits: true,
            seed: 0,
            encoder,
            map: None,
        })
    }

    fn page_of(grow: Grow, encoder: bool) -> Result<String> {
        page_with(grow, encoder, Pixels::Bits)
    }

    #[test]
    fn pixels_that_the_likelihood_does_not_have_are_refused() {
        let pixels = Pixels::Logistic { components: 5, channels: 4 };
        let error = page_with(Grow::new(ShallowCell, 3), false, pixels).unwrap_err().to_string();
        assert!(error.contains("the likelihood has 1 outputs") && error.contains("with 60 and 4"), "{error}");
    }

    #[test]
    fn an_own_cell_is_shown_if_it_describes_itself() {
        let error = page_of(Grow::new(Undescribed, 3), false).unwrap_err().to_string();
        assert!(error.contains("the cell of own") && error.contains("Cell::layers"), "{error}");
        let page = page_of(Grow::new(ShallowCell, 3), true).unwrap();
        assert!(page.contains("<title>&lt;b&gt;</title>") && page.contains("<\\/script>"));
        assert!(page_of(Grow::new(ShallowCell, 3), false).unwrap().len() < page.len());
    }

    #[test]
    fn inserted_text_is_not_a_template() {
        let parts = [("A", "{{B}}".to_string()), ("B", "b".to_string())];
        assert_eq!(fill("x{{A}}y{{B}}z", &parts), "x{{B}}ybz");
    }

    #[test]
    fn the_webassembly_is_that_of_its_sources() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        for line in include_str!("kernel.sha256").lines() {
            let (sum, path) = line.split_once("  ").unwrap();
            let text = std::fs::read(root.join(path)).unwrap();
            let now: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(now, sum, "{path} changed: run tools/page/build");
        }
    }
}
