//! Integer products with VNNI: one instruction adds four products of bytes to each of sixteen lanes. A lane is one
//! output feature.
//!
//! VNNI multiplies unsigned by signed bytes. Activation codes are offset by 128 to be unsigned, and sums start at
//! −128 times the sum of the weights to compensate.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::{Isa, Product};
use super::{Codes, Q4_BLOCK, Q4_PANEL, Q4_TABLE, Rounded, STEP};
use crate::amx::{mask, transposed};
use crate::formats::{Int8, Q4, Q4_TILE};
use crate::shared::with_scratch;

/// Output features per panel: one per lane.
const PANEL: usize = 16;

/// Number of panels that share each load of activations.
const PANELS: usize = 2;

/// Number of activation rows that share each load of weights.
const ROWS: usize = 6;

pub(super) fn product(product: &Product<'_>, rounded: &Rounded<'_>, weight: Codes<'_>) {
    assert!(matches!(product.isa, Isa::Avx512 | Isa::Amx), "CPU support was not checked");
    product.split_evenly(PANELS * PANEL, |features| {
        let groups = rounded.stride() / 4;
        // Number of groups of four columns that are summed before scaling.
        let together = match weight {
            Codes::Int8(_) => groups,
            Codes::Q4(_) => Q4_BLOCK / 4,
        };
        let panel_values = (groups + groups / together) * PANEL;
        with_scratch(PANELS * panel_values, |scratch| {
            let panels: [*mut u8; PANELS] =
                std::array::from_fn(|panel| scratch[panel * panel_values..].as_mut_ptr().cast());
            // SAFETY: the assertion checked CPU support; the scratch holds two panels; tasks write disjoint features.
            unsafe {
                for (panel, out) in panels.into_iter().enumerate() {
                    let first = features.start + panel * PANEL;
                    match weight {
                        Codes::Int8(weight) => expand_int8(weight, first, groups, out),
                        Codes::Q4(weight) => expand_q4(weight, first, groups, out),
                    }
                    write_initial_sums(out, groups, together);
                }
                let panels = panels.map(<*mut u8>::cast_const);
                let mut row = 0;
                while row < product.n_rows {
                    if row + ROWS <= product.n_rows {
                        rows::<ROWS>(product, rounded, weight, features.clone(), (panels, together), row);
                        row += ROWS;
                    } else {
                        rows::<1>(product, rounded, weight, features.clone(), (panels, together), row);
                        row += 1;
                    }
                }
            }
        });
    });
}

/// Packs the codes of sixteen weight rows as `[groups, 16, 4]`: groups of four columns, features, columns of a group.
/// Missing rows and columns are zero.
///
/// # Safety
/// The CPU supports the enabled target features; `out` is valid for `64 · groups` bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn expand_int8(weight: &Int8<'_>, first: usize, groups: usize, out: *mut u8) {
    let [d_out, d_in] = weight.dims();
    for step in 0..groups / 16 {
        let mut rows = [_mm512_setzero_si512(); PANEL];
        let at = step * STEP;
        let n = d_in.saturating_sub(at).min(STEP);
        let mask = if n == STEP { u64::MAX } else { (1 << n) - 1 };
        for (lane, row) in rows.iter_mut().enumerate().take(d_out.saturating_sub(first)) {
            let codes = weight.codes()[(first + lane) * d_in..(first + lane + 1) * d_in].as_ptr();
            // SAFETY: masked loads do not read past the end of the row.
            *row = unsafe { _mm512_maskz_loadu_epi8(mask, codes.wrapping_add(at)) };
        }
        // SAFETY: a step has sixteen groups of 64 bytes.
        unsafe {
            for (group, codes) in transposed(rows).into_iter().enumerate() {
                _mm512_storeu_si512(out.add((step * 16 + group) * 64).cast(), codes);
            }
        }
    }
}

/// Computes the initial value of each sum: −128 times the sum of the weights in the `together` groups that it covers.
/// Stores the initial values after the `groups` groups of the panel.
///
/// # Safety
/// As [`expand_int8`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn write_initial_sums(panel: *mut u8, groups: usize, together: usize) {
    let ones = _mm512_set1_epi8(1);
    // SAFETY: guaranteed by the caller.
    unsafe {
        for index in 0..groups / together {
            let mut sum = _mm512_setzero_si512();
            for group in index * together..(index + 1) * together {
                sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(panel.add(group * 64).cast()));
            }
            let initial = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32::<7>(sum));
            _mm512_storeu_si512(panel.add((groups + index) * 64).cast(), initial);
        }
    }
}

