//! `y = x Wᵀ + b` for a weight in any format, without expanding the whole weight.
//!
//! - Up to [`MAX_GEMV_ROWS`] rows of activations: every weight is read once, expanded in registers and multiplied with
//!   all rows ([`rows`] for the row-major formats, [`q4`] for the interleaved format, [`int4`] for groups with zero
//!   points, [`blocks`] for GGUF files).
//! - More rows of GGUF blocks: up to 64 rows on AVX2 are multiplied in the same way; on AVX-512, small panels are
//!   expanded and multiplied in registers, without gemm.
//! - More rows, with AMX: blocks of the weight are expanded to bf16 and multiplied with activations that are split into
//!   three bf16 parts ([`amx`]).
//! - More rows, without AMX: panels of the weight are expanded to f32 in scratch memory of at most
//!   [`panels::PANEL_BYTES`] per thread and multiplied by the `gemm` crate.
//! - Transposed products, for gradients: panels of the weight's rows ([`transposed`]).
//! - Activations that are rounded to eight bits: integer products ([`int8`], [`blocks`]).
//!
//! Work is divided over output features only. The order of summation depends on the shapes and the machine (its
//! instruction set, and the cache sizes that gemm uses), but not on the number of threads or on earlier calls.
//! Results are therefore bitwise equal on any number of threads.

#![allow(clippy::needless_range_loop)] // several arrays share the index, and closures would lose the target features

#[cfg(target_arch = "x86_64")]
mod amx;
mod blocks;
mod decode;
mod int4;
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
use super::{ComputeUnit, Isa};
use crate::Activations;
use crate::formats::{BLOCK, PackedFormat, Weight};

/// Evaluates an expression with `$module` as the module of an instruction set.
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

/// Evaluates an expression with `$format` as the marker type of a row-major format.
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
            Weight::Q4(_) | Weight::Int4(_) | Weight::Blocks(_) => {
                unreachable!("{} has its own kernels", $weight.name())
            }
        }
    };
}
use by_format;

/// Maximum number of activation rows for which the weight is expanded in registers.
pub const MAX_GEMV_ROWS: usize = 8;

/// Weight bytes per task: large enough to pay for the scheduling, small enough that the threads finish together.
const TASK_BYTES: usize = 256 << 10;

/// With fewer weight bytes than this, one thread does everything: waking another thread takes longer than it saves.
const SINGLE_THREAD_BYTES: usize = 384 << 10;

/// Weights per task of a product in GGUF blocks.
const TASK_WEIGHTS: usize = 256 << 10;

/// With fewer weights in GGUF blocks than this, one thread does everything.
const SINGLE_THREAD_WEIGHTS: usize = 160 << 10;

/// Computes `x Wᵀ + b` on the best instruction set.
///
/// # Shapes
/// - `x`: `[n_rows, d_in]`
/// - `weight`: `[d_out, d_in]`
/// - `bias`: `[d_out]`
/// - `out`: `[n_rows, d_out]`, overwritten
///
/// # Panics
/// If a slice has the wrong length.
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
    // Weights whose blocks do not fit the vectors use the plain loops.
    if isa == Isa::Plain || product.d_in == 0 || (is_uneven(weight) && n_rows <= MAX_GEMV_ROWS) {
        plain::product(&product, weight);
    } else if let Weight::Blocks(blocks) = weight
        && blocks::is_fast(isa, blocks, n_rows)
    {
        blocks::product(&product, blocks, weight);
    } else if n_rows > MAX_GEMV_ROWS {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx if amx::supports(weight) => amx::product(&product, weight),
            _ => panels::product(&product, weight),
        }
    } else if let Weight::Q4(weight) = weight {
        q4::product(&product, weight);
    } else if let Weight::Int4(weight) = weight {
        int4::product(&product, weight);
    } else {
        rows::product(&product, weight);
    }
}

