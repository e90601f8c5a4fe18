//! Products with a weight in GGUF blocks, and the expansion of such weights.
//!
//! The most common types have loops for AVX2 ([`avx2`]) and AVX-512 ([`avx512`], [`rounded`]); AMX machines run the
//! AVX-512 loops for few rows. All other types are expanded in panels on AVX-512 ([`avx512`]). On other instruction
//! sets, their rows are dequantised one after another ([`super::plain`]).
//!
//! With one row of activations, and with up to [`MAX_GEMV_ROWS`] on AVX-512, codes are multiplied as integers with activations of 22 to 24
//! bits. With more rows, activations stay f32, and codes are converted. Both give the product with the dequantised
//! weight to about the precision of f32. A minimum (of `q4_1`, `q4_k` and similar types) is multiplied by the sum of 32
//! activations, not by each activation.

#![allow(unsafe_code)] // calls code compiled for an instruction set

use std::ops::Range;

use half::f16;

use super::{Isa, MAX_GEMV_ROWS, Product, plain};
use crate::formats::{Blocks, GgufType, Weight};

#[cfg(target_arch = "x86_64")]
#[path = "blocks_avx2.rs"]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[path = "blocks_avx512.rs"]
mod avx512;
#[cfg(target_arch = "x86_64")]
#[path = "blocks_rounded.rs"]
mod rounded;

/// Activations of smaller magnitude than this count as zero in integer products, because the reciprocal of a scale would
/// overflow.
const SMALLEST: f32 = 1e-30;

/// How precisely activations are represented in integer products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
enum Precision {
    /// 22 to 24 bits, about the precision of f32.
    Exact,
    /// Eight bits.
    Rounded,
}

/// Largest number of activation rows for which AVX2 unpacks the codes again for every eight rows. For a prompt of 512
/// tokens, panels and gemm take less time.
const MAX_UNPACKED_ROWS: usize = 64;

/// Whether [`product`] is the fastest way to multiply this number of rows.
pub(super) fn is_fast(isa: Isa, blocks: &Blocks<'_>, n_rows: usize) -> bool {
    match isa {
        _ if n_rows <= MAX_GEMV_ROWS => true,
        // Unpacking the codes again takes less time than expanding panels of the weight and packing them for gemm.
        Isa::Avx2 => n_rows <= MAX_UNPACKED_ROWS && has_loops(isa, blocks.kind()),
        Isa::Avx512 => true,
        _ => false,
    }
}

/// Whether [`product`] multiplies this number of rows as integers.
pub(super) fn is_integer(isa: Isa, kind: GgufType, n_rows: usize) -> bool {
    // All small numbers of rows have the same kernels, so that a row has the same bits alone and in company. From five
    // rows on, converting the codes to f32 would take less time for some types.
    let most = if matches!(isa, Isa::Avx512 | Isa::Amx) { MAX_GEMV_ROWS } else { 1 };
    n_rows <= most && has_loops(isa, kind)
}

/// Whether an instruction set has loops of its own for a type.
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
fn has_loops(isa: Isa, kind: GgufType) -> bool {
    #[cfg(target_arch = "x86_64")]
    let has_loops = matches!(isa, Isa::Avx2 | Isa::Avx512 | Isa::Amx) && avx2::supports(kind);
    #[cfg(not(target_arch = "x86_64"))]
    let has_loops = false;
    has_loops
}

/// Computes the product. `weight` holds `blocks`.
pub(super) fn product(product: &Product<'_>, blocks: &Blocks<'_>, weight: &Weight<'_>) {
    #[cfg(target_arch = "x86_64")]
    match product.isa {
        isa if is_integer(isa, blocks.kind(), product.n_rows) => {
            return avx2::integers::product(product, blocks, Precision::Exact);
        }
        Isa::Avx512 | Isa::Amx => return avx512::product(product, blocks),
        isa if has_loops(isa, blocks.kind()) => return avx2::product(product, blocks),
        _ => {}
    }
    plain::product(product, weight);
}

