//! What is fuzzed: every reader of bytes that come from elsewhere, with small valid inputs to begin from. Two drivers use it:
//! the test beside it, which changes these inputs at random, and `tools/fuzz-targets`, which a run's coverage guides.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use vnca::cli::config::{TrainConfig, TrainOptions};
use vnca::cli::models::Kind;
use vnca::data::input::Input;
use vnca::data::{self, Part, Reading, Values, amat, decode, idx, known, labels, npy as images};
use vnca::engine::array::Array;
use vnca::engine::npy::{self, Record};
use vnca::engine::program::{Format, InputSpec, OutputSpec, Program, Signature, Target as Written};
use vnca::engine::runtime::Device;
use vnca::engine::runtime::pjrt::{Compiled, KeptProgram, Trips, Usage, module_bytes};
use vnca::engine::shape::{DType, Shape};
use vnca::nn::params::{Leaf, Role, layer};
use vnca::nn::weights::{self, npz, safetensors};
use vnca::study::eval::Scores;
use vnca::study::eval::part::{self, Shard, Task};
use vnca::train::checkpoint::{Checkpoint, Meta};
use vnca::train::metrics::{Line, Metrics};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

#[allow(dead_code, missing_docs)]
#[path = "../../src/engine/lower/placeholders.rs"]
mod placeholders;

#[path = "../common/fonts.rs"]
mod fonts;

/// A reader under test.
pub struct Target {
    /// The name, which the drivers print.
    pub name: &'static str,
    /// The longest input. Unpacked, a gzip stream may be a thousand times as long.
    pub longest: usize,
    /// Valid inputs.
    pub seeds: fn(&Bench) -> Vec<Vec<u8>>,
    /// Reads an input and uses what was read as the program does. Whether it is refused does not matter.
    pub read: fn(&Bench, &[u8]),
}

/// A folder for inputs that are read as files.
pub struct Bench {
    folder: TempDir,
}

impl Bench {
    /// Makes one, in memory where there is a place for it.
    pub fn new() -> Bench {
        let memory = Path::new("/dev/shm");
        let folder = tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir());
        Bench { folder: folder.expect("a folder for temporary files") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file; returns its path.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("a temporary file");
        path
    }

    /// What a function writes to a file of this name.
    fn written(&self, name: &str, write: impl FnOnce(&Path) -> anyhow::Result<()>) -> Vec<u8> {
        let path = self.path(name);
        write(&path).expect("a seed");
        fs::read(&path).expect("a seed")
    }
}

const LONGEST: usize = 1 << 14;

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "npy-record", longest: LONGEST, seeds: record_seeds, read: read_record },
    Target { name: "npy-images", longest: LONGEST, seeds: image_seeds, read: read_npy_images },
    Target { name: "idx", longest: LONGEST, seeds: idx_seeds, read: read_idx },
    Target { name: "amat", longest: LONGEST, seeds: amat_seeds, read: read_amat },
    Target { name: "table", longest: LONGEST, seeds: table_seeds, read: read_table },
    Target { name: "npz-images", longest: LONGEST, seeds: npz_image_seeds, read: read_npz_images },
    Target { name: "gz", longest: 1 << 12, seeds: gz_seeds, read: read_gz },
    Target { name: "image-file", longest: LONGEST, seeds: image_file_seeds, read: read_image_file },
    Target { name: "font", longest: LONGEST, seeds: font_seeds, read: read_font },
    Target { name: "data-verify", longest: 1 << 12, seeds: data_seeds, read: read_verify },
    Target { name: "npz", longest: LONGEST, seeds: npz_seeds, read: read_npz },
    Target { name: "npz-entry", longest: LONGEST, seeds: record_seeds, read: read_npz_entry },
    Target { name: "safetensors", longest: LONGEST, seeds: safetensors_seeds, read: read_safetensors },
    Target { name: "eqx", longest: LONGEST, seeds: eqx_seeds, read: read_eqx },
    Target { name: "checkpoint", longest: LONGEST, seeds: checkpoint_seeds, read: read_checkpoint },
    Target { name: "checkpoint-meta", longest: LONGEST, seeds: meta_seeds, read: read_meta },
    Target { name: "metrics", longest: LONGEST, seeds: metrics_seeds, read: read_metrics },
    Target { name: "config-toml", longest: LONGEST, seeds: toml_seeds, read: read_toml },
    Target { name: "config-json", longest: LONGEST, seeds: config_seeds, read: read_config },
    Target { name: "eval-part", longest: LONGEST, seeds: part_seeds, read: read_part },
    Target { name: "program", longest: LONGEST, seeds: program_seeds, read: read_program },
    Target { name: "module-text", longest: LONGEST, seeds: text_seeds, read: read_text },
    Target { name: "module-proto", longest: LONGEST, seeds: module_seeds, read: read_module },
    Target { name: "module-answer", longest: LONGEST, seeds: answer_seeds, read: read_answer },
    Target { name: "kept-program", longest: LONGEST, seeds: kept_seeds, read: read_kept },
];

