//! `vnca::data::load`: every malformed input gives an error with the position and the problem, and no panic. Valid input in
//! every form gives the original images.

#[path = "common/records.rs"]
mod records;

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use records::{header, npz, record};
use vnca::data::{self, PIXELS, Part, Split};
use zip::CompressionMethod;

/// Returns `n * 784` bytes of 0 or 1, in which no two images are equal.
fn images(n: usize) -> Vec<u8> {
    (0..n * PIXELS).map(|i| u8::from((i * 7 + i / PIXELS * 13 + i / 5).is_multiple_of(8))).collect()
}

fn amat(images: &[u8]) -> Vec<u8> {
    let line = |image: &[u8]| image.iter().map(u8::to_string).collect::<Vec<_>>().join(" ") + "\n";
    images.chunks(PIXELS).map(line).collect::<String>().into_bytes()
}

/// Builds an IDX file with any header.
fn idx(magic: u32, sizes: &[u32], body: &[u8]) -> Vec<u8> {
    let header = std::iter::once(&magic).chain(sizes).flat_map(|n| n.to_be_bytes());
    header.chain(body.iter().copied()).collect()
}

fn idx_images(pixels: &[u8]) -> Vec<u8> {
    idx(0x803, &[(pixels.len() / PIXELS) as u32, 28, 28], pixels)
}

fn idx_labels(labels: &[u8]) -> Vec<u8> {
    idx(0x801, &[labels.len() as u32], labels)
}

fn npy(descr: &str, shape: &str, body: &[u8]) -> Vec<u8> {
    record(&header(descr, "False", shape), body)
}

fn gz(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn cut(mut content: Vec<u8>, bytes: usize) -> Vec<u8> {
    content.truncate(bytes);
    content
}

/// Returns the text of three images after a change of one line, counted from 1.
fn with_line(line: usize, f: impl Fn(&str) -> String) -> Vec<u8> {
    let text = String::from_utf8(amat(&images(3))).unwrap();
    let lines = text.lines().enumerate().map(|(i, l)| if i + 1 == line { f(l) } else { l.to_owned() });
    (lines.collect::<Vec<_>>().join("\n") + "\n").into_bytes()
}

/// Loads a file and returns the error with its chain of causes in one line.
fn error_of(path: &Path) -> String {
    match data::load(path.to_str().unwrap()) {
        Ok(_) => panic!("{} was loaded", path.display()),
        Err(e) => format!("{e:#}"),
    }
}

/// Checks rows of a file name, its content, and words that the error must contain besides the file's name.
fn check(rows: &[(&str, Vec<u8>, &[&str])]) {
    for (i, (name, content, words)) in rows.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        let error = error_of(&path);
        for word in words.iter().chain([name]) {
            assert!(error.contains(word), "row {i}, {name}: expected '{word}' in: {error}");
        }
        assert!(error.len() < 1000, "row {i}, {name}: a long error: {error}");
    }
}

