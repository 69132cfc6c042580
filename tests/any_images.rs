//! `vnca::data::load_with`: image files of every kind, arrays of every shape, and how both are resized, split and kept.

#[path = "common/cli.rs"]
mod cli;
#[path = "common/fonts.rs"]
mod fonts;
#[path = "common/records.rs"]
mod records;

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::symlink;
use std::path::Path;

use fonts::font;
use image::codecs::gif::GifEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, Frame, GrayImage, ImageFormat, Luma, LumaA, Rgb, RgbImage, Rgba, RgbaImage};
use records::{header, npz, record};
use vnca::data::{self, Dataset, ImageShape, Part, Reading, Split, Values};
use vnca::error::{Kind, kind};
use zip::CompressionMethod;

fn read(path: &Path, reading: &Reading) -> anyhow::Result<Dataset> {
    data::load_with(path.to_str().unwrap(), reading, &mut |_, _| {})
}

fn train(path: &Path, reading: &Reading) -> Split {
    read(path, reading).unwrap_or_else(|e| panic!("{e:#}")).train.unwrap()
}

fn error(path: &Path, reading: &Reading) -> String {
    let error = read(path, reading).err().unwrap_or_else(|| panic!("{} was loaded", path.display()));
    assert_eq!(kind(&error), Kind::Data, "{error:#}");
    format!("{error:#}")
}

fn put(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn grey(side: u32, seed: u32) -> GrayImage {
    GrayImage::from_fn(side, side, |x, y| Luma([((x * 7 + y * 31 + seed * 53) % 256) as u8]))
}

fn rgb(side: u32) -> RgbImage {
    RgbImage::from_fn(side, side, |x, y| Rgb([x as u8, y as u8 * 2, 200]))
}

fn sized(side: usize) -> Reading {
    Reading { size: Some([side; 2]), ..Reading::default() }
}

#[test]
fn folders_of_every_format_with_classes() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (i, (name, format)) in [
        ("x.png", ImageFormat::Png),
        ("x.gif", ImageFormat::Gif),
        ("x.webp", ImageFormat::WebP),
        ("X.BMP", ImageFormat::Bmp),
    ]
    .into_iter()
    .enumerate()
    {
        let image = DynamicImage::from(grey(9, i as u32));
        let image = if format == ImageFormat::Gif {
            image.to_rgba8().into()
        } else {
            DynamicImage::from(image.to_rgb8())
        };
        put(&at(&format!("dogs/deep/{name}")), &encoded(image, format));
    }
    put(&at("cats/x.jpeg"), &encoded(GrayImage::from_pixel(9, 9, Luma([90])), ImageFormat::Jpeg));
    put(&at("cats/note.txt"), b"no image");
    put(&at("cats/.hidden.png"), b"no image");
    fs::create_dir(at("empty")).unwrap();
    let set = read(dir.path(), &Reading::default()).unwrap();
    let split = set.train.clone().unwrap();
    assert_eq!(split.shape, ImageShape { height: 9, width: 9, channels: 1 });
    assert_eq!((split.values, split.labels.clone()), (Values::Levels, Some(vec![0, 1, 1, 1, 1])));
    assert_eq!(set.classes, ["cats", "dogs"]);
    // In the order of names: X.BMP comes before x.gif.
    assert_eq!([split.image(1), split.image(4)], [&grey(9, 3).into_raw()[..], &grey(9, 2).into_raw()]);
    assert_eq!(split.image(3), grey(9, 0).into_raw());
    assert_eq!(split.image(0), [90; 81]);
    assert!(set.notes.iter().any(|note| note.contains("empty: no images")), "{:?}", set.notes);
    assert!(set.notes.iter().any(|note| note.contains("ignored 1 files")), "{:?}", set.notes);
    // Without a test part, the images serve as both.
    assert!(set.test.is_none());
    assert_eq!(set.split(Part::Test).unwrap().len(), 5);

    // One colour image makes all of them RGB, one transparent image RGBA.
    put(&at("cats/y.png"), &encoded(rgb(9), ImageFormat::Png));
    let split = train(dir.path(), &Reading::default());
    assert_eq!((split.shape.channels, split.image(0)), (3, &[90; 243][..]));
    assert_eq!(split.image(1), rgb(9).into_raw());
    put(&at("cats/z.png"), &encoded(RgbaImage::from_pixel(9, 9, Rgba([200, 100, 0, 128])), ImageFormat::Png));
    let split = train(dir.path(), &Reading::default());
    assert_eq!((split.shape.channels, &split.image(0)[..4]), (4, &[90, 90, 90, 255][..]));
    assert_eq!(&split.image(2)[..4], [100, 50, 0, 128]);
}

