//! XLA's table of functions for custom calls, and what this program registers there.

use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail, ensure};
use libloading::os::unix::Library as Shared;

use super::ffi;
use crate::engine::program::WEIGHT_GRADIENT;

/// The function of XLA's library that gives its table for custom calls (`xla/ffi/ffi_api.h`). It is C++ without arguments:
/// its name tells nothing else.
const TABLE: &[u8] = b"_ZN3xla3ffi12GetXlaFfiApiEv";

/// The name of the platform in XLA's registry of custom calls.
const PLATFORM: &str = "Host";

/// The name of the type of what calls share.
const SHARED: &str = "vnca.onednn";

/// The functions that are used here. XLA has all of them, or there is no table.
#[derive(Clone, Copy)]
pub struct Table {
    error_create: unsafe extern "C" fn(*mut ffi::Error_Create_Args) -> *mut ffi::Error,
    error_message: unsafe extern "C" fn(*mut ffi::Error_GetMessage_Args),
    error_destroy: unsafe extern "C" fn(*mut ffi::Error_Destroy_Args),
    context_get: unsafe extern "C" fn(*mut ffi::ExecutionContext_Get_Args) -> *mut ffi::Error,
    schedule: unsafe extern "C" fn(*mut ffi::ThreadPool_Schedule_Args) -> *mut ffi::Error,
    threads: unsafe extern "C" fn(*mut ffi::ThreadPool_NumThreads_Args) -> *mut ffi::Error,
}

/// The table, and the number that XLA has given the type of what calls share.
pub struct Registered {
    pub table: Table,
    pub shared_type: i64,
}

/// Registers the call and the type with XLA. Its registry is one for the process and forgets nothing, so this is done once:
/// what is kept here is constant from then on.
///
/// # Errors
/// When this XLA library takes no such calls.
pub fn registered(handler: ffi::Handler) -> Result<&'static Registered> {
    static REGISTERED: OnceLock<Result<Registered, String>> = OnceLock::new();
    let register = || register(handler).map_err(|error| format!("registering a call with XLA: {error:#}"));
    REGISTERED.get_or_init(register).as_ref().map_err(|error| anyhow!("{error}"))
}

fn register(handler: ffi::Handler) -> Result<Registered> {
    // SAFETY: the symbol's type is that of the function in XLA's header.
    let table = unsafe { Shared::this().get::<unsafe extern "C" fn() -> *const ffi::Api>(TABLE) };
    let table = table.map_err(|_| anyhow!("this XLA library has no custom calls of that kind"))?;
    // SAFETY: the function takes nothing, and gives null or a constant table, whose size stands at its head.
    let api = unsafe {
        let api = table();
        ensure!(!api.is_null() && (*api).struct_size >= size_of::<ffi::Api>(), "XLA's table is too small");
        &*api
    };
    let (major, minor) = (api.api_version.major_version, api.api_version.minor_version);
    ensure!(
        major == ffi::VERSION.0,
        "this XLA library has version {major}.{minor} of custom calls, this program needs {}.{} or later",
        ffi::VERSION.0,
        ffi::VERSION.1
    );
    let table = Table {
        error_create: api.XLA_FFI_Error_Create.context("XLA makes no errors")?,
        error_message: api.XLA_FFI_Error_GetMessage.context("XLA's errors have no message")?,
        error_destroy: api.XLA_FFI_Error_Destroy.context("XLA's errors cannot be destroyed")?,
        context_get: api.XLA_FFI_ExecutionContext_Get.context("XLA's calls share nothing")?,
        schedule: api.XLA_FFI_ThreadPool_Schedule.context("XLA gives no threads")?,
        threads: api.XLA_FFI_ThreadPool_NumThreads.context("XLA tells no number of threads")?,
    };
    let execute = Some(handler);
    let mut args = ffi::Handler_Register_Args {
        name: span(WEIGHT_GRADIENT),
        platform: span(PLATFORM),
        bundle: ffi::Handler_Bundle { instantiate: None, prepare: None, initialize: None, execute },
        ..Default::default()
    };
    let register = api.XLA_FFI_Handler_Register.context("XLA registers nothing")?;
    // SAFETY: the arguments live during the call, in which XLA copies them; the error is the call's.
    unsafe { table.checked(register(&raw mut args)) }?;
    let (mut id, info) = (ffi::TypeId { type_id: 0 }, ffi::TypeInfo::default());
    let mut args = ffi::Type_Register_Args {
        name: span(SHARED),
        type_id: &raw mut id,
        type_info: &raw const info,
        ..Default::default()
    };
    let register = api.XLA_FFI_Type_Register.context("XLA registers no types")?;
    // SAFETY: as above; the number is written during the call.
    unsafe { table.checked(register(&raw mut args)) }?;
    Ok(Registered { table, shared_type: id.type_id })
}

