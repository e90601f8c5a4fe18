//! Vector loops of x86-64, chosen at run time.

mod avx2;
mod vnni;

use std::arch::x86_64::{__m128i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_storeu_si128};
use std::ops::Range;

pub(super) use avx2::Rows;

use super::ROWS;
use super::taps::Taps;

/// The horizontal loop of this machine, with its weights.
#[derive(Debug)]
pub(super) enum Columns {
    Avx2(avx2::Columns),
    Vnni(vnni::Columns),
}

impl Columns {
    /// `None` if this machine has no vector loop that is exact with these weights.
    pub(super) fn new(taps: &Taps) -> Option<Self> {
        vnni::Columns::new(taps).map(Self::Vnni).or_else(|| avx2::Columns::new(taps).map(Self::Avx2))
    }

    /// Every loop that this machine has, for tests.
    #[cfg(test)]
    pub(super) fn every(taps: &Taps) -> Vec<Self> {
        let (avx2, vnni) = (avx2::Columns::new(taps), vnni::Columns::new(taps));
        avx2.map(Self::Avx2).into_iter().chain(vnni.map(Self::Vnni)).collect()
    }

    /// Four rows along x: `[width, 3]` each to `[outputs, 3]` each. `outs` may be fewer, for the first rows.
    pub(super) fn horizontal(&self, rows: [&[u8]; ROWS], outs: &mut [&mut [u8]]) {
        match self {
            Self::Avx2(columns) => columns.horizontal(rows, outs),
            Self::Vnni(columns) => columns.horizontal(rows, outs),
        }
    }
}

/// Pixels of a row that lie together in a vector.
const QUAD: usize = 4;

/// Outputs that are written together.
const GROUP: usize = 4;

/// Groups of outputs whose inputs are brought into the order of a vector loop together: enough that few are brought
/// twice, few enough to stay in a core's first cache.
#[derive(Debug)]
struct Strip {
    groups: Range<usize>,
    /// First input, a multiple of [`QUAD`].
    start: usize,
    /// Number of chunks of [`CHUNK`] bytes of a row.
    chunks: usize,
}

impl Strip {
    /// Inputs of a strip, unless one group reads more.
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
}

/// Bytes of a row that are brought into order together: four loads of [`QUAD`] pixels.
const CHUNK: usize = 4 * 3 * QUAD;

/// Bytes at which the loads of a chunk begin. A load is longer than its pixels, so the last one begins [`LAST_SHIFT`]
/// bytes before them, and ends with the chunk.
const LOADS: [usize; 4] = [0, 12, 24, 32];
const LAST_SHIFT: i8 = 4;

/// The chunk of a row that begins at pixel `x`; `spare` holds it, with zeros, where the row ends within.
#[inline(always)]
fn chunk<'a>(row: &'a [u8], x: usize, spare: &'a mut [u8; CHUNK]) -> &'a [u8; CHUNK] {
    let rest = row.get(3 * x..).unwrap_or_default();
    // The next strip comes from memory while this one is worked on.
    // SAFETY: a prefetch reads nothing, wherever it points to.
    #[allow(unsafe_code)]
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(rest.as_ptr().wrapping_add(3 * Strip::INPUTS).cast());
    }
    rest.first_chunk().unwrap_or_else(|| {
        *spare = [0; CHUNK];
        spare[..rest.len()].copy_from_slice(rest);
        spare
    })
}

/// 16 bytes of a chunk.
#[inline(always)]
fn load(chunk: &[u8; CHUNK], at: usize) -> __m128i {
    let bytes = &chunk[at..at + 16];
    // SAFETY: 16 bytes are there.
    #[allow(unsafe_code)]
    unsafe {
        _mm_loadu_si128(bytes.as_ptr().cast())
    }
}

/// Writes a group of pixels, the first 12 of 16 bytes. The others may be written too, if they belong to the next group,
/// which comes later.
#[inline(always)]
fn put_group(row: &mut [u8], group: usize, pixels: __m128i) {
    let rest = &mut row[3 * GROUP * group..];
    let mut bytes = [0; 16];
    let target: &mut [u8; 16] = match rest.first_chunk_mut() {
        Some(target) => target,
        None => &mut bytes,
    };
    // SAFETY: 16 bytes are there.
    #[allow(unsafe_code)]
    unsafe {
        _mm_storeu_si128(target.as_mut_ptr().cast(), pixels);
    }
    if rest.len() < 16 {
        let count = rest.len().min(3 * GROUP);
        rest[..count].copy_from_slice(&bytes[..count]);
    }
}
