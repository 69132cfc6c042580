//! A mesh of several processes computes what one process with as many devices computes. The processes are copies of this test
//! program, and meet in a folder.

#[path = "common/plugin.rs"]
mod plugin;
#[path = "common/started.rs"]
mod started;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use sha2::{Digest, Sha256};
use started::Started;
use vnca::engine::array::Array;
use vnca::engine::compile::compile;
use vnca::engine::conformance;
use vnca::engine::ir::{Function, Graph};
use vnca::engine::key_values::{KeyError, KeyValues};
use vnca::engine::program::{Format, InputSpec, OutputSpec, Program, Signature, Target};
use vnca::engine::runtime::{Arg, Cache, Mesh, Processes};
use vnca::engine::shape::Shape;

/// Names the case, this process's number, the number of processes and the folder.
const VARIABLE: &str = "VNCA_TEST_PROCESS";
/// The number of devices of each process.
const DEVICES: usize = 2;

/// A store that keeps each value in a file.
struct Files(PathBuf);

impl Files {
    fn path(&self, key: &str) -> PathBuf {
        let name: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.0.join(name)
    }
}

impl KeyValues for Files {
    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, KeyError> {
        let start = Instant::now();
        loop {
            match self.try_get(key) {
                Ok(value) => return Ok(value),
                Err(_) if start.elapsed() > timeout => return Err(KeyError::DeadlineExceeded(key.into())),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn try_get(&self, key: &str) -> Result<Vec<u8>, KeyError> {
        fs::read(self.path(key)).map_err(|_| KeyError::NotFound(key.into()))
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<(), KeyError> {
        // A link appears with all of its content, and is not made where there is one.
        let draft = tempfile::NamedTempFile::new_in(&self.0).unwrap();
        fs::write(draft.path(), value).unwrap();
        fs::hard_link(draft.path(), self.path(key)).map_err(|_| KeyError::AlreadyExists(key.into()))
    }
}

/// Runs a case in as many processes, and waits until all have succeeded. A failure contains what they printed.
fn start(case: &str, count: usize, folder: &Path) {
    let store = folder.join("store");
    let _ = fs::remove_dir_all(&store);
    fs::create_dir(&store).unwrap();
    let output = |index: usize| folder.join(format!("output-{index}"));
    let start = |index: usize| {
        let printed = fs::File::create(output(index)).unwrap();
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, format!("{case} {index} {count} {}", folder.display()))
            .stdout(printed.try_clone().unwrap())
            .stderr(printed)
            .spawn()
            .unwrap()
    };
    let printed = || -> String {
        let texts = (0..count).map(|i| String::from_utf8_lossy(&fs::read(output(i)).unwrap()).into_owned());
        texts.collect::<Vec<_>>().join("\n")
    };
    let none_failed = |ended: &[Option<ExitStatus>]| {
        let failed = ended.iter().flatten().any(|status| !status.success());
        assert!(!failed, "{case}: a process failed: {ended:?}\n{}", printed());
    };
    Started((0..count).map(start).collect()).wait(none_failed, printed);
}

/// The work of one process, which a test starts.
#[test]
#[ignore = "other tests start it"]
fn child() {
    let Ok(text) = env::var(VARIABLE) else { return };
    let [case, index, count, folder] = text.splitn(4, ' ').collect::<Vec<_>>()[..] else { panic!("{text}") };
    let (index, count, folder) = (index.parse().unwrap(), count.parse().unwrap(), Path::new(folder));
    let store = Arc::new(Files(folder.join("store")));
    let mesh = |cache: Cache| {
        let device = plugin::of_processes(DEVICES).unwrap().parse().unwrap();
        let processes = Processes { index, count, store: store.clone() };
        Mesh::builder(&device).cache(cache).processes(processes).open(DEVICES * count).unwrap()
    };
    match case {
        "results" => {
            let mesh = mesh(Cache::Off);
            check_topology(&mesh, index, count);
            let results = results(&mesh);
            fs::write(folder.join(format!("results-{index}")), results.concat()).unwrap();
            assert!(another_order(&mesh, index).contains("all processes must compile the same programs"));
        }
        "conformance" => {
            let checks = conformance::run(&mesh(Cache::Off), |_| ());
            let failed: Vec<_> = checks.iter().filter(|check| check.error.is_some()).collect();
            assert!(failed.is_empty(), "{failed:#?}");
            for family in ["collectives_r1", "collectives_r2", "collectives_r4", "calls"] {
                assert!(checks.iter().any(|check| check.family == family), "{family} is left out");
            }
        }
        "cache" => {
            log::set_logger(&LOG).unwrap();
            log::set_max_level(log::LevelFilter::Info);
            let mesh = mesh(Cache::Folder(folder.join(format!("cache-{index}"))));
            results(&mesh);
            fs::write(folder.join(format!("log-{index}")), LOG.0.lock().unwrap().join("\n")).unwrap();
        }
        other => panic!("no case {other}"),
    }
}

fn check_topology(mesh: &Mesh, index: usize, count: usize) {
    let own = index * DEVICES..(index + 1) * DEVICES;
    assert_eq!((mesh.process(), mesh.processes(), mesh.devices()), (index, count, count * DEVICES));
    assert_eq!((mesh.replicas(), mesh.own_replicas()), (count * DEVICES, own.clone()));
    // Fewer devices of each process, and those of this process alone.
    let fewer = mesh.with_replicas(count).unwrap();
    assert_eq!((fewer.replicas(), fewer.own_replicas()), (count, index..index + 1));
    let local = mesh.local(DEVICES).unwrap();
    assert_eq!((local.replicas(), local.own_replicas()), (DEVICES, 0..DEVICES));
    let error = mesh.with_replicas(count + 1).err().unwrap().to_string();
    assert!(error.contains(&format!("the same number from each of {count} processes")), "{error}");
    assert!(mesh.local(DEVICES + 1).is_err());

    // Arrays of other processes' replicas.
    let arrays: Vec<Array> = (0..mesh.replicas()).map(|r| Array::scalar(r as f32)).collect();
    for sharded in [mesh.shard(&arrays).unwrap(), mesh.shard_own(&arrays[own.clone()]).unwrap()] {
        assert_eq!(sharded.own().unwrap(), arrays[own.clone()]);
        assert_eq!(sharded.all().unwrap(), arrays);
        assert_eq!(sharded.get(1).unwrap(), arrays[1]);
    }
    // What a process does alone, others need not do.
    if index == 0 {
        let alone = local.shard(&arrays[..DEVICES]).unwrap();
        let executable = compile(&local, &function(DEVICES)).unwrap();
        assert_eq!(alone.all().unwrap(), arrays[..DEVICES]);
        let error = executable.call(arguments(mesh, DEVICES)).err().unwrap().to_string();
        assert!(error.contains("argument x is on devices [0, 1"), "{error}");
    }
}

/// Lets the first process compile another program than the others. Returns the error.
fn another_order(mesh: &Mesh, index: usize) -> String {
    let g = Graph::new(if index == 0 { "one" } else { "other" });
    let x = g.input("x", &Shape::f32(&[2]));
    let function = g.finish(&[("y".into(), x * 2.0)], &[]).unwrap();
    format!("{:#}", compile(mesh, &function).err().unwrap())
}

/// Builds a program with all collectives, whose last output takes the memory of `y`.
fn function(replicas: usize) -> Function {
    let g = Graph::new("collectives");
    let (x, y) = (g.input("x", &Shape::f32(&[replicas, 33])), g.input("y", &Shape::f32(&[replicas, 33])));
    let index = g.input("index", &Shape::s32(&[]));
    let outputs = [
        ("sum".into(), (x * 1.1).all_reduce()),
        ("gathered".into(), x.all_gather(index, replicas)),
        ("exchanged".into(), x.all_to_all(replicas)),
        ("y'".into(), y * 0.3 + x.square().all_reduce()),
    ];
    g.finish(&outputs, &[("y'".into(), "y".into())]).unwrap()
}

/// Returns an array of numbers whose sums depend on the order.
fn numbers(replica: usize, shape: &[usize]) -> Array {
    let count = shape.iter().product::<usize>();
    let number = |i: usize| ((i * 37 + replica * 101) as f32).sin() * 10f32.powi((replica + i) as i32 % 5);
    Array::new(shape, &(0..count).map(number).collect::<Vec<_>>())
}

fn arguments(mesh: &Mesh, rows: usize) -> Vec<Arg<'static>> {
    let arrays: Vec<Array> = (0..mesh.replicas()).map(|r| numbers(r, &[rows, 33])).collect();
    let index: Vec<Array> = (0..mesh.replicas()).map(|r| Array::scalar(r as i32)).collect();
    let y = mesh.replicate(&numbers(7, &[rows, 33])).unwrap();
    vec![mesh.shard(&arrays).unwrap().into(), y.into(), mesh.shard(&index).unwrap().into()]
}

/// Returns a program for which the library has no operation, so that the plugin's last collective is tested too.
fn reduce_scatter(replicas: usize) -> Program {
    let group: Vec<String> = (0..replicas).map(|r| r.to_string()).collect();
    let text = format!(
        r#"module @scatter attributes {{mhlo.num_partitions = 1 : i32, mhlo.num_replicas = {replicas} : i32}} {{
  func.func public @main(%x: tensor<{replicas}x33xf32>) -> tensor<1x33xf32> {{
    %y = "stablehlo.reduce_scatter"(%x) ({{
      ^bb0(%a: tensor<f32>, %b: tensor<f32>):
        %c = stablehlo.add %a, %b : tensor<f32>
        stablehlo.return %c : tensor<f32>
    }}) {{scatter_dimension = 0 : i64, replica_groups = dense<[[{}]]> : tensor<1x{replicas}xi64>}}
      : (tensor<{replicas}x33xf32>) -> tensor<1x33xf32>
    return %y : tensor<1x33xf32>
  }}
}}"#,
        group.join(", ")
    );
    let signature = Signature {
        name: "scatter".into(),
        format: Format::StableHlo,
        target: Target::Cpu,
        replicas,
        graph: String::new(),
        inputs: vec![InputSpec { name: "x".into(), shape: Shape::f32(&[replicas, 33]), donated: false }],
        outputs: vec![OutputSpec { name: "y".into(), shape: Shape::f32(&[1, 33]) }],
    };
    Program { signature, module: text.into_bytes() }
}

