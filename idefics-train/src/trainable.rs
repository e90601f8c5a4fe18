//! What training asks of a model.

use burn::tensor::Tensor;
use idefics_generate::InputError;

use crate::labels::NextTokens;
use crate::{LabelRecipe, LossGradients, TrainingBatch};

/// A model that has a loss.
pub trait Trainable {
    /// The label that does not count beside −100.
    fn ignored_label(&self, recipe: LabelRecipe) -> i64;

    /// Mean cross-entropy of each next label over the whole vocabulary, `[1]`.
    ///
    /// # Shapes
    /// - `logits`: `[batch, seq, vocab_size]`, f32
    /// - `labels`: `[batch · seq]`; the label of slot `t` is what slot `t − 1` should predict
    ///
    /// NaN if no label counts, as in the reference.
    ///
    /// # Panics
    /// If `labels` has another length, or a label that counts is not below `vocab_size`.
    fn loss(&self, logits: Tensor<3>, labels: &[i64], recipe: LabelRecipe) -> Tensor<1> {
        let [batch, seq, vocab_size] = logits.dims();
        assert_eq!(labels.len(), batch * seq, "one label a token");
        let targets = NextTokens::new(labels, seq, self.ignored_label(recipe));
        if targets.is_empty() {
            return Tensor::full([1], f32::NAN, &logits.device());
        }
        let predictions = targets.rows_of(logits.reshape([batch * seq, vocab_size])); // [n_targets, vocab_size]
        targets.cross_entropy(predictions) / targets.len() as f64
    }

    /// The gradients of a micro-batch's loss, summed over its labels.
    ///
    /// # Errors
    /// As [`Model::forward`](idefics_generate::Model::forward).
    ///
    /// # Panics
    /// If the model is not on an autodiff device, or a label that counts is not a token of the vocabulary.
    fn training_gradients(&self, batch: &TrainingBatch) -> Result<LossGradients, InputError>;
}
