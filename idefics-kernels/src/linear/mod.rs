//! `y = x Wᵀ + b` for a weight in any format, without ever expanding the whole of it.
//!
//! - Up to [`THIN_ROWS`] rows of activations: each weight is read once, expanded in registers and multiplied with all
//!   rows ([`rows`] for the formats that are stored row after row, [`q4`] for the interleaved one).
//! - More rows, where the machine has tiles: blocks of the weight are expanded to bf16 and multiplied with
//!   activations that are sums of three bf16 ([`amx`]).
//! - More rows elsewhere: panels of the weight are expanded to f32 in scratch memory of [`panels::PANEL_BYTES`] a
//!   thread and multiplied by the `gemm` crate.
//! - The weight itself in place of its transpose, for gradients: panels of its rows ([`transposed`]).
//! - More rows of activations that are rounded to eight bits: products of integers ([`int8`]).
//!
//! Work is divided over output features only, and each is summed in an order that follows from the shapes and the
//! machine (its instructions, and the caches that gemm blocks for): results are equal to the bit on any number of
//! threads, whatever was computed before.

#![allow(clippy::needless_range_loop)] // several arrays share the index, and closures would lose the target features

#[cfg(target_arch = "x86_64")]
mod amx;
mod decode;
mod int8;
mod panels;
mod plain;
mod q4;
mod rows;
mod transposed;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use std::ops::Range;

use rayon::prelude::*;

use super::shared::SharedOut;
use super::{Isa, Unit};
use crate::Activations;
use crate::formats::{BLOCK, Weight};

/// Evaluates an expression with `$module` standing for the module of an instruction set.
macro_rules! on_isa {
    ($isa:expr, $module:ident => $body:expr) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            crate::Isa::Avx2 => {
                use crate::linear::avx2 as $module;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            crate::Isa::Avx512 | crate::Isa::Amx => {
                use crate::linear::avx512 as $module;
                $body
            }
            #[cfg(target_arch = "aarch64")]
            crate::Isa::Neon => {
                use crate::linear::neon as $module;
                $body
            }
            isa => unreachable!("{isa:?} has its own code path, or belongs to another architecture"),
        }
    };
}
use on_isa;

/// Evaluates an expression with `$format` standing for the format of a weight that is stored row after row.
macro_rules! by_format {
    ($weight:expr, $format:ident => $body:expr) => {
        match $weight {
            Weight::F32(_) => {
                type $format = crate::linear::decode::format::F32;
                $body
            }
            Weight::Bf16(_) => {
                type $format = crate::linear::decode::format::Bf16;
                $body
            }
            Weight::F16(_) => {
                type $format = crate::linear::decode::format::F16;
                $body
            }
            Weight::Int8(_) => {
                type $format = crate::linear::decode::format::Int8;
                $body
            }
            Weight::FourBit(_) => {
                type $format = crate::linear::decode::format::FourBit;
                $body
            }
            Weight::Q4(_) => unreachable!("q4 has its own kernels"),
        }
    };
}
use by_format;

/// Most rows of activations for which the weight is expanded in registers.
pub const THIN_ROWS: usize = 8;

/// Weight bytes of one task: long enough to pay for handing it over, short enough that the cores finish together.
const TASK_BYTES: usize = 256 << 10;

/// Weight bytes below which one thread does everything: waking another takes longer than it saves.
const ALONE_BYTES: usize = 384 << 10;

/// `x Wᵀ + b` on the best instruction set there is.
///
/// # Shapes
/// - `x`: `[n_rows, d_in]`
/// - `weight`: `[d_out, d_in]`
/// - `bias`: `[d_out]`
/// - `out`: `[n_rows, d_out]`, overwritten
///
/// # Panics
/// If a slice has another length.
pub fn linear(x: &[f32], n_rows: usize, weight: &Weight<'_>, bias: Option<&[f32]>, out: &mut [f32]) {
    linear_on(Isa::best(), x, n_rows, weight, bias, out);
}

/// [`linear`] on a given instruction set.
///
/// # Panics
/// As [`linear`], and if the CPU does not support `isa`.
pub fn linear_on(isa: Isa, x: &[f32], n_rows: usize, weight: &Weight<'_>, bias: Option<&[f32]>, out: &mut [f32]) {
    let product = Product::checked(isa, x, n_rows, weight, bias, out);
    if product.out.len() == 0 {
        return;
    }
    // Blocks that span rows leave no row that begins with its own scale: such weights take the plain way.
    if isa == Isa::Plain || product.d_in == 0 || (spans_rows(weight) && n_rows <= THIN_ROWS) {
        plain::product(&product, weight);
    } else if n_rows > THIN_ROWS {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx if amx::takes(weight) => amx::product(&product, weight),
            _ => panels::product(&product, weight),
        }
    } else if let Weight::Q4(weight) = weight {
        q4::product(&product, weight);
    } else {
        rows::product(&product, weight);
    }
}

/// `y W` on the best instruction set there is: the gradient with respect to the activations of [`linear`], from that
/// with respect to its output. Never expands the whole weight.
///
/// # Shapes
/// - `gradient`: `[n_rows, d_out]`
/// - `weight`: `[d_out, d_in]`
/// - `out`: `[n_rows, d_in]`, overwritten
///
/// # Panics
/// If a slice has another length.
pub fn linear_transposed(gradient: &[f32], n_rows: usize, weight: &Weight<'_>, out: &mut [f32]) {
    linear_transposed_on(Isa::best(), gradient, n_rows, weight, out);
}

