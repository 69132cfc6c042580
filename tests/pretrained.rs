//! The weights that come with the program are whole, are what their cards say, and need no further option.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use cli::{data_folder, fail, succeed, text, vnca};
use tempfile::TempDir;
use vnca::cli::Cli;
use vnca::cli::pretrained::{folder, load, names};
use vnca::data::GLYPHS;

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
        let fetched = Cli::try_parse_from(["vnca", "data", "fetch", &card.data]).is_ok();
        assert!(card.data == GLYPHS || fetched, "{name}: the images {} have no source", card.data);
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
    for other in [&["--run", "x"][..], &["--weights", "x", "--model", "doubling"], &["--encoder-width", "8"]]
    {
        let error = fail(&here, &[&["sample", "--pretrained", "doubling"], other].concat(), 2);
        assert!(error.contains(other[0]), "{error}");
    }
}

/// The images of the weights do not come with the program. A folder with the data set's name in the current folder is not used.
#[test]
fn verbs_that_need_images_ask_for_them() {
    let place = TempDir::new().unwrap();
    fs::rename(data_folder(place.path()), place.path().join("binarized-mnist")).unwrap();
    for verb in [
        "eval",
        "reconstruct",
        "latents --out o",
        "tsne --out o",
        "probe --out o",
        "interpolate --from 0 --to 1",
    ] {
        let arguments: Vec<&str> = verb.split(' ').chain(["--pretrained", "doubling"]).collect();
        let error = fail(place.path(), &arguments, 3);
        assert!(
            error.contains("--data PATH") && error.contains("vnca data fetch binarized-mnist"),
            "{error}"
        );
    }
}

/// The options of the automaton and the precision replace those of the card. Weights leave the program as they came.
#[test]
fn options_override_the_card() {
    let place = TempDir::new().unwrap();
    let inspect = |source: &[&str]| {
        let out = succeed(place.path(), &[&["inspect", "--json"], source].concat());
        serde_json::from_str::<serde_json::Value>(&out).unwrap()["leaves"].clone()
    };
    succeed(place.path(), &["convert", "--pretrained", "doubling", "--out", "w.npz"]);
    let (pretrained, converted) =
        (["--pretrained", "doubling"], ["--weights", "w.npz", "--model", "doubling", "--latent", "256"]);
    assert_eq!(inspect(&pretrained), inspect(&converted));
    let more = ["--nca-steps", "1", "--doublings", "3", "--update-prob", "0.5", "--precision", "bf16"];
    let picture = ["sample", "--rows", "1", "--columns", "1", "--json"];
    let out = succeed(place.path(), &[&picture[..], &pretrained, &more].concat());
    let model = &serde_json::from_str::<serde_json::Value>(&out).unwrap()["model"];
    assert_eq!((&model["nca_steps"], &model["doublings"]), (&1.into(), &3.into()));
    assert_eq!((&model["update_prob"], &model["precision"]), (&0.5.into(), &"bf16".into()));
    // Without a run, pictures lie in the current folder.
    assert!(place.path().join("figures/sample.png").is_file());
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
    for (right, wrong) in
        [("latent = 256", "latent = 0"), ("\nsteps", "\nstepz"), ("start_side", "start_sid")]
    {
        fs::write(&card_file, card_text.replace(right, wrong)).unwrap();
        let (code, error) = sample();
        let key = wrong.split_whitespace().next().unwrap();
        assert!(code == Some(3) && error.contains("doubling.toml") && error.contains(key), "{error}");
    }
    fs::remove_file(&card_file).unwrap();
    let (code, error) = sample();
    assert!(code == Some(2) && error.contains("has none"), "{error}");
    let mut command = vnca(place.path(), &["inspect", "--pretrained", "doubling"]);
    let output = command.env("VNCA_PRETRAINED", place.path().join("nowhere")).output().unwrap();
    assert!(output.status.code() == Some(3) && text(&output.stderr).contains("VNCA_PRETRAINED"));
}
