//! Vector loops for x86-64, chosen at run time.

mod avx2;
mod vnni;

use std::arch::x86_64::{__m128i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_storeu_si128};
use std::ops::Range;

pub(super) use avx2::Rows;

use super::ROWS;
use super::taps::Taps;

/// The fastest horizontal loop that the CPU supports, with its weights.
#[derive(Debug)]
pub(super) enum Columns {
    Avx2(avx2::Columns),
    Vnni(vnni::Columns),
}

impl Columns {
    /// `None` if the CPU supports no vector loop that is exact with these weights.
    pub(super) fn new(taps: &Taps) -> Option<Self> {
        vnni::Columns::new(taps).map(Self::Vnni).or_else(|| avx2::Columns::new(taps).map(Self::Avx2))
    }

    /// All loops that the CPU supports, for tests.
    #[cfg(test)]
    pub(super) fn every(taps: &Taps) -> Vec<Self> {
        let (avx2, vnni) = (avx2::Columns::new(taps), vnni::Columns::new(taps));
        avx2.map(Self::Avx2).into_iter().chain(vnni.map(Self::Vnni)).collect()
    }

    /// Resizes four rows horizontally, each from `[width, 3]` to `[outputs, 3]`. With fewer `outs`, only the first rows
    /// are written.
    pub(super) fn horizontal(&self, rows: [&[u8]; ROWS], outs: &mut [&mut [u8]]) {
        match self {
            Self::Avx2(columns) => columns.horizontal(rows, outs),
            Self::Vnni(columns) => columns.horizontal(rows, outs),
        }
    }
}

/// Number of consecutive pixels of a row in a vector.
const QUAD: usize = 4;

/// Number of outputs that are written together.
const GROUP: usize = 4;

/// Groups of outputs whose inputs are reordered together for a vector loop: enough groups that few inputs are reordered
/// twice, but few enough that they stay in the L1 cache.
#[derive(Debug)]
struct Strip {
    groups: Range<usize>,
    /// First input, a multiple of [`QUAD`].
    start: usize,
    /// Number of chunks of [`CHUNK`] bytes per row.
    chunks: usize,
}

impl Strip {
    /// Number of inputs of a strip, unless a single group reads more.
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

/// Number of bytes of a row that are reordered together: four loads of [`QUAD`] pixels.
const CHUNK: usize = 4 * 3 * QUAD;

/// Offsets of the loads in a chunk, in bytes. A load is longer than its pixels, so the last one begins [`LAST_SHIFT`]
/// bytes before its pixels, and ends with the chunk.
const LOADS: [usize; 4] = [0, 12, 24, 32];
const LAST_SHIFT: i8 = 4;

/// The chunk of a row that begins at pixel `x`. If the row ends within the chunk, it is copied to `spare` and padded
/// with zeros.
#[inline(always)]
fn chunk<'a>(row: &'a [u8], x: usize, spare: &'a mut [u8; CHUNK]) -> &'a [u8; CHUNK] {
    let rest = row.get(3 * x..).unwrap_or_default();
    // Prefetch the next strip while this one is processed.
    // SAFETY: a prefetch is allowed for any address, valid or not.
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

/// Loads 16 bytes of a chunk.
#[inline(always)]
fn load(chunk: &[u8; CHUNK], at: usize) -> __m128i {
    let bytes = &chunk[at..at + 16];
    // SAFETY: the slice has 16 bytes.
    #[allow(unsafe_code)]
    unsafe {
        _mm_loadu_si128(bytes.as_ptr().cast())
    }
}

/// Writes a group of pixels: the first 12 of the 16 bytes. The other four may be written too, if the next group will
/// overwrite them.
#[inline(always)]
fn put_group(row: &mut [u8], group: usize, pixels: __m128i) {
    let rest = &mut row[3 * GROUP * group..];
    let mut bytes = [0; 16];
    let target: &mut [u8; 16] = match rest.first_chunk_mut() {
        Some(target) => target,
        None => &mut bytes,
    };
    // SAFETY: `target` has 16 bytes.
    #[allow(unsafe_code)]
    unsafe {
        _mm_storeu_si128(target.as_mut_ptr().cast(), pixels);
    }
    if rest.len() < 16 {
        let count = rest.len().min(3 * GROUP);
        rest[..count].copy_from_slice(&bytes[..count]);
    }
}
