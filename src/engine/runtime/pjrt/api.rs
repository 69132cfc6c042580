//! A loaded plugin, and the one door through which its functions are called.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::ffi::{self, Args, Slot};

/// A plugin's table of functions. Plugins stay loaded until the process ends: they start threads of their own.
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
    /// As of [`Api::open`], or when the plugin cannot be initialized.
    pub fn load(path: &Path) -> Result<Api> {
        let api = Api::open(path)?;
        // SAFETY: it has no arguments.
        unsafe { api.call(ffi::Plugin_Initialize::default()) }?;
        Ok(api)
    }

    /// Loads a plugin to ask for its version.
    ///
    /// # Errors
    /// When the file is no plugin, or of another major version of the API.
    pub fn open(path: &Path) -> Result<Api> {
        let at = || format!("cannot load the PJRT plugin {}", path.display());
        // SAFETY: loading runs the library's initializers. That is what naming a plugin asks for.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.with_context(at)?;
        // SAFETY: the symbol's type is the one that the C API gives it.
        let entry = unsafe { library.get::<unsafe extern "C" fn() -> *const ffi::Api>(b"GetPjrtApi") };
        let entry = entry
            .map_err(|_| anyhow!("{} is no PJRT plugin: it has no function GetPjrtApi", path.display()))?;
        // SAFETY: the function takes nothing, and gives a table that lives as long as the library, which is never
        // unloaded.
        let table = unsafe { entry() };
        std::mem::forget(library);
        ensure!(!table.is_null(), "{} gives no PJRT functions", path.display());
        let api = Api { table, path: path.to_path_buf() };
        let (major, minor) = api.version();
        ensure!(
            major == ffi::VERSION.0,
            "{} speaks version {major}.{minor} of the PJRT API, this program version {}.{}: take a plugin whose version \
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

    /// The API's version that the plugin was built with.
    pub fn version(&self) -> (i32, i32) {
        // SAFETY: the head of the table has been the same in every version.
        let head = unsafe { &*self.table };
        (head.major, head.minor)
    }

    /// Calls a function with its arguments, and gives them back with its results.
    ///
    /// # Safety
    /// Every pointer in the arguments is what the C API asks for there: one to an object of this plugin that lives, or to
    /// memory of the size that stands beside it, until the call returns and as much longer as the function's description says.
    ///
    /// # Errors
    /// The plugin's own message with the call's name; or that the plugin is too old to have the function.
    pub unsafe fn call<A: Args>(&self, mut args: A) -> Result<A> {
        let function = self.function(A::SLOT)?;
        // SAFETY: the slot holds the function that takes a pointer to A and gives an error or null, as `Args` promises.
        let function: unsafe extern "C" fn(*mut A) -> *mut ffi::Error =
            unsafe { std::mem::transmute(function) };
        // SAFETY: A's size stands at its head, and its pointers are valid by the caller's promise. The error is this call's.
        match unsafe { self.take(function(&raw mut args)) } {
            None => Ok(args),
            Some(message) => Err(anyhow!("PJRT_{}: {message}", A::NAME)),
        }
    }

    /// Calls a function that frees something; an error then has nobody to tell but the log.
    ///
    /// # Safety
    /// As of [`Api::call`]; and nobody uses the object again.
    pub unsafe fn free<A: Args>(&self, args: A) {
        // SAFETY: the caller's promise.
        if let Err(error) = unsafe { self.call(args) } {
            log::warn!("{error:#}");
        }
    }

    fn function(&self, slot: Slot) -> Result<*const c_void> {
        // SAFETY: the table's size stands at its head; the slot is read only if it lies inside.
        let function = unsafe {
            match slot.offset() + size_of::<usize>() <= (*self.table).struct_size {
                true => *self.table.byte_add(slot.offset()).cast::<*const c_void>(),
                false => ptr::null(),
            }
        };
        let (major, minor) = self.version();
        ensure!(
            !function.is_null(),
            "{} has no PJRT_{slot:?}: it speaks version {major}.{minor} of the PJRT API, this program {}.{}; take a newer \
             plugin",
            self.path.display(),
            ffi::VERSION.0,
            ffi::VERSION.1
        );
        Ok(function)
    }

    /// The message of an error, which is freed.
    ///
    /// # Safety
    /// It is null, or an error of this plugin's that nobody has freed.
    unsafe fn take(&self, error: *mut ffi::Error) -> Option<String> {
        if error.is_null() {
            return None;
        }
        let mut message = ffi::Error_Message { error, ..Default::default() };
        let mut destroy = ffi::Error_Destroy { error, ..Default::default() };
        let text = match (self.function(Slot::Error_Message), self.function(Slot::Error_Destroy)) {
            (Ok(read), Ok(free)) => {
                // SAFETY: the two slots hold functions of this form; the message lives until the error is freed, and is
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
    /// It is null, or an event of this plugin's that nobody has freed.
    ///
    /// # Errors
    /// What went wrong in the work that the event stands for.
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

/// Copies a text of the plugin's.
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

/// The elements of an array of the plugin's.
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
    /// A whole number.
    Int(i64),
    /// A list of whole numbers.
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
    /// When a list has elements other than whole numbers.
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

/// Options in the form that a plugin takes. Keeps the texts alive that the form points to.
pub struct Options {
    values: Vec<ffi::NamedValue>,
    _texts: Vec<CString>,
    _lists: Vec<Vec<i64>>,
}

impl Options {
    /// # Errors
    /// When a name or text has a zero byte.
    pub fn new(options: &[(String, Value)]) -> Result<Options> {
        let (mut values, mut texts, mut lists) = (Vec::new(), Vec::new(), Vec::new());
        let mut keep = |text: &str| -> Result<*const c_char> {
            let Ok(kept) = CString::new(text) else { bail!("{text:?} has a zero byte") };
            texts.push(kept);
            Ok(texts[texts.len() - 1].as_ptr())
        };
        for (name, value) in options {
            let (kind, union, size) = match value {
                Value::Text(t) => (ffi::named::STRING, ffi::NamedValueUnion { string: keep(t)? }, t.len()),
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
                name: keep(name)?,
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

/// Copies named values of the plugin's.
///
/// # Safety
/// `start` is null, or points to `count` named values whose types are as they say.
pub unsafe fn named_values(start: *const ffi::NamedValue, count: usize) -> Vec<(String, Value)> {
    // SAFETY: promised by the caller.
    let values = unsafe { elements(start, count) };
    let copy = |v: &ffi::NamedValue| {
        // SAFETY: the union's part is the one that the type names, and sizes are as they say.
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
    fn values_are_read_by_their_form() {
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

    /// A plugin's table as far as `LoadedExecutable_Destroy`, made here.
    #[repr(C)]
    struct Table {
        head: ffi::Api,
        slots: [*const c_void; Slot::LoadedExecutable_Destroy as usize],
    }

    /// Gives the arguments' own size as the number of results.
    unsafe extern "C" fn outputs(args: *mut ffi::Executable_NumOutputs) -> *mut ffi::Error {
        // SAFETY: called through `Api::call` only.
        unsafe { (*args).num_outputs = (*args).struct_size };
        ptr::null_mut()
    }

    unsafe extern "C" fn fails(_: *mut ffi::Plugin_Initialize) -> *mut ffi::Error {
        Box::into_raw(Box::new(String::from("no such luck"))).cast()
    }

    unsafe extern "C" fn message(args: *mut ffi::Error_Message) {
        // SAFETY: `fails` has made the error.
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
    fn calls_go_to_their_slots_and_errors_are_read_and_freed() {
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
        // SAFETY: the functions above look at nothing else than the arguments themselves.
        unsafe {
            let found = api.call(ffi::Executable_NumOutputs::default()).unwrap();
            assert_eq!(found.num_outputs, size_of::<ffi::Executable_NumOutputs>());
            let failed = api.call(ffi::Plugin_Initialize::default()).err().map(text);
            assert_eq!(failed.unwrap(), "PJRT_Plugin_Initialize: no such luck");
            // One that is empty, and the first beyond the table.
            let missing = api.call(ffi::Event_Destroy::default()).err().map(text).unwrap();
            assert!(missing.starts_with("plugin.so has no PJRT_Event_Destroy"), "{missing}");
            let beyond = api.call(ffi::LoadedExecutable_Destroy::default()).err().map(text).unwrap();
            assert!(beyond.starts_with("plugin.so has no PJRT_LoadedExecutable_Destroy"), "{beyond}");
        }
    }

    #[test]
    fn named_values_go_there_and_back() {
        let options = vec![
            ("a".to_string(), Value::Text("x".into())),
            ("b".to_string(), Value::Ints(vec![1, -2])),
            ("c".to_string(), Value::Float(0.25)),
            ("d".to_string(), Value::Bool(true)),
            ("e".to_string(), Value::Int(-7)),
        ];
        let form = Options::new(&options).unwrap();
        // SAFETY: the form was made here and lives on.
        assert_eq!(unsafe { named_values(form.as_ptr(), form.len()) }, options);
    }
}
