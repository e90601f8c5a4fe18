//! Training of IDEFICS v1. The batch must say which images each token sees: see
//! [`TrainingBatch::attend_to_latest_images`].

use std::cell::OnceCell;
use std::rc::Rc;

use burn::tensor::Tensor;
use idefics_generate::{Idefics1, InputError, Model, SeenImages, VisionBatch, rows_of_images};
use idefics_text::{Context, DecoderStack, NoObserver};

use crate::labels::IGNORED_LABEL;
use crate::segments::{arrange, is_trained};
use crate::trainable::{summed_loss, targets};
use crate::{BatchError, Chain, LabelRecipe, Segments, Trainable, TrainingBatch};

impl Trainable for Idefics1 {
    /// Returns −100 for every recipe, because image tokens are only placeholders in this family.
    fn ignored_label(&self, _recipe: LabelRecipe) -> i64 {
        IGNORED_LABEL
    }
}

/// The segments are the vision layers, the resampler, the embeddings, the decoder layers, and the head. A gated layer
/// belongs to the segment of the decoder layer that follows it. All gated layers read the images, so the gradient of
/// the images is a sum over these layers.
impl Segments for Idefics1 {
    fn segments<'a>(&'a self, batch: &'a TrainingBatch) -> Result<Chain<'a, Self>, BatchError> {
        let targets = targets(self, batch)?;
        let text = &*self.model.text;
        let mut chain = Chain::default();
        let context = image_segments(self, batch, &mut chain)?;
        let view = batch.prompts.seen_images().map(SeenImages::view);
        let n_parts = view.map_or(0, |view| view.n_parts()).max(1);
        let context = context.filter(|_| view.is_some_and(|view| !view.sees_nothing()));

        let input_ids = batch.prompts.upload(self.shape().vocab_size, &Model::device(self).without_autodiff())?;
        let mut last = chain.push(&[], is_trained(&text.embed_tokens), move |model: &Self, _| {
            Ok(model.model.text.embed(input_ids.clone())) // [batch, seq, d]
        });

        let (positions, mask) = (Rc::new(OnceCell::new()), Rc::new(OnceCell::new()));
        let interval = self.config().cross_layer_interval;
        for (layer_idx, layer) in text.layers.iter().enumerate() {
            let gated_idx = layer_idx.is_multiple_of(interval).then_some(layer_idx / interval);
            let trains_gated = gated_idx.is_some_and(|gated_idx| is_trained(&text.gated_cross_attn_layers[gated_idx]));
            let context = context.filter(|_| gated_idx.is_some());
            let inputs: Vec<usize> = std::iter::once(last).chain(context).collect();
            let (positions, mask) = (Rc::clone(&positions), Rc::clone(&mask));
            last = chain.push(&inputs, is_trained(layer) || trains_gated, move |model: &Self, inputs| {
                let text = &*model.model.text;
                let mut hidden_states = inputs[0].clone(); // [batch, seq, d]
                if let Some(gated_idx) = gated_idx {
                    let gated = &text.gated_cross_attn_layers[gated_idx];
                    let context = inputs.get(1).zip(view).map(|(images, view)| {
                        // [batch, max_images · n_vectors, d_image]
                        let part_len = images.dims()[1] / n_parts;
                        let device = images.device().without_autodiff();
                        let mask = mask.get_or_init(|| view.mask(part_len, &device)).clone();
                        let (key, value) = gated.cross_attn.key_values(images.clone());
                        Context { key, value, mask }
                    });
                    hidden_states = gated.forward(hidden_states, context);
                }
                let mut cache = model.cache(&batch.prompts, 0);
                let positions = positions.get_or_init(|| batch.positions(text, &hidden_states.clone().inner(), &cache));
                let layer = &text.layers[layer_idx];
                Ok(layer.forward(hidden_states, layer_idx, positions, &mut cache, &mut NoObserver))
            });
        }

        let trains_head = is_trained(&text.norm) || is_trained(&self.lm_head);
        chain.push(&[last], trains_head, move |model: &Self, inputs| {
            let hidden_states = model.model.text.norm.forward(inputs[0].clone());
            Ok(summed_loss(model, hidden_states, &targets).reshape([1, 1, 1]))
        });
        Ok(chain)
    }
}

/// Adds the segments that compute the image vectors of each row, `[batch, max_images · n_vectors, d_image]`, from the
/// pixels. Returns the index of the last segment, or `None` if there are no images.
fn image_segments<'a>(
    model: &'a Idefics1,
    batch: &'a TrainingBatch,
    chain: &mut Chain<'a, Idefics1>,
) -> Result<Option<usize>, InputError> {
    let n_images = batch.prompts.seen_images().map_or(&[][..], SeenImages::n_images);
    let (shown, images): (usize, usize) = (n_images.iter().sum(), batch.images.len());
    if shown != images {
        return Err(InputError::ImageCount { shown, images });
    }
    let encoder = &model.model.images;
    let tower = &encoder.vision_model;
    let trains_embeddings = is_trained(&tower.embeddings) || is_trained(&tower.pre_layrnorm);
    let image_batches = model.shape().image_batches(&batch.images, VisionBatch::default())?;
    let row_of = rows_of_images(&image_batches);
    let mut encoded = Vec::new();
    for images in image_batches {
        model.check_sizes(&images)?;
        let mut last = chain.push(&[], trains_embeddings, move |model: &Idefics1, _| {
            let tower = &model.model.images.vision_model;
            Ok(tower.pre_layrnorm.forward(tower.embeddings.forward(images.upload(&model.vision_device()))))
        });
        for (layer_idx, layer) in tower.encoder.layers.iter().enumerate() {
            last = chain.push(&[last], is_trained(layer), move |model: &Idefics1, inputs| {
                let layer = &model.model.images.vision_model.encoder.layers[layer_idx];
                Ok(layer.forward(inputs[0].clone(), None)) // [n_images, 1 + patches, d_image]
            });
        }
        if let Some(resampler) = &encoder.perceiver_resampler {
            last = chain.push(&[last], is_trained(resampler), |model: &Idefics1, inputs| {
                Ok(model.connect(inputs[0].clone())) // [n_images, n_vectors, d_image]
            });
        }
        encoded.push(last);
    }
    if encoded.is_empty() {
        return Ok(None);
    }
    let max_images = n_images.iter().copied().max().unwrap_or(0);
    let rows = n_images.len();
    // Rows with fewer images are filled up with the vectors of the first image. The mask hides them from all tokens.
    let firsts = n_images.iter().scan(0, |next, n_images| Some(std::mem::replace(next, *next + n_images)));
    let places: Vec<usize> = firsts
        .zip(n_images)
        .flat_map(|(first, &n_images)| {
            (0..max_images).map(move |image| if image < n_images { first + image } else { 0 })
        })
        .map(|image_idx| row_of[image_idx])
        .collect();
    Ok(Some(chain.push(&encoded, false, move |_: &Idefics1, inputs| {
        let placed = arrange(Tensor::cat(inputs.to_vec(), 0), &places); // [batch · max_images, n_vectors, d_image]
        let [_, n_vectors, d_image] = placed.dims();
        Ok(placed.reshape([rows, max_images * n_vectors, d_image]))
    })))
}
