//! Decode attention: one new token against the KV cache.
//!
//! Query heads that share a key/value head are computed together, so that keys and values are read once. The cache is
//! split into pieces of a fixed number of slots. Each piece is a task with its own softmax, and the pieces are merged
//! at the end (as in <https://arxiv.org/abs/2205.14135>), so results do not depend on the number of threads.

#![allow(unsafe_code)] // SIMD

use std::ops::Range;

use rayon::prelude::*;

use crate::Isa;
use crate::attention_inputs::DecodeAttention;
use crate::attention_piece::{Piece, plain};
use crate::shared::{count, with_scratch};

/// Slots per task.
const PIECE: usize = 512;

/// With fewer cached values than this, one thread does everything.
const SINGLE_THREAD_VALUES: usize = 1 << 15;

/// `softmax(query keysᵀ scale) values` for one new token per row, with f32 sums. A row that sees no slot gives 0.
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
    isa.assert_available();
    if out.is_empty() || attention.len == 0 {
        return out.fill(0.0);
    }
    let group = attention.heads / attention.kv_heads;
    let n_pieces = attention.len.div_ceil(PIECE).max(1);
    let partial = group * (attention.head_dim + 2); // weighted sums of values, largest score, total of the weights
    let partials =
        count(&[attention.batch, attention.kv_heads, n_pieces, partial]).expect("the cache dimensions overflow");
    let n_tasks = partials / partial;
    let cached = count(&[attention.batch, attention.kv_heads, attention.len, attention.head_dim]);
    with_scratch(partials, |partials| {
        let task = |(index, partial): (usize, &mut [f32])| {
            let (heads, slots) = attention.task(index, n_pieces);
            let (sums, softmax) = partial.split_at_mut(group * attention.head_dim);
            let (largest, total) = softmax.split_at_mut(group);
            with_scratch(group * slots.len(), |scores| {
                isa.run(Piece { attention, heads, slots, scores, sums, largest, total }, plain);
            });
        };
        if cached.is_some_and(|cached| cached < SINGLE_THREAD_VALUES) || n_tasks == 1 {
            partials.chunks_exact_mut(partial).enumerate().for_each(task);
        } else {
            partials.par_chunks_exact_mut(partial).enumerate().for_each(task);
        }
        let heads = out.chunks_exact_mut(attention.head_dim).enumerate();
        for (index, out) in heads {
            let pieces = partials.chunks_exact(partial).skip(index / group * n_pieces).take(n_pieces);
            merge_pieces(pieces, group, index % group, out);
        }
    });
}

impl DecodeAttention<'_> {
    /// `[row, key/value head]` of task `index`, and its slots, without masked slots at the start.
    fn task(&self, index: usize, n_pieces: usize) -> ([usize; 2], Range<usize>) {
        let (head, piece) = (index / n_pieces, index % n_pieces);
        let row = head / self.kv_heads;
        let slots = piece * PIECE..self.len.min((piece + 1) * PIECE);
        let hidden = match self.attention_mask {
            None => 0,
            Some(mask) => {
                mask[row * self.len..][slots.clone()].iter().position(|is_seen| *is_seen).unwrap_or(slots.len())
            }
        };
        ([row, head % self.kv_heads], slots.start + hidden..slots.end)
    }
}

/// Merges the pieces of one head. A piece holds `[group · head_dim]` sums, `[group]` largest scores and `[group]`
/// totals.
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
