//! The loss of Idefics2.

use burn::tensor::{DType, Tensor};
use idefics_generate::{Idefics2, InputError, Model};
use idefics_text::Unobserved;

use crate::labels::NextTokens;
use crate::{LabelRecipe, LossGradients, Trainable, TrainingBatch};

impl Trainable for Idefics2 {
    fn ignored_label(&self, recipe: LabelRecipe) -> i64 {
        recipe.ignored(self.config().image_token_id)
    }

    fn training_gradients(&self, batch: &TrainingBatch) -> Result<LossGradients, InputError> {
        let image_hidden_states = self.encode_images(&batch.images)?;
        let mut cache = self.cache(&batch.prompts, 0);
        let inputs_embeds = self.inputs_embeds(&batch.prompts, image_hidden_states)?;
        let places = batch.places(self.decoder(), &inputs_embeds, &cache);
        // [batch, seq, d]
        let hidden_states = self.decoder().forward_at(inputs_embeds, &places, &mut cache, &mut Unobserved);
        let targets = batch.targets(self.ignored_label(batch.recipe));
        let loss = summed_loss(self, hidden_states, &targets);
        Ok(LossGradients::backward(&loss, targets.len(), self))
    }
}

/// The summed cross-entropy, `[1]`, of what the decoder's last hidden states, `[batch, seq, d]`, predict: the head
/// runs for labelled slots only.
pub(crate) fn summed_loss(model: &Idefics2, hidden_states: Tensor<3>, targets: &NextTokens) -> Tensor<1> {
    let [batch, seq, d] = hidden_states.dims();
    let hidden_states = targets.rows_of(hidden_states.reshape([batch * seq, d])); // [n_targets, d]
    targets.cross_entropy(model.lm_head.forward(hidden_states).cast(DType::F32))
}
