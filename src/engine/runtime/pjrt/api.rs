//! A loaded plugin. Every call of its functions goes through [`Api::call`].

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::ffi::{self, Args, Slot};

/// A plugin's function table. Plugins stay loaded until the process ends, because they start threads of their own.
#[derive(Clone)]
pub struct Api {
    table: *const ffi::Api,
    path: PathBuf,
}

// SAFETY: the table is constant, and the C API may be called from any thread.
unsafe impl Send for Api {}
// SAFETY: as above.
unsafe impl Sync for Api {}

impl Api {
    /// Loads a plugin and initializes it.
    ///
    /// # Errors
    /// As for [`Api::open`], or when the plugin cannot be initialized.
    pub fn load(path: &Path) -> Result<Api> {
        let api = Api::open(path)?;
        // SAFETY: it has no arguments.
        unsafe { api.call(ffi::Plugin_Initialize::default()) }?;
        Ok(api)
    }

    /// Loads a plugin without initializing it, which is enough for reading its version.
    ///
    /// # Errors
    /// When the file is not a plugin, or implements another major version of the API.
    pub fn open(path: &Path) -> Result<Api> {
        let context = || format!("cannot load the PJRT plugin {}", path.display());
        // SAFETY: loading runs the library's initializers. Whoever names a plugin trusts its code.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.with_context(context)?;
        // SAFETY: this is the symbol's type in the C API.
        let entry = unsafe { library.get::<unsafe extern "C" fn() -> *const ffi::Api>(b"GetPjrtApi") };
        let entry = entry
            .map_err(|_| anyhow!("{} is not a PJRT plugin: it has no function GetPjrtApi", path.display()))?;
        // SAFETY: the function takes no arguments and returns a table that lives as long as the library, which is never
        // unloaded.
        let table = unsafe { entry() };
        std::mem::forget(library);
        ensure!(!table.is_null(), "{} returns no table of PJRT functions", path.display());
        let api = Api { table, path: path.to_path_buf() };
        let (major, minor) = api.version();
        ensure!(
            major == ffi::VERSION.0,
            "{} speaks version {major}.{minor} of the PJRT API, this program version {}.{}: use a plugin whose version \
             begins with {}",
            path.display(),
            ffi::VERSION.0,
            ffi::VERSION.1,
            ffi::VERSION.0
        );
        Ok(api)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the API version (major, minor) that the plugin was built with.
    pub fn version(&self) -> (i32, i32) {
        // SAFETY: the head of the table is the same in every version.
        let head = unsafe { &*self.table };
        (head.major, head.minor)
    }

    /// Calls a function with its arguments, and returns them with the results filled in.
    ///
    /// # Safety
    /// Every pointer in the arguments is valid as the C API requires: it points to a live object of this plugin, or to memory of
    /// the size given beside it, until the call returns or as much longer as the function's description says.
    ///
    /// # Errors
    /// The plugin's own message with the function's name; or that the plugin is too old to have the function.
    pub unsafe fn call<A: Args>(&self, mut args: A) -> Result<A> {
        let function = self.function(A::SLOT)?;
        // SAFETY: the slot holds a function that takes a pointer to A and returns an error or null, as `Args` promises.
        let function: unsafe extern "C" fn(*mut A) -> *mut ffi::Error =
            unsafe { std::mem::transmute(function) };
        // SAFETY: A begins with its size, and its pointers are valid by the caller's promise. The error comes from this call.
        match unsafe { self.take_message(function(&raw mut args)) } {
            None => Ok(args),
            Some(message) => Err(anyhow!("PJRT_{}: {message}", A::NAME)),
        }
    }

    /// Calls a function that frees an object. Logs an error, because the callers are destructors.
    ///
    /// # Safety
    /// As for [`Api::call`]; and nobody uses the object again.
    pub unsafe fn free<A: Args>(&self, args: A) {
        // SAFETY: the caller's promise.
        if let Err(error) = unsafe { self.call(args) } {
            log::warn!("{error:#}");
        }
    }

    fn function(&self, slot: Slot) -> Result<*const c_void> {
        // SAFETY: the table begins with its size, and the slot is read only if it lies inside the table.
        let function = unsafe {
            match slot.offset() + size_of::<usize>() <= (*self.table).struct_size {
                true => *self.table.byte_add(slot.offset()).cast::<*const c_void>(),
                false => ptr::null(),
            }
        };
        let (major, minor) = self.version();
        ensure!(
            !function.is_null(),
            "{} has no PJRT_{slot:?}: it speaks version {major}.{minor} of the PJRT API, this program {}.{}; use a newer \
             plugin",
            self.path.display(),
            ffi::VERSION.0,
            ffi::VERSION.1
        );
        Ok(function)
    }

    /// Returns an error's message and frees the error. Null has no message.
    ///
    /// # Safety
    /// The pointer is null, or an error of this plugin that nobody has freed.
    unsafe fn take_message(&self, error: *mut ffi::Error) -> Option<String> {
        if error.is_null() {
            return None;
        }
        let mut message = ffi::Error_Message { error, ..Default::default() };
        let mut destroy = ffi::Error_Destroy { error, ..Default::default() };
        let text = match (self.function(Slot::Error_Message), self.function(Slot::Error_Destroy)) {
            (Ok(read), Ok(free)) => {
                // SAFETY: the two slots hold functions of these types. The message lives until the error is freed, and is
                // copied before.
                unsafe {
                    let read: unsafe extern "C" fn(*mut ffi::Error_Message) = std::mem::transmute(read);
                    let free: unsafe extern "C" fn(*mut ffi::Error_Destroy) = std::mem::transmute(free);
                    read(&raw mut message);
                    let text = text(message.message, message.message_size);
                    free(&raw mut destroy);
                    text
                }
            }
            _ => "an error without a message".to_string(),
        };
        Some(text)
    }

    /// Waits for an event and frees it.
    ///
    /// # Safety
    /// The pointer is null, or an event of this plugin that nobody has freed.
    ///
    /// # Errors
    /// The error of the operation that the event belongs to.
    pub unsafe fn wait(&self, event: *mut ffi::Event) -> Result<()> {
        if event.is_null() {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe {
            let waited = self.call(ffi::Event_Await { event, ..Default::default() });
            self.free(ffi::Event_Destroy { event, ..Default::default() });
            waited.map(|_| ())
        }
    }
}

/// Copies a string of the plugin.
///
/// # Safety
/// `start` is null, or points to `size` bytes.
pub unsafe fn text(start: *const c_char, size: usize) -> String {
    if start.is_null() {
        return String::new();
    }
    // SAFETY: promised by the caller.
    let bytes = unsafe { std::slice::from_raw_parts(start.cast::<u8>(), size) };
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns an array of the plugin as a slice.
///
/// # Safety
/// `start` is null, or points to `size` elements that live as long as the slice is used.
pub unsafe fn elements<'a, T>(start: *const T, size: usize) -> &'a [T] {
    match start.is_null() {
        true => &[],
        // SAFETY: promised by the caller.
        false => unsafe { std::slice::from_raw_parts(start, size) },
    }
}

/// The value of a named option or attribute of a plugin.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A text.
    Text(String),
    /// An integer.
    Int(i64),
    /// A list of integers.
    Ints(Vec<i64>),
    /// A floating-point number.
    Float(f32),
    /// A truth value.
    Bool(bool),
}

impl Value {
    /// Parses an option's value: `true`, `7`, `0.5`, `[0:1]` (a list) or a text.
    ///
    /// # Errors
    /// When a list has an element that is not an integer.
    pub fn parse(text: &str) -> Result<Value> {
        if let Some(list) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            let numbers: Result<Vec<i64>, _> = list.split(':').map(str::parse).collect();
            return Ok(Value::Ints(numbers.with_context(|| format!("{text} is no list like [0:1]"))?));
        }
        Ok(match (text.parse(), text.parse(), text.parse()) {
            (Ok(value), _, _) => Value::Bool(value),
            (_, Ok(value), _) => Value::Int(value),
            (_, _, Ok(value)) => Value::Float(value),
            _ => Value::Text(text.to_string()),
        })
    }

    /// Returns the value as a number, if it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Value::Int(value) => Some(*value as f64),
            Value::Float(value) => Some(f64::from(*value)),
            Value::Text(_) | Value::Ints(_) | Value::Bool(_) => None,
        }
    }
}