#[test]
fn bad_text() {
    let good = amat(&images(3));
    let long = vec![b'0'; 1 << 20];
    let good_commas = String::from_utf8(good.clone()).unwrap().replace(' ', ",");
    let neither = format!("7 {}8\n", "0 ".repeat(PIXELS - 1));
    check(&[
        ("a.amat", vec![], &["empty", "0 bytes"]),
        ("a.amat", b"\n\n \n".to_vec(), &["no images", "blank lines only"]),
        (
            "a.amat",
            with_line(2, |l| l.replacen('1', "2", 1)),
            &["line 2, column", "expected 0 or 1, got '2'"],
        ),
        ("a.amat", with_line(3, |l| format!("x{}", &l[1..])), &["line 3, column 1 (number 1)", "got 'x'"]),
        ("a.amat", with_line(1, |l| format!("0.5{}", &l[1..])), &["line 1, column 1", "'0.5'"]),
        ("a.amat", with_line(1, |l| format!("-1{}", &l[1..])), &["line 1, column 1", "'-1'"]),
        ("a.amat", with_line(1, |l| format!("nan{}", &l[1..])), &["line 1, column 1", "'nan'"]),
        ("a.amat", with_line(2, |l| l[2..].to_owned()), &["line 2: expected 784 numbers, got 783"]),
        ("a.amat", with_line(2, |l| format!("{l} 0")), &["line 2: expected 784 numbers, got more"]),
        ("a.amat", with_line(2, |l| l.replace(' ', "")), &["line 2, column 1", "..."]),
        ("a.amat", with_line(2, |l| l.replace(' ', ",")), &["line 2, column 1", "0,"]),
        ("a.amat", with_line(2, |_| String::new()), &["line 2", "a blank line"]),
        ("a.amat", cut(good.clone(), 1568 + 200), &["line 2: expected 784 numbers, got 100"]),
        ("a.amat", [&good[..], b"\xff\xfe"].concat(), &["line 4, column 1", "\\xff\\xfe"]),
        ("a.amat", [b"\xef\xbb\xbf", &good[..]].concat(), &["line 1, column 1", "\\xef"]),
        ("a.amat", [&b"\0\0"[..], &good].concat(), &["line 1, column 1", "\\x00"]),
        ("a.amat", long.clone(), &["line 1", "no line end within"]),
        ("a.amat", [&good[..], &long].concat(), &["line 4", "no line end within"]),
        ("a.amat.gz", gz(&long), &["line 1", "no line end within"]),
        ("a.amat.gz", gz(b""), &["empty", "unpacks to 0 bytes"]),
        ("a.amat.gz", cut(gz(&good), 5), &["truncated or damaged", "gzip"]),
        ("a.amat.gz", cut(gz(&good), 60), &["truncated or damaged", "gzip"]),
        ("a.amat.gz", cut(gz(&good), gz(&good).len() - 3), &["truncated or damaged", "4704 unpacked bytes"]),
        ("a.amat.gz", gz(&with_line(3, |l| l[2..].to_owned())), &["line 3: expected 784 numbers, got 783"]),
        ("a.amat.gz", [gz(&good), b"more".to_vec()].concat(), &["other bytes follow the gzip stream"]),
        (
            "a.amat",
            with_line(2, |l| format!("255{}", &l[1..])),
            &["line 2", "got '255'", "grey images are binarized"],
        ),
        ("a.csv", good_commas.replacen(",1", ",2", 1).into_bytes(), &["grey values up to 255, got 2"]),
        ("a.csv", good_commas.replacen(",1", ",0.5", 1).into_bytes(), &["line 1", "0 to 255, got '0.5'"]),
        ("a.csv", good_commas.replacen(",1", ",", 1).into_bytes(), &["line 1", "got ''"]),
        ("a.csv", good_commas.replacen(",1", ",256", 1).into_bytes(), &["line 1", "got '256'"]),
        (
            "a.csv",
            good_commas.replacen(",1", "", 1).into_bytes(),
            &["line 1: expected 784 numbers, or 785", "783"],
        ),
        ("a.csv", format!("a,b\n{good_commas}").into_bytes(), &["line 1", "names of 784 pixels", "got 2"]),
        ("a.csv", b"<html>404</html>".to_vec(), &["line 1, column 1", "<html>"]),
        ("a.amat", neither.into_bytes(), &["785 numbers", "label, first or last"]),
        ("a.amat", b"<html>404</html>".to_vec(), &["line 1, column 1", "<html>"]),
        ("data.bin", b"<html>404</html>".to_vec(), &["expected images as .amat text, IDX or .npy", "<html>"]),
    ]);
}

/// In repetitive text a changed back-reference can give the same content. Any other change must be refused.
#[test]
fn a_changed_byte_in_gzip_is_found() {
    let pixels = images(20);
    let good = gz(&amat(&pixels));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.amat.gz");
    let (mut refused, mut harmless) = (0, 0);
    for at in (10..good.len()).step_by(3) {
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        fs::write(&path, bad).unwrap();
        match data::load(path.to_str().unwrap()) {
            Ok(set) => {
                assert_eq!(set.train.unwrap().pixels, pixels, "byte {at}");
                harmless += 1;
            }
            Err(e) => {
                assert!(format!("{e:#}").contains("a.amat.gz: "), "byte {at}");
                refused += 1;
            }
        }
    }
    assert!(refused > 9 * harmless, "{refused} refused, {harmless} harmless");
}

