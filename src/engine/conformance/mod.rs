//! What every device has to compute and to refuse: cases whose results are known without a device, made from the graph on or
//! run from exported programs.
//!
//! A case is some inputs, nodes over them, and what must come out, worked out on the host by other means (closed forms,
//! plain loops, [`crate::engine::random::host`]). Matrix products and convolutions are of small whole numbers, which the fast
//! precisions of accelerators hold exactly. Cases of one family are one program, each an output of it: compiling is what takes
//! time. What is not computing (transfers, donation, wrong arguments) is checked beside them.

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

type Build = Box<dyn for<'g> Fn(&'g Graph, &[Sym<'g>]) -> Sym<'g>>;

/// Of functions that compilers approximate, each in its own way: to 1 or the result's size.
const APPROXIMATE: f64 = 1e-4;
/// Of single operations that devices round differently at most in the last digit.
const ROUNDED: f64 = 1e-6;

/// A computation whose result is known. Inputs and results by replica.
struct Case {
    name: String,
    inputs: Vec<Vec<Array>>,
    expected: Vec<Array>,
    /// How far a floating-point result may be off, relative to the larger of 1 and its size. 0: not at all.
    tolerance: f64,
    build: Build,
}

/// A case of one replica.
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
    fn within(self, tolerance: f64) -> Case {
        Case { tolerance, ..self }
    }

    /// What is wrong with a result, if something is.
    fn compare(&self, replica: usize, got: &Array) -> Result<()> {
        let expected = &self.expected[replica];
        ensure!(got.shape() == expected.shape(), "expected {}, got {}", expected.shape(), got.shape());
        if expected.shape().dtype != DType::F32 {
            let at = expected.bytes().iter().zip(got.bytes()).position(|(a, b)| a != b);
            ensure!(at.is_none(), "replica {replica}: expected {}, got {}", text(expected), text(got));
            return Ok(());
        }
        for (at, (a, b)) in expected.to_vec::<f32>().into_iter().zip(got.to_vec::<f32>()).enumerate() {
            let (size, off) = (f64::from(a.abs()).max(1.0), (f64::from(a) - f64::from(b)).abs());
            let close = a == b || a.is_nan() && b.is_nan() || off <= self.tolerance * size;
            ensure!(close, "replica {replica}, element {at}: expected {a:?}, got {b:?}");
        }
        Ok(())
    }
}

/// The first elements of an array that holds no floating-point numbers.
fn text(array: &Array) -> String {
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

/// Cases that share a program.
struct Group {
    name: String,
    replicas: usize,
    cases: Vec<Case>,
}

impl Group {
    fn new(family: &str, cases: Vec<Case>) -> Group {
        Group { name: family.into(), replicas: 1, cases }
    }

    /// Inputs and output of a case are named after it.
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

    /// Runs the program; gives what is wrong with each case's result.
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

    fn check(&self, mesh: &Mesh) -> Vec<Check> {
        let ran = mesh.with_replicas(self.replicas).and_then(|mesh| self.run(&mesh));
        let results = ran.unwrap_or_else(|error| {
            let message = format!("{error:#}");
            self.cases.iter().map(|_| Err(anyhow::anyhow!(message.clone()))).collect()
        });
        let named = |(case, result): (&Case, Result<()>)| Check::from_result(&self.name, &case.name, result);
        self.cases.iter().zip(results).map(named).collect()
    }
}

fn groups() -> Vec<Group> {
    let mut groups = vec![
        Group::new("elementwise", elementwise::cases()),
        Group::new("integers", elementwise::integer_cases()),
        Group::new("arrays", arrays::cases()),
        Group::new("products", arrays::product_cases()),
        Group::new("loops", loops::cases()),
        Group::new("draws", loops::draw_cases()),
    ];
    groups.extend(REPLICAS.map(collectives::group));
    groups
}

/// Numbers of replicas that collectives are checked with, as far as there are devices.
const REPLICAS: [usize; 4] = [1, 2, 4, MOST_REPLICAS];

/// The most devices that the cases take.
pub const MOST_REPLICAS: usize = 8;

/// Returns the graphs of all programs, each with its number of replicas.
///
/// # Errors
/// When a case is ill-formed.
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
    /// The group of cases that this one belongs to.
    pub family: String,
    /// The case.
    pub name: String,
    /// What was wrong. `None` if the case passed.
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

/// Runs every case for which the mesh's client has enough devices. Calls `progress` with each family's name before it begins.
pub fn run(mesh: &Mesh, mut progress: impl FnMut(&str)) -> Vec<Check> {
    let mut checks = Vec::new();
    for group in groups().into_iter().filter(|group| group.replicas <= mesh.devices()) {
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

fn truths(values: &[bool]) -> Array {
    let bytes = values.iter().map(|v| u8::from(*v)).collect();
    Array::from_bytes(Shape::new(DType::Pred, &[values.len()]), bytes).expect("a byte a truth value")
}

/// Small whole numbers, without order.
fn whole(dims: &[usize], seed: usize) -> Array {
    let count: usize = dims.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 7 + seed * 5 + i * i * 3) % 9) as f32 - 4.0).collect();
    f32s(dims, &values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_results_are_told() {
        let own = case("x", vec![], f32s(&[2], &[1.0, 100.0]), |g, _| g.scalar(DType::F32, 0.0)).within(0.01);
        assert!(own.compare(0, &f32s(&[2], &[1.005, 100.9])).is_ok());
        for (wrong, part) in [
            (f32s(&[2], &[1.02, 100.0]), "element 0: expected 1.0, got 1.02"),
            (f32s(&[2], &[1.0, f32::NAN]), "element 1: expected 100.0, got NaN"),
            (f32s(&[1], &[1.0]), "expected f32[2], got f32[1]"),
        ] {
            let error = own.compare(0, &wrong).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let exact = case("y", vec![], truths(&[true, false]), |g, _| g.scalar(DType::F32, 0.0));
        assert!(exact.compare(0, &truths(&[true, true])).is_err());
    }

    #[test]
    fn names_tell_cases_apart() {
        for group in groups() {
            let mut names: Vec<&str> = group.cases.iter().map(|c| c.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), group.cases.len(), "{}", group.name);
        }
    }
}
