//! Several processes train and evaluate as one: the same numbers, one run folder, and one end for all of them.

#[path = "common/cli.rs"]
mod cli;
#[path = "common/goldens.rs"]
mod goldens;
#[path = "common/plugin.rs"]
mod plugin;
#[path = "common/started.rs"]
mod started;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use goldens::{assert_run_equals, golden};
use started::Started;
use vnca::engine::random::Key;

/// A small automaton with a pool, whose entries the replicas exchange.
const MODEL: &str = "--model nondoubling --latent 4 --encoder-width 2 --batch-size 16 --pool-size 16 --start-side 4 \
                     --nca-steps-min 2 --nca-steps-max 3 --damage 0.25 --chunk 5 --checkpoint-every 5 --eval-every 5 \
                     --eval-images 8 --eval-samples 2 --data ../images";

/// Processes that run a command together, each in a folder of its own.
struct Together {
    folder: PathBuf,
    /// The device that each process opens.
    device: String,
    devices: usize,
    count: usize,
}

impl Together {
    /// Starts all processes with the same words, in which a process may replace some.
    fn start(&self, words: &str, replace: impl Fn(usize) -> Option<(&'static str, &'static str)>) -> Started {
        let coordinator = format!("127.0.0.1:{}", free_port());
        let start = |index: usize| {
            let own = self.own(index);
            fs::create_dir_all(&own).unwrap();
            let words = format!(
                "{words} --device {} --coordinator {coordinator} --processes {} --process {index}",
                self.device, self.count
            );
            let words = replace(index).map_or(words.clone(), |(from, to)| words.replace(from, to));
            let output = |name: &str| Stdio::from(fs::File::create(own.join(name)).unwrap());
            cli::vnca(&own, &words.split_whitespace().collect::<Vec<_>>())
                .env("VNCA_COMPILATION_CACHE", self.folder.join("cache"))
                .stdout(output("stdout"))
                .stderr(output("stderr"))
                .spawn()
                .unwrap()
        };
        Started((0..self.count).map(start).collect())
    }

    /// Returns the folder of a process.
    fn own(&self, index: usize) -> PathBuf {
        self.folder.join(index.to_string())
    }

    fn printed(&self, index: usize, name: &str) -> String {
        fs::read_to_string(self.own(index).join(name)).unwrap()
    }

    /// Waits until all processes have ended. Returns their exit codes, `None` for a signal.
    fn wait(&self, started: Started) -> Vec<Option<i32>> {
        let ended = started.wait(|_| (), || self.printed(0, "stderr"));
        ended.into_iter().map(|status| status.code()).collect()
    }