#[test]
fn a_folder_test_is_the_test_set() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["train/a/1.png", "train/b/1.png", "test/b/1.png", "other/1.png"] {
        put(&at(name), &encoded(grey(8, name.len() as u32), ImageFormat::Png));
    }
    let set = read(dir.path(), &Reading { train_share: Some(0.5), ..Reading::default() }).unwrap();
    let labels = |part| set.split(part).unwrap().labels.clone().unwrap();
    assert_eq!((labels(Part::Train), labels(Part::Test)), (vec![0, 1], vec![1]));
    assert!(set.notes.iter().any(|note| note.contains("not other")), "{:?}", set.notes);
    assert!(set.notes.iter().any(|note| note.contains("not split")), "{:?}", set.notes);
    let spec = dir.path().to_str().unwrap();
    assert_eq!(data::load_split(spec, Part::Test).unwrap().labels, Some(vec![1]));
    // Without a folder train, the other folders are the training set.
    fs::remove_dir_all(at("train")).unwrap();
    let set = read(dir.path(), &Reading::default()).unwrap();
    assert_eq!(
        (set.classes.clone(), set.test.as_ref().unwrap().len()),
        (vec!["b".into(), "other".into()], 1)
    );
    fs::remove_dir_all(at("other")).unwrap();
    let error = format!("{:#}", data::load_split(spec, Part::Train).unwrap_err());
    assert!(error.contains("no train images"), "{error}");
}

#[test]
fn depths_palettes_rotations_and_animations() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let deep = image::ImageBuffer::<Luma<u16>, _>::from_fn(8, 8, |x, _| Luma([(x as u16) * 257 * 30]));
    put(&at("deep/a.png"), &encoded(deep, ImageFormat::Png));
    assert_eq!(train(&at("deep"), &Reading::default()).pixels[..8], [0, 30, 60, 90, 120, 150, 180, 210]);

    let mut palette = Vec::new();
    let mut encoder = png::Encoder::new(&mut palette, 8, 8);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::One);
    encoder.set_palette(vec![10, 20, 30, 40, 50, 60]);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[0b0101_0101; 8]).unwrap();
    writer.finish().unwrap();
    put(&at("palette/a.png"), &palette);
    assert_eq!(train(&at("palette"), &Reading::default()).pixels[..6], [10, 20, 30, 40, 50, 60]);

    let alpha = image::GrayAlphaImage::from_pixel(8, 8, LumaA([255, 51]));
    put(&at("alpha/a.png"), &encoded(alpha, ImageFormat::Png));
    assert_eq!(train(&at("alpha"), &Reading::default()).pixels[..4], [51; 4]);

    // A JPEG that EXIF says to be rotated by a quarter: 16 x 8 becomes 8 x 16, with the left half on top.
    let halves = GrayImage::from_fn(16, 8, |x, _| Luma([if x < 8 { 0 } else { 255 }]));
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, 100).encode_image(&halves).unwrap();
    let exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let length = (exif.len() as u16 + 2).to_be_bytes();
    let turned = [&jpeg[..2], &[0xff, 0xe1], &length, exif, &jpeg[2..]].concat();
    put(&at("turned/a.jpg"), &turned);
    let split = train(&at("turned"), &Reading::default());
    assert_eq!((split.shape.height, split.shape.width), (16, 8));
    assert!(split.pixels[..8].iter().all(|p| *p < 20) && split.pixels[15 * 8..].iter().all(|p| *p > 235));

    let mut gif = Vec::new();
    let frames = [40, 200].map(|v| Frame::new(RgbaImage::from_pixel(8, 8, Rgba([v, v, v, 255]))));
    GifEncoder::new(&mut gif).encode_frames(frames).unwrap();
    put(&at("moving/a.gif"), &gif);
    let set = read(&at("moving"), &Reading::default()).unwrap();
    assert_eq!(set.train.unwrap().pixels, [40; 64]);
    assert!(set.notes[0].contains("1 files are animations"), "{:?}", set.notes);
}

