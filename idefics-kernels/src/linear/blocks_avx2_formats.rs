//! How AVX2 reads the blocks of each GGUF type. [`crate::formats::GgufType`] describes the types.

use std::arch::x86_64::*;

/// Number of columns that are decoded together.
pub(in super::super) const PART: usize = 32;

/// The blocks of one GGUF type.
///
/// # Safety of its methods
/// The caller is compiled for AVX2 and F16C, and `block` is valid for [`Format::BYTES`] bytes.
pub(in super::super) trait Format {
    /// Number of parts in a block: 1 or 8.
    const PARTS: usize;
    /// Size of a block in bytes.
    const BYTES: usize;
    /// Number of scales of a part: 1 or, with a scale per 16 columns, 2.
    const SCALES: usize = 1;
    /// Whether values have a minimum beside their scale.
    const HAS_MINIMA: bool = false;
    /// Decoded scales and minima of a block.
    type Open: Copy;

    /// Reads the scales and minima of a block.
    unsafe fn open(block: *const u8) -> Self::Open;

    /// The codes of part `P` in column order, one signed byte each.
    unsafe fn codes<const P: usize>(block: *const u8) -> __m256i;

    /// Returns the scales of part `P`: lanes 0 to 3 for its first 16 columns, lanes 4 to 7 for its last 16 columns.
    unsafe fn scale<const P: usize>(open: &Self::Open) -> __m256;

    /// Returns the number that is added to each value of part `P`, after multiplication by the scale.
    #[inline(always)]
    unsafe fn minimum<const P: usize>(_open: &Self::Open) -> f32 {
        0.0
    }
}

/// 32 codes of four bits with a scale.
pub(in super::super) struct Q4_0;
/// 32 codes of four bits with a scale and a minimum.
pub(in super::super) struct Q4_1;
/// 32 codes of five bits with a scale.
pub(in super::super) struct Q5_0;
/// 32 codes of five bits with a scale and a minimum.
pub(in super::super) struct Q5_1;
/// 32 codes of eight bits with a scale.
pub(in super::super) struct Q8_0;
/// 256 codes of four bits, with a scale and a minimum per 32 codes.
pub(in super::super) struct Q4K;
/// 256 codes of five bits, with a scale and a minimum per 32 codes.
pub(in super::super) struct Q5K;
/// 256 codes of six bits, with a scale per 16 codes.
pub(in super::super) struct Q6K;

/// Returns the f16 at `at`, as f32.
#[inline(always)]
pub(in super::super) unsafe fn half(at: *const u8) -> f32 {
    // SAFETY: the caller guarantees CPU support and two bytes.
    unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(at.cast::<u16>().read_unaligned())))) }
}

/// Reads 32 codes of four bits from 16 bytes: first the low halves of all bytes, then the high halves.
#[inline(always)]
unsafe fn nibbles(codes: *const u8) -> __m256i {
    // SAFETY: the caller guarantees CPU support and 16 bytes.
    unsafe {
        let bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(codes.cast()));
        let shifted = _mm256_srlv_epi32(bytes, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
        _mm256_and_si256(shifted, _mm256_set1_epi8(15))
    }
}

/// Returns the fifth bits of 32 codes. Byte `i` is 16 if bit `i` of the four bytes at `bits` is set, and 0 otherwise.
#[inline(always)]
unsafe fn fifth_bits(bits: *const u8) -> __m256i {
    // SAFETY: the caller guarantees CPU support and four bytes.
    unsafe {
        let bits = _mm256_set1_epi32(bits.cast::<i32>().read_unaligned());
        // Byte `i` receives the byte that contains bit `i`. Then all other bits of that byte are cleared.
        let places = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let only = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
        let bit = _mm256_and_si256(_mm256_shuffle_epi8(bits, places), only);
        _mm256_and_si256(_mm256_cmpeq_epi8(bit, only), _mm256_set1_epi8(16))
    }
}

impl Format for Q4_0 {
    const PARTS: usize = 1;
    const BYTES: usize = 18;
    type Open = f32;

    #[inline(always)]
    unsafe fn open(block: *const u8) -> f32 {
        // SAFETY: guaranteed by the caller.
        unsafe { half(block) }
    }
    #[inline(always)]
    unsafe fn codes<const P: usize>(block: *const u8) -> __m256i {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_sub_epi8(nibbles(block.add(2)), _mm256_set1_epi8(8)) }
    }
    #[inline(always)]
    unsafe fn scale<const P: usize>(open: &f32) -> __m256 {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_set1_ps(*open) }
    }
}

impl Format for Q4_1 {
    const PARTS: usize = 1;
    const BYTES: usize = 20;
    const HAS_MINIMA: bool = true;
    type Open = [f32; 2];

