//! The product in plain loops: for machines without SIMD, as the reference for the other instruction sets, and for
//! weights whose blocks span several rows.

#![allow(unsafe_code)] // tasks write disjoint parts of one slice

use super::Product;
use crate::formats::Weight;
use crate::shared::with_scratch;

/// Number of partial sums. With several sums, the compiler can use the vectors that every CPU of the architecture has.
const LANES: usize = 16;

pub(super) fn product(product: &Product<'_>, weight: &Weight<'_>) {
    let Product { x, n_rows, d_in, d_out, .. } = *product;
    product.split(weight.bytes(), 1, |range| {
        with_scratch(d_in, |row| {
            for feature in range {
                weight.dequantize_rows(feature..feature + 1, row);
                for n in 0..n_rows {
                    let value = dot(row, &x[n * d_in..(n + 1) * d_in]) + product.bias_at(feature);
                    // SAFETY: tasks write disjoint features.
                    unsafe { product.out.write(n * d_out + feature, value) };
                }
            }
        });
    });
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}