#[test]
fn damaged_files_are_errors_or_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    put(&at("good.png"), &encoded(grey(64, 1), ImageFormat::Png));
    let skip = Reading { skip_bad: true, ..Reading::default() };
    for (name, format) in [
        ("bad.png", ImageFormat::Png),
        ("bad.jpg", ImageFormat::Jpeg),
        ("bad.webp", ImageFormat::WebP),
        ("bad.bmp", ImageFormat::Bmp),
        ("bad.gif", ImageFormat::Gif),
    ] {
        let whole = match format {
            ImageFormat::Gif => encoded(DynamicImage::from(grey(64, 2)).to_rgba8(), format),
            _ => encoded(DynamicImage::from(grey(64, 2)).to_rgb8(), format),
        };
        for bytes in [0, 1, 7, 30, whole.len() / 2, whole.len() * 9 / 10] {
            put(&at(name), &whole[..bytes]);
            let text = error(dir.path(), &Reading::default());
            assert!(text.contains(name) && text.contains("--skip-bad"), "{bytes} bytes: {text}");
        }
        let set = read(dir.path(), &skip).unwrap();
        assert_eq!((set.skipped, set.train.unwrap().len()), (1, 1));
        assert!(set.notes.iter().any(|note| note.contains(name)), "{:?}", set.notes);
        fs::remove_file(at(name)).unwrap();
    }
    // A header that claims too many pixels is refused before memory is taken.
    let mut bomb = encoded(grey(64, 1), ImageFormat::Bmp);
    bomb[18..22].copy_from_slice(&60_000u32.to_le_bytes());
    bomb[22..26].copy_from_slice(&60_000u32.to_le_bytes());
    put(&at("bomb.bmp"), &bomb);
    assert!(error(dir.path(), &Reading::default()).contains("60000 x 60000"));
    fs::remove_file(at("bomb.bmp")).unwrap();
    fs::remove_file(at("good.png")).unwrap();
    put(&at("bad.png"), b"no image");
    assert!(error(dir.path(), &skip).contains("none of the 1 image files"));
}

#[test]
fn sizes_are_equal_or_made_equal() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    put(&at("a.png"), &encoded(grey(16, 0), ImageFormat::Png));
    put(
        &at("b.png"),
        &encoded(
            GrayImage::from_fn(40, 20, |x, _| Luma([(10..30).contains(&x) as u8 * 80])),
            ImageFormat::Png,
        ),
    );
    let text = error(dir.path(), &Reading::default());
    for word in ["a.png has 16 x 16", "b.png has 20 x 40", "--image-size"] {
        assert!(text.contains(word), "{text}");
    }
    let split = train(dir.path(), &sized(8));
    assert_eq!(split.shape.dims(), [8, 8]);
    // The mean of four pixels, and the middle of the wide image.
    let source = grey(16, 0);
    let mean = [(0, 0), (1, 0), (0, 1), (1, 1)]
        .map(|(x, y)| u32::from(source.get_pixel(x, y)[0]))
        .iter()
        .sum::<u32>();
    assert_eq!((u32::from(split.pixels[0]), split.image(1)), ((mean + 2) / 4, &[80; 64][..]));
    fs::remove_file(at("b.png")).unwrap();
    put(&at("a.png"), &encoded(GrayImage::new(300, 20), ImageFormat::Png));
    assert!(error(dir.path(), &Reading::default()).contains("--image-size"));
    assert_eq!(train(dir.path(), &sized(256)).len(), 1);
    for size in [7, 257] {
        let error = read(dir.path(), &sized(size)).unwrap_err();
        assert_eq!(kind(&error), Kind::Usage);
        assert!(error.to_string().contains("image_size"), "{error}");
    }
}

