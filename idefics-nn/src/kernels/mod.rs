//! The CPU's kernels, on f32 activations.
//!
//! | kernel | what it does |
//! |---|---|
//! | [`linear`] | `x Wᵀ + b` for a weight in any of the [`formats`](crate::formats) |
//! | [`rms_norm`], [`layer_norm`] | normalisation of rows |
//! | [`rope`] | rotary positions, half-split |
//! | [`decode_attention`] | one new token against the cache, grouped heads, f32 softmax |
//! | [`attend`] | many queries: prompts and patches |
//! | [`swiglu`] | `silu(gate) · up` |
//! | [`gelu_tanh`], [`gelu`] | the vision towers' activations |
//!
//! Each picks the best instruction set of the machine once ([`Isa::best`]); the variant that ends in `_on` takes one,
//! for tests and comparisons. Work is divided over rayon's global pool where that pays, in a way that does not depend
//! on the number of threads, so that results are equal to the bit from run to run on one machine. A caller that
//! runs many kernels in a row should do so inside the pool (`rayon::scope` or `rayon::join`): handing each over from a
//! thread outside costs some microseconds more.
//!
//! # Speed
//! Weight bytes a second, one row of activations, weights from memory, on two AVX-512 cores at 3 GHz that were shared
//! with other programs: the best hundredth of the calls. No read was seen to be faster than 44 GB/s on the machine.
//!
//! | format | `[14336, 4096]` | `[4096, 14336]` | one core, weight in its cache |
//! |---|---|---|---|
//! | f32 | – | 41.5 GB/s | |
//! | bf16 | 41.1 GB/s | 39.8 GB/s | 29 GB/s and more |
//! | f16 | 40.2 GB/s | 44.2 GB/s | |
//! | int8 | 34.0 GB/s | 37.8 GB/s | 23.9 GB/s |
//! | nf4 | 23.5 GB/s | – | 12.9 GB/s: bound by arithmetic |
//! | q4 | 29.0 GB/s | 27.0 GB/s | 18.6 GB/s |
//!
//! `cargo bench --bench kernels` measures again, beside what the memory gives at that moment. Weights that begin at a
//! cache line are read faster: a file of weights should align its tensors to 64 bytes.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attend;
#[cfg(target_arch = "x86_64")]
mod attend_amx;
mod attention;
mod attention_piece;
mod exp;
mod gelu;
mod isa;
mod linear;
mod memory;
mod norm;
mod peak;
mod read;
mod rope;
mod shared;
mod swiglu;
mod vector;

pub use attend::{Attention, attend, attend_on};
pub use attention::{Cached, DecodeAttention, decode_attention, decode_attention_on};
pub use exp::exp_on;
pub use gelu::{gelu, gelu_on, gelu_tanh, gelu_tanh_on};
pub use isa::Isa;
pub(crate) use linear::arithmetic;
pub use linear::{THIN_ROWS, linear, linear_int8, linear_int8_on, linear_on};
pub(crate) use memory::Memory;
pub use norm::{layer_norm, layer_norm_on, rms_norm, rms_norm_on};
pub use peak::Unit;
pub use read::{read, read_on};
pub use rope::{rope, rope_on};
pub use swiglu::{swiglu, swiglu_on};
pub(crate) use vector::{Vector, Work};