#[test]
fn bad_idx() {
    let good = idx_images(&images(3));
    let name = "train-images-idx3-ubyte";
    let huge = idx(0x803, &[13_700_000, 28, 28], &[0; 1000]);
    check(&[
        (name, vec![], &["empty"]),
        (name, cut(good.clone(), 3), &["truncated", "magic", "got 3"]),
        (name, cut(good.clone(), 10), &["truncated", "number of rows", "from byte 8", "got 2"]),
        (name, cut(good.clone(), 16), &["truncated", "3 images", "2368 bytes, got 16"]),
        (name, cut(good.clone(), 2367), &["truncated", "2368 bytes, got 2367"]),
        (name, [&good[..], &[0]].concat(), &["too long", "2368 bytes, got 2369"]),
        (name, idx(0x804, &[3, 28, 28], &images(3)), &["byte 0", "0x00000803", "got 0x00000804"]),
        (name, idx(0xd03, &[3, 28, 28], &images(3)), &["byte 0", "0x00000803", "got 0x00000d03"]),
        (name, idx_labels(&[1, 2, 3]), &["expected the magic number 0x00000803", "a file of labels"]),
        (name, idx(0x803, &[3, 0, 28], &[]), &["byte 8", "got 0 x 28"]),
        (name, idx(0x803, &[1, 7, 9], &[0; 63]), &["images of 7 x 9", "from 8 to 256", "--image-size"]),
        (name, idx(0x803, &[u32::MAX, 60_000, 60_000], &[]), &["truncated", "got 16"]),
        (name, idx(0x803, &[0, 28, 28], &[]), &["byte 4", "at least one image, got 0"]),
        (name, huge.clone(), &["truncated", "10740800016 bytes, got 1016"]),
        (name, idx(0x803, &[u32::MAX, 28, 28], &[]), &["truncated", "got 16"]),
        ("i-ubyte.gz", gz(&huge), &["header claims 13700000 images", "cannot hold them"]),
        ("i-ubyte.gz", gz(&cut(good.clone(), 2000)), &["truncated", "from byte 16", "got 1984"]),
        ("i-ubyte.gz", gz(&[&good[..], &[0]].concat()), &["too long", "expected the end at byte 2368"]),
        ("i-ubyte.gz", cut(gz(&good), 40), &["truncated or damaged", "gzip"]),
        ("i-ubyte.gz", cut(gz(&good), gz(&good).len() - 1), &["truncated or damaged", "gzip"]),
    ]);
}

#[test]
fn bad_npy() {
    let one = images(1);
    let good = npy("|u1", "(1, 784)", &one);
    let doubles = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let with = |at: usize, value: f64| {
        let mut values = vec![0.0; 2 * PIXELS];
        values[at] = value;
        npy("<f8", "(2, 28, 28)", &doubles(&values))
    };
    let mut two = one.clone();
    two[100] = 2;
    let mut minus = vec![0; 2 * PIXELS];
    minus[5] = 0xff;
    let with_grey: Vec<u8> = (0..PIXELS).map(|i| [0, 0, 0, 1, 0, 17][i % 6]).collect();
    let with_only_grey: Vec<u8> = with_grey.iter().map(|p| p / 17 * 17).collect();
    let with_two_inks: Vec<u8> =
        (0..PIXELS).map(|i| if i == 9 { 1 } else { (i % 2 * 255) as u8 * u8::from(i != 9) }).collect();
    let version_2 = |length: u32| [b"\x93NUMPY\x02\x00", &length.to_le_bytes()[..]].concat();
    let (order, columns) = (header("|u1", "Yes", "(1, 784)"), header("|u1", "True", "(2, 784)"));
    let mut two_columns = images(2);
    two_columns[3] = 7;
    check(&[
        ("a.npy", vec![], &["empty"]),
        ("a.npy", b"\x93NUM".to_vec(), &["truncated", "magic"]),
        ("a.npy", b"PK\x03\x04 an .npz file".to_vec(), &["truncated or damaged", "not an .npz file"]),
        ("a.npy", b"GIF89a, a picture".to_vec(), &["byte 0", "NUMPY", "GIF89a"]),
        ("a.npy", npy("|u1", "(1, 784)", &with_grey), &["value 5 (index [0, 5])", "got 17", "grey", "IDX"]),
        ("a.npy", npy("|u1", "(1, 784)", &with_two_inks), &["value 9 (index [0, 9])", "0 or 255, got 1"]),
        ("a.npy", npy("|u1", "(1, 784)", &with_only_grey), &["value 5 (index [0, 5])", "0 or 1, got 17"]),
        ("a.npy", b"\x93NUMPY\x09\x00\x10\x00".to_vec(), &["byte 6", "version 1, 2 or 3, got 9"]),
        ("a.npy", b"\x93NUMPY\x01\x00\x76".to_vec(), &["truncated", "header"]),
        ("a.npy", version_2(u32::MAX), &["header of up to 16384 bytes", "4294967295"]),
        ("a.npy", version_2(1000), &["truncated", "expected 1000 bytes from byte 12 on, got 0"]),
        ("a.npy", record("\u{e9}", &[]), &["header", "descr", "got none"]),
        ("a.npy", record("{'descr': '|u1'}", &[]), &["fortran_order", "got none"]),
        ("a.npy", record("{'descr': [('a', '<f4')], 'fortran_order': False}", &[]), &["one element type"]),
        ("a.npy", record(&order, &one), &["fortran_order False or True", "Yes"]),
        ("a.npy", record(&columns, &two_columns), &["value 3 (index [1, 1])", "got 7"]),
        ("a.npy", npy("<c8", "(1, 784)", &[]), &["element type", "'<c8'"]),
        ("a.npy", npy("|O", "(1, 784)", &[]), &["element type", "'|O'"]),
        ("a.npy", npy("", "(1, 784)", &[]), &["element type", "''"]),
        ("a.npy", npy("\u{e9}4", "(1, 784)", &[]), &["element type"]),
        ("a.npy", npy("|u1", "5", &[]), &["tuple", "5"]),
        ("a.npy", npy("|u1", "(1, -784)", &[]), &["integers as shape"]),
        ("a.npy", npy("|u1", "(99999999999999999999, 784)", &[]), &["integers as shape"]),
        ("a.npy", npy("|u1", "(1, 30)", &[0; 30]), &["(n, h, w)", "(n, h * w)", "[1, 30]"]),
        ("a.npy", npy("|u1", "(784,)", &one), &["(n, 784)", "[784]"]),
        ("a.npy", npy("|u1", "(0, 784)", &[]), &["at least one image"]),
        ("a.npy", npy("<f8", "(9000000000000000000, 784)", &[]), &["more than 2^64"]),
        ("a.npy", npy("<f8", "(1700000, 784)", &[0; 64]), &["truncated", "10662400"]),
        ("a.npy", cut(good.clone(), good.len() - 1), &["truncated"]),
        ("a.npy", [&good[..], &[0]].concat(), &["too long"]),
        ("a.npy", npy("|u1", "(1, 1, 28, 28)", &two), &["value 100 (index [0, 0, 3, 16])", "0 or 1, got 2"]),
        ("a.npy", npy("<i2", "(1, 784)", &minus), &["value 2 (index [0, 2])", "got -256"]),
        ("a.npy", with(784 + 29, 0.5), &["value 813 (index [1, 1, 1])", "got 0.5"]),
        ("a.npy", with(0, f64::NAN), &["value 0", "got NaN"]),
        ("a.npy", with(1, f64::INFINITY), &["value 1", "got inf"]),
        ("a.npy.gz", gz(&cut(good.clone(), good.len() - 1)), &["truncated"]),
    ]);
}

