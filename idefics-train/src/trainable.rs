//! The interface of models that can be trained.

use burn::tensor::Tensor;
use idefics_generate::InputError;

use crate::labels::NextTokens;
use crate::{LabelRecipe, LossGradients, TrainingBatch};

/// A model with a loss.
pub trait Trainable {
    /// The label that is ignored in addition to −100.
    fn ignored_label(&self, recipe: LabelRecipe) -> i64;

    /// Mean cross-entropy of next-token prediction over all labels that count, `[1]`. NaN if no label counts, as in the
    /// reference.
    ///
    /// # Shapes
    /// - `logits`: `[batch, seq, vocab_size]`, f32
    /// - `labels`: `[batch · seq]`; slot `t − 1` is trained to predict the label of slot `t`
    ///
    /// # Panics
    /// If `labels` has another length, or a label that counts is not less than `vocab_size`.
    fn loss(&self, logits: Tensor<3>, labels: &[i64], recipe: LabelRecipe) -> Tensor<1> {
        let [batch, seq, vocab_size] = logits.dims();
        assert_eq!(labels.len(), batch * seq, "every token needs one label");
        let targets = NextTokens::new(labels, seq, self.ignored_label(recipe));
        if targets.is_empty() {
            return Tensor::full([1], f32::NAN, &logits.device());
        }
        let predictions = targets.select_predictors(logits.reshape([batch * seq, vocab_size])); // [n_targets, vocab_size]
        targets.cross_entropy(predictions) / targets.len() as f64
    }

    /// Loss and gradients of a micro-batch, summed over its labels.
    ///
    /// # Errors
    /// As [`Model::forward`](idefics_generate::Model::forward).
    ///
    /// # Panics
    /// If the model is not on an autodiff device, or a label that counts is not less than the vocabulary size.
    fn training_gradients(&self, batch: &TrainingBatch) -> Result<LossGradients, InputError>;
}