    #[inline(always)]
    unsafe fn open(block: *const u8) -> [f32; 2] {
        // SAFETY: guaranteed by the caller.
        unsafe { [half(block), half(block.add(2))] }
    }
    #[inline(always)]
    unsafe fn codes<const P: usize>(block: *const u8) -> __m256i {
        // SAFETY: guaranteed by the caller.
        unsafe { nibbles(block.add(4)) }
    }
    #[inline(always)]
    unsafe fn scale<const P: usize>(open: &[f32; 2]) -> __m256 {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_set1_ps(open[0]) }
    }
    #[inline(always)]
    unsafe fn minimum<const P: usize>(open: &[f32; 2]) -> f32 {
        open[1]
    }
}

impl Format for Q5_0 {
    const PARTS: usize = 1;
    const BYTES: usize = 22;
    type Open = f32;

    #[inline(always)]
    unsafe fn open(block: *const u8) -> f32 {
        // SAFETY: guaranteed by the caller.
        unsafe { half(block) }
    }
    #[inline(always)]
    unsafe fn codes<const P: usize>(block: *const u8) -> __m256i {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let codes = _mm256_or_si256(nibbles(block.add(6)), fifth_bits(block.add(2)));
            _mm256_sub_epi8(codes, _mm256_set1_epi8(16))
        }
    }
    #[inline(always)]
    unsafe fn scale<const P: usize>(open: &f32) -> __m256 {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_set1_ps(*open) }
    }
}

impl Format for Q5_1 {
    const PARTS: usize = 1;
    const BYTES: usize = 24;
    const HAS_MINIMA: bool = true;
    type Open = [f32; 2];

    #[inline(always)]
    unsafe fn open(block: *const u8) -> [f32; 2] {
        // SAFETY: guaranteed by the caller.
        unsafe { [half(block), half(block.add(2))] }
    }
    #[inline(always)]
    unsafe fn codes<const P: usize>(block: *const u8) -> __m256i {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_or_si256(nibbles(block.add(8)), fifth_bits(block.add(4))) }
    }
    #[inline(always)]
    unsafe fn scale<const P: usize>(open: &[f32; 2]) -> __m256 {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_set1_ps(open[0]) }
    }
    #[inline(always)]
    unsafe fn minimum<const P: usize>(open: &[f32; 2]) -> f32 {
        open[1]
    }
}

impl Format for Q8_0 {
    const PARTS: usize = 1;
    const BYTES: usize = 34;
    type Open = f32;

    #[inline(always)]
    unsafe fn open(block: *const u8) -> f32 {
        // SAFETY: guaranteed by the caller.
        unsafe { half(block) }
    }
    #[inline(always)]
    unsafe fn codes<const P: usize>(block: *const u8) -> __m256i {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_loadu_si256(block.add(2).cast()) }
    }
    #[inline(always)]
    unsafe fn scale<const P: usize>(open: &f32) -> __m256 {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_set1_ps(*open) }
    }
}

/// Scales and minima of the eight parts of a block, in the form that is applied to codes.
#[derive(Clone, Copy)]
pub(in super::super) struct ScalesAndMinima {
    scales: [f32; 8],
    /// Numbers that are added to the scaled codes: the negated minima.
    minima: [f32; 8],
}

/// Converts eight unsigned bytes to f32.
#[inline(always)]
unsafe fn floats([low, high]: [u32; 2]) -> __m256 {
    // SAFETY: the caller guarantees CPU support.
    unsafe {
        let bytes = _mm_cvtsi64_si128((u64::from(low) | u64::from(high) << 32).cast_signed());
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
    }
}

/// Reads the first 16 bytes of a Q4_K or Q5_K block: d, m, and six bits each for eight scales and minima.
#[inline(always)]
unsafe fn open_super(block: *const u8) -> ScalesAndMinima {
    // SAFETY: the caller guarantees CPU support and 16 bytes.
    unsafe {
        let [first, second, third] = block.add(4).cast::<[u32; 3]>().read_unaligned();
        let scales = [first & 0x3f3f_3f3f, third & 0x0f0f_0f0f | (first >> 6 & 0x0303_0303) << 4];
        let minima = [second & 0x3f3f_3f3f, third >> 4 & 0x0f0f_0f0f | (second >> 6 & 0x0303_0303) << 4];
        let (d, m) = (_mm256_set1_ps(half(block)), _mm256_set1_ps(-half(block.add(2))));
        let mut out = ScalesAndMinima { scales: [0.0; 8], minima: [0.0; 8] };
        _mm256_storeu_ps(out.scales.as_mut_ptr(), _mm256_mul_ps(d, floats(scales)));
        _mm256_storeu_ps(out.minima.as_mut_ptr(), _mm256_mul_ps(m, floats(minima)));
        out
    }
}

/// Reads the four-bit codes of part `P` from 32 bytes: the low halves if `P` is even, the high halves if `P` is odd.
#[inline(always)]
unsafe fn nibbles_of_part<const P: usize>(codes: *const u8) -> __m256i {
    // SAFETY: the caller guarantees CPU support and the bytes.
    unsafe {
        let bytes = _mm256_loadu_si256(codes.add(P / 2 * 32).cast());
        let bytes = if P.is_multiple_of(2) { bytes } else { _mm256_srli_epi16::<4>(bytes) };
        _mm256_and_si256(bytes, _mm256_set1_epi8(15))
    }
}

