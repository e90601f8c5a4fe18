//! Weights of linear layers in the formats that the kernels read, on plain slices.
//!
//! A weight is `[d_out, d_in]`, as PyTorch stores it. Each format either borrows its parts, which may lie in a memory
//! map, or owns them, as [`Int8::quantize`] and its siblings return them. Quantising runs on all cores of rayon's
//! global pool and gives the same bits on any number of them.
//!
//! | format | bits a weight | source |
//! |---|---|---|
//! | [`Dense`] of `f32`, `bf16`, `f16` | 32, 16, 16 | the checkpoint |
//! | [`Int8`] | 8 | quanto, LLM.int8 files |
//! | [`FourBit`] (NF4, FP4) | 4.5 | bitsandbytes; [`NestedAbsmax`] |
//! | [`Q4`] | 4.5 | this crate |
//!
//! [`GgufType`] is how GGUF files hold rows of values; they are read as f32.

mod dense;
mod error;
mod four_bit;
mod gguf;
mod int8;
mod nested;
mod packed;
mod q4;
mod q4_fit;
mod q4_table;

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

pub use dense::{Dense, Element};
pub use error::FormatError;
pub use four_bit::{BLOCK, FourBit, FourBitType};
pub use gguf::GgufType;
pub use int8::Int8;
pub use nested::{NESTED_BLOCK, NestedAbsmax, check_nested_quant_map, dynamic_map};
pub use packed::PackedFormat;
pub use q4::Q4;
pub use q4_table::{BLOCK as Q4_BLOCK, PANEL as Q4_PANEL, TABLE as Q4_TABLE, TILE as Q4_TILE};

/// A weight in any format.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Weight<'a> {
    /// As the checkpoint has it.
    F32(Dense<'a, f32>),
    /// As the checkpoint has it.
    Bf16(Dense<'a, bf16>),
    /// As the checkpoint has it.
    F16(Dense<'a, f16>),
    /// Eight bits, a scale a row.
    Int8(Int8<'a>),
    /// NF4 or FP4.
    FourBit(FourBit<'a>),
    /// Four bits, rows interleaved.
    Q4(Q4<'a>),
}

/// Runs the same expression on whatever format a weight has.
macro_rules! each_format {
    ($weight:expr, $inner:ident => $body:expr) => {
        match $weight {
            Weight::F32($inner) => $body,
            Weight::Bf16($inner) => $body,
            Weight::F16($inner) => $body,
            Weight::Int8($inner) => $body,
            Weight::FourBit($inner) => $body,
            Weight::Q4($inner) => $body,
        }
    };
}

impl Weight<'_> {
    /// `[d_out, d_in]`.
    pub fn dims(&self) -> [usize; 2] {
        each_format!(self, weight => weight.dims())
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        each_format!(self, weight => weight.bytes())
    }

    /// The format, as command lines and tables name it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::F32(_) => "f32",
            Self::Bf16(_) => "bf16",
            Self::F16(_) => "f16",
            Self::Int8(_) => "int8",
            Self::FourBit(weight) => weight.kind().name(),
            Self::Q4(_) => "q4",
        }
    }

    /// Rows `rows` as f32, `[rows.len(), d_in]`.
    ///
    /// # Panics
    /// If `rows` is out of range, or `out` does not hold `rows.len() · d_in` values.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        each_format!(self, weight => weight.dequantize_rows(rows, out));
    }

    /// The whole weight as f32, `[d_out, d_in]`. Takes the memory of an f32 weight.
    pub fn dequantize(&self) -> Vec<f32> {
        let [d_out, d_in] = self.dims();
        let mut out = vec![0f32; d_out * d_in];
        if d_in > 0 {
            out.par_chunks_mut(d_in).enumerate().for_each(|(row, out)| self.dequantize_rows(row..row + 1, out));
        }
        out
    }
}

macro_rules! from_format {
    ($($variant:ident: $format:ty),*) => {
        $(impl<'a> From<$format> for Weight<'a> {
            fn from(weight: $format) -> Self {
                Self::$variant(weight)
            }
        })*
    };
}
from_format!(F32: Dense<'a, f32>, Bf16: Dense<'a, bf16>, F16: Dense<'a, f16>, Int8: Int8<'a>, FourBit: FourBit<'a>, Q4: Q4<'a>);
