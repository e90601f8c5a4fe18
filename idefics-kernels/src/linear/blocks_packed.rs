//! Activations as integers, for the integer products of GGUF blocks.
//!
//! Each group of columns has one scale, and an activation is a whole number of steps, `x ≈ X · scale`. A product needs
//! codes of eight or sixteen bits, so `X` is cut into digits:
//!
//! - [`Precision::Exact`]: 22 to 24 bits, about the precision of f32. `X` has three digits of a byte, or two of
//!   sixteen bits.
//! - [`Precision::Rounded`]: eight bits, one digit, with the groups and the rounding of llama.cpp: `Q8_0` and `Q8_1` (32
//!   columns) for types with blocks of 32 values, `Q8_K` (256 columns) for the others.

#![allow(unsafe_code)] // SIMD

use std::arch::x86_64::*;

use half::f16;

use super::super::{Precision, SMALLEST};
use super::PART;
use crate::formats::GgufType;

#[path = "blocks_packed_wide.rs"]
mod wide;
use wide::pack_wide;

/// How the codes of a type are multiplied, and thus the layout of the activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Blocks of 32 unsigned codes below 32. Two blocks are multiplied together, byte by byte: the first vector has the
    /// first 16 columns of each block, the second vector the last 16. `offset` is the code of zero.
    Pairs { offset: i8, has_minima: bool },
    /// Blocks of 32 signed bytes, multiplied as 16-bit numbers in column order.
    Words,
    /// Blocks of 32 unsigned bytes in column order, two in a vector of AVX-512. `offset` is the code of zero.
    Wide { offset: i32, has_minima: bool },
    /// Blocks of 256 unsigned codes below 64, in eight vectors of 32 columns, in column order.
    Supers { has_minima: bool },
}

impl Layout {
    /// The layout of a type, for AVX-512 if `is_wide` and otherwise for AVX2; `None` if there are no integer products for
    /// it.
    pub(super) fn of(kind: GgufType, is_wide: bool) -> Option<Self> {
        match kind {
            GgufType::Q4_0 if is_wide => Some(Self::Wide { offset: 8, has_minima: false }),
            GgufType::Q5_0 if is_wide => Some(Self::Wide { offset: 16, has_minima: false }),
            GgufType::Q8_0 if is_wide => Some(Self::Wide { offset: 128, has_minima: false }),
            GgufType::Q4_1 | GgufType::Q5_1 if is_wide => Some(Self::Wide { offset: 0, has_minima: true }),
            GgufType::Q4_0 => Some(Self::Pairs { offset: 8, has_minima: false }),
            GgufType::Q4_1 => Some(Self::Pairs { offset: 0, has_minima: true }),
            GgufType::Q5_0 => Some(Self::Pairs { offset: 16, has_minima: false }),
            GgufType::Q5_1 => Some(Self::Pairs { offset: 0, has_minima: true }),
            GgufType::Q8_0 => Some(Self::Words),
            GgufType::Q4_K | GgufType::Q5_K => Some(Self::Supers { has_minima: true }),
            GgufType::Q6_K => Some(Self::Supers { has_minima: false }),
            _ => None,
        }
    }

    /// Number of columns in a group. Each step of the product processes one group.
    pub(super) fn columns(self) -> usize {
        match self {
            Self::Pairs { .. } | Self::Wide { .. } => 2 * PART,
            Self::Words => PART,
            Self::Supers { .. } => 8 * PART,
        }
    }

    /// Size of a group of activations, in units of one f32. The codes of the group come first, and then its other
    /// numbers.
    pub(super) fn group_len(self, precision: Precision) -> usize {
        self.codes_len(precision) + self.rest_len(precision)
    }

    /// Size of the codes of a group, in units of one f32.
    pub(super) fn codes_len(self, precision: Precision) -> usize {
        let bytes = match (self, precision) {
            (Self::Words, Precision::Exact) => 4,
            (Self::Words, Precision::Rounded) => 2,
            (_, Precision::Exact) => DIGITS,
            (_, Precision::Rounded) => 1,
        };
        self.columns() * bytes / size_of::<f32>()
    }

