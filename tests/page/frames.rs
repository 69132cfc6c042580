//! Pages of models with colour, for images of any size.

use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;
use vnca::engine::array::Array;
use vnca::engine::ir::Sym;
use vnca::engine::random::Key;
use vnca::engine::runtime::Device;
use vnca::engine::shape::{DType, Shape};
use vnca::model::baseline::ConvDecoder;
use vnca::model::cell::{ResidualCell, ShallowCell};
use vnca::model::decoder::Decoder;
use vnca::model::encoder::ConvEncoder;
use vnca::model::grow::Grids;
use vnca::model::likelihood::{Likelihood, Outputs};
use vnca::model::{Frame, Grow, Vae};
use vnca::study::gallery::Latent;
use vnca::study::page::{Content, Pixels, html};
use vnca::study::session::Session;

use crate::browser::{GPU, NO_GPU, answers, find_browser};
use crate::{HANDS, SEED, largest_difference, random_values};

/// The largest difference of brightness, relative to the contrast of the picture.
const TOLERANCE: f64 = 1e-3;
const AFTER: usize = 3;

/// The outputs of a mixture of logistic distributions, and the values that images have for the encoder.
#[derive(Clone, Copy)]
struct Mixture {
    components: usize,
    channels: usize,
}

impl Likelihood for Mixture {
    fn outputs(&self) -> Outputs {
        let pixels = Pixels::Logistic { components: self.components, channels: self.channels };
        Outputs { channels: pixels.outputs(), outside: 0.0 }
    }

    fn log_prob<'g>(&self, images: Sym<'g>, _outputs: Sym<'g>) -> Sym<'g> {
        images
    }

    fn mean<'g>(&self, outputs: Sym<'g>) -> Sym<'g> {
        outputs
    }

    fn draw<'g>(&self, outputs: Sym<'g>, _keys: Sym<'g>) -> Sym<'g> {
        outputs
    }

    fn observe<'g>(&self, pixels: Sym<'g>) -> Sym<'g> {
        pixels.convert(DType::F32) / 127.5 - 1.0
    }
}

impl Mixture {
    /// Returns the mean of one pixel as brightness from 0 to 1.
    fn brightness(&self, outputs: &[f32]) -> Vec<f32> {
        let Mixture { components: k, channels: c } = *self;
        let limited = |x: f64| x.clamp(-1.0, 1.0);
        let mut means = vec![0.0; c];
        let mut total = 0.0;
        for i in 0..k {
            // The i-th component's number of a group of outputs.
            let of = |group: usize| f64::from(outputs[group * k + i]);
            let weight = of(0).exp();
            total += weight;
            let most = if c == 4 { limited(of(4)) } else { 1.0 };
            let mut values: Vec<f64> = Vec::new();
            for channel in 0..c.min(3) {
                let from_others: f64 = match channel {
                    0 => 0.0,
                    1 => of(1 + 2 * c).tanh() * values[0],
                    _ => of(2 + 2 * c).tanh() * values[0] + of(3 + 2 * c).tanh() * values[1],
                };
                values.push(limited(of(1 + channel) + from_others).min(most));
            }
            if c == 4 {
                values.push(most);
            }
            means.iter_mut().zip(values).for_each(|(mean, value)| *mean += weight * value);
        }
        means.into_iter().map(|mean| ((mean / total + 1.0) / 2.0) as f32).collect()
    }
}

/// A model with random weights, and its page.
struct Case {
    _folder: TempDir,
    page: PathBuf,
    mixture: Mixture,
    session: Session,
    latent: Latent,
}

impl Case {
    fn new(frame: Frame, latent: usize, components: usize, decoder: impl Decoder + 'static) -> Case {
        let mixture = Mixture { components, channels: frame.channels };
        let model = Vae::new("own", latent, ConvEncoder { width: 3 }, decoder, mixture).with_frame(frame);
        model.check().unwrap();
        let arrays = random_values(&model.leaves());
        let page = html(&Content {
            model: &model,
            weights: &arrays,
            title: "Pictures".into(),
            origin: String::new(),
            pixels: Pixels::Logistic { components, channels: frame.channels },
            digits: false,
            seed: SEED,
            encoder: true,
            map: None,
        });
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("page.html");
        std::fs::write(&path, page.unwrap()).unwrap();
        let session = Session::open(&Device::Cpu, 1, model, &arrays).unwrap();
        let latent = Latent::prior(Key::new(SEED).split_at(1), latent);
        Case { page: path, _folder: folder, mixture, session, latent }
    }

    fn brightness(&self, outputs: &Array) -> Vec<f32> {
        let outputs = outputs.to_vec::<f32>();
        let pixels = outputs.chunks_exact(self.mixture.outputs().channels);
        pixels.flat_map(|pixel| self.mixture.brightness(pixel)).collect()
    }