// --- arrays ------------------------------------------------------------------------------------------------------------

/// A `.npy` record of any header.
fn npy_of(version: u8, header: &str, values: &[u8]) -> Vec<u8> {
    let mut bytes = [npy::MAGIC, &[version, 0]].concat();
    match version {
        1 => bytes.extend((header.len() as u16).to_le_bytes()),
        _ => bytes.extend((header.len() as u32).to_le_bytes()),
    }
    [bytes.as_slice(), header.as_bytes(), values].concat()
}

fn npy_file(array: &Array) -> Vec<u8> {
    let mut bytes = Vec::new();
    npy::write(&mut bytes, array).expect("a seed");
    bytes
}

fn record_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let header = |descr: &str, fortran: &str, shape: &str| {
        format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n")
    };
    vec![
        npy_file(&Array::new(&[2, 3], &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0])),
        npy_file(&Array::new(&[4], &[1u32, 2, 3, 4])),
        npy_of(1, &header("<f4", "False", "()"), &[0; 4]),
        npy_of(1, &header(">f8", "True", "(2, 1, 2)"), &[64; 32]),
        npy_of(2, &header("<f2", "False", "(3L,)"), &[60; 6]),
        npy_of(3, &header("|u1", "True", "(2, 2)"), &[1, 2, 3, 4]),
        npy_of(1, &header("<i4", "False", "(0, 7)"), &[]),
        npy_of(1, &header("<u4", "True", "(0, 64, 4611686018427387904)"), &[]),
    ]
}

fn read_record(_: &Bench, mut bytes: &[u8]) {
    while let Ok(record) = Record::take(&mut bytes) {
        if let Ok(array) = record.array() {
            assert_eq!(array.shape().bytes(), array.bytes().len());
        }
    }
}

fn image_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let pixels: Vec<u8> = (0..784).map(|i| (i % 3 == 0).into()).collect();
    let header = "{'descr': '>i2', 'fortran_order': True, 'shape': (1, 28, 28), }\n";
    let wide: Vec<u8> = pixels.iter().flat_map(|p| [0, *p]).collect();
    vec![
        npy_file(&Array::new(&[1, 784], &pixels)),
        npy_file(&Array::new(&[1, 28, 28, 1], &pixels)),
        npy_file(&Array::new(&[5], &[0u8, 3, 9, 2, 1])),
        npy_of(1, header, &wide),
    ]
}

/// Reads a file of images as any of the kinds.
fn with_input(bench: &Bench, name: &str, bytes: &[u8], read: fn(Input) -> anyhow::Result<Vec<u8>>) {
    if let Ok(pixels) = Input::open(&bench.file(name, bytes)).and_then(read) {
        assert!(pixels.len() <= bytes.len() * 1032);
    }
}

fn read_npy_images(bench: &Bench, bytes: &[u8]) {
    with_input(bench, "images.npy", bytes, images::read_images);
    with_input(bench, "images.npy", bytes, images::read_labels);
}

fn idx_images() -> Vec<u8> {
    let head = [0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28];
    let pixels = (0..784).map(|i| (i % 256) as u8);
    head.into_iter().chain(pixels).collect()
}

fn idx_seeds(_: &Bench) -> Vec<Vec<u8>> {
    vec![idx_images(), vec![0, 0, 8, 1, 0, 0, 0, 4, 9, 0, 1, 5]]
}

fn read_idx(bench: &Bench, bytes: &[u8]) {
    with_input(bench, "images", bytes, idx::read_images);
    with_input(bench, "images", bytes, idx::read_labels);
}

fn amat_line() -> Vec<u8> {
    let digits = (0..784).map(|i| if i % 3 == 0 { "1" } else { "0" });
    (digits.collect::<Vec<_>>().join(" ") + "\n").into_bytes()
}

