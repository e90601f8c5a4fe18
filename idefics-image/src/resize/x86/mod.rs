//! Vector loops for x86-64, chosen at run time.

mod avx2;
mod vnni;

use std::arch::x86_64::{__m128i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch};
use std::ops::Range;

use super::ROWS;
use super::taps::Taps;
use crate::isa::Isa;

/// The fastest horizontal loop that the CPU supports, with its weights.
#[derive(Debug)]
pub(super) enum Columns {
    Avx2(avx2::Columns),
    Vnni(vnni::Columns),
}

impl Columns {
    /// Returns `None` if the CPU supports no vector loop that is exact with these weights, or if `IDEFICS_ISA` allows
    /// none.
    pub(super) fn new(taps: &Taps) -> Option<Self> {
        let vnni = || vnni::Columns::new(taps).filter(|_| Isa::Avx512Vnni.is_allowed()).map(Self::Vnni);
        vnni().or_else(|| avx2::Columns::new(taps).filter(|_| Isa::Avx2.is_allowed()).map(Self::Avx2))
    }

    /// Returns all loops that the CPU supports, for tests.
    #[cfg(test)]
    pub(super) fn every(taps: &Taps) -> Vec<Self> {
        let (avx2, vnni) = (avx2::Columns::new(taps), vnni::Columns::new(taps));
        avx2.map(Self::Avx2).into_iter().chain(vnni.map(Self::Vnni)).collect()
    }

    /// Resizes rows along x, and writes them to an interleaved block. Each input row is `[width, 3]`. Rows that are not
    /// in `used` may be skipped.
    pub(super) fn horizontal(&self, rows: [&[u8]; ROWS], used: Range<usize>, block: &mut [u8]) {
        match self {
            Self::Avx2(columns) => columns.horizontal(rows, block),
            Self::Vnni(columns) => columns.horizontal(rows, used, block),
        }
    }
}

/// The fastest vertical loop that the CPU supports, with its weights.
#[derive(Debug)]
pub(super) enum Rows {
    Avx2(avx2::Rows),
    Vnni(vnni::Rows),
}

impl Rows {
    /// Returns `None` if the CPU supports no vector loop for these weights and rows of at least `row_bytes` bytes, or
    /// if `IDEFICS_ISA` allows none.
    pub(super) fn new(taps: &Taps, row_bytes: usize) -> Option<Self> {
        let vnni = || vnni::Rows::new(taps, row_bytes).filter(|_| Isa::Avx512Vnni.is_allowed()).map(Self::Vnni);
        vnni().or_else(|| avx2::Rows::new(taps, row_bytes).filter(|_| Isa::Avx2.is_allowed()).map(Self::Avx2))
    }

    /// Returns all loops that the CPU supports, for tests.
    #[cfg(test)]
    pub(super) fn every(taps: &Taps, row_bytes: usize) -> Vec<Self> {
        let (avx2, vnni) = (avx2::Rows::new(taps, row_bytes), vnni::Rows::new(taps, row_bytes));
        avx2.map(Self::Avx2).into_iter().chain(vnni.map(Self::Vnni)).collect()
    }

    /// Computes the output row at `position`. `groups` are the interleaved input rows.
    pub(super) fn vertical(&self, groups: &[&[u8]], position: usize, out: &mut [u8]) {
        match self {
            Self::Avx2(rows) => rows.vertical(groups, position, out),
            Self::Vnni(rows) => rows.vertical(groups, position, out),
        }
    }
}

/// The weights of a pass: for each output, one `T` per four inputs.
#[derive(Debug)]
struct Groups<T> {
    /// For each output, the index in `weights` at which its weights end.
    ends: Vec<usize>,
    weights: Vec<T>,
}

impl<T> Groups<T> {
    /// Converts the weights of each output with `split`, four at a time. The first four inputs of an output begin at a
    /// multiple of `align`. Returns `None` if `split` returns `None` at least once.
    fn of(taps: &Taps, align: usize, split: impl Fn([i32; QUAD]) -> Option<T>) -> Option<Self> {
        let (mut ends, mut weights) = (Vec::with_capacity(taps.len()), Vec::new());
        for output in 0..taps.len() {
            for group in taps.groups(output, align).1 {
                weights.push(split(group)?);
            }
            ends.push(weights.len());
        }
        Some(Self { ends, weights })
    }

