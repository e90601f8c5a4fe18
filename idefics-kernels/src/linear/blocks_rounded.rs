//! GGUF blocks on AVX-512 with VNNI: products of many rows of activations that are rounded to eight bits.
//!
//! The codes of sixteen weight rows are transposed, so that each lane belongs to one output feature. One instruction
//! then adds the products of four columns to each of sixteen lanes. The codes become unsigned bytes by an offset of
//! 128, and sums start at −128 times the sum of the activations to compensate.

use std::arch::x86_64::*;
use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::super::Product;
use super::avx2::by_kind;
use super::avx2::formats::{Format, PART, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use super::avx2::packed::{largest, scale, steps, super_scale};
use crate::Isa;
use crate::amx::transposed;
use crate::formats::{Blocks, GgufType};
use crate::shared::with_scratch;

/// Number of output features in a panel: one per lane.
const PANEL: usize = 16;

/// Number of panels that share each load of activations.
const PANELS: usize = 2;

/// Number of activation rows that share each load of weights.
const ROWS: usize = 6;

/// Number of bytes that four columns of a panel take.
const GROUP: usize = 4 * PANEL;

/// Where the numbers of a row of activations are, in f32 values from its start. The codes are first.
#[derive(Clone, Copy)]
struct Places {
    /// Scales of the parts.
    scales: usize,
    /// Sums of the rounded activations of the parts.
    sums: usize,
    /// Initial values of the integer sums, [`Format::SCALES`] for each part.
    initial: usize,
    /// Length of the row.
    stride: usize,
}

impl Places {
    fn of(d_in: usize, n_scales: usize) -> Self {
        let (scales, parts) = (d_in / size_of::<f32>(), d_in / PART);
        let (sums, initial) = (scales + parts, scales + 2 * parts);
        Self { scales, sums, initial, stride: initial + n_scales * parts }
    }
}

/// Computes the product. The type must be one that has loops here.
pub(super) fn product(product: &Product<'_>, weight: &Blocks<'_>) {
    assert!(matches!(product.isa, Isa::Avx512 | Isa::Amx), "CPU support was not checked");
    by_kind!(weight.kind(), F => product_of::<F>(product, weight));
}

fn product_of<F: Format>(product: &Product<'_>, weight: &Blocks<'_>) {
    let (d_in, parts) = (product.d_in, product.d_in / PART);
    let places = Places::of(d_in, F::SCALES);
    with_scratch(product.n_rows * places.stride, |rows| {
        rows.par_chunks_exact_mut(places.stride).zip(product.x.par_chunks_exact(d_in)).for_each(|(row, x)| {
            // SAFETY: the caller and `Product::checked` guarantee CPU support.
            unsafe { round::<F>(x, places, row) };
        });
        let (rows, codes_len) = (&*rows, d_in * PANEL / size_of::<f32>());
        let panel_len = codes_len + parts * (F::SCALES + usize::from(F::HAS_MINIMA)) * PANEL;
        product.split_weights(weight.dims(), PANELS * PANEL, |range| {
            with_scratch(PANELS * panel_len, |scratch| {
                for first in range.clone().step_by(PANELS * PANEL) {
                    let features = first..range.end.min(first + PANELS * PANEL);
                    for (index, panel) in scratch.chunks_exact_mut(panel_len).enumerate() {
                        let (codes, numbers) = panel.split_at_mut(codes_len);
                        // SAFETY: as above.
                        unsafe { expand::<F>(weight, first + index * PANEL, codes, numbers) };
                    }
                    // SAFETY: as above; tasks write disjoint features.
                    unsafe { all_rows::<F>(product, features, scratch, rows, places) };
                }
            });
        });
    });
}

/// Rounds a row of activations to eight bits, in the groups and with the rounding of llama.cpp.
///
/// # Safety
/// The CPU supports the enabled target features.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn round<F: Format>(x: &[f32], places: Places, row: &mut [f32]) {
    assert!(row.len() == places.stride && places.scales * size_of::<f32>() == x.len());
    for (group, x) in x.chunks_exact(F::PARTS * PART).enumerate() {
        // SAFETY: the caller guarantees CPU support.
        let (per_unit, size) = unsafe {
            if F::PARTS == 1 {
                let (per_unit, size) = scale(largest(x), 127.0);
                (per_unit, f16::from_f32(size).to_f32())
            } else {
                super_scale(x)
            }
        };
        for (index, x) in x.chunks_exact(PART).enumerate() {
            let part = group * F::PARTS + index;
            // SAFETY: as above.
            let codes = unsafe { steps(x, per_unit) }.map(|step| step.min(127) as i8);
            let sum = |codes: &[i8]| codes.iter().map(|code| i32::from(*code)).sum::<i32>();
            let out: &mut [i8] = bytemuck::cast_slice_mut(&mut row[part * PART / 4..(part + 1) * PART / 4]);
            out.copy_from_slice(&codes);
            row[places.scales + part] = size;
            row[places.sums + part] = size * sum(&codes) as f32;
            for (index, codes) in codes.chunks_exact(PART / F::SCALES).enumerate() {
                let initial = -128 * sum(codes);
                row[places.initial + part * F::SCALES + index] = f32::from_bits(initial.cast_unsigned());
            }
        }
    }
}

