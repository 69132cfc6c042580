//! Programs, before and after they are compiled.

use std::fs;

use sha2::{Digest, Sha256};
use vnca::engine::array::Array;
use vnca::engine::program::{Format, InputSpec, OutputSpec, Program, Signature, Target};
use vnca::engine::runtime::pjrt::{Compiled, KeptProgram, Trips, Usage, module_bytes};
use vnca::engine::shape::{DType, Shape};

use super::{Bench, placeholders};

pub fn program_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    let shape = Shape::f32(&[2, 3]);
    let signature = Signature {
        name: "double".into(),
        format: Format::StableHlo,
        target: Target::Native,
        replicas: 1,
        graph: "0c".into(),
        inputs: vec![
            InputSpec { name: "x".into(), shape: shape.clone(), donated: true },
            InputSpec { name: "key".into(), shape: Shape::new(DType::U32, &[2]), donated: false },
        ],
        outputs: vec![OutputSpec { name: "y".into(), shape }],
    };
    let seed = |format| {
        let program =
            Program { signature: Signature { format, ..signature.clone() }, module: b"module".to_vec() };
        program.save(&bench.path("seed")).expect("a seed");
        fs::read(bench.path("seed/double.json")).expect("a seed")
    };
    vec![seed(Format::StableHlo), seed(Format::Hlo)]
}

/// A signature beside a module. What is in the module is for XLA's own parser.
pub fn read_program(bench: &Bench, bytes: &[u8]) {
    bench.file("double.json", bytes);
    bench.file("double.hlo.pb", b"module");
    bench.file("double.stablehlo.mlir", b"module");
    let Ok(program) = Program::load(&bench.path(""), "double") else { return };
    // What a call without inputs is given: zeros. A program may ask for more memory than a test should take.
    let inputs = &program.signature.inputs;
    if inputs.iter().all(|i| i.shape.bytes() <= 1 << 10) && inputs.len() < 100 {
        let zeros: Vec<Array> = inputs.iter().map(|i| Array::zeros(&i.shape)).collect();
        let arguments: Vec<(&Shape, bool)> = zeros.iter().map(|a| (a.shape(), true)).collect();
        program.check(&arguments).expect("zeros of the inputs' shapes are arguments");
    }
}

pub fn text_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let text = |call: &str| {
        format!(
            "name: \"main\"\ncomputations {{\n  name: \"main\"\n  instructions {{\n    name: \"x\"\n    opcode: \"parameter\"\n    \
             shape {{\n      element_type: F32\n    }}\n    id: 1\n  }}\n  instructions {{\n    name: \"y\"\n    opcode: \
             \"custom-call\"\n    shape {{\n      element_type: F32\n    }}\n    custom_call_target: \"{call}\"\n    \
             backend_config: \"dimensions: 0 text: \\'a\\'\"\n    id: 2\n    operand_ids: 1\n  }}\n  root_id: 2\n}}\n"
        )
    };
    [placeholders::ALL_GATHER, placeholders::BITCAST, placeholders::DOT]
        .map(|c| text(c).into_bytes())
        .to_vec()
}

pub fn read_text(_: &Bench, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(rewritten) = placeholders::rewrite(&text) {
        assert!(rewritten.len() <= 4 * text.len() + 64);
    }
}

/// A field of a protocol buffer's message: a number, or bytes.
pub fn number(field: u8, value: u8) -> Vec<u8> {
    match field {
        ..16 => vec![field << 3, value],
        _ => vec![field << 3 | 0x80, field >> 4, value],
    }
}

pub fn message(field: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = number(field, 0);
    bytes.pop();
    bytes[0] |= 2;
    let length = content.len();
    bytes.extend([(length & 0x7f) as u8 | 0x80, (length >> 7) as u8]);
    [bytes.as_slice(), content].concat()
}

/// A module with a loop, a fusion and a collective.
pub fn module_seeds(_: &Bench) -> Vec<Vec<u8>> {
    let shape = message(3, &[number(2, 11), number(3, 4), number(3, 5), message(5, &number(8, 1))].concat());
    let instruction = |id: u8, opcode: &str, operands: &[u8], called: &[u8], more: &[u8]| {
        let ids = |field, ids: &[u8]| ids.iter().flat_map(|id| number(field, *id)).collect::<Vec<u8>>();
        let fields = [
            message(2, opcode.as_bytes()),
            shape.clone(),
            number(35, id),
            ids(36, operands),
            ids(38, called),
            more.to_vec(),
        ];
        message(2, &fields.concat())
    };
    let computation = |id: u8, root: u8, instructions: &[Vec<u8>]| {
        message(3, &[instructions.concat(), number(5, id), number(6, root)].concat())
    };
    let cost = message(43, br#"{"window_config":{"estimated_cycles":"12"}}"#);
    let entry = [
        instruction(1, "parameter", &[], &[], &[]),
        instruction(2, "fusion", &[1], &[2], &cost),
        instruction(3, "all-reduce-start", &[2], &[], &[]),
        instruction(4, "while", &[3], &[3, 4], &[]),
        instruction(5, "call", &[4], &[5], &[]),
    ];
    let fused = [
        instruction(1, "parameter", &[], &[], &number(9, 0)),
        instruction(2, "dynamic-slice", &[1], &[], &[]),
        instruction(3, "dynamic-update-slice", &[1, 2], &[], &[]),
    ];
    let body = [instruction(1, "parameter", &[], &[], &[]), instruction(2, "copy", &[1], &[], &cost)];
    let condition = [
        instruction(1, "parameter", &[], &[], &[]),
        instruction(2, "constant", &[], &[], &message(8, &number(4, 8))),
        instruction(3, "compare", &[1, 2], &[], &[]),
    ];
    let computations = [
        computation(1, 5, &entry),
        computation(2, 3, &fused),
        computation(3, 2, &body),
        computation(4, 3, &condition),
        computation(5, 2, &body),
    ];
    vec![[computations.concat(), number(6, 1)].concat()]
}

pub fn read_module(_: &Bench, bytes: &[u8]) {
    let compiled = Compiled { usage: Usage::default(), costs: vec![], module: bytes.to_vec(), hosts: 1 };
    let _ = compiled.estimate(Trips { steps: 2.0, drawn: 3.0 });
}

pub fn answer_seeds(bench: &Bench) -> Vec<Vec<u8>> {
    module_seeds(bench).iter().map(|module| message(1, module)).collect()
}

/// What a plugin gives when it is asked for its optimized module.
pub fn read_answer(bench: &Bench, bytes: &[u8]) {
    if let Ok(module) = module_bytes("hlo_with_config", bytes.to_vec()) {
        read_module(bench, &module);
    }
}

pub fn kept_seeds(_: &Bench) -> Vec<Vec<u8>> {
    vec![[&Sha256::digest(b"compiled")[..], b"compiled"].concat(), vec![]]
}

pub fn read_kept(bench: &Bench, bytes: &[u8]) {
    let entry = KeptProgram::new(&bench.path(""), &[b"compiler".as_slice(), b"module"]);
    fs::write(entry.path(), bytes).expect("a temporary file");
    if let Some(body) = entry.read() {
        assert_eq!(Sha256::digest(&body)[..], bytes[..32]);
    }
}
