//! Counts the bytes that a thread allocates and frees, to test which data is copied.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
    static FREED: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all calls are forwarded to the system allocator unchanged. The counters are constant-initialised cells
// without destructors, so counting never allocates.
#[allow(unsafe_code, reason = "an allocator is unsafe to implement")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get() + layout.size());
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        FREED.set(FREED.get() + layout.size());
        // SAFETY: the caller upholds the contract of `dealloc`, and the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs `work` and returns its result, the number of bytes allocated on this thread, and how many of these were not
/// freed.
pub(crate) fn measure<T>(work: impl FnOnce() -> T) -> (T, usize, usize) {
    let (allocated, freed) = (ALLOCATED.get(), FREED.get());
    let result = work();
    let (allocated, freed) = (ALLOCATED.get() - allocated, FREED.get() - freed);
    (result, allocated, allocated.saturating_sub(freed))
}
