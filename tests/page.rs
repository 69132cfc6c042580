//! `vnca page` writes a page that computes in a browser what the program computes.

#[path = "common/cli.rs"]
mod cli;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use cli::{fail, succeed};
use half::f16;
use serde_json::{Value, json};
use tempfile::TempDir;
use vnca::cli::models::{Kind, Model};
use vnca::data::{GLYPHS, Part, Split, load_split};
use vnca::engine::array::Array;
use vnca::engine::random::Key;
use vnca::engine::runtime::Device;
use vnca::nn::params::init;
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

/// Starts a line of the browser's log that answers a test.
const ANSWER: &str = "ANSWER ";
/// A GPU in software. WebGPU and WebGL2 then run on machines without one.
const GPU: &[&str] =
    &["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--enable-unsafe-webgpu"];
const NO_GPU: &[&str] =
    &["--disable-gpu", "--disable-3d-apis", "--disable-software-rasterizer", "--disable-features=WebGPU"];

/// A browser that is stopped at the end of the test.
struct Browser(Child);

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Finds a browser. Without one the tests pass, unless they are required.
fn find_browser() -> Option<PathBuf> {
    let named = std::env::var_os("VNCA_CHROMIUM").map(PathBuf::from);
    let usual = ["chromium", "chromium-browser", "google-chrome"].map(PathBuf::from);
    let runs =
        |name: &PathBuf| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    let found = named.into_iter().chain(usual).find(runs);
    if found.is_none() {
        assert!(std::env::var("VNCA_PAGE_TESTS").as_deref() != Ok("required"), "there is no browser");
        eprintln!("left out: there is no browser. tools/setup --page-tests gets one");
    }
    found
}

