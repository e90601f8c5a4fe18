//! Activations in the layout [`Layout::Wide`](super::Layout::Wide).

use std::arch::x86_64::*;

use half::f16;

use super::super::super::Precision;
use super::super::PART;
use super::{DIGITS, largest, scale};

/// The code of zero that needs the most bits.
const LARGEST_OFFSET: i32 = 128;

/// Packs two blocks of 32 columns; the second may be missing.
///
/// # Safety
/// The CPU supports the enabled target features; `codes` and `rest` have the lengths of the layout.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn pack_wide(
    precision: Precision,
    x: &[f32],
    offset: i32,
    has_minima: bool,
    codes: &mut [i8],
    rest: &mut [f32],
) {
    let is_exact = precision == Precision::Exact;
    let n_digits = if is_exact { DIGITS } else { 1 };
    assert!(codes.len() == n_digits * 2 * PART && rest.len() == 32, "a group of the wide layout");
    // Four products with codes of eight bits must fit 32 bits.
    let n_steps = match (is_exact, offset) {
        (false, _) => 127.0,
        (true, LARGEST_OFFSET) => 127.0 * 32768.0,
        (true, _) => 127.0 * 65536.0,
    };
    let (scales, corrections) = rest.split_at_mut(16);
    for block in 0..2 {
        let Some(x) = x.get(block * PART..(block + 1) * PART) else {
            codes.chunks_exact_mut(2 * PART).for_each(|digit| digit[block * PART..].fill(0));
            scales[8 * block..].fill(0.0);
            corrections[8 * block..].fill(0.0);
            continue;
        };
        // SAFETY: the caller guarantees CPU support; the slices have the lengths of the vectors.
        unsafe {
            let (per_unit, mut size) = scale(largest(x), n_steps);
            let x = [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))];
            let mut sums = _mm256_setzero_si256();
            let mut digits = [_mm256_setzero_si256(); DIGITS];
            let mut numbers = [_mm512_setzero_si512(); 2];
            for half in 0..2 {
                numbers[half] = _mm512_cvtps_epi32(_mm512_mul_ps(x[half], _mm512_set1_ps(per_unit)));
            }
            for digit in digits.iter_mut().take(n_digits) {
                // The lowest byte is a signed digit; the rest is the number above it.
                *digit = _mm256_set_m128i(_mm512_cvtepi32_epi8(numbers[1]), _mm512_cvtepi32_epi8(numbers[0]));
                for number in &mut numbers {
                    *number = _mm512_srai_epi32::<8>(_mm512_add_epi32(*number, _mm512_set1_epi32(128)));
                }
            }
            for digit in (0..n_digits).rev() {
                let at = codes[digit * 2 * PART + block * PART..][..PART].as_mut_ptr();
                _mm256_storeu_si256(at.cast(), digits[digit]);
                // Sums of four numbers, digit by digit.
                sums = _mm256_dpbusd_epi32(_mm256_slli_epi32::<8>(sums), _mm256_set1_epi8(1), digits[digit]);
            }
            if !is_exact {
                size = f16::from_f32(size).to_f32();
            }
            scales[8 * block..][..8].fill(size);
            let corrections = &mut corrections[8 * block..][..8];
            if has_minima {
                corrections.fill(0.0);
                corrections[0] = match precision {
                    Precision::Exact => _mm512_reduce_add_ps(_mm512_add_ps(x[0], x[1])),
                    Precision::Rounded => {
                        let mut all = [0i32; 8];
                        _mm256_storeu_si256(all.as_mut_ptr().cast(), sums);
                        size * all.iter().fold(0i32, |sum, each| sum.wrapping_add(*each)) as f32
                    }
                };
            } else {
                let products = _mm256_mullo_epi32(sums, _mm256_set1_epi32(-offset));
                _mm256_storeu_si256(corrections.as_mut_ptr().cast(), products);
            }
        }
    }
}