    #[inline]
    fn at(&self, position: usize) -> &[T] {
        let begin = if position == 0 { 0 } else { self.ends[position - 1] };
        &self.weights[begin..self.ends[position]]
    }
}

/// Number of neighbouring pixels of one row in a vector.
const QUAD: usize = 4;

/// Number of neighbouring outputs in a group of a [`Strip`].
const GROUP: usize = 4;

/// Groups of outputs whose inputs are reordered together for a vector loop. A strip is long enough that few inputs are
/// reordered twice, and short enough that the inputs stay in the L1 cache.
#[derive(Debug)]
struct Strip {
    groups: Range<usize>,
    /// First input, a multiple of [`QUAD`].
    start: usize,
    /// Number of chunks of [`CHUNK`] bytes per row.
    chunks: usize,
}

impl Strip {
    /// Maximum number of inputs of a strip, unless a single group reads more.
    const INPUTS: usize = 256;

    fn of(taps: &Taps) -> Vec<Self> {
        let mut strips: Vec<Self> = Vec::new();
        for group in 0..taps.len().div_ceil(GROUP) {
            let outputs = GROUP * group..taps.len().min(GROUP * (group + 1));
            let start = taps.inputs(outputs.start).start / QUAD * QUAD;
            let end = outputs.map(|output| taps.inputs(output).end).max().unwrap_or(start);
            let chunks = |start: usize| (3 * (end - start)).div_ceil(CHUNK);
            match strips.last_mut() {
                Some(strip) if end <= strip.start + Self::INPUTS => {
                    strip.groups.end = group + 1;
                    strip.chunks = strip.chunks.max(chunks(strip.start));
                }
                _ => strips.push(Self { groups: group..group + 1, start, chunks: chunks(start) }),
            }
        }
        strips
    }

    /// Returns the range of outputs of a strip. `count` is the total number of outputs of the row.
    fn outputs(&self, count: usize) -> Range<usize> {
        GROUP * self.groups.start..count.min(GROUP * self.groups.end)
    }
}

/// Number of bytes of a row that are reordered together: four loads of [`QUAD`] pixels.
const CHUNK: usize = 4 * 3 * QUAD;

/// Offsets of the loads in a chunk, in bytes. A load has 16 bytes, but its four pixels have only 12. Therefore, the
/// last load begins [`LAST_SHIFT`] bytes before its pixels, so that it ends where the chunk ends.
const LOADS: [usize; 4] = [0, 12, 24, 32];
const LAST_SHIFT: i8 = 4;

/// Returns the chunk of a row that begins at pixel `x`. If the row ends within the chunk, the chunk is copied to
/// `spare` and padded with zeros.
#[inline(always)]
fn chunk<'a>(row: &'a [u8], x: usize, spare: &'a mut [u8; CHUNK]) -> &'a [u8; CHUNK] {
    let rest = row.get(3 * x..).unwrap_or_default();
    rest.first_chunk().unwrap_or_else(|| {
        *spare = [0; CHUNK];
        spare[..rest.len()].copy_from_slice(rest);
        spare
    })
}

/// Prefetches bytes of a row that are one strip beyond offset `at`.
#[inline(always)]
fn prefetch(row: &[u8], at: usize) {
    // SAFETY: a prefetch is only a hint. It is allowed for any address, even an invalid one.
    #[allow(unsafe_code, reason = "a prefetch takes a pointer")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(row.as_ptr().wrapping_add(at + 3 * Strip::INPUTS).cast());
    }
}

/// Loads 16 bytes from offset `at` on.
#[inline(always)]
fn load(bytes: &[u8], at: usize) -> __m128i {
    let bytes = &bytes[at..at + 16];
    // SAFETY: the slice `bytes` has exactly 16 bytes, and the load may be unaligned.
    #[allow(unsafe_code, reason = "a vector load takes a pointer")]
    unsafe {
        _mm_loadu_si128(bytes.as_ptr().cast())
    }
}
