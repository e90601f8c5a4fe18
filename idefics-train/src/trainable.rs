//! The interface of models that can be trained.

use burn::module::Module;
use burn::tensor::Tensor;
use idefics_generate::Model;
use idefics_text::NoObserver;

use crate::labels::NextTokens;
use crate::{BatchError, LabelRecipe, LossGradients, TrainingBatch};

/// A model with a loss. An implementation only says which labels it ignores.
pub trait Trainable: Model + Module {
    /// Returns the label that is ignored in addition to −100.
    fn ignored_label(&self, recipe: LabelRecipe) -> i64;

    /// Computes the mean cross-entropy of next-token prediction over all labels that count, `[1]`. The result is NaN if
    /// no label counts, as in the reference.
    ///
    /// # Shapes
    /// - `logits`: `[batch, seq, vocab_size]`, f32
    /// - `labels`: `[batch · seq]`; slot `t − 1` is trained to predict the label of slot `t`
    ///
    /// # Errors
    /// [`BatchError::LabelCount`], and [`BatchError::Label`] if a label that counts is not less than `vocab_size`.
    fn loss(&self, logits: Tensor<3>, labels: &[i64], recipe: LabelRecipe) -> Result<Tensor<1>, BatchError> {
        let [batch, seq, vocab_size] = logits.dims();
        if labels.len() != batch * seq {
            return Err(BatchError::LabelCount { slots: batch * seq, labels: labels.len() });
        }
        let previous = |_, slot: usize| slot.checked_sub(1);
        let targets = NextTokens::new(labels, seq, self.ignored_label(recipe), vocab_size, previous)?;
        if targets.is_empty() {
            return Ok(Tensor::full([1], f32::NAN, &logits.device()));
        }
        let predictions = targets.select_predictors(logits.reshape([batch * seq, vocab_size])); // [n_targets, vocab_size]
        Ok(targets.cross_entropy(predictions) / targets.len() as f64)
    }

    /// Computes the loss and gradients of a micro-batch, summed over its labels. If no label counts, nothing is
    /// computed: the loss is 0 and there are no gradients.
    ///
    /// # Errors
    /// [`BatchError`] if tokens, images or labels do not fit the model or each other.
    ///
    /// # Panics
    /// If the model is not on an autodiff device.
    fn training_gradients(&self, batch: &TrainingBatch) -> Result<LossGradients, BatchError> {
        let targets = targets(self, batch)?;
        if targets.is_empty() {
            return Ok(LossGradients::default());
        }
        let image_hidden_states = self.encode_images(&batch.images)?; // [n_images, n_vectors, d_image]
        let mut cache = self.cache(&batch.prompts, 0);
        let inputs_embeds = self.begin(&batch.prompts, image_hidden_states, &mut cache)?; // [batch, seq, d]
        let positions = batch.positions(self.decoder(), &inputs_embeds, &cache);
        // [batch, seq, d]
        let hidden_states = self.decoder().forward_at(inputs_embeds, &positions, &mut cache, &mut NoObserver);
        let loss = summed_loss(self, hidden_states, &targets);
        Ok(LossGradients::backward(&loss, targets.len(), self))
    }
}

/// Returns the tokens that a micro-batch trains the model to predict.
///
/// # Errors
/// [`BatchError`] if labels or parents do not fit the prompts or the model.
pub(crate) fn targets<M: Trainable>(model: &M, batch: &TrainingBatch) -> Result<NextTokens, BatchError> {
    batch.targets(model.ignored_label(batch.recipe), model.shape().vocab_size)
}

/// Computes the summed cross-entropy, `[1]`, from the last hidden states, `[batch, seq, d]`. The head is computed only
/// for slots whose prediction has a label.
pub(crate) fn summed_loss<M: Model>(model: &M, hidden_states: Tensor<3>, targets: &NextTokens) -> Tensor<1> {
    let [batch, seq, d] = hidden_states.dims();
    let predictors = targets.select_predictors(hidden_states.reshape([batch * seq, d])); // [n_targets, d]
    let logits = model.logits(predictors.unsqueeze_dim(0)); // [1, n_targets, vocab_size]
    targets.cross_entropy(logits.squeeze_dim(0))
}
