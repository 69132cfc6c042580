//! The CPU backend of the linked XLA library. It has any number of virtual devices, which share the cores.

use std::any::Any;
use std::ffi::{CStr, CString, OsStr, c_char};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::onednn::OneDnn;
use super::{Buffer, Cache, Client, Loaded, Memory, cache, pjrt};
use crate::engine::array::Array;
use crate::engine::program::{Format, Program, Signature, Target};
use crate::engine::shape::{DType, Shape};
use crate::error::{Error, Tag};

/// An XLA client, and the state that its custom calls share.
struct Shared {
    client: NonNull<ffi::Client>,
    /// Running calls of the client point to it, so its address must not change while the client lives.
    one_dnn: Box<OneDnn>,
}

// SAFETY: several threads may use PJRT clients, executables and buffers at once.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: vnca_cpu_open created the client, and this is its only owner: buffers and executables hold `Shared`. Closing
        // waits for running calls, and only then are the fields dropped that those calls use.
        unsafe { ffi::vnca_cpu_close(self.client.as_ptr()) };
    }
}

struct CpuClient {
    shared: Arc<Shared>,
    /// The folder of compiled programs.
    cache: Option<PathBuf>,
    /// Identifies everything that a compiled program depends on besides its module and its number of replicas.
    fingerprint: String,
}

/// The source of the functions around XLA. It sets the compiler's options and decides what a saved program is.
const SOURCE: &str = include_str!("client.cc");
/// The beginnings of the names of environment variables that XLA's oneDNN reads.
const ONE_DNN_VARIABLES: [&str; 3] = ["TF_ENABLE_ONEDNN_OPTS", "ONEDNN_", "DNNL_"];
/// The beginning of the flags that make XLA write files when it compiles.
const DUMP_FLAGS: &[u8] = b"--xla_dump";

struct CpuBuffer {
    buffer: NonNull<ffi::Buffer>,
    shared: Arc<Shared>,
}

// SAFETY: as for `Shared`.
unsafe impl Send for CpuBuffer {}
// SAFETY: as above.
unsafe impl Sync for CpuBuffer {}

impl Drop for CpuBuffer {
    fn drop(&mut self) {
        // SAFETY: this value is the buffer's only owner, and the client lives.
        unsafe { ffi::vnca_cpu_free_buffer(self.buffer.as_ptr()) };
    }
}

struct CpuExecutable {
    executable: NonNull<ffi::Executable>,
    inputs: usize,
    outputs: usize,
    replicas: usize,
    shared: Arc<Shared>,
}

// SAFETY: as for `Shared`.
unsafe impl Send for CpuExecutable {}
// SAFETY: as above.
unsafe impl Sync for CpuExecutable {}

impl Drop for CpuExecutable {
    fn drop(&mut self) {
        // SAFETY: this value is the executable's only owner, and the client lives.
        unsafe { ffi::vnca_cpu_free_executable(self.executable.as_ptr()) };
    }
}

/// Creates a client with `devices` virtual devices, unless XLA_FLAGS sets their number.
///
/// Callers should ask for no more devices than they use. XLA starts a thread for each, however few the cores, and threads that
/// wait for a core can slow a training step down by a third.
///
/// # Errors
/// [`Error::Usage`] for a wrong `XLA_FLAGS`, or XLA's own error.
pub(super) fn client(devices: usize, cache: &Cache) -> Result<Box<dyn Client>> {
    let user_flags = user_flags()?;
    let flags: Vec<*const c_char> = user_flags.iter().map(|flag| flag.as_ptr()).collect();
    // SAFETY: there are `flags.len()` flags, which end with a zero byte and live during the call.
    check(unsafe { ffi::vnca_cpu_check_flags(flags.as_ptr(), flags.len()) })
        .context("XLA_FLAGS")
        .tag(Error::Usage)?;
    let mut one_dnn = Box::<OneDnn>::default();
    // Without a type id the client cannot pass the state, and compiling a program with custom calls fails.
    let type_id = OneDnn::xla_type_id().unwrap_or(0);
    let mut client = ptr::null_mut();
    // SAFETY: as above; the client is written to `client`. The shared state lives as long as the client.
    check(unsafe {
        let shared = ptr::from_mut(one_dnn.as_mut()).cast();
        ffi::vnca_cpu_open(devices, flags.as_ptr(), flags.len(), type_id, shared, &raw mut client)
    })
    .context("opening XLA's CPU device")?;
    let client = NonNull::new(client).context("XLA returned no client")?;
    let shared = Arc::new(Shared { client, one_dnn });
    let fingerprint = fingerprint(&shared, &user_flags);
    // A loaded program is not compiled, and then XLA would not write the files that the user asked for.
    let dumps = user_flags.iter().any(|flag| flag.as_bytes().starts_with(DUMP_FLAGS));
    let cache = cache::folder(cache).filter(|_| !dumps);
    Ok(Box::new(CpuClient { shared, cache, fingerprint }))
}

