//! Work divided among XLA's threads.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use anyhow::Result;

use super::table::Table;
use super::{ffi, locked};

/// A task, by its number.
pub type Run<'a> = dyn Fn(usize) -> Result<()> + Sync + 'a;

/// The threads that XLA has for work like this, during one call.
pub struct Threads<'a> {
    table: &'a Table,
    ctx: *mut ffi::Context,
}

impl<'a> Threads<'a> {
    /// # Safety
    /// The context is that of a call, which does not return while this lives.
    pub unsafe fn new(table: &'a Table, ctx: *mut ffi::Context) -> Threads<'a> {
        Threads { table, ctx }
    }

    pub fn count(&self) -> Result<usize> {
        // SAFETY: promised when this was made.
        unsafe { self.table.threads(self.ctx) }
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
        for _ in 1..count {
            let data = Arc::into_raw(tasks.clone()).cast_mut().cast();
            // SAFETY: the call has not returned; the task may run at any time, and holds its own share of what it needs.
            if let Err(error) = unsafe { self.table.schedule(self.ctx, help, data) } {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn every_task_is_done_once_before_the_call_returns() {
        let table = Table::of_tests();
        // SAFETY: these functions do not look at the context.
        let threads = unsafe { Threads::new(&table, ptr::null_mut()) };
        assert_eq!(threads.count().unwrap(), 3);
        for count in [0, 1, 5] {
            let done = AtomicU64::new(0);
            let add = |i: usize| {
                done.fetch_add(10u64.pow(i as u32), Ordering::Relaxed);
                Ok(())
            };
            threads.share(count, &add).unwrap();
            assert_eq!(done.into_inner(), (0..count).map(|i| 10u64.pow(i as u32)).sum::<u64>());
        }
        let odd = |i: usize| if i == 3 { anyhow::bail!("the third") } else { Ok(()) };
        assert_eq!(threads.share(5, &odd).unwrap_err().to_string(), "the third");
    }
}