    fn run(&self, words: &str, code: i32) {
        let codes = self.wait(self.start(words, |_| None));
        let errors: Vec<String> = (0..self.count).map(|i| self.printed(i, "stderr")).collect();
        assert_eq!(codes, vec![Some(code); self.count], "{words}: {}", errors.join("\n"));
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Returns `count` processes with this number of devices each, beside a folder with images; `None` without the plugin that they
/// need.
fn together(root: &Path, devices: usize, count: usize) -> Option<Together> {
    let device = plugin::of_processes(devices)?;
    let folder = root.join(format!("{count}x{devices}"));
    fs::create_dir(&folder).unwrap();
    cli::data_folder(&folder);
    Some(Together { folder, device, devices, count })
}

/// Compares the losses and evaluations of two runs: sums over images differ in their order.
fn assert_similar(one: &Path, other: &Path) {
    let [one, other] = [one, other].map(cli::metrics);
    assert_eq!(one.len(), other.len());
    for (a, b) in one.iter().zip(&other) {
        for name in ["loss", "grad_norm", "test_iwelbo"] {
            let [a, b] = [a, b].map(|line| line[name].as_f64());
            let close = a.zip(b).map(|(a, b)| (a - b).abs() <= 1e-4 * a.abs());
            assert!(a.is_some() == b.is_some() && close != Some(false), "{name}: {a:?} and {b:?}");
        }
    }
}

/// Returns the files below a folder, without the run's events, which have times.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("tensorboard") {
            found.extend(files(&path));
        } else if path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn assert_same_files(one: &Path, other: &Path) {
    let names = |folder: &Path| -> Vec<PathBuf> {
        files(folder).iter().map(|path| path.strip_prefix(folder).unwrap().to_owned()).collect()
    };
    assert_eq!(names(one), names(other));
    for name in names(one).into_iter().filter(|name| !name.ends_with("config.json")) {
        assert!(
            fs::read(one.join(&name)).unwrap() == fs::read(other.join(&name)).unwrap(),
            "{name:?} differs"
        );
    }
}

#[test]
fn two_processes_equal_jax() {
    let folder = tempfile::tempdir().unwrap();
    let Some(two) = together(folder.path(), 1, 2) else { return };
    cli::write_npy(&two.folder.join("x.npy"), Key::new(900), &[256, 1, 28, 28]);
    let pool =
        "--model nondoubling --pool-size 64 --nca-steps 6 --nca-steps-min 4 --nca-steps-max 8 --pool-shuffle";
    for (model, order, norm, entry) in [
        ("--model baseline", "after", "0.05", "baseline.adam_then_clip"),
        ("--model doubling --nca-steps 2", "before", "50", "doubling.clip_then_adam"),
        (&format!("{pool} global"), "before", "50", "nondoubling.global.clip_then_adam"),
        (&format!("{pool} replica"), "before", "50", "nondoubling.replica.clip_then_adam"),
        (&format!("{pool} local"), "before", "50", "nondoubling.local.clip_then_adam"),
        (&format!("{pool} exchange"), "before", "50", "nondoubling.global.clip_then_adam"),
    ] {
        let run = two.own(0).join("run");
        let _ = fs::remove_dir_all(&run);
        two.run(
            &format!(
                "train --latent 16 --data ../x.npy --out run --batch-size 16 --chunk 16 --steps 16 --clip-order {order} \
                 --clip-norm {norm} {model}"
            ),
            0,
        );
        // Adam's updates from gradients near zero depend on the order of sums, and NCA steps amplify the difference.
        let (tolerance, slack) = if entry.starts_with("non") { (1e-3, 5e-4) } else { (1e-4, 2e-6) };
        assert_run_equals(&run, &golden(entry), tolerance, slack);
        // The other process has written nothing.
        assert!(!two.own(1).join("run").exists());
    }
}

#[test]
fn processes_and_devices_may_be_any_and_evaluations_are_equal_bit_by_bit() {
    let root = tempfile::tempdir().unwrap();
    let groups = [(4, 1), (2, 2), (2, 4)].map(|(devices, count)| together(root.path(), devices, count));
    let [Some(one), Some(two), Some(four)] = groups else { return };
    for group in [&one, &two, &four] {
        let replicas = if group.count == 1 { " --replicas 4" } else { "" };
        group.run(&format!("train {MODEL} --steps 10 --out run{replicas}"), 0);
        let summary = group.printed(0, "stderr");
        assert!(summary.contains(&format!("{} replica(s)", group.devices * group.count)), "{summary}");
    }
    let run = two.own(0).join("run");
    assert_similar(&one.own(0).join("run"), &run);
    // The same weights are evaluated, wherever the images are.
    let source = run.display();
    let evaluate = format!("eval --run {source} --samples 3 --json --replicas 4 --out scores.json");
    let latents =
        format!("latents --run {source} --states --replicas 4 --out latents --data {source}/../../images");
    for group in [&one, &two] {
        group.run(&evaluate, 0);
        group.run(&latents, 0);
    }
    let scores = |group: &Together| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(group.own(0).join("scores.json")).unwrap()).unwrap()
    };
    assert_eq!(scores(&one)["scores"], scores(&two)["scores"]);
    assert_same_files(&one.own(0).join("latents"), &two.own(0).join("latents"));
    assert_eq!(two.printed(1, "stdout"), "");
    // The run goes on with other numbers of processes, without a file system that they share.
    fs::rename(&run, four.own(0).join("resumed")).unwrap();
    four.run("train --resume --steps 15 --out resumed", 0);
    assert_eq!(cli::metrics(&four.own(0).join("resumed")).len(), 15);
    assert!(four.printed(0, "stderr").contains("8 replica(s) of 4 processes"));
    fs::rename(four.own(0).join("resumed"), one.own(0).join("resumed")).unwrap();
    one.run("train --resume --steps 20 --replicas 2 --out resumed", 0);
    assert_eq!(cli::metrics(&one.own(0).join("resumed")).len(), 20);
}