/// Computes `y W` on the best instruction set, where `y` is `gradient`. This is the gradient of [`linear`] with respect
/// to its activations, given the gradient with respect to its output. Does not expand the whole weight.
///
/// # Shapes
/// - `gradient`: `[n_rows, d_out]`
/// - `weight`: `[d_out, d_in]`
/// - `out`: `[n_rows, d_in]`, overwritten
///
/// # Panics
/// If a slice has the wrong length.
pub fn linear_transposed(gradient: &[f32], n_rows: usize, weight: &Weight<'_>, out: &mut [f32]) {
    linear_transposed_on(Isa::best(), gradient, n_rows, weight, out);
}

/// [`linear_transposed`] on a given instruction set.
///
/// # Panics
/// As [`linear_transposed`], and if the CPU does not support `isa`.
pub fn linear_transposed_on(isa: Isa, gradient: &[f32], n_rows: usize, weight: &Weight<'_>, out: &mut [f32]) {
    let [d_out, d_in] = weight.dims();
    assert_eq!(Some(gradient.len()), n_rows.checked_mul(d_out), "the gradient must be [{n_rows}, {d_out}]");
    assert_eq!(Some(out.len()), n_rows.checked_mul(d_in), "the output must be [{n_rows}, {d_in}]");
    isa.assert_available();
    if !out.is_empty() {
        transposed::product(isa, gradient, n_rows, weight, out);
    }
}

/// Whether [`linear_int8`] supports a format. GGUF types with blocks of two or three bits, and plain numbers, are not
/// supported.
pub fn rounds_activations(format: PackedFormat) -> bool {
    match format {
        PackedFormat::Int8 | PackedFormat::Q4 => true,
        PackedFormat::FourBit(_) | PackedFormat::Int4 { .. } => false,
        PackedFormat::Blocks(kind) => blocks::rounds(kind),
    }
}

/// Computes [`linear`] with activations that are rounded to eight bits. This is faster and less exact. For formats
/// without such products ([`rounds_activations`]), returns `None` and leaves `out` unchanged.
///
/// Activations of int8 and q4 weights have one scale per row; those of GGUF blocks have the scales of llama.cpp, one
/// per 32 or 256 columns.
///
/// # Panics
/// As [`linear`].
pub fn linear_int8(x: &[f32], n_rows: usize, weight: &Weight<'_>, bias: Option<&[f32]>, out: &mut [f32]) -> Option<()> {
    linear_int8_on(Isa::best(), x, n_rows, weight, bias, out)
}

/// [`linear_int8`] on a given instruction set. For int8 and q4 weights, results are bitwise equal on all instruction sets.
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
    if let Weight::Blocks(blocks) = weight
        && blocks::rounds(blocks.kind())
    {
        let product = Product::checked(isa, x, n_rows, weight, bias, out);
        if product.out.len() > 0 {
            blocks::rounded_product(&product, blocks, weight);
        }
        return Some(());
    }
    let codes = int8::Codes::of(weight)?;
    let product = Product::checked(isa, x, n_rows, weight, bias, out);
    if product.out.len() > 0 {
        int8::product(&product, codes);
    }
    Some(())
}

/// Returns the arithmetic unit that a product of `n_rows` rows uses on the best instruction set, and how many
/// operations of this unit one multiplication of the product takes. `None` if unknown.
pub fn compute_unit(n_rows: usize, weight: &Weight<'_>, activations: Activations) -> Option<(ComputeUnit, f64)> {
    let isa = Isa::best();
    if let Weight::Blocks(blocks) = weight
        && (blocks::is_integer(isa, blocks.kind(), n_rows)
            || (activations == Activations::Int8 && blocks::rounds(blocks.kind())))
    {
        return None; // integer products
    }
    if activations == Activations::Int8 && n_rows > MAX_GEMV_ROWS && int8::Codes::of(weight).is_some() {
        return match (isa, weight) {
            (Isa::Amx, Weight::Int8(_)) => Some((ComputeUnit::ByteTiles, 1.0)),
            (Isa::Amx | Isa::Avx512, _) => Some((ComputeUnit::ByteVectors, 1.0)),
            _ => None,
        };
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx if n_rows > MAX_GEMV_ROWS && amx::supports(weight) => {
            Some((ComputeUnit::Tiles, amx::products(weight)))
        }
        _ => Some((ComputeUnit::Vectors, 1.0)),
    }
}

