//! A pool of result buffers that are reused from one operation to the next.
//!
//! Fresh memory from the system costs one page fault per page. For results of several megabytes, these faults take
//! longer than a norm or an activation function. So the memory of a dropped tensor is kept for later results of similar
//! size.

#![allow(unsafe_code)] // Burn accesses the memory of a tensor as raw bytes

use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};
use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty};

use idefics_kernels::AlignedBuffer;

/// Minimum size of a buffer that is kept, in bytes. For smaller buffers, the allocator is as fast.
const MIN_BYTES: usize = 128 << 10;

/// Maximum total size of unused buffers that are kept, in bytes.
pub(super) const MAX_BYTES: usize = 256 << 20;

/// Unused buffers, from oldest to newest.
static KEPT: Mutex<Vec<AlignedBuffer>> = Mutex::new(Vec::new());

/// Memory for `len` result values. The values are unspecified until they are written.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: AlignedBuffer,
    len: usize,
}

impl Buffer {
    /// Takes a kept buffer, or allocates one.
    pub(super) fn new(len: usize) -> Self {
        Self { memory: kept(len).unwrap_or_else(|| AlignedBuffer::new(len)), len }
    }

    /// Returns the values as a contiguous tensor.
    pub(super) fn into_tensor(self, shape: &Shape) -> FlexTensor {
        self.into_tensor_with(Layout::contiguous(shape.clone()))
    }

    /// Returns the values as a tensor with the given layout.
    pub(super) fn into_tensor_with(self, layout: Layout) -> FlexTensor {
        let n_bytes = self.len * size_of::<f32>();
        // SAFETY: the buffer holds `n_bytes` bytes, and all of them are initialised, because `AlignedBuffer` is zeroed
        // at first.
        FlexTensor::new(unsafe { Bytes::from_controller(Box::new(self), n_bytes) }, layout, DType::F32)
    }
}

/// Takes the smallest kept buffer with room for `len` to `2 * len` values. Of several buffers of this size, takes the
/// newest.
fn kept(len: usize) -> Option<AlignedBuffer> {
    if len * size_of::<f32>() < MIN_BYTES {
        return None;
    }
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let fits = |memory: &AlignedBuffer| (len..=2 * len).contains(&memory.len());
    let latest = kept.iter().enumerate().rev().filter(|(_, memory)| fits(memory));
    let (index, _) = latest.min_by_key(|(_, memory)| memory.len())?;
    Some(kept.remove(index))
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = |memory: &AlignedBuffer| memory.len() * size_of::<f32>();
        let memory = std::mem::replace(&mut self.memory, AlignedBuffer::NONE);
        if !(MIN_BYTES..=MAX_BYTES).contains(&bytes(&memory)) {
            return;
        }
        let mut gone = Vec::new(); // freed after the lock is released
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(memory);
        // The oldest buffers are freed first.
        let mut n_bytes: usize = kept.iter().map(bytes).sum();
        while n_bytes > MAX_BYTES {
            let oldest = kept.remove(0);
            n_bytes -= bytes(&oldest);
            gone.push(oldest);
        }
        drop(kept);
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory.values()[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory.values_mut()[..self.len]
    }
}

impl AllocationController for Buffer {
    fn alloc_align(&self) -> usize {
        64
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(&mut self, _policy: AccessPolicy) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let values: &mut [f32] = self;
        // SAFETY: the slice covers exactly the bytes of the values, and borrows them. The caller writes only
        // initialised bytes (contract of `memory_mut`).
        Ok(unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) })
    }

    fn memory(&self, _policy: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let values: &[f32] = self;
        // SAFETY: the slice covers exactly the bytes of the values, and borrows them.
        Ok(unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of values of a buffer. No other test uses buffers of this size.
    const LEN: usize = 123_456;

    #[test]
    fn dropped_memory_is_reused() {
        let mut first = Buffer::new(LEN);
        first.fill(1.0);
        let tensor = first.into_tensor(&[LEN].into());
        let place = tensor.storage::<f32>().as_ptr();
        drop(tensor);
        let second = Buffer::new(LEN - 10);
        assert_eq!((second.as_ptr(), second.len()), (place, LEN - 10));
        assert!(second.iter().all(|value| *value == 1.0), "the values of the dropped tensor are still there");
        let third = Buffer::new(LEN);
        assert_ne!(third.as_ptr(), place, "the kept buffer is already in use");
    }

    #[test]
    fn smaller_result_leaves_kept_memory_in_place() {
        let place = Buffer::new(9 * LEN).as_ptr();
        drop(Buffer::new(8 * LEN));
        let again = Buffer::new(9 * LEN);
        assert_eq!((again.as_ptr(), again.len()), (place, 9 * LEN));
    }
}