/// Options as the C API's array of named values. Owns the strings and lists that the array points to.
pub struct Options {
    values: Vec<ffi::NamedValue>,
    _texts: Vec<CString>,
    _lists: Vec<Vec<i64>>,
}

impl Options {
    /// Converts options.
    ///
    /// # Errors
    /// When a name or text contains a zero byte.
    pub fn new(options: &[(String, Value)]) -> Result<Options> {
        let (mut values, mut texts, mut lists) = (Vec::new(), Vec::new(), Vec::new());
        let mut to_c = |text: &str| -> Result<*const c_char> {
            let Ok(string) = CString::new(text) else { bail!("{text:?} contains a zero byte") };
            texts.push(string);
            Ok(texts[texts.len() - 1].as_ptr())
        };
        for (name, value) in options {
            let (kind, union, size) = match value {
                Value::Text(t) => (ffi::named::STRING, ffi::NamedValueUnion { string: to_c(t)? }, t.len()),
                Value::Int(int64) => (ffi::named::INT64, ffi::NamedValueUnion { int64: *int64 }, 1),
                Value::Ints(list) => {
                    lists.push(list.clone());
                    let int64_array = lists[lists.len() - 1].as_ptr();
                    (ffi::named::INT64_LIST, ffi::NamedValueUnion { int64_array }, list.len())
                }
                Value::Float(float) => (ffi::named::FLOAT, ffi::NamedValueUnion { float: *float }, 1),
                Value::Bool(bool) => (ffi::named::BOOL, ffi::NamedValueUnion { bool: *bool }, 1),
            };
            values.push(ffi::NamedValue {
                name: to_c(name)?,
                name_size: name.len(),
                r#type: kind as c_int,
                value: union,
                value_size: size,
                ..Default::default()
            });
        }
        Ok(Options { values, _texts: texts, _lists: lists })
    }