#[test]
fn no_cut_file_panics() {
    let dir = tempfile::tempdir().unwrap();
    let files = [
        ("a.amat", amat(&images(2))),
        ("a-ubyte", idx_images(&images(2))),
        ("a.npy", npy("|b1", "(2, 784)", &images(2))),
        ("b.amat.gz", gz(&amat(&images(2)))),
        ("b-ubyte.gz", gz(&idx_images(&images(2)))),
        ("b.npy.gz", gz(&npy("|b1", "(2, 784)", &images(2)))),
    ];
    for (name, whole) in files {
        let path = dir.path().join(name);
        // Every length within the headers, then in steps. The text may lack its last line end.
        let last = if name.ends_with("amat") { whole.len() - 1 } else { whole.len() };
        for bytes in (0..last.min(140)).chain((140..last).step_by(37)).chain([last - 1]) {
            // Text that ends after its first complete line is a valid file of one image.
            if name == "a.amat" && (bytes == 1567 || bytes == 1568) {
                continue;
            }
            fs::write(&path, &whole[..bytes]).unwrap();
            assert!(error_of(&path).contains(name), "{name} cut to {bytes} bytes");
        }
    }
}

/// Checks rows of a folder's files and words that the error must contain.
#[test]
fn bad_folders() {
    type Files = Vec<(&'static str, Vec<u8>)>;
    let rows: Vec<(Files, &[&str])> = vec![
        (vec![], &["no train images", "looked for binarized_mnist_train.amat", "found nothing"]),
        (vec![("a.txt", vec![])], &["train-images-idx3-ubyte[.gz]", "train.npy", "found a.txt"]),
        (vec![("binarized_mnist_valid.amat", amat(&images(1)))], &["binarized_mnist_train.amat[.gz]"]),
        (vec![("binarized_mnist_test.amat", b"0 1 2".to_vec())], &["binarized_mnist_test.amat: line 1"]),
    ];
    for (i, (files, words)) in rows.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let error = error_of(dir.path());
        for word in words.iter().chain([&dir.path().to_str().unwrap()]) {
            assert!(error.contains(word), "row {i}: expected '{word}' in: {error}");
        }
    }
}