    /// Size of the other numbers of a group, which follow its codes:
    ///
    /// - `Pairs`: eight scales, four for each block, and eight corrections: integers that are added to the eight sums of
    ///   products of codes, or, for types with minima, the sums of the activations of the two blocks at 0 and 4
    /// - `Words`: the scale
    /// - `Wide`: sixteen scales, eight for each block, and sixteen corrections as in `Pairs`, or the sums of the
    ///   activations of the two blocks at 0 and 8
    /// - `Supers`: eight sums of the activations of 32 columns for types with minima, otherwise sixteen 16-bit sums of 16
    ///   codes for each digit; then the scale
    fn rest_len(self, precision: Precision) -> usize {
        match self {
            Self::Pairs { .. } => 16,
            Self::Words => 8,
            Self::Wide { .. } => 32,
            Self::Supers { has_minima: true } => 16,
            Self::Supers { has_minima: false } => match precision {
                Precision::Exact => 8 * DIGITS + 8,
                Precision::Rounded => 16,
            },
        }
    }
}

/// Number of digits of an exact activation, if each digit is a byte.
pub(super) const DIGITS: usize = 3;

/// Weights of the digits in `Pairs`, which must fit 16 bits. The third digit is stored negated.
pub(super) const PAIR_DIGITS: [i16; DIGITS] = [1, 1 << 8, i16::MIN];

/// Weights of the digits in `Supers`.
pub(super) const SUPER_DIGITS: [f32; DIGITS] = [1.0, 256.0, 65536.0];

/// Weight of the upper digit in `Words`. The lower digit is not negative.
pub(super) const WORD_DIGIT: f32 = 1024.0;

/// Converts a row of activations to groups.
///
/// # Safety
/// The CPU supports the enabled target features, and AVX-512 if the layout is for it.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn pack(layout: Layout, precision: Precision, x: &[f32], packed: &mut [f32]) {
    let (columns, group_len, codes_len) = (layout.columns(), layout.group_len(precision), layout.codes_len(precision));
    assert!(x.len().is_multiple_of(PART) && packed.len() == x.len().div_ceil(columns) * group_len);
    for (x, group) in x.chunks(columns).zip(packed.chunks_exact_mut(group_len)) {
        let (codes, rest) = group.split_at_mut(codes_len);
        let codes: &mut [i8] = bytemuck::cast_slice_mut(codes);
        // SAFETY: the caller guarantees CPU support.
        unsafe {
            match layout {
                Layout::Pairs { offset, has_minima } => pack_pair(precision, x, offset, has_minima, codes, rest),
                Layout::Words => pack_words(precision, x, codes, rest),
                Layout::Wide { offset, has_minima } => pack_wide(precision, x, offset, has_minima, codes, rest),
                Layout::Supers { has_minima } => pack_super(precision, x, has_minima, codes, rest),
            }
        }
    }
}

/// Returns the largest magnitude of whole vectors of activations. If a value is not finite, neither is the result.
#[inline(always)]
pub(in super::super) unsafe fn largest(x: &[f32]) -> f32 {
    // SAFETY: the caller guarantees CPU support.
    unsafe {
        // Without the sign bit, the bit patterns of f32 are ordered like the magnitudes, with ∞ and NaN at the end.
        let mut all = _mm256_setzero_si256();
        for x in x.as_chunks::<8>().0 {
            let magnitude = _mm256_and_si256(_mm256_loadu_si256(x.as_ptr().cast()), _mm256_set1_epi32(i32::MAX));
            all = _mm256_max_epi32(all, magnitude);
        }
        let four = _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256::<1>(all));
        let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
        let one = _mm_max_epi32(two, _mm_shuffle_epi32::<0b01>(two));
        f32::from_bits(_mm_cvtsi128_si32(one).cast_unsigned())
    }
}

