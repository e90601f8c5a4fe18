//! GGUF blocks on AVX2.
//!
//! A row is cut into parts of 32 columns. The codes of a part become 32 signed bytes in a register. Byte `j` of each
//! 32-bit lane is shifted to the top of the lane and converted to f32. Vector `j` then holds the codes of the columns
//! `4 lane + j`, times 2²⁴. The activations are copied once into the same order, times 2⁻²⁴, which is exact.

use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

use super::super::{MAX_GEMV_ROWS, Product};
use crate::Isa;
use crate::formats::{Blocks, GgufType};
use crate::shared::with_scratch;

#[path = "blocks_avx2_formats.rs"]
pub(super) mod formats;
use formats::{Format, PART, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
#[path = "blocks_integers.rs"]
pub(super) mod integers;
#[path = "blocks_packed.rs"]
pub(super) mod packed;

/// Number of weight rows that are processed together if there is one row of activations.
const ROWS: usize = 4;

/// The number of weight rows per task is a multiple of this.
const UNIT: usize = ROWS;

/// Number of activation rows that are packed together.
const PACKED_ROWS: usize = 128;

/// Prefetch distance in each row, in bytes.
const PREFETCH_DISTANCE: usize = 1024;

/// Evaluates an expression with `$format` as the marker type of a GGUF type.
macro_rules! by_kind {
    ($kind:expr, $format:ident => $body:expr) => {
        match $kind {
            GgufType::Q4_0 => {
                type $format = Q4_0;
                $body
            }
            GgufType::Q4_1 => {
                type $format = Q4_1;
                $body
            }
            GgufType::Q5_0 => {
                type $format = Q5_0;
                $body
            }
            GgufType::Q5_1 => {
                type $format = Q5_1;
                $body
            }
            GgufType::Q8_0 => {
                type $format = Q8_0;
                $body
            }
            GgufType::Q4_K => {
                type $format = Q4K;
                $body
            }
            GgufType::Q5_K => {
                type $format = Q5K;
                $body
            }
            GgufType::Q6_K => {
                type $format = Q6K;
                $body
            }
            other => unreachable!("{} has no AVX2 loops", other.name()),
        }
    };
}
pub(super) use by_kind;

/// Whether this module has loops for a type.
pub(super) fn supports(kind: GgufType) -> bool {
    use GgufType as T;
    matches!(kind, T::Q4_0 | T::Q4_1 | T::Q5_0 | T::Q5_1 | T::Q8_0 | T::Q4_K | T::Q5_K | T::Q6_K)
}

/// Panics unless the instruction set includes AVX2. [`Product::checked`] has checked that the CPU supports it.
fn assert_checked(isa: Isa) {
    assert!(matches!(isa, Isa::Avx2 | Isa::Avx512 | Isa::Amx), "CPU support was not checked");
}

/// Activations in the order of the vectors.
#[derive(Clone, Copy)]
struct Packed<'a> {
    /// `[n_rows, stride]`; in each part, position `8 j + lane` has column `4 lane + j`, times 2⁻²⁴.
    values: &'a [f32],
    stride: usize,
    /// Sums of the activations of each part, `[n_rows, d_in / 32]`.
    sums: &'a [f32],
    /// Which rows of the product these are.
    rows: &'a Range<usize>,
}

/// Computes the product for [`PACKED_ROWS`] rows of activations at a time.
pub(super) fn product(product: &Product<'_>, weight: &Blocks<'_>) {
    assert_checked(product.isa);
    for first in (0..product.n_rows).step_by(PACKED_ROWS) {
        packed_product(product, weight, first..product.n_rows.min(first + PACKED_ROWS));
    }
}

