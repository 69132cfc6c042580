//! Executables as their compiler leaves them: what it says of them, and their bytes.

use std::ptr;

use anyhow::Result;

use super::api::{self, Api};
use super::{Usage, ffi, wire};

/// An executable that is not loaded on any device.
pub struct Plain<'a> {
    pub api: &'a Api,
    pub executable: *mut ffi::Executable,
}

impl Plain<'_> {
    pub fn usage(&self) -> Result<Usage> {
        let executable = self.executable;
        let stats =
            self.api.call(ffi::Executable_GetCompiledMemoryStats { executable, ..Default::default() })?;
        let code =
            self.api.call(ffi::Executable_SizeOfGeneratedCodeInBytes { executable, ..Default::default() })?;
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
        let found = self.api.call(ffi::Executable_GetCostAnalysis { executable, ..Default::default() })?;
        // SAFETY: the values live as long as the executable.
        let found = unsafe { api::named_values(found.properties, found.num_properties) };
        Ok(found.into_iter().filter_map(|(name, value)| Some((name, value.number()?))).collect())
    }

    /// Asked twice: for the size, and for the bytes.
    pub fn module(&self) -> Result<Vec<u8>> {
        let mut program = ffi::Program::default();
        let mut ask = |code: *mut u8| {
            program.code = code.cast();
            self.api.call(ffi::Executable_OptimizedProgram {
                executable: self.executable,
                program: &raw mut program,
                ..Default::default()
            })?;
            // SAFETY: the format's text lives as long as the executable.
            let format = unsafe { api::text(program.format, program.format_size) };
            Ok::<_, anyhow::Error>((program.code_size, format))
        };
        let (size, _) = ask(ptr::null_mut())?;
        let mut bytes = vec![0; size];
        let (_, format) = ask(bytes.as_mut_ptr())?;
        wire::hlo::module_bytes(&format, bytes)
    }

    /// The number of results.
    pub fn outputs(&self) -> Result<usize> {
        let count = ffi::Executable_NumOutputs { executable: self.executable, ..Default::default() };
        Ok(self.api.call(count)?.num_outputs)
    }

    /// The compiled program in the plugin's own form.
    ///
    /// # Errors
    /// When the plugin cannot write this one.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        let made =
            self.api.call(ffi::Executable_Serialize { executable: self.executable, ..Default::default() })?;
        // SAFETY: the bytes live until the deleter is called.
        let bytes =
            unsafe { api::elements(made.serialized_bytes.cast::<u8>(), made.serialized_bytes_size).to_vec() };
        if let Some(free) = made.serialized_executable_deleter {
            // SAFETY: called once, on what it came with.
            unsafe { free(made.serialized_executable) };
        }
        Ok(bytes)
    }
}

impl Drop for Plain<'_> {
    fn drop(&mut self) {
        self.api.free(ffi::Executable_Destroy { executable: self.executable, ..Default::default() });
    }
}
