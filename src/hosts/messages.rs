//! The messages between sessions and the coordinator, with only the fields that are used, and how gRPC
//! carries them.
//!
//! They are those of `xla.coordination.CoordinationService`
//! (xla/pjrt/distributed/coordination/coordination_service.proto) as jaxlib 0.10.2 speaks it. Other versions
//! of jaxlib number the fields differently. [`RegisterTask::processes`] and [`Fail`] are additions of this
//! library.

use std::collections::HashMap;
use std::marker::PhantomData;

use prost::Message;
use prost::bytes::Bytes;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

use super::Failure;

/// Largest message in bytes. The topology of a large GPU cluster has several megabytes.
pub const LARGEST: usize = 64 << 20;

/// A request: the path of its method, its answer, and the run it belongs to.
pub trait Call: Message + Default + 'static {
    type Answer: Message + Default + 'static;
    const PATH: &'static str;

    /// Returns the coordinator that the sender registered with; `None` for the registration itself.
    fn coordinator(&self) -> Option<u64>;
}

macro_rules! call {
    ($message:ty, $path:literal, $answer:ty) => {
        impl Call for $message {
            type Answer = $answer;
            const PATH: &'static str = $path;

            fn coordinator(&self) -> Option<u64> {
                Some(self.incarnations.as_ref().map_or(0, |i| i.service))
            }
        }
    };
}

/// Distinguishes this start of a process, and of the coordinator, from earlier ones.
#[derive(Clone, PartialEq, Message)]
pub struct Incarnations {
    #[prost(fixed64, tag = "2")]
    pub task: u64,
    #[prost(fixed64, tag = "3")]
    pub service: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct RegisterTask {
    #[prost(fixed64, tag = "3")]
    pub incarnation: u64,
    #[prost(int32, tag = "5")]
    pub process: i32,
    /// Number of processes that the sender was started with. Other programs do not send it.
    #[prost(int32, optional, tag = "1000")]
    pub processes: Option<i32>,
}

impl Call for RegisterTask {
    type Answer = ServiceIncarnation;
    const PATH: &'static str = "/xla.coordination.CoordinationService/RegisterTask";

    fn coordinator(&self) -> Option<u64> {
        None
    }
}

/// The answer to registrations and heartbeats.
#[derive(Clone, PartialEq, Message)]
pub struct ServiceIncarnation {
    #[prost(fixed64, tag = "1")]
    pub incarnation: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Heartbeat {
    #[prost(message, optional, tag = "1")]
    pub incarnations: Option<Incarnations>,
    #[prost(fixed64, tag = "2")]
    pub incarnation: u64,
    #[prost(int32, tag = "3")]
    pub process: i32,
}
call!(Heartbeat, "/xla.coordination.CoordinationService/Heartbeat", ServiceIncarnation);

/// Is answered when the run fails or ends, always with an error.
#[derive(Clone, PartialEq, Message)]
pub struct PollForError {
    #[prost(message, optional, tag = "1")]
    pub incarnations: Option<Incarnations>,
    #[prost(int32, tag = "2")]
    pub process: i32,
}
call!(PollForError, "/xla.coordination.CoordinationService/PollForError", ());

#[derive(Clone, PartialEq, Message)]
pub struct ShutdownTask {
    #[prost(message, optional, tag = "1")]
    pub incarnations: Option<Incarnations>,
    #[prost(int32, tag = "2")]
    pub process: i32,
}
call!(ShutdownTask, "/xla.coordination.CoordinationService/ShutdownTask", ());

#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub struct InsertKeyValue {
    #[prost(message, optional, tag = "1")]
    pub incarnations: Option<Incarnations>,
    #[prost(message, optional, tag = "2")]
    pub entry: Option<KeyValue>,
    #[prost(bool, tag = "3")]
    pub overwrite: bool,
}
call!(InsertKeyValue, "/xla.coordination.CoordinationService/InsertKeyValue", ());

#[derive(Clone, PartialEq, Message)]
pub struct GetKeyValue {
    #[prost(message, optional, tag = "1")]
    pub incarnations: Option<Incarnations>,
    #[prost(string, tag = "2")]
    pub key: String,
}
call!(GetKeyValue, "/xla.coordination.CoordinationService/GetKeyValue", KeyValueAnswer);

#[derive(Clone, PartialEq, Message)]
pub struct TryGetKeyValue {
    #[prost(message, optional, tag = "1")]
    pub incarnations: Option<Incarnations>,
    #[prost(string, tag = "2")]
    pub key: String,
}
call!(TryGetKeyValue, "/xla.coordination.CoordinationService/TryGetKeyValue", KeyValueAnswer);

#[derive(Clone, PartialEq, Message)]
pub struct DeleteKeyValue {
    #[prost(message, optional, tag = "1")]
    pub incarnations: Option<Incarnations>,
    #[prost(string, tag = "2")]
    pub key: String,
    /// Whether to delete all keys that begin with the key and a slash too.
    #[prost(bool, tag = "3")]
    pub directory: bool,
}
call!(DeleteKeyValue, "/xla.coordination.CoordinationService/DeleteKeyValue", ());

#[derive(Clone, PartialEq, Message)]
pub struct KeyValueAnswer {
    #[prost(message, optional, tag = "1")]
    pub entry: Option<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Barrier {
    #[prost(message, optional, tag = "1")]
    pub incarnations: Option<Incarnations>,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(int64, tag = "3")]
    pub timeout_ms: i64,
    /// The processes that meet, if not all.
    #[prost(int32, repeated, tag = "4")]
    pub members: Vec<i32>,
    #[prost(int32, tag = "5")]
    pub process: i32,
    /// How often the sender has been at a barrier of this name before.
    #[prost(int64, tag = "6")]
    pub counter: i64,
}
call!(Barrier, "/xla.coordination.CoordinationService/Barrier", BarrierAnswer);

#[derive(Clone, PartialEq, Message)]
pub struct BarrierAnswer {
    #[prost(int64, tag = "1")]
    pub counter: i64,
}

/// Tells all others why the sender ends.
#[derive(Clone, PartialEq, Message)]
pub struct Fail {
    #[prost(message, optional, tag = "1")]
    pub incarnations: Option<Incarnations>,
    #[prost(int32, tag = "2")]
    pub process: i32,
    #[prost(string, tag = "3")]
    pub message: String,
}
call!(Fail, "/vnca.CoordinationService/Fail", ());

/// `tensorflow.distributed_runtime.GrpcPayloadContainer`: what accompanies an error.
#[derive(Clone, PartialEq, Message)]
struct Payloads {
    #[prost(map = "string, bytes", tag = "1")]
    payloads: HashMap<String, Vec<u8>>,
}

/// `xla.coordination.CoordinationServiceError`: marks errors of the coordinator itself, as opposed to those
/// of the network.
#[derive(Clone, PartialEq, Message)]
struct Origin {
    /// The process that failed. Unlike other coordinators, that of this library sends a 0 explicitly.
    #[prost(int32, optional, tag = "4")]
    process: Option<i32>,
}

const ORIGIN: &str = "type.googleapis.com/tensorflow.CoordinationServiceError";

/// Returns an error of the coordinator.
pub fn refusal(code: Code, message: impl Into<String>, process: Option<usize>) -> Status {
    let origin = Origin { process: process.map(|p| p as i32) }.encode_to_vec();
    let payloads = Payloads { payloads: HashMap::from([(ORIGIN.to_owned(), origin)]) };
    Status::with_details(code, message, payloads.encode_to_vec().into())
}

/// Returns what a coordinator reports about the run, `None` for an error of the network.
pub fn reported(status: &Status) -> Option<Failure> {
    let payloads = Payloads::decode(status.details()).ok()?.payloads;
    let origin = Origin::decode(payloads.get(ORIGIN)?.as_slice()).ok()?;
    let process = origin.process.and_then(|p| usize::try_from(p).ok());
    Some(Failure { process, reason: status.message().to_owned() })
}

/// Protocol buffers as a codec of gRPC: writes `W`, reads `R`.
pub struct Protobuf<W, R>(PhantomData<(W, R)>);

impl<W, R> Protobuf<W, R> {
    pub fn new() -> Protobuf<W, R> {
        Protobuf(PhantomData)
    }
}

impl<W: Message + 'static, R: Message + Default + 'static> Codec for Protobuf<W, R> {
    type Encode = W;
    type Decode = R;
    type Encoder = Protobuf<W, R>;
    type Decoder = Protobuf<W, R>;

