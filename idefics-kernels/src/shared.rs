//! Memory that tasks share: an output that each writes a part of, and scratch that a thread keeps. Sizes.

#![allow(unsafe_code)] // several tasks write disjoint parts of one slice

use std::cell::Cell;
use std::marker::PhantomData;

use crate::memory::Memory;

/// A slice that several tasks write to, each its own elements.
#[derive(Clone, Copy)]
pub(crate) struct SharedOut<'a> {
    start: *mut f32,
    len: usize,
    slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: the methods that write are unsafe, and their callers keep the elements apart.
unsafe impl Send for SharedOut<'_> {}
// SAFETY: as above.
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
    /// No other task touches element `index`.
    pub(crate) unsafe fn write(&self, index: usize, value: f32) {
        assert!(index < self.len);
        // SAFETY: inside the slice, and the caller's alone.
        unsafe { *self.start.add(index) = value }
    }

    /// `len` elements from `start` on.
    ///
    /// # Safety
    /// Nobody else touches them while the slice lives.
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [f32] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: inside the slice, and the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// Where element `index` lies.
    pub(crate) fn pointer(&self, index: usize) -> *mut f32 {
        assert!(index <= self.len);
        self.start.wrapping_add(index)
    }
}

/// Calls `work` with `len` values of unspecified content from memory that the thread keeps for the next call. It begins
/// with a cache line.
pub(crate) fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static SCRATCH: Cell<Memory> = const { Cell::new(Memory::NONE) };
    }
    // Taken, not borrowed: while the thread waits it may run another task that needs scratch, which gets its own.
    let mut scratch = SCRATCH.replace(Memory::NONE);
    if scratch.len() < len {
        drop(scratch); // before there is more
        scratch = Memory::new(len);
    }
    let result = work(&mut scratch.values_mut()[..len]);
    SCRATCH.set(scratch);
    result
}

/// The product of dimensions; `None` beyond what can be counted.
pub(crate) fn count(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1, |product: usize, dim| product.checked_mul(*dim))
}
