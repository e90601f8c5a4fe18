//! Where a tensor lies.

use std::sync::Arc;

use memmap2::Mmap;
use safetensors::Dtype;

/// One tensor of a checkpoint, not yet read.
#[derive(Debug, Clone)]
pub struct TensorEntry {
    /// Element type in the file.
    pub dtype: Dtype,
    /// Shape as PyTorch has it.
    pub shape: Vec<usize>,
    /// The file's name within the folder.
    pub file: String,
    pub(crate) map: Arc<Mmap>,
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Whether the map is of the file, and not a copy in memory.
    pub(crate) is_of_file: bool,
}

impl TensorEntry {
    /// Size in the file, in bytes.
    pub fn len_bytes(&self) -> usize {
        self.end - self.start
    }

    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The little-endian bytes in the map.
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.end]
    }

    /// Gives the tensor's pages back after it was converted: the system counts what was read of a map as memory of the
    /// process until then. What is read once more comes from the file; a copy, which would come back as zeros, stays.
    #[allow(unsafe_code)]
    pub fn release(&self) {
        if !self.is_of_file {
            return;
        }
        // SAFETY: nothing writes to the map, so that pages which are dropped come back from the file as they were.
        // That the system does not listen costs memory only.
        #[cfg(unix)]
        let _ = unsafe {
            self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, self.start, self.end - self.start)
        };
    }
}
