//! AMX: products of whole tiles of bf16 (Intel servers since 2023).
//!
//! A tile is 16 rows of 64 bytes. `tdpbf16ps` adds to a tile of 16 × 16 f32 the product of 16 rows of 32 activations and
//! of 16 pairs of columns of 16 weights, at eight times the rate of AVX-512.
//!
//! Numerics: an f32 is the sum of three bf16, and a product of two sums is a sum of products. Those that are left out
//! are below 2⁻²⁴ of the whole, so that results are as good as those of f32. Numbers below the smallest normal f32 count
//! as zero.

#![allow(unsafe_code)] // instructions and pointers
#![allow(clippy::needless_range_loop)] // several arrays advance together

use std::arch::x86_64::*;
use std::sync::OnceLock;

mod pack;
mod tiles;

pub(crate) use pack::{load, mask, pack_columns, pair_parts, parts, store_transposed, transposed};
pub(crate) use tiles::Tiles;

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;

/// bf16 of a tile's row, which are also the columns that one step of a product goes over.
pub(crate) const STEP: usize = 32;

/// Bytes of a tile.
pub(crate) const TILE: usize = 1024;

/// bf16 that an activation is the sum of.
pub(crate) const PARTS: usize = 3;

/// Whether the machine has tiles of bf16, and the system lets the process use them; asked once.
pub(crate) fn is_available() -> bool {
    static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
    *IS_AVAILABLE.get_or_init(|| crate::vector::avx512::is_available() && has_instructions() && is_permitted())
}

fn has_instructions() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    __cpuid(0).eax >= 7
        && __cpuid_count(7, 0).edx & (BF16 | TILE | INT8) == BF16 | TILE | INT8
        && is_x86_feature_detected!("avx512bf16")
}

/// Asks the system for the tiles' state, which is too large to be kept for every process.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes nothing but what the process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}