impl Format for Q4K {
    const PARTS: usize = 8;
    const BYTES: usize = 144;
    const HAS_MINIMA: bool = true;
    type Open = ScalesAndMinima;

    #[inline(always)]
    unsafe fn open(block: *const u8) -> ScalesAndMinima {
        // SAFETY: guaranteed by the caller.
        unsafe { open_super(block) }
    }
    #[inline(always)]
    unsafe fn codes<const P: usize>(block: *const u8) -> __m256i {
        // SAFETY: guaranteed by the caller.
        unsafe { nibbles_of_part::<P>(block.add(16)) }
    }
    #[inline(always)]
    unsafe fn scale<const P: usize>(open: &ScalesAndMinima) -> __m256 {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_set1_ps(open.scales[P]) }
    }
    #[inline(always)]
    unsafe fn minimum<const P: usize>(open: &ScalesAndMinima) -> f32 {
        open.minima[P]
    }
}

impl Format for Q5K {
    const PARTS: usize = 8;
    const BYTES: usize = 176;
    const HAS_MINIMA: bool = true;
    type Open = ScalesAndMinima;

    #[inline(always)]
    unsafe fn open(block: *const u8) -> ScalesAndMinima {
        // SAFETY: guaranteed by the caller.
        unsafe { open_super(block) }
    }
    #[inline(always)]
    unsafe fn codes<const P: usize>(block: *const u8) -> __m256i {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let high = _mm256_loadu_si256(block.add(16).cast());
            let high = shift_to_bit_four::<P>(high);
            _mm256_or_si256(nibbles_of_part::<P>(block.add(48)), _mm256_and_si256(high, _mm256_set1_epi8(16)))
        }
    }
    #[inline(always)]
    unsafe fn scale<const P: usize>(open: &ScalesAndMinima) -> __m256 {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_set1_ps(open.scales[P]) }
    }
    #[inline(always)]
    unsafe fn minimum<const P: usize>(open: &ScalesAndMinima) -> f32 {
        open.minima[P]
    }
}

/// Moves bit `P` of each byte to bit 4. The other bits of the result have no meaning.
#[inline(always)]
unsafe fn shift_to_bit_four<const P: usize>(bytes: __m256i) -> __m256i {
    // SAFETY: the caller guarantees CPU support.
    unsafe {
        match P {
            0 => _mm256_slli_epi16::<4>(bytes),
            1 => _mm256_slli_epi16::<3>(bytes),
            2 => _mm256_slli_epi16::<2>(bytes),
            3 => _mm256_slli_epi16::<1>(bytes),
            4 => bytes,
            5 => _mm256_srli_epi16::<1>(bytes),
            6 => _mm256_srli_epi16::<2>(bytes),
            _ => _mm256_srli_epi16::<3>(bytes),
        }
    }
}

/// The unsigned codes of part `P` of a Q6_K block, in column order.
///
/// # Safety
/// The caller is compiled for AVX2, and `block` is a whole block.
#[inline(always)]
pub(in super::super) unsafe fn six_bit_codes<const P: usize>(block: *const u8) -> __m256i {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let low = _mm256_loadu_si256(block.add(P / 4 * 64 + P % 2 * 32).cast());
        let low = if P % 4 < 2 { low } else { _mm256_srli_epi16::<4>(low) };
        let high = _mm256_loadu_si256(block.add(128 + P / 4 * 32).cast());
        let high = match P % 4 {
            0 => _mm256_slli_epi16::<4>(high),
            1 => _mm256_slli_epi16::<2>(high),
            2 => high,
            _ => _mm256_srli_epi16::<2>(high),
        };
        let low = _mm256_and_si256(low, _mm256_set1_epi8(15));
        let high = _mm256_and_si256(high, _mm256_set1_epi8(0x30));
        _mm256_or_si256(low, high)
    }
}

impl Format for Q6K {
    const PARTS: usize = 8;
    const BYTES: usize = 210;
    const SCALES: usize = 2;
    type Open = [f32; 16];

    #[inline(always)]
    unsafe fn open(block: *const u8) -> [f32; 16] {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let d = _mm256_set1_ps(half(block.add(208)));
            let mut scales = [0f32; 16];
            for at in [0, 8] {
                let bytes = _mm_loadl_epi64(block.add(192 + at).cast());
                let floats = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
                _mm256_storeu_ps(scales.as_mut_ptr().add(at), _mm256_mul_ps(d, floats));
            }
            scales
        }
    }
    #[inline(always)]
    unsafe fn codes<const P: usize>(block: *const u8) -> __m256i {
        // SAFETY: guaranteed by the caller.
        unsafe { _mm256_sub_epi8(six_bit_codes::<P>(block), _mm256_set1_epi8(32)) }
    }
    #[inline(always)]
    unsafe fn scale<const P: usize>(open: &[f32; 16]) -> __m256 {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let pair = _mm256_set1_epi64x(open.as_ptr().add(2 * P).cast::<i64>().read_unaligned());
            _mm256_permutevar8x32_ps(_mm256_castsi256_ps(pair), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1))
        }
    }
}