/// Few verbs need labels. Malformed labels must not prevent loading the images.
#[test]
fn images_are_loaded_despite_malformed_labels() {
    let labels = |n: usize| idx_labels(&vec![3; n]);
    let npy_labels = |values: &[u8]| npy("|u1", &format!("({},)", values.len()), values);
    let (idx, array) = (idx_images(&images(3)), npy("|u1", "(3, 784)", &images(3)));
    for wrong in [labels(2), cut(labels(3), 9), vec![], idx_images(&images(3))] {
        let dir = tempfile::tempdir().unwrap();
        let labels = dir.path().join("t10k-labels-idx1-ubyte");
        fs::write(dir.path().join("t10k-images-idx3-ubyte"), &idx).unwrap();
        fs::write(&labels, wrong).unwrap();
        let test = data::load_split(dir.path().to_str().unwrap(), Part::Test).unwrap();
        assert_eq!((test.pixels.clone(), &test.labels, test.sources.len()), (images(3), &None, 1));
        // A caller that names the file of labels gets the error.
        let error = format!("{:#}", test.labelled(&labels).unwrap_err());
        assert!(error.contains("t10k-labels-idx1-ubyte: "), "{error}");
    }
    for wrong in [npy_labels(&[1, 2]), npy("<i2", "(3,)", &[0, 1, 1, 0, 1, 0]), vec![]] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("test.npy"), &array).unwrap();
        fs::write(dir.path().join("test_labels.npy"), wrong).unwrap();
        let test = data::load_split(dir.path().to_str().unwrap(), Part::Test).unwrap();
        assert_eq!((test.pixels, test.labels), (images(3), None));
    }
}

#[test]
fn folders_named_like_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("binarized_mnist_test.amat")).unwrap();
    let error = error_of(dir.path());
    assert!(
        error.contains("no train images") && error.contains("found binarized_mnist_test.amat/"),
        "{error}"
    );
    // Kaggle's archive contains a folder with the file's name beside the file.
    let labels = idx_labels(&[4, 5, 6]);
    for (name, content) in [("images", idx_images(&images(3))), ("labels", labels)] {
        let kind = if name == "images" { "idx3" } else { "idx1" };
        let folder = dir.path().join(format!("t10k-{name}-{kind}-ubyte"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("other"), "0 1").unwrap();
        fs::write(dir.path().join(format!("t10k-{name}.{kind}-ubyte")), content).unwrap();
    }
    let test = data::load_split(dir.path().to_str().unwrap(), Part::Test).unwrap();
    assert_eq!((test.pixels, test.labels), (images(3), Some(vec![4, 5, 6])));
    let report = data::known::verify(dir.path()).unwrap();
    let files: Vec<&str> = report.files.iter().map(|file| file.file.as_str()).collect();
    assert_eq!(files, ["t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"]);
    let error = error_of(&dir.path().join("absent"));
    for word in ["absent", "'glyphs'", "No such file"] {
        assert!(error.contains(word), "{error}");
    }
    let error = format!("{:#}", data::load("").unwrap_err());
    assert!(error.contains("'glyphs'"), "{error}");
}

fn loaded(name: &str, content: &[u8]) -> Split {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    let set = data::load(path.to_str().unwrap()).unwrap_or_else(|e| panic!("{name}: {e:#}"));
    assert!(set.test.is_none());
    for part in [Part::Train, Part::Test] {
        assert_eq!(set.split(part).unwrap().pixels, set.train.as_ref().unwrap().pixels);
        assert_eq!(
            data::load_split(path.to_str().unwrap(), part).unwrap().sources,
            std::slice::from_ref(&path)
        );
    }
    set.train.unwrap()
}

