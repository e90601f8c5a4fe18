//! A vocabulary in two parts: the language model's own, and tokens added to it, in matrices of their own.
//!
//! Reference: `IdeficsDecoupledEmbedding`, `IdeficsDecoupledLinear`, Transformers 5.23.0. Ids of the added tokens
//! follow those of the vocabulary.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use idefics_nn::{Embedding, Linear, flat_module};

/// A table of vectors, one a token, with a second table for the added tokens.
#[derive(Debug, Clone)]
pub struct DecoupledEmbedding {
    /// The vocabulary's.
    pub table: Embedding,
    /// The added tokens'.
    pub additional: AdditionalEmbedding,
}
flat_module!(DecoupledEmbedding { table, additional });

/// What a table has beside its own weight.
#[derive(Module, Debug)]
pub struct AdditionalEmbedding {
    /// The added tokens' vectors, if there are such tokens.
    pub additional_embedding: Option<Embedding>,
}

impl DecoupledEmbedding {
    /// Tables that are random until a checkpoint is loaded.
    pub fn new(vocab_size: usize, additional_vocab_size: usize, hidden_size: usize, device: &Device) -> Self {
        let additional =
            (additional_vocab_size > 0).then(|| Embedding::new(additional_vocab_size, hidden_size, device));
        Self {
            table: Embedding::new(vocab_size, hidden_size, device),
            additional: AdditionalEmbedding { additional_embedding: additional },
        }
    }

    /// Looks up each token's vector. The caller makes sure that every id is below the size of both tables together: GPU
    /// backends do not check.
    ///
    /// # Shapes
    /// - `input_ids`: `[batch, seq]`
    /// - returns `[batch, seq, hidden_size]`
    pub fn forward(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        let Some(additional) = &self.additional.additional_embedding else { return self.table.forward(input_ids) };
        let [vocab_size, hidden_size] = self.table.weight.lazy_shape().dims();
        let [batch, seq] = input_ids.dims();
        // Each table gives its first vector for the other's tokens, which is then not taken.
        let is_added = input_ids.clone().greater_equal_elem(vocab_size as i32); // [batch, seq]
        let own = self.table.forward(input_ids.clone().mask_fill(is_added.clone(), 0));
        let added_ids = (input_ids - vocab_size as i32).mask_fill(is_added.clone().bool_not(), 0);
        let is_added = is_added.unsqueeze_dim::<3>(2).expand([batch, seq, hidden_size]);
        own.mask_where(is_added, additional.forward(added_ids))
    }
}

/// Hidden states to logits of a vocabulary and, behind them, of the added tokens.
#[derive(Debug, Clone)]
pub struct DecoupledLinear {
    /// The vocabulary's.
    pub linear: Linear,
    /// The added tokens'.
    pub additional: AdditionalLinear,
}
flat_module!(DecoupledLinear { linear, additional });

/// What a head has beside its own weight.
#[derive(Module, Debug)]
pub struct AdditionalLinear {
    /// To the added tokens' logits, if there are such tokens.
    pub additional_fc: Option<Linear>,
}

impl DecoupledLinear {
    /// A head that is random until a checkpoint is loaded.
    pub fn new(hidden_size: usize, vocab_size: usize, additional_vocab_size: usize, device: &Device) -> Self {
        let additional =
            (additional_vocab_size > 0).then(|| Linear::new_without_bias(hidden_size, additional_vocab_size, device));
        Self {
            linear: Linear::new_without_bias(hidden_size, vocab_size, device),
            additional: AdditionalLinear { additional_fc: additional },
        }
    }

    /// `[batch, seq, hidden_size]` in, `[batch, seq, vocab_size + additional_vocab_size]` out.
    pub fn forward(&self, hidden_states: Tensor<3>) -> Tensor<3> {
        match &self.additional.additional_fc {
            None => self.linear.forward(hidden_states),
            Some(additional) => {
                let added = additional.forward(hidden_states.clone());
                Tensor::cat(vec![self.linear.forward(hidden_states), added], 2)
            }
        }
    }
}
