//! Computes weight gradients of convolutions on CPUs with a separately loaded oneDNN.
//!
//! XLA's CPU library calls its own oneDNN for convolutions and matmuls, but not for weight gradients. This module registers a
//! custom call for them. The call runs on XLA's threads.

mod call;
#[expect(non_snake_case)]
mod ffi;
mod library;
mod plan;
mod table;
mod threads;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};

use self::library::OneDnnLibrary;
use self::plan::{Conv, Plan, Workspace};
use self::table::Registration;
use self::threads::Threads;
use crate::engine::program::WEIGHT_GRADIENT;

/// The state that the custom calls of one client share.
#[derive(Default)]
pub struct OneDnn {
    /// Plans by convolution and number of threads. Declared before the library, so that they are dropped first.
    plans: Mutex<HashMap<(Conv, usize), Arc<Plan>>>,
    workspaces: Mutex<Vec<Workspace>>,
    library: OnceLock<Result<OneDnnLibrary, String>>,
}

impl OneDnn {
    /// Returns XLA's type id of this struct. A client passes its calls a pointer to one under this id.
    ///
    /// # Errors
    /// When this XLA library does not support such calls.
    pub fn xla_type_id() -> Result<i64> {
        Ok(table::registration(weight_gradient)?.shared_type)
    }

    /// Checks that the custom call can run.
    ///
    /// # Errors
    /// When there is no oneDNN, or this XLA library does not support such calls.
    pub fn check_usable(&self) -> Result<()> {
        self.library()?;
        OneDnn::xla_type_id().map(|_| ())
    }

    fn library(&self) -> Result<&OneDnnLibrary> {
        let library =
            self.library.get_or_init(|| OneDnnLibrary::load().map_err(|error| format!("{error:#}")));
        library.as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// Computes the weight gradient that a call's frame describes.
    ///
    /// # Safety
    /// The frame comes from XLA and belongs to a call that has not returned.
    unsafe fn compute(&self, threads: &Threads<'_>, frame: &ffi::CallFrame) -> Result<()> {
        // SAFETY: the caller's promise.
        let (conv, addresses) = unsafe { call::read(frame) }?;
        let library = self.library()?;
        let count = threads.count()?;
        let plan = match lock(&self.plans).entry((conv, count)) {
            Entry::Occupied(plan) => plan.get().clone(),
            Entry::Vacant(none) => {
                let plan = Plan::new(library, &none.key().0, count)
                    .with_context(|| format!("{:?} with {count} threads", none.key().0))?;
                none.insert(Arc::new(plan)).clone()
            }
        };
        let mut workspace = lock(&self.workspaces).pop().unwrap_or_default();
        // SAFETY: XLA passes buffers of these sizes. They belong to this call until it returns.
        let result = unsafe { plan.run(library, addresses, &mut workspace, threads) };
        lock(&self.workspaces).push(workspace);
        result
    }
}

/// The custom call's handler. XLA also calls it with a metadata extension, to ask for the API version it was built for.
unsafe extern "C" fn weight_gradient(frame: *mut ffi::CallFrame) -> *mut ffi::Error {
    // SAFETY: XLA passes a frame that lives during the call.
    let frame = unsafe { &*frame };
    let extension = frame.extension_start.cast::<ffi::Metadata_Extension>();
    // SAFETY: every extension begins with its base, which holds the extension's type.
    if !extension.is_null() && unsafe { (*extension).extension_base.r#type } == ffi::METADATA {
        // SAFETY: XLA owns the metadata and expects the handler to fill it in.
        let version = unsafe { &mut (*(*extension).metadata).api_version };
        (version.major_version, version.minor_version) = ffi::VERSION;
        return ptr::null_mut();
    }
    // XLA calls this handler only after `registration` succeeded, and the result of that is kept for good.
    let Ok(registration) = table::registration(weight_gradient) else { std::process::abort() };
    // SAFETY: the frame is that of this call.
    match unsafe { compute_frame(registration, frame) } {
        Ok(()) => ptr::null_mut(),
        Err(error) => registration.table.error(format!("{WEIGHT_GRADIENT}: {error:#}")),
    }
}

/// Finds the client's [`OneDnn`] and computes the call.
///
/// # Safety
/// As for [`OneDnn::compute`].
unsafe fn compute_frame(
    Registration { table, shared_type }: &Registration,
    frame: &ffi::CallFrame,
) -> Result<()> {
    // SAFETY: the caller's promise.
    let (shared, threads) =
        unsafe { (table.shared(frame.ctx, *shared_type)?.cast::<OneDnn>(), Threads::new(table, frame.ctx)) };
    ensure!(!shared.is_null(), "the client has no oneDNN");
    // SAFETY: a client stores only a pointer to a `OneDnn` under this type id, and that one outlives the client's calls.
    unsafe { (*shared).compute(&threads, frame) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