/// [`linear_transposed`] on a given instruction set.
///
/// # Panics
/// As [`linear_transposed`], and if the CPU does not support `isa`.
pub fn linear_transposed_on(isa: Isa, gradient: &[f32], n_rows: usize, weight: &Weight<'_>, out: &mut [f32]) {
    let [d_out, d_in] = weight.dims();
    assert_eq!(Some(gradient.len()), n_rows.checked_mul(d_out), "the gradient is [{n_rows}, {d_out}]");
    assert_eq!(Some(out.len()), n_rows.checked_mul(d_in), "the output is [{n_rows}, {d_in}]");
    isa.assert_available();
    if !out.is_empty() {
        transposed::product(isa, gradient, n_rows, weight, out);
    }
}

/// [`linear`] with activations that are rounded to eight bits, row by row: faster, and less exact. For int8 and q4;
/// `None` for formats whose codes are no integers.
///
/// # Panics
/// As [`linear`].
pub fn linear_int8(x: &[f32], n_rows: usize, weight: &Weight<'_>, bias: Option<&[f32]>, out: &mut [f32]) -> Option<()> {
    linear_int8_on(Isa::best(), x, n_rows, weight, bias, out)
}

/// [`linear_int8`] on a given instruction set; the result is the same to the bit on each.
///
/// # Panics
/// As [`linear_on`].
pub fn linear_int8_on(
    isa: Isa,
    x: &[f32],
    n_rows: usize,
    weight: &Weight<'_>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Option<()> {
    let codes = int8::Codes::of(weight)?;
    let product = Product::checked(isa, x, n_rows, weight, bias, out);
    if product.out.len() > 0 {
        int8::product(&product, codes);
    }
    Some(())
}

/// The arithmetic unit that multiplies `n_rows` rows with a weight on the best instruction set, and how many of its
/// operations one multiplication of the product takes; `None` where it is not known.
pub fn arithmetic(n_rows: usize, weight: &Weight<'_>, activations: Activations) -> Option<(Unit, f64)> {
    let isa = Isa::best();
    if activations == Activations::Int8 && n_rows > THIN_ROWS && int8::Codes::of(weight).is_some() {
        return match (isa, weight) {
            (Isa::Amx, Weight::Int8(_)) => Some((Unit::ByteTiles, 1.0)),
            (Isa::Amx | Isa::Avx512, _) => Some((Unit::ByteVectors, 1.0)),
            _ => None,
        };
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx if n_rows > THIN_ROWS && amx::takes(weight) => Some((Unit::Tiles, amx::products(weight))),
        _ => Some((Unit::Vectors, 1.0)),
    }
}

/// Whether blocks of one scale reach from one row into the next.
fn spans_rows(weight: &Weight<'_>) -> bool {
    matches!(weight, Weight::FourBit(_)) && !weight.dims()[1].is_multiple_of(BLOCK)
}

/// What is multiplied, and where the result goes. [`Product::checked`] alone makes one: who holds it knows that the
/// slices have their lengths and the machine the instructions of `isa`.
struct Product<'a> {
    isa: Isa,
    /// `[n_rows, d_in]`.
    x: &'a [f32],
    n_rows: usize,
    d_in: usize,
    d_out: usize,
    /// `[d_out]`.
    bias: Option<&'a [f32]>,
    /// `[n_rows, d_out]`; a task writes the columns of its own output features only.
    out: SharedOut<'a>,
}

impl<'a> Product<'a> {
    /// The product, if everything has its size and the machine the instructions.
    fn checked(
        isa: Isa,
        x: &'a [f32],
        n_rows: usize,
        weight: &Weight<'_>,
        bias: Option<&'a [f32]>,
        out: &'a mut [f32],
    ) -> Self {
        let [d_out, d_in] = weight.dims();
        assert_eq!(Some(x.len()), n_rows.checked_mul(d_in), "activations are [{n_rows}, {d_in}]");
        assert_eq!(Some(out.len()), n_rows.checked_mul(d_out), "the output is [{n_rows}, {d_out}]");
        assert!(bias.is_none_or(|bias| bias.len() == d_out), "the bias is [{d_out}]");
        isa.assert_available();
        Self { isa, x, n_rows, d_in, d_out, bias, out: SharedOut::new(out) }
    }

    fn bias_at(&self, feature: usize) -> f32 {
        self.bias.map_or(0.0, |bias| bias[feature])
    }

    /// Calls `task` with ranges of output features that cover all of them, each a multiple of `unit` long but the
    /// last.
    fn split(&self, weight_bytes: usize, unit: usize, task: impl Fn(Range<usize>) + Sync) {
        let units = self.d_out.div_ceil(unit);
        if weight_bytes < ALONE_BYTES || rayon::current_num_threads() == 1 {
            return task(0..self.d_out);
        }
        let unit_bytes = (weight_bytes / units).max(1);
        let step = (TASK_BYTES / unit_bytes).clamp(1, units) * unit;
        (0..self.d_out.div_ceil(step)).into_par_iter().for_each(|index| {
            task(index * step..self.d_out.min((index + 1) * step));
        });
    }

    /// Calls `task` with ranges of `len` output features, the last of them shorter.
    fn split_evenly(&self, len: usize, task: impl Fn(Range<usize>) + Sync) {
        (0..self.d_out.div_ceil(len)).into_par_iter().for_each(|index| {
            task(index * len..self.d_out.min((index + 1) * len));
        });
    }
}