/// See [`CpuClient::fingerprint`].
fn fingerprint(shared: &Shared, flags: &[CString]) -> String {
    // SAFETY: the path is null, or a string that lives as long as the library, which is never unloaded.
    let library = unsafe {
        let path = ffi::vnca_cpu_library();
        (!path.is_null()).then(|| CStr::from_ptr(path).to_string_lossy())
    };
    let file = library.as_deref().and_then(|path| std::fs::metadata(path).ok());
    let file = file.and_then(|file| Some((file.len(), file.modified().ok()?)));
    // SAFETY: the client lives.
    let threads = unsafe { ffi::vnca_cpu_thread_count(shared.client.as_ptr()) };
    let is_read = |name: &OsStr| {
        ONE_DNN_VARIABLES.iter().any(|start| name.as_encoded_bytes().starts_with(start.as_bytes()))
    };
    let mut variables: Vec<_> = std::env::vars_os().filter(|(name, _)| is_read(name)).collect();
    variables.sort();
    let (name, version) = shared.platform();
    let parts = (name, version, file, shared.device_count(), threads, flags, variables, pjrt::processor());
    format!("{parts:?}")
}

/// Turns a function's message into an error.
fn check(message: ffi::Message) -> Result<()> {
    match message.take() {
        None => Ok(()),
        Some(text) => bail!(text),
    }
}

/// Copies bytes and frees the original.
///
/// # Safety
/// A function of `client.cc` returned the bytes, and nobody has freed them.
unsafe fn take_bytes(bytes: *const ffi::Bytes) -> Vec<u8> {
    let mut size = 0;
    // SAFETY: the bytes live until they are freed here, and their number is written to `size`.
    unsafe {
        let data = ffi::vnca_cpu_bytes(bytes, &raw mut size);
        let copy = std::slice::from_raw_parts(data, size).to_vec();
        ffi::vnca_cpu_free_bytes(bytes);
        copy
    }
}

/// Returns bytes that are equal for modules that differ only in the numbers and names that XLA gives to operations.
fn canonical_module(module: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = ptr::null();
    // SAFETY: the length is that of the module. The bytes are written to `bytes`, and only this function has them.
    unsafe {
        check(ffi::vnca_cpu_canonical_module(module.as_ptr().cast(), module.len(), &raw mut bytes))?;
        Ok(take_bytes(bytes))
    }
}

/// Returns the user's flags for XLA: those in XLA_FLAGS, or those in the file that it names.
fn user_flags() -> Result<Vec<CString>> {
    read_flags().context("XLA_FLAGS").tag(Error::Usage)
}

fn read_flags() -> Result<Vec<CString>> {
    let Some(value) = std::env::var_os("XLA_FLAGS") else { return Ok(Vec::new()) };
    let is_list = value.as_encoded_bytes().trim_ascii_start().first().is_none_or(|first| *first == b'-');
    let text = match is_list {
        true => value.to_string_lossy().into_owned(),
        false => std::fs::read_to_string(&value)
            .with_context(|| format!("the file {}", Path::new(&value).display()))?,
    };
    split_flags(&text).into_iter().map(|flag| Ok(CString::new(flag)?)).collect()
}

