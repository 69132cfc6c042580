//! XLA's function table for custom calls, and this program's registration in it.

use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail, ensure};
use libloading::os::unix::Library as SharedLibrary;

use super::ffi;
use crate::engine::program::WEIGHT_GRADIENT;

/// The mangled name of XLA's C++ function `GetXlaFfiApi()` (`xla/ffi/ffi_api.h`), which returns the table. The name
/// says that it takes no arguments, but not what it returns.
const TABLE: &[u8] = b"_ZN3xla3ffi12GetXlaFfiApiEv";

/// XLA's name of the CPU platform in its registry of custom calls.
const PLATFORM: &str = "Host";

/// The name under which [`OneDnn`](super::OneDnn) is registered as a type.
const SHARED_TYPE: &str = "vnca.onednn";

/// The functions that this program uses. Registration fails unless XLA has all of them.
#[derive(Clone, Copy)]
pub struct Table {
    error_create: unsafe extern "C" fn(*mut ffi::Error_Create_Args) -> *mut ffi::Error,
    error_message: unsafe extern "C" fn(*mut ffi::Error_GetMessage_Args),
    error_destroy: unsafe extern "C" fn(*mut ffi::Error_Destroy_Args),
    context_get: unsafe extern "C" fn(*mut ffi::ExecutionContext_Get_Args) -> *mut ffi::Error,
    schedule: unsafe extern "C" fn(*mut ffi::ThreadPool_Schedule_Args) -> *mut ffi::Error,
    threads: unsafe extern "C" fn(*mut ffi::ThreadPool_NumThreads_Args) -> *mut ffi::Error,
}

/// The table, and XLA's type id of the state that calls share.
pub struct Registration {
    pub table: Table,
    pub shared_type: i64,
}

/// Registers the custom call and the type with XLA on the first call, and returns that registration from then on. XLA's registry
/// belongs to the process and has no way to unregister.
///
/// # Errors
/// When this XLA library does not support such calls.
pub fn registration(handler: ffi::Handler) -> Result<&'static Registration> {
    static REGISTRATION: OnceLock<Result<Registration, String>> = OnceLock::new();
    let register =
        || register(handler).map_err(|error| format!("registering a custom call with XLA: {error:#}"));
    REGISTRATION.get_or_init(register).as_ref().map_err(|error| anyhow!("{error}"))
}

fn register(handler: ffi::Handler) -> Result<Registration> {
    // SAFETY: the symbol's type is that of the function in XLA's header.
    let table = unsafe { SharedLibrary::this().get::<unsafe extern "C" fn() -> *const ffi::Api>(TABLE) };
    let table = table.map_err(|_| anyhow!("this XLA library has no FFI for custom calls"))?;
    // SAFETY: the function takes no arguments and returns null or a constant table, which begins with its size.
    let api = unsafe {
        let api = table();
        ensure!(!api.is_null() && (*api).struct_size >= size_of::<ffi::Api>(), "XLA's table is too small");
        &*api
    };
    let (major, minor) = (api.api_version.major_version, api.api_version.minor_version);
    ensure!(
        major == ffi::VERSION.0,
        "this XLA library has version {major}.{minor} of the FFI for custom calls, this program needs {}.{} or later",
        ffi::VERSION.0,
        ffi::VERSION.1
    );
    let table = Table {
        error_create: api.XLA_FFI_Error_Create.context("XLA has no function Error_Create")?,
        error_message: api.XLA_FFI_Error_GetMessage.context("XLA has no function Error_GetMessage")?,
        error_destroy: api.XLA_FFI_Error_Destroy.context("XLA has no function Error_Destroy")?,
        context_get: api.XLA_FFI_ExecutionContext_Get.context("XLA has no function ExecutionContext_Get")?,
        schedule: api.XLA_FFI_ThreadPool_Schedule.context("XLA has no function ThreadPool_Schedule")?,
        threads: api.XLA_FFI_ThreadPool_NumThreads.context("XLA has no function ThreadPool_NumThreads")?,
    };
    let execute = Some(handler);
    let mut args = ffi::Handler_Register_Args {
        name: span(WEIGHT_GRADIENT),
        platform: span(PLATFORM),
        bundle: ffi::Handler_Bundle { instantiate: None, prepare: None, initialize: None, execute },
        ..Default::default()
    };
    let register = api.XLA_FFI_Handler_Register.context("XLA has no function Handler_Register")?;
    // SAFETY: the arguments live during the call, in which XLA copies them; the error comes from this call.
    unsafe { table.take_error(register(&raw mut args)) }?;
    let (mut id, info) = (ffi::TypeId { type_id: 0 }, ffi::TypeInfo::default());
    let mut args = ffi::Type_Register_Args {
        name: span(SHARED_TYPE),
        type_id: &raw mut id,
        type_info: &raw const info,
        ..Default::default()
    };
    let register = api.XLA_FFI_Type_Register.context("XLA has no function Type_Register")?;
    // SAFETY: as above; the id is written during the call.
    unsafe { table.take_error(register(&raw mut args)) }?;
    Ok(Registration { table, shared_type: id.type_id })
}

