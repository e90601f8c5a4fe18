//! Products of integers: activations are rounded to eight bits, row by row, and multiplied with eight-bit codes.
//!
//! `x ≈ q · scale`, `q` from −127 to 127, with a scale for each row of activations. Sums of products of codes are exact,
//! so that every instruction set gives the same bits; what follows is one multiplication for int8, and one fused
//! multiplication and addition a block, in order, for q4.

#![allow(unsafe_code)] // vectors, and tasks that write disjoint parts of one slice

use std::ops::Range;

use rayon::prelude::*;

use super::super::shared::with_scratch;
use super::super::vector::{Vector, Work};
use super::{Isa, Product};
use crate::formats::{Int8, Q4, Q4_BLOCK, Q4_PANEL, Q4_TABLE, Weight};

#[cfg(target_arch = "x86_64")]
#[path = "int8_amx.rs"]
mod amx;
#[cfg(target_arch = "x86_64")]
#[path = "int8_avx512.rs"]
mod avx512;

/// Columns up to a multiple of which rows of codes are filled up.
const STEP: usize = 64;

/// The largest code.
const LARGEST: f32 = 127.0;

/// A weight whose codes can be multiplied as integers.
#[derive(Clone, Copy)]
pub(super) enum Codes<'a> {
    Int8(&'a Int8<'a>),
    Q4(&'a Q4<'a>),
}

impl<'a> Codes<'a> {
    /// The codes of int8 and q4; the other formats stand for numbers that are no integers.
    pub(super) fn of(weight: &'a Weight<'_>) -> Option<Self> {
        match weight {
            Weight::Int8(weight) => Some(Self::Int8(weight)),
            Weight::Q4(weight) => Some(Self::Q4(weight)),
            _ => None,
        }
    }
}

/// Activations as integers.
#[derive(Clone, Copy)]
struct Rounded<'a> {
    /// `[n_rows, stride]`, zeros after the last column. There are rows of zeros up to a multiple of 32.
    codes: &'a [i8],
    stride: usize,
    /// `[n_rows]`.
    scales: &'a [f32],
}

impl Rounded<'_> {
    fn row(&self, row: usize) -> &[i8] {
        &self.codes[row * self.stride..(row + 1) * self.stride]
    }
}

/// The product with rounded activations.
pub(super) fn product(isa: Isa, product: &Product<'_>, weight: Codes<'_>) {
    let filled = product.d_in.next_multiple_of(STEP);
    // Rows whose distance is a multiple of a page fight for the same lines of the cache.
    let stride = if filled.is_multiple_of(1024) { filled + STEP } else { filled };
    let n_filled = product.n_rows.next_multiple_of(32);
    let values = n_filled * stride / size_of::<f32>();
    with_scratch(values + product.n_rows, |scratch| {
        let (codes, scales) = scratch.split_at_mut(values);
        let codes: &mut [i8] = bytemuck::cast_slice_mut(codes);
        let (rows, filling) = codes.split_at_mut(product.n_rows * stride);
        filling.fill(0);
        let rows = rows.par_chunks_mut(stride).zip(scales.par_iter_mut()).enumerate();
        rows.with_min_len(4).for_each(|(row, (codes, scale))| {
            let x = &product.x[row * product.d_in..(row + 1) * product.d_in];
            *scale = isa.run(Round { x, codes }, Round::plain);
        });
        let rounded = Rounded { codes, stride, scales };
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx if matches!(weight, Codes::Int8(_)) => amx::product(product, &rounded, weight),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx | Isa::Avx512 => avx512::product(product, &rounded, weight),
            _ => product.split_evenly(Q4_PANEL, |features| match weight {
                Codes::Int8(weight) => {
                    let work = Int8Panel { product, rounded, weight, features };
                    isa.run(work, Int8Panel::plain);
                }
                Codes::Q4(weight) => {
                    let work = Q4Panel { product, rounded, weight, features };
                    isa.run(work, Q4Panel::plain);
                }
            }),
        }
    });
}

/// Rounds one row and returns its scale: NaN if a value is not finite, so that every output of the row is.
struct Round<'a> {
    x: &'a [f32],
    codes: &'a mut [i8],
}

impl Round<'_> {
    #[inline(always)]
    fn plain(self) -> f32 {
        let (mut largest, mut check) = (0f32, 0f32);
        for value in self.x {
            largest = largest.max(value.abs());
            check += value * 0.0;
        }
        if largest < f32::MIN_POSITIVE {
            self.codes.fill(0);
            return check;
        }
        let reciprocal = LARGEST / largest;
        let reciprocal = if reciprocal.is_finite() { reciprocal } else { f32::MAX };
        let (codes, filling) = self.codes.split_at_mut(self.x.len());
        for (code, value) in codes.iter_mut().zip(self.x) {
            *code = (value * reciprocal).round_ties_even().clamp(-LARGEST, LARGEST) as i32 as i8;
        }
        filling.fill(0);
        largest / LARGEST + check
    }
}

impl Work for Round<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> f32 {
        self.plain()
    }
}

/// Exact sum of products.
#[inline(always)]
fn dot(left: &[i8], right: &[i8]) -> i32 {
    let mut sum = 0;
    for (left, right) in left.iter().zip(right) {
        sum += i32::from(*left) * i32::from(*right);
    }
    sum
}

/// Up to sixteen output features of an int8 weight.
struct Int8Panel<'a> {
    product: &'a Product<'a>,
    rounded: Rounded<'a>,
    weight: &'a Int8<'a>,
    features: Range<usize>,
}

impl Int8Panel<'_> {
    #[inline(always)]
    fn plain(self) {
        let Product { n_rows, d_in, .. } = *self.product;
        for feature in self.features {
            let codes = &self.weight.codes()[feature * d_in..(feature + 1) * d_in];
            for row in 0..n_rows {
                let sum = dot(&self.rounded.row(row)[..d_in], codes) as f32;
                let scale = self.rounded.scales[row] * self.weight.scales()[feature];
                self.product.write(row, feature, sum * scale);
            }
        }
    }
}

impl Work for Int8Panel<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        self.plain();
    }
}

/// One panel of a q4 weight.
struct Q4Panel<'a> {
    product: &'a Product<'a>,
    rounded: Rounded<'a>,
    weight: &'a Q4<'a>,
    features: Range<usize>,
}

impl Q4Panel<'_> {
    #[inline(always)]
    fn plain(self) {
        let Product { n_rows, d_in, .. } = *self.product;
        let blocks = d_in.div_ceil(Q4_BLOCK);
        for feature in self.features {
            for row in 0..n_rows {
                let mut sum = 0f32;
                for block in 0..blocks {
                    let mut entries = [0i8; Q4_BLOCK];
                    for (column, entry) in entries.iter_mut().enumerate() {
                        *entry = Q4_TABLE[self.weight.code(feature, block * Q4_BLOCK + column)];
                    }
                    let codes = &self.rounded.row(row)[block * Q4_BLOCK..(block + 1) * Q4_BLOCK];
                    let scale = self.weight.scale(feature, block).to_f32();
                    sum = (dot(codes, &entries) as f32).mul_add(scale, sum);
                }
                self.product.write(row, feature, sum * self.rounded.scales[row]);
            }
        }
    }
}

impl Work for Q4Panel<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        self.plain();
    }
}

impl Product<'_> {
    /// Writes one sum, with the bias, which is the caller's alone.
    #[inline(always)]
    fn write(&self, row: usize, feature: usize, sum: f32) {
        // SAFETY: tasks have disjoint features.
        unsafe { self.out.write(row * self.d_out + feature, sum + self.bias_at(feature)) };
    }
}
