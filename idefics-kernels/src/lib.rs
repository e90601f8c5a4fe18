#![doc = include_str!("../README.md")]

mod activations;
mod aligned_buffer;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attend;
#[cfg(target_arch = "x86_64")]
mod attend_amx;
mod attention;
mod attention_inputs;
mod attention_piece;
mod exp;
pub mod formats;
mod gelu;
mod isa;
mod level;
mod linear;
mod norm;
mod pages;
mod peak;
mod read;
mod rope;
mod shared;
mod swiglu;
mod vector;

pub use activations::Activations;
pub use aligned_buffer::AlignedBuffer;
pub use attend::{attend, attend_on};
pub use attention::{decode_attention, decode_attention_on, paged_attention, paged_attention_on};
pub use attention_inputs::{Attention, DecodeAttention, PagedAttention, PagedRow, StridedView};
pub use exp::exp_on;
pub use gelu::{gelu, gelu_on, gelu_tanh, gelu_tanh_on};
pub use isa::Isa;
pub use level::{IsaError, IsaLevel, UnknownIsaLevel};
pub use linear::{
    MAX_GEMV_ROWS, compute_unit, linear, linear_int8, linear_int8_on, linear_on, linear_transposed,
    linear_transposed_on, rounds_activations,
};
pub use norm::{layer_norm, layer_norm_on, rms_norm, rms_norm_on};
pub use pages::write_slots;
pub use peak::ComputeUnit;
pub use read::{stream_sum, stream_sum_on};
pub use rope::{rope, rope_on};
pub use swiglu::{swiglu, swiglu_on};