fn amat_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let line = String::from_utf8(amat_line()).expect("text");
    let long = line.replacen('1', "1.000e+00", 40).replace('\n', "\r\n\r\n");
    vec![line.clone().into_bytes(), long.into_bytes(), (line.clone() + &line).into_bytes()]
}

fn read_amat(bench: &Bench, bytes: &[u8]) {
    with_input(bench, "images.amat", bytes, |input| Ok(amat::read(input)?.pixels));
}

/// Tables with a line of names, the label first, and grey values.
fn table_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let names: Vec<String> = (0..784).map(|i| format!("pixel{i}")).collect();
    let values: Vec<String> = (0..784).map(|i| (i % 256).to_string()).collect();
    let (names, values) = (names.join(","), values.join(","));
    vec![
        format!("label,{names}\n7,{values}\n").into_bytes(),
        format!("{values}\n").into_bytes(),
        format!("\u{feff}{names},label\r\n{values},3\r\n").into_bytes(),
    ]
}

fn read_table(bench: &Bench, bytes: &[u8]) {
    load_images(&bench.file("images.csv", bytes));
}

/// Archives as Keras has them, stored and deflated.
fn npz_image_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let images = image_seeds(bench).remove(0);
    let labels = npy_file(&Array::new(&[1], &[4u8]));
    let entries = [("x_train.npy", images.as_slice()), ("y_train.npy", &labels), ("x_test.npy", &images)];
    [CompressionMethod::Stored, CompressionMethod::Deflated].map(|method| zipped(&entries, method)).to_vec()
}

fn read_npz_images(bench: &Bench, bytes: &[u8]) {
    load_images(&bench.file("images.npz", bytes));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).and_then(|()| out.finish()).expect("a seed")
}

fn gz_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> =
        [idx_images(), amat_line(), image_seeds(bench).remove(0)].iter().map(|b| gzip(b)).collect();
    // A stream of several members.
    let line = amat_line();
    seeds.push([gzip(&line[..700]), gzip(&line[700..])].concat());
    seeds
}

/// A file of images of any kind, which its content tells; and one of labels.
fn read_gz(bench: &Bench, bytes: &[u8]) {
    let path = bench.file("images.gz", bytes);
    load_images(&path);
    let _ = labels::read_for(&path, 4, "four images");
}

/// Loads a file of images as binary and as grey ones.
fn load_images(path: &Path) {
    if let Ok(set) = data::load(&path.to_string_lossy()) {
        for split in [Part::Train, Part::Test].into_iter().filter_map(|part| set.split(part).ok()) {
            assert_eq!(split.pixels.len(), split.len() * split.shape.values());
            assert!(split.values == Values::Levels || split.pixels.iter().all(|p| *p <= 1));
        }
    }
    let _ = data::load_grey(&path.to_string_lossy(), Part::Test);
}

fn image_file_seeds(_: &Bench) -> Vec<Vec<u8>> {
    use image::{DynamicImage, ImageFormat, Rgba, RgbaImage};
    let picture = RgbaImage::from_fn(9, 8, |x, y| Rgba([x as u8 * 20, y as u8 * 30, 99, 255 - x as u8]));
    let picture = DynamicImage::from(picture);
    let encoded = |picture: DynamicImage, format| {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).expect("a seed");
        bytes.into_inner()
    };
    let mut seeds = vec![encoded(picture.to_rgb8().into(), ImageFormat::Jpeg)];
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp] {
        seeds.push(encoded(picture.clone(), format));
    }
    seeds
}

fn read_image_file(bench: &Bench, bytes: &[u8]) {
    // An image of one colour has no size that its file could not have, so that memory follows the claim up to a limit.
    let reader = image::ImageReader::new(Cursor::new(bytes)).with_guessed_format().expect("bytes in memory");
    if reader.into_dimensions().is_ok_and(|(width, height)| u64::from(width) * u64::from(height) > 1 << 19) {
        return;
    }
    if let Ok(decoded) = decode::decode(bytes) {
        assert_eq!(decoded.pixels.len(), decoded.shape.values());
    }
    let folder = bench.path("pictures");
    fs::create_dir_all(&folder).expect("a temporary folder");
    bench.file("pictures/one.png", bytes);
    let reading = Reading { size: Some([8, 8]), ..Reading::default() };
    if let Ok(set) = data::load_with(&folder.to_string_lossy(), &reading, &mut |_, _| {}) {
        assert_eq!(set.split(Part::Train).expect("an image").len(), 1);
    }
}

