//! Numbers as sums of bf16, in the order of tiles.

use std::arch::x86_64::*;

use super::{PARTS, ROWS, STEP, TILE};

/// 32 f32, two registers of neighbours, as the sum of `N` registers of bf16.
///
/// # Safety
/// [`is_available`], and the caller is compiled for the instructions.
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

/// 32 f32, those of even and of odd places, as the sum of `N` registers of bf16 in order.
///
/// # Safety
/// As [`parts`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn pair_parts<const N: usize>(mut even: __m512, mut odd: __m512) -> [__m512i; N] {
    let mut parts = [_mm512_setzero_si512(); N];
    let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
    // Lane by lane the one of the lower half, then the one of the upper.
    let in_turn = _mm512_add_epi32(
        _mm512_set1_epi32(0x10_0000),
        _mm512_mullo_epi32(
            _mm512_set1_epi32(0x1_0001),
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
        ),
    );
    for part in &mut parts {
        let rounded: __m512i = bits(_mm512_cvtne2ps_pbh(odd, even)); // even ones in the lower half
        *part = _mm512_permutexvar_epi16(in_turn, rounded);
        even = _mm512_sub_ps(even, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(*part)));
        odd = _mm512_sub_ps(odd, _mm512_castsi512_ps(_mm512_and_si512(*part, upper)));
    }
    parts
}

/// Up to 16 columns as `[steps, PARTS]` tiles of pairs: column `c` has the `d_in` values at `at(c)`.
///
/// # Safety
/// The machine has the instructions, and the values are there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn pack_columns(n_columns: usize, at: impl Fn(usize) -> *const f32, d_in: usize, out: &mut [f32]) {
    for (step, tiles) in out.chunks_exact_mut(PARTS * TILE / size_of::<f32>()).enumerate() {
        let mut columns = [[_mm512_setzero_si512(); ROWS]; PARTS];
        for column in 0..ROWS.min(n_columns) {
            // SAFETY: masked loads stay inside the column.
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

/// Writes a tile whose rows are the columns of 32 bits of `rows`.
///
/// # Safety
/// The machine has the instructions; `out` is valid for a tile.
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

/// Lanes of 16 that lie before `end`, if the first is at `at`.
pub(crate) fn mask(at: usize, end: usize) -> u16 {
    match end.saturating_sub(at) {
        n @ 0..16 => (1 << n) - 1,
        _ => u16::MAX,
    }
}

/// 32 values from column `at` of a row of `d_in`, zero behind its end.
///
/// # Safety
/// The machine has the instructions, and the row is there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) unsafe fn load(row: *const f32, at: usize, d_in: usize) -> [__m512; 2] {
    // SAFETY: masks hide what is behind the row's end.
    unsafe { [at, at + 16].map(|at| _mm512_maskz_loadu_ps(mask(at, d_in), row.wrapping_add(at))) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bits(values: __m512bh) -> __m512i {
    // SAFETY: both are 64 bytes without meaning of their own.
    unsafe { std::mem::transmute(values) }
}

/// bf16 as f32.
#[inline]
#[target_feature(enable = "avx512f")]
fn widened(values: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(values)))
}

/// Rows become columns of 32 bits.
///
/// # Safety
/// As [`parts`].
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    // Pairs of neighbours, then of pairs, then of quarters, then of halves.
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
    // `fours[4 g + c]` holds column `c + 4 q` of rows `4 g ..` in quarter `q`.
    let mut columns = [_mm512_setzero_si512(); 16];
    for c in 0..4 {
        let [a, b, d, e] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
        let low_ab = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b); // quarters 0 and 2 of each
        let high_ab = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b); // quarters 1 and 3
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
    fn rows_become_columns() {
        if !is_available() {
            assert_ne!(IsaLevel::required(), Ok(Some(IsaLevel::Amx)), "this machine has no AMX");
            return;
        }
        let rows: [[u32; 16]; 16] = std::array::from_fn(|row| std::array::from_fn(|column| (16 * row + column) as u32));
        // SAFETY: the instructions are there, and both are arrays of 64 bytes.
        let columns = unsafe {
            let rows = std::mem::transmute::<[[u32; 16]; 16], [__m512i; 16]>(rows);
            std::mem::transmute::<[__m512i; 16], [[u32; 16]; 16]>(transposed(rows))
        };
        for (c, column) in columns.iter().enumerate() {
            assert_eq!(*column, std::array::from_fn(|row| (16 * row + c) as u32));
        }
    }
}
