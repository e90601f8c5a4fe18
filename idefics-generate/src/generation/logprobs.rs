//! Log-probabilities that the model assigns to tokens, before any logits processor.

use burn::tensor::activation::log_softmax as device_log_softmax;
use burn::tensor::{DType, Int, Tensor, TensorData};
use serde::Serialize;

use crate::logits::{log_softmax, top_k};
use crate::{Error, Model, Prompts};

/// Number of positions whose logits are computed together. With a vocabulary of 32000 tokens, their logits take 33 MB.
const CHUNK: usize = 256;

/// A token and its log-probability.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// A generated token and the most likely tokens at its position.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GeneratedLogprob {
    /// The generated token.
    #[serde(flatten)]
    pub token: TokenLogprob,
    /// The most likely tokens at this position, most likely first. They may include the generated token.
    pub top: Vec<TokenLogprob>,
}

/// Computes the log-probability of `id` and finds the `n_top` most likely tokens, from the logits of one position.
pub(crate) fn of_token(logits: &[f32], id: u32, n_top: usize) -> GeneratedLogprob {
    let mut log_probs = logits.to_vec();
    log_softmax(&mut log_probs);
    let token = TokenLogprob { id, logprob: log_probs[id as usize] };
    GeneratedLogprob { token, top: likeliest(&log_probs, n_top) }
}

/// Returns the `n_top` most likely tokens, most likely first.
pub(super) fn likeliest(log_probs: &[f32], n_top: usize) -> Vec<TokenLogprob> {
    let token = |id: usize| TokenLogprob { id: id as u32, logprob: log_probs[id] };
    top_k(log_probs, n_top).into_iter().map(token).collect()
}

/// Computes the log-probability of each prompt token after the first, for each row.
///
/// # Shapes
/// - `hidden_states`: `[batch, seq, d]`, the decoder's output on `prompts`
pub(super) fn of_prompts(
    model: &dyn Model,
    prompts: &Prompts,
    hidden_states: &Tensor<3>,
) -> Result<Vec<Vec<f32>>, Error> {
    let rows = (0..prompts.batch()).map(|row| {
        let ids = &prompts.row(row)[prompts.left_padding()[row]..];
        let d = hidden_states.dims()[2];
        let states = hidden_states.clone().narrow(0, row, 1).narrow(1, prompts.left_padding()[row], ids.len());
        of_tokens(model, states.reshape([ids.len(), d]).narrow(0, 0, ids.len().max(2) - 1), &ids[1..])
    });
    rows.collect()
}

/// Computes the log-probability of each target token, from the hidden state of the position before it.
///
/// # Shapes
/// - `hidden_states`: `[n_targets, d]`, after the final norm
pub(crate) fn of_tokens(model: &dyn Model, hidden_states: Tensor<2>, targets: &[u32]) -> Result<Vec<f32>, Error> {
    let mut logprobs = Vec::with_capacity(targets.len());
    for (chunk, targets) in targets.chunks(CHUNK).enumerate() {
        let states = hidden_states.clone().narrow(0, chunk * CHUNK, targets.len());
        let logits: Tensor<2> = model.logits(states.unsqueeze_dim(0)).squeeze_dim(0);
        let ids: Vec<i32> = targets.iter().map(|&id| id as i32).collect();
        let ids = TensorData::new(ids, [targets.len(), 1]);
        let ids = Tensor::<2, Int>::from_data(ids, (&logits.device(), DType::I32));
        logprobs.extend(read(device_log_softmax(logits, 1).gather(1, ids))?);
    }
    Ok(logprobs)
}

/// Reads a tensor back as f32.
#[expect(clippy::disallowed_methods, reason = "scores are processed on the host")]
pub(crate) fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, Error> {
    let failed = |reason: String| Error::Execution { reason };
    let data = tensor.cast(DType::F32).try_into_data().map_err(|error| failed(format!("{error:?}")))?;
    data.try_into_vec().map_err(|error| failed(format!("{error:?}")))
}