/// Computes the product for a range of rows of activations, up to [`MAX_GEMV_ROWS`] at a time. A task is small enough that
/// its weights stay in the cache from one pass to the next.
fn packed_product(product: &Product<'_>, weight: &Blocks<'_>, all: Range<usize>) {
    let parts = product.d_in / PART;
    let passes: Vec<Range<usize>> =
        all.clone().step_by(MAX_GEMV_ROWS).map(|first| first..all.end.min(first + MAX_GEMV_ROWS)).collect();
    // Padding of 16 values: rows at a distance of a power of two would evict each other from the cache.
    let stride = product.d_in + if all.len() == 1 { 0 } else { 16 };
    let n_filled = all.len().min(MAX_GEMV_ROWS).next_power_of_two();
    let pass_len = n_filled * (stride + parts);
    with_scratch(passes.len() * pass_len, |scratch| {
        let fill = |(rows, scratch): (&Range<usize>, &mut [f32])| {
            let (values, sums) = scratch.split_at_mut(n_filled * stride);
            values[rows.len() * stride..].fill(0.0);
            sums[rows.len() * parts..].fill(0.0);
            for (n, row) in rows.clone().enumerate() {
                let x = &product.x[row * product.d_in..(row + 1) * product.d_in];
                pack(x, &mut values[n * stride..n * stride + product.d_in], &mut sums[n * parts..(n + 1) * parts]);
            }
        };
        match passes.len() {
            1 => fill((&passes[0], scratch)),
            _ => passes.par_iter().zip(scratch.par_chunks_exact_mut(pass_len)).for_each(fill),
        }
        product.split_weights(weight.dims(), UNIT, |range| {
            for (rows, scratch) in passes.iter().zip(scratch.chunks_exact(pass_len)) {
                let (values, sums) = scratch.split_at(n_filled * stride);
                let packed = Packed { values, stride, sums, rows };
                // SAFETY: the caller and `Product::checked` guarantee CPU support, and tasks write disjoint ranges.
                unsafe { by_kind!(weight.kind(), F => thin::<F>(weight, range.clone(), packed, product)) };
            }
        });
    });
}

/// Copies a row of activations into the order of the vectors, and sums the parts.
fn pack(x: &[f32], values: &mut [f32], sums: &mut [f32]) {
    const SCALE: f32 = 1.0 / (1 << 24) as f32;
    let (x, _) = x.as_chunks::<PART>();
    let (values, _) = values.as_chunks_mut::<PART>();
    for ((x, values), sum) in x.iter().zip(values).zip(sums) {
        let mut partial = [0f32; 8];
        for (column, x) in x.iter().enumerate() {
            values[column % 4 * 8 + column / 4] = x * SCALE;
            partial[column % 8] += x;
        }
        *sum = partial.iter().sum();
    }
}

/// Computes the output features `range`.
///
/// # Safety
/// The CPU supports the enabled target features, and no other task writes these features.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn thin<F: Format>(weight: &Blocks<'_>, range: Range<usize>, packed: Packed<'_>, product: &Product<'_>) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        match packed.rows.len().next_power_of_two() {
            1 => rows::<F, ROWS, 1>(weight, range, packed, product),
            2 => rows::<F, 2, 2>(weight, range, packed, product),
            4 => rows::<F, 1, 4>(weight, range, packed, product),
            8 => rows::<F, 1, 8>(weight, range, packed, product),
            n_rows => unreachable!("{n_rows} rows should have been padded to 1, 2, 4 or 8"),
        }
    }
}

