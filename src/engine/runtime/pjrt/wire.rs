//! The protocol buffer messages that this program exchanges with XLA, with only the fields that it uses. It writes compile options
//! and reads compiled modules.

use std::collections::HashMap;

use prost::Message;

use super::api::Value;

/// `xla.CompileOptionsProto` (xla/pjrt/proto/compile_options.proto).
#[derive(Clone, PartialEq, Message)]
struct CompileOptions {
    #[prost(message, optional, tag = "3")]
    build: Option<BuildOptions>,
    #[prost(map = "string, message", tag = "7")]
    overrides: HashMap<String, Override>,
}

/// `xla.ExecutableBuildOptionsProto`.
#[derive(Clone, PartialEq, Message)]
struct BuildOptions {
    #[prost(int64, tag = "1")]
    device_ordinal: i64,
    #[prost(int64, tag = "4")]
    replicas: i64,
    #[prost(int64, tag = "5")]
    partitions: i64,
    #[prost(message, optional, tag = "9")]
    assignment: Option<Assignment>,
}

/// `xla.DeviceAssignmentProto`.
#[derive(Clone, PartialEq, Message)]
struct Assignment {
    #[prost(int32, tag = "1")]
    replicas: i32,
    #[prost(int32, tag = "2")]
    computations: i32,
    #[prost(message, repeated, tag = "3")]
    devices: Vec<ComputationDevices>,
}

/// `xla.DeviceAssignmentProto.ComputationDevice`.
#[derive(Clone, PartialEq, Message)]
struct ComputationDevices {
    #[prost(int64, repeated, tag = "1")]
    by_replica: Vec<i64>,
}

/// `xla.OptionOverrideProto`.
#[derive(Clone, PartialEq, Message)]
struct Override {
    #[prost(oneof = "OverrideField", tags = "1, 2, 3, 4")]
    field: Option<OverrideField>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum OverrideField {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(int64, tag = "3")]
    Int(i64),
    #[prost(double, tag = "4")]
    Double(f64),
}

/// Returns serialized compile options: the number of replicas, the ids of their devices if given, and compiler flags.
pub fn compile_options(replicas: usize, devices: Option<&[i64]>, flags: &[(String, Value)]) -> Vec<u8> {
    let assignment = devices.map(|devices| Assignment {
        replicas: devices.len() as i32,
        computations: 1,
        devices: vec![ComputationDevices { by_replica: devices.to_vec() }],
    });
    let overrides = flags.iter().map(|(name, value)| {
        let field = match value {
            Value::Text(v) => OverrideField::Text(v.clone()),
            Value::Int(v) => OverrideField::Int(*v),
            Value::Float(v) => OverrideField::Double(f64::from(*v)),
            Value::Bool(v) => OverrideField::Bool(*v),
            Value::Ints(v) => OverrideField::Text(format!("{v:?}")),
        };
        (name.clone(), Override { field: Some(field) })
    });
    CompileOptions {
        build: Some(BuildOptions {
            device_ordinal: -1,
            replicas: replicas as i64,
            partitions: 1,
            assignment,
        }),
        overrides: overrides.collect(),
    }
    .encode_to_vec()
}

/// Messages of compiled modules.
pub mod hlo {
    use anyhow::{Context, Result, bail};
    use prost::Message;

    /// `xla.HloModuleProto` (xla/service/hlo.proto).
    #[derive(Clone, PartialEq, Message)]
    pub struct Module {
        #[prost(message, repeated, tag = "3")]
        pub computations: Vec<Computation>,
        #[prost(int64, tag = "6")]
        pub entry_id: i64,
    }

    /// `xla.HloComputationProto`.
    #[derive(Clone, PartialEq, Message)]
    pub struct Computation {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, repeated, tag = "2")]
        pub instructions: Vec<Instruction>,
        #[prost(int64, tag = "5")]
        pub id: i64,
        #[prost(int64, tag = "6")]
        pub root_id: i64,
    }

    /// `xla.HloInstructionProto`.
    #[derive(Clone, PartialEq, Message)]
    pub struct Instruction {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub opcode: String,
        #[prost(message, optional, tag = "3")]
        pub shape: Option<Shape>,
        #[prost(message, optional, tag = "8")]
        pub literal: Option<Literal>,
        #[prost(int64, tag = "9")]
        pub parameter_number: i64,
        #[prost(int64, tag = "13")]
        pub tuple_index: i64,
        #[prost(string, tag = "28")]
        pub custom_call_target: String,
        #[prost(int64, tag = "35")]
        pub id: i64,
        #[prost(int64, repeated, tag = "36")]
        pub operand_ids: Vec<i64>,
        #[prost(int64, repeated, tag = "38")]
        pub called_ids: Vec<i64>,
        #[prost(bytes = "vec", tag = "43")]
        pub backend_config: Vec<u8>,
    }

    /// `xla.ShapeProto`.
    #[derive(Clone, PartialEq, Message)]
    pub struct Shape {
        /// `xla.PrimitiveType`.
        #[prost(int32, tag = "2")]
        pub element_type: i32,
        #[prost(int64, repeated, tag = "3")]
        pub dimensions: Vec<i64>,
        #[prost(message, repeated, tag = "4")]
        pub tuple: Vec<Shape>,
        #[prost(message, optional, tag = "5")]
        pub layout: Option<Layout>,
    }

    /// `xla.LayoutProto`.
    #[derive(Clone, PartialEq, Message)]
    pub struct Layout {
        #[prost(int64, tag = "8")]
        pub memory_space: i64,
    }

    /// `xla.LiteralProto`, with only its 32-bit integers.
    #[derive(Clone, PartialEq, Message)]
    pub struct Literal {
        #[prost(int32, repeated, tag = "4")]
        pub s32: Vec<i32>,
    }

    /// `xla.HloModuleProtoWithConfig`.
    #[derive(Clone, PartialEq, Message)]
    struct WithConfig {
        #[prost(bytes = "vec", optional, tag = "1")]
        module: Option<Vec<u8>>,
    }

    /// Extracts the serialized module from a plugin's optimized program.
    ///
    /// # Errors
    /// When the plugin uses an unknown format.
    pub fn module_bytes(format: &str, bytes: Vec<u8>) -> Result<Vec<u8>> {
        match format {
            "hlo" => Ok(bytes),
            "hlo_with_config" => {
                WithConfig::decode(bytes.as_slice())?.module.context("the plugin returned no module")
            }
            other => bail!("the plugin returns its optimized program in an unknown format, {other:?}"),
        }
    }

    impl Module {
        pub fn read(bytes: &[u8]) -> Result<Module> {
            Module::decode(bytes).context("reading the compiler's optimized module")
        }
    }
}
