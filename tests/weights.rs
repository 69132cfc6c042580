//! Every type of weight file preserves the values, a file of Equinox can be read, and errors name the problem of a file.

#[path = "common/cli.rs"]
mod cli;
#[path = "common/records.rs"]
mod records;

use std::path::{Path, PathBuf};

use records::{header, record};
use vnca::engine::array::Array;
use vnca::engine::npy;
use vnca::engine::random::Key;
use vnca::nn::params::{Leaf, Role, init, layer};
use vnca::nn::weights::{npz, read, write};
use zip::CompressionMethod;

/// Returns a model of two layers, small enough that its files can be built by hand.
fn leaves() -> Vec<Leaf> {
    let mut leaves = layer("encoder.conv0", Role::ConvWeight, &[3, 2, 2, 2], &[0]).to_vec();
    leaves.extend(layer("encoder.linear", Role::LinearWeight, &[5, 4], &[1]));
    leaves
}

fn values() -> Vec<Array> {
    init(&leaves(), Key::new(0))
}

#[test]
fn every_type_of_file_preserves_the_values() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["w.npz", "w.eqx", "w.safetensors"] {
        let path = folder.path().join(name);
        write(&path, &leaves(), &values()).unwrap();
        assert_eq!(read(&path, &leaves()).unwrap(), values(), "{name}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "a temporary file was left behind");
}

/// `tiny.eqx` was written by Equinox 0.13.8 for a module with these two layers, created with key 0, and two plain numbers.
#[test]
fn a_file_of_equinox_has_the_values_of_the_same_key_here() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/tiny.eqx");
    assert_eq!(read(&path, &leaves()).unwrap(), values());
    let folder = tempfile::tempdir().unwrap();
    let ours = folder.path().join("ours.eqx");
    write(&ours, &leaves(), &values()).unwrap();
    let (ours, theirs) = (std::fs::read(ours).unwrap(), std::fs::read(path).unwrap());
    assert!(theirs.starts_with(&ours), "Equinox writes other bytes for the same arrays");
}

/// Returns the records of the four leaves, with the one at `at` replaced.
fn eqx(at: usize, replaced: Vec<u8>) -> Vec<u8> {
    let mut records: Vec<Vec<u8>> = values().iter().map(npy_of).collect();
    records[at] = replaced;
    records.concat()
}

#[test]
fn any_byte_order_memory_order_and_width_of_floats_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.eqx");
    let weight = values()[2].clone();
    let floats = weight.to_vec::<f32>();
    let big: Vec<u8> = floats.iter().flat_map(|v| v.to_be_bytes()).collect();
    let columns = weight.transpose(&[1, 0]);
    let wide: Vec<u8> = floats.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
    for (what, replaced) in [
        ("big-endian", record(&header(">f4", "False", "(5, 4)"), &big)),
        ("Fortran order", record(&header("<f4", "True", "(5, 4)"), columns.bytes())),
        ("f8", record(&header("<f8", "False", "(5, 4)"), &wide)),
        ("Python 2's sizes", record(&header("<f4", "False", "(5L, 4L)"), weight.bytes())),
    ] {
        std::fs::write(&path, eqx(2, replaced)).unwrap();
        assert_eq!(read(&path, &leaves()).unwrap(), values(), "{what}");
    }
    // Half precision has fewer digits. The rounded values are read back exactly.
    let rounded: Vec<half::f16> = floats.iter().map(|v| half::f16::from_f32(*v)).collect();
    let narrow: Vec<u8> = rounded.iter().flat_map(|v| v.to_be_bytes()).collect();
    std::fs::write(&path, eqx(2, record(&header(">f2", "False", "(5, 4)"), &narrow))).unwrap();
    let expected: Vec<f32> = rounded.iter().map(|v| v.to_f32()).collect();
    assert_eq!(read(&path, &leaves()).unwrap()[2].to_vec::<f32>(), expected);
    let st = folder.path().join("w.safetensors");
    let half: Vec<u8> = [0x3C00u16, 0xBC00].iter().flat_map(|h| h.to_le_bytes()).collect();
    std::fs::write(
        &st,
        safetensors("{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}", &half),
    )
    .unwrap();
    let leaf = Leaf { name: "a".into(), shape: vec![2], ..leaves()[3].clone() };
    assert_eq!(read(&st, &[leaf]).unwrap()[0].to_vec::<f32>(), [1.0, -1.0]);
}