/// [`thin`] with `R` weight rows and `N` activation rows at a time. The weight rows of a group are far apart, because
/// memory delivers several streams faster than one.
#[inline(always)]
unsafe fn rows<F: Format, const R: usize, const N: usize>(
    weight: &Blocks<'_>,
    range: Range<usize>,
    packed: Packed<'_>,
    product: &Product<'_>,
) {
    let (row_bytes, parts) = (weight.row_bytes(), product.d_in / PART);
    let bytes = weight.as_bytes();
    assert_eq!(row_bytes * F::PARTS, parts * F::BYTES, "a row must be whole blocks");
    assert!(packed.values.len() >= N * packed.stride && packed.stride >= product.d_in);
    assert!(packed.sums.len() >= N * parts);
    let n_groups = range.len().div_ceil(R);
    for group in 0..n_groups {
        // Rows past the end of the range are replaced by its last row, and their sums are not written.
        let features: [usize; R] = std::array::from_fn(|r| range.start + group + r * n_groups);
        let starts: [*const u8; R] = features.map(|feature| {
            let row = feature.min(range.end - 1);
            bytes[row * row_bytes..(row + 1) * row_bytes].as_ptr()
        });
        // SAFETY: the blocks are inside their rows, and the parts are inside the activations; the lengths of both are
        // checked above.
        unsafe {
            let mut state = State { sums: [[_mm256_setzero_ps(); N]; R], offsets: [[0f32; N]; R] };
            for block in 0..row_bytes / F::BYTES {
                let mut blocks = [starts[0]; R];
                let mut opened = [F::open(starts[0].add(block * F::BYTES)); R];
                for r in 0..R {
                    blocks[r] = starts[r].add(block * F::BYTES);
                    opened[r] = F::open(blocks[r]);
                    for line in 0..F::BYTES.div_ceil(64) {
                        _mm_prefetch::<_MM_HINT_T0>(blocks[r].wrapping_add(PREFETCH_DISTANCE + 64 * line).cast());
                    }
                }
                let part = block * F::PARTS;
                state.add::<F, 0>(&blocks, &opened, packed, part, parts);
                if F::PARTS == 8 {
                    state.add::<F, 1>(&blocks, &opened, packed, part, parts);
                    state.add::<F, 2>(&blocks, &opened, packed, part, parts);
                    state.add::<F, 3>(&blocks, &opened, packed, part, parts);
                    state.add::<F, 4>(&blocks, &opened, packed, part, parts);
                    state.add::<F, 5>(&blocks, &opened, packed, part, parts);
                    state.add::<F, 6>(&blocks, &opened, packed, part, parts);
                    state.add::<F, 7>(&blocks, &opened, packed, part, parts);
                }
            }
            for r in 0..R {
                if features[r] >= range.end {
                    continue;
                }
                for (n, row) in packed.rows.clone().enumerate() {
                    let value = sum(state.sums[r][n]) + state.offsets[r][n] + product.bias_at(features[r]);
                    product.out.write(row * product.d_out + features[r], value);
                }
            }
        }
    }
}

/// Sums of the products of `R` weight rows with `N` rows of activations.
struct State<const R: usize, const N: usize> {
    sums: [[__m256; N]; R],
    /// Products of minima and sums of activations.
    offsets: [[f32; N]; R],
}

impl<const R: usize, const N: usize> State<R, N> {
    /// Adds the products of part `P` of a block. The block starts at part `part` of its row, which has `parts` parts,
    /// so part `P` has the columns `32 (part + P) ..`.
    ///
    /// # Safety
    /// The caller is compiled for AVX2 and FMA; blocks and activations are valid for the part.
    #[inline(always)]
    unsafe fn add<F: Format, const P: usize>(
        &mut self,
        blocks: &[*const u8; R],
        opened: &[F::Open; R],
        packed: Packed<'_>,
        part: usize,
        parts: usize,
    ) {
        debug_assert!((N - 1) * packed.stride + (part + P + 1) * PART <= packed.values.len());
        // SAFETY: guaranteed by the caller.
        unsafe {
            let x = packed.values.as_ptr().add((part + P) * PART);
            let offsets = packed.sums.as_ptr().add(part + P);
            for r in 0..R {
                let weights = vectors(F::codes::<P>(blocks[r]));
                let scale = F::scale::<P>(&opened[r]);
                // With one row of activations, it is cheaper to scale the sum than each vector.
                if N == 1 {
                    let mut sum = _mm256_mul_ps(weights[0], _mm256_loadu_ps(x));
                    for j in 1..4 {
                        sum = _mm256_fmadd_ps(weights[j], _mm256_loadu_ps(x.add(8 * j)), sum);
                    }
                    self.sums[r][0] = _mm256_fmadd_ps(sum, scale, self.sums[r][0]);
                } else {
                    for j in 0..4 {
                        let weights = _mm256_mul_ps(weights[j], scale);
                        for n in 0..N {
                            let x = _mm256_loadu_ps(x.add(n * packed.stride + 8 * j));
                            self.sums[r][n] = _mm256_fmadd_ps(weights, x, self.sums[r][n]);
                        }
                    }
                }
                if F::HAS_MINIMA {
                    let minimum = F::minimum::<P>(&opened[r]);
                    for n in 0..N {
                        self.offsets[r][n] = minimum.mul_add(*offsets.add(n * parts), self.offsets[r][n]);
                    }
                }
            }
        }
    }
}

