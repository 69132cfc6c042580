//! Runs tasks on XLA's threads.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use anyhow::Result;

use super::table::Table;
use super::{ffi, lock};

/// A function that runs one task, given the task's index.
pub type RunTask<'a> = dyn Fn(usize) -> Result<()> + Sync + 'a;

/// XLA's thread pool for custom calls, during one call.
pub struct Threads<'a> {
    table: &'a Table,
    ctx: *mut ffi::Context,
}

impl<'a> Threads<'a> {
    /// # Safety
    /// The context belongs to a call that does not return while this value lives.
    pub unsafe fn new(table: &'a Table, ctx: *mut ffi::Context) -> Threads<'a> {
        Threads { table, ctx }
    }

    /// Returns the number of threads.
    pub fn count(&self) -> Result<usize> {
        // SAFETY: the caller of `new` promised that the call has not returned.
        unsafe { self.table.threads(self.ctx) }
    }

    /// Runs `count` tasks on this thread and on those pool threads that become free. Returns when all tasks have ended; this
    /// thread may run all of them.
    ///
    /// # Errors
    /// The error of one failed task.
    pub fn run_tasks(&self, count: usize, run: &RunTask<'_>) -> Result<()> {
        // SAFETY: only the lifetime changes; see `Tasks::run`.
        let run =
            unsafe { std::mem::transmute::<*const RunTask<'_>, *const RunTask<'static>>(ptr::from_ref(run)) };
        let (next, done) = (AtomicUsize::new(0), Mutex::new((0, Ok(()))));
        let tasks = Arc::new(Tasks { run, count, next, done, all_done: Condvar::new() });
        for _ in 1..count {
            let data = Arc::into_raw(tasks.clone()).cast_mut().cast();
            // SAFETY: the call has not returned. The helper may run at any time: it owns a reference to the tasks.
            if let Err(error) = unsafe { self.table.schedule(self.ctx, run_as_helper, data) } {
                // SAFETY: scheduling failed, so nothing else owns this reference.
                drop(unsafe { Arc::from_raw(data.cast::<Tasks>()) });
                log::debug!("cannot use XLA's threads: {error:#}");
                break;
            }
        }
        tasks.work();
        let mut done = lock(&tasks.done);
        while done.0 < count {
            done = tasks.all_done.wait(done).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::replace(&mut done.1, Ok(()))
    }
}

/// A queue of tasks. Each thread takes the next index until none is left.
struct Tasks {
    /// Valid until all tasks are done. A thread that has taken no task does not touch it.
    run: *const RunTask<'static>,
    count: usize,
    next: AtomicUsize,
    /// The number of finished tasks, and the error of one that failed.
    done: Mutex<(usize, Result<()>)>,
    all_done: Condvar,
}

// SAFETY: the function may be called by several threads at once, and lives while any thread has a task.
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
            // SAFETY: this task is not done, so `run_tasks` has not returned, and the function lives.
            let result = unsafe { (*self.run)(i) };
            let mut done = lock(&self.done);
            done.0 += 1;
            if result.is_err() {
                done.1 = result;
            }
            if done.0 == self.count {
                self.all_done.notify_all();
            }
        }
    }
}

unsafe extern "C" fn run_as_helper(tasks: *mut c_void) {
    // SAFETY: `run_tasks` turned one Arc into such a pointer for each helper that it scheduled.
    unsafe { Arc::from_raw(tasks.cast::<Tasks>()) }.work();
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn every_task_is_done_once_before_the_call_returns() {
        let table = Table::for_tests();
        // SAFETY: the functions of this table do not read the context.
        let threads = unsafe { Threads::new(&table, ptr::null_mut()) };
        assert_eq!(threads.count().unwrap(), 3);
        for count in [0, 1, 5] {
            let done = AtomicU64::new(0);
            let add = |i: usize| {
                done.fetch_add(10u64.pow(i as u32), Ordering::Relaxed);
                Ok(())
            };
            threads.run_tasks(count, &add).unwrap();
            assert_eq!(done.into_inner(), (0..count).map(|i| 10u64.pow(i as u32)).sum::<u64>());
        }
        let third_fails = |i: usize| if i == 3 { anyhow::bail!("the third") } else { Ok(()) };
        assert_eq!(threads.run_tasks(5, &third_fails).unwrap_err().to_string(), "the third");
    }
}
