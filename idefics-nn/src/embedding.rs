//! Token embeddings.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Int, Tensor};

use crate::init::normal;
use crate::ops;

/// A table of vectors, one per token.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[vocab_size, hidden_size]`.
    pub weight: Param<Tensor<2>>,
}

impl Embedding {
    /// Creates a table with random values, to be replaced by a checkpoint.
    pub fn new(vocab_size: usize, hidden_size: usize, device: &Device) -> Self {
        Self { weight: normal([vocab_size, hidden_size], 0.0, 0.02, device) }
    }

    /// Looks up each token's vector.
    ///
    /// The caller must make sure that every id is less than `vocab_size`: GPU backends do not check it.
    ///
    /// # Shapes
    /// - `input_ids`: `[batch, seq]`
    /// - returns `[batch, seq, hidden_size]`
    pub fn forward(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        let [batch, seq] = input_ids.dims();
        let weight = self.weight.val();
        let [_, hidden_size] = weight.dims();
        let vectors = weight.select(0, input_ids.reshape([batch * seq]));
        // CPU activations are f32 whatever the dtype of the table.
        let vectors = if ops::computes_on(&vectors.device()) { vectors.cast(DType::F32) } else { vectors };
        vectors.reshape([batch, seq, hidden_size])
    }
}
