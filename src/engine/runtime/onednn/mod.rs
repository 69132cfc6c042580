//! Computes weight gradients of convolutions on CPUs with a separately loaded oneDNN. XLA's CPU library calls its own oneDNN for
//! convolutions and matmuls, but not for weight gradients. They are a custom call here, which runs on XLA's threads.

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

use self::library::Library;
use self::plan::{Conv, Plan, Workspace};
use self::table::Registered;
use self::threads::Threads;
use crate::engine::program::WEIGHT_GRADIENT;

/// What the calls of one client share.
#[derive(Default)]
pub struct OneDnn {
    /// By convolution and number of threads. They are of the library, and dropped before it.
    plans: Mutex<HashMap<(Conv, usize), Arc<Plan>>>,
    workspaces: Mutex<Vec<Workspace>>,
    library: OnceLock<Result<Library, String>>,
}

impl OneDnn {
    /// The number of this type in XLA, under which a client has to give its calls a pointer to one.
    ///
    /// # Errors
    /// When this XLA library takes no such calls.
    pub fn type_in_xla() -> Result<i64> {
        Ok(table::registered(weight_gradient)?.shared_type)
    }

    /// Makes sure that calls can be made.
    ///
    /// # Errors
    /// When there is no oneDNN, or this XLA library takes no such calls.
    pub fn ready(&self) -> Result<()> {
        self.library()?;
        OneDnn::type_in_xla().map(|_| ())
    }

    fn library(&self) -> Result<&Library> {
        let library = self.library.get_or_init(|| Library::load().map_err(|error| format!("{error:#}")));
        library.as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// Computes what a call asks for.
    ///
    /// # Safety
    /// The frame is one of XLA's, for a call that has not returned.
    unsafe fn compute(&self, threads: &Threads<'_>, frame: &ffi::CallFrame) -> Result<()> {
        // SAFETY: the caller's promise.
        let (conv, at) = unsafe { call::read(frame) }?;
        let library = self.library()?;
        let count = threads.count()?;
        let plan = match locked(&self.plans).entry((conv, count)) {
            Entry::Occupied(plan) => plan.get().clone(),
            Entry::Vacant(none) => {
                let plan = Plan::new(library, &none.key().0, count)
                    .with_context(|| format!("{:?} with {count} threads", none.key().0))?;
                none.insert(Arc::new(plan)).clone()
            }
        };
        let mut workspace = locked(&self.workspaces).pop().unwrap_or_default();
        // SAFETY: XLA gives buffers of these sizes that are this call's until it returns.
        let done = unsafe { plan.run(library, at, &mut workspace, threads) };
        locked(&self.workspaces).push(workspace);
        done
    }
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
    // XLA calls what `registered` has given it, and when that has returned the table is there for good.
    let Ok(registered) = table::registered(weight_gradient) else { std::process::abort() };
    // SAFETY: the frame is that of this call.
    match unsafe { computed(registered, frame) } {
        Ok(()) => ptr::null_mut(),
        Err(error) => registered.table.error(format!("{WEIGHT_GRADIENT}: {error:#}")),
    }
}

/// # Safety
/// As of [`OneDnn::compute`].
unsafe fn computed(Registered { table, shared_type }: &Registered, frame: &ffi::CallFrame) -> Result<()> {
    // SAFETY: the caller's promise.
    let (shared, threads) =
        unsafe { (table.shared(frame.ctx, *shared_type)?.cast::<OneDnn>(), Threads::new(table, frame.ctx)) };
    ensure!(!shared.is_null(), "the client has no oneDNN");
    // SAFETY: a client that gives something under this type gives a pointer to one that lives until its calls have ended.
    unsafe { (*shared).compute(&threads, frame) }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
