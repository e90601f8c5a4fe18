//! A cache that stores the keys and values of many sequences in pages. Sequences of any length can join and leave a
//! batch, and can share the pages of a common prefix.
//!
//! Each sequence has a page table: the token at position `p` is in slot `p % PAGE_LEN` of page `table[p / PAGE_LEN]`.
//! There is no padding. Paper: <https://arxiv.org/abs/2309.06180>.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Bool, DType, Device, Tensor, s};

use crate::{Activations, KeyValues, QueryKeyValue, attention, attention_weights, ops};

/// Number of tokens in a page.
pub const PAGE_LEN: usize = 64;

/// Pages for the keys and values of all layers, allocated once.
#[derive(Debug)]
pub struct PageStore {
    /// Keys and values of each layer, both of shape `[n_pages, kv_heads, PAGE_LEN, head_dim]`.
    layers: Vec<(Tensor<4>, Tensor<4>)>,
}

impl PageStore {
    /// Allocates `n_pages` pages for each layer. `devices` has the device of each layer.
    pub fn new(n_pages: usize, n_kv_heads: usize, head_dim: usize, dtype: DType, devices: &[Device]) -> Self {
        let states = |device: &Device| Tensor::zeros([n_pages, n_kv_heads, PAGE_LEN, head_dim], (device, dtype));
        Self { layers: devices.iter().map(|device| (states(device), states(device))).collect() }
    }

    /// Computes the size of a page, in bytes, summed over all layers.
    pub fn page_bytes(n_layers: usize, n_kv_heads: usize, head_dim: usize, dtype: DType) -> usize {
        2 * n_layers * n_kv_heads * PAGE_LEN * head_dim * dtype.size()
    }

    /// Returns the number of pages.
    pub fn n_pages(&self) -> usize {
        self.layers.first().map_or(0, |(keys, _)| keys.dims()[0])
    }

    /// Whether the store still has all its pages. A panic while a page is written loses the pages of that layer.
    pub fn is_intact(&self) -> bool {
        let n_pages = self.n_pages();
        n_pages > 0 && self.layers.iter().all(|(keys, values)| keys.dims()[0] == n_pages && values.dims()[0] == n_pages)
    }

    /// Copies page `from` to page `to` in every layer, for two sequences whose common prefix ends within a page.
    ///
    /// # Panics
    /// If a page does not exist.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        let copy = |states: &mut Tensor<4>| {
            let page = ops::gather_pages(states, &[from], 1); // [1, kv_heads, PAGE_LEN, head_dim]
            states.inplace(|states| states.slice_assign(s![to as usize, .., .., ..], page));
        };
        for (keys, values) in &mut self.layers {
            copy(keys);
            copy(values);
        }
    }

    /// Returns the cache for one decode step, in which each sequence of `rows` has one new token.
    ///
    /// # Panics
    /// If a row has no page for its new token.
    pub fn decode(&mut self, rows: Vec<PagedRow>) -> PagedKeyValues<'_> {
        let slots = rows.iter().map(PagedRow::newest_slot).collect();
        PagedKeyValues { store: self, slots, tokens: 1, rows: rows.into(), context: Vec::new() }
    }

    /// Returns the cache for one step in which a single sequence has several new tokens, at `positions`.
    ///
    /// # Panics
    /// If `pages` has no page for a position.
    pub fn chunk(&mut self, pages: Vec<u32>, positions: Range<usize>) -> PagedKeyValues<'_> {
        let slots = positions.clone().map(|position| slot(&pages, position)).collect();
        let row = PagedRow { pages, seen: 0..positions.end, attention_mask: None };
        PagedKeyValues { store: self, slots, tokens: positions.len(), rows: vec![row].into(), context: Vec::new() }
    }
}

/// Returns the slot of a position in a sequence that has the given pages. Slots are numbered across all pages of the
/// store.
fn slot(pages: &[u32], position: usize) -> u32 {
    let page = pages.get(position / PAGE_LEN);
    let page = page.unwrap_or_else(|| panic!("position {position} is beyond the {} pages of its row", pages.len()));
    page * PAGE_LEN as u32 + (position % PAGE_LEN) as u32
}