/// Converts signed bytes to f32, times 2²⁴. Vector `j` has byte `j` of each 32-bit lane.
///
/// # Safety
/// The caller is compiled for AVX2.
#[inline(always)]
unsafe fn vectors(codes: __m256i) -> [__m256; 4] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let top = _mm256_set1_epi32(0xff00_0000_u32.cast_signed());
        [
            _mm256_cvtepi32_ps(_mm256_slli_epi32::<24>(codes)),
            _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_slli_epi32::<16>(codes), top)),
            _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_slli_epi32::<8>(codes), top)),
            _mm256_cvtepi32_ps(_mm256_and_si256(codes, top)),
        ]
    }
}

/// Sum of all lanes, in a fixed order.
///
/// # Safety
/// The caller is compiled for AVX2.
#[inline(always)]
unsafe fn sum(lanes: __m256) -> f32 {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// Expands rows `range` to f32, `[range.len(), d_in]`.
pub(super) fn expand(isa: Isa, weight: &Blocks<'_>, range: Range<usize>, out: &mut [f32]) {
    assert_checked(isa);
    assert_eq!(out.len(), range.len() * weight.dims()[1], "`out` must hold one value per weight");
    let row_bytes = weight.row_bytes();
    let blocks = &weight.as_bytes()[range.start * row_bytes..range.end * row_bytes];
    // SAFETY: the caller has checked CPU support.
    unsafe { by_kind!(weight.kind(), F => expand_blocks::<F>(blocks, out)) };
}

/// Expands whole blocks to f32.
///
/// # Safety
/// The CPU supports the enabled target features.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn expand_blocks<F: Format>(blocks: &[u8], out: &mut [f32]) {
    for (block, out) in blocks.chunks_exact(F::BYTES).zip(out.chunks_exact_mut(F::PARTS * PART)) {
        let (block, out) = (block.as_ptr(), out.as_mut_ptr());
        // SAFETY: the block has all its bytes, and the output has room for its values.
        unsafe {
            let opened = F::open(block);
            expand_part::<F, 0>(block, &opened, out);
            if F::PARTS == 8 {
                expand_part::<F, 1>(block, &opened, out);
                expand_part::<F, 2>(block, &opened, out);
                expand_part::<F, 3>(block, &opened, out);
                expand_part::<F, 4>(block, &opened, out);
                expand_part::<F, 5>(block, &opened, out);
                expand_part::<F, 6>(block, &opened, out);
                expand_part::<F, 7>(block, &opened, out);
            }
        }
    }
}

/// Writes part `P` of a block in column order. Products and sums are rounded as in [`GgufType::dequantize`].
///
/// # Safety
/// The caller is compiled for AVX2; `block` is a whole block, and `out` has room for it.
#[inline(always)]
unsafe fn expand_part<F: Format, const P: usize>(block: *const u8, opened: &F::Open, out: *mut f32) {
    let mut codes = [0i8; PART];
    // SAFETY: guaranteed by the caller; lanes 0 to 3 of the scale belong to the first 16 columns.
    unsafe {
        _mm256_storeu_si256(codes.as_mut_ptr().cast(), F::codes::<P>(block));
        let scale = F::scale::<P>(opened);
        let halves = [_mm256_permute2f128_ps::<0x00>(scale, scale), _mm256_permute2f128_ps::<0x11>(scale, scale)];
        for quarter in 0..4 {
            let codes = _mm_loadl_epi64(codes.as_ptr().add(8 * quarter).cast());
            let codes = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
            let mut values = _mm256_mul_ps(codes, halves[quarter / 2]);
            if F::HAS_MINIMA {
                values = _mm256_add_ps(values, _mm256_set1_ps(F::minimum::<P>(opened)));
            }
            _mm256_storeu_ps(out.add(P * PART + 8 * quarter), values);
        }
    }
}
