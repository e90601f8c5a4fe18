//! Memory for values, on cache lines, and where there is much of it on large pages.
//!
//! A tile of sixteen rows touches as many pages of 4 kB; the processor knows where a few dozen of them are.

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

/// Bytes from which on memory comes from the system, in pages that may be large.
const MAPPED_BYTES: usize = 1 << 20;

/// A cache line: loads of whole vectors never touch two.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line {
    values: [f32; LINE],
}

/// Values of a line.
const LINE: usize = 16;

/// Room for f32 values, zero at first. It begins with a cache line.
#[derive(Debug)]
pub struct Memory(Storage);

#[derive(Debug)]
enum Storage {
    /// On the heap.
    Lines(Vec<Line>),
    /// From the system.
    Mapped(MmapMut),
}

impl Memory {
    /// Room for nothing.
    pub const NONE: Self = Self(Storage::Lines(Vec::new()));

    /// Room for `len` values.
    pub fn new(len: usize) -> Self {
        let n_bytes = len * size_of::<f32>();
        if n_bytes >= MAPPED_BYTES
            && let Ok(mapped) = MmapMut::map_anon(n_bytes)
        {
            #[cfg(target_os = "linux")]
            let _ = mapped.advise(memmap2::Advice::HugePage); // the same without
            return Self(Storage::Mapped(mapped));
        }
        Self(Storage::Lines(vec![Line::zeroed(); len.div_ceil(LINE)]))
    }

    /// Values that there is room for.
    pub fn len(&self) -> usize {
        match &self.0 {
            Storage::Lines(lines) => lines.len() * LINE,
            Storage::Mapped(mapped) => mapped.len() / size_of::<f32>(),
        }
    }

    /// Whether there is room for nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values.
    pub fn values(&self) -> &[f32] {
        match &self.0 {
            Storage::Lines(lines) => bytemuck::cast_slice(lines),
            Storage::Mapped(mapped) => bytemuck::cast_slice(&mapped[..]),
        }
    }

    /// The values, to write.
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
    fn there_is_room_on_whole_lines() {
        for len in [0, 1, 17, MAPPED_BYTES / 4 - 1, MAPPED_BYTES / 4, MAPPED_BYTES] {
            let mut memory = Memory::new(len);
            assert!(memory.len() >= len && memory.values().len() == memory.len());
            assert!(memory.values().iter().all(|value| *value == 0.0));
            assert!(memory.values().as_ptr().cast::<Line>().is_aligned());
            memory.values_mut().fill(1.0);
            assert!(memory.values().iter().all(|value| *value == 1.0));
        }
    }
}