/// Splits text into flags as XLA does: a value may be quoted, and the first word that is not a flag ends the list.
fn split_flags(text: &str) -> Vec<String> {
    let (mut flags, mut rest) = (Vec::new(), text.trim_ascii_start());
    while rest.starts_with('-') {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let (name, after) = rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len()));
        let quoted = after
            .strip_prefix('=')
            .and_then(|v| Some((v.chars().next()?, v)))
            .filter(|(q, _)| ['"', '\''].contains(q));
        let Some((quote, value)) = quoted else {
            let end = after.find(|c: char| c.is_ascii_whitespace()).unwrap_or(after.len());
            flags.push(format!("{name}{}", &after[..end]));
            rest = after[end..].trim_ascii_start();
            continue;
        };
        let mut flag = format!("{name}=");
        let mut characters = value.char_indices().skip(1);
        let mut end = value.len();
        while let Some((i, c)) = characters.next() {
            if c == quote {
                end = i + 1;
                break;
            }
            let escaped = (quote == '"' && c == '\\').then(|| characters.next()).flatten();
            flag.push(escaped.map_or(c, |(_, c)| c));
        }
        flags.push(flag);
        rest = value[end..].trim_ascii_start();
    }
    flags
}

/// Returns XLA's number for an element type (`xla.PrimitiveType`).
fn element_type(dtype: DType) -> i32 {
    match dtype {
        DType::Pred => 1,
        DType::S32 => 4,
        DType::U8 => 6,
        DType::U32 => 8,
        DType::U64 => 9,
        DType::F32 => 11,
        DType::Bf16 => 16,
    }
}

impl Shared {
    /// Returns the platform's name and version.
    fn platform(&self) -> (String, String) {
        let client = self.client.as_ptr();
        // SAFETY: the client lives, and its two strings live as long as it does.
        let texts =
            unsafe { [ffi::vnca_cpu_name(client), ffi::vnca_cpu_version(client)].map(|t| CStr::from_ptr(t)) };
        let [name, version] = texts.map(|text| text.to_string_lossy().into_owned());
        (name, version)
    }

    fn device_count(&self) -> usize {
        // SAFETY: the client lives.
        unsafe { ffi::vnca_cpu_device_count(self.client.as_ptr()) }
    }
}

impl CpuClient {
    /// Compiles a module.
    fn compile_uncached(&self, module: &[u8], signature: &Signature) -> Result<CpuExecutable> {
        let mut executable = ptr::null_mut();
        // SAFETY: the client lives, the length is that of the module, and the executable is written to `executable`.
        check(unsafe {
            ffi::vnca_cpu_compile(
                self.shared.client.as_ptr(),
                module.as_ptr().cast(),
                module.len(),
                signature.replicas,
                &raw mut executable,
            )
        })?;
        self.wrap(executable, signature)
    }

    /// Loads an executable that [`CpuExecutable::save`] returned.
    fn load(&self, bytes: &[u8], signature: &Signature) -> Result<CpuExecutable> {
        let mut executable = ptr::null_mut();
        // SAFETY: the client lives, the length is that of the bytes, and the executable is written to `executable`. XLA trusts
        // the bytes: they are what XLA saved, because their checksum was right.
        check(unsafe {
            ffi::vnca_cpu_load(
                self.shared.client.as_ptr(),
                bytes.as_ptr().cast(),
                bytes.len(),
                signature.replicas,
                &raw mut executable,
            )
        })?;
        self.wrap(executable, signature)
    }

    /// Takes ownership of an executable of this client.
    fn wrap(&self, executable: *mut ffi::Executable, signature: &Signature) -> Result<CpuExecutable> {
        Ok(CpuExecutable {
            executable: NonNull::new(executable).context("XLA returned no executable")?,
            inputs: signature.inputs.len(),
            outputs: signature.outputs.len(),
            replicas: signature.replicas,
            shared: self.shared.clone(),
        })
    }
}

impl CpuExecutable {
    /// Returns the compiled program as bytes.
    ///
    /// # Safety
    /// The program is not run before this function returns.
    unsafe fn save(&self) -> Result<Vec<u8>> {
        let mut bytes = ptr::null();
        // SAFETY: the executable lives, and nobody runs it by the caller's promise. The bytes are written to `bytes`, and only
        // this function has them.
        unsafe {
            check(ffi::vnca_cpu_save(self.executable.as_ptr(), &raw mut bytes))?;
            Ok(take_bytes(bytes))
        }
    }
}

