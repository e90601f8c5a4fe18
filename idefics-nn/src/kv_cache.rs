//! Keys and values of the tokens processed so far, in memory that is allocated once.

use burn::tensor::{Bool, DType, Int, Tensor, s};

use crate::{Activations, ContextCache, KeyValues, QueryKeyValue, attention, attention_weights, ops};

/// The cache of a whole decoder, with one [`LayerCache`] per layer.
///
/// All rows of a batch have the same number of slots. Shorter rows are padded on the left: in a row with `p` padded
/// slots, slot `i` holds the token at position `i − p`. The caller owns the cache and passes it as `&mut` to each
/// forward call.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    left_padding: Vec<usize>,
    len: usize,
    capacity: usize,
    context: Option<ContextCache>,
    /// Whether this is a view for graph capture, in which only the device knows the slot of the next token (see
    /// [`KvCache::slot_view`]).
    is_at_slot: bool,
}

impl KvCache {
    /// Creates a cache for `left_padding.len()` rows of at most `capacity` tokens, padding included. `left_padding` is
    /// the number of padded slots at the start of each row. The memory, [`KvCache::bytes`] bytes, is allocated at the
    /// first forward call.
    pub fn new(n_layers: usize, left_padding: Vec<usize>, capacity: usize) -> Self {
        let layers = (0..n_layers).map(|_| LayerCache::new(capacity)).collect();
        Self { layers, left_padding, len: 0, capacity, context: None, is_at_slot: false }
    }

    /// Computes the size of a cache in bytes.
    pub fn bytes(
        n_layers: usize,
        batch: usize,
        n_kv_heads: usize,
        capacity: usize,
        head_dim: usize,
        dtype: DType,
    ) -> usize {
        2 * n_layers * batch * n_kv_heads * capacity * head_dim * dtype.size()
    }

    /// Returns the number of slots filled so far, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether no slot is filled yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the total number of slots in each row.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the number of rows in the batch.
    pub fn batch(&self) -> usize {
        self.left_padding.len()
    }

    /// Returns the number of padded slots at the start of each row.
    pub fn left_padding(&self) -> &[usize] {
        &self.left_padding
    }

    /// Returns the positions of the next `n_new` slots, row by row. In a row with `p` padded slots, slot `i` has
    /// position `i - p`, so that the row gives the same result with padding and without. Padded slots, which are
    /// masked, have position 0.
    pub fn next_positions(&self, n_new: usize) -> Vec<usize> {
        let slots = self.len..self.len + n_new;
        self.left_padding
            .iter()
            .flat_map(|&padding| slots.clone().map(move |slot| slot.saturating_sub(padding)))
            .collect()
    }

    /// Grows the cache to `capacity` slots and copies its contents. Does nothing if the cache is large enough already.
    pub fn reserve(&mut self, capacity: usize) {
        if capacity > self.capacity {
            self.capacity = capacity;
            self.layers.iter_mut().for_each(|layer| layer.reserve(capacity));
        }
    }

    /// Returns a copy of the cache. The copy has its own memory for keys and values.
    #[must_use]
    pub fn copied(&self) -> Self {
        self.with(self.layers.iter().map(LayerCache::copied).collect())
    }

    fn with(&self, layers: Vec<LayerCache>) -> Self {
        let Self { ref left_padding, len, capacity, ref context, is_at_slot, .. } = *self;
        Self { layers, left_padding: left_padding.clone(), len, capacity, context: context.clone(), is_at_slot }
    }

    /// Drops all slots from number `len` on. Earlier slots stay in place.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.layers.iter_mut().for_each(|layer| layer.len = layer.len.min(len));
    }

    /// Returns the cross-attention context, if any.
    pub fn context(&self) -> Option<&ContextCache> {
        self.context.as_ref()
    }

    /// Removes the cross-attention context and returns it.
    pub fn take_context(&mut self) -> Option<ContextCache> {
        self.context.take()
    }

    /// Replaces the cross-attention context.
    pub fn set_context(&mut self, context: Option<ContextCache>) {
        self.context = context;
    }

    /// Returns the cache of layer `layer_idx`, to append to it.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn layer(&mut self, layer_idx: usize) -> &mut LayerCache {
        &mut self.layers[layer_idx]
    }

    /// Returns a view of this cache for graph capture, that is, for a step that is recorded once and replayed. Each
    /// call of [`LayerCache::append`] on the view writes one token per row into a slot. The number of the slot is in
    /// device memory, in `slot`. The call returns all `capacity` slots, filled or not. The view shares the memory of
    /// this cache. After each replay, call [`KvCache::mark_slot_written`] on this cache. This cache must not grow while
    /// the view exists, because growing moves its memory.
    ///
    /// Returns `None` if the device does not support such writes (only GPUs do), or if the cache is still empty.
    ///
    /// # Shapes
    /// - `slot`: `[1]`, I32
    pub fn slot_view(&self, slot: &Tensor<1, Int>) -> Option<Self> {
        let layer = |layer: &LayerCache| {
            let (keys, _) = layer.states.as_ref()?;
            ops::shares_memory(&keys.device()).then(|| LayerCache { slot: Some(slot.clone()), ..layer.clone() })
        };
        let layers = self.layers.iter().map(layer).collect::<Option<_>>()?;
        Some(Self { is_at_slot: true, ..self.with(layers) })
    }

    /// Records that a replayed step has written one slot of every layer.
    ///
    /// # Panics
    /// If the cache was already full.
    pub fn mark_slot_written(&mut self) {
        assert!(self.len < self.capacity, "{} tokens do not fit into a cache of {} slots", self.len + 1, self.capacity);
        self.layers.iter_mut().for_each(|layer| layer.len += 1);
        self.len += 1;
    }

    /// Records that every layer has appended `n_new` slots.
    ///
    /// # Panics
    /// If a layer has appended another number of slots.
    pub fn advance(&mut self, n_new: usize) {
        if self.is_at_slot {
            return; // the device keeps track of the slot
        }
        self.len += n_new;
        assert!(
            self.layers.iter().all(|layer| layer.len == self.len),
            "every layer must append the same number of slots"
        );
    }
}

