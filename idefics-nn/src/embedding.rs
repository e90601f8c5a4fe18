//! Token embeddings.

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor};

use crate::init::normal;
use crate::{Weight, ops};

/// A table of vectors, one per token.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[vocab_size, hidden_size]`; packed only if a GGUF file has it in blocks.
    weight: Weight,
}

impl Embedding {
    /// Creates a table with random values, to be replaced by a checkpoint.
    pub fn new(vocab_size: usize, hidden_size: usize, device: &Device) -> Self {
        Self { weight: Weight::Dense(normal([vocab_size, hidden_size], 0.0, 0.02, device)) }
    }

    /// Looks up each token's vector. Only these vectors of a packed table are dequantised.
    ///
    /// The caller must make sure that every id is less than `vocab_size`: GPU backends do not check it.
    ///
    /// # Shapes
    /// - `input_ids`: `[batch, seq]`
    /// - returns `[batch, seq, hidden_size]`
    pub fn forward(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        let [batch, seq] = input_ids.dims();
        let [_, hidden_size] = self.weight.dims();
        let ids = input_ids.reshape([batch * seq]);
        let vectors = match &self.weight {
            Weight::Dense(table) => table.val().select(0, ids),
            Weight::Packed(table) => table.rows(ids),
        };
        // CPU activations are f32 whatever the dtype of the table.
        let vectors = if ops::is_cpu(&vectors.device()) { vectors.cast(DType::F32) } else { vectors };
        vectors.reshape([batch, seq, hidden_size])
    }

    /// The table, `[vocab_size, hidden_size]`; a packed one is dequantised as a whole.
    pub fn table(&self) -> Tensor<2> {
        match &self.weight {
            Weight::Dense(table) => table.val(),
            Weight::Packed(table) => table.dequantize(),
        }
    }

    /// The table in the format in which it is held.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// The device of the table.
    pub fn device(&self) -> Device {
        self.weight.device()
    }
}
