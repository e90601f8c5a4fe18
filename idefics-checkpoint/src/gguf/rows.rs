//! Reads the rows of GGUF tensors in the order of the checkpoint.

use std::borrow::Cow;
use std::ops::Range;

use idefics_kernels::formats::GgufType;
use safetensors::Dtype;

/// How the rows of a tensor are stored, if they are not plain numbers in the checkpoint's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GgufRows {
    pub(crate) kind: GgufType,
    /// Number of values in a row. A row is a whole number of blocks.
    pub(crate) row_len: usize,
    /// Number of rows of a head, if the file has the two rows of each rotary pair next to each other; otherwise `None`.
    pub(crate) head_dim: Option<usize>,
}

impl GgufRows {
    /// Returns the element type of the values after reading.
    pub(crate) fn dtype(kind: GgufType) -> Dtype {
        match kind {
            GgufType::F16 => Dtype::F16,
            GgufType::BF16 => Dtype::BF16,
            _ => Dtype::F32,
        }
    }

    /// Reads rows from the tensor's `bytes` as f32, `[rows.len(), row_len]`. `rows` are indices in the order of the
    /// checkpoint.
    ///
    /// # Panics
    /// If `rows` is out of range, or `out` has the wrong length.
    pub(crate) fn read(&self, bytes: &[u8], rows: Range<usize>, out: &mut [f32]) {
        let row_bytes = self.kind.row_bytes(self.row_len).expect("a row consists of whole blocks");
        assert_eq!(out.len(), rows.len() * self.row_len, "`out` must have one element per value");
        for (row, out) in rows.zip(out.chunks_exact_mut(self.row_len)) {
            let start = self.stored_row(row) * row_bytes;
            self.kind.dequantize(&bytes[start..start + row_bytes], out);
        }
    }

    /// Returns the tensor's `bytes` with the rows in the order of the checkpoint. Copies them only if the order
    /// differs.
    pub(crate) fn in_order<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        if self.head_dim.is_none() {
            return Cow::Borrowed(bytes);
        }
        let row_bytes = self.kind.row_bytes(self.row_len).expect("a row consists of whole blocks");
        let rows = 0..bytes.len() / row_bytes;
        Cow::Owned(rows.flat_map(|row| &bytes[self.stored_row(row) * row_bytes..][..row_bytes]).copied().collect())
    }

    /// Returns at which index the file stores the checkpoint's row `row`. In files of llama.cpp, the two rows of a
    /// rotary pair are adjacent. In the checkpoint, the first row of a pair is in the first half of the head, and the
    /// second row is in the other half.
    ///
    /// Source: `LlamaModel.permute` of `convert_hf_to_gguf.py`.
    fn stored_row(&self, row: usize) -> usize {
        let Some(head_dim) = self.head_dim else { return row };
        let (head, in_head) = (row / head_dim, row % head_dim);
        let (half, pair) = (in_head / (head_dim / 2), in_head % (head_dim / 2));
        head * head_dim + 2 * pair + half
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_each_head_are_read_in_the_order_of_the_checkpoint() {
        let rows = GgufRows { kind: GgufType::F32, row_len: 1, head_dim: Some(6) };
        let stored: Vec<usize> = (0..12).map(|row| rows.stored_row(row)).collect();
        assert_eq!(stored, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        let bytes: Vec<u8> = (0..12).flat_map(|row| (row as f32).to_le_bytes()).collect();
        let expected = [0.0, 2.0, 4.0, 1.0, 3.0, 5.0, 6.0, 8.0, 10.0, 7.0, 9.0, 11.0].map(f32::to_le_bytes);
        assert_eq!(*rows.in_order(&bytes), *expected.as_flattened());
        let mut out = [0.0; 3];
        rows.read(&bytes, 2..5, &mut out);
        assert_eq!(out, [4.0, 1.0, 3.0]);
    }
}
