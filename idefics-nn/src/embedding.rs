//! Token embeddings.

use burn::module::Module;
use burn::tensor::{DType, Device, Int, Tensor};

use crate::init::normal;
use crate::{Weight, ops};

/// A table of vectors, one per token.
#[derive(Module, Debug)]
pub struct Embedding {
    /// The table, `[vocab_size, hidden_size]`. It is packed only if it was loaded from the blocks of a GGUF file.
    weight: Weight,
}

impl Embedding {
    /// Creates a table with random values, which loading a checkpoint replaces.
    pub fn new(vocab_size: usize, hidden_size: usize, device: &Device) -> Self {
        Self { weight: Weight::Dense(normal([vocab_size, hidden_size], 0.0, 0.02, device)) }
    }

    /// Looks up each token's vector. If the table is packed, only these vectors are dequantised.
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
        // Activations are f32 on the CPU, whatever the dtype of the table.
        let vectors = if ops::is_cpu(&vectors.device()) { vectors.cast(DType::F32) } else { vectors };
        vectors.reshape([batch, seq, hidden_size])
    }

    /// Returns the table, `[vocab_size, hidden_size]`. A packed table is dequantised as a whole.
    pub fn table(&self) -> Tensor<2> {
        match &self.weight {
            Weight::Dense(table) => table.val(),
            Weight::Packed(table) => table.dequantize(),
        }
    }

    /// Returns the table in its own format, dense or packed.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Returns the device of the table.
    pub fn device(&self) -> Device {
        self.weight.device()
    }
}
