//! The context of cross-attention (IDEFICS v1): the images that the rows of a step see.

use burn::tensor::{Bool, Tensor, TensorData};
use idefics_nn::{ContextCache, ContextView};
use idefics_text::SeenContext;

use super::scheduler::RowId;

/// Keys and values of each gated layer, each `[rows, heads, n_keys, head_dim]`; empty if there is no context.
pub(super) type LayerContexts = Vec<(Tensor<4>, Tensor<4>)>;

/// Returns the context of the tokens that `view` describes, and which parts of it they see.
pub(super) fn of_chunk(
    context: Option<&ContextCache>,
    view: Option<ContextView>,
) -> (LayerContexts, Option<SeenContext>) {
    match (context, view) {
        (Some(context), Some(view)) if !view.sees_nothing() => {
            let layers = context.layers().to_vec();
            let mask = layers.first().and_then(|(key, _)| view.mask(context.part_len(), &key.device()));
            (layers, Some(SeenContext { mask }))
        }
        _ => (Vec::new(), None),
    }
}

/// Returns, for each gated layer, the keys and values of the images that the last token of `view` sees, concatenated
/// along the key axis. Empty if the token sees no image. All tokens of the answer see the same images.
pub(super) fn of_answer(context: &ContextCache, view: &ContextView) -> LayerContexts {
    let last = view.repeat_last(1);
    let len = context.part_len();
    let parts: Vec<usize> = (0..last.n_parts()).filter(|&part| last.seen()[part]).collect();
    if parts.is_empty() {
        return Vec::new();
    }
    let gather = |states: &Tensor<4>| {
        let seen = parts.iter().map(|part| states.clone().narrow(2, part * len, len)).collect();
        Tensor::cat(seen, 2) // [1, heads, parts · len, head_dim]
    };
    context.layers().iter().map(|(key, value)| (gather(key), gather(value))).collect()
}

/// The joined contexts of the rows of a decode step. They are kept until the rows change.
#[derive(Debug, Default)]
pub(super) struct RowContexts {
    rows: Vec<RowId>,
    layers: LayerContexts,
    seen: Option<SeenContext>,
}

impl RowContexts {
    /// Returns the joined context of `rows`, and which of its vectors the rows see. `contexts` has the context of each
    /// row.
    pub(super) fn join(&mut self, rows: &[RowId], contexts: &[&LayerContexts]) -> (LayerContexts, Option<SeenContext>) {
        if self.rows != rows {
            (self.layers, self.seen) = join(contexts);
            rows.clone_into(&mut self.rows);
        }
        (self.layers.clone(), self.seen.clone())
    }

    /// Drops the contexts.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Joins the contexts of rows. Rows that see fewer vectors than others are padded with vectors that a mask hides.
fn join(contexts: &[&LayerContexts]) -> (LayerContexts, Option<SeenContext>) {
    let n_keys = |context: &LayerContexts| context.first().map_or(0, |(key, _)| key.dims()[2]);
    let most = contexts.iter().map(|context| n_keys(context)).max().unwrap_or(0);
    let Some(some) = contexts.iter().find(|context| !context.is_empty()) else { return (Vec::new(), None) };
    let padded = |of_row: Option<&Tensor<4>>, like: &Tensor<4>| {
        let [_, heads, _, head_dim] = like.dims();
        let zeros = |n: usize| Tensor::zeros([1, heads, n, head_dim], (&like.device(), like.dtype()));
        match of_row {
            None => zeros(most),
            Some(states) if states.dims()[2] == most => states.clone(),
            Some(states) => Tensor::cat(vec![states.clone(), zeros(most - states.dims()[2])], 2),
        }
    };
    let layer = |(index, (key, value)): (usize, &(Tensor<4>, Tensor<4>))| {
        let keys = contexts.iter().map(|context| padded(context.get(index).map(|(key, _)| key), key)).collect();
        let values = contexts.iter().map(|context| padded(context.get(index).map(|(_, value)| value), value)).collect();
        (Tensor::cat(keys, 0), Tensor::cat(values, 0))
    };
    let layers = some.iter().enumerate().map(layer).collect();
    let is_padded = contexts.iter().any(|context| n_keys(context) < most);
    let mask = is_padded.then(|| {
        let hidden: Vec<bool> = contexts.iter().flat_map(|row| (0..most).map(|key| key >= n_keys(row))).collect();
        let hidden = TensorData::new(hidden, [contexts.len(), 1, 1, most]);
        Tensor::<4, Bool>::from_data(hidden, &some[0].0.device())
    });
    (layers, Some(SeenContext { mask }))
}
