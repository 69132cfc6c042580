//! The devices of a plugin's client, those of other processes included.

use anyhow::{Result, ensure};

use super::api::{self, Api};
use super::ffi;
use crate::engine::runtime::Processes;

/// A device of a client.
#[derive(Clone, Copy)]
pub struct Device {
    pub pointer: *mut ffi::Device,
    /// The process that the device belongs to.
    pub process: usize,
    /// The device's number in compile options, unique among all processes.
    pub id: i64,
}

/// Returns this process's number and the devices of all processes, in the order of the replicas: by process, then by number. All
/// processes have to find the same order, whatever order their plugin has.
///
/// # Safety
/// The client belongs to this plugin, and lives.
///
/// # Errors
/// When the plugin's processes are not `expected`.
pub unsafe fn find(
    api: &Api,
    client: *mut ffi::Client,
    expected: Option<&Processes>,
) -> Result<(usize, Vec<Device>)> {
    // SAFETY: the client lives, and so do its devices as long as it.
    let (process, devices) = unsafe {
        match expected {
            // Without a number of processes every plugin opens its own devices. A TPU's may know others, which do not take part.
            None => {
                let found = api.call(ffi::Client_AddressableDevices { client, ..Default::default() })?;
                let devices = api::elements(found.addressable_devices, found.num_addressable_devices);
                (0, devices)
            }
            Some(_) => {
                let process = api.call(ffi::Client_ProcessIndex { client, ..Default::default() })?;
                let found = api.call(ffi::Client_Devices { client, ..Default::default() })?;
                (process.process_index, api::elements(found.devices, found.num_devices))
            }
        }
    };
    let device = |pointer: &*mut ffi::Device| {
        // SAFETY: as above; a description lives as long as its device.
        unsafe {
            let device_description = description(api, *pointer)?;
            let id = api.call(ffi::DeviceDescription_Id { device_description, ..Default::default() })?.id;
            let process = match expected {
                None => 0,
                Some(_) => {
                    let get =
                        ffi::DeviceDescription_ProcessIndex { device_description, ..Default::default() };
                    usize::try_from(api.call(get)?.process_index)?
                }
            };
            Ok(Device { pointer: *pointer, process, id: i64::from(id) })
        }
    };
    let mut devices = devices.iter().map(device).collect::<Result<Vec<Device>>>()?;
    devices.sort_by_key(|device| (device.process, device.id));
    let process = usize::try_from(process)?;
    if let Some(Processes { index, count, .. }) = expected {
        let mut found: Vec<usize> = devices.iter().map(|device| device.process).collect();
        found.dedup();
        ensure!(
            process == *index && found == (0..*count).collect::<Vec<_>>(),
            "this is process {index} of {count}, but its plugin is process {process} and has devices of the processes {found:?}: \
             start the processes with the numbers that the plugin finds"
        );
    }
    Ok((process, devices))
}

/// # Safety
/// The device belongs to this plugin, and its client lives.
pub unsafe fn description(api: &Api, device: *mut ffi::Device) -> Result<*mut ffi::DeviceDescription> {
    let get = ffi::Device_GetDescription { device, ..Default::default() };
    // SAFETY: the caller's promise.
    Ok(unsafe { api.call(get) }?.device_description)
}
