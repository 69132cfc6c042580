//! The files of runs and of evaluations.

use std::fs;
use std::path::Path;

use vnca::cli::config::{TrainConfig, TrainOptions};
use vnca::cli::models::Kind;
use vnca::engine::array::Array;
use vnca::engine::runtime::Device;
use vnca::nn::weights;
use vnca::study::eval::Scores;
use vnca::study::eval::part::{self, Shard, Task};
use vnca::train::checkpoint::{Checkpoint, Meta};
use vnca::train::metrics::{Line, Metrics};

use super::Bench;
use super::records::{archive, npy_file};
use super::weights::{leaves, values};

pub fn meta() -> Meta {
    let model = serde_json::json!({"kind": "baseline", "latent": 8, "sizes": [1, null, 2.5]});
    Meta { version: 1, model, step: 7, data_key: [0, 1], data_crc: 9, best: Some(-90.5), unevaluated: None }
}

pub fn checkpoint_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let arrays = values().into_iter().map(|(leaf, array)| (leaf.name, array)).collect();
    vec![bench.written("seed.npz", |path| Checkpoint { meta: meta(), arrays }.save(path))]
}

pub fn read_checkpoint(bench: &Bench, bytes: &[u8]) {
    if let Ok(found) = Checkpoint::load(&bench.file("checkpoint.npz", bytes)) {
        let _ = weights::from_checkpoint(Path::new("checkpoint.npz"), &leaves(), found.arrays);
    }
}

pub fn meta_seeds(_: &Bench) -> Vec<Vec<u8>> {
    vec![serde_json::to_vec(&meta()).expect("a seed")]
}

/// The metadata alone, in an archive that is whole.
pub fn read_meta(bench: &Bench, bytes: &[u8]) {
    let entry = npy_file(&Array::new(&[bytes.len()], bytes));
    let _ = Checkpoint::load(&bench.file("meta.npz", &archive("meta.npy", &entry)));
}

pub fn metrics_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let line = |step| {
        let score = (step == 2).then_some(("test/iwelbo", -90.0));
        serde_json::to_string(&Line::new(step, 100.5, 1.0, score)).expect("a seed") + "\n"
    };
    let bytes = |steps: &[usize]| steps.iter().map(|step| line(*step)).collect::<String>().into_bytes();
    vec![[b"\x02".as_slice(), &bytes(&[1, 2, 3])].concat(), [b"\x01".as_slice(), &bytes(&[1])].concat()]
}

/// The first byte is the step that the run goes on from.
pub fn read_metrics(bench: &Bench, bytes: &[u8]) {
    let Some((step, bytes)) = bytes.split_first() else { return };
    let path = bench.file("metrics.jsonl", bytes);
    if Metrics::open(&bench.path(""), usize::from(*step)).is_ok() {
        assert!(fs::metadata(path).is_ok_and(|found| found.len() <= bytes.len() as u64));
    }
    let _ = fs::remove_dir_all(bench.path("tensorboard"));
}

pub fn toml_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let presets = [
        include_str!("../../../src/cli/presets/report-doubling.toml"),
        include_str!("../../../src/cli/presets/demo-nondoubling.toml"),
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
pub fn use_config(config: &TrainConfig) {
    if config.check_sizes(1000).is_ok() {
        let _ = config.run_options(10);
        let _ = config.model.vae().parameter_count();
        let _ = config.model.first_sides();
    }
    let _: anyhow::Result<Device> = config.device();
}

pub fn read_toml(bench: &Bench, bytes: &[u8]) {
    let Ok(options) = TrainOptions::from_toml(&bench.file("config.toml", bytes)) else { return };
    let Ok(preset) = options.from_preset() else { return };
    if let Ok(config) = TrainConfig::resolve(&options.over(&preset)) {
        use_config(&config);
    }
}

pub fn config_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let config = |kind: Kind| {
        let options = TrainOptions { model: Some(kind), ..TrainOptions::default() };
        let config = TrainConfig::resolve(&options).expect("a seed");
        serde_json::to_vec(&config).expect("a seed")
    };
    Kind::ALL.map(config).to_vec()
}

pub fn read_config(bench: &Bench, bytes: &[u8]) {
    bench.file("config.json", bytes);
    if let Ok(config) = TrainConfig::from_run(&bench.path("")) {
        // As verbs do that look at a run.
        let _ = (config.model.vae().parameter_count(), config.model.first_sides());
        use_config(&config);
        let _ = TrainConfig::resumed(&config, &TrainOptions::default());
    }
}

pub fn part_seeds(bench: &Bench) -> Vec<Vec<u8>> {
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

pub fn read_part(bench: &Bench, bytes: &[u8]) {
    let path = bench.file("part.json", bytes);
    let _ = part::merge(std::slice::from_ref(&path));
    let other = bench.file("other.json", bytes);
    let _ = part::merge(&[path, other]);
}