/// Returns an archive as `np.savez_compressed` writes it.
fn compressed(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    records::npz(entries, CompressionMethod::Deflated)
}

#[test]
fn a_compressed_npz_of_half_precision_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.npz");
    let names: Vec<String> = leaves().iter().map(|leaf| leaf.name.clone()).collect();
    let entries = |of: fn(&Array) -> Vec<u8>| -> Vec<(&str, Vec<u8>)> {
        names.iter().map(String::as_str).zip(values().iter().map(of)).collect()
    };
    std::fs::write(&path, compressed(&entries(npy_of))).unwrap();
    assert_eq!(read(&path, &leaves()).unwrap(), values());
    let halves =
        |array: &Array| array.to_vec::<f32>().into_iter().map(half::f16::from_f32).collect::<Vec<_>>();
    fn half_record(array: &Array) -> Vec<u8> {
        let bytes = array.to_vec::<f32>().into_iter().flat_map(|v| half::f16::from_f32(v).to_le_bytes());
        let dims: String = array.dims().iter().map(|n| format!("{n},")).collect();
        record(&header("<f2", "False", &format!("({dims})")), &bytes.collect::<Vec<_>>())
    }
    std::fs::write(&path, compressed(&entries(half_record))).unwrap();
    for (read, value) in read(&path, &leaves()).unwrap().iter().zip(values()) {
        let expected: Vec<f32> = halves(&value).into_iter().map(half::f16::to_f32).collect();
        assert_eq!(read.to_vec::<f32>(), expected);
    }
}

#[test]
fn a_small_file_that_unpacks_to_much_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.npz");
    let zeros = record(&header("<f4", "False", "(5000000,)"), &vec![0; 20_000_000]);
    std::fs::write(&path, compressed(&[("a", zeros.clone())])).unwrap();
    let error = format!("{:#}", read(&path, &leaves()).unwrap_err());
    assert!(error.contains("w.npz") && error.contains("np.savez, without compression"), "{error}");
    // The archive's directory may claim fewer bytes than an entry has.
    let mut bytes = compressed(&[("a", zeros.clone())]);
    let size = (zeros.len() as u32).to_le_bytes();
    for at in 0..bytes.len() - 4 {
        if bytes[at..].starts_with(&size) {
            bytes[at..at + 4].copy_from_slice(&1000u32.to_le_bytes());
        }
    }
    std::fs::write(&path, bytes).unwrap();
    let error = format!("{:#}", read(&path, &leaves()).unwrap_err());
    assert!(error.contains("w.npz") && error.contains("was changed"), "{error}");
}

/// `torch.compile` puts `_orig_mod.` before every name, and `DataParallel` puts `module.`.
#[test]
fn a_prefix_that_all_names_share_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["w.npz", "w.safetensors"] {
        let path = folder.path().join(file);
        for prefix in ["_orig_mod.", "module._orig_mod.", "encoder."] {
            let renamed = |leaf: &Leaf| Leaf { name: format!("{prefix}{}", leaf.name), ..leaf.clone() };
            let prefixed: Vec<Leaf> = leaves().iter().map(renamed).collect();
            write(&path, &prefixed, &values()).unwrap();
            assert_eq!(read(&path, &leaves()).unwrap(), values(), "{file} {prefix}");
            let mut mixed = prefixed.clone();
            mixed[1].name = leaves()[1].name.clone();
            write(&path, &mixed, &values()).unwrap();
            let error = format!("{:#}", read(&path, &leaves()).unwrap_err());
            assert!(error.contains(&format!("not of this model: {prefix}")), "{error}");
        }
    }
}

