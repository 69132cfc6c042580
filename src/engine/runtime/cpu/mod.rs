//! The CPU, by the XLA library that this program is linked with: any number of virtual devices that share the cores.

use std::any::Any;
use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::onednn::OneDnn;
use super::{Buffer, Client, Loaded, Memory};
use crate::engine::array::Array;
use crate::engine::program::{Format, Program, Target};
use crate::engine::shape::{DType, Shape};
use crate::error::{Error, Tag};

/// A client of the library's, and what its custom calls share.
struct Shared {
    client: NonNull<ffi::Client>,
    /// Calls that the client still runs refer to it; it is at one address as long as the client lives.
    one_dnn: Box<OneDnn>,
}

// SAFETY: PJRT's clients, executables and buffers may be used by several threads at once.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: made by vnca_cpu_open, and nobody else has it: buffers and executables hold `Shared`. It waits for the calls
        // that still run, before the fields that these refer to are dropped.
        unsafe { ffi::vnca_cpu_close(self.client.as_ptr()) };
    }
}

struct CpuClient(Arc<Shared>);

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
        // SAFETY: the buffer is this one's alone, and its client lives.
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
        // SAFETY: as for a buffer.
        unsafe { ffi::vnca_cpu_free_executable(self.executable.as_ptr()) };
    }
}

/// Makes a client of `devices` virtual devices, unless XLA_FLAGS says how many. No more than are wanted: XLA starts a thread for
/// each, however few the cores, and threads that wait for a core cost a training step up to a third of its time.
///
/// # Errors
/// [`Error::Usage`] for a wrong `XLA_FLAGS`; what XLA says.
pub(super) fn client(devices: usize) -> Result<Box<dyn Client>> {
    let flags = flags()?;
    let flags: Vec<*const c_char> = flags.iter().map(|flag| flag.as_ptr()).collect();
    // SAFETY: there are so many flags, which end with a zero and live during the call.
    told(unsafe { ffi::vnca_cpu_check_flags(flags.as_ptr(), flags.len()) })
        .context("XLA_FLAGS")
        .tag(Error::Usage)?;
    let mut one_dnn = Box::<OneDnn>::default();
    // Without the type of what calls share, there are no such calls.
    let kind = OneDnn::type_in_xla().unwrap_or(0);
    let mut client = ptr::null_mut();
    // SAFETY: as above; the client is written to the place given. What calls share lives as long as the client.
    told(unsafe {
        let shared = ptr::from_mut(one_dnn.as_mut()).cast();
        ffi::vnca_cpu_open(devices, flags.as_ptr(), flags.len(), kind, shared, &raw mut client)
    })
    .context("opening XLA's CPU device")?;
    let client = NonNull::new(client).context("XLA gave no client")?;
    Ok(Box::new(CpuClient(Arc::new(Shared { client, one_dnn }))))
}

/// Takes what a function says.
fn told(message: ffi::Message) -> Result<()> {
    match message.take() {
        None => Ok(()),
        Some(text) => bail!(text),
    }
}

/// Returns the user's flags for XLA: the words of XLA_FLAGS, or of the file that it names.
fn flags() -> Result<Vec<CString>> {
    flags_in_environment().context("XLA_FLAGS").tag(Error::Usage)
}

fn flags_in_environment() -> Result<Vec<CString>> {
    let Some(value) = std::env::var_os("XLA_FLAGS") else { return Ok(Vec::new()) };
    let is_list = value.as_encoded_bytes().trim_ascii_start().first().is_none_or(|first| *first == b'-');
    let text = match is_list {
        true => value.to_string_lossy().into_owned(),
        false => std::fs::read_to_string(&value)
            .with_context(|| format!("the file {}", Path::new(&value).display()))?,
    };
    words(&text).into_iter().map(|word| Ok(CString::new(word)?)).collect()
}

/// Words as XLA reads them: a value may stand in quotes, and the first word that is no flag ends the list.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut rest) = (Vec::new(), text.trim_ascii_start());
    while rest.starts_with('-') {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let (name, after) = rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len()));
        let quoted = after
            .strip_prefix('=')
            .and_then(|v| Some((v.chars().next()?, v)))
            .filter(|(q, _)| ['"', '\''].contains(q));
        let Some((quote, value)) = quoted else {
            let end = after.find(|c: char| c.is_ascii_whitespace()).unwrap_or(after.len());
            words.push(format!("{name}{}", &after[..end]));
            rest = after[end..].trim_ascii_start();
            continue;
        };
        let mut word = format!("{name}=");
        let mut characters = value.char_indices().skip(1);
        let mut end = value.len();
        while let Some((at, c)) = characters.next() {
            if c == quote {
                end = at + 1;
                break;
            }
            let escaped = (quote == '"' && c == '\\').then(|| characters.next()).flatten();
            word.push(escaped.map_or(c, |(_, c)| c));
        }
        words.push(word);
        rest = value[end..].trim_ascii_start();
    }
    words
}

/// XLA's number of an element type (`xla.PrimitiveType`).
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

impl Client for CpuClient {
    fn describe(&self) -> String {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let client = self.0.client.as_ptr();
        // SAFETY: the client lives, and its two texts as long as it does.
        let texts =
            unsafe { [ffi::vnca_cpu_name(client), ffi::vnca_cpu_version(client)].map(|t| CStr::from_ptr(t)) };
        let [name, version] = texts.map(CStr::to_string_lossy);
        format!("{name} ({cores} cores, xla {version})")
    }

