//! Programs of one collective operation, with which the runtime moves arrays between processes.

use crate::engine::program::{Format, InputSpec, OutputSpec, Program, Signature, Target};
use crate::engine::shape::{DType, Shape};

/// Returns a program whose `body` computes `%out` from `%x` on each of the replicas. It is text, so that it needs no XLA library.
pub(super) fn program(
    name: &str,
    (target, replicas): (Target, usize),
    x: &Shape,
    out: &Shape,
    body: &str,
) -> Program {
    let [x_type, out_type] = [x, out].map(tensor);
    let text = format!(
        r#"module @{name} attributes {{mhlo.num_partitions = 1 : i32, mhlo.num_replicas = {replicas} : i32}} {{
  func.func public @main(%x: {x_type}) -> {out_type} {{
{body}
    return %out : {out_type}
  }}
}}
"#
    );
    let signature = Signature {
        name: name.into(),
        format: Format::StableHlo,
        target,
        replicas,
        graph: x.to_string(),
        inputs: vec![InputSpec { name: "x".into(), shape: x.clone(), donated: false }],
        outputs: vec![OutputSpec { name: "out".into(), shape: out.clone() }],
    };
    Program { signature, module: text.into_bytes() }
}

/// Returns the group of all replicas, an attribute of StableHLO's collectives.
pub(super) fn group(replicas: usize) -> String {
    let all: Vec<String> = (0..replicas).map(|replica| replica.to_string()).collect();
    format!("dense<[[{}]]> : tensor<1x{replicas}xi64>", all.join(", "))
}

/// Returns a shape as a type of StableHLO.
pub(super) fn tensor(shape: &Shape) -> String {
    let element = match shape.dtype {
        DType::Pred => "i1",
        DType::U8 => "ui8",
        DType::S32 => "i32",
        DType::U32 => "ui32",
        DType::U64 => "ui64",
        DType::Bf16 => "bf16",
        DType::F32 => "f32",
    };
    let sizes: String = shape.dims.iter().map(|size| format!("{size}x")).collect();
    format!("tensor<{sizes}{element}>")
}
