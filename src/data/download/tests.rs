//! Downloads from a local server that behaves well or badly.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use super::*;

const NAME: &str = "tiny.amat";

/// How the server answers a request for the file.
#[derive(Clone)]
enum Answer {
    Whole(Vec<u8>),
    /// Announces the full length and closes the connection after a number of bytes.
    Cut(Vec<u8>, usize),
    /// Announces the full length, sends a number of bytes, and then nothing more.
    Stall(Vec<u8>, usize),
    NotFound,
}

struct Server {
    base: String,
    requests: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Serves one file at `/data/NAME`. Answers other paths with 404.
    fn start(name: &'static str, answer: Answer) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}/data", listener.local_addr().unwrap());
        let (requests, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, stopped) = (requests.clone(), stop.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                counter.fetch_add(1, Ordering::SeqCst);
                let answer = answer.clone();
                thread::spawn(move || reply(stream.unwrap(), name, &answer));
            }
        });
        Server { base, requests, stop }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let address = self.base.trim_start_matches("http://").trim_end_matches("/data");
        let _ = TcpStream::connect(address);
    }
}

/// Ignores write errors, because the client may have disconnected.
fn reply(mut stream: TcpStream, name: &str, answer: &Answer) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request = lines.next().unwrap().unwrap();
    while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
    let asked = request.split(' ').nth(1) == Some(&format!("/data/{name}"));
    let (content, sent) = match answer {
        Answer::Whole(content) if asked => (content, content.len()),
        Answer::Cut(content, sent) | Answer::Stall(content, sent) if asked => (content, *sent),
        _ => {
            let _ =
                stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return;
        }
    };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", content.len());
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&content[..sent]);
    let _ = stream.flush();
    if matches!(answer, Answer::Stall(..)) {
        thread::sleep(Duration::from_secs(3));
    }
}

fn content() -> Vec<u8> {
    let mut line = "0 1 ".repeat(392).into_bytes();
    line[2 * 784 - 1] = b'\n';
    line.repeat(100)
}

fn sha256(bytes: &[u8]) -> &'static str {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    hex.leak()
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn tiny() -> Known {
    let content = content();
    let (bytes, sha256) = (content.len() as u64, sha256(&content));
    Known { name: NAME, bytes, sha256, plain: Some((bytes, sha256)) }
}

fn fetch_tiny(mirrors: &[&str], dir: &Path, url: Option<&str>) -> Result<Vec<Fetched>> {
    let options = Options { url, progress: &|_| {}, patience: Duration::from_millis(300) };
    fetch_files(&[tiny()], mirrors, dir, &options)
}

/// Returns the names in a folder.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_right_file_is_downloaded_once() {
    let server = Server::start(NAME, Answer::Whole(content()));
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("made/here");
    let fetched = fetch_tiny(&[&server.base], &dir, None).unwrap();
    let expected = Fetched { path: dir.join(NAME), url: Some(format!("{}/{NAME}", server.base)) };
    assert_eq!(fetched, [expected]);
    assert_eq!(fs::read(dir.join(NAME)).unwrap(), content());
    assert_eq!(names(&dir), [NAME]);

    let again = fetch_tiny(&[&server.base], &dir, None).unwrap();
    assert_eq!(again[0].url, None);
    assert_eq!(server.requests(), 1);
}

/// Checks the message of each kind of failure, and that no file remains.
#[test]
fn failures_name_the_reason_and_leave_no_file() {
    let mut other = content();
    other[0] = b'1';
    let mut longer = content();
    longer.push(b'\n');
    let rows: [(&str, Answer, &[&str]); 6] = [
        ("wrong content", Answer::Whole(other), &["wrong content", "expected sha256", tiny().sha256]),
        ("short", Answer::Whole(content()[..500].to_vec()), &["wrong content", "(500 bytes)"]),
        ("long", Answer::Whole(longer), &["too long", "156800 bytes"]),
        ("not there", Answer::NotFound, &["404"]),
        ("cut", Answer::Cut(content(), 1000), &["broke off after", "of 156800 bytes"]),
        ("stalled", Answer::Stall(content(), 1000), &["broke off after 1000 of 156800 bytes", "timeout"]),
    ];
    for (what, answer, words) in rows {
        let server = Server::start(NAME, answer);
        let dir = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let error = format!("{:#}", fetch_tiny(&[&server.base], dir.path(), None).unwrap_err());
        assert!(start.elapsed() < Duration::from_secs(2), "{what}: {:?}", start.elapsed());
        assert!(error.contains(&format!("{}/{NAME}: ", server.base)), "{what}: {error}");
        for word in words {
            assert!(error.contains(word), "{what}: expected '{word}' in: {error}");
        }
        assert_eq!(names(dir.path()), [""; 0], "{what}");
    }
}

