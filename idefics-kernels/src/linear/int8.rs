//! Integer products with int8 and q4 weights: activations are rounded to eight bits, row by row, and multiplied by
//! eight-bit codes.
//!
//! `x ≈ q · scale`, with `q` from −127 to 127 and one scale per row of activations. Sums of code products are exact
//! integers, so every instruction set gives the same bits. The sums are then scaled: with one multiplication for int8,
//! and with one fused multiply-add per block, in block order, for q4.

#![allow(unsafe_code)] // SIMD; tasks write disjoint parts of one slice

use std::ops::Range;

use rayon::prelude::*;

use super::{Isa, Product};
use crate::formats::{Int8, Q4, Q4_BLOCK, Q4_PANEL, Q4_TABLE, Weight};
use crate::shared::with_scratch;
use crate::vector::{Vector, Work};

#[cfg(target_arch = "x86_64")]
#[path = "int8_amx.rs"]
mod amx;
#[cfg(target_arch = "x86_64")]
#[path = "int8_avx512.rs"]
mod avx512;

/// Rows of codes are padded to a multiple of this many columns.
const STEP: usize = 64;

/// The largest code.
const LARGEST: f32 = 127.0;

/// A weight with codes that can be multiplied as integers.
#[derive(Clone, Copy)]
pub(super) enum Codes<'a> {
    Int8(&'a Int8<'a>),
    Q4(&'a Q4<'a>),
}

impl<'a> Codes<'a> {
    /// The codes of an int8 or q4 weight; `None` for other formats, whose values are not integers.
    pub(super) fn of(weight: &'a Weight<'_>) -> Option<Self> {
        match weight {
            Weight::Int8(weight) => Some(Self::Int8(weight)),
            Weight::Q4(weight) => Some(Self::Q4(weight)),
            _ => None,
        }
    }
}

/// Memory layout of the activation codes.
#[derive(Clone, Copy)]
enum Order {
    /// Row-major, with this many codes per row.
    Rows(usize),
    /// Row-major with this many codes per row. Codes are offset by 128, because VNNI needs unsigned activations.
    UnsignedRows(usize),
    /// Tiles of sixteen rows and [`STEP`] columns. A group of sixteen rows has this many tiles, one after another.
    Tiles(usize),
}

impl Order {
    /// Number of codes in sixteen rows.
    fn codes_per_tile(self) -> usize {
        match self {
            Self::Rows(stride) | Self::UnsignedRows(stride) => TILE_ROWS * stride,
            Self::Tiles(steps) => TILE_ROWS * steps * STEP,
        }
    }

    /// The code that represents 0.
    fn zero(self) -> i8 {
        if matches!(self, Self::UnsignedRows(_)) { i8::MIN } else { 0 }
    }

    /// Position of row `row` among sixteen rows: the index of its first code, and the distance from one step to the
    /// next.
    fn row(self, row: usize) -> (usize, usize) {
        match self {
            Self::Rows(stride) | Self::UnsignedRows(stride) => (row * stride, STEP),
            Self::Tiles(_) => (row * STEP, TILE_ROWS * STEP),
        }
    }
}

/// Number of rows that are rounded together: the rows of a tile.
const TILE_ROWS: usize = 16;

/// Activations, rounded to integers.
#[derive(Clone, Copy)]
struct Rounded<'a> {
    /// `[n_rows, columns]` in the layout `order`. Padding is the code that represents 0. The number of rows is padded
    /// to a multiple of 32.
    codes: &'a [i8],
    order: Order,
    /// One scale per row, `[n_rows]`.
    scales: &'a [f32],
}

impl Rounded<'_> {
    /// Distance between rows, in codes. Row-major layouts only.
    fn stride(&self) -> usize {
        match self.order {
            Order::Rows(stride) | Order::UnsignedRows(stride) => stride,
            Order::Tiles(_) => unreachable!("tiles are not row-major"),
        }
    }

    /// The codes of one row. Row-major layouts only.
    fn row(&self, row: usize) -> &[i8] {
        &self.codes[row * self.stride()..(row + 1) * self.stride()]
    }
}

