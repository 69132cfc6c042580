//! The conformance suite: what every device must compute, and which calls it must refuse.
//!
//! A case consists of inputs, a graph over them, and the expected result. The host computes the expected result by other means:
//! closed forms, plain loops, or [`crate::engine::random::host`]. Matmuls and convolutions use small integers, which the fast
//! precisions of accelerators represent exactly. The cases of one family are the outputs of one program, because compiling takes
//! most of the time. Programs are compiled from graphs or loaded from exported files. Further checks cover transfers, donation and
//! wrong arguments.

mod arrays;
mod calls;
mod collectives;
mod elementwise;
mod loops;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::engine::array::Array;
use crate::engine::compile;
use crate::engine::ir::{Function, Graph, Sym};
use crate::engine::runtime::{Arg, Mesh};
use crate::engine::shape::{DType, Shape};

/// Builds a case's graph over its inputs.
type Build = Box<dyn for<'g> Fn(&'g Graph, &[Sym<'g>]) -> Sym<'g>>;

/// The tolerance for functions that compilers approximate, relative to the larger of 1 and the result.
const APPROXIMATE: f64 = 1e-4;
/// The tolerance for single operations, which devices may round differently in the last digit.
const ROUNDED: f64 = 1e-6;

/// A computation with a known result. Inputs and results are indexed by replica.
struct Case {
    name: String,
    inputs: Vec<Vec<Array>>,
    expected: Vec<Array>,
    /// The largest error of a floating-point result, relative to the larger of 1 and its magnitude. 0: exact.
    tolerance: f64,
    build: Build,
}

/// Returns an exact case of one replica.
fn case(
    name: &str,
    inputs: Vec<Array>,
    expected: Array,
    build: impl for<'g> Fn(&'g Graph, &[Sym<'g>]) -> Sym<'g> + 'static,
) -> Case {
    Case {
        name: name.into(),
        inputs: vec![inputs],
        expected: vec![expected],
        tolerance: 0.0,
        build: Box::new(build),
    }
}

impl Case {
    fn with_tolerance(self, tolerance: f64) -> Case {
        Case { tolerance, ..self }
    }

    /// Compares a replica's result with the expected one.
    ///
    /// # Errors
    /// The first difference.
    fn compare(&self, replica: usize, got: &Array) -> Result<()> {
        let expected = &self.expected[replica];
        ensure!(got.shape() == expected.shape(), "expected {}, got {}", expected.shape(), got.shape());
        if expected.shape().dtype != DType::F32 {
            let same = expected.bytes() == got.bytes();
            ensure!(same, "replica {replica}: expected {}, got {}", describe(expected), describe(got));
            return Ok(());
        }
        for (i, (a, b)) in expected.to_vec::<f32>().into_iter().zip(got.to_vec::<f32>()).enumerate() {
            let (scale, error) = (f64::from(a.abs()).max(1.0), (f64::from(a) - f64::from(b)).abs());
            let close = a == b || a.is_nan() && b.is_nan() || error <= self.tolerance * scale;
            ensure!(close, "replica {replica}, element {i}: expected {a:?}, got {b:?}");
        }
        Ok(())
    }
}

/// Formats the shape and the first elements of an array, for types other than f32.
fn describe(array: &Array) -> String {
    let mut words: Vec<String> = match array.shape().dtype {
        DType::S32 => array.to_vec::<i32>().iter().map(ToString::to_string).collect(),
        DType::U32 => array.to_vec::<u32>().iter().map(ToString::to_string).collect(),
        DType::U64 => array.to_vec::<u64>().iter().map(ToString::to_string).collect(),
        DType::Pred | DType::U8 | DType::Bf16 | DType::F32 => {
            array.bytes().iter().map(ToString::to_string).collect()
        }
    };
    words.truncate(16);
    format!("{} [{}]", array.shape(), words.join(" "))
}

/// The cases of one family, which share a program.
struct Group {
    name: String,
    replicas: usize,
    cases: Vec<Case>,
}

impl Group {
    fn new(family: &str, cases: Vec<Case>) -> Group {
        Group { name: family.into(), replicas: 1, cases }
    }

    /// Builds the program. A case's inputs and output are named after the case.
    fn function(&self) -> Result<Function> {
        let g = Graph::new(&format!("conformance_{}", self.name));
        let mut outputs = Vec::new();
        for case in &self.cases {
            let input = |(i, array): (usize, &Array)| g.input(&format!("{}.{i}", case.name), array.shape());
            let inputs: Vec<Sym<'_>> = case.inputs[0].iter().enumerate().map(input).collect();
            outputs.push((case.name.clone(), (case.build)(&g, &inputs)));
        }
        g.finish(&outputs, &[])
    }

    /// Runs the program and compares each case's result with the expected one.
    fn run(&self, mesh: &Mesh) -> Result<Vec<Result<()>>> {
        let executable = compile::compile(mesh, &self.function()?)?;
        let mut arguments: Vec<Arg<'_>> = Vec::new();
        for case in &self.cases {
            for i in 0..case.inputs[0].len() {
                let parts: Vec<Array> = case.inputs.iter().map(|row| row[i].clone()).collect();
                arguments.push(mesh.shard(&parts)?.into());
            }
        }
        let results = executable.call(arguments)?;
        let check = |(case, buffers): (&Case, &crate::engine::runtime::Buffers)| {
            buffers.all()?.iter().enumerate().try_for_each(|(r, got)| case.compare(r, got))
        };
        Ok(self.cases.iter().zip(&results).map(check).collect())
    }

    /// Runs the cases. If the program does not run, every case fails with its error.
    fn check(&self, mesh: &Mesh) -> Vec<Check> {
        let results = choose(mesh, self.replicas).and_then(|mesh| self.run(&mesh));
        let results = results.unwrap_or_else(|error| {
            let message = format!("{error:#}");
            self.cases.iter().map(|_| Err(anyhow::anyhow!(message.clone()))).collect()
        });
        let check = |(case, result): (&Case, Result<()>)| Check::from_result(&self.name, &case.name, result);
        self.cases.iter().zip(results).map(check).collect()
    }
}

fn groups() -> Vec<Group> {
    let mut groups = vec![
        Group::new("elementwise", elementwise::cases()),
        Group::new("integers", elementwise::integer_cases()),
        Group::new("arrays", arrays::cases()),
        Group::new("products", arrays::matmul_and_convolution_cases()),
        Group::new("loops", loops::cases()),
        Group::new("draws", loops::draw_cases()),
    ];
    groups.extend(REPLICAS.map(collectives::group));
    groups
}

/// The numbers of replicas for which collectives are checked, if there are enough devices.
const REPLICAS: [usize; 4] = [1, 2, 4, MOST_REPLICAS];

/// The largest number of devices that a case needs.
pub const MOST_REPLICAS: usize = 8;

/// Returns the graphs of all programs, each with its number of replicas.
///
/// # Errors
/// When a case's graph is ill-formed.
pub fn functions() -> Result<Vec<(Function, usize)>> {
    let mut functions = Vec::new();
    for group in groups() {
        functions.push((group.function().with_context(|| group.name.clone())?, group.replicas));
    }
    functions.push((calls::function()?, 1));
    Ok(functions)
}

/// The outcome of one case.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// The family that the case belongs to.
    pub family: String,
    /// The case's name.
    pub name: String,
    /// Why the case failed. `None` if it passed.
    pub error: Option<String>,
}

impl Check {
    fn from_result(family: &str, name: &str, result: Result<()>) -> Check {
        Check {
            family: family.into(),
            name: name.into(),
            error: result.err().map(|error| format!("{error:#}")),
        }
    }
}

/// Returns a mesh of as many replicas. One replica cannot be in several processes: each of them runs its own.
fn choose(mesh: &Mesh, replicas: usize) -> Result<Mesh> {
    match replicas {
        1 => mesh.local(1),
        _ => mesh.with_replicas(replicas),
    }
}

/// Runs every case for which the mesh's client has enough devices. Calls `progress` with each family's name before it begins. With
/// several processes each of them calls it.
pub fn run(mesh: &Mesh, mut progress: impl FnMut(&str)) -> Vec<Check> {
    let mut checks = Vec::new();
    for group in groups().into_iter().filter(|group| choose(mesh, group.replicas).is_ok()) {
        progress(&group.name);
        checks.extend(group.check(mesh));
    }
    progress("calls");
    checks.extend(calls::check(mesh));
    checks
}

fn f32s(dims: &[usize], values: &[f32]) -> Array {
    Array::new(dims, values)
}

fn bools(values: &[bool]) -> Array {
    let bytes = values.iter().map(|v| u8::from(*v)).collect();
    Array::from_bytes(Shape::new(DType::Pred, &[values.len()]), bytes).expect("one byte for each value")
}

/// Returns an array of small integers in no particular order.
fn small_integers(dims: &[usize], seed: usize) -> Array {
    let count: usize = dims.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 7 + seed * 5 + i * i * 3) % 9) as f32 - 4.0).collect();
    f32s(dims, &values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_results_are_reported() {
        let approximate = case("x", vec![], f32s(&[2], &[1.0, 100.0]), |g, _| g.scalar(DType::F32, 0.0))
            .with_tolerance(0.01);
        assert!(approximate.compare(0, &f32s(&[2], &[1.005, 100.9])).is_ok());
        for (wrong, part) in [
            (f32s(&[2], &[1.02, 100.0]), "element 0: expected 1.0, got 1.02"),
            (f32s(&[2], &[1.0, f32::NAN]), "element 1: expected 100.0, got NaN"),
            (f32s(&[1], &[1.0]), "expected f32[2], got f32[1]"),
        ] {
            let error = approximate.compare(0, &wrong).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let exact = case("y", vec![], bools(&[true, false]), |g, _| g.scalar(DType::F32, 0.0));
        assert!(exact.compare(0, &bools(&[true, true])).is_err());
    }

    #[test]
    fn names_are_unique_in_each_family() {
        for group in groups() {
            let mut names: Vec<&str> = group.cases.iter().map(|c| c.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), group.cases.len(), "{}", group.name);
        }
    }
}