/// Expands a panel of a q4 weight to table entries, `[groups, 16, 4]`.
///
/// # Safety
/// As [`expand_int8`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn expand_q4(weight: &Q4<'_>, first: usize, groups: usize, out: *mut u8) {
    let [d_out, d_in] = weight.dims();
    let blocks = d_in.div_ceil(Q4_BLOCK);
    // SAFETY: a block has eight groups of 64 bytes, and the weight holds all codes of an existing panel.
    unsafe {
        let table = _mm_loadu_si128(Q4_TABLE.as_ptr().cast());
        let table = _mm512_broadcast_i32x4(table);
        let low = _mm512_set1_epi8(15);
        for block in 0..groups / 8 {
            let out = out.add(block * 8 * 64);
            if first >= d_out || block >= blocks {
                out.write_bytes(0, 8 * 64);
                continue;
            }
            let at = (first / Q4_PANEL * blocks + block) * Q4_TILE;
            let codes = weight.codes()[at..at + Q4_TILE].as_ptr();
            for group in 0..4 {
                let codes = _mm512_loadu_si512(codes.add(group * 64).cast());
                let halves = [_mm512_and_si512(codes, low), _mm512_and_si512(_mm512_srli_epi16::<4>(codes), low)];
                for (half, codes) in halves.into_iter().enumerate() {
                    let entries = _mm512_shuffle_epi8(table, codes);
                    _mm512_storeu_si512(out.add((4 * half + group) * 64).cast(), entries);
                }
            }
        }
    }
}

/// Multiplies `N` rows of activations by two panels. A sum covers `together` groups. This number is not a constant,
/// because the compiler would unroll the loop and run out of registers.
///
/// # Safety
/// The CPU supports the enabled target features, the panels hold the output features `features`, and no other task
/// writes these features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn rows<const N: usize>(
    product: &Product<'_>,
    rounded: &Rounded<'_>,
    weight: Codes<'_>,
    features: Range<usize>,
    (panels, together): ([*const u8; PANELS], usize),
    first: usize,
) {
    let groups = rounded.stride() / 4;
    // SAFETY: the rows exist and are padded to whole groups.
    unsafe {
        let x: [*const i8; N] = std::array::from_fn(|n| rounded.row(first + n).as_ptr());
        let sums: [[__m512; PANELS]; N] = match weight {
            Codes::Int8(weight) => {
                let sums = sum_groups::<N>(x, panels, 0..groups, groups);
                std::array::from_fn(|n| {
                    std::array::from_fn(|panel| {
                        let at = features.start + panel * PANEL;
                        let mask = mask(at, weight.scales().len());
                        let scales = _mm512_maskz_loadu_ps(mask, weight.scales().as_ptr().wrapping_add(at));
                        let scales = _mm512_mul_ps(_mm512_set1_ps(rounded.scales[first + n]), scales);
                        _mm512_mul_ps(_mm512_cvtepi32_ps(sums[n][panel]), scales)
                    })
                })
            }
            Codes::Q4(weight) => {
                let [d_out, d_in] = weight.dims();
                let blocks = d_in.div_ceil(Q4_BLOCK);
                let mut all = [[_mm512_setzero_ps(); PANELS]; N];
                for block in 0..blocks {
                    let sums = sum_groups::<N>(x, panels, together * block..together * (block + 1), groups + block);
                    for panel in 0..PANELS {
                        let at = features.start + panel * PANEL;
                        if at >= d_out {
                            continue;
                        }
                        let scales = (at / Q4_PANEL * blocks + block) * Q4_PANEL;
                        let scales = weight.scales()[scales..scales + Q4_PANEL].as_ptr();
                        let scales = _mm512_cvtepu16_epi32(_mm256_loadu_si256(scales.cast()));
                        let scales = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(scales));
                        for n in 0..N {
                            all[n][panel] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[n][panel]), scales, all[n][panel]);
                        }
                    }
                }
                std::array::from_fn(|n| {
                    all[n].map(|sums| _mm512_mul_ps(sums, _mm512_set1_ps(rounded.scales[first + n])))
                })
            }
        };
        for n in 0..N {
            for panel in 0..PANELS {
                let at = features.start + panel * PANEL;
                let mask = mask(at, features.end);
                let bias = match product.bias {
                    Some(bias) => _mm512_maskz_loadu_ps(mask, bias.as_ptr().wrapping_add(at)),
                    None => _mm512_setzero_ps(),
                };
                let out = product.out.pointer(((first + n) * product.d_out + at).min(product.out.len()));
                _mm512_mask_storeu_ps(out, mask, _mm512_add_ps(sums[n][panel], bias));
            }
        }
    }
}

/// Computes exact integer sums over the groups in `range`, starting from the initial values at group index `initial`.
/// Returns `[N, PANELS]` registers of sixteen features.
///
/// # Safety
/// The CPU supports the enabled target features. The panels have these groups, and the rows have `4 · range.end` codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn sum_groups<const N: usize>(
    x: [*const i8; N],
    panels: [*const u8; PANELS],
    range: Range<usize>,
    initial: usize,
) -> [[__m512i; PANELS]; N] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut sums = [panels.map(|panel| _mm512_loadu_si512(panel.add(initial * 64).cast())); N];
        for group in range {
            let weights = panels.map(|panel| _mm512_loadu_si512(panel.add(group * 64).cast()));
            for n in 0..N {
                let x = _mm512_set1_epi32(x[n].add(4 * group).cast::<i32>().read_unaligned());
                for panel in 0..PANELS {
                    sums[n][panel] = _mm512_dpbusd_epi32(sums[n][panel], x, weights[panel]);
                }
            }
        }
        sums
    }
}
