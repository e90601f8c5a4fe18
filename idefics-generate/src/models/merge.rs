//! Merges images into the token sequence: image vectors replace the embeddings of image tokens.

use burn::tensor::{DType, Tensor, TensorData};
use idefics_text::DecoderStack;

use crate::ImageVectors;
use crate::inputs::{InputError, Prompts};

/// Computes the decoder's input, `[batch, seq, d]`: token embeddings, with image vectors at the image tokens.
/// `image_hidden_states` are the vectors of all images of the batch, row by row.
///
/// # Errors
/// [`InputError`] if an id is not less than `vocab_size`, or if there are not as many image tokens as image vectors.
pub fn inputs_embeds(
    decoder: &dyn DecoderStack,
    prompts: &Prompts,
    image_hidden_states: Option<ImageVectors>,
    image_token_id: u32,
    vocab_size: usize,
) -> Result<Tensor<3>, InputError> {
    let n_vectors = image_hidden_states.as_ref().map_or(0, |states| states.counts().iter().sum());
    let merge_rows = prompts.merge_rows(image_token_id, n_vectors)?;
    let input_ids = prompts.upload(vocab_size, &decoder.device())?;
    let inputs_embeds = decoder.embed(input_ids); // [batch, seq, d]
    Ok(match (image_hidden_states, merge_rows) {
        (Some(image_hidden_states), Some(merge_rows)) => {
            merge(inputs_embeds, image_hidden_states.into_rows(), &merge_rows)
        }
        _ => inputs_embeds,
    })
}

/// Replaces the embedding of each image token by the next image vector.
///
/// # Shapes
/// - `inputs_embeds`: `[batch, seq, d]`
/// - `image_vectors`: the vectors of all images, `[n_vectors, d]`
/// - `merge_rows`: result of [`Prompts::merge_rows`]
/// - returns `[batch, seq, d]`
fn merge(inputs_embeds: Tensor<3>, image_vectors: Tensor<2>, merge_rows: &[i32]) -> Tensor<3> {
    let [batch, seq, d] = inputs_embeds.dims();
    let merge_rows = Tensor::from_data(TensorData::from(merge_rows), (&inputs_embeds.device(), DType::I32));
    let rows = Tensor::cat(vec![inputs_embeds.reshape([batch * seq, d]), image_vectors], 0);
    rows.select(0, merge_rows).reshape([batch, seq, d])
}