/// Runs the programs, and returns the results of all replicas as bytes.
fn results(mesh: &Mesh) -> Vec<Vec<u8>> {
    let replicas = mesh.replicas();
    let executable = compile(mesh, &function(replicas)).unwrap();
    let mut results = executable.call(arguments(mesh, replicas)).unwrap();
    // The donated state goes on through further calls.
    for _ in 0..2 {
        let mut arguments = arguments(mesh, replicas);
        arguments[1] = results.pop().unwrap().into();
        results = executable.call(arguments).unwrap();
    }
    let mut lent = arguments(mesh, replicas);
    lent[1] = results.last().unwrap().into();
    assert!(executable.call(lent).err().unwrap().to_string().contains("must be given away"));
    let scatter = mesh.compile(reduce_scatter(replicas)).unwrap();
    results.extend(scatter.call(vec![arguments(mesh, replicas).swap_remove(0)]).unwrap());
    let all = results.iter().flat_map(|buffers| buffers.all().unwrap());
    all.map(|array| array.bytes().to_vec()).collect()
}

/// All results are equal bit by bit: the plugin adds the replicas' numbers in their order, wherever they are.
#[test]
fn several_processes_compute_what_one_does() {
    for count in [2, 4] {
        let Some(device) = plugin::of_processes(DEVICES * count) else { return };
        let mesh = Mesh::builder(&device.parse().unwrap()).cache(Cache::Off).open(DEVICES * count).unwrap();
        assert_eq!((mesh.process(), mesh.processes()), (0, 1));
        let expected = results(&mesh).concat();
        let folder = tempfile::tempdir().unwrap();
        start("results", count, folder.path());
        for process in 0..count {
            let got = fs::read(folder.path().join(format!("results-{process}"))).unwrap();
            assert!(got == expected, "process {process} of {count} has other results");
        }
    }
}