impl Client for CpuClient {
    fn describe(&self) -> String {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (name, version) = self.shared.platform();
        format!("{name} ({cores} cores, xla {version})")
    }

    fn devices(&self) -> Vec<usize> {
        vec![0; self.shared.device_count()]
    }

    fn target(&self) -> Target {
        Target::Cpu
    }

    fn is_linked(&self) -> bool {
        true
    }

    /// Compiles for the first devices: a mesh in one process has no others.
    fn compile(&self, program: &Program, _devices: &[usize]) -> Result<Box<dyn Loaded>> {
        let signature = &program.signature;
        let format = signature.format;
        ensure!(format == Format::Hlo, "the cpu device runs programs in HLO, not {format:?}");
        if signature.target == Target::OneDnn {
            self.shared.one_dnn.check_usable()?;
        }
        let replicas = signature.replicas.to_le_bytes();
        let entry = |folder| {
            let module = canonical_module(&program.module)?;
            let parts = [self.fingerprint.as_bytes(), SOURCE.as_bytes(), &module, &replicas];
            Ok::<_, anyhow::Error>(cache::Entry::new(folder, &parts))
        };
        let entry = self.cache.as_deref().map(entry).transpose()?;
        let loaded = cache::load_or_compile(
            entry,
            &signature.name,
            |bytes| self.load(bytes, signature),
            Ok,
            || self.compile_uncached(&program.module, signature),
            // SAFETY: nobody else has the program yet.
            |compiled| unsafe { compiled.save() },
        )?;
        Ok(Box::new(loaded))
    }

    fn put(&self, device: usize, array: &Array) -> Result<Box<dyn Buffer>> {
        let dims: Vec<i64> = array.dims().iter().map(|d| *d as i64).collect();
        let mut buffer = ptr::null_mut();
        // SAFETY: the client lives. The array has as many bytes as its sizes and type need, and they are copied during the call.
        check(unsafe {
            ffi::vnca_cpu_put(
                self.shared.client.as_ptr(),
                device,
                array.bytes().as_ptr().cast(),
                element_type(array.shape().dtype),
                dims.as_ptr(),
                dims.len(),
                &raw mut buffer,
            )
        })?;
        let buffer = NonNull::new(buffer).context("XLA returned no buffer")?;
        Ok(Box::new(CpuBuffer { buffer, shared: self.shared.clone() }))
    }

    fn memory(&self, _device: usize) -> Option<Memory> {
        None
    }
}