fn span(text: &'static str) -> ffi::ByteSpan {
    ffi::ByteSpan { ptr: text.as_ptr().cast(), len: text.len() }
}

impl Table {
    /// Creates an XLA error with a message.
    pub fn error(&self, message: String) -> *mut ffi::Error {
        let message = CString::new(message.replace('\0', "")).unwrap_or_default();
        let mut args =
            ffi::Error_Create_Args { message: message.as_ptr(), errc: ffi::INTERNAL, ..Default::default() };
        // SAFETY: the arguments live during the call, in which XLA copies them.
        unsafe { (self.error_create)(&raw mut args) }
    }

    /// Turns an XLA error into a Rust one and destroys it. Null is success.
    ///
    /// # Safety
    /// The pointer is null, or an error that a function of the table returned and that nobody has destroyed.
    unsafe fn take_error(&self, error: *mut ffi::Error) -> Result<()> {
        if error.is_null() {
            return Ok(());
        }
        let mut get = ffi::Error_GetMessage_Args { error, ..Default::default() };
        let mut destroy = ffi::Error_Destroy_Args { error, ..Default::default() };
        // SAFETY: the error lives and owns the message, which is copied before the error is destroyed. The receiver of an error
        // has to destroy it.
        let message = unsafe {
            (self.error_message)(&raw mut get);
            let message =
                (!get.message.is_null()).then(|| CStr::from_ptr(get.message).to_string_lossy().into_owned());
            (self.error_destroy)(&raw mut destroy);
            message
        };
        bail!(message.unwrap_or_else(|| "an error without a message".into()))
    }

    /// Returns the pointer that the call's client stored under a type id.
    ///
    /// # Safety
    /// The context belongs to a call that has not returned.
    pub unsafe fn shared(&self, ctx: *mut ffi::Context, shared_type: i64) -> Result<*mut c_void> {
        let mut id = ffi::TypeId { type_id: shared_type };
        let mut args = ffi::ExecutionContext_Get_Args {
            ctx,
            type_id: &raw mut id,
            data: ptr::null_mut(),
            ..Default::default()
        };
        // SAFETY: the context lives by the caller's promise, the arguments during the call.
        unsafe { self.take_error((self.context_get)(&raw mut args)) }?;
        Ok(args.data)
    }

    /// Returns the number of threads in the pool that XLA offers to a call, at least 1.
    ///
    /// # Safety
    /// As for [`Table::shared`].
    pub unsafe fn threads(&self, ctx: *mut ffi::Context) -> Result<usize> {
        let mut threads = 0;
        let mut args =
            ffi::ThreadPool_NumThreads_Args { ctx, num_threads: &raw mut threads, ..Default::default() };
        // SAFETY: the context lives by the caller's promise, and the number is written during the call.
        unsafe { self.take_error((self.threads)(&raw mut args)) }?;
        Ok(threads.max(1) as usize)
    }

    /// Schedules a task on XLA's thread pool.
    ///
    /// # Safety
    /// As for [`Table::shared`]; and the task may be run once with this data, at any time, on any thread.
    pub unsafe fn schedule(&self, ctx: *mut ffi::Context, task: ffi::Task, data: *mut c_void) -> Result<()> {
        let mut args = ffi::ThreadPool_Schedule_Args { ctx, task: Some(task), data, ..Default::default() };
        // SAFETY: the caller's promise.
        unsafe { self.take_error((self.schedule)(&raw mut args)) }
    }
}

#[cfg(test)]
impl Table {
    /// Returns a table that runs each scheduled task on a new system thread, which first yields.
    pub fn for_tests() -> Table {
        use std::sync::atomic::AtomicPtr;

        unsafe extern "C" fn schedule(args: *mut ffi::ThreadPool_Schedule_Args) -> *mut ffi::Error {
            // SAFETY: called through `Table::schedule`, whose caller lets the task run at any time on any thread.
            let (task, data) = unsafe { ((*args).task.expect("a task"), AtomicPtr::new((*args).data)) };
            std::thread::spawn(move || {
                std::thread::yield_now();
                // SAFETY: as above.
                unsafe { task(data.into_inner()) };
            });
            ptr::null_mut()
        }
        unsafe extern "C" fn no_error(_: *mut ffi::Error_Create_Args) -> *mut ffi::Error {
            ptr::null_mut()
        }
        unsafe extern "C" fn no_message(_: *mut ffi::Error_GetMessage_Args) {}
        unsafe extern "C" fn no_destroy(_: *mut ffi::Error_Destroy_Args) {}
        unsafe extern "C" fn no_context(_: *mut ffi::ExecutionContext_Get_Args) -> *mut ffi::Error {
            ptr::null_mut()
        }
        unsafe extern "C" fn threads(args: *mut ffi::ThreadPool_NumThreads_Args) -> *mut ffi::Error {
            // SAFETY: called through `Table::threads`, which passes a valid pointer for the number.
            unsafe { *(*args).num_threads = 3 };
            ptr::null_mut()
        }
        Table {
            error_create: no_error,
            error_message: no_message,
            error_destroy: no_destroy,
            context_get: no_context,
            schedule,
            threads,
        }
    }
}
