//! The weights that come with the program are whole, are what their cards say, and need no further option.

use std::fs;
use std::path::{Path, PathBuf};

use cli::{fail, succeed, text, vnca};
use tempfile::TempDir;
use vnca::cli::pretrained::{folder, load, names};

#[path = "common/cli.rs"]
mod cli;

fn size(path: &Path) -> u64 {
    let metadata = fs::metadata(path).unwrap();
    if metadata.is_file() {
        return metadata.len();
    }
    fs::read_dir(path).unwrap().map(|entry| size(&entry.unwrap().path())).sum()
}

#[test]
fn all_weights_are_whole_and_small() {
    let folder = folder().unwrap();
    let names = names(&folder).unwrap();
    assert!(names.iter().any(|name| name == "doubling"), "{names:?}");
    for name in &names {
        let (card, arrays) = load(&folder, name).unwrap();
        assert_eq!(arrays.len(), card.model.vae().leaves().len(), "{name}");
        assert!(card.iwelbo.mean < 0.0 && card.iwelbo.stderr > 0.0, "{name}");
    }
    let data = size(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data"));
    assert!(data <= 16_000_000, "data/ has {data} bytes");
}

#[test]
fn samples_are_digits_without_training() {
    let folder = TempDir::new().unwrap();
    let out = succeed(
        folder.path(),
        &["sample", "--pretrained", "doubling", "--rows", "1", "--columns", "4", "--out", "s", "--json"],
    );
    let numbers: serde_json::Value = serde_json::from_str(&out).unwrap();
    // Of MNIST's pixels in the 32 x 32 frame, 10 % are ink; a model without training gives gray, 710 nats of entropy.
    let [ink, entropy] = ["mean_value", "mean_entropy_nats"].map(|name| numbers[name].as_f64().unwrap());
    assert!((0.05..0.16).contains(&ink), "{ink}");
    assert!((20.0..130.0).contains(&entropy), "{entropy}");
    assert_eq!(numbers["model"]["latent"], 256);
}

/// Half the height and width of the grid is cut; the digits are back within some steps, and still there after 500.
#[test]
fn the_nondoubling_model_heals() {
    let folder = TempDir::new().unwrap();
    let words = "recover --pretrained nondoubling --samples 16 --sizes 16 --steps 500 --out healed";
    succeed(folder.path(), &words.split(' ').collect::<Vec<_>>());
    let table = fs::read_to_string(folder.path().join("healed/recover.csv")).unwrap();
    let overlap = |damages: &str, step: &str| -> f64 {
        let mut rows = table.lines().map(|line| line.split(',').collect::<Vec<_>>());
        rows.find(|row| row[1] == damages && row[2] == step).expect("a row")[3].parse().unwrap()
    };
    let [cut, healed, later] = ["0", "32", "500"].map(|step| overlap("1", step));
    assert!(cut < 0.6 && healed > 0.82 && later > 0.8, "{cut}, {healed}, {later}");
}

#[test]
fn the_card_is_shown() {
    let out = succeed(&std::env::temp_dir(), &["inspect", "--pretrained", "doubling"]);
    assert!(out.contains("-86.03 ± 0.22 nats") && out.contains("CC BY-SA"), "{out}");
}

#[test]
fn mistakes_are_named() {
    let here = std::env::temp_dir();
    let error = fail(&here, &["sample", "--pretrained", "doublin"], 2);
    assert!(error.contains("--pretrained doublin") && error.contains("doubling"), "{error}");
    let error = fail(&here, &["sample", "--pretrained", "doubling", "--latent", "3"], 2);
    assert!(error.contains("--latent"), "{error}");
    // The images of the weights are not those that come with the program.
    let error = fail(&here, &["eval", "--pretrained", "doubling", "--limit", "1"], 3);
    assert!(error.contains("--data PATH") && error.contains("binarized-mnist"), "{error}");
}

/// Copies the pretrained weights of a name to a folder.
fn copied(name: &str, to: &Path) -> [PathBuf; 2] {
    ["toml", "safetensors"].map(|ending| {
        let file = format!("{name}.{ending}");
        let copy = to.join(&file);
        fs::copy(folder().unwrap().join(&file), &copy).unwrap();
        copy
    })
}

#[test]
fn damaged_weights_and_cards_are_refused() {
    let place = TempDir::new().unwrap();
    let [card_file, weights] = copied("doubling", place.path());
    let sample = || {
        let mut command = vnca(place.path(), &["inspect", "--pretrained", "doubling"]);
        let output = command.env("VNCA_PRETRAINED", place.path()).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    assert_eq!(sample().0, Some(0));
    let mut bytes = fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let (code, error) = sample();
    assert!(code == Some(3) && error.contains("doubling.safetensors") && error.contains("sha256"), "{error}");
    let card_text = fs::read_to_string(&card_file).unwrap();
    for wrong in [card_text.replace("latent = 256", "latent = 0"), card_text.replace("steps", "stepz")] {
        fs::write(&card_file, wrong).unwrap();
        let (code, error) = sample();
        assert!(code == Some(3) && error.contains("doubling.toml"), "{error}");
    }
    fs::remove_file(&card_file).unwrap();
    assert_eq!(sample().0, Some(2));
    let mut command = vnca(place.path(), &["inspect", "--pretrained", "doubling"]);
    let output = command.env("VNCA_PRETRAINED", place.path().join("nowhere")).output().unwrap();
    assert!(output.status.code() == Some(3) && text(&output.stderr).contains("VNCA_PRETRAINED"));
}
