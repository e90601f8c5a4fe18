//! Training of Idefics2 and Idefics3, whose image features replace image tokens.

use std::cell::OnceCell;
use std::rc::Rc;

use burn::module::Module;
use burn::tensor::{DType, Tensor};
use idefics_generate::{Idefics2, Idefics3, ImageBatch, ImageVectors, InputError, Model, VisionBatch};
use idefics_nn::Linear;
use idefics_text::{Decoder, NoObserver};
use idefics_vision::{PatchGrid, PatchLayout, VisionTransformer, patch_mask};

use crate::labels::NextTokens;
use crate::segments::{is_trained, select};
use crate::{Chain, LabelRecipe, LossGradients, Segments, Trainable, TrainingBatch};

/// A model whose image features replace image tokens: a vision tower, a connector, a decoder and a head.
pub(crate) trait ImageTokenModel: Model + Module {
    /// The id of image tokens.
    fn image_token_id(&self) -> u32;
    /// Pixels to patch features.
    fn vision_model(&self) -> &VisionTransformer;
    /// Tokens to hidden states.
    fn text_model(&self) -> &Decoder;
    /// Hidden states to logits.
    fn lm_head(&self) -> &Linear;
    /// Whether the connector is trained.
    fn trains_connector(&self) -> bool;
    /// Applies the connector: patch features of images that share a grid, `[n_images, patches, d_vision]`, to image
    /// features, `[n_images, n_vectors, d]`.
    fn connect(&self, features: Tensor<3>, grid: PatchGrid) -> Tensor<3>;
    /// The patches of a batch, with their positions.
    fn patch_layout(&self, images: &ImageBatch<'_>) -> PatchLayout;
}

/// The input of the decoder, `[batch, seq, d]`: token embeddings, with image features at image tokens.
fn inputs_embeds<M: ImageTokenModel>(
    model: &M,
    batch: &TrainingBatch,
    image_hidden_states: Option<Tensor<3>>,
) -> Result<Tensor<3>, InputError> {
    let image_hidden_states = image_hidden_states.map(ImageVectors::from);
    model.begin(&batch.prompts, image_hidden_states, &mut model.cache(&batch.prompts, 0))
}

/// The gradients of a micro-batch's loss, summed over its labels.
fn training_gradients<M: ImageTokenModel + Trainable>(
    model: &M,
    batch: &TrainingBatch,
) -> Result<LossGradients, InputError> {
    let image_hidden_states = model.encode_images(&batch.images)?;
    let mut cache = model.cache(&batch.prompts, 0);
    let inputs_embeds = model.begin(&batch.prompts, image_hidden_states, &mut cache)?;
    let positions = batch.positions(model.decoder(), &inputs_embeds, &cache);
    // [batch, seq, d]
    let hidden_states = model.decoder().forward_at(inputs_embeds, &positions, &mut cache, &mut NoObserver);
    let targets = batch.targets(model.ignored_label(batch.recipe));
    let loss = summed_loss(model, hidden_states, &targets);
    Ok(LossGradients::backward(&loss, targets.len(), model))
}

/// The segments are vision layers, connector, embeddings, decoder layers and the head.
fn segments<'a, M: ImageTokenModel + Trainable>(
    model: &'a M,
    batch: &'a TrainingBatch,
) -> Result<Chain<'a, M>, InputError> {
    let mut chain = Chain::default();
    let images = image_segments(model, batch, &mut chain)?;

    let trains_embeddings = is_trained(&model.text_model().embed_tokens);
    let inputs: Vec<usize> = images.into_iter().collect();
    let mut last = chain.push(&inputs, trains_embeddings, move |model: &M, images| {
        inputs_embeds(model, batch, images.first().cloned())
    });

    let positions = Rc::new(OnceCell::new());
    for (layer_idx, layer) in model.text_model().layers.iter().enumerate() {
        let positions = Rc::clone(&positions);
        last = chain.push(&[last], is_trained(layer), move |model: &M, inputs| {
            let hidden_states = inputs[0].clone(); // [batch, seq, d]
            let mut cache = model.cache(&batch.prompts, 0);
            let compute_positions = |states: Tensor<3>| batch.positions(model.decoder(), &states, &cache);
            let positions = positions.get_or_init(|| compute_positions(hidden_states.clone().inner()));
            let layer = &model.text_model().layers[layer_idx];
            Ok(layer.forward(hidden_states, layer_idx, positions, &mut cache, &mut NoObserver))
        });
    }

    let targets = batch.targets(model.ignored_label(batch.recipe));
    let trains_head = is_trained(&model.text_model().norm) || is_trained(model.lm_head());
    chain.push(&[last], trains_head, move |model: &M, inputs| {
        let hidden_states = model.text_model().norm.forward(inputs[0].clone());
        Ok(summed_loss(model, hidden_states, &targets).reshape([1, 1, 1]))
    });
    Ok(chain)
}