#[test]
fn every_mirror_is_tried_and_named() {
    let absent = Server::start(NAME, Answer::NotFound);
    let stalled = Server::start(NAME, Answer::Stall(content(), 10));
    // Nothing listens on this port.
    let closed = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let good = Server::start(NAME, Answer::Whole(content()));
    let dir = tempfile::tempdir().unwrap();

    let bad = [closed.as_str(), &absent.base, &stalled.base];
    let error = format!("{:#}", fetch_tiny(&bad, dir.path(), None).unwrap_err());
    for base in bad {
        assert!(error.contains(&format!("\n  {base}/{NAME}: ")), "{error}");
    }
    assert!(error.contains("0 of 1 files"), "{error}");

    let fetched = fetch_tiny(&[bad[0], bad[1], bad[2], &good.base], dir.path(), None).unwrap();
    assert_eq!(fetched[0].url, Some(format!("{}/{NAME}", good.base)));
    assert_eq!(names(dir.path()), [NAME]);
}

#[test]
fn an_address_may_offer_the_file_packed() {
    let server = Server::start("tiny.amat.gz", Answer::Whole(packed(&content())));
    let unused = Server::start(NAME, Answer::Whole(content()));
    let dir = tempfile::tempdir().unwrap();
    let fetched = fetch_tiny(&[&unused.base], dir.path(), Some(&format!("{}/", server.base))).unwrap();
    assert_eq!(fetched[0].path, dir.path().join("tiny.amat.gz"));
    assert_eq!(unused.requests(), 0, "a given address replaces all mirrors");
    assert_eq!(crate::data::load(fetched[0].path.to_str().unwrap()).unwrap().train.unwrap().len(), 100);

    let mut other = content();
    other[2] = b'0';
    other[0] = b'1';
    for (content, words) in
        [(packed(&other), "unpacked sha256"), (packed(&content())[..200].to_vec(), "gzip")]
    {
        let server = Server::start("tiny.amat.gz", Answer::Whole(content));
        let dir = tempfile::tempdir().unwrap();
        let error = format!("{:#}", fetch_tiny(&[], dir.path(), Some(&server.base)).unwrap_err());
        assert!(error.contains(words), "{error}");
        assert_eq!(names(dir.path()), [""; 0]);
    }
}

#[test]
fn an_address_may_be_a_local_folder() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join(NAME), content()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}", source.path().display());
    fetch_tiny(&[], dir.path(), Some(&url)).unwrap();
    assert_eq!(names(dir.path()), [NAME]);
    let dir = tempfile::tempdir().unwrap();
    let error = format!("{:#}", fetch_tiny(&[], dir.path(), Some("ftp://example")).unwrap_err());
    assert!(error.contains("http://, https:// or file://"), "{error}");
}

#[test]
fn a_wrong_file_is_kept_aside_once_the_right_one_is_downloaded() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(NAME), "0 1").unwrap();
    fetch_tiny(&[], dir.path(), None).unwrap_err();
    assert_eq!(names(dir.path()), [NAME]);
    let server = Server::start("tiny.amat.gz", Answer::Whole(packed(&content())));
    fetch_tiny(&[], dir.path(), Some(&server.base)).unwrap();
    assert_eq!(names(dir.path()), ["tiny.amat.bad", "tiny.amat.gz"]);
    assert_eq!(fs::read(dir.path().join("tiny.amat.bad")).unwrap(), b"0 1");
}

#[test]
fn the_error_for_an_unknown_data_set_lists_the_known_ones() {
    let error = fetch("cifar", Path::new("/nowhere"), &Options::default()).unwrap_err().to_string();
    for name in ["binarized-mnist", "mnist", "fashion-mnist", "'cifar'"] {
        assert!(error.contains(name), "{error}");
    }
}