#[test]
fn good_text_in_every_form() {
    let pixels = images(300);
    let text = amat(&pixels);
    let other =
        |from: &str, to: &str| String::from_utf8(text.clone()).unwrap().replace(from, to).into_bytes();
    let written_out = String::from_utf8(amat(&images(2))).unwrap().replace('1', "1.000e+00").into_bytes();
    let forms = [
        text.clone(),
        gz(&text),
        other("\n", "\r\n"),
        other("\n", " \n"),
        other(" ", "   "),
        other(" ", "\t"),
        cut(text.clone(), text.len() - 1),
        [&text[..], b"\n \n\n"].concat(),
        [gz(&text[..1568 * 7]), gz(&text[1568 * 7..])].concat(),
        [gz(&text), vec![0; 1000]].concat(),
        [gz(&text[..1568 * 7]), vec![0; 300_000], gz(&text[1568 * 7..])].concat(),
        other(" ", ","),
        other(" ", ", "),
        other("1", "255"),
        String::from_utf8(text.clone()).unwrap().replace('1', "255").replace(' ', ",").into_bytes(),
    ];
    for (i, form) in forms.iter().enumerate() {
        assert_eq!(loaded("a.amat", form).pixels, pixels, "form {i}");
    }
    assert_eq!(loaded("a.amat", &written_out).pixels, images(2));
    let split = loaded("any name", &text);
    assert_eq!((split.len(), split.image(299)), (300, &pixels[299 * PIXELS..]));
    let ones: usize = pixels.iter().map(|&p| usize::from(p)).sum();
    assert_eq!(split.mean(), ones as f64 / pixels.len() as f64);
}

#[test]
fn good_idx() {
    // Pixels 0 and 255 are binarized to 0 and 1 with certainty.
    let pixels = images(30);
    let grey: Vec<u8> = pixels.iter().map(|p| p * 255).collect();
    for (name, content) in
        [("a", idx_images(&grey)), ("b.gz", gz(&idx_images(&grey))), ("c", idx_images(&pixels))]
    {
        assert_eq!(loaded(name, &content).pixels, pixels, "{name}");
    }
}

#[test]
fn good_npy_of_every_type() {
    let pixels = images(20);
    for order in ["<", ">"] {
        for kind in ["b1", "u1", "i1", "u2", "u4", "u8", "i2", "i4", "i8", "f2", "f4", "f8"] {
            let one = |p: u8| -> Vec<u8> {
                let mut bytes = match kind {
                    "f2" => half::f16::from_f32(p.into()).to_le_bytes().to_vec(),
                    "f4" => f32::from(p).to_le_bytes().to_vec(),
                    "f8" => f64::from(p).to_le_bytes().to_vec(),
                    _ => u64::from(p).to_le_bytes()[..kind[1..].parse::<usize>().unwrap()].to_vec(),
                };
                if order == ">" {
                    bytes.reverse();
                }
                bytes
            };
            let body: Vec<u8> = pixels.iter().flat_map(|&p| one(p)).collect();
            let content = npy(&format!("{order}{kind}"), "(20, 1, 28, 28)", &body);
            assert_eq!(loaded("a.npy", &content).pixels, pixels, "{order}{kind}");
        }
    }
    let full: Vec<u8> = pixels.iter().map(|p| p * 255).collect();
    assert_eq!(loaded("a.npy", &npy("|u1", "(20, 28, 28, 1)", &full)).pixels, pixels);
    let full: Vec<u8> = full.iter().flat_map(|p| f64::from(*p).to_be_bytes()).collect();
    assert_eq!(loaded("a.npy", &npy(">f8", "(20, 784)", &full)).pixels, pixels);
    // Later versions of the header have a length of four bytes.
    for version in [2, 3] {
        let text = header("|u1", "False", "(20, 784)");
        let start = [b"\x93NUMPY", &[version, 0][..], &(text.len() as u32).to_le_bytes()].concat();
        let content = [&start[..], text.as_bytes(), &pixels].concat();
        assert_eq!(loaded("a.npy", &content).pixels, pixels, "version {version}");
    }
    for shape in ["(20, 784)", "(20L, 784L)", "(20, 28, 28)", "(20, 28, 28, 1)", "( 20,28,28, )"] {
        assert_eq!(loaded("a", &npy("|b1", shape, &pixels)).pixels, pixels, "{shape}");
    }
    assert_eq!(loaded("a.npy.gz", &gz(&npy("|u1", "(20, 784)", &pixels))).pixels, pixels);
    // In Fortran order the images vary fastest, then the rows.
    for (shape, rows, columns) in
        [("(20, 784)", 784, 1), ("(20, 28, 28)", 28, 28), ("(20, 28, 28, 1)", 28, 28)]
    {
        let at = |image: usize, row: usize, column: usize| pixels[image * 784 + row * columns + column];
        let body: Vec<u8> = (0..columns)
            .flat_map(|column| (0..rows).flat_map(move |row| (0..20).map(move |image| (image, row, column))))
            .map(|(image, row, column)| at(image, row, column))
            .collect();
        let content = record(&header("|u1", "True", shape), &body);
        assert_eq!(loaded("a.npy", &content).pixels, pixels, "{shape}");
    }
}