#[test]
fn an_end_of_one_process_is_the_end_of_all_and_nothing_is_lost() {
    let root = tempfile::tempdir().unwrap();
    let Some(two) = together(root.path(), 1, 2) else { return };
    two.run(&format!("train {MODEL} --steps 60 --out whole"), 0);
    let run = two.own(0).join("run");
    let mut words = format!("train {MODEL} --steps 60 --out run");
    for (signal, victim, codes) in [
        ("-TERM", 1, [Some(143), Some(143)]),
        ("-KILL", 1, [Some(6), None]),
        ("-USR1", 0, [Some(138), Some(138)]),
        ("-KILL", 0, [None, Some(6)]),
    ] {
        let mut started = two.start(&words, |_| None);
        let done = if run.join("metrics.jsonl").exists() { cli::metrics(&run).len() } else { 0 };
        cli::wait_for_step(&mut started.0[0], &run, done + 6);
        cli::signal(&started.0[victim], signal);
        let begin = Instant::now();
        assert_eq!(two.wait(started), codes, "{signal}: {}", two.printed(1 - victim, "stderr"));
        assert!(begin.elapsed() < Duration::from_secs(60), "{signal}: {:?}", begin.elapsed());
        if signal == "-KILL" {
            let said = two.printed(1 - victim, "stderr");
            assert!(said.contains(&format!("process {victim} has died or hangs")), "{said}");
        }
        words = "train --resume --out run".into();
    }
    two.run(&words, 0);
    assert_same_files(&two.own(0).join("whole"), &run);
}

#[test]
fn an_error_of_process_0_ends_all_with_its_code_after_the_state_is_saved() {
    let root = tempfile::tempdir().unwrap();
    let Some(two) = together(root.path(), 1, 2) else { return };
    let rarely = MODEL.replace("--checkpoint-every 5", "--checkpoint-every 99999");
    let mut started = two.start(&format!("train {rarely} --steps 100000 --out run"), |_| None);
    let run = two.own(0).join("run");
    cli::wait_for_step(&mut started.0[0], &run, 6);
    // From now on no picture can be written.
    fs::remove_dir_all(run.join("pictures")).unwrap();
    fs::write(run.join("pictures"), "").unwrap();
    assert_eq!(two.wait(started), [Some(1), Some(1)]);
    for index in 0..2 {
        let said = two.printed(index, "stderr");
        assert!(said.contains("pictures") && said.contains("its state is saved"), "{said}");
    }
    fs::remove_file(run.join("pictures")).unwrap();
    let done = cli::metrics(&run).len();
    two.run(&format!("train --resume --out run --steps {}", done + 10), 0);
    assert_eq!(cli::metrics(&run).len(), done + 10);
}