/// Fonts of small pictures: one, twice the same, and one for so many characters that a copy for each would be too much memory.
fn font_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let png = image_file_seeds(bench).remove(1);
    let one = fonts::font(std::slice::from_ref(&png));
    let mut many = one.clone();
    let map = [0, 12, 0, 0, 0, 0, 0, 28];
    let at = many.windows(map.len()).position(|bytes| bytes == map).expect("the map of characters");
    many[at + 1] = 13;
    many[at + 20..][..4].copy_from_slice(&(0x1f600 + 80_000u32).to_be_bytes());
    vec![one, fonts::font(&[png.clone(), vec![], png]), many]
}

fn read_font(bench: &Bench, bytes: &[u8]) {
    let reading = Reading { size: Some([8, 8]), ..Reading::default() };
    if let Ok(split) = data::emoji::draw(&bench.file("emoji.ttf", bytes), &reading) {
        assert_eq!(split.pixels.len(), split.len() * split.shape.values());
    }
}

/// The first byte says what the file is called.
fn data_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let seeds = [amat_line(), idx_images(), vec![0, 0, 8, 1, 0, 0, 0, 1, 7], image_seeds(bench).remove(0)];
    let plain = seeds.iter().enumerate().map(|(i, seed)| [&[i as u8], seed.as_slice()].concat());
    let packed = seeds.iter().enumerate().map(|(i, seed)| [&[i as u8 + 4], gzip(seed).as_slice()].concat());
    plain.chain(packed).collect()
}

fn read_verify(bench: &Bench, bytes: &[u8]) {
    let Some((name, bytes)) = bytes.split_first() else { return };
    let names = ["binarized_mnist_test.amat", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "test.npy"];
    let name = names[usize::from(*name) % 4].to_string() + if name / 4 % 2 == 1 { ".gz" } else { "" };
    let folder = bench.path("set");
    fs::create_dir_all(&folder).expect("a temporary folder");
    let path = bench.file(&format!("set/{name}"), bytes);
    let report = known::verify(&folder).expect("the folder can be read");
    assert_eq!(report.files.len(), 1);
    let _ = data::load(&folder.to_string_lossy());
    fs::remove_file(path).expect("the file is there");
}

// --- weights -----------------------------------------------------------------------------------------------------------

fn leaves() -> Vec<Leaf> {
    let see = layer("encoder.see", Role::ConvWeight, &[2, 1, 1, 2], &[0]);
    let act = layer("decoder.act", Role::LinearWeight, &[2, 3], &[1]);
    [see, act].concat()
}

fn values() -> Vec<(Leaf, Array)> {
    let filled = |leaf: Leaf| {
        let count = leaf.shape.iter().product();
        let array = Array::new(&leaf.shape, &vec![1.5f32; count]);
        (leaf, array)
    };
    leaves().into_iter().map(filled).collect()
}

fn weights_file(bench: &Bench, name: &str) -> Vec<u8> {
    let (leaves, arrays): (Vec<Leaf>, Vec<Array>) = values().into_iter().unzip();
    bench.written(name, |path| weights::write(path, &leaves, &arrays))
}

fn npz_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let empty = bench.written("none.npz", |path| npz::write(path, std::iter::empty()));
    vec![weights_file(bench, "seed.npz"), empty]
}

fn read_weights(bench: &Bench, name: &str, bytes: &[u8]) {
    let leaves = leaves();
    if let Ok(arrays) = weights::read(&bench.file(name, bytes), &leaves) {
        for (leaf, array) in leaves.iter().zip(&arrays) {
            assert_eq!(array.dims(), leaf.shape);
            let _ = leaf.to_device_layout(array);
        }
    }
}

fn read_npz(bench: &Bench, bytes: &[u8]) {
    read_weights(bench, "weights.npz", bytes);
}

/// An archive whose entry has these bytes and the right checksum, which changed archives never get past.
fn archive(entry: &str, bytes: &[u8]) -> Vec<u8> {
    zipped(&[(entry, bytes)], CompressionMethod::Stored)
}

