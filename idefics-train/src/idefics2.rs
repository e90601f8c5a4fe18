//! Training of Idefics2.

use std::cell::OnceCell;
use std::rc::Rc;

use burn::tensor::{DType, Tensor};
use idefics_generate::{Idefics2, InputError, Model, VisionBatch};
use idefics_text::Unobserved;
use idefics_vision::patch_mask;

use crate::labels::NextTokens;
use crate::segments::{is_trained, select};
use crate::{Chain, LabelRecipe, LossGradients, Segments, Trainable, TrainingBatch};

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

/// The segments are vision layers, connector, embeddings, decoder layers and the head.
impl Segments for Idefics2 {
    fn segments<'a>(&'a self, batch: &'a TrainingBatch) -> Result<Chain<'a, Self>, InputError> {
        let mut chain = Chain::default();
        let images = image_segments(self, batch, &mut chain)?;

        let trains_embeddings = is_trained(&self.model.text_model.embed_tokens);
        let inputs: Vec<usize> = images.into_iter().collect();
        let mut last = chain.push(&inputs, trains_embeddings, move |model: &Self, images| {
            model.inputs_embeds(&batch.prompts, images.first().cloned()) // [batch, seq, d]
        });

        let places = Rc::new(OnceCell::new());
        for (layer_idx, layer) in self.model.text_model.layers.iter().enumerate() {
            let places = Rc::clone(&places);
            last = chain.push(&[last], is_trained(layer), move |model: &Self, inputs| {
                let hidden_states = inputs[0].clone(); // [batch, seq, d]
                let mut cache = model.cache(&batch.prompts, 0);
                let compute_places = |states: Tensor<3>| batch.places(model.decoder(), &states, &cache);
                let places = places.get_or_init(|| compute_places(hidden_states.clone().inner()));
                let layer = &model.model.text_model.layers[layer_idx];
                Ok(layer.forward(hidden_states, layer_idx, places, &mut cache, &mut Unobserved))
            });
        }

        let targets = batch.targets(self.ignored_label(batch.recipe));
        let trains_head = is_trained(&self.model.text_model.norm) || is_trained(&self.lm_head);
        chain.push(&[last], trains_head, move |model: &Self, inputs| {
            let hidden_states = model.model.text_model.norm.forward(inputs[0].clone());
            Ok(summed_loss(model, hidden_states, &targets).reshape([1, 1, 1]))
        });
        Ok(chain)
    }
}

/// Adds the segments that compute the image features, `[n_images, n_latents, d]`, from the pixels. Returns the index of
/// the last one; `None` if there are no images.
fn image_segments<'a>(
    model: &'a Idefics2,
    batch: &'a TrainingBatch,
    chain: &mut Chain<'a, Idefics2>,
) -> Result<Option<usize>, InputError> {
    let image_batches = model.shape().image_batches(&batch.images, VisionBatch::default())?;
    let mut places = vec![0; batch.images.len()];
    let encoded = image_batches.iter().flat_map(|images| images.image_indices.iter().copied());
    encoded.enumerate().for_each(|(row, image_idx)| places[image_idx] = row);

    let tower = &model.model.vision_model;
    let trains_connector = is_trained(&tower.post_layernorm) || is_trained(&model.model.connector);
    let mut connected = Vec::new();
    for images in image_batches {
        let layout = model.layout(&images);
        let masked_out = patch_mask(&layout, &Model::device(model).without_autodiff());
        let mut last = chain.push(&[], is_trained(&tower.embeddings), move |model: &Idefics2, _| {
            let pixel_values = images.upload(&Model::device(model)); // [n_images, 3, height, width]
            Ok(model.model.vision_model.embeddings.forward(pixel_values, &layout))
        });
        for (layer_idx, layer) in tower.encoder.layers.iter().enumerate() {
            let masked_out = masked_out.clone();
            last = chain.push(&[last], is_trained(layer), move |model: &Idefics2, inputs| {
                let layer = &model.model.vision_model.encoder.layers[layer_idx];
                Ok(layer.forward(inputs[0].clone(), masked_out.clone())) // [n_images, patches, d_vision]
            });
        }
        connected.push(chain.push(&[last], trains_connector, |model: &Idefics2, inputs| {
            let features = model.model.vision_model.post_layernorm.forward(inputs[0].clone());
            Ok(model.model.connector.forward(features, None)) // [n_images, n_latents, d]
        }));
    }
    if connected.is_empty() {
        return Ok(None);
    }
    // Restores the order of the images.
    let in_order = move |_: &Idefics2, inputs: &[Tensor<3>]| Ok(select(Tensor::cat(inputs.to_vec(), 0), &places));
    Ok(Some(chain.push(&connected, false, in_order)))
}

/// The summed cross-entropy, `[1]`, of the predictions from the last hidden states, `[batch, seq, d]`. The head is
/// computed only for slots whose prediction has a label.
fn summed_loss(model: &Idefics2, hidden_states: Tensor<3>, targets: &NextTokens) -> Tensor<1> {
    let [batch, seq, d] = hidden_states.dims();
    let hidden_states = targets.select_predictors(hidden_states.reshape([batch * seq, d])); // [n_targets, d]
    targets.cross_entropy(model.lm_head.forward(hidden_states).cast(DType::F32))
}
