//! Decode attention: one new token per row attends to the KV cache.
//!
//! Query heads that share a key/value head are computed together, so that keys and values are read once. The cache is
//! split into pieces of a fixed number of slots. Each piece is a task with its own softmax, and the pieces are merged
//! at the end (FlashAttention, <https://arxiv.org/abs/2205.14135>). Results therefore do not depend on the number of
//! threads.

#![allow(unsafe_code)] // SIMD

use std::ops::Range;

use rayon::prelude::*;

use crate::Isa;
use crate::attention_inputs::{DecodeAttention, PagedAttention};
use crate::attention_piece::{Piece, Run, Slots, plain};
use crate::shared::{count, with_scratch};

/// Number of slots per task.
pub(crate) const PIECE: usize = 512;

/// With fewer cached values than this, one thread does all the work.
const SINGLE_THREAD_VALUES: usize = 1 << 15;

/// Maximum number of runs of adjacent slots in a piece: one run for each page, if pages have the minimum length.
const MAX_RUNS: usize = PIECE / PagedAttention::MIN_PAGE_LEN;

/// Computes `softmax(query keysᵀ scale) values` for one new token per row, with f32 sums. The output is 0 for a row
/// that sees no slot.
///
/// # Shapes
/// - `out`: `[batch, heads, head_dim]`, overwritten
///
/// # Panics
/// If a slice is too short for the dimensions, or `heads` is not a multiple of `kv_heads`.
pub fn decode_attention(attention: &DecodeAttention<'_>, out: &mut [f32]) {
    decode_attention_on(Isa::best(), attention, out);
}

/// [`decode_attention`] on a given instruction set.
///
/// # Panics
/// As [`decode_attention`], and if the CPU does not support `isa`.
pub fn decode_attention_on(isa: Isa, attention: &DecodeAttention<'_>, out: &mut [f32]) {
    attention.check(out);
    attend_rows(isa, attention, out);
}

/// Computes [`decode_attention`] over a cache that consists of pages. The result of a row is bitwise the same, whatever
/// the other rows are.
///
/// # Shapes
/// - `out`: `[rows, heads, head_dim]`, overwritten
///
/// # Panics
/// If a slice is too short for the dimensions, a page does not exist, a row sees slots beyond its pages, or `heads` is
/// not a multiple of `kv_heads`.
pub fn paged_attention(attention: &PagedAttention<'_>, out: &mut [f32]) {
    paged_attention_on(Isa::best(), attention, out);
}

/// [`paged_attention`] on a given instruction set.
///
/// # Panics
/// As [`paged_attention`], and if the CPU does not support `isa`.
pub fn paged_attention_on(isa: Isa, attention: &PagedAttention<'_>, out: &mut [f32]) {
    attention.check(out);
    attend_rows(isa, attention, out);
}

/// A cache in which the slots of a row form runs of adjacent slots.
trait RowCache: Sync {
    /// Number of rows.
    fn n_rows(&self) -> usize;

    /// Numbers of query heads and of key/value heads, and the width of a head.
    fn heads(&self) -> [usize; 3];

    /// Factor of the scores.
    fn scale(&self) -> f32;

    /// Queries of all rows, `[rows, heads, head_dim]`.
    fn query(&self) -> &[f32];

    /// Keys and values of all slots.
    fn slots(&self) -> [Slots<'_>; 2];

    /// The slots of a row that the new token of the row may see.
    fn seen(&self, row: usize) -> Range<usize>;

    /// For each of the given slots, true if the token of the row sees the slot; `None` if it sees all of them.
    fn attention_mask(&self, row: usize, slots: Range<usize>) -> Option<&[bool]>;

    /// Splits the range `slots` into runs, writes them into `runs`, and returns the number of runs. `at` is the row and
    /// the key/value head.
    fn runs(&self, at: [usize; 2], slots: Range<usize>, runs: &mut [Run; MAX_RUNS]) -> usize;
}

impl RowCache for DecodeAttention<'_> {
    fn n_rows(&self) -> usize {
        self.batch
    }

    fn heads(&self) -> [usize; 3] {
        [self.heads, self.kv_heads, self.head_dim]
    }

    fn scale(&self) -> f32 {
        self.scale
    }

    fn query(&self) -> &[f32] {
        self.query
    }

    fn slots(&self) -> [Slots<'_>; 2] {
        [self.keys, self.values].map(|states| Slots { values: states.values, stride: states.strides[2] })
    }

    fn seen(&self, _row: usize) -> Range<usize> {
        0..self.len
    }

    fn attention_mask(&self, row: usize, slots: Range<usize>) -> Option<&[bool]> {
        Some(&self.attention_mask?[row * self.len..][slots])
    }

    fn runs(&self, [row, kv_head]: [usize; 2], slots: Range<usize>, runs: &mut [Run; MAX_RUNS]) -> usize {
        let [key, value] = [self.keys, self.values].map(|states| states.start([row, kv_head, slots.start]));
        runs[0] = Run { key, value, len: slots.len() };
        1
    }
}