    /// Returns the picture after growth, and some steps after damage of a square (row, column, side).
    fn expected(&self, damage: [usize; 3]) -> Vec<Vec<f32>> {
        let model = &self.session.model;
        let (frame, outputs) = (model.frame, self.mixture.outputs().channels);
        let [rows, columns] = frame.grid;
        let z = Array::new(&[1, model.latent], &self.latent.z);
        let keys = Array::new(&[1, 2], &self.latent.steps_key().0);
        let Some(grow) = model.decoder.automaton() else {
            let program = self.session.compile("decode", |g, params| {
                let z = g.input("z", &Shape::f32(&[1, model.latent]));
                let keys = g.input("keys", &Shape::u32(&[1, 2]));
                vec![("outputs".into(), frame.crop(model.decode(params, z, keys)))]
            });
            return vec![self.brightness(&program.unwrap().call(&[z, keys]).unwrap()[0])];
        };
        let program = self.session.compile("grown", |g, params| {
            let z = g.input("z", &Shape::f32(&[1, model.latent]));
            let keys = g.input("keys", &Shape::u32(&[1, 2]));
            let kept = g.input("kept", &Shape::f32(&[1, rows, columns]));
            let (grids, _) = grow.stages(params, &frame, z, keys, |cells| cells.slice_axis(3, 0, 1), 0.0);
            let kept = kept.broadcast_in_dim(&grids.cells.dims(), &[0, 1, 2]);
            let hurt = Grids { cells: grids.cells * kept, ..grids };
            let healed = grow.automaton(params).steps(hurt, AFTER);
            [("grown", grids.cells), ("healed", healed.cells)]
                .map(|(name, cells)| (name.into(), frame.crop(cells.slice_axis(3, 0, outputs))))
                .to_vec()
        });
        let [row, column, side] = damage;
        let inside = |i: usize| {
            (row..row + side).contains(&(i / columns)) && (column..column + side).contains(&(i % columns))
        };
        let kept: Vec<f32> = (0..rows * columns).map(|i| if inside(i) { 0.0 } else { 1.0 }).collect();
        let results = program.unwrap().call(&[z, keys, Array::new(&[1, rows, columns], &kept)]).unwrap();
        results.iter().map(|outputs| self.brightness(outputs)).collect()
    }

    /// Compares a page with the program, by these backends.
    fn compare(&self, flags: &[&str], backends: &[&str], damage: [usize; 3]) {
        let Some(browser) = find_browser() else { return };
        let expected = self.expected(damage);
        let least = expected[0].iter().copied().fold(1.0f32, f32::min);
        let most = expected[0].iter().copied().fold(0.0f32, f32::max);
        let contrast = f64::from(most - least);
        assert!(contrast > 0.02, "a picture worth comparing: {least} to {most}");
        if let [grown, healed] = expected.as_slice() {
            let change = grown.iter().zip(healed).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(f64::from(change) > 0.1 * contrast, "a damage worth comparing: {change}");
        }
        let [row, column, side] = damage;
        let script = format!(
            "answer((await vnca.backends()).sort());
            const {{ z, key }} = vnca.sample({SEED}, 1);
            for (const backend of await vnca.backends()) {{
              const grow = (damage, after) => vnca.grow({{ backend, z, key, damage, after }});
              answer({{ backend, pictures: [(await grow(null, 0)).means,
                vnca.model.cell && (await grow({{ row: {row}, column: {column}, side: {side} }}, {AFTER})).means] }});
            }}"
        );
        let answers = answers(&browser, flags, &self.page, &script);
        assert_eq!(answers[0], json!(backends));
        assert_eq!(answers.len(), 1 + backends.len());
        for answer in &answers[1..] {
            for (got, expected) in answer["pictures"].as_array().unwrap().iter().zip(&expected) {
                let difference = largest_difference(got, expected);
                eprintln!("{} {:?}: {difference:.1e}", answer["backend"], self.session.model.frame);
                assert!(difference < TOLERANCE * contrast, "{}: {difference}", answer["backend"]);
            }
        }
    }
}

const ALL: [&str; 3] = ["wasm", "webgl2", "webgpu"];

/// The first grid has 3 x 2 cells, and the last one is larger than the image.
#[test]
fn every_backend_computes_pictures_of_colour_and_opacity() {
    let frame = Frame::new(21, 13, 4).in_multiples_of(8);
    assert_eq!(frame.grid, [24, 16]);
    let case = Case::new(frame, 28, 2, Grow::doubling(ResidualCell { blocks: 2 }, 3, 2));
    case.compare(GPU, &ALL, [9, 3, 7]);
}

#[test]
fn every_backend_computes_pictures_of_colour() {
    let grow = Grow { update_prob: 0.5, ..Grow::new(ShallowCell, 6) };
    Case::new(Frame::new(9, 14, 3), 12, 1, grow.from_seed(10)).compare(GPU, &ALL, [1, 5, 6]);
}

#[test]
fn grey_levels_are_shown_too() {
    Case::new(Frame::new(16, 40, 1), 9, 3, Grow::new(ShallowCell, 5)).compare(NO_GPU, &["wasm"], [2, 20, 9]);
}

#[test]
fn the_baseline_decodes_images_of_any_size() {
    let frame = ConvDecoder::fitted(Frame::new(20, 44, 3));
    assert_eq!(frame.grid, [32, 64]);
    Case::new(frame, 6, 2, ConvDecoder).compare(NO_GPU, &["wasm"], [0, 0, 0]);
}

