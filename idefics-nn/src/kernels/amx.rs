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

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

mod pack;

pub(super) use pack::{load, mask, pack_columns, pair_parts, parts, store_transposed, transposed};

/// Rows of a tile.
pub(super) const ROWS: usize = 16;

/// bf16 of a tile's row, which are also the columns that one step of a product goes over.
pub(super) const STEP: usize = 32;

/// Bytes of a tile.
pub(super) const TILE: usize = 1024;

/// bf16 that an activation is the sum of.
pub(super) const PARTS: usize = 3;

/// Whether the machine has tiles of bf16, and the system lets the process use them; asked once.
pub(super) fn is_available() -> bool {
    static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
    *IS_AVAILABLE.get_or_init(|| super::vector::avx512::is_available() && has_instructions() && is_permitted())
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

/// The thread's tiles, eight whole ones, until it is dropped.
pub(super) struct Tiles(());

impl Tiles {
    /// Sets the tiles up.
    ///
    /// # Panics
    /// If the machine has none.
    pub(super) fn new() -> Self {
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        assert!(is_available(), "this machine has no tiles of bf16");
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        row_bytes[..8].fill(64);
        rows[..8].fill(ROWS as u8);
        let config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows };
        // SAFETY: the assertion found the instructions and the permission; the configuration is one of palette 1.
        unsafe { asm!("ldtilecfg [{config}]", config = in(reg) &raw const config, options(nostack)) };
        Self(())
    }

    /// Two tiles of sixteen rows times two tiles of sixteen columns, added to four tiles of sums, or `clear` before. Of
    /// the products of parts, those are made whose indices add up to two at most.
    ///
    /// # Shapes
    /// - `left`: `steps` times `LEFT` tiles each, sixteen rows of 32 values
    /// - `right`: `steps` times [`PARTS`] tiles each, sixteen pairs of values of sixteen columns
    /// - `sums`: of left and right 0, 0; 0, 1; 1, 0; 1, 1; a row every `stride` bytes
    ///
    /// # Safety
    /// The pointers are valid for that, the sums for writing by this thread alone.
    #[inline]
    pub(super) unsafe fn multiply<const LEFT: usize>(
        &self,
        left: [*const u8; 2],
        right: [*const u8; 2],
        steps: usize,
        sums: [*mut f32; 4],
        stride: usize,
        clear: bool,
    ) {
        // SAFETY: as the caller vouches; nothing else uses these registers.
        unsafe {
            if clear {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
            } else {
                asm!(
                    "tileloadd tmm0, [{c0} + {stride}*1]",
                    "tileloadd tmm1, [{c1} + {stride}*1]",
                    "tileloadd tmm2, [{c2} + {stride}*1]",
                    "tileloadd tmm3, [{c3} + {stride}*1]",
                    c0 = in(reg) sums[0], c1 = in(reg) sums[1], c2 = in(reg) sums[2], c3 = in(reg) sums[3],
                    stride = in(reg) stride, options(nostack, readonly),
                );
            }
            if steps > 0 {
                match LEFT {
                    1 => walk!(1024, left, right, steps, [0: 0 1 2]),
                    2 => walk!(2048, left, right, steps, [0: 0 1 2] [1: 0 1]),
                    3 => walk!(3072, left, right, steps, [0: 0 1 2] [1: 0 1] [2: 0]),
                    _ => unreachable!("the left side has one to three parts"),
                }
            }
            asm!(
                "tilestored [{c0} + {stride}*1], tmm0",
                "tilestored [{c1} + {stride}*1], tmm1",
                "tilestored [{c2} + {stride}*1], tmm2",
                "tilestored [{c3} + {stride}*1], tmm3",
                c0 = in(reg) sums[0], c1 = in(reg) sums[1], c2 = in(reg) sums[2], c3 = in(reg) sums[3],
                stride = in(reg) stride, options(nostack),
            );
        }
    }

    /// Two row tiles of activations times two feature tiles of codes, in integers: rows of `sums` are rows, its columns
    /// features.
    ///
    /// # Shapes
    /// - `activations`, `weights`: `steps` tiles each
    ///
    /// # Safety
    /// The pointers are valid for that.
    pub(super) unsafe fn multiply_codes(
        &self,
        activations: [*const u8; 2],
        weights: [*const u8; 2],
        steps: usize,
        sums: &mut [i32; 4 * ROWS * ROWS],
    ) {
        let start = sums.as_mut_ptr();
        let sums = [0, ROWS, 2 * ROWS * ROWS, 2 * ROWS * ROWS + ROWS].map(|at| start.wrapping_add(at));
        // SAFETY: as the caller vouches; nothing else uses these registers, and the sums are 32 rows of 128 bytes.
        unsafe {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
            if steps > 0 {
                asm!(
                    "2:",
                    "tileloadd tmm6, [{b0} + {row}*1]",
                    "tileloadd tmm7, [{b1} + {row}*1]",
                    "tileloadd tmm4, [{a0} + {row}*1]",
                    "tileloadd tmm5, [{a1} + {row}*1]",
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tdpbssd tmm1, tmm4, tmm7",
                    "tdpbssd tmm2, tmm5, tmm6",
                    "tdpbssd tmm3, tmm5, tmm7",
                    "add {a0}, 1024",
                    "add {a1}, 1024",
                    "add {b0}, 1024",
                    "add {b1}, 1024",
                    "dec {steps}",
                    "jnz 2b",
                    a0 = inout(reg) activations[0] => _,
                    a1 = inout(reg) activations[1] => _,
                    b0 = inout(reg) weights[0] => _,
                    b1 = inout(reg) weights[1] => _,
                    steps = inout(reg) steps => _,
                    row = in(reg) 64usize,
                    options(nostack, readonly),
                );
            }
            asm!(
                "tilestored [{c0} + {stride}*1], tmm0",
                "tilestored [{c1} + {stride}*1], tmm1",
                "tilestored [{c2} + {stride}*1], tmm2",
                "tilestored [{c3} + {stride}*1], tmm3",
                c0 = in(reg) sums[0], c1 = in(reg) sums[1], c2 = in(reg) sums[2], c3 = in(reg) sums[3],
                stride = in(reg) 2 * ROWS * size_of::<i32>(), options(nostack),
            );
        }
    }

    /// Four tiles of sums become zero.
    #[inline(always)]
    pub(super) fn clear(&self) {
        // SAFETY: nothing but the thread's tiles is touched, which are this value's.
        unsafe { asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem)) };
    }

    /// Reads four tiles of sums, a row every `stride` bytes.
    ///
    /// # Safety
    /// The pointers are valid for that.
    #[inline(always)]
    pub(super) unsafe fn load(&self, sums: [*mut f32; 4], stride: usize) {
        // SAFETY: as the caller vouches.
        unsafe {
            self.load_half(sums, stride);
            asm!(
                "tileloadd tmm2, [{c2} + {stride}*1]",
                "tileloadd tmm3, [{c3} + {stride}*1]",
                c2 = in(reg) sums[2], c3 = in(reg) sums[3], stride = in(reg) stride, options(nostack, readonly),
            );
        }
    }

    /// The first two of [`Tiles::load`].
    ///
    /// # Safety
    /// As [`Tiles::load`].
    #[inline(always)]
    pub(super) unsafe fn load_half(&self, sums: [*mut f32; 4], stride: usize) {
        // SAFETY: as the caller vouches.
        unsafe {
            asm!(
                "tileloadd tmm0, [{c0} + {stride}*1]",
                "tileloadd tmm1, [{c1} + {stride}*1]",
                c0 = in(reg) sums[0], c1 = in(reg) sums[1], stride = in(reg) stride, options(nostack, readonly),
            );
        }
    }

    /// Adds one step of the product of two tiles of rows with two tiles of columns, to sums 0, 0; 0, 1; 1, 0; 1, 1.
    ///
    /// # Safety
    /// The pointers are valid for a tile each.
    #[inline(always)]
    pub(super) unsafe fn step(&self, left: [*const u8; 2], right: [*const u8; 2]) {
        // SAFETY: as the caller vouches.
        unsafe {
            asm!(
                "tileloadd tmm4, [{a0} + {row}*1]",
                "tileloadd tmm6, [{b0} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a1} + {row}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{b1} + {row}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                a0 = in(reg) left[0], a1 = in(reg) left[1], b0 = in(reg) right[0], b1 = in(reg) right[1],
                row = in(reg) 64usize, options(nostack, readonly),
            );
        }
    }

    /// The first half of [`Tiles::step`], of one tile of rows.
    ///
    /// # Safety
    /// As [`Tiles::step`].
    #[inline(always)]
    pub(super) unsafe fn half_step(&self, left: *const u8, right: [*const u8; 2]) {
        // SAFETY: as the caller vouches.
        unsafe {
            asm!(
                "tileloadd tmm4, [{a0} + {row}*1]",
                "tileloadd tmm6, [{b0} + {row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {row}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                a0 = in(reg) left, b0 = in(reg) right[0], b1 = in(reg) right[1],
                row = in(reg) 64usize, options(nostack, readonly),
            );
        }
    }

    /// Writes four tiles of sums, a row every `stride` bytes.
    ///
    /// # Safety
    /// The pointers are valid for that, for writing by this thread alone.
    #[inline(always)]
    pub(super) unsafe fn store(&self, sums: [*mut f32; 4], stride: usize) {
        // SAFETY: as the caller vouches.
        unsafe {
            self.store_half(sums, stride);
            asm!(
                "tilestored [{c2} + {stride}*1], tmm2",
                "tilestored [{c3} + {stride}*1], tmm3",
                c2 = in(reg) sums[2], c3 = in(reg) sums[3], stride = in(reg) stride, options(nostack),
            );
        }
    }

    /// The first two of [`Tiles::store`].
    ///
    /// # Safety
    /// As [`Tiles::store`].
    #[inline(always)]
    pub(super) unsafe fn store_half(&self, sums: [*mut f32; 4], stride: usize) {
        // SAFETY: as the caller vouches.
        unsafe {
            asm!(
                "tilestored [{c0} + {stride}*1], tmm0",
                "tilestored [{c1} + {stride}*1], tmm1",
                c0 = in(reg) sums[0], c1 = in(reg) sums[1], stride = in(reg) stride, options(nostack),
            );
        }
    }

    /// Multiplies tiles in registers, of bytes or of bf16, `4 steps` times; returns the number of products.
    pub(super) fn spin<const OF_BYTES: bool>(&self, steps: usize) -> usize {
        // SAFETY: nothing but the thread's tiles is touched, which are this value's.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tilezero tmm4",
                "tilezero tmm5",
                "tilezero tmm6",
                "tilezero tmm7",
                options(nostack, nomem)
            );
            for _ in 0..steps {
                if OF_BYTES {
                    asm!(
                        "tdpbssd tmm0, tmm4, tmm6",
                        "tdpbssd tmm1, tmm4, tmm7",
                        "tdpbssd tmm2, tmm5, tmm6",
                        "tdpbssd tmm3, tmm5, tmm7",
                        options(nostack, nomem)
                    );
                } else {
                    asm!(
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        options(nostack, nomem)
                    );
                }
            }
        }
        4 * steps * ROWS * ROWS * if OF_BYTES { 64 } else { STEP }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: gives back what `new` set up.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// The steps of a product: for each part of the left side, its products with some parts of the right one.
macro_rules! walk {
    ($left_bytes:literal, $left:ident, $right:ident, $steps:ident, $([$l:literal: $($r:literal)*])*) => {
        asm!(
            "2:",
            $(
                concat!("tileloadd tmm4, [{a0} + {row}*1 + ", $l, "*1024]"),
                concat!("tileloadd tmm5, [{a1} + {row}*1 + ", $l, "*1024]"),
                $(
                    concat!("tileloadd tmm6, [{b0} + {row}*1 + ", $r, "*1024]"),
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    concat!("tileloadd tmm7, [{b1} + {row}*1 + ", $r, "*1024]"),
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                )*
            )*
            concat!("add {a0}, ", $left_bytes),
            concat!("add {a1}, ", $left_bytes),
            "add {b0}, 3072",
            "add {b1}, 3072",
            "dec {steps}",
            "jnz 2b",
            a0 = inout(reg) $left[0] => _,
            a1 = inout(reg) $left[1] => _,
            b0 = inout(reg) $right[0] => _,
            b1 = inout(reg) $right[1] => _,
            steps = inout(reg) $steps => _,
            row = in(reg) 64usize,
            options(nostack, readonly),
        )
    };
}
use walk;