/// Returns the lines of a table, each with a label before or after the pixels.
fn table(pixels: &[u8], labels: &[u8], first: bool, separator: &str) -> String {
    let line = |(image, label): (&[u8], &u8)| {
        let mut numbers: Vec<String> = image.iter().map(u8::to_string).collect();
        numbers.insert(if first { 0 } else { PIXELS }, label.to_string());
        numbers.join(separator) + "\n"
    };
    pixels.chunks(PIXELS).zip(labels).map(line).collect()
}

#[test]
fn tables_with_labels() {
    let labels: Vec<u8> = (0..20).map(|i| (i * 7 + 3) % 10).collect();
    let bits = images(20);
    let full: Vec<u8> = bits.iter().map(|p| p * 255).collect();
    let names: Vec<String> = (0..PIXELS).map(|i| format!("pixel{i}")).collect();
    let names = names.join(",");
    for pixels in [&bits, &full] {
        let (first, last) = (table(pixels, &labels, true, ","), table(pixels, &labels, false, ","));
        for (i, text) in [
            format!("label,{names}\n{first}"),
            format!("\u{feff}label,{names}\r\n{}", first.replace('\n', "\r\n")),
            format!("{names},class\n{last}"),
            first.clone(),
            last.clone(),
            table(pixels, &labels, true, " "),
            table(pixels, &labels, false, " "),
        ]
        .into_iter()
        .enumerate()
        {
            let split = loaded("a.csv", text.as_bytes());
            assert_eq!((split.pixels, split.labels), (bits.clone(), Some(labels.clone())), "text {i}");
        }
    }
    let bare = String::from_utf8(amat(&bits)).unwrap().replace(' ', ",");
    let split = loaded("a.csv.gz", &gz(format!("{names}\n{bare}").as_bytes()));
    assert_eq!((split.pixels, split.labels), (bits.clone(), None));
    // Grey values are binarized like those of IDX files. Labels of letters are not digits.
    let grey: Vec<u8> = (0..20 * PIXELS).map(|i| (i * 31 % 256) as u8).collect();
    let letters: Vec<u8> = (0..20).map(|i| i + 5).collect();
    let split = loaded("a.csv", format!("label,{names}\n{}", table(&grey, &letters, true, ",")).as_bytes());
    assert_eq!((split.pixels, split.labels), (loaded("a", &idx_images(&grey)).pixels, None));
}

#[test]
fn npz_with_the_names_of_keras() {
    let grey: Vec<u8> = (0..3 * PIXELS).map(|i| (i * 31 % 256) as u8).collect();
    let labels = |values: &[u64]| {
        npy(
            "<i8",
            &format!("({},)", values.len()),
            &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>(),
        )
    };
    let arrays = [
        ("x_test", npy("|u1", "(2, 28, 28)", &images(2))),
        ("x_train", npy("|u1", "(3, 28, 28)", &grey)),
        ("y_train", npy("|u1", "(3, 1)", &[5, 0, 4])),
        ("y_test", labels(&[7, 2])),
        ("unneeded", b"no array".to_vec()),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mnist.npz");
    let spec = path.to_str().unwrap();
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        fs::write(&path, npz(&arrays, method)).unwrap();
        let set = data::load(spec).unwrap();
        let (train, test) = (set.split(Part::Train).unwrap(), set.split(Part::Test).unwrap());
        assert_eq!((&test.pixels, &test.labels), (&images(2), &Some(vec![7, 2])));
        assert_eq!(
            (&train.pixels, &train.labels),
            (&loaded("a", &idx_images(&grey)).pixels, &Some(vec![5, 0, 4]))
        );
        assert_eq!(data::load_split(spec, Part::Test).unwrap().pixels, images(2));
        assert_eq!(data::load_grey(spec, Part::Train).unwrap().pixels, grey);
    }
    // A single array serves as both parts.
    fs::write(&path, npz(&arrays[..1], CompressionMethod::Deflated)).unwrap();
    let set = data::load(spec).unwrap();
    for part in [Part::Train, Part::Test] {
        assert_eq!(set.split(part).unwrap().pixels, images(2));
        assert_eq!(data::load_split(spec, part).unwrap().pixels, images(2));
    }
}

