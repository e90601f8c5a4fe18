//! The inverse cosine transform of libjpeg-turbo, bit for bit.
//!
//! This is the integer transform of Loeffler, Ligtenberg and Moschytz with 13-bit constants. Columns are transformed
//! first, and two fractional bits are kept between the passes. Dequantised coefficients, and sums of two of them, wrap
//! at 16 bits. The results of a pass saturate at 16 bits, with one exception: if a block is zero below its first row,
//! the results of the first pass wrap. This is the behaviour of the SIMD code of libjpeg-turbo. Its scalar code differs
//! for coefficients that no encoder writes.
//!
//! Source: `jidctint.c` and `simd/x86_64/jidctint-avx2.asm` of libjpeg-turbo 3.

use super::blocks::Block;
use super::frame::BLOCK;
#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;

// Number of fractional bits of the constants, and of the values between the two passes.
const CONST_BITS: u32 = 13;
const PASS1_BITS: u32 = 2;

/// Constants of the transform with 13 fractional bits. `F_0_298` is 0.298.
mod factor {
    const F_0_298: i16 = 2446;
    const F_0_390: i16 = 3196;
    const F_0_541: i16 = 4433;
    const F_0_765: i16 = 6270;
    const F_0_899: i16 = 7373;
    const F_1_175: i16 = 9633;
    const F_1_501: i16 = 12299;
    const F_1_847: i16 = 15137;
    const F_1_961: i16 = 16069;
    const F_2_053: i16 = 16819;
    const F_2_562: i16 = 20995;
    const F_3_072: i16 = 25172;

    // Each pair of constants is multiplied by a pair of values, and the two products are added.
    pub(super) const EVEN_3: [i16; 2] = [F_0_541 + F_0_765, F_0_541];
    pub(super) const EVEN_2: [i16; 2] = [F_0_541, F_0_541 - F_1_847];
    pub(super) const SUM_3: [i16; 2] = [F_1_175 - F_1_961, F_1_175];
    pub(super) const SUM_4: [i16; 2] = [F_1_175, F_1_175 - F_0_390];
    pub(super) const ODD_0: [i16; 2] = [F_0_298 - F_0_899, -F_0_899];
    pub(super) const ODD_3: [i16; 2] = [-F_0_899, F_1_501 - F_0_899];
    pub(super) const ODD_1: [i16; 2] = [F_2_053 - F_2_562, -F_2_562];
    pub(super) const ODD_2: [i16; 2] = [-F_2_562, F_3_072 - F_2_562];
}

/// Transforms one row of blocks. `divisors` is the quantisation table of the component, in row-major order. `out`
/// receives eight rows of `8 × blocks.len()` samples. The number of blocks must be even.
pub(super) fn transform(blocks: &[Block], divisors: &[i16; 64], out: &mut [u8]) {
    assert!(
        blocks.len().is_multiple_of(2) && out.len() == blocks.len() * BLOCK * BLOCK,
        "expected an even number of blocks, and an output of 64 bytes per block"
    );
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx2.is_allowed() && is_x86_feature_detected!("avx2") {
        return avx2::transform(blocks, divisors, out);
    }
    transform_plain(blocks, divisors, out);
}

fn transform_plain(blocks: &[Block], divisors: &[i16; 64], out: &mut [u8]) {
    let stride = blocks.len() * BLOCK;
    for (column, block) in blocks.iter().enumerate() {
        for (y, row) in block_samples(block, divisors).iter().enumerate() {
            out[y * stride + column * BLOCK..][..BLOCK].copy_from_slice(row);
        }
    }
}

fn block_samples(block: &Block, divisors: &[i16; 64]) -> [[u8; BLOCK]; BLOCK] {
    let mut between = [[0_i16; BLOCK]; BLOCK];
    let is_flat_down = block[BLOCK..].iter().all(|&coefficient| coefficient == 0);
    if is_flat_down {
        between = [std::array::from_fn(|x| block[x].wrapping_mul(divisors[x]) << PASS1_BITS); BLOCK];
    }
    for x in 0..if is_flat_down { 0 } else { BLOCK } {
        let column = std::array::from_fn(|y| block[BLOCK * y + x].wrapping_mul(divisors[BLOCK * y + x]));
        for (y, value) in pass::<{ CONST_BITS - PASS1_BITS }>(column).into_iter().enumerate() {
            between[y][x] = value;
        }
    }
    between.map(|row| pass::<{ CONST_BITS + PASS1_BITS + 3 }>(row).map(|value| (value.clamp(-128, 127) + 128) as u8))
}