/// Returns the number of steps per unit and the size of a step, if `largest` is to become `steps` steps. If `largest`
/// is not finite, the size is NaN.
#[inline(always)]
pub(in super::super) fn scale(largest: f32, steps: f32) -> (f32, f32) {
    match largest {
        _ if !largest.is_finite() => (0.0, f32::NAN),
        _ if largest < SMALLEST => (0.0, 0.0),
        _ => (steps / largest, largest / steps),
    }
}

/// Returns the number of steps per unit and the size of a step for 256 rounded activations. The first activation of the
/// largest magnitude becomes −127, as in llama.cpp.
#[inline(always)]
pub(in super::super) unsafe fn super_scale(x: &[f32]) -> (f32, f32) {
    // SAFETY: the caller guarantees CPU support.
    let largest = unsafe { largest(x) };
    match scale(largest, 1.0) {
        (0.0, size) => (0.0, size),
        _ => {
            let extreme = x.iter().copied().find(|x| x.abs() == largest).unwrap_or(largest);
            let per_unit = -127.0 / extreme;
            (per_unit, 1.0 / per_unit)
        }
    }
}

/// Converts 32 activations to whole numbers of steps.
#[inline(always)]
pub(in super::super) unsafe fn steps(x: &[f32], per_unit: f32) -> [i32; PART] {
    let mut steps = [0; PART];
    // SAFETY: the caller guarantees CPU support; both sides have whole vectors.
    unsafe {
        for (x, steps) in x.as_chunks::<8>().0.iter().zip(steps.as_chunks_mut::<8>().0) {
            let scaled = _mm256_mul_ps(_mm256_loadu_ps(x.as_ptr()), _mm256_set1_ps(per_unit));
            _mm256_storeu_si256(steps.as_mut_ptr().cast(), _mm256_cvtps_epi32(scaled));
        }
    }
    steps
}

/// Cuts a number into a signed byte and the rest above it.
#[inline(always)]
fn cut(number: i32) -> (i8, i32) {
    let low = number as i8;
    (low, number.wrapping_sub(i32::from(low)) >> 8)
}

/// Packs two blocks of 32 columns; the second may be missing.
#[inline(always)]
unsafe fn pack_pair(precision: Precision, x: &[f32], offset: i8, has_minima: bool, codes: &mut [i8], rest: &mut [f32]) {
    codes.fill(0);
    let (scales, corrections) = rest.split_at_mut(8);
    scales.fill(0.0);
    corrections.fill(0.0);
    for (block, x) in x.chunks_exact(PART).enumerate() {
        // SAFETY: the caller guarantees CPU support.
        let largest = unsafe { largest(x) };
        let (per_unit, mut size) = scale(largest, if precision == Precision::Exact { 127.0 * 32768.0 } else { 127.0 });
        // SAFETY: as above.
        let numbers = unsafe { steps(x, per_unit) };
        let mut digits = [[0i8; PART]; DIGITS];
        for (column, number) in numbers.into_iter().enumerate() {
            if precision == Precision::Rounded {
                digits[0][column] = number as i8;
            } else {
                let (low, above) = cut(number);
                let middle = ((above.wrapping_add(64)) & 127) - 64;
                let high = above.wrapping_sub(middle) >> 7;
                digits[0][column] = low;
                digits[1][column] = middle as i8;
                digits[2][column] = high.wrapping_neg() as i8;
            }
        }
        for (digit, codes) in digits.iter().zip(codes.chunks_exact_mut(2 * PART)) {
            codes[16 * block..][..16].copy_from_slice(&digit[..16]);
            codes[PART + 16 * block..][..16].copy_from_slice(&digit[16..]);
        }
        let all = || numbers.iter().fold(0i32, |sum, number| sum.wrapping_add(*number));
        if has_minima {
            corrections[4 * block] = match precision {
                Precision::Exact => x.iter().sum(),
                Precision::Rounded => f16::from_f32(size).to_f32() * all() as f32,
            };
        } else {
            for lane in 0..4 {
                let four = |at: usize| numbers[at..at + 4].iter().fold(0i32, |sum, number| sum.wrapping_add(*number));
                let sum = four(4 * lane).wrapping_add(four(16 + 4 * lane));
                let correction = sum.wrapping_mul(-i32::from(offset));
                corrections[4 * block + lane] = f32::from_bits(correction.cast_unsigned());
            }
        }
        if precision == Precision::Rounded {
            size = f16::from_f32(size).to_f32();
        }
        scales[4 * block..][..4].fill(size);
    }
}

