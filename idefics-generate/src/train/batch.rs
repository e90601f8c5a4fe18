//! What one micro-batch shows the model and asks it to say.

use burn::tensor::{DType, Tensor};
use idefics_processor::image::ImageTile;
use idefics_text::Unobserved;

use super::LossGradients;
use crate::models::NextTokens;
use crate::{Idefics1, Idefics2, InputError, LabelRecipe, LogitsToKeep, Model, Prompts};

/// Rows that go through the model together.
#[derive(Debug, Clone)]
pub struct TrainingBatch {
    /// The tokens.
    pub prompts: Prompts,
    /// The tiles of all rows in order.
    pub images: Vec<ImageTile>,
    /// `[batch · seq]`: the label of slot `t` is what slot `t − 1` should predict; −100 does not count.
    pub labels: Vec<i64>,
    /// Which labels count beside that.
    pub recipe: LabelRecipe,
}

impl TrainingBatch {
    /// What is to be predicted.
    pub(super) fn targets(&self, model: &Idefics2) -> NextTokens {
        NextTokens::new(&self.labels, self.prompts.seq(), self.recipe.ignored(model.config().image_token_id))
    }
}

impl Idefics2 {
    /// The gradients of a micro-batch's loss, summed over its labels.
    ///
    /// # Errors
    /// As [`Idefics2::forward`].
    ///
    /// # Panics
    /// If the model is not on an autodiff device, or a label that counts is not a token of the vocabulary.
    pub fn training_gradients(&self, batch: &TrainingBatch) -> Result<LossGradients, InputError> {
        let image_hidden_states = self.encode_images(&batch.images)?;
        let mut cache = self.cache(&batch.prompts, 0);
        let inputs_embeds = self.inputs_embeds(&batch.prompts, image_hidden_states)?;
        let hidden_states = self.model.text_model.forward(inputs_embeds, &mut cache); // [batch, seq, d]
        let targets = batch.targets(self);
        let loss = self.summed_loss(hidden_states, &targets);
        Ok(LossGradients::backward(&loss, targets.len(), self))
    }

    /// The summed cross-entropy, `[1]`, of what the decoder's last hidden states, `[batch, seq, d]`, predict: the head
    /// runs for labelled slots only.
    pub(super) fn summed_loss(&self, hidden_states: Tensor<3>, targets: &NextTokens) -> Tensor<1> {
        let [batch, seq, d] = hidden_states.dims();
        let hidden_states = targets.rows_of(hidden_states.reshape([batch * seq, d])); // [n_targets, d]
        targets.cross_entropy(self.lm_head.forward(hidden_states).cast(DType::F32))
    }
}

impl Idefics1 {
    /// The gradients of a micro-batch's loss, summed over its labels. The recipe does not matter: −100 alone does not
    /// count.
    ///
    /// # Errors
    /// As [`Idefics1::forward`].
    ///
    /// # Panics
    /// If the model is not on an autodiff device, or a label that counts is not a token of the vocabulary.
    pub fn training_gradients(&self, batch: &TrainingBatch) -> Result<LossGradients, InputError> {
        let image_hidden_states = self.encode_images(&batch.images)?;
        let mut cache = self.cache(&batch.prompts, 0);
        let hidden_states = self.prefill_observed(&batch.prompts, image_hidden_states, &mut cache, &mut Unobserved)?; // [batch, seq, d]
        let [rows, seq, d] = hidden_states.dims();
        let targets = NextTokens::new(&batch.labels, seq, -100);
        let predictors = targets.rows_of(hidden_states.reshape([rows * seq, d])); // [n_targets, d]
        let logits = self.logits(predictors.unsqueeze_dim(0), LogitsToKeep::All);
        let loss = targets.cross_entropy(logits.squeeze_dim(0));
        Ok(LossGradients::backward(&loss, targets.len(), self))
    }
}
