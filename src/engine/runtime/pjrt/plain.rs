//! Executables as their compiler leaves them: what it says of them, and their bytes.

use std::ptr;

use anyhow::Result;

use super::api::{self, Api};
use super::{Usage, ffi, wire};

/// An executable that is not loaded on any device.
pub struct Plain<'a> {
    api: &'a Api,
    executable: *mut ffi::Executable,
}

impl<'a> Plain<'a> {
    /// # Safety
    /// The executable is one of this plugin's, which nobody else frees.
    pub unsafe fn new(api: &'a Api, executable: *mut ffi::Executable) -> Plain<'a> {
        Plain { api, executable }
    }

    /// Calls a function whose arguments are the executable and what the function writes.
    ///
    /// # Safety
    /// All other pointers in the arguments are as [`Api::call`] asks.
    unsafe fn ask<A: ffi::Args>(&self, args: A) -> Result<A> {
        // SAFETY: the executable lives as long as this; the rest is the caller's promise.
        unsafe { self.api.call(args) }
    }

    pub fn usage(&self) -> Result<Usage> {
        let executable = self.executable;
        let stats = ffi::Executable_GetCompiledMemoryStats { executable, ..Default::default() };
        let code = ffi::Executable_SizeOfGeneratedCodeInBytes { executable, ..Default::default() };
        // SAFETY: there are no other pointers.
        let (stats, code) = unsafe { (self.ask(stats)?, self.ask(code)?) };
        Ok(Usage {
            arguments: stats.argument_size_in_bytes,
            outputs: stats.output_size_in_bytes,
            donated: stats.alias_size_in_bytes,
            temporaries: stats.temp_size_in_bytes,
            code: code.size_in_bytes.max(stats.generated_code_size_in_bytes),
        })
    }

    pub fn costs(&self) -> Result<Vec<(String, f64)>> {
        let executable = self.executable;
        // SAFETY: there are no other pointers; the values live as long as the executable.
        let found = unsafe {
            let found = self.ask(ffi::Executable_GetCostAnalysis { executable, ..Default::default() })?;
            api::named_values(found.properties, found.num_properties)
        };
        Ok(found.into_iter().filter_map(|(name, value)| Some((name, value.number()?))).collect())
    }

    /// Asked twice: for the size, and for the bytes.
    pub fn module(&self) -> Result<Vec<u8>> {
        let ask = |bytes: Option<&mut Vec<u8>>| {
            let (code, code_size) = bytes.map_or((ptr::null_mut(), 0), |b| (b.as_mut_ptr().cast(), b.len()));
            let mut program = ffi::Program { code, code_size, ..Default::default() };
            // SAFETY: the program lives during the call, and its code is null or has room for as many bytes as the plugin
            // said. The format's text lives as long as the executable.
            let format = unsafe {
                self.ask(ffi::Executable_OptimizedProgram {
                    executable: self.executable,
                    program: &raw mut program,
                    ..Default::default()
                })?;
                api::text(program.format, program.format_size)
            };
            Ok::<_, anyhow::Error>((program.code_size, format))
        };
        let (size, _) = ask(None)?;
        let mut bytes = vec![0; size];
        let (_, format) = ask(Some(&mut bytes))?;
        wire::hlo::module_bytes(&format, bytes)
    }

    /// The number of results.
    pub fn outputs(&self) -> Result<usize> {
        let count = ffi::Executable_NumOutputs { executable: self.executable, ..Default::default() };
        // SAFETY: there are no other pointers.
        Ok(unsafe { self.ask(count) }?.num_outputs)
    }

    /// The compiled program in the plugin's own form.
    ///
    /// # Errors
    /// When the plugin cannot write this one.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        let ask = ffi::Executable_Serialize { executable: self.executable, ..Default::default() };
        // SAFETY: there are no other pointers; the bytes live until the deleter is called.
        let (made, bytes) = unsafe {
            let made = self.ask(ask)?;
            let bytes =
                api::elements(made.serialized_bytes.cast::<u8>(), made.serialized_bytes_size).to_vec();
            (made, bytes)
        };
        if let Some(free) = made.serialized_executable_deleter {
            // SAFETY: called once, on what it came with.
            unsafe { free(made.serialized_executable) };
        }
        Ok(bytes)
    }
}

impl Drop for Plain<'_> {
    fn drop(&mut self) {
        // SAFETY: the executable is this one's alone.
        unsafe {
            self.api.free(ffi::Executable_Destroy { executable: self.executable, ..Default::default() })
        };
    }
}