fn zipped(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in entries {
        zip.start_file(*name, options).expect("a seed");
        zip.write_all(bytes).expect("a seed");
    }
    zip.finish().expect("a seed").into_inner()
}

fn read_npz_entry(bench: &Bench, bytes: &[u8]) {
    let path = bench.file("entry.npz", &archive("encoder.see.bias.npy", bytes));
    if let Ok(arrays) = npz::read(&path) {
        let _ = weights::from_checkpoint(&path, &leaves()[1..2], arrays);
    }
}

fn safetensors_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let header = br#"{"encoder.see.bias":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"x":{"dtype":"BF16","shape":[],"data_offsets":[4,6]},"y":{"dtype":"F64","shape":[1,1],"data_offsets":[6,14]}}"#;
    let other = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &[60; 14]].concat();
    vec![weights_file(bench, "seed.safetensors"), other]
}

fn read_safetensors(bench: &Bench, bytes: &[u8]) {
    if let Ok(arrays) = safetensors::read(bytes) {
        let elements: usize = arrays.iter().map(|(_, a)| a.shape().count()).sum();
        assert!(elements <= bytes.len());
    }
    read_weights(bench, "weights.safetensors", bytes);
}

fn eqx_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let plain = weights_file(bench, "seed.eqx");
    let settings = [b"{\"latent\": 8}\n".as_slice(), &plain].concat();
    let scalar = npy_of(1, "{'descr': '<i8', 'fortran_order': False, 'shape': (), }\n", &[7; 8]);
    vec![[scalar, plain.clone()].concat(), settings, plain]
}

fn read_eqx(bench: &Bench, bytes: &[u8]) {
    read_weights(bench, "weights.eqx", bytes);
}

/// An archive whose directory has many names for one and the same entry.
fn repeated_archive(bytes: &[u8], names: u16) -> Vec<u8> {
    let one = archive("00000.npy", bytes);
    let end = one.len() - 22;
    let directory = u32::from_le_bytes(one[end + 16..end + 20].try_into().expect("four bytes")) as usize;
    let mut all = one[..directory].to_vec();
    for i in 0..names {
        let mut record = one[directory..end].to_vec();
        record[46..51].copy_from_slice(format!("{i:05}").as_bytes());
        all.extend(record);
    }
    let mut last = one[end..].to_vec();
    last[8..10].copy_from_slice(&names.to_le_bytes());
    last[10..12].copy_from_slice(&names.to_le_bytes());
    last[12..16].copy_from_slice(&((all.len() - directory) as u32).to_le_bytes());
    [all, last].concat()
}

/// Names and bytes of large files.
pub fn large() -> Vec<(&'static str, Vec<u8>)> {
    const COUNT: usize = 1 << 24;
    let record = |order: &str| {
        let header = format!("{{'descr': '<f2', 'fortran_order': {order}, 'shape': (4, {}), }}\n", COUNT / 4);
        npy_of(1, &header, &vec![60; 2 * COUNT])
    };
    let tensor = || {
        let header =
            format!(r#"{{"x":{{"dtype":"F16","shape":[{COUNT}],"data_offsets":[0,{}]}}}}"#, 2 * COUNT);
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![60; 2 * COUNT]].concat()
    };
    // A list of numbers where a model's description stands.
    let tree = "0,".repeat(1 << 22);
    let part = format!(
        r#"{{"version":1,"task":{{"model":[{tree}0],"weights":"","data":"","pixels":"","images":0,"samples":1,"seeds":[],
        "batch_size":1,"replicas":1}},"shard":{{"index":0,"of":2}},"seconds":0,"draws":[],"kl":[],"spread":{{"images":0,
        "sums":[],"squares":[]}}}}"#
    );
    vec![
        ("tree.json", part.into_bytes()),
        ("large.eqx", record("False")),
        ("fortran.eqx", record("True")),
        ("large.npz", archive("x.npy", &record("False"))),
        ("large.safetensors", tensor()),
        ("repeated.npz", repeated_archive(&npy_file(&Array::new(&[1 << 18], &vec![0f32; 1 << 18])), 200)),
    ]
}

/// Reads a large file: weights, which are no model's, or a part of an evaluation, whose other part is missing. Returns why it
/// is refused.
pub fn read_large(path: &Path) -> String {
    if path.extension().is_some_and(|e| e == "json") {
        return format!("{:#}", part::merge(&[path.to_owned()]).expect_err("a part of an evaluation"));
    }
    format!("{:#}", weights::read(path, &leaves()).expect_err("weights of no model"))
}