/// Whether a block of values with one scale can span two rows, or end inside a vector.
fn is_uneven(weight: &Weight<'_>) -> bool {
    match weight {
        Weight::FourBit(_) => !weight.dims()[1].is_multiple_of(BLOCK),
        Weight::Int4(weight) => !int4::fits(weight),
        _ => false,
    }
}

/// The operands and the output of a product. Created by [`Product::checked`] only, so that its users may rely on the
/// lengths of the slices and on CPU support for `isa`.
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
    /// Creates a product. Panics if a slice has the wrong length or the CPU does not support `isa`.
    fn checked(
        isa: Isa,
        x: &'a [f32],
        n_rows: usize,
        weight: &Weight<'_>,
        bias: Option<&'a [f32]>,
        out: &'a mut [f32],
    ) -> Self {
        let [d_out, d_in] = weight.dims();
        assert_eq!(Some(x.len()), n_rows.checked_mul(d_in), "activations must be [{n_rows}, {d_in}]");
        assert_eq!(Some(out.len()), n_rows.checked_mul(d_out), "the output must be [{n_rows}, {d_out}]");
        assert!(bias.is_none_or(|bias| bias.len() == d_out), "the bias must be [{d_out}]");
        isa.assert_available();
        Self { isa, x, n_rows, d_in, d_out, bias, out: SharedOut::new(out) }
    }

    /// Calls `work` with a copy of this product that has the activations `x`, which must have the same shape.
    fn with_activations(&self, x: &[f32], work: impl FnOnce(&Product<'_>)) {
        assert_eq!(x.len(), self.x.len(), "other activations must have the same shape");
        let Self { isa, n_rows, d_in, d_out, bias, out, .. } = *self;
        work(&Product { isa, x, n_rows, d_in, d_out, bias, out });
    }

    fn bias_at(&self, feature: usize) -> f32 {
        self.bias.map_or(0.0, |bias| bias[feature])
    }

    /// Calls `task` with ranges that cover all output features. Each has a multiple of `unit` features, except the
    /// last.
    fn split(&self, weight_bytes: usize, unit: usize, task: impl Fn(Range<usize>) + Sync) {
        let units = self.d_out.div_ceil(unit);
        if weight_bytes < SINGLE_THREAD_BYTES || rayon::current_num_threads() == 1 {
            return task(0..self.d_out);
        }
        let unit_bytes = (weight_bytes / units).max(1);
        let step = (TASK_BYTES / unit_bytes).clamp(1, units) * unit;
        (0..self.d_out.div_ceil(step)).into_par_iter().for_each(|index| {
            task(index * step..self.d_out.min((index + 1) * step));
        });
    }

    /// Like [`Self::split`], for products whose time depends on the number of weights more than on their bytes.
    fn split_weights(&self, [d_out, d_in]: [usize; 2], unit: usize, task: impl Fn(Range<usize>) + Sync) {
        let (n_weights, n_threads) = (d_out * d_in, rayon::current_num_threads());
        if n_weights * self.n_rows.min(MAX_GEMV_ROWS) < SINGLE_THREAD_WEIGHTS || n_threads == 1 {
            return task(0..d_out);
        }
        let n_tasks = n_weights.div_ceil(TASK_WEIGHTS).next_multiple_of(n_threads);
        self.split_evenly(d_out.div_ceil(n_tasks).next_multiple_of(unit), task);
    }

    /// Calls `task` with ranges of `len` output features that cover all of them. The last range can be shorter.
    fn split_evenly(&self, len: usize, task: impl Fn(Range<usize>) + Sync) {
        (0..self.d_out.div_ceil(len)).into_par_iter().for_each(|index| {
            task(index * len..self.d_out.min((index + 1) * len));
        });
    }
}