/// Runs one pass over eight values. The results are rounded and shifted right by `SHIFT` bits.
fn pass<const SHIFT: u32>(input: [i16; BLOCK]) -> [i16; BLOCK] {
    let pair = |[a, b]: [i16; 2], [factor_a, factor_b]: [i16; 2]| {
        i32::from(a) * i32::from(factor_a) + i32::from(b) * i32::from(factor_b)
    };
    let even = [input[2], input[6]];
    let (even_2, even_3) = (pair(even, factor::EVEN_2), pair(even, factor::EVEN_3));
    let even_0 = i32::from(input[0].wrapping_add(input[4])) << CONST_BITS;
    let even_1 = i32::from(input[0].wrapping_sub(input[4])) << CONST_BITS;
    let evens = [even_0 + even_3, even_1 + even_2, even_1 - even_2, even_0 - even_3];

    let sums = [input[7].wrapping_add(input[3]), input[5].wrapping_add(input[1])];
    let (sum_3, sum_4) = (pair(sums, factor::SUM_3), pair(sums, factor::SUM_4));
    let (outer, inner) = ([input[7], input[1]], [input[5], input[3]]);
    let odds = [
        pair(outer, factor::ODD_3) + sum_4,
        pair(inner, factor::ODD_2) + sum_3,
        pair(inner, factor::ODD_1) + sum_4,
        pair(outer, factor::ODD_0) + sum_3,
    ];
    let round = |sum: i32| {
        let rounded = sum.wrapping_add(1 << (SHIFT - 1)) >> SHIFT;
        rounded.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16
    };
    std::array::from_fn(|at| match at {
        0..4 => round(evens[at].wrapping_add(odds[at])),
        _ => round(evens[7 - at].wrapping_sub(odds[7 - at])),
    })
}

