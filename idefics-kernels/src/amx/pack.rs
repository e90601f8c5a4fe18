//! Splits f32 values into bf16 parts and packs them into tiles.

use std::arch::x86_64::*;

use super::{PARTS, ROWS, STEP, TILE};

/// Splits 32 consecutive f32 (two registers) into bf16 parts. Register `i` of the `N` results holds part `i` of every
/// value. The sum of all parts is the value, up to the rounding of the last part.
///
/// # Safety
/// AMX is available ([`is_available`](super::is_available)), and the caller is compiled for the enabled target
/// features.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn parts<const N: usize>(mut first: __m512, mut second: __m512) -> [__m512i; N] {
    let mut parts = [_mm512_setzero_si512(); N];
    for part in &mut parts {
        let rounded: __m512i = bits(_mm512_cvtne2ps_pbh(second, first));
        *part = rounded;
        first = _mm512_sub_ps(first, widened(_mm512_castsi512_si256(rounded)));
        second = _mm512_sub_ps(second, widened(_mm512_extracti64x4_epi64::<1>(rounded)));
    }
    parts
}

/// Splits 32 f32 into bf16 parts, like [`parts`]. The values are given as one register of even and one of odd elements;
/// the results have the original order.
///
/// # Safety
/// As [`parts`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn pair_parts<const N: usize>(mut even: __m512, mut odd: __m512) -> [__m512i; N] {
    let mut parts = [_mm512_setzero_si512(); N];
    let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
    // Index vector that interleaves the two halves of a register: element `i` of the lower half, then element `i` of
    // the upper half.
    let in_turn = _mm512_add_epi32(
        _mm512_set1_epi32(0x10_0000),
        _mm512_mullo_epi32(
            _mm512_set1_epi32(0x1_0001),
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
        ),
    );
    for part in &mut parts {
        let rounded: __m512i = bits(_mm512_cvtne2ps_pbh(odd, even)); // even elements in the lower half
        *part = _mm512_permutexvar_epi16(in_turn, rounded);
        even = _mm512_sub_ps(even, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(*part)));
        odd = _mm512_sub_ps(odd, _mm512_castsi512_ps(_mm512_and_si512(*part, upper)));
    }
    parts
}

/// Packs up to 16 columns into `[steps, PARTS]` tiles of bf16 pairs. Column `c` has `d_in` values at `at(c)`.
///
/// # Safety
/// The CPU supports the enabled target features, and `at(c)` is valid for `d_in` values.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn pack_columns(n_columns: usize, at: impl Fn(usize) -> *const f32, d_in: usize, out: &mut [f32]) {
    for (step, tiles) in out.chunks_exact_mut(PARTS * TILE / size_of::<f32>()).enumerate() {
        let mut columns = [[_mm512_setzero_si512(); ROWS]; PARTS];
        for column in 0..ROWS.min(n_columns) {
            // SAFETY: masked loads do not read past the end of the column.
            let values: [__m512i; PARTS] = unsafe {
                let [first, second] = load(at(column), step * STEP, d_in);
                parts(first, second)
            };
            for part in 0..PARTS {
                columns[part][column] = values[part];
            }
        }
        for (part, columns) in columns.into_iter().enumerate() {
            // SAFETY: a tile has 16 rows of 64 bytes.
            unsafe { store_transposed(columns, tiles.as_mut_ptr().cast::<u8>().add(part * TILE)) };
        }
    }
}

/// Transposes 16 × 16 elements of 32 bits and writes them as a tile.
///
/// # Safety
/// The CPU supports the enabled target features; `out` is valid for writing a tile.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn store_transposed(rows: [__m512i; ROWS], out: *mut u8) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        for (row, values) in transposed(rows).into_iter().enumerate() {
            _mm512_storeu_si512(out.add(row * 64).cast(), values);
        }
    }
}

/// Returns the mask of the lanes before index `end`, if the first of the 16 lanes is at index `at`.
pub(crate) fn mask(at: usize, end: usize) -> u16 {
    match end.saturating_sub(at) {
        n @ 0..16 => (1 << n) - 1,
        _ => u16::MAX,
    }
}

/// Loads 32 values of a row of length `d_in`, from column `at`. Columns past the end of the row are zero.
///
/// # Safety
/// The CPU supports the enabled target features, and `row` is valid for `d_in` values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn load(row: *const f32, at: usize, d_in: usize) -> [__m512; 2] {
    // SAFETY: masked loads do not read past the end of the row.
    unsafe { [at, at + 16].map(|at| _mm512_maskz_loadu_ps(mask(at, d_in), row.wrapping_add(at))) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bits(values: __m512bh) -> __m512i {
    // SAFETY: both types are 64 bytes of plain data.
    unsafe { std::mem::transmute(values) }
}

/// Converts bf16 to f32.
#[inline]
#[target_feature(enable = "avx512f")]
fn widened(values: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(values)))
}

/// Transposes 16 × 16 elements of 32 bits.
///
/// # Safety
/// As [`parts`].
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    // Interleave neighbouring rows, then pairs of rows, then the 128-bit quarters of the registers.
    let mut pairs = [_mm512_setzero_si512(); 16];
    for i in (0..16).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    let mut fours = [_mm512_setzero_si512(); 16];
    for i in (0..16).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    // `fours[4 g + c]` holds column `c + 4 q` of rows `4 g .. 4 g + 4` in its quarter `q`.
    let mut columns = [_mm512_setzero_si512(); 16];
    for c in 0..4 {
        let [a, b, d, e] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
        let low_ab = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b); // quarters 0 and 2 of `a` and `b`
        let high_ab = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b); // quarters 1 and 3 of `a` and `b`
        let low_de = _mm512_shuffle_i32x4::<0b10_00_10_00>(d, e);
        let high_de = _mm512_shuffle_i32x4::<0b11_01_11_01>(d, e);
        columns[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low_ab, low_de);
        columns[4 + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(high_ab, high_de);
        columns[8 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low_ab, low_de);
        columns[12 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(high_ab, high_de);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::super::is_available;
    use super::*;
    use crate::IsaLevel;

    #[test]
    fn transposes_rows_into_columns() {
        if !is_available() {
            assert_ne!(IsaLevel::required(), Ok(Some(IsaLevel::Amx)), "this CPU does not support AMX");
            return;
        }
        let rows: [[u32; 16]; 16] = std::array::from_fn(|row| std::array::from_fn(|column| (16 * row + column) as u32));
        // SAFETY: AMX is available, and both types are arrays of 16 × 64 bytes.
        let columns = unsafe {
            let rows = std::mem::transmute::<[[u32; 16]; 16], [__m512i; 16]>(rows);
            std::mem::transmute::<[__m512i; 16], [[u32; 16]; 16]>(transposed(rows))
        };
        for (c, column) in columns.iter().enumerate() {
            assert_eq!(*column, std::array::from_fn(|row| (16 * row + c) as u32));
        }
    }
}
