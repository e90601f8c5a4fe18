//! Keys and values of the tokens seen so far, in memory that is taken once.

use burn::tensor::{Bool, DType, Int, Tensor, s};

use crate::{Activations, ContextCache, KeyValues, QueryKeyValue, attention, attention_weights, ops};

/// The cache of a whole decoder, one [`LayerCache`] a layer.
///
/// Rows of a batch share the slots: shorter rows are padded on the left, and slot `i` of a row with `p` padded slots
/// holds the token at position `i − p`. The caller owns the cache and passes it as `&mut` to each forward call.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    left_padding: Vec<usize>,
    len: usize,
    capacity: usize,
    context: Option<ContextCache>,
    /// Whether the device alone knows where the next token goes.
    is_at_slot: bool,
}

impl KvCache {
    /// A cache for `left_padding.len()` rows of at most `capacity` tokens, padding included. `left_padding` is the
    /// number of padded slots at the start of each row. Takes [`KvCache::bytes`] of memory at the first forward call.
    pub fn new(n_layers: usize, left_padding: Vec<usize>, capacity: usize) -> Self {
        let layers = (0..n_layers).map(|_| LayerCache::new(capacity)).collect();
        Self { layers, left_padding, len: 0, capacity, context: None, is_at_slot: false }
    }

    /// The memory of a cache, in bytes.
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

    /// Slots filled so far, in tokens, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was computed yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Slots in all, in tokens.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Rows.
    pub fn batch(&self) -> usize {
        self.left_padding.len()
    }

    /// The number of padded slots at the start of each row.
    pub fn left_padding(&self) -> &[usize] {
        &self.left_padding
    }

    /// The positions of the next `n_new` slots of each row, row after row; padded slots count as position 0.
    pub fn next_positions(&self, n_new: usize) -> Vec<usize> {
        let slots = self.len..self.len + n_new;
        self.left_padding
            .iter()
            .flat_map(|&padding| slots.clone().map(move |slot| slot.saturating_sub(padding)))
            .collect()
    }

    /// Makes room for `capacity` slots in all. What is cached is copied once if there was less room.
    pub fn reserve(&mut self, capacity: usize) {
        if capacity > self.capacity {
            self.capacity = capacity;
            self.layers.iter_mut().for_each(|layer| layer.reserve(capacity));
        }
    }

    /// The same in memory of its own.
    #[must_use]
    pub fn copied(&self) -> Self {
        self.with(self.layers.iter().map(LayerCache::copied).collect())
    }

    fn with(&self, layers: Vec<LayerCache>) -> Self {
        let Self { ref left_padding, len, capacity, ref context, is_at_slot, .. } = *self;
        Self { layers, left_padding: left_padding.clone(), len, capacity, context: context.clone(), is_at_slot }
    }

    /// Forgets all slots from `len` on; what is before stays where it is.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.layers.iter_mut().for_each(|layer| layer.len = layer.len.min(len));
    }

    /// What the rows attend to beside their tokens, if anything.
    pub fn context(&self) -> Option<&ContextCache> {
        self.context.as_ref()
    }

    /// Takes the context away.
    pub fn take_context(&mut self) -> Option<ContextCache> {
        self.context.take()
    }

    /// Puts another context in the place of the one that was there.
    pub fn set_context(&mut self, context: Option<ContextCache>) {
        self.context = context;
    }

    /// Layer `layer_idx`, to append to.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn layer(&mut self, layer_idx: usize) -> &mut LayerCache {
        &mut self.layers[layer_idx]
    }

    /// This cache to a step that is recorded once and replayed: each call writes one token a row into the slot whose
    /// number is in the device's memory, and gets every slot of the capacity, filled or not. What it writes is in this
    /// cache too, which [`KvCache::note_written`] is to be told.
    ///
    /// # Shapes
    /// - `slot`: `[1]`, I32
    ///
    /// `None` where memory cannot be written so, which is all but GPUs, or before anything is in the cache. The cache must
    /// not grow otherwise while the other is there: it would move.
    pub fn at_slot(&self, slot: &Tensor<1, Int>) -> Option<Self> {
        let layer = |layer: &LayerCache| {
            let (keys, _) = layer.states.as_ref()?;
            ops::shares_memory(&keys.device()).then(|| LayerCache { slot: Some(slot.clone()), ..layer.clone() })
        };
        let layers = self.layers.iter().map(layer).collect::<Option<_>>()?;
        Some(Self { is_at_slot: true, ..self.with(layers) })
    }

    /// Notes that a replayed step has written one slot of every layer.
    ///
    /// # Panics
    /// If there was no room for it.
    pub fn note_written(&mut self) {
        assert!(self.len < self.capacity, "{} tokens do not fit a cache of {}", self.len + 1, self.capacity);
        self.layers.iter_mut().for_each(|layer| layer.len += 1);
        self.len += 1;
    }

    /// Notes that every layer has appended `n_new` slots.
    ///
    /// # Panics
    /// If some layer has not.
    pub fn advance(&mut self, n_new: usize) {
        if self.is_at_slot {
            return; // the device knows the slot
        }
        self.len += n_new;
        assert!(self.layers.iter().all(|layer| layer.len == self.len), "every layer appends the same slots");
    }
}

