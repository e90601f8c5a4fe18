//! Weights of linear layers in the formats that the kernels read, on plain slices.
//!
//! A weight is `[d_out, d_in]`, as in PyTorch. It either borrows its parts, for example from a memory map, or owns
//! them, like the result of [`Int8::quantize`]. Quantisation runs on rayon's global pool; the result does not depend
//! on the number of threads.
//!
//! | format | bits per weight | source |
//! |---|---|---|
//! | [`Dense`] of `f32`, `bf16`, `f16` | 32, 16, 16 | the checkpoint |
//! | [`Int8`] | 8 | quanto, LLM.int8 files |
//! | [`FourBit`] (NF4, FP4) | 4.5 | bitsandbytes, also with scales of eight bits ([`NestedAbsmax`]) |
//! | [`Q4`] | 4.5 | this crate |
//! | [`Int4`] | 4.5 with groups of 128 | AWQ, GPTQ and compressed-tensors files |
//! | [`Blocks`] of a [`GgufType`] | 2.6 to 8.5 | GGUF files |

mod blocks;
mod dense;
mod error;
mod four_bit;
mod gguf;
mod gguf_k_quantize;
mod gguf_quantize;
mod int4;
mod int4_files;
mod int8;
mod nested;
mod packed;
mod q4;
mod q4_fit;
mod q4_table;

use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

pub use blocks::Blocks;
pub use dense::{Dense, Element};
pub use error::FormatError;
pub use four_bit::{BLOCK, FourBit, FourBitType};
pub use gguf::GgufType;
pub use int4::Int4;
pub use int8::Int8;
pub use nested::{NESTED_BLOCK, NestedAbsmax, check_nested_quant_map, dynamic_map};
pub use packed::PackedFormat;
pub use q4::Q4;
pub use q4_table::{BLOCK as Q4_BLOCK, PANEL as Q4_PANEL, TABLE as Q4_TABLE, TILE as Q4_TILE};

/// A weight in any format.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Weight<'a> {
    /// f32, as stored in the checkpoint.
    F32(Dense<'a, f32>),
    /// bf16, as stored in the checkpoint.
    Bf16(Dense<'a, bf16>),
    /// f16, as stored in the checkpoint.
    F16(Dense<'a, f16>),
    /// Eight bits, one scale per row.
    Int8(Int8<'a>),
    /// Four bits, NF4 or FP4 of bitsandbytes.
    FourBit(FourBit<'a>),
    /// Four bits, sixteen rows interleaved: the format of this crate.
    Q4(Q4<'a>),
    /// Four bits, a scale and a zero point per group of inputs.
    Int4(Int4<'a>),
    /// Blocks of a GGUF file.
    Blocks(Blocks<'a>),
}

/// Evaluates an expression with `$inner` as the weight in its own format.
macro_rules! each_format {
    ($weight:expr, $inner:ident => $body:expr) => {
        match $weight {
            Weight::F32($inner) => $body,
            Weight::Bf16($inner) => $body,
            Weight::F16($inner) => $body,
            Weight::Int8($inner) => $body,
            Weight::FourBit($inner) => $body,
            Weight::Q4($inner) => $body,
            Weight::Int4($inner) => $body,
            Weight::Blocks($inner) => $body,
        }
    };
}

impl Weight<'_> {
    /// Shape of the weight: `[d_out, d_in]`.
    pub fn dims(&self) -> [usize; 2] {
        each_format!(self, weight => weight.dims())
    }

    /// Number of bytes of the weight that a product reads.
    pub fn bytes(&self) -> usize {
        each_format!(self, weight => weight.bytes())
    }

    /// The name of the format in command lines and tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::F32(_) => "f32",
            Self::Bf16(_) => "bf16",
            Self::F16(_) => "f16",
            Self::Int8(_) => "int8",
            Self::FourBit(weight) => weight.kind().name(),
            Self::Q4(_) => "q4",
            Self::Int4(_) => "int4",
            Self::Blocks(weight) => weight.kind().name(),
        }
    }

    /// Writes rows `rows` as f32, `[rows.len(), d_in]`.
    ///
    /// # Panics
    /// If `rows` is out of range, or `out` does not hold `rows.len() · d_in` values.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        each_format!(self, weight => weight.dequantize_rows(rows, out));
    }

    /// The whole weight as f32, `[d_out, d_in]`. Allocates the memory of an f32 weight.
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
from_format!(F32: Dense<'a, f32>, Bf16: Dense<'a, bf16>, F16: Dense<'a, f16>, Int8: Int8<'a>, FourBit: FourBit<'a>, Q4: Q4<'a>, Int4: Int4<'a>, Blocks: Blocks<'a>);
