//! Embedding and head for a vocabulary in two parts: the tokens of the language model, and added tokens with separate
//! weight matrices.
//!
//! Reference: `IdeficsDecoupledEmbedding`, `IdeficsDecoupledLinear`, Transformers 5.23.0. The ids of the added tokens
//! follow those of the vocabulary.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use idefics_nn::{Embedding, FlatModule, Linear};

/// Token embeddings, with a second table for the added tokens.
#[derive(Module, Debug)]
pub struct DecoupledEmbedding {
    /// Embeddings of the vocabulary.
    pub table: FlatModule<Embedding>,
    /// Embeddings of the added tokens, if there are any.
    pub additional_embedding: Option<Embedding>,
}

impl DecoupledEmbedding {
    /// Creates embeddings with random weights, which a checkpoint should replace.
    pub fn new(vocab_size: usize, additional_vocab_size: usize, hidden_size: usize, device: &Device) -> Self {
        let additional = || Embedding::new(additional_vocab_size, hidden_size, device);
        Self {
            table: Embedding::new(vocab_size, hidden_size, device).into(),
            additional_embedding: (additional_vocab_size > 0).then(additional),
        }
    }

    /// Looks up the embeddings of tokens. The caller must ensure that every id is less than the total number of
    /// tokens: GPU backends do not check.
    ///
    /// # Shapes
    /// - `input_ids`: `[batch, seq]`
    /// - returns `[batch, seq, hidden_size]`
    pub fn forward(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        let Some(additional) = &self.additional_embedding else { return self.table.forward(input_ids) };
        let [vocab_size, hidden_size] = self.table.weight().dims();
        let [batch, seq] = input_ids.dims();
        // For a token of the other table, each table looks up its first embedding. The mask below discards the result.
        let is_added = input_ids.clone().greater_equal_elem(vocab_size as i32); // [batch, seq]
        let own = self.table.forward(input_ids.clone().mask_fill(is_added.clone(), 0));
        let added_ids = (input_ids - vocab_size as i32).mask_fill(is_added.clone().bool_not(), 0);
        let is_added = is_added.unsqueeze_dim::<3>(2).expand([batch, seq, hidden_size]);
        own.mask_where(is_added, additional.forward(added_ids))
    }
}

/// A language-model head: logits of the vocabulary, followed by those of the added tokens.
#[derive(Module, Debug)]
pub struct DecoupledLinear {
    /// Weights for the vocabulary.
    pub linear: FlatModule<Linear>,
    /// Weights for the added tokens, if there are any.
    pub additional_fc: Option<Linear>,
}

impl DecoupledLinear {
    /// Creates a head with random weights, which a checkpoint should replace.
    pub fn new(hidden_size: usize, vocab_size: usize, additional_vocab_size: usize, device: &Device) -> Self {
        let additional = || Linear::new_without_bias(hidden_size, additional_vocab_size, device);
        Self {
            linear: Linear::new_without_bias(hidden_size, vocab_size, device).into(),
            additional_fc: (additional_vocab_size > 0).then(additional),
        }
    }

    /// Computes the logits of the vocabulary and of the added tokens.
    ///
    /// # Shapes
    /// Takes `[batch, seq, hidden_size]` and returns `[batch, seq, vocab_size + additional_vocab_size]`.
    pub fn forward(&self, hidden_states: Tensor<3>) -> Tensor<3> {
        match &self.additional_fc {
            None => self.linear.forward(hidden_states),
            Some(additional) => {
                let added = additional.forward(hidden_states.clone());
                Tensor::cat(vec![self.linear.forward(hidden_states), added], 2)
            }
        }
    }
}
