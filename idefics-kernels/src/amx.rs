//! AMX: matrix products on tile registers (Intel servers since 2023).
//!
//! A tile has 16 rows of 64 bytes. `tdpbf16ps` multiplies 16 rows of 32 bf16 activations by the weights of 16
//! output columns (16 rows of bf16 pairs) and adds the product to a tile of 16 × 16 f32. Its rate is eight times that
//! of AVX-512.
//!
//! Numerics: an f32 is split into a sum of three bf16 parts, and the product of two such sums is expanded into products
//! of parts. The smallest products are left out; they are below 2⁻²⁴ of the whole. Results are therefore as accurate as
//! with f32. Subnormal numbers count as zero.

#![allow(unsafe_code)] // intrinsics and raw pointers
#![allow(clippy::needless_range_loop)] // several arrays share the index

use std::arch::x86_64::*;
use std::sync::OnceLock;

mod pack;
mod tiles;

pub(crate) use pack::{load, mask, pack_columns, pair_parts, parts, store_transposed, transposed};
pub(crate) use tiles::Tiles;

/// Number of rows in a tile.
pub(crate) const ROWS: usize = 16;

/// Number of bf16 values in a tile row: the length of one step along the summed dimension.
pub(crate) const STEP: usize = 32;

/// Number of bytes in a tile.
pub(crate) const TILE: usize = 1024;

/// Number of bf16 parts that an f32 activation is split into.
pub(crate) const PARTS: usize = 3;

/// Whether the CPU has bf16 and int8 tiles and the operating system lets the process use them. Checked once.
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

/// Requests permission to use the tile state, and returns whether it was granted. Linux grants it per process, because
/// the state is large.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and only changes what the process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}