#[test]
fn links_are_followed_once() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    put(&at("set/a/1.png"), &encoded(grey(8, 0), ImageFormat::Png));
    symlink("..", at("set/a/up")).unwrap();
    symlink("1.png", at("set/a/2.png")).unwrap();
    symlink("missing", at("set/a/3.png")).unwrap();
    symlink("a", at("set/b")).unwrap();
    let set = read(&at("set"), &Reading::default()).unwrap();
    let labels = set.train.unwrap().labels.unwrap();
    assert_eq!(set.classes, ["a", "b"]);
    assert!(labels.contains(&0) && labels.contains(&1) && labels.len() < 20, "{labels:?}");
}

/// More images move none from one side to the other, and equal images are on one side.
#[test]
fn the_split_follows_content() {
    let dir = tempfile::tempdir().unwrap();
    let at = |i: u32| dir.path().join(format!("{:03}.png", i * 37 % 200));
    let reading = Reading { train_share: Some(0.7), ..Reading::default() };
    let images = |split: &Split| (0..split.len()).map(|i| split.image(i).to_vec()).collect::<Vec<_>>();
    let mut before: Option<[Vec<Vec<u8>>; 2]> = None;
    for n in [40, 120] {
        for i in 0..n {
            put(&at(i), &encoded(grey(8, i % 100), ImageFormat::Png));
        }
        let set = read(dir.path(), &reading).unwrap();
        let [train, test] = [set.train.unwrap(), set.test.unwrap()].map(|split| images(&split));
        assert_eq!(train.len() + test.len(), n as usize);
        assert!((0.5..0.9).contains(&(train.len() as f64 / f64::from(n))), "{}", train.len());
        assert!(test.iter().all(|image| !train.contains(image)));
        if let Some([old_train, old_test]) = before {
            assert!(old_train.iter().all(|image| train.contains(image)));
            assert!(old_test.iter().all(|image| test.contains(image)));
        }
        before = Some([train, test]);
    }
    // A colour image changes the channels of all images, and moves none.
    put(&dir.path().join("zz.png"), &encoded(rgb(8), ImageFormat::Png));
    let set = read(dir.path(), &reading).unwrap();
    let first_channel = |image: &Vec<u8>| image.iter().step_by(3).copied().collect::<Vec<u8>>();
    let train: Vec<Vec<u8>> = images(&set.train.unwrap()).iter().map(first_channel).collect();
    assert!(before.unwrap()[0].iter().all(|image| train.contains(image)));
    for share in [0.0, 1.0, f64::NAN] {
        let error =
            read(dir.path(), &Reading { train_share: Some(share), ..Reading::default() }).unwrap_err();
        assert_eq!(kind(&error), Kind::Usage);
    }
}