// --- runs --------------------------------------------------------------------------------------------------------------

fn meta() -> Meta {
    let model = serde_json::json!({"kind": "baseline", "latent": 8, "sizes": [1, null, 2.5]});
    Meta { version: 1, model, step: 7, data_key: [0, 1], data_crc: 9, best: Some(-90.5), unevaluated: None }
}

fn checkpoint_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let arrays = values().into_iter().map(|(leaf, array)| (leaf.name, array)).collect();
    vec![bench.written("seed.npz", |path| Checkpoint { meta: meta(), arrays }.save(path))]
}

fn read_checkpoint(bench: &Bench, bytes: &[u8]) {
    if let Ok(found) = Checkpoint::load(&bench.file("checkpoint.npz", bytes)) {
        let _ = weights::from_checkpoint(Path::new("checkpoint.npz"), &leaves(), found.arrays);
    }
}

fn meta_seeds(_: &Bench) -> Vec<Vec<u8>> {
    vec![serde_json::to_vec(&meta()).expect("a seed")]
}

/// The metadata alone, in an archive that is whole.
fn read_meta(bench: &Bench, bytes: &[u8]) {
    let entry = npy_file(&Array::new(&[bytes.len()], bytes));
    let _ = Checkpoint::load(&bench.file("meta.npz", &archive("meta.npy", &entry)));
}

fn metrics_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let line = |step| {
        let score = (step == 2).then_some(("test/iwelbo", -90.0));
        serde_json::to_string(&Line::new(step, 100.5, 1.0, score)).expect("a seed") + "\n"
    };
    let bytes = |steps: &[usize]| steps.iter().map(|step| line(*step)).collect::<String>().into_bytes();
    vec![[b"\x02".as_slice(), &bytes(&[1, 2, 3])].concat(), [b"\x01".as_slice(), &bytes(&[1])].concat()]
}

/// The first byte is the step that the run goes on from.
fn read_metrics(bench: &Bench, bytes: &[u8]) {
    let Some((step, bytes)) = bytes.split_first() else { return };
    let path = bench.file("metrics.jsonl", bytes);
    if Metrics::open(&bench.path(""), usize::from(*step)).is_ok() {
        assert!(fs::metadata(path).is_ok_and(|found| found.len() <= bytes.len() as u64));
    }
    let _ = fs::remove_dir_all(bench.path("tensorboard"));
}

fn toml_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let presets = [
        include_str!("../../src/cli/presets/report-doubling.toml"),
        include_str!("../../src/cli/presets/demo-nondoubling.toml"),
    ];
    let text = "model = \"nondoubling\"\nsteps = 7\nclip-norm = inf\nprecision = \"bf16\"\npool-shuffle = \"exchange\"\n\
                damage = 0.5\nremat = 2\nstart-side = 2\nnca-steps-min = 3\nnca-steps-max = 9\nwarmup = 1\nend-factor = 0.1\n\
                train-samples = 2\nmany-samples = \"importance\"\nreplicas = 2\ndevice = \"cpu\"\n";
    let model = "model = \"doubling\"\ndoublings = 3\nnca-steps = 4\nupdate-prob = 0.5\ncell-optimiser = \"adam\"\n\
                 latent = 16\nbatch-size = 8\nchunk = 5\nbeta = 0.5\nsave-as = \"bf16\"\nlearning-rate = 1e-3\n";
    let preset =
        "preset = \"demo-doubling\"\ndevice = \"./plugin.so,memory_fraction=0.5,list=[1,2],flag=true\"\n";
    presets.into_iter().chain([text, model, preset]).map(|text| text.as_bytes().to_vec()).collect()
}

/// Uses a configuration as a run does before it opens a device.
fn use_config(config: &TrainConfig) {
    if config.check_sizes(1000).is_ok() {
        let _ = config.run_options(10);
        let _ = config.model.vae().parameter_count();
        let _ = config.model.first_sides();
    }
    let _: anyhow::Result<Device> = config.device();
}

fn read_toml(bench: &Bench, bytes: &[u8]) {
    let Ok(options) = TrainOptions::from_toml(&bench.file("config.toml", bytes)) else { return };
    let Ok(preset) = options.from_preset() else { return };
    if let Ok(config) = TrainConfig::resolve(&options.over(&preset)) {
        use_config(&config);
    }
}

