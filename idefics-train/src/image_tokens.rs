//! Training of Idefics2 and Idefics3, whose image features replace image tokens.

use std::cell::OnceCell;
use std::rc::Rc;

use burn::tensor::Tensor;
use idefics_generate::{Idefics2, Idefics3, ImageBatch, ImageVectors, InputError, Model, VisionBatch, rows_of_images};
use idefics_nn::Linear;
use idefics_text::{Decoder, NoObserver};
use idefics_vision::{PatchLayout, VisionTransformer, patch_mask};

use crate::segments::{arrange, is_trained};
use crate::trainable::{summed_loss, targets};
use crate::{BatchError, Chain, LabelRecipe, Segments, Trainable, TrainingBatch};

/// A model whose image features replace image tokens: a vision tower, a connector, a decoder and a head.
pub(crate) trait ImageTokenModel: Trainable {
    /// Returns the vision tower, which computes patch features from pixels.
    fn vision_model(&self) -> &VisionTransformer;
    /// Returns the decoder, which computes hidden states from tokens.
    fn text_model(&self) -> &Decoder;
    /// Returns the head, which computes logits from hidden states.
    fn lm_head(&self) -> &Linear;
    /// Whether the connector is trained.
    fn trains_connector(&self) -> bool;
    /// Returns the numbers of patch rows and patch columns of a batch's images. Fails if the connector rejects these
    /// numbers.
    fn grid(&self, images: &ImageBatch<'_>) -> Result<[usize; 2], InputError>;
    /// Applies the connector to patch features of images that share a grid, `[n_images, patches, d_vision]`. Returns
    /// image features, `[n_images, n_vectors, d]`.
    fn connect(&self, features: Tensor<3>, grid: [usize; 2]) -> Tensor<3>;
    /// Returns the patches of a batch with their positions.
    fn patch_layout(&self, images: &ImageBatch<'_>) -> PatchLayout;
}

/// Returns the input of the decoder, `[batch, seq, d]`: token embeddings, with image features at image tokens.
fn inputs_embeds<M: ImageTokenModel>(
    model: &M,
    batch: &TrainingBatch,
    image_hidden_states: Option<Tensor<3>>,
) -> Result<Tensor<3>, InputError> {
    let image_hidden_states = image_hidden_states.map(ImageVectors::from);
    model.begin(&batch.prompts, image_hidden_states, &mut model.cache(&batch.prompts, 0))
}

/// Splits the model into vision layers, connector, embeddings, decoder layers and head.
fn segments<'a, M: ImageTokenModel>(model: &'a M, batch: &'a TrainingBatch) -> Result<Chain<'a, M>, BatchError> {
    let targets = targets(model, batch)?;
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

    let trains_head = is_trained(&model.text_model().norm) || is_trained(model.lm_head());
    chain.push(&[last], trains_head, move |model: &M, inputs| {
        let hidden_states = model.text_model().norm.forward(inputs[0].clone());
        Ok(summed_loss(model, hidden_states, &targets).reshape([1, 1, 1]))
    });
    Ok(chain)
}

/// Adds the segments that compute the image features, `[n_images, n_vectors, d]`, from the pixels. Returns the index of
/// the last segment, or `None` if there are no images.
fn image_segments<'a, M: ImageTokenModel>(
    model: &'a M,
    batch: &'a TrainingBatch,
    chain: &mut Chain<'a, M>,
) -> Result<Option<usize>, InputError> {
    let image_batches = model.shape().image_batches(&batch.images, VisionBatch::default())?;
    let rows = rows_of_images(&image_batches);
    let tower = model.vision_model();
    let trains_connector = is_trained(&tower.post_layernorm) || model.trains_connector();
    let mut connected = Vec::new();
    for images in image_batches {
        let (grid, layout) = (model.grid(&images)?, model.patch_layout(&images));
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
    // Restores the order of the images, which were grouped by size.
    let in_order = move |_: &M, inputs: &[Tensor<3>]| Ok(arrange(Tensor::cat(inputs.to_vec(), 0), &rows));
    Ok(Some(chain.push(&connected, false, in_order)))
}

/// Implements the training traits for a model, given the grid of its images and its connector.
macro_rules! image_token_model {
    ($model:ident, $grid_of:expr, $connect:expr) => {
        impl ImageTokenModel for $model {
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

            fn grid(&self, images: &ImageBatch<'_>) -> Result<[usize; 2], InputError> {
                $grid_of(self, images)
            }

            fn connect(&self, features: Tensor<3>, grid: [usize; 2]) -> Tensor<3> {
                $connect(self, features, grid)
            }

            fn patch_layout(&self, images: &ImageBatch<'_>) -> PatchLayout {
                self.layout(images)
            }
        }

        impl Trainable for $model {
            fn ignored_label(&self, recipe: LabelRecipe) -> i64 {
                recipe.ignored(self.config().image_token_id)
            }
        }

        impl Segments for $model {
            fn segments<'a>(&'a self, batch: &'a TrainingBatch) -> Result<Chain<'a, Self>, BatchError> {
                segments(self, batch)
            }
        }
    };
}

image_token_model!(
    Idefics2,
    |_: &Self, images: &ImageBatch<'_>| Ok([images.grid.rows, images.grid.cols]),
    |model: &Self, features, _| model.model.connector.forward(features, None)
);
image_token_model!(Idefics3, Self::grid, |model: &Self, features, grid| model.model.connector.forward(features, grid));
