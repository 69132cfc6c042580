//! Counts the memory that a reader takes, and the time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
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

/// The most processor time that one input may take.
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
    // A busy machine takes the processor away: what counts is the time that it gives.
    if began.elapsed() >= LIMIT {
        let before = processor_time();
        f();
        let took = processor_time() - before;
        assert!(took < LIMIT, "an input of {length} bytes took {took:?}");
    }
    peak
}

/// The processor time of this process. The kernel counts it in hundredths of a second.
fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux");
    // The second field is a name, which may hold blanks. The 14th and 15th are the times in programs and in the kernel.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let hundredths: u64 = fields.skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(10 * hundredths)
}