impl Buffer for CpuBuffer {
    fn get(&self, shape: &Shape) -> Result<Array> {
        let mut bytes = vec![0; shape.bytes()];
        // SAFETY: the buffer lives, and `bytes` has room for `bytes.len()` bytes.
        check(unsafe { ffi::vnca_cpu_get(self.buffer.as_ptr(), bytes.as_mut_ptr().cast(), bytes.len()) })?;
        Array::from_bytes(shape.clone(), bytes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Loaded for CpuExecutable {
    fn execute(&self, arguments: &[Vec<&dyn Buffer>]) -> Result<Vec<Vec<Box<dyn Buffer>>>> {
        let own = |b: &&dyn Buffer| match b.as_any().downcast_ref::<CpuBuffer>() {
            Some(b) if Arc::ptr_eq(&b.shared, &self.shared) => Ok(b.buffer.as_ptr()),
            Some(_) => {
                Err(anyhow!("an argument belongs to another client of the CPU: use meshes that share one"))
            }
            None => Err(anyhow!("an argument is on another kind of device")),
        };
        let complete =
            arguments.iter().all(|row| row.len() == self.inputs) && arguments.len() == self.replicas;
        ensure!(complete, "the program needs {} rows of {} arguments", self.replicas, self.inputs);
        let inputs: Vec<*mut ffi::Buffer> = arguments.iter().flatten().map(own).collect::<Result<_>>()?;
        let mut results = vec![ptr::null_mut(); self.replicas * self.outputs];
        // SAFETY: client, executable and buffers live and belong together. There are `replicas` x `inputs` arguments, and room
        // for `replicas` x `outputs` results.
        check(unsafe {
            ffi::vnca_cpu_execute(
                self.shared.client.as_ptr(),
                self.executable.as_ptr(),
                inputs.as_ptr(),
                self.replicas,
                self.inputs,
                self.outputs,
                results.as_mut_ptr(),
            )
        })?;
        let mut buffers = results.into_iter().map(|buffer| {
            let buffer = NonNull::new(buffer).context("XLA returned no buffer for a result")?;
            Ok(Box::new(CpuBuffer { buffer, shared: self.shared.clone() }) as Box<dyn Buffer>)
        });
        (0..self.replicas).map(|_| buffers.by_ref().take(self.outputs).collect()).collect()
    }
}

/// The functions of `client.cc`.
mod ffi {
    use std::ffi::{CStr, c_char, c_int, c_void};

    use crate::engine::runtime::custom_call_header::opaque;

    opaque!(Client Executable Buffer Bytes);

    /// The result of a function: null for success, else an error message that this value owns. Only the functions below create
    /// one.
    #[must_use]
    #[repr(transparent)]
    pub struct Message(*mut c_char);

    impl Message {
        pub fn take(self) -> Option<String> {
            // SAFETY: a pointer that is not null points to a string that ends with a zero byte. It is freed once, as `take`
            // consumes this value.
            (!self.0.is_null()).then(|| unsafe {
                let text = CStr::from_ptr(self.0).to_string_lossy().into_owned();
                vnca_cpu_free_text(self.0);
                text
            })
        }
    }

    unsafe extern "C" {
        pub fn vnca_cpu_free_text(text: *mut c_char);
        pub fn vnca_cpu_check_flags(flags: *const *const c_char, count: usize) -> Message;
        pub fn vnca_cpu_open(
            devices: usize,
            flags: *const *const c_char,
            count: usize,
            type_id: i64,
            data: *mut c_void,
            result: *mut *mut Client,
        ) -> Message;
        pub fn vnca_cpu_close(client: *mut Client);
        pub fn vnca_cpu_device_count(client: *const Client) -> usize;
        pub fn vnca_cpu_name(client: *const Client) -> *const c_char;
        pub fn vnca_cpu_version(client: *const Client) -> *const c_char;
        pub fn vnca_cpu_thread_count(client: *const Client) -> usize;
        pub fn vnca_cpu_library() -> *const c_char;
        pub fn vnca_cpu_compile(
            client: *const Client,
            module: *const c_void,
            size: usize,
            replicas: usize,
            result: *mut *mut Executable,
        ) -> Message;
        pub fn vnca_cpu_canonical_module(
            module: *const c_void,
            size: usize,
            result: *mut *const Bytes,
        ) -> Message;
        pub fn vnca_cpu_save(executable: *const Executable, result: *mut *const Bytes) -> Message;
        pub fn vnca_cpu_bytes(bytes: *const Bytes, size: *mut usize) -> *const u8;
        pub fn vnca_cpu_free_bytes(bytes: *const Bytes);
        pub fn vnca_cpu_load(
            client: *const Client,
            data: *const c_char,
            size: usize,
            replicas: usize,
            result: *mut *mut Executable,
        ) -> Message;
        pub fn vnca_cpu_free_executable(executable: *mut Executable);
        pub fn vnca_cpu_execute(
            client: *const Client,
            executable: *const Executable,
            arguments: *const *mut Buffer,
            replicas: usize,
            inputs: usize,
            outputs: usize,
            results: *mut *mut Buffer,
        ) -> Message;
        pub fn vnca_cpu_put(
            client: *const Client,
            device: usize,
            data: *const c_void,
            element_type: c_int,
            dims: *const i64,
            rank: usize,
            result: *mut *mut Buffer,
        ) -> Message;
        pub fn vnca_cpu_get(buffer: *mut Buffer, data: *mut c_void, size: usize) -> Message;
        pub fn vnca_cpu_free_buffer(buffer: *mut Buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_split_as_in_xla() {
        assert_eq!(split_flags(""), Vec::<String>::new());
        assert_eq!(split_flags(" --a=1\n--b  --c_d=x y --e"), ["--a=1", "--b", "--c_d=x"]);
        assert_eq!(split_flags(r#"--a="x \"y" --b='c \d' --c"#), [r#"--a=x "y"#, r"--b=c \d", "--c"]);
        assert_eq!(split_flags("--a=\"open"), ["--a=open"]);
    }
}