    pub fn as_ptr(&self) -> *const ffi::NamedValue {
        self.values.as_ptr()
    }

    pub fn len(&self) -> usize {
        self.values.len()
    }
}

/// Copies named values of the plugin.
///
/// # Safety
/// `start` is null, or points to `count` named values whose type fields are right.
pub unsafe fn named_values(start: *const ffi::NamedValue, count: usize) -> Vec<(String, Value)> {
    // SAFETY: promised by the caller.
    let values = unsafe { elements(start, count) };
    let copy = |v: &ffi::NamedValue| {
        // SAFETY: each read is of the union's field that the type names, with the size given beside it.
        let value = unsafe {
            match v.r#type {
                ffi::named::STRING => Value::Text(text(v.value.string, v.value_size)),
                ffi::named::INT64_LIST => Value::Ints(elements(v.value.int64_array, v.value_size).to_vec()),
                ffi::named::FLOAT => Value::Float(v.value.float),
                ffi::named::BOOL => Value::Bool(v.value.bool),
                _ => Value::Int(v.value.int64),
            }
        };
        // SAFETY: as above.
        (unsafe { text(v.name, v.name_size) }, value)
    };
    values.iter().map(copy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_parsed_to_the_first_type_that_fits() {
        for (text, value) in [
            ("true", Value::Bool(true)),
            ("8", Value::Int(8)),
            ("0.5", Value::Float(0.5)),
            ("[0:3]", Value::Ints(vec![0, 3])),
            ("bfc", Value::Text("bfc".into())),
        ] {
            assert_eq!(Value::parse(text).unwrap(), value);
        }
        assert!(Value::parse("[a]").unwrap_err().to_string().contains("[a] is no list"));
    }

    /// A plugin's table that ends before the slot `LoadedExecutable_Destroy`.
    #[repr(C)]
    struct Table {
        head: ffi::Api,
        slots: [*const c_void; Slot::LoadedExecutable_Destroy as usize],
    }

    /// Writes the size of the arguments' structure as the number of results.
    unsafe extern "C" fn outputs(args: *mut ffi::Executable_NumOutputs) -> *mut ffi::Error {
        // SAFETY: called through `Api::call` only.
        unsafe { (*args).num_outputs = (*args).struct_size };
        ptr::null_mut()
    }

    unsafe extern "C" fn fails(_: *mut ffi::Plugin_Initialize) -> *mut ffi::Error {
        Box::into_raw(Box::new(String::from("no such luck"))).cast()
    }

    unsafe extern "C" fn message(args: *mut ffi::Error_Message) {
        // SAFETY: `fails` created the error.
        unsafe {
            let text = &*(*args).error.cast::<String>();
            ((*args).message, (*args).message_size) = (text.as_ptr().cast(), text.len());
        }
    }

    unsafe extern "C" fn destroy(args: *mut ffi::Error_Destroy) {
        // SAFETY: as above, and nobody uses it again.
        drop(unsafe { Box::from_raw((*args).error.cast::<String>()) });
    }

    #[test]
    fn calls_use_their_slots_and_errors_are_read_and_freed() {
        let head = ffi::Api {
            struct_size: size_of::<Table>(),
            extension_start: ptr::null_mut(),
            version_struct_size: 0,
            version_extension_start: ptr::null_mut(),
            major: 0,
            minor: 1,
        };
        let mut table = Table { head, slots: [ptr::null(); _] };
        table.slots[Slot::Executable_NumOutputs as usize] = outputs as *const c_void;
        table.slots[Slot::Plugin_Initialize as usize] = fails as *const c_void;
        table.slots[Slot::Error_Message as usize] = message as *const c_void;
        table.slots[Slot::Error_Destroy as usize] = destroy as *const c_void;
        let api = Api { table: (&raw const table).cast(), path: "plugin.so".into() };
        let text = |error: anyhow::Error| error.to_string();
        // SAFETY: the functions above only use the arguments themselves.
        unsafe {
            let found = api.call(ffi::Executable_NumOutputs::default()).unwrap();
            assert_eq!(found.num_outputs, size_of::<ffi::Executable_NumOutputs>());
            let failed = api.call(ffi::Plugin_Initialize::default()).err().map(text);
            assert_eq!(failed.unwrap(), "PJRT_Plugin_Initialize: no such luck");
            // An empty slot, and the first slot beyond the table.
            let missing = api.call(ffi::Event_Destroy::default()).err().map(text).unwrap();
            assert!(missing.starts_with("plugin.so has no PJRT_Event_Destroy"), "{missing}");
            let beyond = api.call(ffi::LoadedExecutable_Destroy::default()).err().map(text).unwrap();
            assert!(beyond.starts_with("plugin.so has no PJRT_LoadedExecutable_Destroy"), "{beyond}");
        }
    }

    #[test]
    fn named_values_survive_a_round_trip() {
        let options = vec![
            ("a".to_string(), Value::Text("x".into())),
            ("b".to_string(), Value::Ints(vec![1, -2])),
            ("c".to_string(), Value::Float(0.25)),
            ("d".to_string(), Value::Bool(true)),
            ("e".to_string(), Value::Int(-7)),
        ];
        let converted = Options::new(&options).unwrap();
        // SAFETY: the array belongs to `converted`, which lives.
        assert_eq!(unsafe { named_values(converted.as_ptr(), converted.len()) }, options);
    }
}
