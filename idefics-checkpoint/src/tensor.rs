//! Where a tensor lies.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;

use crate::gguf::GgufRows;

/// One tensor of a checkpoint, not yet read.
#[derive(Debug, Clone)]
pub struct TensorEntry {
    /// Element type in the file; F32 for blocks of GGUF, which are read as such.
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
    /// How the bytes become rows, where they are not the elements in their order.
    pub(crate) rows: Option<GgufRows>,
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

    /// The bytes in the map: the little-endian elements, if the tensor [is plain](Self::is_plain).
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.end]
    }

    /// Whether the bytes are the elements in row-major order. Blocks of GGUF are not, nor are its rotary rows, which
    /// lie in another order.
    pub fn is_plain(&self) -> bool {
        self.rows.is_none()
    }

    /// The type in the file by name: of GGUF's (`Q4_K`), or of the elements (`BF16`).
    pub fn type_name(&self) -> String {
        self.rows.map_or_else(|| format!("{:?}", self.dtype), |rows| rows.kind.name().to_owned())
    }

    /// Values of a row of a tensor that is not plain; 0 for one that is.
    pub fn row_len(&self) -> usize {
        self.rows.map_or(0, |rows| rows.row_len)
    }

    /// Rows of a tensor that is not plain as f32, `[rows.len(), row_len]`. Nothing else of it is read.
    ///
    /// # Panics
    /// If the tensor is plain, `rows` is out of range, or `out` has another size.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let layout = self.rows.expect("a tensor that is not plain");
        layout.read(self.bytes(), rows, out);
    }

    /// The little-endian elements in row-major order: of a plain tensor where they lie, of others in memory of their own.
    pub fn elements(&self) -> Cow<'_, [u8]> {
        let Some(rows) = self.rows else { return Cow::Borrowed(self.bytes()) };
        let mut values = vec![0.0; self.num_elements()];
        self.read_rows(0..values.len() / rows.row_len, &mut values);
        Cow::Owned(match self.dtype {
            Dtype::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        })
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
