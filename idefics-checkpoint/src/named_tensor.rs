//! A tensor to be written to a file.

use std::borrow::Cow;

use safetensors::{Dtype, View};

/// A tensor to be written to a file.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor<'a> {
    /// Name of the tensor in the file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, with the axes in PyTorch's order.
    pub shape: Vec<usize>,
    /// Elements in row-major order, as little-endian bytes.
    pub bytes: Cow<'a, [u8]>,
}

impl NamedTensor<'_> {
    pub(crate) fn new(name: String, dtype: Dtype, shape: impl Into<Vec<usize>>, bytes: Vec<u8>) -> Self {
        Self { name, dtype, shape: shape.into(), bytes: bytes.into() }
    }

    pub(crate) fn floats(name: String, values: &[f32]) -> Self {
        Self::new(name, Dtype::F32, [values.len()], values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

impl View for &NamedTensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