fn config_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let config = |kind: Kind| {
        let options = TrainOptions { model: Some(kind), ..TrainOptions::default() };
        let config = TrainConfig::resolve(&options).expect("a seed");
        serde_json::to_vec(&config).expect("a seed")
    };
    Kind::ALL.map(config).to_vec()
}

fn read_config(bench: &Bench, bytes: &[u8]) {
    bench.file("config.json", bytes);
    if let Ok(config) = TrainConfig::from_run(&bench.path("")) {
        // As verbs do that look at a run.
        let _ = (config.model.vae().parameter_count(), config.model.first_sides());
        use_config(&config);
        let _ = TrainConfig::resumed(&config, &TrainOptions::default());
    }
}

// --- evaluations -------------------------------------------------------------------------------------------------------

fn part_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let seed = |shard: Shard| {
        let task = Task {
            model: serde_json::json!({"kind": "baseline"}),
            weights: "0a".into(),
            data: "glyphs".into(),
            pixels: "0b".into(),
            images: 4,
            samples: 2,
            seeds: vec![0, 1],
            batch_size: 2,
            replicas: 1,
        };
        let n = shard.range(4, 2).len();
        let scores = || Scores {
            iwelbo: vec![-90.25; n],
            reconstruction: vec![-80.0; n],
            kl: vec![10.5; n],
            ..Scores::default()
        };
        let made = part::Part::new(task, shard, vec![scores(), scores()], 0.5).expect("a seed");
        bench.written("seed.json", |path| made.save(path))
    };
    // The last of these has no images.
    vec![seed(Shard::WHOLE), seed(Shard { index: 1, of: 2 }), seed(Shard { index: 2, of: 8 })]
}

fn read_part(bench: &Bench, bytes: &[u8]) {
    let path = bench.file("part.json", bytes);
    let _ = part::merge(std::slice::from_ref(&path));
    let other = bench.file("other.json", bytes);
    let _ = part::merge(&[path, other]);
}

// --- programs ----------------------------------------------------------------------------------------------------------

fn program_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let shape = Shape::f32(&[2, 3]);
    let signature = Signature {
        name: "double".into(),
        format: Format::StableHlo,
        target: Written::Native,
        replicas: 1,
        graph: "0c".into(),
        inputs: vec![
            InputSpec { name: "x".into(), shape: shape.clone(), donated: true },
            InputSpec { name: "key".into(), shape: Shape::new(DType::U32, &[2]), donated: false },
        ],
        outputs: vec![OutputSpec { name: "y".into(), shape }],
    };
    let seed = |format| {
        let program =
            Program { signature: Signature { format, ..signature.clone() }, module: b"module".to_vec() };
        program.save(&bench.path("seed")).expect("a seed");
        fs::read(bench.path("seed/double.json")).expect("a seed")
    };
    vec![seed(Format::StableHlo), seed(Format::Hlo)]
}

/// A signature beside a module. What is in the module is for XLA's own parser.
fn read_program(bench: &Bench, bytes: &[u8]) {
    bench.file("double.json", bytes);
    bench.file("double.hlo.pb", b"module");
    bench.file("double.stablehlo.mlir", b"module");
    let Ok(program) = Program::load(&bench.path(""), "double") else { return };
    // What a call without inputs is given: zeros. A program may ask for more memory than a test should take.
    let inputs = &program.signature.inputs;
    if inputs.iter().all(|i| i.shape.bytes() <= 1 << 10) && inputs.len() < 100 {
        let zeros: Vec<Array> = inputs.iter().map(|i| Array::zeros(&i.shape)).collect();
        let arguments: Vec<(&Shape, bool)> = zeros.iter().map(|a| (a.shape(), true)).collect();
        program.check(&arguments).expect("zeros of the inputs' shapes are arguments");
    }
}

fn text_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let text = |call: &str| {
        format!(
            "name: \"main\"\ncomputations {{\n  name: \"main\"\n  instructions {{\n    name: \"x\"\n    opcode: \"parameter\"\n    \
             shape {{\n      element_type: F32\n    }}\n    id: 1\n  }}\n  instructions {{\n    name: \"y\"\n    opcode: \
             \"custom-call\"\n    shape {{\n      element_type: F32\n    }}\n    custom_call_target: \"{call}\"\n    \
             backend_config: \"dimensions: 0 text: \\'a\\'\"\n    id: 2\n    operand_ids: 1\n  }}\n  root_id: 2\n}}\n"
        )
    };
    [placeholders::ALL_GATHER, placeholders::BITCAST, placeholders::DOT]
        .map(|c| text(c).into_bytes())
        .to_vec()
}