/// Expands sixteen weight rows from row `first` on. `codes` receives `[d_in / 4, 16, 4]`: groups of four columns,
/// features, columns of a group. `numbers` receives the scales and then the minima of each part, `[16]` each. Rows past
/// the end of the weight are replaced by its last row.
///
/// # Safety
/// The CPU supports the enabled target features.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn expand<F: Format>(weight: &Blocks<'_>, first: usize, codes: &mut [f32], numbers: &mut [f32]) {
    let [d_out, d_in] = weight.dims();
    let (row_bytes, n_numbers) = (weight.row_bytes(), (F::SCALES + usize::from(F::HAS_MINIMA)) * PANEL);
    let blocks_len = F::PARTS * PART;
    assert!(codes.len() == d_in * PANEL / size_of::<f32>() && numbers.len() == d_in / PART * n_numbers);
    assert_eq!(row_bytes * blocks_len, d_in * F::BYTES, "a row must be whole blocks");
    let starts: [*const u8; PANEL] = std::array::from_fn(|lane| {
        let row = (first + lane).min(d_out - 1);
        weight.as_bytes()[row * row_bytes..(row + 1) * row_bytes].as_ptr()
    });
    let (codes, n_blocks) = (codes.as_mut_ptr().cast::<u8>(), d_in / blocks_len);
    // SAFETY: the blocks are inside their rows, and the output has room for them, as checked above.
    unsafe {
        if F::PARTS == 1 {
            for block in (0..n_blocks).step_by(2) {
                let has_two = block + 1 < n_blocks;
                let mut rows = [_mm512_setzero_si512(); PANEL];
                for lane in 0..PANEL {
                    let (at, second) = (starts[lane].add(block * F::BYTES), if has_two { F::BYTES } else { 0 });
                    rows[lane] = unsigned(F::codes::<0>(at), F::codes::<0>(at.add(second)));
                    let numbers = &mut numbers[block * n_numbers..];
                    write_numbers::<F, 0>(&F::open(at), lane, numbers);
                    if has_two {
                        write_numbers::<F, 0>(&F::open(at.add(second)), lane, &mut numbers[n_numbers..]);
                    }
                }
                store(rows, if has_two { 16 } else { 8 }, codes.add(block * PART * PANEL));
            }
            return;
        }
        for block in 0..n_blocks {
            let mut blocks = starts;
            let numbers = &mut numbers[block * F::PARTS * n_numbers..];
            for lane in 0..PANEL {
                blocks[lane] = starts[lane].add(block * F::BYTES);
                let opened = F::open(blocks[lane]);
                macro_rules! each {
                    ($($part:literal)*) => { $(write_numbers::<F, $part>(
                        &opened, lane, &mut numbers[$part * n_numbers..],
                    );)* };
                }
                each!(0 1 2 3 4 5 6 7);
            }
            macro_rules! pairs {
                ($($first:literal $second:literal),*) => { $(
                    let mut rows = [_mm512_setzero_si512(); PANEL];
                    for lane in 0..PANEL {
                        rows[lane] = unsigned(F::codes::<$first>(blocks[lane]), F::codes::<$second>(blocks[lane]));
                    }
                    store(rows, 16, codes.add((block * F::PARTS + $first) * PART * PANEL));
                )* };
            }
            pairs!(0 1, 2 3, 4 5, 6 7);
        }
    }
}

/// Joins the codes of two parts as unsigned bytes, with an offset of 128.
#[inline(always)]
unsafe fn unsigned(first: __m256i, second: __m256i) -> __m512i {
    // SAFETY: the caller guarantees CPU support.
    unsafe {
        let codes = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second);
        _mm512_xor_si512(codes, _mm512_set1_epi8(-128))
    }
}

/// Transposes the codes of sixteen rows, and writes the first `n_groups` groups of four columns.
#[inline(always)]
unsafe fn store(rows: [__m512i; PANEL], n_groups: usize, out: *mut u8) {
    // SAFETY: the caller guarantees CPU support and room for the groups.
    unsafe {
        for (group, codes) in transposed(rows).into_iter().enumerate().take(n_groups) {
            _mm512_storeu_si512(out.add(group * GROUP).cast(), codes);
        }
    }
}

