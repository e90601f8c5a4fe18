//! Q4 with AVX-512 VNNI: one instruction multiplies sixty-four pairs of bytes.
//!
//! Activations become 24-bit integers. Each block of 32 activations has its own scale, chosen so that the largest
//! magnitude uses all bits; the rounding error is as small as that of f32. An integer is split into three signed bytes
//! (limbs). Each limb is multiplied with the table entries in exact integer arithmetic. All other arithmetic is f32.
//!
//! VNNI multiplies unsigned by signed bytes. Table entries are offset by 128 to be unsigned, and sums start at −128
//! times the sum of the activations to compensate.

use std::arch::x86_64::*;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use half::bf16;

use super::super::{Isa, Product};
use super::{PREFETCH_DISTANCE, Q4, Q4_BLOCK, Q4_PANEL, Q4_TABLE, Q4_TILE, Tiles, expand_with, write};
use crate::shared::with_scratch;
use crate::vector::avx512::F32x16;

/// Bytes per activation.
const LIMBS: usize = 3;

/// The largest magnitude of an integer activation: three signed bytes, less some room for rounding.
const LARGEST: f32 = 8_355_000.0;

/// Number of panels that are processed together.
const STREAMS: usize = 2;

/// Lower limit for the largest magnitude of a block. Without it, the reciprocal of a smaller magnitude could overflow.
/// Blocks of smaller values lose precision.
const SMALLEST: f32 = 1e-30;

/// One block of one row of activations: `x = (limb₀ + 256 limb₁ + 65536 limb₂) · scale`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Block {
    limbs: [[i8; Q4_BLOCK]; LIMBS],
    /// For each limb, −128 times its sum over the block: the initial value of the sums.
    starts: [i32; LIMBS],
    scale: f32,
}

/// Size of a [`Block`] in scratch memory, in f32 values.
const BLOCK_VALUES: usize = size_of::<Block>() / size_of::<f32>();

/// Computes the product for at most [`super::super::MAX_GEMV_ROWS`] rows of activations.
pub(super) fn product(product: &Product<'_>, weight: &Q4<'_>) {
    assert!(matches!(product.isa, Isa::Avx512 | Isa::Amx), "CPU support was not checked");
    let blocks = product.d_in.div_ceil(Q4_BLOCK);
    let n_filled = product.n_rows.next_power_of_two();
    with_scratch(blocks * n_filled * BLOCK_VALUES, |scratch| {
        let packed: &mut [Block] = bytemuck::cast_slice_mut(scratch);
        // SAFETY: the assertion above and `Product::checked` guarantee CPU support.
        unsafe { pack(product, n_filled, packed) };
        let packed = &*packed;
        product.split(weight.bytes(), STREAMS * Q4_PANEL, |range| {
            // SAFETY: CPU support as above, and tasks write disjoint ranges.
            unsafe {
                match n_filled {
                    1 => thin::<1>(weight, range, packed, product),
                    2 => thin::<2>(weight, range, packed, product),
                    4 => thin::<4>(weight, range, packed, product),
                    8 => thin::<8>(weight, range, packed, product),
                    n_rows => unreachable!("{n_rows} rows should have been padded to 1, 2, 4 or 8"),
                }
            }
        });
    });
}

/// Packs the activations as `[blocks, n_filled]`.
///
/// # Safety
/// The CPU supports the enabled target features.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn pack(product: &Product<'_>, n_filled: usize, packed: &mut [Block]) {
    for (index, packed) in packed.iter_mut().enumerate() {
        let (block, n) = (index / n_filled, index % n_filled);
        let mut values = [0f32; Q4_BLOCK];
        if n < product.n_rows {
            let columns = block * Q4_BLOCK..product.d_in.min((block + 1) * Q4_BLOCK);
            values[..columns.len()].copy_from_slice(&product.x[n * product.d_in..][columns]);
        }
        *packed = pack_block(&values);
    }
}

