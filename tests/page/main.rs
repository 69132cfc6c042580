//! `vnca page` writes a page that computes in a browser what the program computes.

mod browser;
#[path = "../common/cli.rs"]
mod cli;
mod frames;

use std::path::{Path, PathBuf};

use browser::{GPU, NO_GPU, answers, find_browser};
use cli::{fail, succeed};
use half::f16;
use serde_json::{Value, json};
use tempfile::TempDir;
use vnca::cli::models::{Kind, Model};
use vnca::data::{GLYPHS, Part, Split, load_split};
use vnca::engine::array::Array;
use vnca::engine::random::Key;
use vnca::engine::runtime::Device;
use vnca::nn::params::{Leaf, init};
use vnca::nn::weights;
use vnca::study::gallery::recovery::{Damage, Recovery};
use vnca::study::gallery::{self, Latent};
use vnca::study::session::Session;

/// The largest difference of a logit. The weights are the same f16 numbers; sums are in other orders.
const TOLERANCE: f64 = 2e-3;
/// The damage in the tests, and the steps after it.
const DAMAGE: Damage = Damage { side: 12, at: Some((5, 9)), count: 1 };
const AFTER: usize = 7;
const SEED: u64 = 12;

/// Returns random weights that f16 represents. No layer is zero, so that the automaton changes its grid; those of encoder and
/// baseline keep the size of what goes through them, which the initial values shrink by 1.7 each.
fn random_values(leaves: &[Leaf]) -> Vec<Array> {
    let arrays = init(leaves, Key::new(77));
    let fill = |(i, (leaf, array)): (usize, (&Leaf, Array))| {
        let mut values = array.to_vec::<f32>();
        if values.iter().all(|v| *v == 0.0) {
            values = Key::new(78).split_at(i as u64).uniform(values.len(), -0.1, 0.1);
        }
        if !leaf.name.starts_with("cell.") {
            values.iter_mut().for_each(|v| *v *= 1.7);
        }
        let rounded: Vec<f32> = values.into_iter().map(|v| f16::from_f32(v).to_f32()).collect();
        Array::new(array.dims(), &rounded)
    };
    leaves.iter().zip(arrays).enumerate().map(fill).collect()
}

/// A model, its page, and what the program computes.
struct Case {
    _folder: TempDir,
    page: PathBuf,
    model: Model,
    session: Session,
    latent: Latent,
}

impl Case {
    fn new(model: Model, flags: &str) -> Case {
        let folder = TempDir::new().unwrap();
        let arrays = random_values(&model.vae().leaves());
        weights::write(&folder.path().join("weights.safetensors"), &model.vae().leaves(), &arrays).unwrap();
        let latent = model.latent.to_string();
        let mut arguments = vec!["page", "--weights", "weights.safetensors", "--model", model.kind.name()];
        arguments.extend(["--latent", &latent, "--seed", "12"]);
        arguments.extend(flags.split_whitespace());
        succeed(folder.path(), &arguments);
        let session = Session::open(&Device::Cpu, 1, model.vae(), &arrays).unwrap();
        let [_, latent]: [Latent; 2] =
            Latent::priors(Key::new(SEED), 2, model.latent).try_into().expect("two latents");
        Case { page: folder.path().join("page.html"), _folder: folder, model, session, latent }
    }

    /// Returns the logits after growth, and some steps after damage.
    fn expected(&self) -> [Vec<f32>; 2] {
        let latents = std::slice::from_ref(&self.latent);
        if !self.model.grows() {
            return [gallery::decode(&self.session, latents).unwrap(), Vec::new()];
        }
        let mut found = None;
        let recovery = Recovery::new(&self.session, 1, AFTER).unwrap();
        let keep = |_, _, trajectory: &gallery::recovery::Trajectory<'_>| {
            found = Some([trajectory.original().to_vec(), trajectory.after(0, AFTER).to_vec()]);
            Ok(())
        };
        recovery.run(latents, &[DAMAGE], keep).unwrap();
        found.unwrap()
    }
}

