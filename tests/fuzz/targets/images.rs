//! Files and folders of images.

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use flate2::{Compression, write::GzEncoder};
use vnca::data::input::Input;
use vnca::data::{self, Part, Reading, Values, amat, decode, idx, known, labels, npy};
use vnca::engine::array::Array;
use zip::CompressionMethod;

use super::records::{npy_file, npy_of, zipped};
use super::{Bench, fonts};

pub fn image_seeds(_: &Bench) -> Vec<Vec<u8>> {
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
pub fn with_input(bench: &Bench, name: &str, bytes: &[u8], read: fn(Input) -> anyhow::Result<Vec<u8>>) {
    if let Ok(pixels) = Input::open(&bench.file(name, bytes)).and_then(read) {
        assert!(pixels.len() <= bytes.len() * 1032);
    }
}

pub fn read_npy_images(bench: &Bench, bytes: &[u8]) {
    with_input(bench, "images.npy", bytes, npy::read_images);
    with_input(bench, "images.npy", bytes, npy::read_labels);
}

pub fn idx_images() -> Vec<u8> {
    let head = [0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28];
    let pixels = (0..784).map(|i| (i % 256) as u8);
    head.into_iter().chain(pixels).collect()
}

pub fn idx_seeds(_: &Bench) -> Vec<Vec<u8>> {
    vec![idx_images(), vec![0, 0, 8, 1, 0, 0, 0, 4, 9, 0, 1, 5]]
}

pub fn read_idx(bench: &Bench, bytes: &[u8]) {
    with_input(bench, "images", bytes, idx::read_images);
    with_input(bench, "images", bytes, idx::read_labels);
}

pub fn amat_line() -> Vec<u8> {
    let digits = (0..784).map(|i| if i % 3 == 0 { "1" } else { "0" });
    (digits.collect::<Vec<_>>().join(" ") + "\n").into_bytes()
}

pub fn amat_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let line = String::from_utf8(amat_line()).expect("text");
    let long = line.replacen('1', "1.000e+00", 40).replace('\n', "\r\n\r\n");
    vec![line.clone().into_bytes(), long.into_bytes(), (line.clone() + &line).into_bytes()]
}

pub fn read_amat(bench: &Bench, bytes: &[u8]) {
    with_input(bench, "images.amat", bytes, |input| Ok(amat::read(input)?.pixels));
}

/// Tables with a line of names, the label first, and grey values.
pub fn table_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let names: Vec<String> = (0..784).map(|i| format!("pixel{i}")).collect();
    let values: Vec<String> = (0..784).map(|i| (i % 256).to_string()).collect();
    let (names, values) = (names.join(","), values.join(","));
    vec![
        format!("label,{names}\n7,{values}\n").into_bytes(),
        format!("{values}\n").into_bytes(),
        format!("\u{feff}{names},label\r\n{values},3\r\n").into_bytes(),
    ]
}

pub fn read_table(bench: &Bench, bytes: &[u8]) {
    load_images(&bench.file("images.csv", bytes));
}

/// Archives as Keras has them, stored and deflated.
pub fn npz_image_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let images = image_seeds(bench).remove(0);
    let labels = npy_file(&Array::new(&[1], &[4u8]));
    let entries = [("x_train.npy", images.as_slice()), ("y_train.npy", &labels), ("x_test.npy", &images)];
    [CompressionMethod::Stored, CompressionMethod::Deflated].map(|method| zipped(&entries, method)).to_vec()
}

pub fn read_npz_images(bench: &Bench, bytes: &[u8]) {
    load_images(&bench.file("images.npz", bytes));
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).and_then(|()| out.finish()).expect("a seed")
}

pub fn gz_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> =
        [idx_images(), amat_line(), image_seeds(bench).remove(0)].iter().map(|b| gzip(b)).collect();
    // A stream of several members.
    let line = amat_line();
    seeds.push([gzip(&line[..700]), gzip(&line[700..])].concat());
    seeds
}

/// A file of images of any kind, which its content tells; and one of labels.
pub fn read_gz(bench: &Bench, bytes: &[u8]) {
    let path = bench.file("images.gz", bytes);
    load_images(&path);
    let _ = labels::read_for(&path, 4, "four images");
}

/// Loads a file of images as binary and as grey ones.
pub fn load_images(path: &Path) {
    if let Ok(set) = data::load(&path.to_string_lossy()) {
        for split in [Part::Train, Part::Test].into_iter().filter_map(|part| set.split(part).ok()) {
            assert_eq!(split.pixels.len(), split.len() * split.shape.values());
            assert!(split.values == Values::Levels || split.pixels.iter().all(|p| *p <= 1));
        }
    }
    let _ = data::load_grey(&path.to_string_lossy(), Part::Test);
}

pub fn image_file_seeds(_: &Bench) -> Vec<Vec<u8>> {
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

pub fn read_image_file(bench: &Bench, bytes: &[u8]) {
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
pub fn font_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let png = image_file_seeds(bench).remove(1);
    let one = fonts::font(std::slice::from_ref(&png));
    let mut many = one.clone();
    let map = [0, 12, 0, 0, 0, 0, 0, 28];
    let at = many.windows(map.len()).position(|bytes| bytes == map).expect("the map of characters");
    many[at + 1] = 13;
    many[at + 20..][..4].copy_from_slice(&(0x1f600 + 80_000u32).to_be_bytes());
    vec![one, fonts::font(&[png.clone(), vec![], png]), many]
}

pub fn read_font(bench: &Bench, bytes: &[u8]) {
    let reading = Reading { size: Some([8, 8]), ..Reading::default() };
    if let Ok(split) = data::emoji::draw(&bench.file("emoji.ttf", bytes), &reading) {
        assert_eq!(split.pixels.len(), split.len() * split.shape.values());
    }
}

/// The first byte says what the file is called.
pub fn data_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let seeds = [amat_line(), idx_images(), vec![0, 0, 8, 1, 0, 0, 0, 1, 7], image_seeds(bench).remove(0)];
    let plain = seeds.iter().enumerate().map(|(i, seed)| [&[i as u8], seed.as_slice()].concat());
    let packed = seeds.iter().enumerate().map(|(i, seed)| [&[i as u8 + 4], gzip(seed).as_slice()].concat());
    plain.chain(packed).collect()
}

pub fn read_verify(bench: &Bench, bytes: &[u8]) {
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
