//! A tensor of an open checkpoint.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use idefics_kernels::formats::GgufType;
use memmap2::Mmap;
use safetensors::Dtype;

use crate::gguf::GgufRows;

/// A tensor in a checkpoint. Its values stay in the memory map until they are used.
#[derive(Debug, Clone)]
pub struct TensorEntry {
    /// Element type in the file. For the block types of GGUF, this is F32, because their values are converted to f32.
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
    /// How to read rows of a GGUF tensor; `None` if the bytes are the elements in row-major order.
    pub(crate) rows: Option<GgufRows>,
}

impl TensorEntry {
    /// Returns the size in bytes.
    pub fn len_bytes(&self) -> usize {
        self.end - self.start
    }

    /// Returns the number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns the tensor's bytes in the map. If the tensor [is plain](Self::is_plain), these are its elements,
    /// little-endian and in row-major order.
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.end]
    }

    /// Returns whether the bytes are the elements in row-major order. This is false for the block types of GGUF, and
    /// for query and key projections in GGUF files, whose rows have another order.
    pub fn is_plain(&self) -> bool {
        self.rows.is_none()
    }

    /// Returns the type of the GGUF blocks that hold the tensor; `None` if it is stored as plain numbers.
    pub fn block_type(&self) -> Option<GgufType> {
        self.rows.map(|rows| rows.kind).filter(|kind| kind.block_len() > 1)
    }

    /// Returns the tensor's bytes with the rows in PyTorch's order. They are copied only if the file has another order,
    /// as for query and key projections in GGUF files.
    pub fn bytes_in_order(&self) -> Cow<'_, [u8]> {
        self.rows.map_or(Cow::Borrowed(self.bytes()), |rows| rows.in_order(self.bytes()))
    }

    /// Returns whether the rows in the file are in PyTorch's order.
    pub fn is_in_order(&self) -> bool {
        self.rows.is_none_or(|rows| rows.head_dim.is_none())
    }

    /// Returns the name of the type in the file: a GGUF type (`Q4_K`) or the element type (`BF16`).
    pub fn type_name(&self) -> String {
        self.rows.map_or_else(|| format!("{:?}", self.dtype), |rows| rows.kind.name().to_owned())
    }

    /// Returns the number of values in a row, or 0 if the tensor [is plain](Self::is_plain).
    pub fn row_len(&self) -> usize {
        self.rows.map_or(0, |rows| rows.row_len)
    }

    /// Reads rows of a tensor that is not plain and converts them to f32, `[rows.len(), row_len]`. Other rows are not
    /// read.
    ///
    /// # Panics
    /// If the tensor is plain, `rows` is out of range, or `out` has the wrong length.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let layout = self.rows.expect("`read_rows` is for tensors that are not plain");
        layout.read(self.bytes(), rows, out);
    }

    /// Returns the elements in row-major order, little-endian. They are borrowed if the tensor is plain, and otherwise
    /// converted into new memory.
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

    /// Releases the tensor's pages of the memory map. Call this once the tensor has been converted, because pages that
    /// were read count as memory of the process. Reading the tensor again loads the pages from the file. Does nothing
    /// for a copy in anonymous memory, because released pages of such a copy would read as zeros.
    #[allow(unsafe_code, reason = "advice about pages of the map takes a raw address range")]
    pub fn release(&self) {
        if !self.is_mapped_file {
            return;
        }
        // SAFETY: dropped pages must read back unchanged. They do, because this is a read-only map of a file, as
        // checked above. An error is ignored, because it only means that the pages stay in memory.
        #[cfg(unix)]
        let _ = unsafe {
            self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, self.start, self.end - self.start)
        };
    }
}
