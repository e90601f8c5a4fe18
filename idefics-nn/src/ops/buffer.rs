//! Memory of results, which goes from one operation to the next.
//!
//! A result of some megabytes that comes fresh from the system costs a fault a page, which takes longer than a norm
//! or an activation: what a dropped tensor held is kept for the next results of its size.

#![allow(unsafe_code)] // tensors see bytes that may not be initialised

use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{FlexTensor, Layout};
use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty};

use idefics_kernels::Memory;

/// Bytes from which on a buffer is kept: below, the allocator does as well.
const LEAST_BYTES: usize = 128 << 10;

/// Bytes that are kept in all while nobody uses them.
pub(super) const MOST_BYTES: usize = 256 << 20;

/// Memory that nobody uses, what was given back last at the end.
static KEPT: Mutex<Vec<Memory>> = Mutex::new(Vec::new());

/// `len` values for a result, unspecified until they are written.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Memory,
    len: usize,
}

impl Buffer {
    /// Memory for `len` values.
    pub(super) fn new(len: usize) -> Self {
        Self { memory: kept(len).unwrap_or_else(|| Memory::new(len)), len }
    }

    /// The values as a tensor, in order.
    pub(super) fn into_tensor(self, shape: &Shape) -> FlexTensor {
        self.into_tensor_of(Layout::contiguous(shape.clone()))
    }

    /// The values as a tensor that lies like this.
    pub(super) fn into_tensor_of(self, layout: Layout) -> FlexTensor {
        let n_bytes = self.len * size_of::<f32>();
        // SAFETY: all of the values are initialised.
        FlexTensor::new(unsafe { Bytes::from_controller(Box::new(self), n_bytes) }, layout, DType::F32)
    }
}

/// A kept buffer with room for `len` values and at most twice that size.
fn kept(len: usize) -> Option<Memory> {
    if len * size_of::<f32>() < LEAST_BYTES {
        return None;
    }
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let fits = |memory: &Memory| (len..=2 * len).contains(&memory.len());
    let latest = kept.iter().enumerate().rev().filter(|(_, memory)| fits(memory));
    let (index, _) = latest.min_by_key(|(_, memory)| memory.len())?;
    Some(kept.remove(index))
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = |memory: &Memory| memory.len() * size_of::<f32>();
        let memory = std::mem::replace(&mut self.memory, Memory::NONE);
        if !(LEAST_BYTES..=MOST_BYTES).contains(&bytes(&memory)) {
            return;
        }
        let mut gone = Vec::new(); // given back to the system when the others may go on
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(memory);
        // The oldest go first.
        let mut n_bytes: usize = kept.iter().map(bytes).sum();
        while n_bytes > MOST_BYTES {
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
        // SAFETY: the values' bytes, which the caller keeps initialised.
        Ok(unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) })
    }

    fn memory(&self, _policy: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let values: &[f32] = self;
        // SAFETY: the values' bytes.
        Ok(unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No other test takes buffers of this size.
    const LEN: usize = 123_456;

    #[test]
    fn memory_is_handed_on() {
        let mut first = Buffer::new(LEN);
        first.fill(1.0);
        let tensor = first.into_tensor(&[LEN].into());
        let place = tensor.storage::<f32>().as_ptr();
        drop(tensor);
        let second = Buffer::new(LEN - 10);
        assert_eq!((second.as_ptr(), second.len()), (place, LEN - 10));
        assert!(second.iter().all(|value| *value == 1.0), "what was there last");
        let third = Buffer::new(LEN);
        assert_ne!(third.as_ptr(), place, "somebody uses it");
    }

    #[test]
    fn memory_is_not_lost_to_a_smaller_result() {
        let place = Buffer::new(9 * LEN).as_ptr();
        drop(Buffer::new(8 * LEN));
        let again = Buffer::new(9 * LEN);
        assert_eq!((again.as_ptr(), again.len()), (place, 9 * LEN));
    }
}
