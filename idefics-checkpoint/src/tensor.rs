//! A tensor of an open checkpoint.

use std::sync::Arc;

use memmap2::Mmap;
use safetensors::Dtype;

/// A tensor in a checkpoint. Its values stay in the memory map until they are used.
#[derive(Debug, Clone)]
pub struct TensorEntry {
    /// Element type in the file.
    pub dtype: Dtype,
    /// Shape, with the axes in PyTorch's order.
    pub shape: Vec<usize>,
    /// Name of the file, relative to the model folder.
    pub file: String,
    pub(crate) map: Arc<Mmap>,
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Whether `map` is the file itself rather than a copy in anonymous memory.
    pub(crate) is_mapped_file: bool,
}

impl TensorEntry {
    /// Size in bytes.
    pub fn len_bytes(&self) -> usize {
        self.end - self.start
    }

    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The elements in row-major order, as little-endian bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.end]
    }

    /// Releases the tensor's pages of the memory map, for use once the tensor has been converted: pages that were read
    /// count as memory of the process. Reading the tensor again loads the pages from the file. Does nothing for a copy
    /// in anonymous memory, which would read as zeros afterwards.
    #[allow(unsafe_code)]
    pub fn release(&self) {
        if !self.is_mapped_file {
            return;
        }
        // SAFETY: the map is of a file and never written to, so dropped pages are read back unchanged. An error is
        // ignored, as it only costs memory.
        #[cfg(unix)]
        let _ = unsafe {
            self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, self.start, self.end - self.start)
        };
    }
}