#[test]
fn bad_npz() {
    let good = npy("|u1", "(2, 28, 28)", &images(2));
    let one =
        |bytes: Vec<u8>| npz(&[("x_train", bytes), ("x_test", good.clone())], CompressionMethod::Deflated);
    let whole = one(good.clone());
    let mut changed = npz(&[("x_train", good.clone())], CompressionMethod::Stored);
    let at = changed.windows(8).position(|w| w == &images(1)[..8]).unwrap();
    changed[at] ^= 1;
    let halves: Vec<u8> = [2.0f32, 0.5].iter().cycle().take(PIXELS).flat_map(|v| v.to_le_bytes()).collect();
    let mut dark = images(1);
    dark[3] = 9;
    let images_100_000 = 100_000;
    let bomb = npy("|u1", &format!("({images_100_000}, 784)"), &vec![0; images_100_000 * PIXELS]);
    check(&[
        ("a.npz", cut(whole.clone(), whole.len() / 2), &["truncated or damaged"]),
        ("a.npz", one(cut(good.clone(), 500)), &["x_train", "truncated"]),
        ("a.npz", one([&good[..], &[0]].concat()), &["x_train", "too long"]),
        ("a.npz", one(vec![]), &["x_train", "empty"]),
        ("a.npz", one(npy("|u1", "(784,)", &images(1))), &["x_train", "(n, 784)", "[784]"]),
        ("a.npz", one(npy("<f4", "(1, 784)", &halves)), &["x_train", "value 1", "0 to 255, got 0.5"]),
        ("a.npz", one(npy("|u1", "(1, 784)", &dark)), &["x_train", "grey values up to 255, got 9"]),
        ("a.npz", changed, &["x_train", "checksum"]),
        (
            "a.npz",
            npz(&[("a", vec![]), ("b", vec![])], CompressionMethod::Stored),
            &["x_train", "found a, b"],
        ),
        ("a.npz", one(bomb.clone()), &["x_train", "78400000 bytes", "unpack the file first"]),
        ("a.npy.gz", gz(&bomb), &["78400000 bytes", "unpack the file first"]),
    ]);
}

#[test]
fn good_folders() {
    let dir = tempfile::tempdir().unwrap();
    let spec = dir.path().to_str().unwrap();
    let put = |name: &str, content: Vec<u8>| fs::write(dir.path().join(name), content).unwrap();
    let all = images(10);
    let (a, b, c) = (&all[..4 * PIXELS], &all[4 * PIXELS..6 * PIXELS], &all[6 * PIXELS..]);

    put("test.npy", npy("|u1", "(4, 784)", c));
    put("test_labels.npy", npy("<i8", "(4,)", &[1u64, 2, 3, 9].map(u64::to_le_bytes).concat()));
    assert_eq!(data::load(spec).unwrap().test.unwrap().labels, Some(vec![1, 2, 3, 9]));
    let error = data::load(spec).unwrap().split(Part::Train).unwrap_err().to_string();
    assert!(error.contains("looked for train.npy; found test.npy, test_labels.npy"), "{error}");

    // IDX takes precedence over .npy.
    put("t10k-images.idx3-ubyte", idx_images(&a.iter().map(|p| p * 255).collect::<Vec<_>>()));
    put("t10k-labels-idx1-ubyte.gz", gz(&idx_labels(&[4, 5, 6, 7])));
    let test = data::load_split(spec, Part::Test).unwrap();
    assert_eq!((&test.pixels[..], test.labels), (a, Some(vec![4, 5, 6, 7])));
    assert_eq!(test.sources.len(), 2);
    assert!(data::load_split(spec, Part::Train).is_err());

    // Binarized text takes precedence over both, and does not get their labels.
    put("binarized_mnist_train.amat", amat(a));
    assert_eq!(data::load_split(spec, Part::Train).unwrap().pixels, a);
    put("binarized_mnist_valid.amat.gz", gz(&amat(b)));
    let error = data::load_split(spec, Part::Test).unwrap_err().to_string();
    assert!(error.contains("looked for binarized_mnist_test.amat[.gz]; found binarized"), "{error}");
    put("binarized_mnist_test.amat.gz", gz(&amat(c)));
    let set = data::load(spec).unwrap();
    let train = set.split(Part::Train).unwrap();
    assert_eq!((&train.pixels[..], train.name.as_str()), (&all[..6 * PIXELS], "binarized_mnist_train+valid"));
    let test = set.split(Part::Test).unwrap();
    assert_eq!((&test.pixels[..], &test.labels), (c, &None));

    // The grey images can still be loaded.
    let grey = data::load_grey(spec, Part::Test).unwrap();
    assert_eq!((grey.len(), grey.labels), (4, Some(vec![4, 5, 6, 7])));
    assert!(grey.pixels.iter().all(|&p| p == 0 || p == 255));
    let error = data::load_grey(spec, Part::Train).unwrap_err().to_string();
    assert!(error.contains("no grey train images"), "{error}");
}
