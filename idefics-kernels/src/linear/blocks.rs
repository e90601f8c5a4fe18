//! Few rows of activations times a weight in GGUF blocks, and the expansion of such weights.
//!
//! The most common types have AVX2 loops ([`avx2`]), which AVX-512 and AMX machines run too. For all other types and
//! instruction sets, rows are dequantised one after another ([`super::plain`]).
//!
//! Activations stay f32; codes are converted from eight-bit integers. Scales are applied per 32 columns: to the sum of
//! these columns with one row of activations, and to each weight with more rows. The result is the product with the
//! dequantised weight, computed in another order. A minimum (of `q4_1`, `q4_k` and similar types) is multiplied by the
//! sum of 32 activations, not by each activation.

#![allow(unsafe_code)] // calls code compiled for an instruction set

use std::ops::Range;

use super::{Isa, Product, plain};
use crate::formats::{Blocks, Weight};

#[cfg(target_arch = "x86_64")]
#[path = "blocks_avx2.rs"]
mod avx2;

/// Computes the product for at most [`super::MAX_GEMV_ROWS`] rows of activations. `weight` holds `blocks`.
pub(super) fn product(product: &Product<'_>, blocks: &Blocks<'_>, weight: &Weight<'_>) {
    #[cfg(target_arch = "x86_64")]
    if matches!(product.isa, Isa::Avx2 | Isa::Avx512 | Isa::Amx) && avx2::supports(blocks.kind()) {
        return avx2::product(product, blocks);
    }
    plain::product(product, weight);
}

/// Expands rows `range` to f32, `[range.len(), d_in]`, to the same bits as [`Blocks::dequantize_rows`]. The caller has
/// checked CPU support for `isa`.
pub(super) fn expand(isa: Isa, blocks: &Blocks<'_>, range: Range<usize>, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx2 | Isa::Avx512 | Isa::Amx) && avx2::supports(blocks.kind()) {
        return avx2::expand(isa, blocks, range, out);
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
