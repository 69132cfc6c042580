//! Executables that are not loaded on a device: their memory use, costs, module and serialized form.

use std::ptr;

use anyhow::Result;

use super::api::{self, Api};
use super::{Usage, ffi, wire};

/// An executable that is not loaded on any device.
pub struct UnloadedExecutable<'a> {
    api: &'a Api,
    executable: *mut ffi::Executable,
}

impl<'a> UnloadedExecutable<'a> {
    /// # Safety
    /// The executable comes from this plugin, and nobody else frees it.
    pub unsafe fn new(api: &'a Api, executable: *mut ffi::Executable) -> UnloadedExecutable<'a> {
        UnloadedExecutable { api, executable }
    }

    /// Calls a function that takes this executable.
    ///
    /// # Safety
    /// All other pointers in the arguments are as [`Api::call`] requires.
    unsafe fn call<A: ffi::Args>(&self, args: A) -> Result<A> {
        // SAFETY: the executable lives as long as this value; the rest is the caller's promise.
        unsafe { self.api.call(args) }
    }

    /// Returns the device memory that it needs.
    pub fn usage(&self) -> Result<Usage> {
        let executable = self.executable;
        let stats = ffi::Executable_GetCompiledMemoryStats { executable, ..Default::default() };
        let code = ffi::Executable_SizeOfGeneratedCodeInBytes { executable, ..Default::default() };
        // SAFETY: there are no other pointers.
        let (stats, code) = unsafe { (self.call(stats)?, self.call(code)?) };
        Ok(Usage {
            arguments: stats.argument_size_in_bytes,
            outputs: stats.output_size_in_bytes,
            donated: stats.alias_size_in_bytes,
            temporaries: stats.temp_size_in_bytes,
            code: code.size_in_bytes.max(stats.generated_code_size_in_bytes),
        })
    }

    /// Returns XLA's cost analysis, by XLA's names.
    pub fn costs(&self) -> Result<Vec<(String, f64)>> {
        let executable = self.executable;
        // SAFETY: there are no other pointers; the values live as long as the executable.
        let costs = unsafe {
            let costs = self.call(ffi::Executable_GetCostAnalysis { executable, ..Default::default() })?;
            api::named_values(costs.properties, costs.num_properties)
        };
        Ok(costs.into_iter().filter_map(|(name, value)| Some((name, value.number()?))).collect())
    }

    /// Returns the optimized module, a serialized `HloModuleProto`.
    pub fn module(&self) -> Result<Vec<u8>> {
        // The plugin returns the size if `code` is null, else it fills `code` with the bytes.
        let get = |bytes: Option<&mut Vec<u8>>| {
            let (code, code_size) = bytes.map_or((ptr::null_mut(), 0), |b| (b.as_mut_ptr().cast(), b.len()));
            let mut program = ffi::Program { code, code_size, ..Default::default() };
            // SAFETY: the program lives during the call, and its code is null or has room for as many bytes as the plugin
            // reported. The format's string lives as long as the executable.
            let format = unsafe {
                self.call(ffi::Executable_OptimizedProgram {
                    executable: self.executable,
                    program: &raw mut program,
                    ..Default::default()
                })?;
                api::text(program.format, program.format_size)
            };
            Ok::<_, anyhow::Error>((program.code_size, format))
        };
        let (size, _) = get(None)?;
        let mut bytes = vec![0; size];
        let (_, format) = get(Some(&mut bytes))?;
        wire::hlo::module_bytes(&format, bytes)
    }

    /// Returns the number of results.
    pub fn outputs(&self) -> Result<usize> {
        let count = ffi::Executable_NumOutputs { executable: self.executable, ..Default::default() };
        // SAFETY: there are no other pointers.
        Ok(unsafe { self.call(count) }?.num_outputs)
    }

    /// Returns the compiled program in the plugin's own format.
    ///
    /// # Errors
    /// When the plugin cannot serialize it.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        let serialize = ffi::Executable_Serialize { executable: self.executable, ..Default::default() };
        // SAFETY: there are no other pointers; the bytes live until the deleter is called.
        let (serialized, bytes) = unsafe {
            let result = self.call(serialize)?;
            let bytes =
                api::elements(result.serialized_bytes.cast::<u8>(), result.serialized_bytes_size).to_vec();
            (result, bytes)
        };
        if let Some(free) = serialized.serialized_executable_deleter {
            // SAFETY: the deleter is called once, on the object that came with it.
            unsafe { free(serialized.serialized_executable) };
        }
        Ok(bytes)
    }
}

impl Drop for UnloadedExecutable<'_> {
    fn drop(&mut self) {
        // SAFETY: this value is the executable's only owner.
        unsafe {
            self.api.free(ffi::Executable_Destroy { executable: self.executable, ..Default::default() })
        };
    }
}