fn span(text: &'static str) -> ffi::ByteSpan {
    ffi::ByteSpan { ptr: text.as_ptr().cast(), len: text.len() }
}

impl Table {
    /// An error of XLA's with a message.
    pub fn error(&self, message: String) -> *mut ffi::Error {
        let message = CString::new(message.replace('\0', "")).unwrap_or_default();
        let mut args =
            ffi::Error_Create_Args { message: message.as_ptr(), errc: ffi::INTERNAL, ..Default::default() };
        // SAFETY: the arguments live during the call, in which XLA copies them.
        unsafe { (self.error_create)(&raw mut args) }
    }

    /// Takes an error of XLA's and destroys it.
    ///
    /// # Safety
    /// It is null, or an error that a function of the table gave and nobody has destroyed.
    unsafe fn checked(&self, error: *mut ffi::Error) -> Result<()> {
        if error.is_null() {
            return Ok(());
        }
        let mut asked = ffi::Error_GetMessage_Args { error, ..Default::default() };
        let mut args = ffi::Error_Destroy_Args { error, ..Default::default() };
        // SAFETY: the error lives; the message is its own until it is destroyed. Whoever gets an error has to destroy it.
        let message = unsafe {
            (self.error_message)(&raw mut asked);
            let message = (!asked.message.is_null())
                .then(|| CStr::from_ptr(asked.message).to_string_lossy().into_owned());
            (self.error_destroy)(&raw mut args);
            message
        };
        bail!(message.unwrap_or_else(|| "an error without a message".into()))
    }

    /// What the client of a call has put down under a type.
    ///
    /// # Safety
    /// The context is that of a call that has not returned.
    pub unsafe fn shared(&self, ctx: *mut ffi::Context, shared_type: i64) -> Result<*mut c_void> {
        let mut id = ffi::TypeId { type_id: shared_type };
        let mut args = ffi::ExecutionContext_Get_Args {
            ctx,
            type_id: &raw mut id,
            data: ptr::null_mut(),
            ..Default::default()
        };
        // SAFETY: the context lives by the caller's promise, the arguments during the call.
        unsafe { self.checked((self.context_get)(&raw mut args)) }?;
        Ok(args.data)
    }

    /// The number of threads that XLA has for a call's work.
    ///
    /// # Safety
    /// As of [`Table::shared`].
    pub unsafe fn threads(&self, ctx: *mut ffi::Context) -> Result<usize> {
        let mut threads = 0;
        let mut args =
            ffi::ThreadPool_NumThreads_Args { ctx, num_threads: &raw mut threads, ..Default::default() };
        // SAFETY: the context lives by the caller's promise, and the number is written during the call.
        unsafe { self.checked((self.threads)(&raw mut args)) }?;
        Ok(threads.max(1) as usize)
    }

    /// Lets one of XLA's threads run a task at some time.
    ///
    /// # Safety
    /// As of [`Table::shared`]; and the task may be run once with this data, at any time, on any thread.
    pub unsafe fn schedule(&self, ctx: *mut ffi::Context, task: ffi::Task, data: *mut c_void) -> Result<()> {
        let mut args = ffi::ThreadPool_Schedule_Args { ctx, task: Some(task), data, ..Default::default() };
        // SAFETY: the caller's promise.
        unsafe { self.checked((self.schedule)(&raw mut args)) }
    }
}

#[cfg(test)]
impl Table {
    /// A table whose threads are the system's, each of which begins late.
    pub fn of_tests() -> Table {
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
            // SAFETY: called through `Table::threads`, which gives a place for the number.
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