/// Asks a page for its backends, a sample, and the sample's pictures by each backend: grown, and damaged and grown further.
const PICTURES: &str = "
    const backends = await vnca.backends();
    answer(backends);
    const { z, key } = vnca.sample(12, 1);
    answer([...z]);
    for (const backend of backends) {
      answer(backend && { backend, ...await vnca.grow({ backend, z, key }) });
      if (vnca.model.cell)
        answer({ backend, ...await vnca.grow({ backend, z, key, damage: { row: 5, column: 9, side: 12 }, after: 7 }) });
    }";

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap_or(f64::NEG_INFINITY)).collect()
}

fn largest_difference(got: &Value, expected: &[f32]) -> f64 {
    let got = numbers(got);
    assert_eq!(got.len(), expected.len());
    let difference = |(got, expected): (&f64, &f32)| match (*got, f64::from(*expected)) {
        (got, expected) if got == expected => 0.0,
        (got, expected) => (got - expected).abs(),
    };
    got.iter().zip(expected).map(difference).fold(0.0, f64::max)
}

/// Compares a page with the program and returns the names of the page's backends.
fn compare(case: &Case, browser: &Path, flags: &[&str]) -> Vec<String> {
    let expected = case.expected();
    let finite = || expected[0].iter().copied().filter(|l| l.is_finite());
    let most = finite().fold(0f32, |m, l| m.max(l.abs()));
    let range = finite().fold(f32::MIN, f32::max) - finite().fold(f32::MAX, f32::min);
    assert!(most < 100.0 && range > 0.1, "a picture worth comparing: {range} of {most}");
    if case.model.grows() {
        let change = expected[0].iter().zip(&expected[1]).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(change > 0.1, "a damage worth comparing: {change}");
    }
    let answers = answers(browser, flags, &case.page, PICTURES);
    let backends: Vec<String> = serde_json::from_value(answers[0].clone()).unwrap();
    assert!(largest_difference(&answers[1], &case.latent.z) < 1e-6, "the page draws other latents");
    let pictures = if case.model.grows() { 2 } else { 1 };
    assert_eq!(answers.len(), 2 + pictures * backends.len());
    for (i, answer) in answers[2..].iter().enumerate() {
        let difference = largest_difference(&answer["logits"], &expected[i % pictures]);
        eprintln!("{} {}: {difference:.1e} of {most:.1}", case.model.kind, answer["backend"]);
        assert!(difference < TOLERANCE * f64::from(most).min(1.0), "{}: {difference}", answer["backend"]);
    }
    backends
}

fn small(kind: Kind) -> Model {
    // Not a multiple of the page's blocks of channels.
    Model { latent: 12, encoder_width: 3, ..Model::report(kind) }
}

/// All three backends run on a machine without a GPU, in a browser that is told so.
#[test]
fn every_backend_computes_the_programs_pictures() {
    let Some(browser) = find_browser() else { return };
    let doubling = Model { nca_steps: 3, ..small(Kind::Doubling) };
    let case = Case::new(doubling, "--encoder-width 3 --nca-steps 3");
    let mut backends = compare(&case, &browser, GPU);
    backends.sort();
    assert_eq!(backends, ["wasm", "webgl2", "webgpu"]);
    let nondoubling = Model { nca_steps: 12, start_side: 4, update_prob: 0.5, ..small(Kind::NonDoubling) };
    let case = Case::new(nondoubling, "--encoder-width 3 --nca-steps 12 --start-side 4 --update-prob 0.5");
    assert_eq!(compare(&case, &browser, GPU).len(), 3);
}

#[test]
fn without_a_gpu_the_page_computes_by_webassembly() {
    let Some(browser) = find_browser() else { return };
    let model = Model { nca_steps: 2, doublings: 3, update_prob: 0.7, ..small(Kind::Doubling) };
    let case = Case::new(model, "--encoder-width 3 --nca-steps 2 --doublings 3 --update-prob 0.7");
    assert_eq!(compare(&case, &browser, NO_GPU), ["wasm"]);
    let case = Case::new(Model { encoder_width: 8, ..small(Kind::Baseline) }, "--encoder-width 8");
    assert_eq!(compare(&case, &browser, NO_GPU), ["wasm"]);
}