/// Opens a page with a script added. Returns what the script passes to `answer`, in order, until it passes null.
fn answers(browser: &Path, flags: &[&str], page: &Path, script: &str) -> Vec<Value> {
    let folder = TempDir::new().unwrap();
    let with_script = folder.path().join("page.html");
    let mut text = std::fs::read_to_string(page).unwrap();
    text += &format!(
        "<script>const answer = value => console.log('{ANSWER}' + JSON.stringify(value));\n\
         (async () => {{ {script}\n answer(null); }})().catch(error => answer('failed: ' + error.stack));</script>"
    );
    std::fs::write(&with_script, text).unwrap();
    let mut child = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--enable-logging=stderr", "--v=0", "--no-first-run"])
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .args(flags)
        .arg(format!("file://{}", with_script.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (sender, lines) = channel();
    let log = BufReader::new(child.stderr.take().unwrap());
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let _browser = Browser(child);
    read_answers(&lines)
}

fn read_answers(lines: &Receiver<String>) -> Vec<Value> {
    let (mut answers, mut log) = (Vec::new(), Vec::new());
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(240) {
        let Ok(line) = lines.recv_timeout(Duration::from_secs(1)) else { continue };
        let Some((_, message)) = line.split_once("CONSOLE") else {
            log.push(line);
            continue;
        };
        // The browser's own warning when a page asks for WebGPU and there is none.
        if message.contains("Failed to create WebGPU Context Provider") {
            continue;
        }
        let Some((_, answer)) = message.split_once(ANSWER) else { panic!("the page's console: {line}") };
        // The message is between quotation marks, and its source follows.
        let value = serde_json::Deserializer::from_str(answer).into_iter::<Value>().next();
        match value.expect("an answer").expect("JSON") {
            Value::Null => return answers,
            Value::String(problem) => panic!("{problem}"),
            value => answers.push(value),
        }
    }
    panic!("the page does not answer; {} answers, and the browser's log:\n{}", answers.len(), log.join("\n"));
}

/// Returns random weights that f16 represents. No layer is zero, so that the automaton changes its grid.
fn random_weights(model: &Model) -> Vec<Array> {
    let leaves = model.vae().leaves();
    let arrays = init(&leaves, Key::new(77));
    let fill = |(i, array): (usize, Array)| {
        let mut values = array.to_vec::<f32>();
        if values.iter().all(|v| *v == 0.0) {
            values = Key::new(78).split_at(i as u64).uniform(values.len(), -0.1, 0.1);
        }
        let rounded: Vec<f32> = values.into_iter().map(|v| f16::from_f32(v).to_f32()).collect();
        Array::new(array.dims(), &rounded)
    };
    arrays.into_iter().enumerate().map(fill).collect()
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
        let arrays = random_weights(&model);
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
    let most = expected[0].iter().filter(|l| l.is_finite()).fold(0f32, |m, l| m.max(l.abs()));
    assert!((0.02..100.0).contains(&most), "a picture worth comparing: {most}");
    let answers = answers(browser, flags, &case.page, PICTURES);
    let backends: Vec<String> = serde_json::from_value(answers[0].clone()).unwrap();
    assert!(largest_difference(&answers[1], &case.latent.z) < 1e-6, "the page draws other latents");
    let pictures = if case.model.grows() { 2 } else { 1 };
    assert_eq!(answers.len(), 2 + pictures * backends.len());
    for (i, answer) in answers[2..].iter().enumerate() {
        let difference = largest_difference(&answer["logits"], &expected[i % pictures]);
        let mut out = std::io::stderr().lock();
        writeln!(out, "{} {}: {difference:.1e} of {most:.1}", case.model.kind, answer["backend"]).unwrap();
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
    let model = Model { nca_steps: 2, doublings: 3, ..small(Kind::Doubling) };
    let case = Case::new(model, "--encoder-width 3 --nca-steps 2 --doublings 3");
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
        let difference = largest_difference(&answers[0][name], expected);
        assert!(difference < TOLERANCE, "{name}: {difference}");
    }
}

/// A link holds latent and damage; a page that follows it shows the same cells.
#[test]
fn a_link_reproduces_what_is_shown() {
    let Some(browser) = find_browser() else { return };
    let model = Model { nca_steps: 4, ..small(Kind::NonDoubling) };
    let case = Case::new(model, "--encoder-width 3 --nca-steps 4");
    let script = "
        const click = id => document.getElementById(id).click();
        const picture = () => document.getElementById('grid').toDataURL();
        const clock = () => document.getElementById('clock').textContent;
        const wait = async until => { while (!until()) await new Promise(done => setTimeout(done, 20)); };
        await vnca.ready;
        await wait(() => clock().includes('grown'));
        click('cut');
        await wait(() => clock().includes('step 20,'));
        click('play');
        await new Promise(done => setTimeout(done, 300));
        click('share');
        const [first, time, hash] = [picture(), clock(), location.hash];
        click('new');
        await wait(() => clock() !== time);
        location.hash = '#other';
        location.hash = hash;
        await wait(() => clock() === time && document.getElementById('play').textContent === 'Play');
        await new Promise(done => setTimeout(done, 300));
        answer({ hash, same: picture() === first });";
    let answers = answers(&browser, NO_GPU, &case.page, script);
    let hash = answers[0]["hash"].as_str().unwrap();
    assert!(hash.starts_with("#seed=12.0&damage=") && hash.contains("&steps="), "{hash}");
    assert_eq!(answers[0]["same"], true, "{hash}");
}

#[test]
fn the_page_is_one_file_that_loads_nothing() {
    let case = Case::new(small(Kind::NonDoubling), "--encoder-width 3");
    let text = std::fs::read_to_string(&case.page).unwrap();
    let scripts =
        text.split("<script type=").next().unwrap().to_string() + text.rsplit("<script>").next().unwrap();
    for word in ["http:", "https:", "src=", "fetch(", "XMLHttpRequest", "import(", "WebSocket", "sendBeacon"]
    {
        assert!(!scripts.contains(word), "the page has {word}");
    }
    assert!(text.len() < 1_000_000, "{} bytes", text.len());
}

#[test]
fn what_a_page_cannot_show_is_refused() {
    let folder = TempDir::new().unwrap();
    let model = small(Kind::Doubling);
    let leaves = model.vae().leaves();
    let mut arrays = random_weights(&model);
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