/// Packs a block of 32 columns as 16-bit numbers.
#[inline(always)]
unsafe fn pack_words(precision: Precision, x: &[f32], codes: &mut [i8], rest: &mut [f32]) {
    let codes: &mut [i16] = bytemuck::cast_slice_mut(codes);
    // SAFETY: the caller guarantees CPU support.
    let largest = unsafe { largest(x) };
    match precision {
        Precision::Exact => {
            let (per_unit, size) = scale(largest, 16384.0 * WORD_DIGIT);
            // SAFETY: as above.
            let numbers = unsafe { steps(x, per_unit) };
            let (high, low) = codes.split_at_mut(PART);
            for ((number, high), low) in numbers.into_iter().zip(high).zip(low) {
                *high = (number >> 10) as i16;
                *low = (number & 1023) as i16;
            }
            rest[0] = size;
        }
        Precision::Rounded => {
            let (per_unit, size) = scale(largest, 127.0);
            // SAFETY: as above.
            let numbers = unsafe { steps(x, per_unit) };
            for (number, code) in numbers.into_iter().zip(codes) {
                *code = number as i16;
            }
            rest[0] = f16::from_f32(size).to_f32();
        }
    }
}

/// Packs 256 columns.
#[inline(always)]
unsafe fn pack_super(precision: Precision, x: &[f32], has_minima: bool, codes: &mut [i8], rest: &mut [f32]) {
    // SAFETY: the caller guarantees CPU support.
    let largest = unsafe { largest(x) };
    let (per_unit, size) = match precision {
        Precision::Exact => scale(largest, 127.0 * 65536.0),
        // SAFETY: as above.
        Precision::Rounded => unsafe { super_scale(x) },
    };
    let n_rest = rest.len();
    rest[n_rest - 8] = size;
    for (part, x) in x.chunks_exact(PART).enumerate() {
        // SAFETY: as above.
        let numbers = unsafe { steps(x, per_unit) };
        let mut digits = [[0i8; PART]; DIGITS];
        for (column, number) in numbers.into_iter().enumerate() {
            if precision == Precision::Rounded {
                digits[0][column] = number.min(127) as i8;
            } else {
                let (low, above) = cut(number);
                let (middle, above) = cut(above);
                digits[0][column] = low;
                digits[1][column] = middle;
                digits[2][column] = above as i8;
            }
        }
        for (digit, (codes, each)) in codes.chunks_exact_mut(8 * PART).zip(&digits).enumerate() {
            codes[part * PART..][..PART].copy_from_slice(each);
            if !has_minima {
                let sums: &mut [i16] = bytemuck::cast_slice_mut(&mut rest[8 * digit..8 * digit + 8]);
                for (half, sum) in sums[2 * part..2 * part + 2].iter_mut().enumerate() {
                    *sum = each[16 * half..16 * half + 16].iter().map(|code| i16::from(*code)).sum();
                }
            }
        }
        if has_minima {
            rest[part] = match precision {
                Precision::Exact => x.iter().sum(),
                Precision::Rounded => size * digits[0].iter().map(|code| i32::from(*code)).sum::<i32>() as f32,
            };
        }
    }
}