/// A sequence of the batch, and which of its tokens the newest token sees.
#[derive(Debug, Clone)]
pub struct PagedRow {
    /// Pages of the sequence, in order.
    pub pages: Vec<u32>,
    /// Range of positions that the newest token sees. Its last position is that of the newest token itself.
    pub seen: Range<usize>,
    /// For each position of `seen`, true if the newest token sees it; `None` if it sees all of them.
    pub attention_mask: Option<Vec<bool>>,
}

impl PagedRow {
    /// Returns the slot of the newest token.
    fn newest_slot(&self) -> u32 {
        slot(&self.pages, self.seen.end - 1)
    }
}

/// The cache of one forward call: the page store, and the rows that have new tokens.
#[derive(Debug)]
pub struct PagedKeyValues<'a> {
    store: &'a mut PageStore,
    /// Slots of the new tokens, `[rows, tokens]`.
    slots: Arc<[u32]>,
    /// Number of new tokens per row.
    tokens: usize,
    rows: Arc<[PagedRow]>,
    /// Keys and values of the context in each gated cross-attention layer; empty if there is no context.
    context: Vec<(Tensor<4>, Tensor<4>)>,
}

impl PagedKeyValues<'_> {
    /// Adds the context of cross-attention: the keys and values of each gated layer, each `[rows, heads, n_keys,
    /// head_dim]`. An empty list means that there is no context.
    #[must_use]
    pub fn with_context(mut self, context: Vec<(Tensor<4>, Tensor<4>)>) -> Self {
        self.context = context;
        self
    }

    /// Copies the keys and values of the only row from its pages, up to its newest token: each
    /// `[1, kv_heads, len, head_dim]`.
    fn gathered(&self, layer_idx: usize) -> (Tensor<4>, Tensor<4>) {
        let row = &self.rows[0];
        let (keys, values) = &self.store.layers[layer_idx];
        let pages = &row.pages[..row.seen.end.div_ceil(PAGE_LEN)];
        let gather = |states: &Tensor<4>| ops::gather_pages(states, pages, 1).narrow(2, 0, row.seen.end);
        (gather(keys), gather(values))
    }
}

/// With one new token per row, `seen` and `attention_mask` of each [`PagedRow`] say what is visible, and `mask` must be
/// `None`. With several new tokens, there must be a single row, and `mask` says what is visible.
impl KeyValues for PagedKeyValues<'_> {
    fn attend(
        &mut self,
        layer_idx: usize,
        QueryKeyValue { query, key, value }: QueryKeyValue,
        mask: Option<Tensor<4, Bool>>,
        activations: Activations,
    ) -> Tensor<4> {
        assert_eq!(query.dims()[0] * query.dims()[2], self.slots.len(), "there must be one slot for each new token");
        let (keys, values) = &mut self.store.layers[layer_idx];
        keys.inplace(|keys| ops::write_pages(keys, key, &self.slots));
        values.inplace(|values| ops::write_pages(values, value, &self.slots));
        if self.tokens == 1 && mask.is_none() {
            return ops::paged_attention(query, keys, values, &self.rows);
        }
        assert_eq!(self.rows.len(), 1, "only a single row can have several new tokens");
        let (key, value) = self.gathered(layer_idx); // [1, kv_heads, len, head_dim] each
        attention(query, key, value, mask, activations)
    }

    fn attention_weights(&self, layer_idx: usize, query: Tensor<4>, mask: Option<Tensor<4, Bool>>) -> Tensor<4> {
        assert_eq!(self.rows.len(), 1, "attention weights are available only for a single row");
        let (key, _) = self.gathered(layer_idx); // [1, kv_heads, len, head_dim]
        attention_weights(query, key, mask)
    }

    fn context(&self, layer_idx: usize) -> Option<(Tensor<4>, Tensor<4>)> {
        if self.context.is_empty() { None } else { Some(self.context[layer_idx].clone()) }
    }
}
