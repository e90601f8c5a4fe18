//! Memory helpers: an output slice that several tasks write to, per-thread scratch memory, checked element counts.

#![allow(unsafe_code)] // tasks write disjoint parts of one slice

use std::cell::Cell;
use std::marker::PhantomData;

use crate::aligned_buffer::AlignedBuffer;

/// A slice that several tasks write to. Each task writes its own elements.
#[derive(Clone, Copy)]
pub(crate) struct SharedOut<'a> {
    start: *mut f32,
    len: usize,
    slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: the writing methods are unsafe, and their callers guarantee that tasks write disjoint elements.
unsafe impl Send for SharedOut<'_> {}
// SAFETY: as for `Send`.
unsafe impl Sync for SharedOut<'_> {}

impl<'a> SharedOut<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Writes one element.
    ///
    /// # Safety
    /// No other task accesses element `index`.
    pub(crate) unsafe fn write(&self, index: usize, value: f32) {
        assert!(index < self.len);
        // SAFETY: in bounds by the assertion; the caller guarantees exclusive access.
        unsafe { *self.start.add(index) = value }
    }

    /// Returns the elements `start .. start + len` for writing.
    ///
    /// # Safety
    /// Nothing else accesses these elements while the returned slice is alive.
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [f32] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: in bounds by the assertion; the caller guarantees exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// Returns a pointer to element `index`, which may be one past the end.
    pub(crate) fn pointer(&self, index: usize) -> *mut f32 {
        assert!(index <= self.len);
        self.start.wrapping_add(index)
    }
}

/// Calls `work` with `len` scratch values of unspecified content, aligned to a cache line. The thread keeps the
/// memory for the next call.
pub(crate) fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static SCRATCH: Cell<AlignedBuffer> = const { Cell::new(AlignedBuffer::NONE) };
    }
    // The buffer is taken out of the cell, not borrowed. If `work` waits for other tasks, this thread may run a task
    // that needs scratch memory too, and that task gets its own buffer.
    let mut scratch = SCRATCH.replace(AlignedBuffer::NONE);
    if scratch.len() < len {
        drop(scratch); // free the old buffer before allocating the new one
        scratch = AlignedBuffer::new(len);
    }
    let result = work(&mut scratch.values_mut()[..len]);
    SCRATCH.set(scratch);
    result
}

/// Returns the product of the dimensions, or `None` on overflow.
pub(crate) fn count(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1, |product: usize, dim| product.checked_mul(*dim))
}
