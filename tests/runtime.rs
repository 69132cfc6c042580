//! What every runtime has to do: collectives over several devices, donation, refusing wrong arguments, saving and
//! loading programs, compiling once.

mod common;

use common::{fill, finish, run};
use vnca::array::Array;
use vnca::ir::{Graph, Sym};
use vnca::lower::{Target, lower};
use vnca::program::Program;
use vnca::runtime::{Arg, Device, Executable, Mesh};
use vnca::shape::Shape;

/// One row of two numbers and its own index for each replica.
fn rows(replicas: usize) -> Vec<Vec<Array>> {
    let row = |r: usize| vec![Array::new(&[2], &[r as f32, 10.0 * r as f32]), Array::scalar(r as i32)];
    (0..replicas).map(row).collect()
}

#[test]
fn collectives_reach_all_replicas() {
    for replicas in [2, 8] {
        let g = Graph::new("collectives");
        let (x, index) = (g.input("x", &Shape::f32(&[2])), g.input("index", &Shape::s32(&[])));
        // To replica r, ten times this replica's index and r.
        let to_each = g.iota(&Shape::f32(&[replicas]), 0) + index.convert(vnca::shape::DType::F32) * 10.0;
        let outputs = [
            ("sum".to_string(), x.all_reduce()),
            ("all".to_string(), x.all_gather(index, replicas)),
            ("each".to_string(), to_each.all_to_all(replicas)),
        ];
        let function = finish(&g, &outputs);
        let results = run(&function, Target::Cpu, &rows(replicas));
        let total: f32 = (0..replicas).map(|r| r as f32).sum();
        let all: Vec<f32> = (0..replicas).flat_map(|r| [r as f32, 10.0 * r as f32]).collect();
        for (r, result) in results.iter().enumerate() {
            let from_each: Vec<f32> = (0..replicas).map(|s| 10.0 * s as f32 + r as f32).collect();
            assert_eq!(result[2].to_vec::<f32>(), from_each);
            assert_eq!(result[0].to_vec::<f32>(), [total, 10.0 * total]);
            assert_eq!(result[1].dims(), [replicas, 2]);
            assert_eq!(result[1].to_vec::<f32>(), all);
        }
        let program = lower(&function, Target::Native, replicas).unwrap();
        let text = xla::HloModuleProto::parse_proto(&program.module, true).unwrap().to_string().unwrap();
        assert!(
            text.contains("all-gather(") && text.contains("all-to-all(") && !text.contains("custom-call("),
            "{text}"
        );
    }
}

#[test]
fn collectives_work_inside_a_loop() {
    let g = Graph::new("looped");
    let (x, index) = (g.input("x", &Shape::f32(&[2])), g.input("index", &Shape::s32(&[])));
    let looped = g.repeat(3, &[x], |_, c| {
        let all: Sym<'_> = c[0].all_gather(index, 2);
        (vec![all.sum(&[0]) + c[0].all_reduce() * 0.5], vec![])
    });
    let results = run(&finish(&g, &[("y".into(), looped[0])]), Target::Cpu, &rows(2));
    // Both replicas hold (1, 10) · 1.5 after a step, and each step from there multiplies by 3.
    for result in results {
        assert_eq!(result[0].to_vec::<f32>(), [1.5 * 9.0, 15.0 * 9.0]);
    }
}