impl RowCache for PagedAttention<'_> {
    fn n_rows(&self) -> usize {
        self.rows.len()
    }

    fn heads(&self) -> [usize; 3] {
        [self.heads, self.kv_heads, self.head_dim]
    }

    fn scale(&self) -> f32 {
        self.scale
    }

    fn query(&self) -> &[f32] {
        self.query
    }

    fn slots(&self) -> [Slots<'_>; 2] {
        [self.keys, self.values].map(|values| Slots { values, stride: self.head_dim })
    }

    fn seen(&self, row: usize) -> Range<usize> {
        self.rows[row].seen.clone()
    }

    fn attention_mask(&self, row: usize, slots: Range<usize>) -> Option<&[bool]> {
        let first = self.rows[row].seen.start;
        Some(&self.rows[row].attention_mask?[slots.start - first..slots.end - first])
    }

    fn runs(&self, [row, kv_head]: [usize; 2], slots: Range<usize>, runs: &mut [Run; MAX_RUNS]) -> usize {
        let Self { kv_heads, page_len, head_dim, .. } = *self;
        let (mut n_runs, mut slot) = (0, slots.start);
        while slot < slots.end {
            let (page, offset) = (self.rows[row].pages[slot / page_len] as usize, slot % page_len);
            let start = ((page * kv_heads + kv_head) * page_len + offset) * head_dim;
            let len = (page_len - offset).min(slots.end - slot);
            runs[n_runs] = Run { key: start, value: start, len };
            (n_runs, slot) = (n_runs + 1, slot + len);
        }
        n_runs
    }
}

/// Computes attention of one new token per row. Each row is cut into pieces at multiples of [`PIECE`] slots, so its
/// result does not depend on the other rows.
fn attend_rows(isa: Isa, cache: &impl RowCache, out: &mut [f32]) {
    isa.assert_available();
    let [heads, kv_heads, head_dim] = cache.heads();
    let pieces = |row: usize| {
        let seen = cache.seen(row);
        seen.start / PIECE..if seen.is_empty() { seen.start / PIECE } else { seen.end.div_ceil(PIECE) }
    };
    // `firsts` holds, for each row, the index of its first task, and at the end the total number of tasks.
    let mut firsts = Vec::with_capacity(cache.n_rows() + 1);
    let (mut n_tasks, mut n_slots) = (0, 0);
    for row in 0..cache.n_rows() {
        firsts.push(n_tasks);
        n_tasks += kv_heads * pieces(row).len();
        n_slots += cache.seen(row).len();
    }
    firsts.push(n_tasks);
    if out.is_empty() || n_tasks == 0 {
        return out.fill(0.0);
    }
    let group = heads / kv_heads;
    let partial = group * (head_dim + 2); // per head: sums of weighted values, largest score, total of the weights
    let cached = count(&[n_slots, kv_heads, head_dim]);
    with_scratch(count(&[n_tasks, partial]).expect("the cache dimensions overflow"), |partials| {
        let task = |(index, partial): (usize, &mut [f32])| {
            let row = firsts.partition_point(|first| *first <= index) - 1;
            let (n_pieces, index) = (pieces(row).len(), index - firsts[row]);
            let (kv_head, piece) = (index / n_pieces, pieces(row).start + index % n_pieces);
            let slots = visible_slots(cache, row, piece);
            let mut runs = [Run::default(); MAX_RUNS];
            let n_runs = cache.runs([row, kv_head], slots.clone(), &mut runs);
            let (sums, softmax) = partial.split_at_mut(group * head_dim);
            let (largest, total) = softmax.split_at_mut(group);
            with_scratch(group * slots.len(), |scores| {
                let [keys, values] = cache.slots();
                let piece = Piece {
                    query: &cache.query()[(row * heads + kv_head * group) * head_dim..][..group * head_dim],
                    keys,
                    values,
                    runs: &runs[..n_runs],
                    attention_mask: cache.attention_mask(row, slots),
                    head_dim,
                    scale: cache.scale(),
                    scores,
                    sums,
                    largest,
                    total,
                };
                piece.check();
                isa.run(piece, plain);
            });
        };
        if cached.is_some_and(|cached| cached < SINGLE_THREAD_VALUES) || n_tasks == 1 {
            partials.chunks_exact_mut(partial).enumerate().for_each(task);
        } else {
            partials.par_chunks_exact_mut(partial).enumerate().for_each(task);
        }
        for (index, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let (row, head) = (index / heads, index % heads);
            let n_pieces = pieces(row).len();
            let first = firsts[row] + head / group * n_pieces;
            let pieces = partials.chunks_exact(partial).skip(first).take(n_pieces);
            merge_pieces(pieces, group, head % group, out);
        }
    });
}

/// Returns the slots of a piece of a row. Leaves out the slots at the start of the piece that the row does not see.
fn visible_slots(cache: &impl RowCache, row: usize, piece: usize) -> Range<usize> {
    let seen = cache.seen(row);
    let slots = seen.start.max(piece * PIECE)..seen.end.min((piece + 1) * PIECE);
    let hidden = match cache.attention_mask(row, slots.clone()) {
        None => 0,
        Some(mask) => mask.iter().position(|is_seen| *is_seen).unwrap_or(slots.len()),
    };
    slots.start + hidden..slots.end
}

/// Merges the pieces of one head into `out`. A piece holds `[group · head_dim]` sums, `[group]` largest scores and
/// `[group]` totals.
fn merge_pieces<'a>(pieces: impl Iterator<Item = &'a [f32]> + Clone, group: usize, head: usize, out: &mut [f32]) {
    let head_dim = out.len();
    let softmax = |piece: &[f32]| (piece[group * head_dim + head], piece[group * (head_dim + 1) + head]);
    let largest = pieces.clone().map(|piece| softmax(piece).0).fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0f32;
    out.fill(0.0);
    for piece in pieces {
        let (piece_largest, piece_total) = softmax(piece);
        if piece_largest == f32::NEG_INFINITY {
            continue; // no visible slot in this piece
        }
        let weight = (piece_largest - largest).exp();
        total += weight * piece_total;
        for (out, sum) in out.iter_mut().zip(&piece[head * head_dim..]) {
            *out += weight * sum;
        }
    }
    if total != 0.0 {
        out.iter_mut().for_each(|out| *out /= total);
    }
}