fn read_text(_: &Bench, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(rewritten) = placeholders::rewrite(&text) {
        assert!(rewritten.len() <= 4 * text.len() + 64);
    }
}

/// A field of a protocol buffer's message: a number, or bytes.
fn number(field: u8, value: u8) -> Vec<u8> {
    match field {
        ..16 => vec![field << 3, value],
        _ => vec![field << 3 | 0x80, field >> 4, value],
    }
}

fn message(field: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = number(field, 0);
    bytes.pop();
    bytes[0] |= 2;
    let length = content.len();
    bytes.extend([(length & 0x7f) as u8 | 0x80, (length >> 7) as u8]);
    [bytes.as_slice(), content].concat()
}

/// A module with a loop, a fusion and a collective.
fn module_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let shape = message(3, &[number(2, 11), number(3, 4), number(3, 5), message(5, &number(8, 1))].concat());
    let instruction = |id: u8, opcode: &str, operands: &[u8], called: &[u8], more: &[u8]| {
        let ids = |field, ids: &[u8]| ids.iter().flat_map(|id| number(field, *id)).collect::<Vec<u8>>();
        let fields = [
            message(2, opcode.as_bytes()),
            shape.clone(),
            number(35, id),
            ids(36, operands),
            ids(38, called),
            more.to_vec(),
        ];
        message(2, &fields.concat())
    };
    let computation = |id: u8, root: u8, instructions: &[Vec<u8>]| {
        message(3, &[instructions.concat(), number(5, id), number(6, root)].concat())
    };
    let cost = message(43, br#"{"window_config":{"estimated_cycles":"12"}}"#);
    let entry = [
        instruction(1, "parameter", &[], &[], &[]),
        instruction(2, "fusion", &[1], &[2], &cost),
        instruction(3, "all-reduce-start", &[2], &[], &[]),
        instruction(4, "while", &[3], &[3, 4], &[]),
        instruction(5, "call", &[4], &[5], &[]),
    ];
    let fused = [
        instruction(1, "parameter", &[], &[], &number(9, 0)),
        instruction(2, "dynamic-slice", &[1], &[], &[]),
        instruction(3, "dynamic-update-slice", &[1, 2], &[], &[]),
    ];
    let body = [instruction(1, "parameter", &[], &[], &[]), instruction(2, "copy", &[1], &[], &cost)];
    let condition = [
        instruction(1, "parameter", &[], &[], &[]),
        instruction(2, "constant", &[], &[], &message(8, &number(4, 8))),
        instruction(3, "compare", &[1, 2], &[], &[]),
    ];
    let computations = [
        computation(1, 5, &entry),
        computation(2, 3, &fused),
        computation(3, 2, &body),
        computation(4, 3, &condition),
        computation(5, 2, &body),
    ];
    vec![[computations.concat(), number(6, 1)].concat()]
}

fn read_module(_: &Bench, bytes: &[u8]) {
    let compiled = Compiled { usage: Usage::default(), costs: vec![], module: bytes.to_vec(), hosts: 1 };
    let _ = compiled.estimate(Trips { steps: 2.0, drawn: 3.0 });
}

fn answer_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    module_seeds(bench).iter().map(|module| message(1, module)).collect()
}

/// What a plugin gives when it is asked for its optimized module.
fn read_answer(bench: &Bench, bytes: &[u8]) {
    if let Ok(module) = module_bytes("hlo_with_config", bytes.to_vec()) {
        read_module(bench, &module);
    }
}

fn kept_seeds(_: &Bench) -> Vec<Vec<u8>> {
    vec![[&Sha256::digest(b"compiled")[..], b"compiled"].concat(), vec![]]
}

fn read_kept(bench: &Bench, bytes: &[u8]) {
    let entry = KeptProgram::new(&bench.path(""), &[b"compiler".as_slice(), b"module"]);
    fs::write(entry.path(), bytes).expect("a temporary file");
    if let Some(body) = entry.read() {
        assert_eq!(Sha256::digest(&body)[..], bytes[..32]);
    }
}
