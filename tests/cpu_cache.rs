//! A second start on the linked CPU loads the programs that the first one compiled, and computes the same bits.

#[path = "common/cli.rs"]
mod cli;

use std::fs;
use std::path::{Path, PathBuf};

/// A folder with images, in which small models are trained with a cache of their own.
struct Bench {
    folder: tempfile::TempDir,
    data: PathBuf,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let data = cli::data_folder(folder.path());
        Bench { folder, data }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// Returns the cached files in order.
    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(self.cache()).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        files
    }

    /// Trains in a new process with these environment variables. Returns the metrics, the weights and the log.
    fn train(&self, model: &str, variables: &[(&str, &Path)]) -> (Vec<u8>, Vec<u8>, String) {
        let out = self.folder.path().join("run");
        let _ = fs::remove_dir_all(&out);
        let more = format!("--model {model} --steps 3 --replicas 2 --eval-every 0");
        let mut command = cli::vnca(self.folder.path(), &cli::training(&self.data, &more));
        command.env("RUST_LOG", "vnca=info").envs(variables.iter().copied());
        let run = command.output().unwrap();
        let log = cli::text(&run.stderr);
        assert!(run.status.success(), "{log}");
        let read = |name: &str| fs::read(out.join(name)).unwrap();
        (read("metrics.jsonl"), read("checkpoints/step-00000003.npz"), log)
    }
}

fn count(log: &str, message: &str) -> usize {
    log.matches(message).count()
}

const LOADED: &str = "loaded the compiled";

#[test]
fn a_second_start_loads_the_programs_and_computes_the_same_bits() {
    for model in ["baseline", "doubling --nca-steps 2", "nondoubling --nca-steps 3 --pool-size 16"] {
        let bench = Bench::new();
        let cache = bench.cache();
        let variables = [("VNCA_COMPILATION_CACHE", cache.as_path())];
        let (uncached, uncached_weights, log) = bench.train(model, &[]);
        assert!(count(&log, LOADED) == 0 && !cache.exists(), "{log}");
        let (first, first_weights, log) = bench.train(model, &variables);
        let kept = bench.files();
        assert!(!kept.is_empty() && count(&log, LOADED) == 0 && count(&log, "is not cached") == 0, "{log}");
        let (second, second_weights, log) = bench.train(model, &variables);
        assert_eq!(count(&log, LOADED), kept.len(), "{model}: {log}");
        assert_eq!(bench.files(), kept);
        assert!(first == uncached && second == uncached, "{model}: other metrics");
        assert!(
            first_weights == uncached_weights && second_weights == uncached_weights,
            "{model}: other weights"
        );
    }
}

#[test]
fn a_damaged_file_is_compiled_again() {
    let bench = Bench::new();
    let cache = bench.cache();
    let train = || bench.train("baseline", &[("VNCA_COMPILATION_CACHE", cache.as_path())]);
    let (first, ..) = train();
    let kept = bench.files();
    for (i, file) in kept.iter().enumerate() {
        let mut bytes = fs::read(file).unwrap();
        match i % 3 {
            0 => bytes.truncate(bytes.len() / 2),
            1 => bytes.clear(),
            _ => bytes[50] ^= 1,
        }
        fs::write(file, bytes).unwrap();
    }
    let (second, _, log) = train();
    assert_eq!(count(&log, "is damaged"), kept.len(), "{log}");
    assert!(count(&log, LOADED) == 0 && first == second && bench.files() == kept, "{log}");
    // One program under the name of another.
    fs::copy(&kept[0], &kept[1]).unwrap();
    let (third, _, log) = train();
    assert_eq!((count(&log, "is damaged"), count(&log, LOADED)), (1, kept.len() - 1), "{log}");
    assert_eq!(first, third);
}

#[test]
fn other_flags_of_the_compiler_make_other_entries() {
    let bench = Bench::new();
    let cache = bench.cache();
    let train = |flags: &str| {
        let (.., log) = bench.train(
            "baseline",
            &[("VNCA_COMPILATION_CACHE", cache.as_path()), ("XLA_FLAGS", Path::new(flags))],
        );
        count(&log, LOADED)
    };
    assert_eq!(train(""), 0);
    let kept = bench.files();
    assert_eq!(train("--xla_backend_optimization_level=0"), 0);
    assert_eq!(bench.files().len(), 2 * kept.len());
    assert_eq!(train("--xla_backend_optimization_level=0"), kept.len());
    // XLA writes the files that a user asked for only when it compiles.
    let dump = bench.folder.path().join("dump");
    assert_eq!(train(&format!("--xla_dump_to={}", dump.display())), 0);
    assert!(dump.exists() && bench.files().len() == 2 * kept.len());
}

/// The suite has programs with every operation, with loops and with several replicas.
#[test]
fn loaded_programs_conform() {
    let bench = Bench::new();
    for start in ["first", "second"] {
        let mut command = cli::vnca(bench.folder.path(), &["conformance"]);
        command.env("RUST_LOG", "vnca=info").env("VNCA_COMPILATION_CACHE", bench.cache());
        let run = command.output().unwrap();
        let log = cli::text(&run.stderr);
        assert!(run.status.success() && count(&log, "is not cached") == 0, "{start}: {log}");
        assert!(start == "first" || count(&log, LOADED) >= bench.files().len(), "{log}");
    }
}