#[test]
fn decoded_images_are_kept_and_damage_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let (set, cache) = (dir.path().join("set"), dir.path().join("cache"));
    for i in 0..5 {
        put(&set.join(format!("{}/{i}.png", i % 2)), &encoded(grey(8, i), ImageFormat::Png));
    }
    let reading = Reading { cache: Some(cache.clone()), ..Reading::default() };
    let load = |expected: bool| {
        let mut calls = 0;
        let set = data::load_with(set.to_str().unwrap(), &reading, &mut |_, _| calls += 1).unwrap();
        assert_eq!((set.from_cache, calls == 0), (expected, expected));
        set.train.unwrap()
    };
    let first = load(false);
    let again = load(true);
    assert_eq!((&first.pixels, &first.labels), (&again.pixels, &again.labels));
    let files = || fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let [file] = &files()[..] else { panic!("{:?}", files()) };
    let whole = fs::read(file).unwrap();
    for damaged in [vec![], whole[..whole.len() / 2].to_vec(), {
        let mut bytes = whole.clone();
        bytes[whole.len() - 30] ^= 1;
        bytes
    }] {
        fs::write(file, damaged).unwrap();
        assert_eq!(load(false).pixels, first.pixels);
        assert_eq!(fs::read(file).unwrap(), whole);
    }
    // Other content under the same name is another entry.
    put(&set.join("0/0.png"), &encoded(grey(8, 77), ImageFormat::Png));
    assert_eq!(load(false).image(0), grey(8, 77).into_raw());
    assert_eq!(files().len(), 2);
}

fn npy(descr: &str, shape: &str, body: &[u8]) -> Vec<u8> {
    record(&header(descr, "False", shape), body)
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn arrays_of_every_shape() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npy");
    let levels: Vec<u8> = (0..2 * 12 * 10 * 3).map(|i| (i * 7 % 256) as u8).collect();
    let load = |bytes: &[u8], reading: &Reading| {
        put(&path, bytes);
        train(&path, reading)
    };
    let default = Reading::default();
    let split = load(&npy("|u1", "(2, 12, 10, 3)", &levels), &default);
    assert_eq!((split.shape.dims(), &split.pixels, split.values), (vec![12, 10, 3], &levels, Values::Levels));
    let planes: Vec<u8> = (0..2)
        .flat_map(|n| (0..3).flat_map(move |c| (0..120).map(move |i| n * 360 + i * 3 + c)))
        .map(|i| levels[i])
        .collect();
    assert_eq!(load(&npy("|u1", "(2, 3, 12, 10)", &planes), &default).pixels, levels);
    assert_eq!(load(&npy("|u1", "(6, 12, 10)", &levels), &default).shape.dims(), [12, 10]);
    let turned =
        load(&npy("|u1", "(6, 12, 10)", &levels), &Reading { transpose: true, ..Reading::default() });
    assert_eq!((turned.shape.dims(), turned.pixels[1]), (vec![10, 12], levels[10]));
    let flat: Vec<u8> = levels[..2 * 144].to_vec();
    assert_eq!(load(&npy("|u1", "(2, 144)", &flat), &default).shape.dims(), [12, 12]);
    // Opacity multiplies the colours.
    let clear = [200u8, 100, 50, 128].repeat(64);
    assert_eq!(load(&npy("|u1", "(1, 8, 8, 4)", &clear), &default).pixels[..4], [100, 50, 25, 128]);
    // Floats from 0 to 1, and whole numbers.
    let mut unit = [0.0f32, 1.0, 0.5, 0.2].repeat(16);
    assert_eq!(load(&npy("<f4", "(1, 8, 8)", &floats(&unit)), &default).pixels[..4], [0, 255, 128, 51]);
    let whole: Vec<f32> = flat[..64].iter().map(|v| f32::from(*v)).collect();
    assert_eq!(load(&npy("<f4", "(1, 8, 8)", &floats(&whole)), &default).pixels, flat[..64]);
    // 0 and 1, or 0 and 255, are bits.
    let bits: Vec<u8> = (0..64).map(|i| i % 2).collect();
    for (descr, factor) in [("|b1", 1), ("|u1", 1), ("|u1", 255)] {
        let body: Vec<u8> = bits.iter().map(|b| b * factor).collect();
        let split = load(&npy(descr, "(1, 8, 8)", &body), &default);
        assert_eq!((&split.pixels, split.values), (&bits, Values::Bits));
        let levels = load(
            &npy(descr, "(1, 8, 8)", &body),
            &Reading { values: Some(Values::Levels), ..Reading::default() },
        );
        assert_eq!((levels.pixels[1], levels.values), (255, Values::Levels));
    }
    // 28 x 28 grey arrays are read if levels are asked for.
    let reading = Reading { values: Some(Values::Levels), ..Reading::default() };
    let mnist: Vec<u8> = (0..784).map(|i| (i % 256) as u8).collect();
    assert_eq!(load(&npy("|u1", "(1, 784)", &mnist), &reading).pixels, mnist);
    assert_eq!(load(&npy("|u1", "(1, 28, 28)", &mnist), &sized(14)).shape.dims(), [14, 14]);
    for (value, words) in [(f32::NAN, "got NaN"), (1.5, "got 1.5"), (-0.1, "got -0.1")] {
        unit[20] = value;
        put(&path, &npy("<f4", "(1, 8, 8)", &floats(&unit)));
        let text = error(&path, &default);
        assert!(text.contains("a.npy: value 20 (index [0, 2, 4])") && text.contains(words), "{text}");
    }
    for shape in ["(1, 8, 8, 2)", "(1, 70)", "(64,)", "(1, 0, 8)"] {
        put(&path, &npy("|u1", shape, &[0; 70]));
        assert!(error(&path, &default).contains("expected the shape"), "{shape}");
    }
    put(&path, &npy("|u1", "(1, 4, 4)", &[9; 16]));
    assert!(error(&path, &default).contains("--image-size"));
    assert_eq!(train(&path, &sized(8)).pixels, [9; 64]);
}