/// Rounds 32 activations. If one of them is NaN or infinite, the scale becomes NaN, and so do all outputs of the row.
#[inline]
fn pack_block(values: &[f32; Q4_BLOCK]) -> Block {
    let (mut largest, mut check) = (0f32, 0f32);
    for value in values {
        largest = largest.max(value.abs());
        check += value * 0.0; // NaN if the value is not finite
    }
    let largest = largest.max(SMALLEST);
    let reciprocal = LARGEST / largest;
    let mut limbs = [[0i8; Q4_BLOCK]; LIMBS];
    let mut sums = [0i32; LIMBS];
    for (column, value) in values.iter().enumerate() {
        let integer = (value * reciprocal).round_ties_even() as i32;
        let low = integer as i8;
        let rest = (integer - i32::from(low)) >> 8;
        let middle = rest as i8;
        let high = ((rest - i32::from(middle)) >> 8) as i8;
        for (limb, digit) in [low, middle, high].into_iter().enumerate() {
            limbs[limb][column] = digit;
            sums[limb] += i32::from(digit);
        }
    }
    Block { limbs, starts: sums.map(|sum| -128 * sum), scale: largest / LARGEST + check }
}

/// Computes the output features `range`, which starts at a panel boundary, for `N` rows of activations. [`STREAMS`]
/// panels that are far apart are processed together, because memory delivers several streams faster than one.
///
/// # Safety
/// The CPU supports the enabled target features, and no other task writes these features.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn thin<const N: usize>(weight: &Q4<'_>, range: Range<usize>, packed: &[Block], product: &Product<'_>) {
    assert!(range.start.is_multiple_of(Q4_PANEL));
    let panels = range.start / Q4_PANEL..range.end.div_ceil(Q4_PANEL);
    let apart = panels.len() / STREAMS;
    // SAFETY: guaranteed by the caller.
    unsafe {
        for first in 0..apart {
            let together = std::array::from_fn(|stream| panels.start + first + stream * apart);
            advance::<N, STREAMS>(weight, together, range.end, packed, product);
        }
        for panel in panels.start + STREAMS * apart..panels.end {
            advance::<N, 1>(weight, [panel], range.end, packed, product);
        }
    }
}

/// Computes and writes the output features of `P` panels, up to `end`.
///
/// # Safety
/// As [`thin`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn advance<const N: usize, const P: usize>(
    weight: &Q4<'_>,
    panels: [usize; P],
    end: usize,
    packed: &[Block],
    product: &Product<'_>,
) {
    let blocks = weight.dims()[1].div_ceil(Q4_BLOCK);
    assert_eq!(packed.len(), blocks * N, "every block of the weight needs a block of activations");
    let codes = panels.map(|panel| weight.codes()[panel * blocks * Q4_TILE..][..blocks * Q4_TILE].as_ptr());
    let scales = panels.map(|panel| weight.scales()[panel * blocks * Q4_PANEL..][..blocks * Q4_PANEL].as_ptr());
    let table = Q4_TABLE.map(|entry| (i32::from(entry) + 128) as u8);
    // SAFETY: blocks are inside the panels, which are checked above, and inside the activations.
    unsafe {
        let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
        let nibble = _mm512_set1_epi8(15);
        let mut sums = [[_mm512_setzero_ps(); N]; P];
        for block in 0..blocks {
            for p in 0..P {
                let codes = codes[p].add(block * Q4_TILE);
                let mut columns = [_mm512_setzero_si512(); 8]; // four columns of sixteen rows each
                for group in 0..4 {
                    let pairs = _mm512_loadu_si512(codes.add(64 * group).cast());
                    _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(64 * group + PREFETCH_DISTANCE).cast());
                    columns[group] = _mm512_shuffle_epi8(table, _mm512_and_si512(pairs, nibble));
                    let high = _mm512_and_si512(_mm512_srli_epi16::<4>(pairs), nibble);
                    columns[group + 4] = _mm512_shuffle_epi8(table, high);
                }
                let scales = F32x16::scales(scales[p].add(block * Q4_PANEL)).0;
                for n in 0..N {
                    let x = &*packed.as_ptr().add(block * N + n);
                    let product = multiply(&columns, x);
                    let product = _mm512_mul_ps(product, _mm512_set1_ps(x.scale));
                    sums[p][n] = _mm512_fmadd_ps(product, scales, sums[p][n]);
                }
            }
        }
        for p in 0..P {
            for n in 0..product.n_rows {
                write(product, end, panels[p] * Q4_PANEL, n, F32x16(sums[p][n]));
            }
        }
    }
}