/// Equinox's documentation writes a module's settings as a line of JSON before the leaves.
#[test]
fn a_line_of_json_before_the_leaves_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.eqx");
    let records = eqx(2, npy_of(&values()[2]));
    std::fs::write(&path, [b"{\"size\": 8, \"name\": \"a {b}\"}\n", &records[..]].concat()).unwrap();
    assert_eq!(read(&path, &leaves()).unwrap(), values());
    for (line, word) in [("{size: 8}\n", "not JSON"), ("{\"size\": 8}", "no")] {
        std::fs::write(&path, [line.as_bytes(), &records].concat()).unwrap();
        let error = format!("{:#}", read(&path, &leaves()).unwrap_err());
        assert!(error.contains("w.eqx") && error.contains("first line") && error.contains(word), "{error}");
    }
}

fn npy_of(array: &Array) -> Vec<u8> {
    let mut bytes = Vec::new();
    npy::write(&mut bytes, array).unwrap();
    bytes
}

fn safetensors(header: &str, values: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), values].concat()
}

fn whole(folder: &Path, name: &str) -> Vec<u8> {
    let path = folder.join(name);
    write(&path, &leaves(), &values()).unwrap();
    std::fs::read(path).unwrap()
}

/// Returns an .npz file whose second entry has the name of the first.
fn twice_named(folder: &Path) -> Vec<u8> {
    let path = folder.join("twice.npz");
    let named = ["aa", "ab"].into_iter().zip(&values()[..2]).map(|(n, a)| (n, a.clone())).collect::<Vec<_>>();
    npz::write(&path, named.iter().map(|(n, a)| (*n, a))).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    for at in 0..bytes.len() - 6 {
        if bytes[at..].starts_with(b"ab.npy") {
            bytes[at + 1] = b'a';
        }
    }
    bytes
}