impl KeyValues for KvCache {
    fn attend(
        &mut self,
        layer_idx: usize,
        QueryKeyValue { query, key, value }: QueryKeyValue,
        masked_out: Option<Tensor<4, Bool>>,
        activations: Activations,
    ) -> Tensor<4> {
        let (key, value) = self.layers[layer_idx].append(key, value); // [batch, kv_heads, len + n_new, head_dim]
        attention(query, key, value, masked_out, activations)
    }

    fn attention_weights(&self, layer_idx: usize, query: Tensor<4>, masked_out: Option<Tensor<4, Bool>>) -> Tensor<4> {
        attention_weights(query, self.layers[layer_idx].keys(), masked_out)
    }

    fn context(&self, layer_idx: usize) -> Option<(Tensor<4>, Tensor<4>)> {
        Some(self.context.as_ref()?.layer(layer_idx))
    }
}

/// One layer's keys and values.
#[derive(Debug, Clone)]
pub struct LayerCache {
    capacity: usize,
    len: usize,
    /// Where the next token goes if the device alone knows, `[1]`.
    slot: Option<Tensor<1, Int>>,
    /// Keys and values, each `[batch, n_kv_heads, capacity, head_dim]`.
    states: Option<(Tensor<4>, Tensor<4>)>,
}

impl LayerCache {
    /// An empty cache of `capacity` tokens.
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

    /// What is cached of keys or values in memory of its own, `[batch, n_kv_heads, capacity, head_dim]`.
    fn grown(&self, states: Tensor<4>, capacity: usize) -> Tensor<4> {
        let [batch, n_kv_heads, _, head_dim] = states.dims();
        let options = (&states.device(), states.dtype());
        let filled = s![.., .., 0..self.len, ..];
        Tensor::zeros([batch, n_kv_heads, capacity, head_dim], options).slice_assign(filled, states.slice(filled))
    }

    /// The keys that queries see, as [`Self::append`] returned them last.
    fn keys(&self) -> Tensor<4> {
        let (keys, _) = self.states.as_ref().expect("keys were appended");
        match self.slot {
            Some(_) => keys.clone(),
            None => keys.clone().slice(s![.., .., 0..self.len, ..]),
        }
    }

    /// Writes the new slots in place and returns everything cached so far.
    ///
    /// # Shapes
    /// - `key`, `value`: `[batch, n_kv_heads, n_new, head_dim]`
    /// - returns `[batch, n_kv_heads, len, head_dim]` each, views of the cache: drop them before the next call, or the
    ///   cache is copied; of [`KvCache::at_slot`] the whole of it, `[batch, n_kv_heads, capacity, head_dim]`
    ///
    /// # Panics
    /// If the capacity is exceeded.
    pub fn append(&mut self, key: Tensor<4>, value: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        if let (Some(slot), Some((keys, values))) = (&self.slot, &mut self.states) {
            keys.inplace(|keys| ops::write_slot(keys, key, slot.clone()));
            values.inplace(|values| ops::write_slot(values, value, slot.clone()));
            return (keys.clone(), values.clone());
        }
        let [batch, n_kv_heads, n_new, head_dim] = key.dims();
        let (start, end) = (self.len, self.len + n_new);
        assert!(end <= self.capacity, "{end} tokens do not fit a cache of {}", self.capacity);

        if n_new == self.capacity {
            // All there will ever be, as in training: nothing is copied.
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