/// Adds the segments that compute the image features, `[n_images, n_vectors, d]`, from the pixels. Returns the index of
/// the last one; `None` if there are no images.
fn image_segments<'a, M: ImageTokenModel>(
    model: &'a M,
    batch: &'a TrainingBatch,
    chain: &mut Chain<'a, M>,
) -> Result<Option<usize>, InputError> {
    let image_batches = model.shape().image_batches(&batch.images, VisionBatch::default())?;
    let mut places = vec![0; batch.images.len()];
    let encoded = image_batches.iter().flat_map(|images| images.image_indices.iter().copied());
    encoded.enumerate().for_each(|(row, image_idx)| places[image_idx] = row);

    let tower = model.vision_model();
    let trains_connector = is_trained(&tower.post_layernorm) || model.trains_connector();
    let mut connected = Vec::new();
    for images in image_batches {
        let (grid, layout) = (images.grid, model.patch_layout(&images));
        let mask = patch_mask(&layout, &Model::device(model).without_autodiff());
        let mut last = chain.push(&[], is_trained(&tower.embeddings), move |model: &M, _| {
            let pixel_values = images.upload(&Model::device(model)); // [n_images, 3, height, width]
            Ok(model.vision_model().embeddings.forward(pixel_values, &layout))
        });
        for (layer_idx, layer) in tower.encoder.layers.iter().enumerate() {
            let mask = mask.clone();
            last = chain.push(&[last], is_trained(layer), move |model: &M, inputs| {
                let layer = &model.vision_model().encoder.layers[layer_idx];
                Ok(layer.forward(inputs[0].clone(), mask.clone())) // [n_images, patches, d_vision]
            });
        }
        connected.push(chain.push(&[last], trains_connector, move |model: &M, inputs| {
            let features = model.vision_model().post_layernorm.forward(inputs[0].clone());
            Ok(model.connect(features, grid)) // [n_images, n_vectors, d]
        }));
    }
    if connected.is_empty() {
        return Ok(None);
    }
    // Restores the order of the images.
    let in_order = move |_: &M, inputs: &[Tensor<3>]| Ok(select(Tensor::cat(inputs.to_vec(), 0), &places));
    Ok(Some(chain.push(&connected, false, in_order)))
}

/// The summed cross-entropy, `[1]`, of the predictions from the last hidden states, `[batch, seq, d]`. The head is
/// computed only for slots whose prediction has a label.
fn summed_loss<M: ImageTokenModel>(model: &M, hidden_states: Tensor<3>, targets: &NextTokens) -> Tensor<1> {
    let [batch, seq, d] = hidden_states.dims();
    let hidden_states = targets.select_predictors(hidden_states.reshape([batch * seq, d])); // [n_targets, d]
    targets.cross_entropy(model.lm_head().forward(hidden_states).cast(DType::F32))
}

/// Implements the training traits for a model, given its connector.
macro_rules! image_token_model {
    ($model:ident, |$own:ident, $features:ident, $grid:ident| $connect:expr) => {
        impl ImageTokenModel for $model {
            fn image_token_id(&self) -> u32 {
                self.config().image_token_id
            }

            fn vision_model(&self) -> &VisionTransformer {
                &self.model.vision_model
            }

            fn text_model(&self) -> &Decoder {
                &self.model.text_model
            }

            fn lm_head(&self) -> &Linear {
                &self.lm_head
            }

            fn trains_connector(&self) -> bool {
                is_trained(&self.model.connector)
            }

            fn connect(&self, $features: Tensor<3>, $grid: PatchGrid) -> Tensor<3> {
                let $own = self;
                $connect
            }

            fn patch_layout(&self, images: &ImageBatch<'_>) -> PatchLayout {
                self.layout(images)
            }
        }

        impl Trainable for $model {
            fn ignored_label(&self, recipe: LabelRecipe) -> i64 {
                recipe.ignored(self.image_token_id())
            }

            fn training_gradients(&self, batch: &TrainingBatch) -> Result<LossGradients, InputError> {
                training_gradients(self, batch)
            }
        }

        impl Segments for $model {
            fn segments<'a>(&'a self, batch: &'a TrainingBatch) -> Result<Chain<'a, Self>, InputError> {
                segments(self, batch)
            }
        }
    };
}

image_token_model!(Idefics2, |own, features, _grid| own.model.connector.forward(features, None));
image_token_model!(Idefics3, |own, features, grid| own.model.connector.forward(features, [grid.rows, grid.cols]));
