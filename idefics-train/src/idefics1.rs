//! The loss of the first Idefics. The prompts say which images their tokens see
//! ([`TrainingBatch::seeing_latest_images`]).

use idefics_generate::{Idefics1, InputError, Model};
use idefics_text::Unobserved;

use crate::labels::IGNORED_LABEL;
use crate::{LabelRecipe, LossGradients, Trainable, TrainingBatch};

impl Trainable for Idefics1 {
    /// Whatever the recipe, −100 alone does not count: image tokens stand for nothing here.
    fn ignored_label(&self, _recipe: LabelRecipe) -> i64 {
        IGNORED_LABEL
    }

    fn training_gradients(&self, batch: &TrainingBatch) -> Result<LossGradients, InputError> {
        let image_hidden_states = self.encode_images(&batch.images)?;
        let mut cache = self.cache(&batch.prompts, 0);
        let inputs_embeds = self.begin(&batch.prompts, image_hidden_states, &mut cache)?; // [batch, seq, d]
        let places = batch.places(self.decoder(), &inputs_embeds, &cache);
        let hidden_states = self.decoder().forward_at(inputs_embeds, &places, &mut cache, &mut Unobserved);
        let [rows, seq, d] = hidden_states.dims();
        let targets = batch.targets(self.ignored_label(batch.recipe));
        let predictors = targets.rows_of(hidden_states.reshape([rows * seq, d])); // [n_targets, d]
        let logits = self.logits(predictors.unsqueeze_dim(0));
        let loss = targets.cross_entropy(logits.squeeze_dim(0));
        Ok(LossGradients::backward(&loss, targets.len(), self))
    }
}