/// Also of high and wide images, whose last features are no square.
#[test]
fn the_encoder_takes_images_of_colour() {
    let Some(browser) = find_browser() else { return };
    for frame in [Frame::new(36, 10, 3), Frame::new(18, 35, 4)] {
        let case = Case::new(frame, 28, 1, Grow::new(ShallowCell, 2));
        let count = frame.height * frame.width * frame.channels;
        let levels: Vec<u8> =
            Key::new(3).uniform(count, 0.0, 255.9).into_iter().map(|level| level as u8).collect();
        let model = &case.session.model;
        let program = case.session.compile("encoded", |g, params| {
            let pixels = g.input("pixels", &frame.pixels(1));
            let (mean, logvar) = model.encode(params, model.padded(pixels));
            vec![("mean".into(), mean), ("logvar".into(), logvar)]
        });
        let pixels = Array::new(&[&[1], frame.pixel_dims().as_slice()].concat(), &levels);
        let expected = program.unwrap().call(&[pixels]).unwrap();
        let script = format!("answer(await vnca.encode({}.map(level => level / 255)));", json!(levels));
        let answers = answers(&browser, NO_GPU, &case.page, &script);
        for (name, expected) in ["mean", "logvar"].into_iter().zip(expected) {
            let expected = expected.to_vec::<f32>();
            let most = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
            let difference = largest_difference(&answers[0][name], &expected);
            eprintln!("{name} of {frame:?}: {difference:.1e} of {most:.1}");
            assert!(most > 0.1, "a posterior worth comparing: {name} up to {most}");
            assert!(difference < 2e-3 * f64::from(most).max(1.0), "{name}: {difference}");
        }
    }
}

/// Colours are drawn or come from a file, and are multiplied by the opacity before the encoder sees them.
#[test]
fn a_picture_is_drawn_or_taken_from_a_file() {
    let Some(browser) = find_browser() else { return };
    let case = Case::new(Frame::new(12, 18, 4), 28, 1, Grow::new(ShallowCell, 2));
    let script = format!(
        "{HANDS}
        const draw = document.getElementById('draw');
        // Another canvas, because browsers note in the console that a canvas is read several times.
        const c = new OffscreenCanvas(18, 12).getContext('2d', {{ willReadFrequently: true }});
        const pixels = () => {{
          c.clearRect(0, 0, 18, 12);
          c.drawImage(draw, 0, 0);
          return [...c.getImageData(0, 0, 18, 12).data];
        }};
        const latent = async image => {{
          const mean = (await vnca.encode(image)).mean;
          click('share');
          const text = new URLSearchParams(location.hash.slice(1)).get('z').replaceAll('-', '+').replaceAll('_', '/');
          const z = new Float32Array(Uint8Array.from(atob(text), x => x.charCodeAt(0)).buffer);
          return Math.max(...mean.map((x, i) => Math.abs(x - z[i])));
        }};
        const premultiplied = () => {{
          const data = pixels();
          return data.map((level, i) => Math.round(level * (i % 4 === 3 ? 1 : data[i | 3] / 255)) / 255);
        }};
        answer({{ empty: pixels().every(level => level === 0) }});
        const box = draw.getBoundingClientRect();
        document.querySelector('#palette [aria-label=blue]').click();
        draw.setPointerCapture = () => {{}};
        const [clientX, clientY] = [box.left + box.width * 4.5 / 18, box.top + box.height * 6.5 / 12];
        draw.dispatchEvent(new PointerEvent('pointerdown', {{ clientX, clientY, buttons: 1 }}));
        answer({{ at: pixels().slice(4 * (6 * 18 + 4), 4 * (6 * 18 + 4) + 4), away: pixels().slice(0, 4) }});
        click('find');
        await sleep(200);
        answer({{ difference: await latent(premultiplied()) }});
        const image = new OffscreenCanvas(36, 24), own = image.getContext('2d');
        own.fillStyle = 'rgba(255, 0, 0, 0.5)';
        own.fillRect(0, 0, 18, 24);
        const files = new DataTransfer();
        files.items.add(new File([await image.convertToBlob()], 'half.png'));
        Object.assign(document.getElementById('file'), {{ files: files.files }}).dispatchEvent(new Event('change'));
        await sleep(500);
        answer({{ left: pixels().slice(0, 4), right: pixels().slice(4 * 17, 4 * 17 + 4) }});
        answer({{ difference: await latent(premultiplied()) }});"
    );
    let answers = answers(&browser, NO_GPU, &case.page, &script);
    assert_eq!(answers[0], json!({ "empty": true }));
    assert_eq!(answers[1], json!({ "at": [59, 136, 195, 255], "away": [0, 0, 0, 0] }));
    assert_eq!(answers[3], json!({ "left": [255, 0, 0, 128], "right": [0, 0, 0, 0] }));
    for i in [2, 4] {
        let difference = answers[i]["difference"].as_f64().unwrap();
        assert!(difference < 1e-2, "the latent is that of another picture: {difference}");
    }
    assert!(matches!(answers.as_slice(), [_, _, _, _, Value::Object(_)]));
}
