//! Zeroed f32 buffers, aligned to cache lines and, when large, backed by huge pages.
//!
//! A kernel that reads sixteen rows side by side touches sixteen 4 kB pages, and the first-level TLB has only a few
//! dozen entries. With huge pages, the same memory needs fewer entries.

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

/// Buffers of at least this many bytes are mapped from the operating system and may get huge pages.
const MAPPED_BYTES: usize = 1 << 20;

/// A cache line. Aligned to 64 bytes, so that no vector load crosses a line.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line {
    values: [f32; LINE],
}

/// Number of f32 values in a cache line.
const LINE: usize = 16;

/// A buffer of f32 values, zeroed at first and aligned to a cache line (64 bytes).
#[derive(Debug)]
pub struct AlignedBuffer(Storage);

#[derive(Debug)]
enum Storage {
    /// Allocated on the heap.
    Lines(Vec<Line>),
    /// Mapped from the operating system.
    Mapped(MmapMut),
}

impl AlignedBuffer {
    /// An empty buffer.
    pub const NONE: Self = Self(Storage::Lines(Vec::new()));

    /// Creates a buffer for at least `len` values, all zero.
    pub fn new(len: usize) -> Self {
        let n_bytes = len * size_of::<f32>();
        if n_bytes >= MAPPED_BYTES
            && let Ok(mapped) = MmapMut::map_anon(n_bytes)
        {
            #[cfg(target_os = "linux")]
            let _ = mapped.advise(memmap2::Advice::HugePage); // only a hint; a failure does no harm
            return Self(Storage::Mapped(mapped));
        }
        Self(Storage::Lines(vec![Line::zeroed(); len.div_ceil(LINE)]))
    }

    /// Capacity in values: the requested length, rounded up to whole cache lines if the buffer is on the heap.
    pub fn len(&self) -> usize {
        match &self.0 {
            Storage::Lines(lines) => lines.len() * LINE,
            Storage::Mapped(mapped) => mapped.len() / size_of::<f32>(),
        }
    }

    /// Whether the capacity is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns all values of the buffer. Their number is [`AlignedBuffer::len`].
    pub fn values(&self) -> &[f32] {
        match &self.0 {
            Storage::Lines(lines) => bytemuck::cast_slice(lines),
            Storage::Mapped(mapped) => bytemuck::cast_slice(&mapped[..]),
        }
    }

    /// Returns all values of the buffer as a mutable slice.
    pub fn values_mut(&mut self) -> &mut [f32] {
        match &mut self.0 {
            Storage::Lines(lines) => bytemuck::cast_slice_mut(lines),
            Storage::Mapped(mapped) => bytemuck::cast_slice_mut(&mut mapped[..]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_and_cache_line_aligned() {
        for len in [0, 1, 17, MAPPED_BYTES / 4 - 1, MAPPED_BYTES / 4, MAPPED_BYTES] {
            let mut memory = AlignedBuffer::new(len);
            assert!(memory.len() >= len && memory.values().len() == memory.len());
            assert!(memory.values().iter().all(|value| *value == 0.0));
            assert!(memory.values().as_ptr().cast::<Line>().is_aligned());
            memory.values_mut().fill(1.0);
            assert!(memory.values().iter().all(|value| *value == 1.0));
        }
    }
}