#[test]
fn two_processes_conform() {
    if plugin::of_processes(DEVICES).is_some() {
        start("conformance", 2, tempfile::tempdir().unwrap().path());
    }
}

/// Keeps the log of a process.
struct Log(Mutex<Vec<String>>);

static LOG: Log = Log(Mutex::new(Vec::new()));

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }
    fn flush(&self) {}
}

#[test]
fn compiled_programs_are_loaded_by_all_processes_or_by_none() {
    if plugin::of_processes(DEVICES).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = |process: usize| folder.path().join(format!("cache-{process}"));
    let files = |process: usize| -> Vec<PathBuf> {
        fs::read_dir(cache(process)).unwrap().map(|file| file.unwrap().path()).collect()
    };
    // The numbers of programs that each process loaded, and loaded but did not use.
    let run = || {
        start("cache", 2, folder.path());
        [0, 1].map(|process| {
            let log = fs::read_to_string(folder.path().join(format!("log-{process}"))).unwrap();
            (log.matches("loaded the compiled").count(), log.matches("again, as other processes do").count())
        })
    };
    assert_eq!(run(), [(0, 0), (0, 0)]);
    let programs = files(0).len();
    assert_eq!(files(1).len(), programs);
    assert_eq!(run(), [(programs, 0), (programs, 0)]);
    // One process has lost its programs.
    fs::remove_dir_all(cache(1)).unwrap();
    assert_eq!(run(), [(0, programs), (0, 0)]);
    assert_eq!(run(), [(programs, 0), (programs, 0)]);
    // One has a program that is intact, but cannot be loaded.
    let file = &files(0)[0];
    let body = b"no program";
    let name = file.file_name().unwrap().to_str().unwrap();
    let checksum = Sha256::new().chain_update(name).chain_update(body).finalize();
    fs::write(file, [&checksum[..], body].concat()).unwrap();
    assert_eq!(run(), [(programs - 1, 0), (programs - 1, 1)]);
    assert_eq!(run(), [(programs, 0), (programs, 0)]);
}

#[test]
fn wrong_processes_are_refused() {
    let open = |device: &str, index: usize| {
        let folder = tempfile::tempdir().unwrap();
        let processes = Processes { index, count: 2, store: Arc::new(Files(folder.path().into())) };
        let mesh = Mesh::builder(&device.parse().unwrap()).cache(Cache::Off).processes(processes).open(2);
        format!("{:#}", mesh.err().unwrap())
    };
    assert!(open("no/such.so", 2).contains("has 2 processes, of which none is number 2"));
    let error = open("cpu", 0);
    assert!(error.contains("the device cpu works in one process"), "{error}");
    if let Some(device) = plugin::of_processes(DEVICES) {
        let error = open(&format!("{device},node_id=1"), 0);
        assert!(error.contains("option node_id is set by the processes"), "{error}");
    }
}