    fn encoder(&mut self) -> Protobuf<W, R> {
        Protobuf::new()
    }

    fn decoder(&mut self) -> Protobuf<W, R> {
        Protobuf::new()
    }
}

impl<W: Message, R> Encoder for Protobuf<W, R> {
    type Item = W;
    type Error = Status;

    fn encode(&mut self, message: W, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl<W, R: Message + Default> Decoder for Protobuf<W, R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        R::decode(buffer).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields and their numbers, as protoc would write them.
    #[test]
    fn messages_have_the_numbers_of_the_protocol() {
        let incarnations = Some(Incarnations { task: 1, service: 2 });
        let stamp = [&[0x0a, 18, 0x11][..], &1u64.to_le_bytes(), &[0x19], &2u64.to_le_bytes()].concat();
        let register = RegisterTask { incarnation: 1, process: 3, processes: None };
        assert_eq!(register.encode_to_vec(), [&[0x19][..], &1u64.to_le_bytes(), &[0x28, 3]].concat());
        let beat = Heartbeat { incarnations: incarnations.clone(), incarnation: 1, process: 3 };
        let rest = [&[0x11][..], &1u64.to_le_bytes(), &[0x18, 3]].concat();
        assert_eq!(beat.encode_to_vec(), [&stamp[..], &rest].concat());
        let entry = Some(KeyValue { key: "k".into(), value: Bytes::from_static(b"v") });
        let put = InsertKeyValue { incarnations: incarnations.clone(), entry, overwrite: true };
        let rest = [0x12, 6, 0x0a, 1, b'k', 0x12, 1, b'v', 0x18, 1];
        assert_eq!(put.encode_to_vec(), [&stamp[..], &rest].concat());
        let barrier =
            Barrier { incarnations, id: "b".into(), timeout_ms: 4, members: vec![5], process: 6, counter: 7 };
        let rest = [0x12, 1, b'b', 0x18, 4, 0x22, 1, 5, 0x28, 6, 0x30, 7];
        assert_eq!(barrier.encode_to_vec(), [&stamp[..], &rest].concat());
    }

    #[test]
    fn a_refusal_keeps_its_process_and_a_network_error_has_none() {
        for process in [Some(0), Some(3), None] {
            let failure = reported(&refusal(Code::Unavailable, "gone", process)).unwrap();
            assert_eq!(failure, Failure { process, reason: "gone".into() });
        }
        assert_eq!(reported(&Status::unavailable("gone")), None);
    }
}
