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
    /// Element type in the file; F32 for the block types of GGUF, which are converted to it.
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
    /// How to read rows; `None` if the bytes are the elements in row-major order.
    pub(crate) rows: Option<GgufRows>,
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

    /// The bytes in the map. If the tensor [is plain](Self::is_plain), these are its elements, little-endian and in
    /// row-major order.
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.end]
    }

    /// Whether the bytes are the elements in row-major order. False for the block types of GGUF, and for its rotary
    /// rows, whose order differs.
    pub fn is_plain(&self) -> bool {
        self.rows.is_none()
    }

    /// The type of the GGUF blocks that the tensor is stored in; `None` for numbers.
    pub fn block_type(&self) -> Option<GgufType> {
        self.rows.map(|rows| rows.kind).filter(|kind| kind.block_len() > 1)
    }

    /// The bytes in the map with the rows in PyTorch's order. They are copied if the file has them in another order:
    /// those of GGUF's rotary projections.
    pub fn bytes_in_order(&self) -> Cow<'_, [u8]> {
        self.rows.map_or(Cow::Borrowed(self.bytes()), |rows| rows.in_order(self.bytes()))
    }

    /// Whether the rows have PyTorch's order in the file.
    pub fn is_in_order(&self) -> bool {
        self.rows.is_none_or(|rows| rows.head_dim.is_none())
    }

    /// Name of the type in the file: a GGUF type (`Q4_K`) or the element type (`BF16`).
    pub fn type_name(&self) -> String {
        self.rows.map_or_else(|| format!("{:?}", self.dtype), |rows| rows.kind.name().to_owned())
    }

    /// Number of values in a row of a tensor that is not plain; 0 for a plain one.
    pub fn row_len(&self) -> usize {
        self.rows.map_or(0, |rows| rows.row_len)
    }

    /// Reads rows of a tensor that is not plain as f32, `[rows.len(), row_len]`. Only these rows are read.
    ///
    /// # Panics
    /// If the tensor is plain, `rows` is out of range, or `out` has the wrong length.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let layout = self.rows.expect("a tensor that is not plain");
        layout.read(self.bytes(), rows, out);
    }

    /// The elements in row-major order, little-endian: borrowed for a plain tensor, otherwise converted into new
    /// memory.
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

    /// Releases the tensor's pages of the memory map, for use once the tensor has been converted: pages that were read
    /// count as memory of the process. Reading the tensor again loads the pages from the file. Does nothing for a copy
    /// in anonymous memory, which would read as zeros afterwards.
    #[allow(unsafe_code, reason = "advice about pages of the map takes a raw address range")]
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