#[test]
fn a_mistake_on_one_process_ends_all_and_names_it() {
    let root = tempfile::tempdir().unwrap();
    let Some(two) = together(root.path(), 1, 2) else { return };
    let other = two.folder.join("other");
    fs::create_dir(&other).unwrap();
    for part in ["train.npy", "test.npy"] {
        cli::write_npy(&other.join(part), Key::new(1), &[64, 28, 28]);
    }
    let words = format!("train {MODEL} --steps 10 --out run --join-timeout 20");
    let differ = "process 1 does not agree with process 0 on the";
    for (from, to, code, problem) in [
        ("--steps 10", "--steps 10 --learning-rate 0.5", 2, format!("{differ} options: line")),
        ("--steps 10", "--steps 10 --resume", 2, format!("{differ} command")),
        ("../images", "../other", 2, format!("{differ} images")),
        ("../images", "../none", 3, "../none".into()),
        (
            "--processes 2",
            "--processes 3",
            1,
            "process 1 was started for 3 processes, process 0 for 2".into(),
        ),
        ("--process 1", "--process 0", 1, "cannot listen at".into()),
        ("--steps 10", "--config missing.toml", 2, "missing.toml".into()),
    ] {
        let begin = Instant::now();
        let codes = two.wait(two.start(&words, |index| (index == 1).then_some((from, to))));
        assert!(begin.elapsed() < Duration::from_secs(30), "{to}: {:?}", begin.elapsed());
        let said: Vec<String> = (0..2).map(|index| two.printed(index, "stderr")).collect();
        assert!(codes.iter().all(|code| code.is_some_and(|code| code > 0)), "{to}: {codes:?}\n{said:?}");
        assert!(codes.contains(&Some(code)), "{to}: {codes:?}\n{said:?}");
        let everywhere = to != "--process 0";
        let named = said.iter().filter(|said| said.contains(&problem)).count();
        assert_eq!(named, if everywhere { 2 } else { 1 }, "{to}: {said:?}");
        assert!(!two.own(0).join("run").exists() && !two.own(1).join("run").exists(), "{to}");
    }
    // Nobody is there, or somebody else.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for (index, problem) in [(0, "cannot listen at"), (1, "is process 0 running")] {
        let place =
            format!("--join-timeout 2 --coordinator 127.0.0.1:{port} --processes 2 --process {index}");
        let words = words.replace("--join-timeout 20", &place);
        let said = cli::fail(&two.own(0), &words.split_whitespace().collect::<Vec<_>>(), 1);
        assert!(said.contains(problem), "{said}");
    }
}

/// Answers a few requests for the attributes of a machine.
fn metadata_server(attributes: &'static [(&'static str, &'static str)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = String::new();
            for line in BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok) {
                if line.is_empty() {
                    break;
                }
                request += &(line + "\n");
            }
            let asked =
                |name: &str| request.contains(&format!("/computeMetadata/v1/instance/attributes/{name} "));
            let found = attributes.iter().find(|(name, _)| asked(name));
            let (status, text) = match found {
                Some((_, value)) if request.to_lowercase().contains("metadata-flavor: google") => {
                    ("200 OK", *value)
                }
                _ => ("404 Not Found", "none"),
            };
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                text.len()
            );
        }
    });
    address
}

#[test]
fn the_environment_tells_the_place_of_a_process() {
    let root = tempfile::tempdir().unwrap();
    let pod = metadata_server(&[
        ("agent-worker-number", "1"),
        ("worker-network-endpoints", "unused:unused:127.0.0.1,unused:unused:127.0.0.2"),
    ]);
    let slurm = [
        ("SLURM_JOB_ID", "7"),
        ("SLURM_NTASKS", "4"),
        ("SLURM_PROCID", "3"),
        ("SLURM_STEP_NODELIST", "127.0.0.1"),
    ];
    for (device, variables, expected) in [
        (
            "tpu",
            &[("GCE_METADATA_HOST", pod.as_str())][..],
            "process 1 of 2 (a TPU host (agent-worker-number=1))",
        ),
        ("cuda", &slurm, "process 3 of 4 (Slurm"),
    ] {
        let words = ["train", "--device", device, "--join-timeout", "1"];
        let ended = cli::vnca(root.path(), &words).envs(variables.iter().copied()).output().unwrap();
        let said = cli::text(&ended.stderr);
        assert!(ended.status.code() == Some(1) && said.contains(expected), "{device}: {said}");
        assert!(said.contains("no coordinator at 127.0.0.1:"), "{said}");
    }
    // A sweep of runs on CPUs, each alone.
    let source = cli::weights(root.path(), vnca::cli::models::Kind::Baseline, 8);
    let words =
        [&["eval", "--limit", "2", "--samples", "1", "--data", "glyphs"].map(String::from)[..], &source]
            .concat();
    let ended = cli::vnca(root.path(), &words).envs(slurm).output().unwrap();
    assert!(ended.status.success(), "{}", cli::text(&ended.stderr));
}
