//! The layout of rows between the horizontal and the vertical pass.
//!
//! A block holds [`ROWS`] rows of the same length, in groups of [`LANES`] rows. A group is interleaved, `[columns,
//! LANES]`: the bytes of a column are contiguous, as the vertical loops need them.

use std::ops::Range;

use super::{LANES, ROWS};

/// Interleaves rows into a block.
pub(super) fn interleave(rows: [&[u8]; ROWS], block: &mut [u8]) {
    let half = block.len() / 2;
    for (rows, group) in rows.as_chunks::<LANES>().0.iter().zip(block.chunks_exact_mut(half)) {
        let columns = rows[0].iter().zip(rows[1]).zip(rows[2]).zip(rows[3]);
        for (out, (((&a, &b), &c), &d)) in group.as_chunks_mut::<LANES>().0.iter_mut().zip(columns) {
            *out = [a, b, c, d];
        }
    }
}

/// Copies the first `outs.len()` rows of a block to `outs`.
pub(super) fn separate(block: &[u8], outs: &mut [&mut [u8]]) {
    for (lane, out) in outs.iter_mut().enumerate() {
        let group = &block[lane / LANES * block.len() / 2..];
        for (out, lanes) in out.iter_mut().zip(group.as_chunks::<LANES>().0) {
            *out = lanes[lane % LANES];
        }
    }
}

/// Copies the rows `used` of the block `from` to the block `to`.
pub(super) fn merge(from: &[u8], used: Range<usize>, to: &mut [u8]) {
    let half = to.len() / 2;
    for (group, (from, to)) in from.chunks_exact(half).zip(to.chunks_exact_mut(half)).enumerate() {
        let mask = std::array::from_fn(|lane| if used.contains(&(LANES * group + lane)) { u8::MAX } else { 0 });
        let mask = u32::from_ne_bytes(mask);
        for (to, from) in to.as_chunks_mut::<LANES>().0.iter_mut().zip(from.as_chunks::<LANES>().0) {
            *to = (u32::from_ne_bytes(*to) & !mask | u32::from_ne_bytes(*from) & mask).to_ne_bytes();
        }
    }
}
