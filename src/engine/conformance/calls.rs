//! Checks of everything but the arithmetic: transfers, donation, and error messages that name a wrong argument.

use anyhow::{Result, ensure};

use super::{Check, bools, f32s};
use crate::engine::array::Array;
use crate::engine::compile;
use crate::engine::ir::{Function, Graph};
use crate::engine::runtime::{Arg, Executable, Mesh};
use crate::engine::shape::{DType, Shape};

const FAMILY: &str = "calls";

/// Returns the program y = x · s, whose output takes the memory of x.
pub(super) fn function() -> Result<Function> {
    let g = Graph::new("conformance_calls");
    let x = g.input("x", &Shape::f32(&[3]));
    let s = g.input("s", &Shape::f32(&[]));
    g.finish(&[("y".into(), x * s)], &[("y".into(), "x".into())])
}

pub(super) fn check(mesh: &Mesh) -> Vec<Check> {
    let compiled = || {
        let mesh = mesh.local(1)?;
        let executable = compile::compile(&mesh, &function()?)?;
        Ok::<_, anyhow::Error>((mesh, executable))
    };
    let mut checks = vec![
        Check::from_result(FAMILY, "arrays come back as they went", transfers(mesh)),
        Check::from_result(FAMILY, "more replicas than devices", more_replicas(mesh)),
    ];
    type Test = fn(&Mesh, &Executable) -> Result<()>;
    let tests: [(&str, Test); 3] = [
        ("a donated argument gives its memory, a lent one stays", donation),
        ("wrong arguments", wrong_arguments),
        ("another number of replicas", other_replicas),
    ];
    match compiled() {
        Ok((mesh, executable)) => {
            checks
                .extend(tests.map(|(name, test)| Check::from_result(FAMILY, name, test(&mesh, &executable))));
        }
        Err(error) => checks.push(Check::from_result(FAMILY, "compiling", Err(error))),
    }
    checks
}

/// Sends arrays of every element type and of several ranks to every device and back.
fn transfers(mesh: &Mesh) -> Result<()> {
    let mesh = mesh.with_replicas(mesh.devices())?;
    let halves = Array::from_bytes(Shape::new(DType::Bf16, &[2]), vec![0x80, 0x3f, 0, 0xc0])?;
    for array in [
        f32s(&[2, 3, 4], &(0..24).map(|i| i as f32 * 0.5).collect::<Vec<_>>()),
        Array::scalar(f32::NEG_INFINITY),
        Array::new(&[2, 2], &[1i32, -2, i32::MAX, i32::MIN]),
        Array::new(&[3], &[1u32, 2, u32::MAX]),
        Array::new(&[2], &[1u64, u64::MAX]),
        Array::new(&[3, 1], &[0u8, 7, 255]),
        bools(&[true, false, true]),
        halves,
    ] {
        for (replica, returned) in mesh.replicate(&array)?.all()?.into_iter().enumerate() {
            ensure!(returned == array, "{} on device {replica} came back changed", array.shape());
        }
    }
    Ok(())
}

/// Checks that a call failed with a message that contains `part`.
fn expect_error<T>(result: Result<T>, part: &str) -> Result<()> {
    let Err(error) = result else { anyhow::bail!("expected an error with {part:?}, got none") };
    let text = format!("{error:#}");
    ensure!(text.contains(part), "expected an error with {part:?}, got: {text}");
    Ok(())
}

fn more_replicas(mesh: &Mesh) -> Result<()> {
    let replicas = mesh.devices() + 1;
    expect_error(mesh.with_replicas(replicas), &format!("{replicas} replicas need as many devices"))
}

fn donation(mesh: &Mesh, executable: &Executable) -> Result<()> {
    let s = mesh.replicate(&Array::scalar(2f32))?;
    let mut x = mesh.replicate(&f32s(&[3], &[1.0, 2.0, 3.0]))?;
    for _ in 0..3 {
        x = executable.call(vec![x.into(), (&s).into()])?.swap_remove(0);
    }
    let (x, s) = (x.get(0)?.to_vec::<f32>(), s.get(0)?.to_vec::<f32>());
    ensure!(
        (x.as_slice(), s.as_slice()) == (&[8.0, 16.0, 24.0], &[2.0]),
        "after three calls {x:?} and {s:?}"
    );
    Ok(())
}

fn wrong_arguments(mesh: &Mesh, executable: &Executable) -> Result<()> {
    let name = &executable.program().signature.name;
    let put = |dims: &[usize]| mesh.replicate(&Array::zeros(&Shape::f32(dims)));
    let (x, s) = (put(&[3])?, put(&[])?);
    let call = |arguments: Vec<Arg<'_>>, part: &str| expect_error(executable.call(arguments), part);
    let consumed = format!("argument x of {name} is consumed by the call and must be given away");
    call(
        vec![put(&[2])?.into(), (&s).into()],
        &format!("argument x of {name}: expected f32[3], got f32[2]"),
    )?;
    call(vec![(&x).into(), (&s).into()], &consumed)?;
    call(vec![x.into()], &format!("{name} takes 2 arguments, got 1, the first missing is s"))?;
    let integers = mesh.replicate(&Array::new(&[3], &[1i32, 2, 3]))?;
    call(vec![integers.into(), (&s).into()], "got s32[3]")
}

fn other_replicas(mesh: &Mesh, executable: &Executable) -> Result<()> {
    let mut program = executable.program().clone();
    program.signature.replicas = 2;
    expect_error(mesh.compile(program), "is for 2 replicas, there are 1")
}