#[test]
fn the_error_for_a_malformed_file_names_the_problem() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let (npz, st) = (whole(at, "whole.npz"), whole(at, "whole.safetensors"));
    let bytes = |n: usize| vec![0u8; n];
    let f4 = |shape: &str| record(&header("<f4", "False", shape), &bytes(80));
    let entry = "\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\"";
    let mut changed = npz.clone();
    let value = changed.windows(4).position(|w| w == &values()[0].bytes()[..4]).unwrap();
    changed[value] ^= 1;
    let (absurd, deep) = ("(9999999999, 9999999999)", format!("{}(1)", "(".repeat(5000)));
    let cases: Vec<(&str, &str, Vec<u8>, &str)> = vec![
        ("empty eqx", "a.eqx", vec![], "missing encoder.conv0.weight [3, 2, 2, 2]"),
        ("no eqx", "a.eqx", b"hello".to_vec(), "record 0 at byte 0"),
        ("cut in the values", "a.eqx", eqx(3, f4("(5, 4)")[..90].to_vec()), "bytes are left"),
        ("cut in the header", "a.eqx", eqx(3, f4("(5, 4)")[..20].to_vec()), "ends in its header"),
        ("absurd shape", "a.eqx", eqx(2, f4(absurd)), "9999999999"),
        ("more than there is", "a.eqx", eqx(3, f4("(500000000,)")), "500000000"),
        ("negative shape", "a.eqx", eqx(2, f4("(-5, 4)")), "integers as shape"),
        ("nested shape", "a.eqx", eqx(2, f4(&deep)), "integers as shape"),
        ("no shape", "a.eqx", eqx(2, record("{'descr': '<f4'}", &[])), "fortran_order"),
        ("complex", "a.eqx", eqx(2, record(&header("<c8", "False", "(5, 4)"), &bytes(160))), "<c8"),
        ("text", "a.eqx", eqx(2, record(&header("<U1", "False", "(5, 4)"), &bytes(80))), "<U1"),
        ("objects", "a.eqx", eqx(2, record(&header("|O", "False", "(5, 4)"), &bytes(80))), "|O"),
        (
            "integers",
            "a.eqx",
            eqx(2, record(&header("<i4", "False", "(5, 4)"), &bytes(80))),
            "expected f32[5, 4]",
        ),
        ("long integers", "a.eqx", eqx(2, record(&header("<i8", "False", "(5, 4)"), &bytes(160))), "got i8"),
        (
            "transposed",
            "a.eqx",
            eqx(2, f4("(4, 5)")),
            "encoder.linear.weight: expected f32[5, 4], got f32[4,5]",
        ),
        ("trailing bytes", "a.eqx", [eqx(2, f4("(5, 4)")), bytes(7)].concat(), "record 4 at byte"),
        (
            "one record too many",
            "a.eqx",
            [eqx(2, f4("(5, 4)")), f4("(5, 4)")].concat(),
            "not of this model: record 4",
        ),
        ("one record too few", "a.eqx", eqx(3, vec![]), "missing encoder.linear.bias [5]"),
        ("version 9", "a.eqx", eqx(0, b"\x93NUMPY\x09\x00\x01\x00 ".to_vec()), "version"),
        ("cut npz", "a.npz", npz[..npz.len() / 2].to_vec(), "a.npz"),
        ("changed npz", "a.npz", changed, "encoder.conv0.weight"),
        ("empty npz", "a.npz", vec![], "a.npz"),
        ("two of one name", "a.npz", twice_named(at), "same name"),
        ("empty safetensors", "a.safetensors", vec![], "not a safetensors file"),
        ("cut safetensors", "a.safetensors", st[..st.len() - 1].to_vec(), "not a safetensors file"),
        ("trailing safetensors", "a.safetensors", [st, bytes(1)].concat(), "not a safetensors file"),
        ("absurd header", "a.safetensors", u64::MAX.to_le_bytes().to_vec(), "not a safetensors file"),
        (
            "long header",
            "a.safetensors",
            [&(1u64 << 26).to_le_bytes()[..], b"{}"].concat(),
            "not a safetensors file",
        ),
        (
            "two of one name",
            "a.safetensors",
            safetensors(&format!("{{\"a\":{{{entry}:[0,4]}},\"a\":{{{entry}:[0,4]}}}}"), &bytes(4)),
            "a occurs twice",
        ),
        (
            "integers",
            "a.safetensors",
            safetensors("{\"a\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[0,4]}}", &bytes(4)),
            "a: expected elements of F32",
        ),
        (
            "absurd shape",
            "a.safetensors",
            safetensors(
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[9999999999,9999999999],\"data_offsets\":[0,4]}}",
                &bytes(4),
            ),
            "not a safetensors file",
        ),
        ("PyTorch", "a.pt", npz, "safetensors.torch.save_file"),
        ("unknown", "a.doc", vec![], ".npz, .eqx, .safetensors"),
    ];
    for (what, name, bytes, word) in cases {
        let path: PathBuf = at.join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = match read(&path, &leaves()) {
            Ok(_) => panic!("{what}: {name} was read"),
            Err(error) => format!("{error:#}"),
        };
        assert!(error.contains(word) && error.contains(name), "{what}: {word} is not in: {error}");
    }
}

#[test]
fn the_command_line_converts_a_model_between_all_types_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let model = ["--model", "nondoubling", "--latent", "4"];
    let run = |more: &[&str]| cli::succeed(at, &[more, &model].concat());
    run(&["convert", "--seed", "7", "--out", "a.eqx"]);
    run(&["convert", "--weights", "a.eqx", "--out", "b.safetensors"]);
    let line = run(&["convert", "--weights", "b.safetensors", "--out", "c.npz", "--json"]);
    assert!(line.contains("\"leaves\":16"), "{line}");
    let expected = run(&["inspect", "--seed", "7", "--json"]);
    for name in ["a.eqx", "b.safetensors", "c.npz"] {
        assert_eq!(run(&["inspect", "--weights", name, "--json"]), expected, "{name}");
    }
    let error = cli::fail(at, &[&["convert", "--out", "d.pickle"], &model[..]].concat(), 2);
    assert!(error.contains("d.pickle") && error.contains(".eqx"), "{error}");
}
