//! The CPU, through the `xla` crate: any number of virtual devices that share the cores.

use std::any::Any;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow, ensure};
use xla::{HloModuleProto, PjRtBuffer, PjRtClient, PjRtLoadedExecutable, XlaComputation};

use super::{Buffer, Client, Loaded, Memory, onednn};
use crate::engine::array::Array;
use crate::engine::lower::element_type;
use crate::engine::program::{Format, Program, Target};
use crate::engine::shape::Shape;

struct CpuClient(PjRtClient);
struct CpuBuffer(PjRtBuffer);
struct CpuExecutable(PjRtLoadedExecutable);

/// Virtual devices that are made at least. No more than are wanted: XLA starts a thread for each, however few the cores,
/// and threads that wait for a core cost a training step up to a third of its time.
static LEAST_DEVICES: AtomicUsize = AtomicUsize::new(1);

/// Virtual devices that the client is to have at least, if it is not there yet.
pub(super) fn reserve(devices: usize) {
    LEAST_DEVICES.fetch_max(devices, Ordering::Relaxed);
}

/// The process's client. XLA reads the number of virtual devices once, when the first client is made.
pub(super) fn client(replicas: usize) -> Result<Arc<dyn Client>> {
    static CLIENT: Mutex<Option<Arc<CpuClient>>> = Mutex::new(None);
    let mut slot = CLIENT.lock().map_err(|_| anyhow!("an earlier attempt to open the CPU failed"))?;
    if let Some(client) = slot.as_ref() {
        return Ok(client.clone());
    }
    crate::engine::quiet::set_cpu_flags(replicas.max(LEAST_DEVICES.load(Ordering::Relaxed)));
    let client = Arc::new(CpuClient(PjRtClient::cpu().context("opening XLA's CPU device")?));
    *slot = Some(client.clone());
    Ok(client)
}

impl Client for CpuClient {
    fn describe(&self) -> String {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        format!("{} ({cores} cores, xla {})", self.0.platform_name(), self.0.platform_version())
    }

    fn device_count(&self) -> usize {
        self.0.addressable_device_count()
    }

    fn target(&self) -> Target {
        Target::Cpu
    }

    fn is_linked(&self) -> bool {
        true
    }

    fn compile(&self, program: &Program) -> Result<Box<dyn Loaded>> {
        let format = program.signature.format;
        ensure!(format == Format::Hlo, "the cpu device takes programs in HLO, not {format:?}");
        if program.signature.target == Target::OneDnn {
            onednn::register()?;
        }
        let module = HloModuleProto::parse_proto(&program.module, true)?;
        let computation = XlaComputation::from_proto(&module);
        Ok(Box::new(CpuExecutable(self.0.compile_replicated(&computation, program.signature.replicas)?)))
    }

    fn put(&self, device: usize, array: &Array) -> Result<Box<dyn Buffer>> {
        let devices = self.0.addressable_devices();
        let device = devices.get(device).ok_or_else(|| anyhow!("there is no device {device}"))?;
        let ty = element_type(array.shape().dtype);
        let buffer = self.0.buffer_from_host_raw_bytes(ty, array.bytes(), array.dims(), Some(device))?;
        Ok(Box::new(CpuBuffer(buffer)))
    }

    fn memory(&self, _device: usize) -> Option<Memory> {
        None
    }
}

impl Buffer for CpuBuffer {
    fn get(&self, shape: &Shape) -> Result<Array> {
        let mut bytes = vec![0; shape.bytes()];
        self.0.to_literal_sync()?.copy_untyped_to(&mut bytes)?;
        Array::from_bytes(shape.clone(), bytes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Loaded for CpuExecutable {
    fn execute(&self, arguments: &[Vec<&dyn Buffer>]) -> Result<Vec<Vec<Box<dyn Buffer>>>> {
        let own = |b: &&dyn Buffer| match b.as_any().downcast_ref::<CpuBuffer>() {
            Some(_) => Ok(()),
            None => Err(anyhow!("an argument lies on another kind of device")),
        };
        arguments.iter().flatten().try_for_each(own)?;
        let by_replica: Vec<Vec<&PjRtBuffer>> = arguments
            .iter()
            .map(|row| {
                row.iter().filter_map(|b| b.as_any().downcast_ref::<CpuBuffer>()).map(|b| &b.0).collect()
            })
            .collect();
        let results = self.0.execute_replicated_b(&by_replica)?;
        let boxed = |b: PjRtBuffer| Box::new(CpuBuffer(b)) as Box<dyn Buffer>;
        Ok(results.into_iter().map(|row| row.into_iter().map(boxed).collect()).collect())
    }
}