#[test]
fn archives_and_idx_of_other_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let levels: Vec<u8> = (0..2 * 192).map(|i| (i % 256) as u8).collect();
    let arrays = [
        ("x_train", npy("|u1", "(2, 8, 8, 3)", &levels)),
        ("x_test", npy("|u1", "(1, 8, 8, 3)", &levels[..192])),
        ("y_train", npy("|u1", "(2,)", &[40, 7])),
    ];
    put(&path, &npz(&arrays, CompressionMethod::Deflated));
    let set = read(&path, &Reading::default()).unwrap();
    assert_eq!(set.split(Part::Train).unwrap().labels, Some(vec![40, 7]));
    assert_eq!(set.split(Part::Test).unwrap().pixels, levels[..192]);
    put(
        &path,
        &npz(
            &[arrays[0].clone(), ("x_test", npy("|u1", "(1, 9, 8, 3)", &levels[..216]))],
            CompressionMethod::Stored,
        ),
    );
    assert!(error(&path, &Reading::default()).contains("the test images 9 x 8 RGB"));

    let path = dir.path().join("train-images-idx3-ubyte");
    put(&path, &[&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 12, 0, 0, 0, 16][..], &levels].concat());
    let split = train(&path, &Reading::default());
    assert_eq!((split.shape.dims(), &split.pixels, split.values), (vec![12, 16], &levels, Values::Levels));
    let bits = train(&path, &Reading { values: Some(Values::Bits), ..Reading::default() });
    assert!(bits.values == Values::Bits && bits.pixels.iter().all(|p| *p <= 1));
}

