//! Int4 on AVX-512: sixteen lanes.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::Product;
use super::super::rows::{Order, Packed};
use super::{Int4, Nibbles, entry_points};
use crate::vector::avx512::F32x16;

entry_points!(F32x16, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");

/// Each quarter of a register holds the sixteen bytes of a block. Quarter `q` is shifted down by `2 q` codes, so lane
/// `l` of that quarter, from 0 to 3, starts with code `8 l + 2 q`.
impl Nibbles for F32x16 {
    type Codes = __m512i;

    fn column(at: usize) -> usize {
        let (index, lane) = (at / 16, at % 16);
        lane % 4 * 8 + lane / 4 * 2 + index
    }
    #[inline(always)]
    unsafe fn block(bytes: *const u8) -> __m512i {
        // SAFETY: the caller guarantees CPU support and sixteen bytes.
        unsafe {
            let all = _mm512_broadcast_i32x4(_mm_loadu_si128(bytes.cast()));
            _mm512_srlv_epi32(all, _mm512_setr_epi32(0, 0, 0, 0, 8, 8, 8, 8, 16, 16, 16, 16, 24, 24, 24, 24))
        }
    }
    #[inline(always)]
    unsafe fn vector(codes: __m512i, index: usize) -> Self {
        // SAFETY: the caller guarantees CPU support.
        unsafe {
            let lowest = if index == 0 { codes } else { _mm512_srli_epi32::<4>(codes) };
            Self(_mm512_cvtepi32_ps(_mm512_and_si512(lowest, _mm512_set1_epi32(15))))
        }
    }
    #[inline(always)]
    unsafe fn in_order(bytes: *const u8) -> Self {
        // SAFETY: the caller guarantees CPU support and eight bytes.
        unsafe {
            let [first, second] = [0, 4].map(|at| bytes.add(at).cast::<i32>().read_unaligned());
            let both = _mm512_mask_blend_epi32(0xff00, _mm512_set1_epi32(first), _mm512_set1_epi32(second));
            let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
            let lowest = _mm512_srlv_epi32(both, shifts);
            Self(_mm512_cvtepi32_ps(_mm512_and_si512(lowest, _mm512_set1_epi32(15))))
        }
    }
}
