//! Arrays and programs on the devices of a plugin.

use std::any::Any;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Result, anyhow, ensure};

use super::executable::UnloadedExecutable;
use super::{Shared, api, ffi};
use crate::engine::array::Array;
use crate::engine::program::Signature;
use crate::engine::runtime::{Buffer, Loaded};
use crate::engine::shape::Shape;

pub struct PluginBuffer {
    pub shared: Arc<Shared>,
    pub buffer: *mut ffi::Buffer,
}

// SAFETY: as for `Shared`; the buffer is freed once, when this is dropped.
unsafe impl Send for PluginBuffer {}
// SAFETY: as above.
unsafe impl Sync for PluginBuffer {}

impl Buffer for PluginBuffer {
    fn get(&self, shape: &Shape) -> Result<Array> {
        let api = &self.shared.api;
        let mut bytes = vec![0; shape.bytes()];
        // Asks for row-major order, whatever layout the device uses.
        let order: Vec<i64> = (0..shape.rank() as i64).rev().collect();
        let mut layout = ffi::Buffer_MemoryLayout {
            tiled: ffi::Tiled {
                struct_size: size_of::<ffi::Tiled>(),
                extension_start: ptr::null_mut(),
                minor_to_major: order.as_ptr(),
                minor_to_major_size: order.len(),
                tile_dims: ptr::null(),
                tile_dim_sizes: ptr::null(),
                num_tiles: 0,
            },
            r#type: ffi::LAYOUT_TILED,
            ..Default::default()
        };
        let copy = ffi::Buffer_ToHostBuffer {
            src: self.buffer,
            host_layout: &raw mut layout,
            dst: bytes.as_mut_ptr().cast::<c_void>(),
            dst_size: bytes.len(),
            ..Default::default()
        };
        // SAFETY: buffer and layout live, and `bytes`, which has `dst_size` bytes, lives until the event is ready.
        unsafe { api.wait(api.call(copy)?.event) }?;
        Array::from_bytes(shape.clone(), bytes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for PluginBuffer {
    fn drop(&mut self) {
        // SAFETY: this value is the buffer's only owner.
        unsafe { self.shared.api.free(ffi::Buffer_Destroy { buffer: self.buffer, ..Default::default() }) };
    }
}

pub struct PluginExecutable {
    shared: Arc<Shared>,
    executable: *mut ffi::LoadedExecutable,
    /// The number of replicas in this process.
    own: usize,
    /// Whether there are replicas in other processes.
    is_shared: bool,
    inputs: usize,
    /// The number of results that the plugin reports and writes.
    outputs: usize,
}

// SAFETY: as for `PluginBuffer`.
unsafe impl Send for PluginExecutable {}
// SAFETY: as above.
unsafe impl Sync for PluginExecutable {}

impl PluginExecutable {
    /// Takes ownership of a loaded executable, whose replicas in this process run on the devices `own`.
    ///
    /// # Safety
    /// The executable belongs to this client, and nobody else frees it.
    pub unsafe fn new<'a>(
        shared: &'a Arc<Shared>,
        executable: *mut ffi::LoadedExecutable,
        signature: &Signature,
        own: &[*mut ffi::Device],
    ) -> Result<(PluginExecutable, UnloadedExecutable<'a>)> {
        let api = &shared.api;
        let mut loaded = PluginExecutable {
            shared: shared.clone(),
            executable,
            own: own.len(),
            is_shared: own.len() < signature.replicas,
            inputs: signature.inputs.len(),
            outputs: 0,
        };
        let get = ffi::LoadedExecutable_GetExecutable { loaded_executable: executable, ..Default::default() };
        // SAFETY: the executable lives, and the caller has to free the object that the call returns.
        let unloaded = unsafe { UnloadedExecutable::new(api, api.call(get)?.executable) };
        // The plugin writes as many results as the executable has, whatever the signature says.
        loaded.outputs = unloaded.outputs()?;
        let get = ffi::LoadedExecutable_AddressableDevices { executable, ..Default::default() };
        // SAFETY: the executable lives, and the list as long as it does.
        let devices = unsafe {
            let found = api.call(get)?;
            api::elements(found.addressable_devices, found.num_addressable_devices)
        };
        // The plugin takes the arguments in the order of this list.
        ensure!(devices == own, "the plugin runs {} on other devices than it was told to", signature.name);
        Ok((loaded, unloaded))
    }

    /// Returns the number of a call, by which plugins see that the processes make the same one. 0: no other process takes part.
    fn launch(&self) -> i32 {
        match self.is_shared {
            true => self.shared.launches.fetch_add(1, Ordering::Relaxed).rem_euclid(i32::MAX) + 1,
            false => 0,
        }
    }
}

impl Loaded for PluginExecutable {
    fn execute(&self, arguments: &[Vec<&dyn Buffer>]) -> Result<Vec<Vec<Box<dyn Buffer>>>> {
        let api = &self.shared.api;
        let own = |b: &&dyn Buffer| match b.as_any().downcast_ref::<PluginBuffer>() {
            Some(b) if Arc::ptr_eq(&b.shared, &self.shared) => Ok(b.buffer),
            Some(_) => {
                Err(anyhow!("an argument belongs to another client of the device: use meshes that share one"))
            }
            None => Err(anyhow!("an argument is on another kind of device")),
        };
        let complete = |row: &Vec<&dyn Buffer>| row.len() == self.inputs;
        ensure!(
            arguments.len() == self.own && arguments.iter().all(complete),
            "the program needs {} rows of {} arguments",
            self.own,
            self.inputs
        );
        let lists: Vec<Vec<*mut ffi::Buffer>> =
            arguments.iter().map(|row| row.iter().map(own).collect()).collect::<Result<_>>()?;
        let inputs: Vec<*const *mut ffi::Buffer> = lists.iter().map(|row| row.as_ptr()).collect();
        let mut results = vec![vec![ptr::null_mut::<ffi::Buffer>(); self.outputs]; lists.len()];
        let outputs: Vec<*mut *mut ffi::Buffer> = results.iter_mut().map(|row| row.as_mut_ptr()).collect();
        let mut options = ffi::ExecuteOptions { launch_id: self.launch(), ..Default::default() };
        let execute = ffi::LoadedExecutable_Execute {
            executable: self.executable,
            options: &raw mut options,
            argument_lists: inputs.as_ptr(),
            num_devices: lists.len(),
            num_args: self.inputs,
            output_lists: outputs.as_ptr(),
            ..Default::default()
        };
        // SAFETY: the executable lives, and the lists live during the call. The numbers of arguments and of results are those of
        // the program's signature and of the plugin's report. The buffers belong to the executable's client.
        unsafe { api.call(execute) }?;
        let boxed = |buffer: *mut ffi::Buffer| {
            ensure!(!buffer.is_null(), "the plugin returned no buffer for a result");
            Ok(Box::new(PluginBuffer { shared: self.shared.clone(), buffer }) as Box<dyn Buffer>)
        };
        results.into_iter().map(|row| row.into_iter().map(boxed).collect()).collect()
    }
}

impl Drop for PluginExecutable {
    fn drop(&mut self) {
        let destroy = ffi::LoadedExecutable_Destroy { executable: self.executable, ..Default::default() };
        // SAFETY: this value is the executable's only owner.
        unsafe { self.shared.api.free(destroy) };
    }
}