#[test]
fn data_show_states_what_was_understood() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..40 {
        put(
            &dir.path().join(format!("set/{}/{i}.png", ["cat", "dog"][i % 2])),
            &encoded(grey(16, i as u32 % 39), ImageFormat::Png),
        );
    }
    put(&dir.path().join("set/dog/bad.png"), b"no image");
    let text = cli::fail(dir.path(), &["data", "show", "set"], 3);
    assert!(text.contains("bad.png") && text.contains("--skip-bad"), "{text}");
    let text = cli::fail(dir.path(), &["data", "show", "set", "--image-size", "4x8"], 2);
    assert!(text.contains("--image-size 4x8"), "{text}");
    let text = cli::succeed(dir.path(), &["data", "show", "set", "--skip-bad"]);
    for line in [
        "train      40 images",
        "16 x 16 grey",
        "levels, ",
        "cat: 20",
        "duplicates 1",
        "skipped    1 files",
        "data.png",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let sheet = image::open(dir.path().join("data.png")).unwrap();
    assert_eq!((sheet.width(), sheet.height()), (8 * 66 + 2, 4 * 66 + 2));
    let flags = [
        "data",
        "show",
        "set",
        "--skip-bad",
        "--split",
        "0.5",
        "--image-size",
        "8x12",
        "--out",
        "b.png",
        "--json",
    ];
    let json: serde_json::Value = serde_json::from_str(&cli::succeed(dir.path(), &flags)).unwrap();
    assert_eq!(json["train"].as_u64().unwrap() + json["test"].as_u64().unwrap(), 40);
    assert_eq!((json["height"].as_u64(), json["width"].as_u64()), (Some(8), Some(12)));
    assert_eq!((json["classes"][1]["name"].as_str(), json["skipped"].as_u64()), (Some("dog"), Some(1)));
    assert!(dir.path().join("b.png").exists());
}

#[test]
fn emoji_are_the_pictures_of_a_font() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("emoji.ttf");
    let picture = |i: u8| encoded(RgbaImage::from_pixel(64, 64, Rgba([200, i, 0, 51])), ImageFormat::Png);
    let mut pictures: Vec<Vec<u8>> = (0..50).map(|i| picture(i * 5)).collect();
    // A picture that another character has, and one that shows nothing.
    pictures.push(picture(0));
    pictures.push(encoded(RgbaImage::new(64, 64), ImageFormat::Png));
    put(&path, &font(&pictures));
    let split = data::emoji::draw(&path, &Reading::default()).unwrap();
    assert_eq!((split.len(), split.shape.dims(), split.labels.clone()), (50, vec![64, 64, 4], None));
    assert_eq!([&split.image(0)[..4], &split.image(5)[..4]], [[40, 0, 0, 51], [40, 5, 0, 51]]);
    assert_eq!(data::emoji::draw(&path, &sized(8)).unwrap().image(5), [40, 5, 0, 51].repeat(64));

    let show = |font: &Path| {
        let mut command = cli::vnca(dir.path(), &["data", "show", "emoji", "--json"]);
        command.env(data::emoji::VARIABLE, font).output().unwrap()
    };
    let json: serde_json::Value = serde_json::from_slice(&show(&path).stdout).unwrap();
    let [train, test] = ["train", "test"].map(|part| json[part].as_u64().unwrap());
    assert!(train + test == 50 && (1..20).contains(&test), "{json}");
    let output = show(&dir.path().join("none.ttf"));
    let text = cli::text(&output.stderr);
    assert!(output.status.code() == Some(3) && text.contains("VNCA_EMOJI_FONT"), "{text}");
    put(&path, b"no font");
    let error = format!("{:#}", data::emoji::draw(&path, &Reading::default()).unwrap_err());
    assert!(error.contains("emoji.ttf: no font"), "{error}");
    // Without bitmaps, and with a damaged table of them.
    let whole = font(&[picture(1)]);
    for tag in [b"CBDT", b"CBLC", b"cmap"] {
        let at = whole.windows(4).position(|bytes| bytes == tag).unwrap();
        let mut bytes = whole.clone();
        bytes[at] = b'X';
        put(&path, &bytes);
        let error = format!("{:#}", data::emoji::draw(&path, &Reading::default()).unwrap_err());
        assert!(error.contains("emoji.ttf: no pictures in PNG"), "{error}");
        bytes[at] = tag[0];
        bytes[at + 8] = 0xff;
        put(&path, &bytes);
        let error = format!("{:#}", data::emoji::draw(&path, &Reading::default()).unwrap_err());
        assert!(error.contains("emoji.ttf: no"), "{error}");
    }
    put(&path, &font(&[b"no image".to_vec()]));
    let error = format!("{:#}", data::emoji::draw(&path, &Reading::default()).unwrap_err());
    assert!(error.contains("U+1F600"), "{error}");
}