/// Writes the scales and the minimum of part `P` of a block of row `lane`.
#[inline(always)]
unsafe fn write_numbers<F: Format, const P: usize>(opened: &F::Open, lane: usize, numbers: &mut [f32]) {
    // SAFETY: the caller guarantees CPU support; lanes 4 to 7 of the scale belong to the last 16 columns.
    unsafe {
        let scale = F::scale::<P>(opened);
        numbers[lane] = _mm256_cvtss_f32(scale);
        if F::SCALES == 2 {
            numbers[PANEL + lane] = _mm_cvtss_f32(_mm256_extractf128_ps::<1>(scale));
        }
        if F::HAS_MINIMA {
            numbers[F::SCALES * PANEL + lane] = F::minimum::<P>(opened);
        }
    }
}

/// Computes the output features `features` of all rows from two panels.
///
/// # Safety
/// The CPU supports the enabled target features, and no other task writes these features.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn all_rows<F: Format>(
    product: &Product<'_>,
    features: Range<usize>,
    panels: &[f32],
    rows: &[f32],
    places: Places,
) {
    assert_eq!(rows.len(), product.n_rows * places.stride, "there must be all rows");
    let mut first = 0;
    while first < product.n_rows {
        // SAFETY: the panels have been written for the type, and the rows are checked above.
        unsafe {
            match product.n_rows - first {
                ROWS.. => {
                    together::<F, ROWS>(product, features.clone(), panels, rows, places, first);
                    first += ROWS;
                }
                2.. => {
                    together::<F, 2>(product, features.clone(), panels, rows, places, first);
                    first += 2;
                }
                _ => {
                    together::<F, 1>(product, features.clone(), panels, rows, places, first);
                    first += 1;
                }
            }
        }
    }
}

/// [`all_rows`] for `N` rows from row `first` on.
#[inline(always)]
unsafe fn together<F: Format, const N: usize>(
    product: &Product<'_>,
    features: Range<usize>,
    panels: &[f32],
    rows: &[f32],
    places: Places,
    first: usize,
) {
    let (parts, panel_len) = (product.d_in / PART, panels.len() / PANELS);
    let n_numbers = (F::SCALES + usize::from(F::HAS_MINIMA)) * PANEL;
    let (groups, codes_len) = (PART / 4 / F::SCALES, product.d_in * PANEL / size_of::<f32>());
    // SAFETY: guaranteed by the caller.
    unsafe {
        let row = rows.as_ptr().add(first * places.stride);
        let panels: [*const f32; PANELS] = [panels.as_ptr(), panels.as_ptr().add(panel_len)];
        let mut sums = [[_mm512_setzero_ps(); PANELS]; N];
        for part in 0..parts {
            for index in 0..F::SCALES {
                let mut products = [[_mm512_setzero_si512(); PANELS]; N];
                for n in 0..N {
                    let initial = row.add(n * places.stride + places.initial + part * F::SCALES + index);
                    products[n] = [_mm512_set1_epi32(initial.cast::<i32>().read()); PANELS];
                }
                for group in 0..groups {
                    let at = part * PART / 4 + index * groups + group;
                    let mut weights = [_mm512_setzero_si512(); PANELS];
                    for panel in 0..PANELS {
                        weights[panel] = _mm512_loadu_si512(panels[panel].add(at * PANEL).cast());
                    }
                    for n in 0..N {
                        let x = _mm512_set1_epi32(row.add(n * places.stride + at).cast::<i32>().read());
                        for panel in 0..PANELS {
                            products[n][panel] = _mm512_dpbusd_epi32(products[n][panel], weights[panel], x);
                        }
                    }
                }
                for panel in 0..PANELS {
                    let scales = _mm512_loadu_ps(panels[panel].add(codes_len + part * n_numbers + index * PANEL));
                    for n in 0..N {
                        let size = _mm512_set1_ps(*row.add(n * places.stride + places.scales + part));
                        let values = _mm512_cvtepi32_ps(products[n][panel]);
                        sums[n][panel] = _mm512_fmadd_ps(values, _mm512_mul_ps(scales, size), sums[n][panel]);
                    }
                }
            }
            if F::HAS_MINIMA {
                for panel in 0..PANELS {
                    let at = codes_len + part * n_numbers + F::SCALES * PANEL;
                    let minima = _mm512_loadu_ps(panels[panel].add(at));
                    for n in 0..N {
                        let sum = _mm512_set1_ps(*row.add(n * places.stride + places.sums + part));
                        sums[n][panel] = _mm512_fmadd_ps(minima, sum, sums[n][panel]);
                    }
                }
            }
        }
        for n in 0..N {
            let mut values = [0f32; PANELS * PANEL];
            for panel in 0..PANELS {
                _mm512_storeu_ps(values.as_mut_ptr().add(panel * PANEL), sums[n][panel]);
            }
            let out = product.out.slice((first + n) * product.d_out + features.start, features.len());
            for ((out, value), feature) in out.iter_mut().zip(values).zip(features.clone()) {
                *out = value + product.bias_at(feature);
            }
        }
    }
}
