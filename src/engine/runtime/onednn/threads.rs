//! Work divided among XLA's threads.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use anyhow::{Context, Result};

use super::{checked, ffi, locked};

/// A task, by its number.
pub type Run<'a> = dyn Fn(usize) -> Result<()> + Sync + 'a;

/// The threads that XLA has for work like this, during one call.
pub struct Threads<'a> {
    pub api: &'a ffi::Api,
    pub ctx: *mut ffi::Context,
}

impl Threads<'_> {
    pub fn count(&self) -> Result<usize> {
        let mut threads = 0;
        let mut args = ffi::ThreadPool_NumThreads_Args {
            ctx: self.ctx,
            num_threads: &raw mut threads,
            ..Default::default()
        };
        let ask = self.api.XLA_FFI_ThreadPool_NumThreads.context("XLA tells no number of threads")?;
        // SAFETY: the context lives, and the number is written during the call.
        checked(self.api, unsafe { ask(&raw mut args) })?;
        Ok(threads.max(1) as usize)
    }

    /// Runs tasks on this thread, and on the others as they come to it: they may be busy until this one has done all.
    ///
    /// # Errors
    /// One of the tasks', when all have ended.
    pub fn share(&self, count: usize, run: &Run<'_>) -> Result<()> {
        // SAFETY: only the lifetime changes; see `Tasks::run`.
        let run = unsafe { std::mem::transmute::<*const Run<'_>, *const Run<'static>>(ptr::from_ref(run)) };
        let (next, done) = (AtomicUsize::new(0), Mutex::new((0, Ok(()))));
        let tasks = Arc::new(Tasks { run, count, next, done, all: Condvar::new() });
        let schedule = self.api.XLA_FFI_ThreadPool_Schedule.context("XLA gives no threads")?;
        for _ in 1..count {
            let data = Arc::into_raw(tasks.clone()).cast_mut().cast();
            let mut args =
                ffi::ThreadPool_Schedule_Args { ctx: self.ctx, task: Some(help), data, ..Default::default() };
            // SAFETY: the context lives; the task may run at any time, and holds its own share of what it needs.
            if let Err(error) = checked(self.api, unsafe { schedule(&raw mut args) }) {
                // SAFETY: XLA has not taken it.
                drop(unsafe { Arc::from_raw(data.cast::<Tasks>()) });
                log::debug!("no help from XLA's threads: {error:#}");
                break;
            }
        }
        tasks.work();
        let mut done = locked(&tasks.done);
        while done.0 < count {
            done = tasks.all.wait(done).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::replace(&mut done.1, Ok(()))
    }
}

/// Tasks that threads take one after the other.
struct Tasks {
    /// Valid until all tasks are done: whoever has taken none does not touch it.
    run: *const Run<'static>,
    count: usize,
    next: AtomicUsize,
    /// How many are done, and an error if there was one.
    done: Mutex<(usize, Result<()>)>,
    all: Condvar,
}

// SAFETY: the function may be called by several threads at once, and lives while one has a task.
unsafe impl Send for Tasks {}
// SAFETY: as above.
unsafe impl Sync for Tasks {}

impl Tasks {
    fn work(&self) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= self.count {
                return;
            }
            // SAFETY: this task is not done, so `share` has not returned, and the function lives.
            let result = unsafe { (*self.run)(i) };
            let mut done = locked(&self.done);
            done.0 += 1;
            if result.is_err() {
                done.1 = result;
            }
            if done.0 == self.count {
                self.all.notify_all();
            }
        }
    }
}

unsafe extern "C" fn help(tasks: *mut c_void) {
    // SAFETY: `share` made one such pointer out of an Arc for each helper that it scheduled.
    unsafe { Arc::from_raw(tasks.cast::<Tasks>()) }.work();
}