impl KeyValues for KvCache {
    fn attend(
        &mut self,
        layer_idx: usize,
        QueryKeyValue { query, key, value }: QueryKeyValue,
        mask: Option<Tensor<4, Bool>>,
        activations: Activations,
    ) -> Tensor<4> {
        let (key, value) = self.layers[layer_idx].append(key, value); // [batch, kv_heads, len + n_new, head_dim]
        attention(query, key, value, mask, activations)
    }

    fn attention_weights(&self, layer_idx: usize, query: Tensor<4>, mask: Option<Tensor<4, Bool>>) -> Tensor<4> {
        attention_weights(query, self.layers[layer_idx].keys(), mask)
    }

    fn context(&self, layer_idx: usize) -> Option<(Tensor<4>, Tensor<4>)> {
        Some(self.context.as_ref()?.layer(layer_idx))
    }
}

/// Keys and values of one layer.
#[derive(Debug, Clone)]
pub struct LayerCache {
    capacity: usize,
    len: usize,
    /// Slot of the next token, `[1]`, in a view for graph capture (see [`KvCache::slot_view`]); otherwise `None`.
    slot: Option<Tensor<1, Int>>,
    /// Keys and values, each `[batch, n_kv_heads, capacity, head_dim]`.
    states: Option<(Tensor<4>, Tensor<4>)>,
}

impl LayerCache {
    /// Creates an empty cache for `capacity` tokens.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, len: 0, slot: None, states: None }
    }

    fn reserve(&mut self, capacity: usize) {
        self.states =
            self.states.take().map(|(keys, values)| (self.grown(keys, capacity), self.grown(values, capacity)));
        self.capacity = capacity;
    }

    fn copied(&self) -> Self {
        let copied = |states: &Tensor<4>| self.grown(states.clone(), self.capacity);
        let states = self.states.as_ref().map(|(keys, values)| (copied(keys), copied(values)));
        Self { states, ..self.clone() }
    }

    /// Copies the cached keys or values to new memory, `[batch, n_kv_heads, capacity, head_dim]`.
    fn grown(&self, states: Tensor<4>, capacity: usize) -> Tensor<4> {
        let [batch, n_kv_heads, _, head_dim] = states.dims();
        let options = (&states.device(), states.dtype());
        let filled = s![.., .., 0..self.len, ..];
        Tensor::zeros([batch, n_kv_heads, capacity, head_dim], options).slice_assign(filled, states.slice(filled))
    }

    /// Returns the keys that the last call of [`Self::append`] returned.
    fn keys(&self) -> Tensor<4> {
        let (keys, _) = self.states.as_ref().expect("keys must be appended before they are read");
        match self.slot {
            Some(_) => keys.clone(),
            None => keys.clone().slice(s![.., .., 0..self.len, ..]),
        }
    }

    /// Writes new keys and values in place, and returns everything cached so far.
    ///
    /// # Shapes
    /// - `key`, `value`: `[batch, n_kv_heads, n_new, head_dim]`
    /// - returns `[batch, n_kv_heads, len, head_dim]` for keys and values, as views of the cache. Drop the views before
    ///   the next call, which otherwise copies the cache. A layer of [`KvCache::slot_view`] returns all slots,
    ///   `[batch, n_kv_heads, capacity, head_dim]`
    ///
    /// # Panics
    /// If the tokens do not fit.
    pub fn append(&mut self, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        if let (Some(slot), Some((keys, values))) = (&self.slot, &mut self.states) {
            keys.inplace(|keys| ops::write_slot(keys, key, slot.clone()));
            values.inplace(|values| ops::write_slot(values, value, slot.clone()));
            return (keys.clone(), values.clone());
        }
        let [batch, n_kv_heads, n_new, head_dim] = key.dims();
        let (start, end) = (self.len, self.len + n_new);
        assert!(end <= self.capacity, "{end} tokens do not fit into a cache of {} slots", self.capacity);

        if n_new == self.capacity {
            // The new tokens fill the whole cache, as in training, so no copy is needed.
            self.len = end;
            self.states = Some((key.clone(), value.clone()));
            return (key, value);
        }
        let (keys, values) = self.states.get_or_insert_with(|| {
            let shape = [batch, n_kv_heads, self.capacity, head_dim];
            let options = (&key.device(), key.dtype());
            (Tensor::zeros(shape, options), Tensor::zeros(shape, options))
        });
        keys.inplace(|keys| keys.slice_assign(s![.., .., start..end, ..], key));
        values.inplace(|values| values.slice_assign(s![.., .., start..end, ..], value));
        self.len = end;
        (keys.clone().slice(s![.., .., 0..end, ..]), values.clone().slice(s![.., .., 0..end, ..]))
    }
}