#[test]
fn the_pages_encoder_finds_the_programs_latents() {
    let Some(browser) = find_browser() else { return };
    let case = Case::new(small(Kind::Doubling), "--encoder-width 3");
    let images = load_split(GLYPHS, Part::Test).unwrap();
    let one = Split { pixels: images.image(3).to_vec(), labels: None, ..images.clone() };
    let posterior = gallery::encode(&case.session, &one).unwrap().remove(0);
    let script = format!("answer(await vnca.encode({}));", json!(one.pixels));
    let answers = answers(&browser, NO_GPU, &case.page, &script);
    for (name, expected) in [("mean", &posterior.mean), ("logvar", &posterior.logvar)] {
        let most = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
        let difference = largest_difference(&answers[0][name], expected);
        eprintln!("{name}: {difference:.1e} of {most:.1}");
        assert!((0.1..10.0).contains(&most), "a posterior worth comparing: {name} up to {most}");
        assert!(difference < TOLERANCE, "{name}: {difference}");
    }
}

/// Any seed and number: those of two words, and the largest that JavaScript's numbers hold, which a link can name too.
#[test]
fn the_page_draws_the_programs_latents() {
    let Some(browser) = find_browser() else { return };
    let case = Case::new(small(Kind::NonDoubling), "--encoder-width 3");
    let asked = [(0, 0), (7, 5), (u64::from(u32::MAX), 1), (1 << 32, 2), ((1 << 53) - 1, 70_000)];
    let script = format!(
        "await vnca.ready;
        const sample = (seed, index) => {{ const {{ z, key }} = vnca.sample(seed, index); return {{ z: [...z], key }}; }};
        answer({}.map(([seed, index]) => sample(seed, index)));
        location.hash = '#seed=9007199254740991.3';
        await new Promise(done => setTimeout(done, 300));
        document.getElementById('share').click();
        answer({{ hash: location.hash }});",
        json!(asked)
    );
    let answers = answers(&browser, NO_GPU, &case.page, &script);
    assert_eq!(answers[1]["hash"], "#seed=9007199254740991.3");
    for (i, (seed, index)) in asked.into_iter().enumerate() {
        let expected = Latent::prior(Key::new(seed).split_at(index), case.model.latent);
        let got = &answers[0][i];
        assert_eq!(got["key"], json!(expected.key.0), "seed {seed}, {index}");
        let difference = largest_difference(&got["z"], &expected.z);
        assert!(difference < 1e-6, "seed {seed}, {index}: {difference}");
    }
}

/// Functions for scripts that use the page as a person does.
const HANDS: &str = "
    const click = id => document.getElementById(id).click();
    const picture = () => document.getElementById('grid').toDataURL();
    const clock = () => document.getElementById('clock').textContent;
    const paused = () => document.getElementById('play').textContent === 'Play';
    const sleep = time => new Promise(done => setTimeout(done, time));
    const wait = async until => { while (!until()) await sleep(20); };
    // Waits until the page has stopped for a while, or will not stop.
    const settled = async () => {
      let last = '', same = 0;
      while (same < 10 && !/step \\d{4}/.test(last)) {
        await sleep(50);
        same = paused() && clock() === last ? same + 1 : 0;
        last = clock();
      }
      return last;
    };
    await vnca.ready;
    await wait(() => clock().includes('grown'));";