/// Transforms two blocks at a time with AVX2, one in each half of the registers.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "functions that need AVX2, and loads and stores through pointers")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Block, CONST_BITS, PASS1_BITS, factor};

    /// Does the same as [`super::transform_plain`] with vector instructions.
    pub(super) fn transform(blocks: &[Block], divisors: &[i16; 64], out: &mut [u8]) {
        assert!(is_x86_feature_detected!("avx2"));
        // SAFETY: the assertion above checks that the CPU has AVX2.
        unsafe { pairs(blocks, divisors, out) }
    }

    #[target_feature(enable = "avx2")]
    fn pairs(blocks: &[Block], divisors: &[i16; 64], out: &mut [u8]) {
        let stride = blocks.len() * BLOCK;
        let divisors: [__m256i; BLOCK] = std::array::from_fn(|y| _mm256_broadcastsi128_si256(row(divisors, y)));
        for (index, pair) in blocks.chunks_exact(2).enumerate() {
            let [left, right] = pair else { continue };
            let input: [__m256i; BLOCK] = std::array::from_fn(|y| {
                let both = _mm256_set_m128i(row(right, y), row(left, y));
                _mm256_mullo_epi16(both, divisors[y])
            });
            let out = &mut out[2 * BLOCK * index..];
            let between = transpose(first_pass(input, [left, right].map(|block| is_flat_down(block))));
            let columns = pass::<{ (CONST_BITS + PASS1_BITS + 3) as i32 }>(between);
            let rows = transpose(columns);
            for (y, row) in rows.into_iter().enumerate() {
                // Convert the row of both blocks to bytes: left block in the low half, right block in the high half.
                let bytes = _mm256_permute4x64_epi64::<0b1000>(_mm256_packs_epi16(row, row));
                let bytes = _mm_xor_si128(_mm256_castsi256_si128(bytes), _mm_set1_epi8(-128));
                let target: &mut [u8; 2 * BLOCK] =
                    out[y * stride..].first_chunk_mut().expect("the output has room for both blocks");
                // SAFETY: `target` has 16 bytes, and the store may be unaligned.
                unsafe { _mm_storeu_si128(target.as_mut_ptr().cast(), bytes) }
            }
        }
    }

    /// Returns whether a block is zero below its first row.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn is_flat_down(block: &Block) -> bool {
        let rows: [__m128i; BLOCK] = std::array::from_fn(|y| row(block, y));
        let below = rows[2..].iter().fold(rows[1], |all, &row| _mm_or_si128(all, row));
        _mm_testz_si128(below, below) == 1
    }

    /// Runs the pass along the columns. For a block that is zero below its first row, every output row is the first
    /// row, shifted left.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn first_pass(input: [__m256i; BLOCK], is_flat: [bool; 2]) -> [__m256i; BLOCK] {
        let flat = _mm256_slli_epi16::<{ PASS1_BITS as i32 }>(input[0]);
        if is_flat == [true; 2] {
            return [flat; BLOCK];
        }
        let rows = pass::<{ (CONST_BITS - PASS1_BITS) as i32 }>(input);
        let [left, right] = is_flat.map(|is_flat| _mm_set1_epi8(if is_flat { -1 } else { 0 }));
        let mask = _mm256_set_m128i(right, left);
        rows.map(|row| _mm256_blendv_epi8(row, flat, mask))
    }

    /// Returns row `y` of a block.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn row(block: &[i16; 64], y: usize) -> __m128i {
        let row: &[i16; BLOCK] = block[BLOCK * y..].first_chunk().expect("a block has eight rows");
        // SAFETY: `row` has 16 bytes, and the load may be unaligned.
        unsafe { _mm_loadu_si128(row.as_ptr().cast()) }
    }

    /// Runs [`super::pass`] in every lane. The eight values of a lane are in eight registers.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn pass<const SHIFT: i32>(input: [__m256i; BLOCK]) -> [__m256i; BLOCK] {
        let interleave = |a: __m256i, b: __m256i| [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)];
        let pair = |values: [__m256i; 2], [a, b]: [i16; 2]| {
            let factors = _mm256_set1_epi32((i32::from(b) << 16) | (i32::from(a) & 0xffff));
            values.map(|value| _mm256_madd_epi16(value, factors))
        };
        let add = |a: [__m256i; 2], b: [__m256i; 2]| [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])];
        let sub = |a: [__m256i; 2], b: [__m256i; 2]| [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])];
        // Sign-extend to 32 bits and scale by the fractional bits of the constants: move to the upper half, then
        // shift right.
        let widen = |value: __m256i| {
            let zero = _mm256_setzero_si256();
            interleave(zero, value).map(|value| _mm256_srai_epi32::<{ 16 - CONST_BITS as i32 }>(value))
        };
        let even = interleave(input[2], input[6]);
        let (even_2, even_3) = (pair(even, factor::EVEN_2), pair(even, factor::EVEN_3));
        let even_0 = widen(_mm256_add_epi16(input[0], input[4]));
        let even_1 = widen(_mm256_sub_epi16(input[0], input[4]));
        let evens = [add(even_0, even_3), add(even_1, even_2), sub(even_1, even_2), sub(even_0, even_3)];

        let sums = interleave(_mm256_add_epi16(input[7], input[3]), _mm256_add_epi16(input[5], input[1]));
        let (sum_3, sum_4) = (pair(sums, factor::SUM_3), pair(sums, factor::SUM_4));
        let (outer, inner) = (interleave(input[7], input[1]), interleave(input[5], input[3]));
        let odds = [
            add(pair(outer, factor::ODD_3), sum_4),
            add(pair(inner, factor::ODD_2), sum_3),
            add(pair(inner, factor::ODD_1), sum_4),
            add(pair(outer, factor::ODD_0), sum_3),
        ];
        let half = _mm256_set1_epi32(1 << (SHIFT - 1));
        let round = |sum: [__m256i; 2]| {
            let [low, high] = sum.map(|sum| _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(sum, half)));
            _mm256_packs_epi32(low, high)
        };
        [
            round(add(evens[0], odds[0])),
            round(add(evens[1], odds[1])),
            round(add(evens[2], odds[2])),
            round(add(evens[3], odds[3])),
            round(sub(evens[3], odds[3])),
            round(sub(evens[2], odds[2])),
            round(sub(evens[1], odds[1])),
            round(sub(evens[0], odds[0])),
        ]
    }

    /// Transposes the 8x8 values in each half of the registers.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn transpose(rows: [__m256i; BLOCK]) -> [__m256i; BLOCK] {
        let [a, b, c, d, e, f, g, h] = rows;
        // Interleaving rows 0 and 4, 1 and 5, 2 and 6, 3 and 7 transposes the values if it is done three times.
        let mix = |[a, b, c, d, e, f, g, h]: [__m256i; BLOCK]| {
            [
                _mm256_unpacklo_epi16(a, e),
                _mm256_unpackhi_epi16(a, e),
                _mm256_unpacklo_epi16(b, f),
                _mm256_unpackhi_epi16(b, f),
                _mm256_unpacklo_epi16(c, g),
                _mm256_unpackhi_epi16(c, g),
                _mm256_unpacklo_epi16(d, h),
                _mm256_unpackhi_epi16(d, h),
            ]
        };
        mix(mix(mix([a, b, c, d, e, f, g, h])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dc_only_block_is_flat() {
        let mut block = [0; 64];
        block[0] = 20;
        assert_eq!(block_samples(&block, &[4; 64]), [[128 + 10; BLOCK]; BLOCK]);
    }

    #[test]
    fn vectorized_transform_matches_scalar() {
        let mut seed = 1_u32;
        let mut random = |bits: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((seed >> 8) as i32 % (1 << bits) - (1 << (bits - 1))) as i16
        };
        for bits in 2..=16 {
            for zeros in [0, 20, 56, 60, 63] {
                // In every other pair, one block has more nonzero coefficients.
                let used = |index: usize| if index % 4 == 1 { 64 } else { 64 - zeros };
                let blocks: Vec<Block> = (0..6)
                    .map(|index| std::array::from_fn(|at| if at < used(index) { random(bits) } else { 0 }))
                    .collect();
                let divisors = std::array::from_fn(|_| random(7) + 65);
                let (mut fast, mut plain) = (vec![0; 6 * 64], vec![1; 6 * 64]);
                transform(&blocks, &divisors, &mut fast);
                transform_plain(&blocks, &divisors, &mut plain);
                assert_eq!(fast, plain, "{bits} bits, {zeros} zeros");
            }
        }
    }
}
