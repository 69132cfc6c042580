//! Counts the memory that a reader takes, and the time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The system's allocator, which counts.
pub struct Meter;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grown(bytes: usize) {
    let now = NOW.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(now, Relaxed);
}

// SAFETY: every call goes on to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    // The default allocates anew and copies, through the functions above: both blocks count while both are there.
}

/// The longest that one input may take.
const LIMIT: Duration = Duration::from_secs(1);

/// Bytes that reading a file of `length` bytes may take at once.
pub fn allowed(length: usize) -> usize {
    4 * length + (16 << 20)
}

/// The most bytes that were allocated at once by `f`, besides what was there before. No other thread may allocate.
pub fn peak_of(f: impl FnOnce()) -> usize {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    f();
    PEAK.load(Relaxed) - before
}

/// Calls `f`, which reads an input of `length` bytes; returns the bytes that it took.
///
/// # Panics
/// When it takes more memory or time than it may.
pub fn checked(length: usize, f: impl Fn()) -> usize {
    let began = Instant::now();
    let peak = peak_of(&f);
    assert!(peak <= allowed(length), "an input of {length} bytes took {peak} bytes of memory");
    // A busy machine may take away the processor once; it is slow when it is slow every time.
    let mut took = began.elapsed();
    for _ in 0..3 {
        if took < LIMIT {
            return peak;
        }
        let began = Instant::now();
        f();
        took = began.elapsed();
    }
    panic!("an input of {length} bytes took {took:?}");
}