/// Computes the product with activations that are rounded to eight bits in the groups of llama.cpp. [`rounds`]
/// must be true for the type of the blocks.
pub(super) fn rounded_product(product: &Product<'_>, blocks: &Blocks<'_>, weight: &Weight<'_>) {
    #[cfg(target_arch = "x86_64")]
    if has_loops(product.isa, blocks.kind()) {
        return match product.isa {
            Isa::Avx512 | Isa::Amx if product.n_rows > MAX_GEMV_ROWS => rounded::product(product, blocks),
            _ => avx2::integers::product(product, blocks, Precision::Rounded),
        };
    }
    let mut x = product.x.to_vec();
    round(blocks.kind(), &mut x);
    product.with_activations(&x, |product| plain::product(product, weight));
}

/// Whether there are products with rounded activations for a type.
pub(super) fn rounds(kind: GgufType) -> bool {
    use GgufType as T;
    matches!(kind, T::Q4_0 | T::Q4_1 | T::Q5_0 | T::Q5_1 | T::Q8_0 | T::Q4_K | T::Q5_K | T::Q6_K)
}

/// Rounds activations to eight bits. Each group of 32 columns has a scale of f16 precision (`Q8_0` of llama.cpp), or
/// each group of 256 columns a scale of f32 precision (`Q8_K`) if the type has blocks of 256 values.
fn round(kind: GgufType, x: &mut [f32]) {
    for x in x.chunks_exact_mut(kind.block_len()) {
        // The first value of largest magnitude, as in llama.cpp; NaN if a value is not a number.
        let extreme = x.iter().fold(0f32, |extreme, x| {
            if x.is_nan() || (x.abs() > extreme.abs() && !extreme.is_nan()) { *x } else { extreme }
        });
        let (per_unit, scale) = match kind.block_len() {
            _ if !extreme.is_finite() => (0.0, f32::NAN),
            _ if extreme.abs() < SMALLEST => (0.0, 0.0),
            256 => (-127.0 / extreme, 1.0 / (-127.0 / extreme)),
            _ => (127.0 / extreme.abs(), f16::from_f32(extreme.abs() / 127.0).to_f32()),
        };
        for x in x {
            *x = (*x * per_unit).round_ties_even().min(127.0) * scale;
        }
    }
}

/// Expands rows `range` to f32, `[range.len(), d_in]`, to the same bits as [`Blocks::dequantize_rows`]. The caller has
/// checked CPU support for `isa`.
pub(super) fn expand(isa: Isa, blocks: &Blocks<'_>, range: Range<usize>, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if has_loops(isa, blocks.kind()) {
        return match isa {
            Isa::Avx2 => avx2::expand(isa, blocks, range, out),
            _ => avx512::expand(isa, blocks, range, out),
        };
    }
    blocks.dequantize_rows(range, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::GgufType;

    #[test]
    fn expanded_rows_are_bitwise_equal_to_dequantised_rows() {
        for kind in GgufType::ALL.into_iter().filter(|kind| kind.block_len() > 1) {
            let (d_out, d_in) = (3, 512);
            let n = d_out * kind.row_bytes(d_in).expect("whole blocks");
            let bytes: Vec<u8> = (0..n).map(|i| ((i * 0x9E37) >> 5) as u8 & 0x7b).collect(); // all f16 are finite
            let blocks = Blocks::new(kind, bytes, d_out, d_in).expect("the size is right");
            let mut expected = vec![0f32; 2 * d_in];
            blocks.dequantize_rows(1..3, &mut expected);
            for isa in Isa::available() {
                let mut out = vec![0f32; 2 * d_in];
                expand(isa, &blocks, 1..3, &mut out);
                let same = out.iter().zip(&expected).all(|(out, expected)| out.to_bits() == expected.to_bits());
                assert!(same, "{isa:?} {kind:?}");
            }
        }
    }
}
