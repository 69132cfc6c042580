//! A page in a browser without a head, with a script that asks it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Starts a line of the browser's log that answers a test.
const ANSWER: &str = "ANSWER ";
/// A GPU in software. WebGPU and WebGL2 then run on machines without one. In Chromium 148 `--enable-unsafe-webgpu` is what gives
/// an adapter, SwiftShader's; without it there is none. WebGL2 runs without any flag, but the log then warns of it. The others
/// make both use SwiftShader where there is a GPU, so that results do not depend on it.
pub const GPU: &[&str] =
    &["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--enable-unsafe-webgpu"];
pub const NO_GPU: &[&str] =
    &["--disable-gpu", "--disable-3d-apis", "--disable-software-rasterizer", "--disable-features=WebGPU"];

/// What browsers themselves write to the console of a page that asks for WebGPU when there is none.
const NO_WEBGPU: [&str; 2] = ["Failed to create WebGPU Context Provider", "No available adapters."];

/// Forbids a page all but its own text. What it tries to load or send nevertheless is an error in the console.
const POLICY: &str = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; \
    style-src 'unsafe-inline'; script-src 'unsafe-inline' 'wasm-unsafe-eval'; form-action 'none'; base-uri 'none'\">";

/// A browser that is stopped at the end of the test.
struct Browser(Child);

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Finds a browser. Without one the tests pass, unless they are required.
pub fn find_browser() -> Option<PathBuf> {
    let named = std::env::var_os("VNCA_CHROMIUM").map(PathBuf::from);
    let usual = ["chromium", "chromium-browser", "google-chrome"].map(PathBuf::from);
    let runs =
        |name: &PathBuf| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    let found = named.into_iter().chain(usual).find(runs);
    if found.is_none() {
        assert!(std::env::var("VNCA_PAGE_TESTS").as_deref() != Ok("required"), "there is no browser");
        // Not `eprintln`, whose text of a test that passes is not shown.
        let line = "left out: there is no browser. tools/setup --page-tests gets one";
        writeln!(std::io::stderr().lock(), "{line}").unwrap();
    }
    found
}

/// Opens a page with a script added and without a network. Returns what the script passes to `answer`, in order, until it passes
/// null. Whatever else is in the console fails the test.
pub fn answers(browser: &Path, flags: &[&str], page: &Path, script: &str) -> Vec<Value> {
    let folder = TempDir::new().unwrap();
    let with_script = folder.path().join("page.html");
    let text = std::fs::read_to_string(page).unwrap();
    let (before, after) = text.split_once("<head>").expect("the page has a head");
    let mut text = format!("{before}<head>{POLICY}{after}");
    text += &format!(
        "<script>const answer = value => console.log('{ANSWER}' + JSON.stringify(value));\n\
         (async () => {{ {script}\n answer(null); }})().catch(error => answer('failed: ' + error.stack));</script>"
    );
    std::fs::write(&with_script, text).unwrap();
    let mut child = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--enable-logging=stderr", "--v=0", "--no-first-run"])
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .args(flags)
        // It leaves files there when it is killed.
        .env("TMPDIR", folder.path())
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
    while began.elapsed() < Duration::from_secs(120) {
        let line = match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => panic!("the browser ended; its log:\n{}", log.join("\n")),
        };
        let Some((_, message)) = line.split_once("CONSOLE") else {
            log.push(line);
            continue;
        };
        if NO_WEBGPU.iter().any(|words| message.contains(words)) {
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