/// A link holds latent and damage; a page that follows it shows the same cells. The latent is a sample, or one from the map.
#[test]
fn a_link_reproduces_what_is_shown() {
    let Some(browser) = find_browser() else { return };
    let model = Model { nca_steps: 4, update_prob: 0.5, ..small(Kind::NonDoubling) };
    let case = Case::new(model, "--encoder-width 3 --nca-steps 4 --update-prob 0.5");
    let script = format!(
        "{HANDS}
        const right = new KeyboardEvent('keydown', {{ key: 'ArrowRight' }});
        for (const choose of [() => click('new'), () => document.getElementById('map').dispatchEvent(right)]) {{
          choose();
          await sleep(300);
          await wait(() => clock().includes('grown'));
          click('cut');
          await sleep(300);
          click('play');
          click('share');
          const [time, hash, first] = [await settled(), location.hash, picture()];
          click('new');
          await wait(() => clock() !== time);
          location.hash = '#other';
          location.hash = hash;
          answer({{ hash, same: await settled() === time && picture() === first }});
        }}"
    );
    let answers = answers(&browser, NO_GPU, &case.page, &script);
    for (answer, name) in answers.iter().zip(["#seed=", "#z="]) {
        let hash = answer["hash"].as_str().unwrap();
        assert!(hash.starts_with(name) && hash.contains("&damage=") && hash.contains("&steps="), "{hash}");
        assert_eq!(answer["same"], true, "{hash}");
    }
    assert_eq!(answers.len(), 2);
}

/// A doubling automaton does not keep its picture. What a person does to one digit must not make the next one grow on.
#[test]
fn each_digit_stops_where_it_is_grown() {
    let Some(browser) = find_browser() else { return };
    let model = Model { nca_steps: 2, doublings: 3, ..small(Kind::Doubling) };
    let case = Case::new(model, "--encoder-width 3 --nca-steps 2 --doublings 3");
    let script = format!(
        "{HANDS}
        document.getElementById('speed').value = 6;
        answer({{ clock: await settled() }});
        for (const act of ['cut', 'play']) {{
          const before = clock();
          click(act);
          await wait(() => clock() !== before);
          click('new');
          await sleep(300);
          answer({{ clock: await settled() }});
        }}"
    );
    let answers = answers(&browser, NO_GPU, &case.page, &script);
    assert_eq!(answers, vec![json!({ "clock": "32 x 32, step 9, grown" }); 3]);
}

#[test]
fn the_page_is_one_file_that_loads_nothing() {
    let case = Case::new(small(Kind::NonDoubling), "--encoder-width 3");
    let text = std::fs::read_to_string(&case.page).unwrap();
    // All but the numbers, in which any letters occur.
    let scripts =
        text.split("<script type=").next().unwrap().to_string() + text.rsplit("<script>").next().unwrap();
    let loads =
        ["http:", "https:", "src=", "url(", "@import", "import(", "import {", "importScripts", "Worker("];
    let sends = ["fetch(", "XMLHttpRequest", "WebSocket", "EventSource", "sendBeacon", "<form", "action="];
    for word in loads.into_iter().chain(sends) {
        assert!(!scripts.contains(word), "the page has {word}");
    }
    assert_eq!(scripts.matches("href=").count(), 1, "a link besides that of the icon, which is empty");
    assert!(scripts.contains("<link rel=\"icon\" href=\"data:,\">"));
    assert!(text.len() < 1_000_000, "{} bytes", text.len());
}

#[test]
fn what_a_page_cannot_show_is_refused() {
    let folder = TempDir::new().unwrap();
    let model = small(Kind::Doubling);
    let leaves = model.vae().leaves();
    let mut arrays = random_values(&model.vae().leaves());
    let huge = vec![1e6f32; arrays[0].to_vec::<f32>().len()];
    arrays[0] = Array::new(arrays[0].dims(), &huge);
    weights::write(&folder.path().join("weights.npz"), &leaves, &arrays).unwrap();
    let words = "page --weights weights.npz --model doubling --latent 12 --encoder-width 3";
    let arguments: Vec<&str> = words.split(' ').collect();
    let error = fail(folder.path(), &arguments, 2);
    assert!(error.contains("more than f16 holds"), "{error}");
    let error = fail(folder.path(), &[arguments.as_slice(), &["--tsne", "nowhere"]].concat(), 3);
    assert!(error.contains("--tsne") && error.contains("nowhere/map.npy"), "{error}");
    assert!(!folder.path().join("page.html").exists());
}