#[test]
fn native_and_cpu_forms_agree() {
    use vnca::ir::ops::conv::Window;
    let g = Graph::new("forms");
    let x = g.input("x", &Shape::f32(&[2, 9, 7, 3]));
    let w = g.input("w", &Shape::f32(&[5, 5, 3, 4]));
    let y = x.conv(w, Window::new(2, (2, 2)));
    let z = y.conv(w.transpose(&[0, 1, 3, 2]), Window::transposed(5, 2, 2, 1));
    let grads = vnca::ir::gradient(z.square().sum_all(), &[x, w]);
    let outputs = [("z".to_string(), z), ("dx".to_string(), grads[0]), ("dw".to_string(), grads[1])];
    let function = finish(&g, &outputs);
    let inputs = vec![fill(&[2, 9, 7, 3], 1, (-1.0, 1.0)), fill(&[5, 5, 3, 4], 2, (-1.0, 1.0))];
    let [cpu, native] = [Target::Cpu, Target::Native]
        .map(|t| run(&function, t, std::slice::from_ref(&inputs)).swap_remove(0));
    for (a, b) in cpu.iter().zip(&native) {
        let (a, b) = (a.to_vec::<f32>(), b.to_vec::<f32>());
        let size = b.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5 * size));
    }
}

fn doubled() -> Program {
    let g = Graph::new("doubled");
    let x = g.input("x", &Shape::f32(&[3]));
    let s = g.input("s", &Shape::f32(&[]));
    let function = g.finish(&[("y".into(), x * s)], &[("y".into(), "x".into())]).unwrap();
    lower(&function, Target::Cpu, 1).unwrap()
}

#[test]
fn wrong_arguments_are_refused_by_name() {
    let mesh = Mesh::open(&Device::Cpu, 1).unwrap();
    let executable = mesh.compile(doubled()).unwrap();
    let put = |dims: &[usize]| mesh.replicate(&fill(dims, 1, (0.0, 1.0))).unwrap();
    let (x, s) = (put(&[3]), put(&[]));
    fn error(executable: &Executable, arguments: Vec<Arg<'_>>) -> String {
        executable.call(arguments).err().expect("it is refused").to_string()
    }
    assert_eq!(
        error(&executable, vec![put(&[2]).into(), (&s).into()]),
        "argument x of doubled: expected f32[3], got f32[2]"
    );
    assert_eq!(
        error(&executable, vec![(&x).into(), (&s).into()]),
        "argument x of doubled is consumed by the call and must be given away"
    );
    assert_eq!(
        error(&executable, vec![x.into()]),
        "doubled takes 2 arguments, got 1, the first missing is s"
    );
    let integers = mesh.replicate(&Array::new(&[3], &[1i32, 2, 3])).unwrap();
    assert!(error(&executable, vec![integers.into(), (&s).into()]).contains("got s32[3]"));
}

#[test]
fn a_donated_argument_gives_its_memory_and_a_lent_one_stays() {
    let mesh = Mesh::open(&Device::Cpu, 1).unwrap();
    let executable = mesh.compile(doubled()).unwrap();
    let s = mesh.replicate(&Array::scalar(2f32)).unwrap();
    let mut x = mesh.replicate(&Array::new(&[3], &[1f32, 2.0, 3.0])).unwrap();
    for _ in 0..3 {
        x = executable.call(vec![x.into(), (&s).into()]).unwrap().swap_remove(0);
    }
    assert_eq!(x.get(0).unwrap().to_vec::<f32>(), [8.0, 16.0, 24.0]);
    assert_eq!(s.get(0).unwrap().to_vec::<f32>(), [2.0]);
}

#[test]
fn programs_are_saved_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let program = doubled();
    program.save(folder.path()).unwrap();
    assert_eq!(Program::load(folder.path(), "doubled").unwrap(), program);
    let error = format!("{:#}", Program::load(folder.path(), "tripled").unwrap_err());
    assert!(error.contains("tripled.json"), "{error}");
    std::fs::write(folder.path().join("doubled.json"), "{}").unwrap();
    let error = format!("{:#}", Program::load(folder.path(), "doubled").unwrap_err());
    assert!(error.contains("no program's signature"), "{error}");
}

#[test]
fn more_replicas_than_devices_are_refused() {
    let mesh = Mesh::open(&Device::Cpu, 1).unwrap();
    drop(mesh);
    let error = Mesh::open(&Device::Cpu, 1000).err().expect("there are not so many").to_string();
    assert!(error.contains("1000 replicas"), "{error}");
}
