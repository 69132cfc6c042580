//! Every available runtime passes the conformance suite (`src/engine/conformance`): the CPU, a plugin, and exported programs.
//! Programs can be saved and loaded.

#[path = "common/cli.rs"]
mod cli;
#[path = "common/plugin.rs"]
mod plugin;

use std::collections::BTreeSet;

use vnca::engine::array::Array;
use vnca::engine::compile::compile;
use vnca::engine::conformance::{self, Check};
use vnca::engine::ir::{Block, Function, Graph, Op};
use vnca::engine::lower::{Target, lower};
use vnca::engine::program::Program;
use vnca::engine::runtime::{Cache, Device, Mesh};
use vnca::engine::shape::Shape;

fn names_in(block: &Block, into: &mut BTreeSet<&'static str>) {
    for node in &block.nodes {
        into.insert(node.op.name());
        if let Op::Repeat(repeat) = &node.op {
            names_in(&repeat.body, into);
        }
    }
}

#[test]
fn every_operation_has_a_case() {
    let mut seen = BTreeSet::new();
    for (function, _) in conformance::functions().unwrap() {
        names_in(&function.block, &mut seen);
    }
    let missing: Vec<&str> = Op::names().into_iter().filter(|n| !seen.contains(n)).collect();
    assert!(missing.is_empty(), "operations without a conformance case: {missing:?}");
}

fn conforms(device: &str, target: Option<Target>) {
    let device: Device = device.parse().unwrap();
    let mesh = Mesh::builder(&device).devices(conformance::MOST_REPLICAS).cache(Cache::Off);
    let mesh = match target {
        Some(target) => mesh.target(target),
        None => mesh,
    };
    let checks = conformance::run(&mesh.open(1).unwrap(), |_| ());
    let failed: Vec<&Check> = checks.iter().filter(|check| check.error.is_some()).collect();
    assert!(failed.is_empty(), "{device}: {failed:#?}");
    // The suite must include at least two devices and all families of cases.
    for family in ["elementwise", "loops", "collectives_r1", "collectives_r2", "calls"] {
        assert!(checks.iter().any(|check| check.family == family), "{device}: {family} is left out");
    }
}

/// Tests the default forms, which use oneDNN if it is available.
#[test]
fn the_cpu_conforms() {
    conforms("cpu", None);
}

#[test]
fn the_cpu_conforms_in_xlas_own_forms() {
    conforms("cpu", Some(Target::Cpu));
}

/// Tests the forms for accelerators.
#[test]
fn the_cpu_conforms_in_native_forms() {
    conforms("cpu", Some(Target::Native));
}

/// Each opened mesh has its own client, sizes and forms. Meshes from `with_replicas` share them. The environment stays unchanged.
#[test]
fn meshes_own_their_client() {
    let before: Vec<_> = std::env::vars_os().collect();
    let [own, other] = [3, 1].map(|n| Mesh::builder(&Device::Cpu).cache(Cache::Off).open(n).unwrap());
    assert_eq!((own.devices(), other.devices()), (3, 1));
    assert!(other.with_replicas(2).is_err());
    let g = Graph::new("doubled");
    let x = g.input("x", &Shape::f32(&[2]));
    let function = g.finish(&[("y".into(), x * 2.0)], &[]).unwrap();
    let sibling = own.with_replicas(1).unwrap();
    let [first, second] =
        [&own.with_replicas(1).unwrap(), &other].map(|mesh| compile(mesh, &function).unwrap());
    let x = sibling.replicate(&Array::new(&[2], &[1f32, 2.0])).unwrap();
    drop((own, sibling));
    assert_eq!(first.call(vec![(&x).into()]).unwrap()[0].get(0).unwrap().to_vec::<f32>(), [2.0, 4.0]);
    let error = second.call(vec![(&x).into()]).err().expect("the array is on another client").to_string();
    assert!(error.contains("doubled"), "{error}");
    assert!(before == std::env::vars_os().collect::<Vec<_>>(), "the environment has changed");
}

#[test]
fn a_plugin_conforms() {
    let Some(device) = plugin::device() else { return };
    conforms(&device, None);
}

/// Tests programs as a machine without the XLA library runs them, in the forms for accelerators.
#[test]
fn exported_programs_conform() {
    let folder = tempfile::tempdir().unwrap();
    cli::succeed(folder.path(), &["export", "--conformance", "--out", "programs"]);
    let device = plugin::device().unwrap_or("cpu".into());
    let call = ["conformance", "--programs", "programs", "--device", &device, "--json"];
    let told: serde_json::Value = serde_json::from_str(&cli::succeed(folder.path(), &call)).unwrap();
    assert_eq!(told["failed"], 0);
    assert!(told["passed"].as_u64().unwrap() > 100, "{told}");

    // A missing program fails only its own cases.
    std::fs::remove_file(folder.path().join("programs/conformance_loops.json")).unwrap();
    let output = cli::run(folder.path(), &call[..5]);
    let table = cli::text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{table}");
    assert!(table.contains("BAD  loops            0 of ") && table.contains("ok   arrays"), "{table}");
    assert!(table.contains("holds no program conformance_loops"), "{table}");
}

#[test]
fn collectives_that_the_builder_lacks_are_added_to_the_module() {
    let of_two = |(f, replicas): &(Function, usize)| *replicas == 2 && f.name.contains("collectives");
    let (function, replicas) = conformance::functions().unwrap().into_iter().find(of_two).unwrap();
    let program = lower(&function, Target::Native, replicas).unwrap();
    let text = xla::HloModuleProto::parse_proto(&program.module, true).unwrap().to_string().unwrap();
    for (part, is_there) in [("all-gather(", true), ("all-to-all(", true), ("custom-call(", false)] {
        assert_eq!(text.contains(part), is_there, "{part}: {text}");
    }
}

#[test]
fn programs_are_saved_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let g = Graph::new("doubled");
    let x = g.input("x", &Shape::f32(&[3]));
    let function = g.finish(&[("y".into(), x * 2.0)], &[("y".into(), "x".into())]).unwrap();
    let program = lower(&function, Target::Cpu, 1).unwrap();
    program.save(folder.path()).unwrap();
    assert_eq!(Program::load(folder.path(), "doubled").unwrap(), program);
    let error = format!("{:#}", Program::load(folder.path(), "tripled").unwrap_err());
    assert!(error.contains("tripled.json"), "{error}");
    std::fs::write(folder.path().join("doubled.json"), "{}").unwrap();
    let error = format!("{:#}", Program::load(folder.path(), "doubled").unwrap_err());
    assert!(error.contains("not the signature of a program"), "{error}");
}