/// Computes the sums of one block for sixteen rows, before scaling.
///
/// # Safety
/// The CPU supports the enabled target features.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn multiply(columns: &[__m512i; 8], x: &Block) -> __m512 {
    // SAFETY: four columns of a limb are four bytes, and a limb has eight groups of four columns.
    unsafe {
        // Each limb has two independent chains of additions, which are interleaved: the instruction takes five cycles,
        // and two can start in each cycle.
        let mut chains = [[_mm512_setzero_si512(); 2]; LIMBS];
        for limb in 0..LIMBS {
            chains[limb][0] = _mm512_set1_epi32(x.starts[limb]);
        }
        for group in 0..4 {
            for half in 0..2 {
                let group = 2 * group + half;
                for limb in 0..LIMBS {
                    // The four bytes are loaded as f32, so that the compiler uses a broadcasting memory operand.
                    let four = x.limbs[limb].as_ptr().add(4 * group).cast::<f32>().read_unaligned();
                    let four = _mm512_castps_si512(_mm512_set1_ps(four));
                    chains[limb][half] = _mm512_dpbusd_epi32(chains[limb][half], columns[group], four);
                }
            }
        }
        let mut sums = [_mm512_setzero_ps(); LIMBS];
        for limb in 0..LIMBS {
            // The sums are at most 2²⁰, so the conversion to f32 is exact.
            sums[limb] = _mm512_cvtepi32_ps(_mm512_add_epi32(chains[limb][0], chains[limb][1]));
        }
        let low = _mm512_fmadd_ps(sums[1], _mm512_set1_ps(256.0), sums[0]);
        _mm512_fmadd_ps(sums[2], _mm512_set1_ps(65536.0), low)
    }
}

/// [`super::expand`] compiled for AVX-512.
///
/// # Safety
/// The CPU supports the enabled target features.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn expand(weight: &Q4<'_>, range: Range<usize>, out: &mut [f32]) {
    // SAFETY: guaranteed by the caller.
    unsafe { expand_with::<F32x16>(weight, range, out) }
}

impl Tiles for F32x16 {
    type Columns = __m512i;

    #[inline(always)]
    unsafe fn look_up(codes: *const u8, table: &[i8; 16]) -> [__m512i; 2] {
        // SAFETY: the caller guarantees CPU support and 64 bytes.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            let codes = _mm512_loadu_si512(codes.cast());
            let low = _mm512_and_si512(codes, _mm512_set1_epi8(15));
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(codes), _mm512_set1_epi8(15));
            [_mm512_shuffle_epi8(table, low), _mm512_shuffle_epi8(table, high)]
        }
    }
    #[inline(always)]
    unsafe fn column(columns: __m512i, index: usize) -> Self {
        // SAFETY: the caller guarantees CPU support.
        unsafe {
            let highest = match index {
                0 => _mm512_slli_epi32::<24>(columns),
                1 => _mm512_slli_epi32::<16>(columns),
                2 => _mm512_slli_epi32::<8>(columns),
                _ => columns,
            };
            Self(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(highest)))
        }
    }
    #[inline(always)]
    unsafe fn scales(scales: *const bf16) -> Self {
        // SAFETY: the caller guarantees CPU support and sixteen values.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(scales.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        }
    }
}
