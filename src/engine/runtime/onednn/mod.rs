//! Weight gradients of convolutions on CPUs, by a oneDNN of our own: XLA's CPU library makes calls of its own oneDNN for
//! convolutions and products, and none for these. They are a custom call, which runs on XLA's threads.

mod call;
#[expect(non_snake_case)]
mod ffi;
mod library;
mod plan;
mod threads;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, CString};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use libloading::os::unix::Library as Shared;

use self::library::Library;
use self::plan::{Conv, Plan, Workspace};
use self::threads::Threads;
use crate::engine::program::WEIGHT_GRADIENT;

/// The function of XLA's library that gives its table for custom calls (`xla/ffi/ffi_api.h`). It is C++ without arguments:
/// its name tells nothing else.
const TABLE: &[u8] = b"_ZN3xla3ffi12GetXlaFfiApiEv";

/// The name of the platform in XLA's registry of custom calls.
const PLATFORM: &str = "Host";

/// What calls share.
struct Shop {
    library: Library,
    /// By convolution and number of threads.
    plans: Mutex<HashMap<(Conv, usize), Arc<Plan>>>,
    workspaces: Mutex<Vec<Workspace>>,
}

static SHOP: OnceLock<Result<Shop, String>> = OnceLock::new();

/// Makes the call known to XLA, once.
///
/// # Errors
/// When there is no oneDNN, or this XLA library takes no such calls.
pub fn register() -> Result<()> {
    shop().map(|_| ())
}

fn shop() -> Result<&'static Shop> {
    let made = || {
        let library = Library::load()?;
        announce().context("registering the call of weight gradients with XLA")?;
        Ok(Shop { library, plans: Mutex::default(), workspaces: Mutex::default() })
    };
    let shop = SHOP.get_or_init(|| made().map_err(|error: anyhow::Error| format!("{error:#}")));
    shop.as_ref().map_err(|error| anyhow!("{error}"))
}

fn announce() -> Result<()> {
    // SAFETY: the symbol's type is that of the function in XLA's header.
    let table = unsafe { Shared::this().get::<unsafe extern "C" fn() -> *const ffi::Api>(TABLE) };
    let table = table.map_err(|_| anyhow!("this XLA library has no custom calls of that kind"))?;
    // SAFETY: the function takes nothing, and gives a constant table.
    let api = unsafe { &*table() };
    let (major, minor) = (api.api_version.major_version, api.api_version.minor_version);
    ensure!(
        api.struct_size >= size_of::<ffi::Api>() && major == ffi::VERSION.0,
        "this XLA library has version {major}.{minor} of custom calls, this program needs {}.{} or later",
        ffi::VERSION.0,
        ffi::VERSION.1
    );
    let execute = Some(weight_gradient as ffi::Handler);
    let mut args = ffi::Handler_Register_Args {
        name: span(WEIGHT_GRADIENT),
        platform: span(PLATFORM),
        bundle: ffi::Handler_Bundle { instantiate: None, prepare: None, initialize: None, execute },
        ..Default::default()
    };
    let register = api.XLA_FFI_Handler_Register.context("XLA registers nothing")?;
    // SAFETY: the arguments live during the call, in which XLA copies them.
    checked(api, unsafe { register(&raw mut args) })
}

fn span(text: &'static str) -> ffi::ByteSpan {
    ffi::ByteSpan { ptr: text.as_ptr().cast(), len: text.len() }
}

/// Takes an error of XLA's and destroys it.
fn checked(api: &ffi::Api, error: *mut ffi::Error) -> Result<()> {
    if error.is_null() {
        return Ok(());
    }
    let mut asked = ffi::Error_GetMessage_Args { error, ..Default::default() };
    let mut message = String::from("an error without a message");
    if let Some(ask) = api.XLA_FFI_Error_GetMessage {
        // SAFETY: the error lives; the message is its own until it is destroyed.
        unsafe {
            ask(&raw mut asked);
            if !asked.message.is_null() {
                message = CStr::from_ptr(asked.message).to_string_lossy().into_owned();
            }
        }
    }
    if let Some(destroy) = api.XLA_FFI_Error_Destroy {
        let mut args = ffi::Error_Destroy_Args { error, ..Default::default() };
        // SAFETY: whoever gets an error has to destroy it.
        unsafe { destroy(&raw mut args) };
    }
    bail!(message)
}

/// The custom call. XLA also calls it without a call at hand, to ask for its version.
unsafe extern "C" fn weight_gradient(frame: *mut ffi::CallFrame) -> *mut ffi::Error {
    // SAFETY: XLA gives a frame that lives during the call.
    let frame = unsafe { &*frame };
    let extension = frame.extension_start.cast::<ffi::Metadata_Extension>();
    // SAFETY: an extension begins with its base, whose type says what it is.
    if !extension.is_null() && unsafe { (*extension).extension_base.r#type } == ffi::METADATA {
        // SAFETY: the metadata is XLA's own, to be filled in here.
        let version = unsafe { &mut (*(*extension).metadata).api_version };
        (version.major_version, version.minor_version) = ffi::VERSION;
        return ptr::null_mut();
    }
    // SAFETY: the table lives as long as the library.
    let api = unsafe { &*frame.api };
    let Err(error) = computed(api, frame) else { return ptr::null_mut() };
    let message = CString::new(format!("{WEIGHT_GRADIENT}: {error:#}").replace('\0', "")).unwrap_or_default();
    let mut args =
        ffi::Error_Create_Args { message: message.as_ptr(), errc: ffi::INTERNAL, ..Default::default() };
    match api.XLA_FFI_Error_Create {
        // SAFETY: the arguments live during the call, in which XLA copies them.
        Some(create) => unsafe { create(&raw mut args) },
        None => ptr::null_mut(),
    }
}

fn computed(api: &ffi::Api, frame: &ffi::CallFrame) -> Result<()> {
    let (conv, at) = call::read(frame)?;
    let Shop { library, plans, workspaces } = shop()?;
    let threads = Threads { api, ctx: frame.ctx };
    let count = threads.count()?;
    let plan = match locked(plans).entry((conv, count)) {
        Entry::Occupied(plan) => plan.get().clone(),
        Entry::Vacant(none) => {
            let plan = Plan::new(library, &none.key().0, count)
                .with_context(|| format!("{:?} with {count} threads", none.key().0))?;
            none.insert(Arc::new(plan)).clone()
        }
    };
    let mut workspace = locked(workspaces).pop().unwrap_or_default();
    // SAFETY: XLA gives buffers of these sizes that are this call's until it returns.
    let done = unsafe { plan.run(library, at, &mut workspace, &threads) };
    locked(workspaces).push(workspace);
    done
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
