//! Products of many rows of activations: panels of the weight are expanded to f32 and multiplied by the `gemm` crate.

#![allow(unsafe_code)] // gemm takes raw pointers; tasks write disjoint parts of one slice

use std::ops::Range;

use gemm::Parallelism;

use super::decode::Rows;
use super::{Product, blocks, by_format, int4, is_uneven, on_isa, q4};
use crate::Isa;
use crate::formats::{Q4_BLOCK, Q4_PANEL, Weight};
use crate::shared::with_scratch;

/// Maximum scratch memory per thread, in bytes. A panel has at least sixteen rows, even if they need more.
const PANEL_BYTES: usize = 4 << 20;

/// Maximum number of panels into which a small weight is split to share the work among threads.
const MAX_SHARES: usize = 8;

/// Approximate minimum number of output features in a panel. With fewer features, packing the activations takes too
/// large a share of the time.
const SHARE: usize = 96;

pub(super) fn product(product: &Product<'_>, weight: &Weight<'_>) {
    let filled = product.d_in.next_multiple_of(Q4_BLOCK);
    let panel = (PANEL_BYTES / (filled * size_of::<f32>()) / Q4_PANEL).max(1) * Q4_PANEL;
    // Small weights are split too. The split must not depend on the number of threads, because gemm's order of
    // summation depends on the width of the panel.
    let shares = product.d_out.div_ceil(SHARE).min(MAX_SHARES);
    let panel = panel.min(product.d_out.div_ceil(shares).next_multiple_of(Q4_PANEL));
    product.split_evenly(panel, |range| match weight {
        Weight::F32(weight) => {
            let first = range.start * product.d_in;
            multiply(product, range, &weight.values()[first..], [product.d_in, 1]);
        }
        Weight::Q4(weight) => with_scratch(panel * filled, |scratch| {
            let width = range.len().next_multiple_of(Q4_PANEL);
            q4::expand(product, weight, range.clone(), &mut scratch[..width * filled]);
            multiply(product, range, scratch, [1, width]);
        }),
        _ => with_scratch(panel * product.d_in, |scratch| {
            let scratch = &mut scratch[..range.len() * product.d_in];
            expand(product.isa, weight, range.clone(), scratch);
            multiply(product, range, scratch, [product.d_in, 1]);
        }),
    });
}

/// Expands rows `range` to f32, `[range.len(), d_in]`. The caller has checked CPU support for `isa`.
pub(super) fn expand(isa: Isa, weight: &Weight<'_>, range: Range<usize>, out: &mut [f32]) {
    if isa == Isa::Plain || is_uneven(weight) || matches!(weight, Weight::Q4(_)) {
        return weight.dequantize_rows(range, out);
    }
    if let Weight::Int4(weight) = weight {
        return int4::expand(isa, weight, range, out);
    }
    if let Weight::Blocks(weight) = weight {
        return blocks::expand(isa, weight, range, out);
    }
    let rows = Rows::of(weight);
    // SAFETY: the callers have checked CPU support.
    by_format!(weight, Format => on_isa!(isa, isa => unsafe { isa::expand::<Format>(&rows, range, out) }));
}

/// Computes the output features `features` from their expanded weights. The strides are the distances from row to row
/// and from column to column, in values.
fn multiply(product: &Product<'_>, features: Range<usize>, weights: &[f32], [row_stride, column_stride]: [usize; 2]) {
    let Product { x, n_rows, d_in, d_out, bias, .. } = *product;
    assert!((features.len() - 1) * row_stride + (d_in - 1) * column_stride < weights.len());
    if let Some(bias) = bias {
        for n in 0..n_rows {
            // SAFETY: tasks write disjoint features.
            unsafe { product.out.slice(n * d_out + features.start, features.len()) }
                .copy_from_slice(&bias[features.clone()]);
        }
    }
    assert!(product.out.len() >= (n_rows - 1) * d_out + features.end);
    // The transposed product: [features, n_rows] = weights [features, d_in] · x transposed [d_in, n_rows].
    // SAFETY: the assertions bound all reads and writes, and tasks write disjoint features.
    unsafe {
        gemm::gemm(
            features.len(),
            n_rows,
            d_in,
            product.out.pointer(features.start),
            d_out as isize,
            1,
            bias.is_some(),
            weights.as_ptr(),
            column_stride as isize,
            row_stride as isize,
            x.as_ptr(),
            d_in as isize,
            1,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