    fn device_count(&self) -> usize {
        // SAFETY: the client lives.
        unsafe { ffi::vnca_cpu_device_count(self.0.client.as_ptr()) }
    }

    fn target(&self) -> Target {
        Target::Cpu
    }

    fn is_linked(&self) -> bool {
        true
    }

    fn compile(&self, program: &Program) -> Result<Box<dyn Loaded>> {
        let signature = &program.signature;
        let format = signature.format;
        ensure!(format == Format::Hlo, "the cpu device takes programs in HLO, not {format:?}");
        if signature.target == Target::OneDnn {
            self.0.one_dnn.ready()?;
        }
        let mut executable = ptr::null_mut();
        // SAFETY: the client lives; the module has so many bytes; the executable is written to the place given.
        told(unsafe {
            ffi::vnca_cpu_compile(
                self.0.client.as_ptr(),
                program.module.as_ptr().cast(),
                program.module.len(),
                signature.replicas,
                &raw mut executable,
            )
        })?;
        Ok(Box::new(CpuExecutable {
            executable: NonNull::new(executable).context("XLA gave no executable")?,
            inputs: signature.inputs.len(),
            outputs: signature.outputs.len(),
            replicas: signature.replicas,
            shared: self.0.clone(),
        }))
    }

    fn put(&self, device: usize, array: &Array) -> Result<Box<dyn Buffer>> {
        let dims: Vec<i64> = array.dims().iter().map(|d| *d as i64).collect();
        let mut buffer = ptr::null_mut();
        // SAFETY: the client lives; an array has as many bytes as its sizes and its type say, which are copied during the call.
        told(unsafe {
            ffi::vnca_cpu_put(
                self.0.client.as_ptr(),
                device,
                array.bytes().as_ptr().cast(),
                element_type(array.shape().dtype),
                dims.as_ptr(),
                dims.len(),
                &raw mut buffer,
            )
        })?;
        let buffer = NonNull::new(buffer).context("XLA gave no buffer")?;
        Ok(Box::new(CpuBuffer { buffer, shared: self.0.clone() }))
    }

    fn memory(&self, _device: usize) -> Option<Memory> {
        None
    }
}

impl Buffer for CpuBuffer {
    fn get(&self, shape: &Shape) -> Result<Array> {
        let mut bytes = vec![0; shape.bytes()];
        // SAFETY: the buffer lives, and there is room for so many bytes.
        told(unsafe { ffi::vnca_cpu_get(self.buffer.as_ptr(), bytes.as_mut_ptr().cast(), bytes.len()) })?;
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
                Err(anyhow!("an argument belongs to another client of the CPU: take meshes that share one"))
            }
            None => Err(anyhow!("an argument lies on another kind of device")),
        };
        let given = arguments.iter().all(|row| row.len() == self.inputs) && arguments.len() == self.replicas;
        ensure!(given, "{} rows of {} arguments are needed", self.replicas, self.inputs);
        let inputs: Vec<*mut ffi::Buffer> = arguments.iter().flatten().map(own).collect::<Result<_>>()?;
        let mut results = vec![ptr::null_mut(); self.replicas * self.outputs];
        // SAFETY: client, executable and buffers live and belong together; there are so many arguments, and room for so many
        // results.
        told(unsafe {
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
            let buffer = NonNull::new(buffer).context("XLA left a result out")?;
            Ok(Box::new(CpuBuffer { buffer, shared: self.shared.clone() }) as Box<dyn Buffer>)
        });
        (0..self.replicas).map(|_| buffers.by_ref().take(self.outputs).collect()).collect()
    }
}

/// The functions of `client.cc`.
mod ffi {
    use std::ffi::{CStr, c_char, c_int, c_void};

    use crate::engine::runtime::custom_call_header::opaque;

    opaque!(Client Executable Buffer);

    /// What a function says: nothing, or a text that belongs to whoever has this. Only the functions below make one.
    #[must_use]
    #[repr(transparent)]
    pub struct Message(*mut c_char);

    impl Message {
        pub fn take(self) -> Option<String> {
            // SAFETY: it is null, or a text that ends with a zero, and is freed once, as this takes it.
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
            kind: i64,
            data: *mut c_void,
            result: *mut *mut Client,
        ) -> Message;
        pub fn vnca_cpu_close(client: *mut Client);
        pub fn vnca_cpu_device_count(client: *const Client) -> usize;
        pub fn vnca_cpu_name(client: *const Client) -> *const c_char;
        pub fn vnca_cpu_version(client: *const Client) -> *const c_char;
        pub fn vnca_cpu_compile(
            client: *const Client,
            module: *const c_void,
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
            kind: c_int,
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
    fn flags_are_divided_as_xla_divides_them() {
        assert_eq!(words(""), Vec::<String>::new());
        assert_eq!(words(" --a=1\n--b  --c_d=x y --e"), ["--a=1", "--b", "--c_d=x"]);
        assert_eq!(words(r#"--a="x \"y" --b='c \d' --c"#), [r#"--a=x "y"#, r"--b=c \d", "--c"]);
        assert_eq!(words("--a=\"open"), ["--a=open"]);
    }
}