/// Computes the product with rounded activations.
pub(super) fn product(product: &Product<'_>, weight: Codes<'_>) {
    let isa = product.isa;
    let filled = product.d_in.max(1).next_multiple_of(STEP);
    // Rows at a distance of a multiple of 1024 bytes would compete for the same cache lines.
    let stride = if filled.is_multiple_of(1024) { filled + STEP } else { filled };
    let order = match (isa, weight) {
        (Isa::Amx, Codes::Int8(_)) => Order::Tiles(filled / STEP),
        (Isa::Amx | Isa::Avx512, _) => Order::UnsignedRows(stride),
        _ => Order::Rows(stride),
    };
    let n_filled = product.n_rows.next_multiple_of(2 * TILE_ROWS);
    let values = n_filled / TILE_ROWS * order.codes_per_tile() / size_of::<f32>();
    with_scratch(values + n_filled, |scratch| {
        let (codes, scales) = scratch.split_at_mut(values);
        let codes: &mut [i8] = bytemuck::cast_slice_mut(codes);
        let tiles =
            codes.par_chunks_mut(order.codes_per_tile().max(1)).zip(scales.par_chunks_mut(TILE_ROWS)).enumerate();
        tiles.for_each(|(index, (codes, scales))| {
            for (row, scale) in scales.iter_mut().enumerate() {
                let at = (index * TILE_ROWS + row) * product.d_in;
                let x = product.x.get(at..at + product.d_in).unwrap_or_default();
                let (start, distance) = order.row(row);
                let n_steps = order.codes_per_tile() / TILE_ROWS / STEP;
                let codes = &mut codes[start..start + (n_steps - 1) * distance + STEP];
                *scale = isa.run(Round { x, codes, distance, zero: order.zero() }, Round::plain);
            }
        });
        let rounded = Rounded { codes, order, scales };
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

/// A task: rounds one row and returns the scale of the row. The scale is NaN if a value is not finite, so that all
/// outputs of the row are NaN.
struct Round<'a> {
    x: &'a [f32],
    /// Destination: a step of [`STEP`] codes at every multiple of `distance`, padded with the code that represents 0.
    codes: &'a mut [i8],
    distance: usize,
    zero: i8,
}

impl Round<'_> {
    #[inline(always)]
    fn plain(self) -> f32 {
        // Without the sign bit, the bit patterns of f32 are ordered like the magnitudes, with ∞ and NaN at the end.
        let largest = self.x.iter().fold(0, |largest: u32, value| largest.max(value.to_bits() & (u32::MAX >> 1)));
        let largest = f32::from_bits(largest);
        // Rows of subnormal values round to 0, because the reciprocal would overflow. For NaN and ∞, the scale becomes
        // NaN.
        let is_number = largest.is_finite() && largest >= f32::MIN_POSITIVE;
        let reciprocal = if is_number { (LARGEST / largest).min(f32::MAX) } else { 0.0 };
        for (step, codes) in self.codes.chunks_mut(self.distance).enumerate() {
            let x = &self.x[self.x.len().min(step * STEP)..self.x.len().min((step + 1) * STEP)];
            let (codes, filling) = codes[..STEP].split_at_mut(x.len());
            for (code, value) in codes.iter_mut().zip(x) {
                *code = rounded(value * reciprocal) ^ self.zero;
            }
            filling.fill(self.zero);
        }
        match () {
            () if !largest.is_finite() => f32::NAN,
            () if reciprocal == 0.0 => 0.0,
            () => largest / LARGEST,
        }
    }
}

/// Rounds to the nearest integer, with ties to the even integer. The magnitude of `value` must be below 127.5.
#[inline(always)]
fn rounded(value: f32) -> i8 {
    const INTEGERS: f32 = 12_582_912.0; // 1.5 · 2²³; f32 values near it are integers
    (value + INTEGERS).to_bits() as i8
}

impl Work for Round<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> f32 {
        self.plain()
    }
}

/// Computes the exact integer dot product.
#[inline(always)]
fn dot(left: &[i8], right: &[i8]) -> i32 {
    let mut sum = 0;
    for (left, right) in left.iter().zip(right) {
        sum += i32::from(*left) * i32::from(*right);
    }
    sum
}

/// A task: up to sixteen output features of an int8 weight.
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
                // SAFETY: tasks write disjoint features.
                unsafe { self.product.write(row, feature, sum * scale) };
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

/// A task: one panel of a q4 weight.
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
                // SAFETY: tasks write disjoint features.
                unsafe { self.product.write(row, feature, sum * self.rounded.scales[row]) };
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
    /// Writes one output: the sum plus the bias.
    ///
    /// # Safety
    /// No other task writes this output feature.
    #[inline(always)]
    unsafe fn write(&self, row: usize, feature: usize, sum: f32) {
        // SAFETY: guaranteed by the caller.
        unsafe { self.out.write(row * self.d_out + feature, sum + self.bias_at(feature)) };
    }
}
